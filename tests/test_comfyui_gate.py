"""Score Gate: it blocks the worst share of a long queue, and its record outlives the server."""

import json
import math
import urllib.error

import numpy as np
import pytest
import torch
from comfyui_server import ComfyUI, ExecutionError
from PIL import Image

from tastemaker import load_scorer, ranking

pytestmark = pytest.mark.comfyui

OUTPUTS = ["images", "latents", "masks", "items", "scores"]
OUT = {name: i for i, name in enumerate([*OUTPUTS, *(f"rejected_{name}" for name in OUTPUTS)])}
OUT |= {"indices": 10, "count": 11, "percentiles": 12}


def gate(record: str, spec: list[dict], dump: str = "", **inputs) -> dict:
    """A prompt: images to a gate, whose outputs `dump` are written to files named after it."""
    given = {"images": ["images", 0], "scorer": ["load", 0], "record": record}
    given = {**given, "reject_share": 0.3, "warm_up": 20, "window": 0, **inputs}
    given = {name: value for name, value in given.items() if value is not None}
    prompt = {
        "load": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "images": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(spec)}},
        "gate": {"class_type": "TastemakerScoreGate", "inputs": given},
    }
    for name in dump.split():
        value = {"name": f"gate-{record}-{name}", "value": ["gate", OUT[name]]}
        prompt[f"of {name}"] = {"class_type": "ProbeDump", "inputs": value}
    return prompt


def dumped(comfyui: ComfyUI, record: str, name: str):
    """What the last prompt gave; None if it was blocked."""
    path = comfyui.output / f"gate-{record}-{name}.json"
    found = json.loads(path.read_text()) if path.exists() else None
    path.unlink(missing_ok=True)
    return found


def reset(comfyui: ComfyUI, record: str, action: str = "reset") -> int:
    return json.loads(comfyui.post(f"/tastemaker/gate/{action}", {"record": record}))["scores"]


def text(entry: dict) -> str:
    return entry["outputs"]["gate"]["text"][0]


def pictures(count: int, seed: int) -> list[Image.Image]:
    """Random colours, from smooth to noisy, so that their scores spread."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
        smooth = np.array(small.resize((64, 64), Image.Resampling.BICUBIC), float)
        noisy = smooth + rng.normal(0, rng.uniform(0, 40), smooth.shape)
        made.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return made


@pytest.fixture(scope="module")
def files(comfyui, tmp_path_factory) -> list:
    folder = tmp_path_factory.mktemp("gate")
    paths = [folder / f"gate_{i:03}.png" for i in range(300)]
    for path, picture in zip(paths, pictures(300, seed=0), strict=True):
        picture.save(path)
    comfyui.put(*paths)
    return paths


@pytest.fixture(scope="module")
def scores(files) -> torch.Tensor:
    return load_scorer("nano").score(files)


def alone(*files) -> list[dict]:
    """A batch of one size."""
    return [{"files": [file.name for file in files]}]


def saving(prompt: dict, prefix: str) -> dict:
    inputs = {"images": ["gate", 0], "filename_prefix": prefix}
    return {**prompt, "save": {"class_type": "SaveImage", "inputs": inputs}}


def test_300_prompts_of_one_image_across_a_restart(comfyui, files, scores):
    """The lowest 30 % are blocked once it is warm, as if the server had never stopped."""
    run_each(comfyui, files[:150])
    comfyui.restart()
    run_each(comfyui, files[150:])
    passed = [i for i, file in enumerate(files) if list(comfyui.output.glob(f"night-{file.stem}*"))]
    expected = ranking.gate(scores, scores, torch.arange(1, 301))
    assert passed == expected.selection.kept.tolist()
    assert passed[:20] == list(range(20))
    assert (300 - len(passed)) / 280 == pytest.approx(0.3, abs=0.05)
    best = ranking.top_fraction(scores, 0.5).kept.tolist()
    assert len(set(best) - set(passed)) < 10  # what it blocks is the bad half
    assert reset(comfyui, "night", "count") == 300


def run_each(comfyui: ComfyUI, files) -> None:
    """A prompt for each file, as a queue does overnight; what passes is saved under its name."""
    queued = [comfyui.queue(saving(gate("night", alone(f)), f"night-{f.stem}")) for f in files]
    for prompt_id in queued:
        comfyui.wait(prompt_id)


def fill(comfyui, record: str, files, **inputs) -> dict:
    """One prompt with many images; they count as if they had come one by one."""
    return comfyui.run(gate(record, alone(*files), "indices percentiles", **inputs))


def test_many_at_once_fare_as_one_by_one(comfyui, files, scores):
    entry = fill(comfyui, "batch", files[:60])
    expected = ranking.gate(scores[:60], scores[:60], torch.arange(1, 61))
    assert dumped(comfyui, "batch", "indices") == expected.selection.kept.tolist()
    assert dumped(comfyui, "batch", "percentiles") == expected.percentiles.tolist()
    assert text(entry) == (
        f"{len(expected.selection.kept)} of 60 kept; batch has 60 scores, "
        f"kept from {expected.cut:.3f}"
    )


def test_the_picture_and_the_line(comfyui, files, scores):
    fill(comfyui, "shown", files[:60])
    worst, best = int(scores.argmin()), int(scores.argmax())
    entry = comfyui.run(gate("shown", alone(files[worst])))
    assert text(entry).startswith(f"blocked: {scores[worst]:.3f}; shown has ")
    (shown,) = comfyui.files(entry, "gate")
    assert Image.open(shown).height > 200  # the image, and the histogram below it
    entry = comfyui.run(gate("shown", alone(files[best])))
    assert text(entry).startswith(f"kept: {scores[best]:.3f}; shown has ")
    entry = comfyui.run(gate("new", alone(files[best])))
    assert text(entry) == f"kept: {scores[best]:.3f}; new is warming up, 1 of 20"


def test_everything_that_belongs_to_an_image_goes_its_way(comfyui, files, scores):
    fill(comfyui, "way", files[:60])
    pair = [int(scores[:60].argmax()), int(scores[:60].argmin())]
    prompt = gate(
        "way",
        alone(*(files[i] for i in pair)),
        "items latents masks rejected_items rejected_latents scores rejected_scores",
        items=["items", 0],
        latents=["latents", 0],
        masks=["masks", 0],
    )
    prompt["items"] = {"class_type": "ProbeList", "inputs": {"spec": '["good", "bad"]'}}
    prompt["latents"] = {"class_type": "ProbeLatent", "inputs": {"spec": '[{"count": 2}]'}}
    prompt["masks"] = {"class_type": "ProbeMasks", "inputs": {"spec": '[{"count": 2}]'}}
    comfyui.run(prompt)
    assert dumped(comfyui, "way", "items") == ["good"]
    assert dumped(comfyui, "way", "rejected_items") == ["bad"]
    assert dumped(comfyui, "way", "latents")[0]["batch_index"] == [0]
    assert dumped(comfyui, "way", "rejected_latents")[0]["batch_index"] == [1]
    assert dumped(comfyui, "way", "masks")[0]["shape"] == [1, 48, 48]
    for name, i in zip(["scores", "rejected_scores"], pair, strict=True):
        (found,) = dumped(comfyui, "way", name)
        assert found["values"]["values"] == [pytest.approx(scores[i].item(), abs=1e-5)]


def test_an_image_judged_again_is_not_counted_again(comfyui, files):
    first = fill(comfyui, "again", files[:40])
    kept = dumped(comfyui, "again", "indices")
    comfyui.free()  # forgets what it has cached, so that the node runs again
    second = fill(comfyui, "again", files[:40], warm_up=0)
    assert "gate" in comfyui.executed(second)
    assert reset(comfyui, "again", "count") == 40
    assert "40 scores" in text(first) and "40 scores" in text(second)
    # They are judged by all that is known by now: those that passed to warm it up are no exception.
    assert set(dumped(comfyui, "again", "indices")) != set(kept)


def test_the_same_prompt_twice_comes_from_the_cache_until_a_reset(comfyui, files):
    prompt = gate("cached", alone(*files[:30]))
    comfyui.run(prompt)
    assert "gate" not in comfyui.executed(comfyui.run(prompt))
    assert reset(comfyui, "cached") == 30
    entry = comfyui.run(prompt)
    assert "gate" in comfyui.executed(entry) and "30 scores" in text(entry)


def test_a_reset_begins_anew_and_can_be_undone(comfyui, files):
    fill(comfyui, "reset", files[:30])
    assert reset(comfyui, "reset") == 30
    assert "warming up, 5 of 20" in text(fill(comfyui, "reset", files[:5]))
    assert reset(comfyui, "reset", "undo_reset") == 30
    assert "31 scores" in text(fill(comfyui, "reset", files[30:31]))


@pytest.mark.parametrize(
    "body, message",
    [
        ({"record": "never reset"}, "has not been reset"),
        ({"record": " "}, "needs a name"),
        ({"record": 3}, "strip"),
        ({}, "record"),
        ([], "list"),
    ],
)
def test_what_cannot_be_reset_is_said(comfyui, body, message):
    with pytest.raises(urllib.error.HTTPError) as refused:
        comfyui.post("/tastemaker/gate/undo_reset", body)
    assert refused.value.code == 400 and message in refused.value.read().decode()


def test_what_has_no_score_is_blocked_and_not_counted(comfyui):
    prompt = gate("nan", [{"count": 3, "nan": [0, 2]}], "indices percentiles rejected_images")
    comfyui.run(prompt)
    assert dumped(comfyui, "nan", "indices") == [1]
    percentiles = dumped(comfyui, "nan", "percentiles")
    assert percentiles[1] == 50 and math.isnan(percentiles[0]) and math.isnan(percentiles[2])
    assert dumped(comfyui, "nan", "rejected_images")[0]["shape"][0] == 2
    assert reset(comfyui, "nan", "count") == 1
    entry = comfyui.run(gate("nan", [{"count": 1, "nan": [0]}], "images count"))
    assert text(entry) == "blocked: no score; nan is warming up, 1 of 20"
    assert dumped(comfyui, "nan", "images") is None and dumped(comfyui, "nan", "count") == [0]


def test_an_empty_batch_passes_by(comfyui):
    comfyui.run(gate("empty", [{"count": 0}], "images rejected_images count"))
    assert dumped(comfyui, "empty", "count") == [0]
    assert dumped(comfyui, "empty", "images") is dumped(comfyui, "empty", "rejected_images") is None


def test_a_list_of_sizes(comfyui):
    spec = [{"height": 40}, {"width": 80}, {"height": 64, "count": 2}]
    entry = comfyui.run(gate("sizes", spec, "images"))
    assert "4 of 4 kept" in text(entry)
    shapes = [part["shape"] for part in dumped(comfyui, "sizes", "images")]
    assert shapes == [[1, 40, 48, 3], [1, 48, 80, 3], [1, 64, 48, 3], [1, 64, 48, 3]]


def test_scorers_never_mix(comfyui, files, scores):
    """An ensemble of nano has other scores than nano: its record begins empty."""
    fill(comfyui, "mixed", files[:30])
    prompt = gate("mixed", alone(files[0]), scorer=["both", 0])
    prompt["both"] = {
        "class_type": "TastemakerEnsembleScorers",
        "inputs": {
            "scorers.scorer0": ["load", 0],
            "scorers.scorer1": ["load", 0],
            "weights": "",
            "reference": "images",
            "reference_images": ["reference", 0],
        },
    }
    spec = json.dumps(alone(*files[:20]))
    prompt["reference"] = {"class_type": "ProbeImages", "inputs": {"spec": spec}}
    assert "warming up, 1 of 20" in text(comfyui.run(prompt))


def test_the_window_counts_the_latest(comfyui, files, scores):
    fill(comfyui, "window", files[:60], window=15, warm_up=10)
    expected = ranking.gate(scores[:60], scores[:60], torch.arange(1, 61), window=15, warm_up=10)
    assert dumped(comfyui, "window", "indices") == expected.selection.kept.tolist()
    plain = ranking.gate(scores[:60], scores[:60], torch.arange(1, 61), warm_up=10)
    assert plain.selection.kept.tolist() != expected.selection.kept.tolist()


def test_neither_scores_nor_scorer_is_refused_before_anything_runs(comfyui, files):
    with pytest.raises(ExecutionError, match="connect scores .* or a scorer"):
        comfyui.run(gate("none", alone(files[0]), scorer=None))


def test_a_record_needs_a_name(comfyui, files):
    with pytest.raises(ExecutionError, match="the record needs a name"):
        comfyui.run(gate(" ", alone(files[0])))


def test_a_damaged_record_is_named_and_left_alone(comfyui, files):
    path = comfyui.base / "user" / "tastemaker" / "gate.sqlite"
    own = path.read_bytes()
    for part in path.parent.glob("gate.sqlite-*"):
        part.unlink()
    try:
        path.write_bytes(b"no database at all " * 500)
        with pytest.raises(ExecutionError, match="gate.sqlite.*move it away"):
            comfyui.run(gate("damaged", alone(files[0])))
        assert path.read_bytes() == b"no database at all " * 500
    finally:
        path.write_bytes(own)
