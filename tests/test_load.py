"""What `load_scorer` is asked for, before anything is read."""

import pytest
import tiny_vit
import torch

from tastemaker.scorers import load_scorer


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "cuda", torch.device("cuda"), "cpu:x"])
def test_a_device_that_is_not_there_is_named(device):
    if str(device) == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match=rf"no device '{device}' .*there are: cpu") as caught:
        load_scorer("no-such-scorer", device=device)
    assert "\n" not in str(caught.value)


def test_a_revision_is_for_hub_checkpoints(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "siglip"}')
    for name in ("nano", "rali", tmp_path, str(tmp_path), tmp_path / "config.json"):
        with pytest.raises(ValueError, match="revision 'v1' is for hub checkpoints"):
            load_scorer(name, revision="v1", device="cpu")


def test_a_revision_reaches_the_hub(monkeypatch):
    asked = []

    def fetch(hub_id, revision):
        asked.append((hub_id, revision))
        raise FileNotFoundError

    monkeypatch.setattr("tastemaker.scorers.load.fetch", fetch)
    for name in ("joyquality", "someone/their-fine-tune"):
        with pytest.raises(FileNotFoundError):
            load_scorer(name, revision="v1", device="cpu")
    assert [revision for _, revision in asked] == ["v1", "v1"]


@pytest.mark.parametrize("dtype, expected", [("auto", "float32"), ("checkpoint", "bfloat16")])
def test_the_checkpoints_dtype_on_request(tmp_path, dtype, expected):
    tiny_vit.make_joyquality().to(torch.bfloat16).save_pretrained(tmp_path)
    assert load_scorer(tmp_path, device="cpu", dtype=dtype).dtype == getattr(torch, expected)


@pytest.mark.parametrize(
    "name, option, message",
    [
        ("nano", {"max_pixels": 99}, r"^nano has no option max_pixels \(it has none\)$"),
        ("nano", {"prompt_style": "card"}, "^nano has no option prompt_style"),
        ("rali", {"heads": 1}, r"^rali has no option heads \(it has gradient_checkpointing\)$"),
        ("joyquality", {"max_pixels": 9}, r"^joyquality has no option max_pixels .*image_size"),
        ("q-realign-pro", {"size": 9}, r"^q-realign has no option size .*prompt_style, max_pixels"),
    ],
)
def test_an_option_that_a_scorer_does_not_have_is_named_before_anything_is_fetched(
    name, option, message, monkeypatch
):
    monkeypatch.setattr("tastemaker.scorers.load.fetch", lambda *_: pytest.fail("was fetched"))
    with pytest.raises(TypeError, match=message):
        load_scorer(name, device="cpu", **option)


def test_an_option_of_a_folder_or_of_an_ensemble_is_checked_too(tmp_path):
    (tmp_path / "config.json").write_text('{"tastemaker": "nano"}')
    with pytest.raises(TypeError, match="^nano has no option max_pixels"):
        load_scorer(tmp_path, device="cpu", max_pixels=9)
    with pytest.raises(TypeError, match="^ensemble has no option max_pixels"):
        load_scorer(tmp_path / "config.json", device="cpu", max_pixels=9)
