"""Compare Images: the probability of the scores' difference, the winner, one against many."""

import json
from itertools import count

import numpy as np
import pytest
from comfyui_server import ExecutionError
from PIL import Image

from tastemaker import load_scorer, ranking

pytestmark = pytest.mark.comfyui

RUNS = count()  # what is cached writes no file
NAMES = ("winner", "winner_scores", "win_probability", "score_a", "score_b")
NAN = float("nan")


@pytest.fixture(scope="module")
def pictures(comfyui, tmp_path_factory):
    """Five pictures of one size in the input folder."""
    folder = tmp_path_factory.mktemp("compare")
    step = np.mgrid[0:56, 0:72].sum(0)[..., None] * [1, 0.5, 1.5]
    for i, amount in enumerate([20, 0, 40, 5, 60]):
        noise = np.random.default_rng(i).normal(0, amount, (56, 72, 3))
        Image.fromarray((step + noise).clip(0, 255).astype(np.uint8)).save(
            folder / f"compare-{i}.png"
        )
    files = sorted(folder.iterdir())
    comfyui.put(*files)
    return files


def batch(files) -> list[dict]:
    return [{"files": [file.name for file in files]}]


def each(files) -> list[dict]:
    return [{"files": [file.name]} for file in files]


def graph(a, b, tau=0.0, run=0, load="nano") -> dict:
    prompt = {
        "1": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(a)}},
        "2": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(b)}},
        "3": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": load}},
        "4": {
            "class_type": "TastemakerCompareImages",
            "inputs": {"scorer": ["3", 0], "image_a": ["1", 0], "image_b": ["2", 0], "tau": tau},
        },
    }
    for i, name in enumerate(NAMES):
        inputs = {"name": f"compare-{run}-{name}", "value": ["4", i]}
        prompt[f"{10 + i}"] = {"class_type": "ProbeDump", "inputs": inputs}
    for i, node in enumerate("12"):
        inputs = {"name": f"compare-{run}-{node}", "value": [node, 0]}
        prompt[f"{20 + i}"] = {"class_type": "ProbeDump", "inputs": inputs}
    return prompt


def compare(comfyui, a, b, **how) -> tuple[dict, dict]:
    """The prompt's entry, and what came out of the node, and of the images 1 and 2."""
    run = next(RUNS)
    entry = comfyui.run(graph(a, b, run=run, **how))
    files = {name: comfyui.output / f"compare-{run}-{name}.json" for name in (*NAMES, "1", "2")}
    return entry, {name: json.loads(file.read_text()) for name, file in files.items()}


def digests(images: list[dict]) -> list[str]:
    return [digest for image in images for digest in image["digests"]]


@pytest.mark.parametrize("tau", [0.0, 0.5])
def test_pairs_of_two_batches(comfyui, pictures, tau):
    a, b = pictures[:2], pictures[2:4]
    entry, found = compare(comfyui, batch(a), batch(b), tau=tau)
    score_a, score_b = (load_scorer("nano").score(files) for files in (a, b))
    assert found["score_a"] == score_a.tolist() and found["score_b"] == score_b.tolist()
    expected = ranking.win_probability(score_a, score_b, tau or 1.0).tolist()
    assert found["win_probability"] == expected
    sides = zip(digests(found["1"]), digests(found["2"]), score_a > score_b, strict=True)
    assert digests(found["winner"]) == [one if wins else other for one, other, wins in sides]
    assert len(found["winner"]) == 1  # one batch
    assert found["winner_scores"][0]["values"]["values"] == score_a.maximum(score_b).tolist()
    (shown,) = comfyui.files(entry, "4")
    with Image.open(shown) as sheet:
        assert sheet.width > 900


def test_one_against_many_of_other_sizes(comfyui, pictures):
    many = [*each(pictures[1:4]), {"height": 30, "width": 90}]
    _, found = compare(comfyui, batch(pictures[:1]), many)
    scores = load_scorer("nano").score(pictures).tolist()
    # Batches of other images: equal as the contract says, not to the last bit.
    assert found["score_a"] == pytest.approx([scores[0]] * 4, abs=1e-5)
    assert found["score_b"][:3] == pytest.approx(scores[1:4], abs=1e-5)
    _, turned = compare(comfyui, many, batch(pictures[:1]))
    assert turned["score_a"] == found["score_b"] and turned["score_b"] == found["score_a"]
    both = np.array([found["win_probability"], turned["win_probability"]])
    assert both.sum(0) == pytest.approx(1)
    assert [image["shape"][0] for image in found["winner"]] == [1] * 4
    assert digests(found["winner"]) == digests(turned["winner"])


def test_equal_images(comfyui, pictures):
    _, found = compare(comfyui, batch(pictures[:1]), batch(pictures[:1]))
    assert found["win_probability"] == [0.5]
    assert digests(found["winner"]) == digests(found["1"])


def test_what_has_no_score_loses(comfyui):
    a = [{"count": 3, "nan": [0, 2], "seed": 1}]
    b = [{"count": 3, "nan": [1, 2], "seed": 2}]
    _, found = compare(comfyui, a, b)
    assert np.isnan(found["win_probability"]).all()
    one, other = digests(found["1"]), digests(found["2"])
    assert digests(found["winner"]) == [other[0], one[1], one[2]]


def test_more_pairs_than_are_shown(comfyui):
    entry, found = compare(comfyui, [{"count": 30, "seed": 1}], [{"count": 1, "seed": 2}])
    assert len(found["win_probability"]) == 30
    with Image.open(comfyui.files(entry, "4")[0]) as sheet:
        assert sheet.height < 4000


def test_numbers_that_do_not_agree(comfyui, pictures):
    with pytest.raises(ExecutionError, match="image_a has 2 images and image_b 3"):
        comfyui.run(graph(batch(pictures[:2]), batch(pictures[:3])))


def test_nothing_to_compare(comfyui, pictures):
    comfyui.run(graph([{"count": 0}], [{"count": 0}], run="none"))
    assert not (comfyui.output / "compare-none-winner.json").exists()


def test_a_scorer_whose_scores_say_no_probability_needs_tau(comfyui, pictures):
    """An ensemble's differences are no log odds."""
    member = {"name": "nano", "load": {"name_or_path": "nano", "task": "quality"}}
    card = load_scorer("nano").card
    measured = {"fingerprint": dict(card.fingerprint), "mean": 0.0, "std": 2.0, "n": 9}
    contents = {
        "tastemaker": "reference",
        "set": {"name": "s"},
        "members": [{**member, **measured}],
    }
    path = comfyui.base / "models" / "tastemaker" / "compare.json"
    path.write_text(json.dumps(contents))
    try:
        load, sides = "models/tastemaker/compare.json", (batch(pictures[:1]), batch(pictures[1:2]))
        with pytest.raises(ExecutionError, match="tau: how likely one wins"):
            comfyui.run(graph(*sides, load=load))
        _, found = compare(comfyui, *sides, load=load, tau=0.5)
        assert 0 < found["win_probability"][0] < 1
    finally:
        path.unlink()
