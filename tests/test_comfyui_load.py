"""Load Scorer, Ensemble Scorers and Score Images in a server, on checkpoints in the official formats."""

import json
import os
import shutil

import pytest
import tiny_vit
import torch
from comfyui_server import ExecutionError, failure, interrupted
from tiny_qwen import write_checkpoint

from tastemaker.scorers import load_scorer
from tastemaker.scorers.rali_convert import convert_rali

pytestmark = pytest.mark.comfyui

SIZES = [(96, 128), (128, 96), (64, 64)]


@pytest.fixture(scope="module")
def files(comfyui, tmp_path_factory):
    folder = tmp_path_factory.mktemp("load")
    paths = [folder / f"load_{i}.png" for i in range(len(SIZES))]
    for path, picture in zip(paths, tiny_vit.pictures(SIZES), strict=True):
        picture.save(path)
    comfyui.put(*paths)
    return paths


@pytest.fixture(scope="module")
def folders(comfyui, tmp_path_factory):
    """Checkpoints of every kind in models/tastemaker, and things there that are none."""
    root = comfyui.base / "models" / "tastemaker"
    root.mkdir(parents=True, exist_ok=True)
    tiny_vit.make_joyquality().save_pretrained(root / "my.joy-quality")
    write_checkpoint(root / "my-q-realign")
    release = tmp_path_factory.mktemp("release")
    tiny_vit.write_rali_release(release)
    convert_rali(release, root / "my-rali")
    (root / "notes.txt").write_text("no checkpoint")
    (root / "other").mkdir()
    (root / "other" / "config.json").write_text('{"model_type": "llama"}')
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text("{")
    for name, config in {"a-list": "[1]", "a-listed-type": '{"model_type": ["x"]}'}.items():
        (root / name).mkdir()
        (root / name / "config.json").write_text(config)
    return root


def scored(files, scorer="nano", name="scores", **options) -> dict:
    """Load Scorer -> Score Images of files of mixed sizes -> their scores, as JSON."""
    spec = json.dumps([{"files": [path.name]} for path in files])
    options = {f"scorer.{key}": value for key, value in options.items()}
    return {
        "images": {"class_type": "ProbeImages", "inputs": {"spec": spec}},
        "load": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": scorer, **options}},
        "score": score("load", "images"),
        "dump": {"class_type": "ProbeDump", "inputs": {"name": name, "value": ["score", 2]}},
    }


def score(scorer, images, preview=True) -> dict:
    inputs = {"scorer": [scorer, 0], "images": [images, 0], "preview": preview}
    return {"class_type": "TastemakerScoreImages", "inputs": inputs}


def dumped(comfyui, name="scores"):
    return json.loads((comfyui.output / f"{name}.json").read_text())


Q = dict(task="quality", dtype="auto", max_pixels=0, prompt_style="card")


@pytest.mark.parametrize(
    "name, options",
    [
        ("nano", {}),
        ("my.joy-quality", dict(dtype="auto")),
        ("my-rali", dict(dtype="float32")),
        ("my-q-realign", Q),
        ("my-q-realign", {**Q, "task": "aesthetics", "prompt_style": "upstream"}),
        ("my-q-realign", {**Q, "max_pixels": 65536}),
    ],
)
def test_a_picture_has_the_score_of_its_file(comfyui, files, folders, name, options):
    own = name if name == "nano" else f"models/tastemaker/{name}"
    comfyui.run(scored(files, own, **options))
    options = {key: value for key, value in options.items() if value}
    scorer = load_scorer(name if name == "nano" else folders / name, device="cpu", **options)
    assert dumped(comfyui) == scorer.score(files).tolist()


def test_the_menu_lists_what_can_be_loaded(comfyui, folders):
    listed = comfyui.object_info("TastemakerLoadScorer")["TastemakerLoadScorer"]["input"]
    options = listed["required"]["scorer"][1]["options"]
    names = [option["key"] for option in options]
    assert names[:6] == [
        *("nano", "joyquality", "rali", "q-realign-mini", "q-realign-lite", "q-realign-pro")
    ]
    own = {name.removeprefix("models/tastemaker/") for name in names[6:]}
    assert {"my.joy-quality", "my-rali", "my-q-realign"} <= own
    assert not own & {"notes.txt", "other", "broken", "a-list", "a-listed-type"}
    widgets = {option["key"]: set(option["inputs"].get("required", {})) for option in options}
    assert widgets["nano"] == set()
    assert widgets["models/tastemaker/my.joy-quality"] == {"dtype"}
    assert widgets["models/tastemaker/my-q-realign"] == set(Q)


def test_a_checkpoint_in_the_hubs_cache_is_listed_and_loaded(comfyui, files, folders):
    snapshot = "models--someone--their-taste/snapshots/" + "a" * 40
    target = comfyui.base / "hub" / "hub" / snapshot
    shutil.copytree(folders / "my.joy-quality", target)
    refs = target.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    comfyui.run(scored(files, "someone/their-taste", dtype="auto"))
    expected = load_scorer(folders / "my.joy-quality", device="cpu").score(files)
    assert dumped(comfyui) == expected.tolist()


def test_the_same_prompt_twice_is_cached(comfyui, files):
    first = scored(files)
    comfyui.run(first)
    mark = comfyui.mark()
    assert comfyui.executed(comfyui.run(first)) == set()
    assert "Requested to load" not in comfyui.log(mark)


def test_other_images_do_not_reload_the_scorer(comfyui, files, folders):
    own = "models/tastemaker/my.joy-quality"
    comfyui.run(scored(files, own, dtype="auto"))
    mark = comfyui.mark()
    entry = comfyui.run(scored(files[::-1], own, dtype="auto"))
    assert comfyui.executed(entry) == {"images", "score", "dump"}
    assert "Requested to load" not in comfyui.log(mark)


def test_two_tasks_share_one_model(comfyui, files, folders):
    own = "models/tastemaker/my-q-realign"
    comfyui.free()
    comfyui.run(scored(files, own, **Q))
    mark = comfyui.mark()
    comfyui.run(scored(files, own, **{**Q, "task": "aesthetics"}))
    assert "Requested to load" not in comfyui.log(mark)


def test_freeing_the_models_and_scoring_again(comfyui, files):
    comfyui.run(scored(files))
    first = dumped(comfyui)
    comfyui.free()
    mark = comfyui.mark()
    assert comfyui.executed(comfyui.run(scored(files))) == {"images", "load", "score", "dump"}
    assert dumped(comfyui) == first
    assert "Requested to load nano" in comfyui.log(mark)


def test_a_checkpoint_that_changed_on_disk_is_loaded_anew(comfyui, files, folders):
    folder = shutil.copytree(folders / "my.joy-quality", folders / "changing")
    prompt = scored(files, "models/tastemaker/changing", dtype="auto")
    comfyui.run(prompt)
    before = dumped(comfyui)
    torch.manual_seed(5)
    model = tiny_vit.make_joyquality()
    with torch.no_grad():
        model.classifier.bias += 1
    model.save_pretrained(folder)
    os.utime(folder / "model.safetensors")
    assert comfyui.executed(comfyui.run(prompt)) >= {"load", "score"}
    after = dumped(comfyui)
    assert after == load_scorer(folder, device="cpu").score(files).tolist() != before


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "model.safetensors").unlink(), "no .safetensors in"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"x" * 50), "damaged"),
        (lambda folder: shutil.rmtree(folder), "no longer in models/tastemaker/"),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_line(comfyui, files, folders, damage, message):
    folder = shutil.copytree(folders / "my.joy-quality", folders / "damaged", dirs_exist_ok=True)
    damage(folder)
    with pytest.raises(ExecutionError, match=message) as caught:
        comfyui.run(scored(files, "models/tastemaker/damaged", dtype="auto"))
    said = caught.value.details.get("exception_message", "one line").strip()
    assert "\n" not in said
    shutil.rmtree(folder, ignore_errors=True)


def test_a_scorer_that_is_not_there_says_how_to_get_it(comfyui, files):
    with pytest.raises(ExecutionError) as caught:
        comfyui.run(scored(files, "joyquality", dtype="auto"))
    said = caught.value.details["exception_message"]
    assert "neither in the hub cache nor can it be downloaded" in said
    with pytest.raises(ExecutionError, match="tastemaker convert rali"):
        comfyui.run(scored(files, "rali", dtype="auto"))


# --- images that are not what one expects ---------------------------------------------------------


def probe(*parts, **nodes) -> dict:
    spec = {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(list(parts))}}
    return {
        "images": spec,
        "load": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "score": score("load", "images"),
        "dump": {"class_type": "ProbeDump", "inputs": {"name": "scores", "value": ["score", 2]}},
        **nodes,
    }


def test_one_image_and_two_hundred(comfyui):
    for count in (1, 200):
        comfyui.run(probe({"count": count, "height": 32, "width": 32}))
        assert len(dumped(comfyui)) == count


def test_grey_and_transparent_images(comfyui):
    comfyui.run(probe({"channels": 1}, {"channels": 4}))
    assert all(value == value for value in dumped(comfyui))


def test_pixels_that_are_not_finite_have_no_score_and_stop_nothing(comfyui):
    mark = comfyui.mark()
    comfyui.run(probe({"count": 4, "nan": [1, 2]}))
    values = dumped(comfyui)
    assert [value == value for value in values] == [True, False, False, True]
    assert "2 of 4 images have no score; image 1: it has pixels that are not finite" in (
        comfyui.log(mark)
    )
    alone = probe({"count": 4})
    comfyui.run(alone)
    expected = dumped(comfyui)
    assert [values[0], values[3]] == pytest.approx([expected[0], expected[3]], abs=1e-5)


def test_an_empty_batch_is_no_error(comfyui):
    size = {"class_type": "ProbeDump", "inputs": {"name": "empty", "value": ["score", 1]}}
    comfyui.run(probe({"count": 0}, size=size))
    assert dumped(comfyui, "empty")[0]["values"]["shape"] == [0]


def test_a_run_is_interrupted_and_the_next_one_works(comfyui):
    prompt_id = comfyui.queue(probe({"count": 200, "height": 768, "width": 768}))
    comfyui.wait_until_running(prompt_id)
    comfyui.interrupt()
    entry = comfyui.wait(prompt_id, check=False)
    assert interrupted(entry) and failure(entry)["node_type"]
    comfyui.run(probe({"count": 2}))
    assert len(dumped(comfyui)) == 2


# --- ensembles ------------------------------------------------------------------------------------


def test_an_ensemble_of_two_on_reference_images(comfyui, files, folders):
    prompt = scored(files) | {
        "other": {
            "class_type": "TastemakerLoadScorer",
            "inputs": {
                "scorer": "models/tastemaker/my.joy-quality",
                "scorer.dtype": "auto",
            },
        },
        "reference": {
            "class_type": "ProbeImages",
            "inputs": {"spec": json.dumps([{"count": 6, "height": 80, "width": 80}])},
        },
        "both": {
            "class_type": "TastemakerEnsembleScorers",
            "inputs": {
                "scorers.scorer0": ["load", 0],
                "scorers.scorer1": ["other", 0],
                "weights": "3, 1",
                "reference": "images",
                "reference_images": ["reference", 0],
            },
        },
        "score": score("both", "images"),
    }
    comfyui.run(prompt)
    mixed = torch.tensor(dumped(comfyui))
    reference = torch.rand(6, 80, 80, 3, generator=torch.Generator().manual_seed(0))
    reference = list((reference * 255).to(torch.uint8).movedim(-1, 1))
    expected = 0
    for weight, name in ((0.75, "nano"), (0.25, folders / "my.joy-quality")):
        scorer = load_scorer(name, device="cpu")
        known = scorer.score(reference).double()
        own = (scorer.score(files) - known.mean()) / known.std(correction=0)
        expected = expected + weight * own
    torch.testing.assert_close(mixed, expected.float(), atol=1e-5, rtol=0)


def test_reference_images_may_be_a_list_of_sizes(comfyui, files):
    inputs = {"scorers.scorer0": ["load", 0], "scorers.scorer1": ["load", 0], "weights": ""}
    inputs |= {"reference": "images", "reference_images": ["images", 0]}
    both = {"class_type": "TastemakerEnsembleScorers", "inputs": inputs}
    comfyui.run(scored(files) | {"both": both, "score": score("both", "images")})
    own = load_scorer("nano", device="cpu").score(files).double()
    expected = ((own - own.mean()) / own.std(correction=0)).float()
    torch.testing.assert_close(torch.tensor(dumped(comfyui)), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "weights, message", [("1", "2 scorers need 2 weights"), ("a, b", "numbers")]
)
def test_bad_weights_are_told(comfyui, files, weights, message):
    prompt = scored(files) | {
        "both": {
            "class_type": "TastemakerEnsembleScorers",
            "inputs": {
                "scorers.scorer0": ["load", 0],
                "scorers.scorer1": ["load", 0],
                "weights": weights,
                "reference": "images",
                "reference_images": ["images", 0],
            },
        },
        "score": score("both", "images"),
    }
    with pytest.raises(ExecutionError, match=message):
        comfyui.run(prompt)


def test_an_ensemble_without_a_reference_is_told(comfyui, files):
    inputs = {"scorers.scorer0": ["load", 0], "scorers.scorer1": ["load", 0]}
    inputs |= {"weights": "", "reference": "images"}
    both = {"class_type": "TastemakerEnsembleScorers", "inputs": inputs}
    with pytest.raises(ExecutionError, match="connect reference_images, or choose a file"):
        comfyui.run(scored(files) | {"both": both, "score": score("both", "images")})


def test_an_ensemble_from_a_file_of_calibrate(comfyui, files, folders):
    """Loaded whole by Load Scorer, or as statistics for scorers that are already there."""
    card = load_scorer("nano", device="cpu").card
    entry = {"load": {"name_or_path": "nano", "task": "quality"}, "mean": 1.0, "std": 2.0, "n": 9}
    reference = {
        "tastemaker": "reference",
        "set": {"name": "nine pictures"},
        "members": [{**entry, "fingerprint": dict(card.fingerprint)}],
    }
    (folders / "mine.json").write_text(json.dumps(reference))
    expected = (load_scorer("nano", device="cpu").score(files) - 1) / 2
    comfyui.run(scored(files, "models/tastemaker/mine.json"))
    torch.testing.assert_close(torch.tensor(dumped(comfyui)), expected, atol=1e-6, rtol=0)
    twice = scored(files) | {
        "both": {
            "class_type": "TastemakerEnsembleScorers",
            "inputs": {
                "scorers.scorer0": ["load", 0],
                "scorers.scorer1": ["load", 0],
                "weights": "",
                "reference": "file",
                "reference.file": "models/tastemaker/mine.json",
            },
        },
        "score": score("both", "images"),
    }
    comfyui.run(twice)
    torch.testing.assert_close(torch.tensor(dumped(comfyui)), expected, atol=1e-6, rtol=0)
