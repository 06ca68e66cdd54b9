"""Checkpoints that are broken, foreign or hostile; writes that are cut off; the hub without a network."""

import json
import os
import pickle

import pytest
import torch
from safetensors.torch import save_file

from tastemaker.scorers import checkpoint, load_scorer


def state() -> dict[str, torch.Tensor]:
    return {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.ones(2)}


def saved(folder, name="model.safetensors", tensors=None):
    folder.mkdir(exist_ok=True)
    save_file(tensors or state(), folder / name)
    return folder


def test_reads_single_sharded_and_lone_files(tmp_path):
    single = saved(tmp_path / "single")
    lone = saved(tmp_path / "lone", "weights.safetensors")
    sharded = saved(tmp_path / "sharded", "a.safetensors", {"weight": state()["weight"]})
    saved(sharded, "b.safetensors", {"bias": state()["bias"]})
    index = {"weight_map": {"weight": "a.safetensors", "bias": "b.safetensors"}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (single, lone, sharded):
        read = checkpoint.read_weights(checkpoint.weight_files(folder))
        assert read.keys() == state().keys()
        assert all(torch.equal(read[k], v) for k, v in state().items())


def test_missing_shard_missing_file_and_two_candidates_are_named(tmp_path):
    folder = saved(tmp_path / "a", "a.safetensors")
    (folder / "model.safetensors.index.json").write_text(
        '{"weight_map": {"x": "gone.safetensors"}}'
    )
    with pytest.raises(FileNotFoundError, match=r"lacks gone\.safetensors"):
        checkpoint.weight_files(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="pickled weights are not loaded"):
        checkpoint.weight_files(tmp_path / "empty")
    saved(saved(tmp_path / "two", "a.safetensors"), "b.safetensors")
    with pytest.raises(ValueError, match="which one"):
        checkpoint.weight_files(tmp_path / "two")


@pytest.mark.parametrize("keep", [0, 4, 8, 40, 0.7, 0.99])
def test_half_written_safetensors_is_named(keep, tmp_path):
    path = saved(tmp_path / "a") / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: keep if isinstance(keep, int) else int(len(whole) * keep)])
    with pytest.raises(ValueError, match=r"half-written safetensors: .*model\.safetensors"):
        checkpoint.read_weights([path])


def test_missing_unknown_and_misshapen_keys_are_named():
    module = torch.nn.Linear(3, 2)
    checkpoint.load_exactly(module, state(), "here")
    assert torch.equal(module.weight, state()["weight"])
    with pytest.raises(ValueError, match=r"here does not fit: 1 missing: bias"):
        checkpoint.load_exactly(module, {"weight": state()["weight"]}, "here")
    with pytest.raises(ValueError, match=r"1 unknown: extra"):
        checkpoint.load_exactly(module, {**state(), "extra": torch.ones(1)}, "here")
    with pytest.raises(ValueError, match=r"bias \[3\] instead of \[2\]"):
        checkpoint.load_exactly(module, {**state(), "bias": torch.ones(3)}, "here")


@pytest.mark.parametrize(
    "text",
    [
        "{",
        "",
        "[]",
        "{}",
        "3",
        "[" * 100_000,
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"x": 3}}',
        '{"weight_map": {"x": ["a"]}}',
        '{"weight_map": {"x": ""}}',
        '{"weight_map": {"x": "pytorch_model.bin"}}',
        '{"weight_map": {"x": "../../x.safetensors"}}',
        '{"weight_map": {"x": "..\\\\x.safetensors"}}',
        '{"weight_map": {"x": "/x.safetensors"}}',
        '{"weight_map": {"x": "C:x.safetensors"}}',
    ],
)
def test_a_damaged_index_is_named(text, tmp_path):
    saved(tmp_path / "a", "x.safetensors")
    saved(tmp_path, "x.safetensors")
    index = tmp_path / "a" / "model.safetensors.index.json"
    index.write_text(text)
    with pytest.raises(ValueError, match=r"damaged: .*model\.safetensors\.index\.json") as caught:
        checkpoint.weight_files(tmp_path / "a")
    assert "\n" not in str(caught.value)


SHARDS = {"a-00001-of-00002.safetensors": "weight", "a-00002-of-00002.safetensors": "bias"}


class FakeHub:
    """A hub with one checkpoint of two shards; `cached` is what an earlier download brought."""

    def __init__(self, folder, cached, online=True):
        self.folder, self.online, self.downloads = folder, online, 0
        folder.mkdir()
        self.bring(cached)

    def bring(self, names):
        for name in names:
            if name in SHARDS:
                saved(self.folder, name, {SHARDS[name]: state()[SHARDS[name]]})
            else:
                weight_map = {key: shard for shard, key in SHARDS.items()}
                (self.folder / name).write_text(json.dumps({"weight_map": weight_map}))

    def snapshot_download(self, hub_id, revision, allow_patterns, local_files_only=False):
        # As the client does: an incomplete folder is returned where there is no network.
        if not local_files_only:
            self.downloads += 1
            if self.online:
                self.bring(ALL)
        return str(self.folder)


ALL = ["model.safetensors.index.json", *SHARDS]


@pytest.mark.parametrize("cached", [ALL[:2], ALL[:1], ALL[1:2], ALL[1:], []])
def test_a_download_that_was_cut_off_is_resumed(cached, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "commit", cached)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    folder, commit = checkpoint.fetch("somebody/something")
    assert (folder, commit, hub.downloads) == (tmp_path / "commit", "commit", 1)
    assert checkpoint.read_weights(checkpoint.weight_files(folder)).keys() == state().keys()
    assert checkpoint.fetch("somebody/something") == (folder, commit)
    assert hub.downloads == 1  # whole: nothing is asked for


@pytest.mark.parametrize("cached", [ALL[:2], ALL[:1], ALL[1:2], ALL[1:], []])
def test_a_download_that_cannot_be_resumed_is_named(cached, tmp_path, monkeypatch):
    hub = FakeHub(tmp_path / "commit", cached, online=False)
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub.snapshot_download)
    message = "somebody/something is neither in the hub cache nor can it be downloaded"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        checkpoint.fetch("somebody/something")
    assert "\n" not in str(caught.value)


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (open, (str(self.marker), "w"))


def test_a_refused_pickle_is_told_in_our_words(tmp_path, recwarn):
    marker = tmp_path / "executed"
    for protocol in (0, 2, 4):
        (tmp_path / f"{protocol}.pt").write_bytes(pickle.dumps(Hostile(marker), protocol))
    torch.save({"weight": Hostile(marker)}, tmp_path / "zip.pt")
    whole = (tmp_path / "zip.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "empty.pt").touch()
    names = {"0": "would run io.open", "2": "would run io.open", "zip": "would run io.open"}
    for name in ("0", "2", "4", "zip", "cut", "empty"):
        path = tmp_path / f"{name}.pt"
        with pytest.raises(ValueError) as caught:
            checkpoint.read_pickled_weights(path)
        why = names.get(name, "is damaged, or a pickle of something else")
        advice = "it was not opened: ask for the weights as .safetensors"
        message = f"not a plain dictionary of tensors: {path} {why}; {advice}"
        assert str(caught.value) == message
    assert not marker.exists() and not recwarn.list


def test_malicious_pickle_is_refused_and_never_run(tmp_path):
    marker = tmp_path / "executed"
    for name, dump in (("a.pt", torch.save), ("b.pt", lambda o, p: p.write_bytes(pickle.dumps(o)))):
        dump({"weight": Hostile(marker)}, tmp_path / name)
        with pytest.raises(ValueError, match=f"not a plain dictionary of tensors: .*{name}"):
            checkpoint.read_pickled_weights(tmp_path / name)
    assert not marker.exists()


@pytest.mark.parametrize("version", ["2.4.0", "2.5.1+cu124", "1.13.1", "2.5.0a0+git1234"])
def test_pickled_weights_are_not_read_by_a_torch_that_can_be_deceived(
    version, tmp_path, monkeypatch
):
    torch.save(state(), tmp_path / "plain.pt")
    monkeypatch.setattr(torch, "__version__", version)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("was read"))
    with pytest.raises(
        RuntimeError, match=r'plain\.pt safely: pip install "torch>=2\.6"'
    ) as caught:
        checkpoint.read_pickled_weights(tmp_path / "plain.pt")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("version", ["2.6.0", "2.10.0+cpu", "3.0.0"])
def test_plain_pickled_weights_are_read(version, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "__version__", version)
    torch.save(state(), tmp_path / "plain.pt")
    torch.save({"state_dict": state(), "epoch": 3}, tmp_path / "nested.pt")
    for name in ("plain.pt", "nested.pt"):
        assert checkpoint.read_pickled_weights(tmp_path / name).keys() == state().keys()


def test_digest_sees_every_change():
    big = {"a": torch.zeros(300_000), "b": torch.zeros(2, dtype=torch.bfloat16)}
    digests = {checkpoint.weights_digest(big)}
    for change in (
        {"a": big["a"] + 1e-6, "b": big["b"]},
        {"a": big["a"], "b": big["b"] + 1},
        {"a": big["a"].reshape(2, -1), "b": big["b"]},
        {"a": big["a"], "c": big["b"]},
        {"a": big["a"], "b": big["b"].float()},
    ):
        digests.add(checkpoint.weights_digest(change))
    assert len(digests) == 6
    assert checkpoint.weights_digest(dict(reversed(big.items()))) in digests


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.bool, torch.int64])
def test_digest_sees_a_single_element_anywhere(dtype):
    weights = torch.arange(1_000_003).remainder(2).to(dtype)
    seen = {checkpoint.weights_digest({"a": weights})}
    places = [0, 77_777, 500_000, 999_998]
    for place in places:
        changed, swapped = weights.clone(), weights.clone()
        changed[place] = 3
        swapped[[place, place + 1]] = weights[[place + 1, place]]
        if dtype == torch.bool:
            changed[place] = ~weights[place]
        seen |= {checkpoint.weights_digest({"a": x}) for x in (changed, swapped)}
    assert len(seen) == 1 + 2 * len(places)


def test_digest_of_words_that_change_places():
    weights = torch.randn(512, 512)
    rows = weights[torch.randperm(512, generator=torch.Generator().manual_seed(0))]
    assert checkpoint.weights_digest({"a": weights}) != checkpoint.weights_digest({"a": rows})
    assert checkpoint.weights_digest({"a": weights}) != checkpoint.weights_digest({"a": weights.T})


def test_digest_of_odd_tensors():
    """Scalars and tensors without elements count; how a tensor lies in memory does not."""
    one, two = ({"a": torch.tensor(x), "b": torch.empty(0, 3)} for x in (1.0, 2.0))
    assert checkpoint.weights_digest(one) != checkpoint.weights_digest(two)
    assert checkpoint.weights_digest({**one, "b": torch.empty(3, 0)}) not in map(
        checkpoint.weights_digest, (one, two)
    )
    weights = torch.randn(300, 400, requires_grad=True)
    strided = weights.t().contiguous().t()
    assert checkpoint.weights_digest({"a": weights}) == checkpoint.weights_digest({"a": strided})


def test_a_checkpoint_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    folder = tmp_path / "out"
    checkpoint.write_checkpoint(folder, {"version": 1}, state())
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    assert before.keys() == {"config.json", "model.safetensors"}

    def full_disk(tensors, path, **_):
        path.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(checkpoint, "save_file", full_disk)
    with pytest.raises(OSError, match="no space left"):
        checkpoint.write_checkpoint(folder, {"version": 2}, state())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="modes of POSIX")
@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_a_checkpoint_is_the_umasks_to_say(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        for version in (1, 2):  # a new file, and one that is replaced
            checkpoint.write_checkpoint(tmp_path, {"version": version}, state())
    finally:
        os.umask(before)
    assert {p.name: p.stat().st_mode & 0o777 for p in tmp_path.iterdir()} == {
        "config.json": mode,
        "model.safetensors": mode,
    }


@pytest.mark.parametrize(
    "name, error, message",
    [
        ("nothing-like-it", FileNotFoundError, "no such scorer or folder: nothing-like-it .*nano"),
        ("./gone/folder", FileNotFoundError, "no such scorer or folder"),
        ("nobody/nothing", FileNotFoundError, "neither in the hub cache nor"),
        ("joyquality", FileNotFoundError, "joyquality-siglip2.*neither in the hub cache nor"),
    ],
)
def test_missing_folder_and_missing_network(name, error, message, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    with pytest.raises(error, match=message) as caught:
        load_scorer(name)
    assert "\n" not in str(caught.value)


def test_checkpoints_of_another_kind_are_named(tmp_path):
    folder = saved(tmp_path / "bert")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match="no checkpoint of a known scorer .*bert"):
        load_scorer(folder)
    (folder / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"not JSON: .*config\.json"):
        load_scorer(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_scorer(folder)


def test_a_rali_release_names_the_command(tmp_path):
    (tmp_path / "ckpt.pt").touch()
    (tmp_path / "pca.pkl").touch()
    with pytest.raises(ValueError, match="tastemaker convert rali"):
        load_scorer(tmp_path)


@pytest.mark.parametrize("dtype", ["int8", 3, torch.int64, "nonsense"])
def test_bad_dtype_is_named(dtype):
    with pytest.raises(ValueError, match="dtype must be"):
        load_scorer("nano", dtype=dtype)


def test_a_replacement_that_fails_leaves_no_stray_file(tmp_path, monkeypatch):
    (tmp_path / "a.txt").write_text("old")

    def refused(*_):
        raise PermissionError("in use")

    monkeypatch.setattr(checkpoint.os, "replace", refused)
    with pytest.raises(PermissionError), checkpoint.replacing(tmp_path / "a.txt") as temporary:
        temporary.write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["a.txt"]
    assert (tmp_path / "a.txt").read_text() == "old"
