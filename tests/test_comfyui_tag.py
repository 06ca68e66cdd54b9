"""Quality Tag: words that agree with `ranking`, and captions that are only added to."""

import json
from itertools import count

import pytest
from comfyui_server import ExecutionError
from PIL import Image

from tastemaker import load_scorer, ranking
from tastemaker.report.panels import tag_counts

pytestmark = pytest.mark.comfyui

LABELS = list(ranking.QUALITY_NAMES)
PARTS = [{"count": 5, "height": 40, "width": 40, "seed": 3, "nan": [2]}]


NAMES = ("captions", "tags", "buckets", "scores")
RUNS = count()  # what is cached writes no file


def graph(method="scale", parts=PARTS, captions=None, run=0, **inputs) -> dict:
    """Node 4 tags; others write its captions, tags, buckets, and the scores."""
    tag = {"labels": "\n".join(LABELS), "position": "before", "separator": ", ", **inputs}
    tag["method"] = method
    prompt = {
        "1": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(parts)}},
        "2": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "3": {
            "class_type": "TastemakerScoreImages",
            "inputs": {"scorer": ["2", 0], "images": ["1", 0], "preview": False},
        },
        "4": {"class_type": "TastemakerQualityTag", "inputs": {"scores": ["3", 1], **tag}},
        "5": dump(run, "captions", "4", 0),
        "6": dump(run, "tags", "4", 1),
        "7": dump(run, "buckets", "4", 2),
        "8": dump(run, "scores", "3", 2),
    }
    if captions is not None:
        prompt["9"] = {"class_type": "ProbeList", "inputs": {"spec": json.dumps(captions)}}
        prompt["4"]["inputs"]["captions"] = ["9", 0]
    return prompt


def dump(run: int, name: str, node: str, output: int) -> dict:
    inputs = {"name": f"tag-{run}-{name}", "value": [node, output]}
    return {"class_type": "ProbeDump", "inputs": inputs}


def run(comfyui, *args, **kwargs) -> tuple[list, list, list, list]:
    """Captions, tags, buckets and the scores that they came of."""
    number = next(RUNS)
    comfyui.run(graph(*args, **kwargs, run=number))
    files = (comfyui.output / f"tag-{number}-{name}.json" for name in NAMES)
    return tuple(json.loads(file.read_text()) for file in files)


def words(buckets) -> list[str]:
    return [tag or "" for tag in ranking.quality_tags(buckets, LABELS)]


METHODS = {
    "scale": ({}, lambda s: ranking.rank_bucket(ranking.calibrated_rank(s, 1.0, 0.0), 5)),
    "edges": (
        {"method.edges": "-2, -1, 0, 1"},
        lambda s: ranking.assign_buckets(s, [-2, -1, 0, 1]),
    ),
    "calibrated": (
        {"method.tau": 2.5, "method.b": -1.0},
        lambda s: ranking.rank_bucket(ranking.calibrated_rank(s, 2.5, -1.0), 5),
    ),
    "equal width": ({}, lambda s: ranking.buckets(s, 5, "equal_width")),
    "quantile": ({}, lambda s: ranking.buckets(s, 5, "quantile")),
}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_is_rankings(comfyui, method):
    options, expected = METHODS[method]
    captions, tags, buckets, scores = run(comfyui, method, **options)
    assert buckets == expected(scores).tolist() and buckets[2] == -1
    assert tags == captions == words(buckets) and tags[2] == ""


def test_only_the_methods_that_say_so_depend_on_the_batch(comfyui):
    alone = [{"count": 1, "height": 40, "width": 40, "seed": 3}]  # the first of PARTS
    for method, (options, _) in METHODS.items():
        together = run(comfyui, method, **options)[1][0]
        tag = run(comfyui, method, alone, **options)[1][0]
        if method in ("equal width", "quantile"):
            assert tag == "average quality"
        else:
            assert tag == together


def test_captions_are_only_added_to(comfyui):
    given = ["a  cat,", "", "Ünscored\ncat", " a dog ", "x"]
    captions, tags, *_ = run(comfyui, "scale", captions=given)
    assert captions == [
        f"{tags[0]}, a  cat,",
        tags[1],
        "Ünscored\ncat",
        f"{tags[3]},  a dog ",
        f"{tags[4]}, x",
    ]
    captions, tags, *_ = run(comfyui, captions=["all"], position="after", separator=" | ")
    assert captions == [f"all | {tag}" if tag else "all" for tag in tags]


def test_the_counts_are_shown(comfyui):
    entry = comfyui.run(graph("quantile", labels="bad\ngood"))
    (shown,) = comfyui.files(entry, "4")
    expected = tag_counts({"good": 2, "bad": 2, "no score": 1}, "Quality tags")
    with Image.open(shown) as picture:
        assert picture.tobytes() == expected.tobytes()


def test_a_calibration_file(comfyui):
    card = load_scorer("nano").card
    folder = comfyui.base / "models" / "tastemaker"
    entry = {
        "name": "nano",
        "load": {"name_or_path": "nano"},
        "mean": 0.0,
        "std": 1.0,
        "n": 9,
        "weight": 1.0,
    }
    for name, fingerprint in (("good", dict(card.fingerprint)), ("other", {"scorer": "x"})):
        member = {**entry, "fingerprint": fingerprint, "calibration": {"tau": 2.0, "b": -1.5}}
        contents = {"tastemaker": "reference", "set": {"name": "s"}, "members": [member]}
        (folder / f"tag-{name}.json").write_text(json.dumps(contents))
    try:
        file = {"method.file": "models/tastemaker/tag-good.json"}
        *_, buckets, scores = run(comfyui, "calibration file", **file)
        ranks = ranking.calibrated_rank(scores, 2.0, -1.5)
        assert buckets == ranking.rank_bucket(ranks, 5).tolist()
        file = {"method.file": "models/tastemaker/tag-other.json"}
        with pytest.raises(ExecutionError, match="has no calibration of nano"):
            comfyui.run(graph("calibration file", **file))
    finally:
        for name in ("good", "other"):
            (folder / f"tag-{name}.json").unlink()


@pytest.mark.parametrize(
    "inputs, message",
    [
        ({"labels": "good\ngood"}, "different words"),
        ({"labels": " "}, "different words"),
        ({"method": "edges", "method.edges": "1, 2"}, "5 labels need 4 ascending scores"),
        ({"method": "edges", "method.edges": "1, 2, 2, 3"}, "5 labels need 4 ascending scores"),
        ({"method": "edges", "method.edges": "1, x, 2, 3"}, "5 labels need 4 ascending scores"),
        ({"captions": ["a", "b"]}, "captions: 2 for 5 scores"),
    ],
)
def test_bad_input(comfyui, inputs, message):
    with pytest.raises(ExecutionError, match=message):
        comfyui.run(graph(**inputs))


def test_nothing_to_tag(comfyui):
    comfyui.run(graph(parts=[{"count": 0}], run="none"))
    assert not (comfyui.output / "tag-none-tags.json").exists()
