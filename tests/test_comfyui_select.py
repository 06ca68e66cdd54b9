"""Select Images and Cascade Select: what is kept, and that everything that belongs to it follows."""

import json
import shutil

import numpy as np
import pytest
import torch
from comfyui_server import ExecutionError, failure
from PIL import Image
from tiny_vit import lively, make_joyquality

from tastemaker import load_scorer, ranking

pytestmark = pytest.mark.comfyui

NODES = {
    "load": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
}
KEPT = ["images", "latents", "masks", "items", "scores"]
# Where each output of the selecting nodes is.
OUT = {name: i for i, name in enumerate(KEPT)}
OUT |= {f"rejected_{name}": i + 5 for i, name in enumerate(KEPT)}
OUT |= {"indices": 10, "count": 11, "cheap_scores": 12, "judge_scores": 13, "agreement": 14}


def draw(seed: int, height: int = 96, width: int = 96) -> Image.Image:
    """A picture of smooth colours under noise that differs from seed to seed, so scores do."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 255, (4, 4, 3), dtype=np.uint8))
    smooth = np.array(small.resize((width, height), Image.Resampling.BICUBIC), float)
    noisy = smooth + rng.normal(0, 4 * (seed % 9), (height, width, 3))
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def files(comfyui, tmp_path_factory) -> list:
    """Eight pictures of one size, and four of others, in ComfyUI's input folder."""
    folder = tmp_path_factory.mktemp("select")
    sizes = [(96, 96)] * 8 + [(64, 128), (128, 64), (80, 80), (96, 160)]
    paths = [folder / f"select_{i:02}.png" for i in range(len(sizes))]
    for i, (path, size) in enumerate(zip(paths, sizes, strict=True)):
        draw(i, *size).save(path)
    comfyui.put(*paths)
    return paths


@pytest.fixture(scope="module")
def scores(files) -> torch.Tensor:
    return load_scorer("nano").score(files)


def images(*parts) -> dict:
    """A node that gives a list of batches."""
    return {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(list(parts))}}


def batch_of(files) -> dict:
    return {"files": [path.name for path in files]}


def made(kind: str, *parts) -> dict:
    return {"class_type": f"Probe{kind}", "inputs": {"spec": json.dumps(list(parts))}}


def select(keep="top k", order="best first", nothing_kept="block the branch", **inputs) -> dict:
    """Select Images over the images of node "images"; `k=2` is a value of the mode."""
    values = {
        f"keep.{key}": inputs.pop(key) for key in ("k", "fraction", "minimum") if key in inputs
    }
    given = {"images": ["images", 0], "scorer": ["load", 0], "preview": True, **inputs}
    given |= {"keep": keep, "order": order, "nothing_kept": nothing_kept, **values}
    given = {name: value for name, value in given.items() if value is not None}
    return {"class_type": "TastemakerSelectImages", "inputs": given}


def run(comfyui, prompt: dict, *outputs: str, **options):
    """Runs with a dump at each named output of node "select"; (entry, name -> dump or None)."""
    names = {name: f"select-{abs(hash(json.dumps([prompt, name])))}" for name in outputs}
    for name, file in names.items():
        inputs = {"name": file, "value": ["select", OUT[name]]}
        prompt = {**prompt, f"of {name}": {"class_type": "ProbeDump", "inputs": inputs}}
    entry = comfyui.run({**NODES, **prompt}, **options)
    found = {name: comfyui.output / f"{file}.json" for name, file in names.items()}
    return entry, {n: json.loads(f.read_text()) if f.exists() else None for n, f in found.items()}


def digests(dumped: list) -> list[str]:
    """Of every picture of a dumped IMAGE, MASK or SCORES."""
    return [digest for part in dumped for digest in part["digests"]]


MODES = [
    ({"keep": "top k", "k": 3}, lambda s, order: ranking.top_k(s, 3, order)),
    ({"keep": "top fraction", "fraction": 0.3}, lambda s, o: ranking.top_fraction(s, 0.3, o)),
    ({"keep": "threshold", "minimum": None}, lambda s, o: ranking.threshold(s, float(s[2]), o)),
    ({"keep": "best"}, lambda s, order: ranking.top_k(s, 1, order)),
]


@pytest.mark.parametrize("order", ["best first", "original"])
@pytest.mark.parametrize("widgets, expected", MODES, ids=[m[0]["keep"] for m in MODES])
def test_a_batch_is_divided_as_ranking_says(comfyui, files, scores, widgets, expected, order):
    if "minimum" in widgets:
        widgets = {**widgets, "minimum": float(scores[2])}
    prompt = {"images": images(batch_of(files[:8])), "select": select(order=order, **widgets)}
    prompt["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["select", 0], "filename_prefix": f"kept-{widgets['keep']}-{order}"},
    }
    entry, dump = run(comfyui, prompt, "indices", "count", "scores", "rejected_scores", "images")
    selection = expected(scores[:8], "best" if order == "best first" else "original")
    kept = selection.kept.tolist()
    assert dump["indices"] == kept and dump["count"] == [len(kept)]
    assert dump["scores"][0]["values"]["values"] == scores[kept].tolist()
    assert dump["rejected_scores"][0]["values"]["values"] == scores[selection.rejected].tolist()
    assert dump["images"][0]["shape"] == [len(kept), 96, 96, 3]
    for i, saved in zip(kept, comfyui.files(entry, "save"), strict=True):
        assert (np.array(Image.open(saved)) == np.array(Image.open(files[i]))).all()


def test_a_list_of_sizes_stays_a_list(comfyui, files, scores):
    parts = [batch_of([files[8]]), batch_of(files[:2]), batch_of([files[9]]), batch_of([files[11]])]
    these = scores[[8, 0, 1, 9, 11]]
    prompt = {
        "images": images(*parts),
        "items": made("List", "a", "b", "c", "d", "e"),
        "latents": made("Latent", {"count": 1}, {"count": 2}, {"count": 1, "width": 9}, {}),
        "masks": made("Masks", {}, {"count": 2}, {"width": 20}, {"width": 9}),
        "select": select(k=3, items=["items", 0], latents=["latents", 0], masks=["masks", 0]),
        "all": {"class_type": "ProbeDump", "inputs": {"name": "list", "value": ["images", 0]}},
        "all masks": {
            "class_type": "ProbeDump",
            "inputs": {"name": "masks", "value": ["masks", 0]},
        },
    }
    _, dump = run(comfyui, prompt, *KEPT, "indices", "rejected_images", "rejected_items")
    kept = ranking.top_k(these, 3).kept.tolist()
    before = digests(json.loads((comfyui.output / "list.json").read_text()))
    assert dump["indices"] == kept
    assert [part["digests"] for part in dump["images"]] == [[before[i]] for i in kept]
    assert dump["items"] == ["abcde"[i] for i in kept]
    assert sorted(dump["items"] + dump["rejected_items"]) == list("abcde")
    masks = digests(json.loads((comfyui.output / "masks.json").read_text()))
    assert digests(dump["masks"]) == [masks[i] for i in kept]
    # The second image of a batch is made again by the second part of that batch's noise.
    assert [latent["batch_index"] for latent in dump["latents"]] == [[int(i == 2)] for i in kept]
    assert [latent["samples"]["shape"][0] for latent in dump["latents"]] == [1, 1, 1]


@pytest.mark.parametrize("frames", [0, 3])
@pytest.mark.parametrize("masks", [0, 1, 2, 8])
@pytest.mark.parametrize("batch_index", [None, [9, 8, 7, 6, 5, 4, 3, 2]])
def test_latents_keep_all_that_they_carry(comfyui, files, scores, frames, masks, batch_index):
    part = {"count": 8, "frames": frames, "mask": masks, "batch_index": batch_index}
    part |= {"extra": {"type": "audio", "sizes": [1, 2, 3, 4, 5, 6, 7, 8]}}
    prompt = {
        "images": images(batch_of(files[:8])),
        "latents": made("Latent", part),
        "select": select(k=3, latents=["latents", 0], order="original"),
        "all": {"class_type": "ProbeDump", "inputs": {"name": "latent", "value": ["latents", 0]}},
    }
    kept = ranking.top_k(scores[:8], 3, "original").kept.tolist()
    for i in kept:  # what ComfyUI's own node makes of each
        inputs = {"samples": ["latents", 0], "batch_index": i, "length": 1}
        prompt[f"own {i}"] = {"class_type": "LatentFromBatch", "inputs": inputs}
        inputs = {"name": f"own {i}", "value": [f"own {i}", 0]}
        prompt[f"dump {i}"] = {"class_type": "ProbeDump", "inputs": inputs}
    _, dump = run(comfyui, prompt, "latents", "rejected_latents")
    before = json.loads((comfyui.output / "latent.json").read_text())[0]
    (latent,), (rejected,) = dump["latents"], dump["rejected_latents"]
    own = [json.loads((comfyui.output / f"own {i}.json").read_text())[0] for i in kept]
    assert latent["samples"]["digests"] == [one["samples"]["digests"][0] for one in own]
    assert latent["batch_index"] == [one["batch_index"][0] for one in own]
    assert ("noise_mask" in latent) == bool(masks)
    if masks == 1:
        assert latent["noise_mask"] == rejected["noise_mask"] == before["noise_mask"]
    elif masks:
        expected = [one["noise_mask"]["digests"][0] for one in own]
        assert latent["noise_mask"]["digests"] == expected
    assert latent["type"] == "audio" and latent["sizes"] == before["sizes"]
    both = sorted(latent["samples"]["digests"] + rejected["samples"]["digests"])
    assert both == sorted(before["samples"]["digests"])


def test_video_with_sound_is_chosen_as_one(comfyui, files, scores):
    prompt = {
        "images": images(batch_of(files[:8])),
        "latents": made("Latent", {"count": 8, "frames": 2, "nested": True}),
        "select": select(k=3, latents=["latents", 0]),
        "all": {"class_type": "ProbeDump", "inputs": {"name": "nested", "value": ["latents", 0]}},
    }
    _, dump = run(comfyui, prompt, "latents")
    kept = ranking.top_k(scores[:8], 3).kept.tolist()
    (before,) = json.loads((comfyui.output / "nested.json").read_text())
    (latent,) = dump["latents"]
    for part, whole in zip(latent["samples"], before["samples"], strict=True):
        assert part["digests"] == [whole["digests"][i] for i in kept]
    assert latent["batch_index"] == kept


def test_one_mask_and_one_item_stay_for_all(comfyui, files):
    prompt = {
        "images": images(batch_of(files[:4])),
        "masks": made("Masks", {}),
        "items": made("List", "the prompt of all"),
        "select": select(k=2, items=["items", 0], masks=["masks", 0]),
    }
    _, dump = run(comfyui, prompt, "masks", "rejected_masks", "items", "rejected_items")
    assert dump["items"] == dump["rejected_items"] == ["the prompt of all"]
    assert dump["masks"] == dump["rejected_masks"] and dump["masks"][0]["shape"] == [1, 48, 48]


@pytest.mark.parametrize(
    "kind, parts, message",
    [
        ("Latent", [{"count": 3}], "4 images but 3 latents"),
        ("Masks", [{"count": 5}], "4 images but 5 masks"),
        ("List", ["a", "b"], "4 images but 2 items"),
        ("Latent", [{"count": 4, "batch_index": [0, 1]}], "4 latents but 2 in their batch_index"),
    ],
)
def test_counts_that_disagree_are_named(comfyui, files, kind, parts, message):
    name = {"Latent": "latents", "Masks": "masks", "List": "items"}[kind]
    prompt = {
        "images": images(batch_of(files[:4])),
        "other": made(kind, *parts),
        "select": select(k=2, **{name: ["other", 0]}),
    }
    with pytest.raises(ExecutionError, match=message):
        run(comfyui, prompt)


def test_scores_of_other_images_are_refused(comfyui, files):
    score = {"scorer": ["load", 0], "images": ["others", 0], "preview": False}
    prompt = {
        "images": images(batch_of(files[:4])),
        "others": images(batch_of(files[:3])),
        "score": {"class_type": "TastemakerScoreImages", "inputs": score},
        "select": select(k=2, scores=["score", 1]),
    }
    with pytest.raises(ExecutionError, match="4 images but 3 scores"):
        run(comfyui, prompt)


def test_scores_win_over_the_scorer(comfyui, files, scores):
    """Those of the pictures in reverse choose others than the scorer would."""
    reverse = files[:8][::-1]
    score = {"scorer": ["load", 0], "images": ["others", 0], "preview": False}
    prompt = {
        "images": images(batch_of(files[:8])),
        "others": images(batch_of(reverse)),
        "score": {"class_type": "TastemakerScoreImages", "inputs": score},
        "select": select("best", scores=["score", 1]),
    }
    _, dump = run(comfyui, prompt, "indices")
    assert dump["indices"] == [7 - int(scores[:8].argmax())] != [int(scores[:8].argmax())]


def test_neither_scores_nor_scorer_is_refused_before_anything_runs(comfyui, files):
    prompt = {"images": images(batch_of(files[:4])), "select": select(k=2, scorer=None)}
    with pytest.raises(ExecutionError, match="connect scores .* or a scorer") as refused:
        run(comfyui, prompt)
    assert "node_errors" in refused.value.details


def test_nothing_kept_blocks_what_follows(comfyui, files):
    prompt = {
        "images": images(batch_of(files[:4])),
        "select": select("threshold", minimum=900.0),
        "save": {
            "class_type": "SaveImage",
            "inputs": {"images": ["select", 0], "filename_prefix": "never"},
        },
    }
    entry, dump = run(comfyui, prompt, "images", "scores", "indices", "count", "rejected_images")
    assert dump["images"] is None and dump["scores"] is None and dump["indices"] is None
    assert dump["count"] == [0] and dump["rejected_images"][0]["shape"][0] == 4
    assert "save" not in entry["outputs"] and not list(comfyui.output.glob("never*"))


def test_nothing_kept_can_pass_the_best(comfyui, files, scores):
    prompt = {
        "images": images(batch_of(files[:8])),
        "select": select("threshold", minimum=900.0, nothing_kept="pass the best one"),
    }
    _, dump = run(comfyui, prompt, "indices", "count", "images", "rejected_images")
    assert dump["indices"] == [int(scores[:8].argmax())] and dump["count"] == [1]
    assert dump["rejected_images"][0]["shape"][0] == 7


def test_what_has_no_score_is_rejected_even_as_the_best(comfyui):
    prompt = {
        "images": images({"count": 3, "nan": [0, 2]}),
        "select": select(k=3, nothing_kept="pass the best one"),
    }
    _, dump = run(comfyui, prompt, "indices", "rejected_scores")
    assert dump["indices"] == [1]
    assert all(np.isnan(dump["rejected_scores"][0]["values"]["values"]))
    prompt["images"] = images({"count": 2, "nan": [0, 1]})
    _, dump = run(comfyui, prompt, "indices", "count", "rejected_images")
    assert dump["indices"] is None and dump["count"] == [0]
    assert dump["rejected_images"][0]["shape"][0] == 2


def test_an_empty_batch_keeps_nothing(comfyui):
    prompt = {"images": images({"count": 0}), "select": select(k=2)}
    entry, dump = run(comfyui, prompt, "images", "rejected_images", "count")
    assert dump == {"images": None, "rejected_images": None, "count": [0]}


def test_an_output_whose_input_is_not_connected_stops_only_what_uses_it(comfyui, files):
    prompt = {"images": images(batch_of(files[:4])), "select": select(k=2)}
    _, dump = run(comfyui, prompt, "latents", "count")
    assert dump["latents"] is None and dump["count"] == [2]


def test_200_images_and_their_preview(comfyui):
    prompt = {"images": images({"count": 200, "height": 32, "width": 32}), "select": select(k=90)}
    entry, dump = run(comfyui, prompt, "count")
    assert dump["count"] == [90]
    (shown,) = comfyui.files(entry, "select")
    assert Image.open(shown).width > 800
    prompt["select"] = select(k=90, preview=False)
    entry, _ = run(comfyui, prompt, "count")
    assert "images" not in entry["outputs"].get("select", {})


def test_a_failure_names_the_node(comfyui, files):
    prompt = {
        "images": images(batch_of(files[:4])),
        "select": select(k=2, latents=["latents", 0]),
        "latents": made("Latent", {"count": 3}),
    }
    entry, _ = run(comfyui, prompt, check=False)
    assert failure(entry)["node_type"] == "TastemakerSelectImages"


# Cascade Select


@pytest.fixture(scope="module")
def judge(comfyui):
    """A checkpoint that disagrees with nano; its name in Load Scorer's menu."""
    folder = comfyui.base / "models/tastemaker/a-judge"
    lively(make_joyquality(), seed=3).save_pretrained(folder)
    yield "models/tastemaker/a-judge"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def verdicts(comfyui, judge, files) -> torch.Tensor:
    return load_scorer(comfyui.base / judge).score(files)


def cascade(judge, judged="top k", order="best first", **inputs) -> dict:
    values = {f"judged.{key}": inputs.pop(key) for key in ("k", "fraction") if key in inputs}
    given = {"images": ["images", 0], "cheap": ["load", 0], "judge": ["judge", 0], "keep": 2}
    given |= {"judged": judged, "order": order, "nothing_kept": "block the branch", **values}
    given = {**given, "preview": True, **inputs}
    load = {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": judge}}
    load["inputs"]["scorer.dtype"] = "float32"
    return {"judge": load, "select": {"class_type": "TastemakerCascadeSelect", "inputs": given}}


@pytest.mark.parametrize("order", ["best first", "original"])
@pytest.mark.parametrize("share", [{"k": 4}, {"judged": "top fraction", "fraction": 0.3}])
def test_the_judge_sees_only_the_best_and_keeps_its_own(
    comfyui, files, scores, judge, verdicts, share, order
):
    parts = [batch_of(files[:8]), *([batch_of([file]) for file in files[8:]])]
    names = [file.name for file in files]
    prompt = {
        "images": images(*parts),
        "items": made("List", *names),
        **cascade(judge, order=order, items=["items", 0], **share),
    }
    outputs = ["indices", "items", "rejected_items", "cheap_scores", "judge_scores", "agreement"]
    entry, dump = run(comfyui, prompt, *outputs, "scores")
    how = {key: share[key] for key in ("k", "fraction") if key in share}
    expected = ranking.cascade(torch.arange(12), lambda i: scores[i], lambda i: verdicts[i], **how)
    assert dump["cheap_scores"][0]["values"]["values"] == scores.tolist()
    seen = torch.tensor(dump["judge_scores"][0]["values"]["values"])
    torch.testing.assert_close(seen, expected.judge, rtol=0, atol=1e-5, equal_nan=True)
    assert 0 < (~seen.isnan()).sum() == 4  # 4, and 0.3 of 12 rounded up
    assert dump["agreement"] == [pytest.approx(expected.agreement)]
    kept = expected.order[:2].tolist()
    kept = sorted(kept) if order == "original" else kept
    assert dump["indices"] == kept and dump["items"] == [names[i] for i in kept]
    assert len(dump["rejected_items"]) == 10
    assert dump["scores"][0]["values"]["values"] == pytest.approx(verdicts[kept].tolist(), abs=1e-5)
    (shown,) = comfyui.files(entry, "select")
    assert Image.open(shown).width > 300


def test_the_judge_is_no_second_cheap_scorer(scores, verdicts):
    """Otherwise the test above could not tell whose scores decide."""
    best = ranking.top_k(scores, 4).kept
    assert ranking.sort(verdicts[best]).tolist() != [0, 1, 2, 3]


def test_only_what_is_judged_is_kept(comfyui, files, judge):
    prompt = {"images": images(batch_of(files[:8])), **cascade(judge, k=3, keep=5)}
    _, dump = run(comfyui, prompt, "count", "rejected_images")
    assert dump["count"] == [3] and dump["rejected_images"][0]["shape"][0] == 5


def test_a_judge_that_sees_nothing_keeps_nothing_or_the_cheap_best(comfyui, files, scores, judge):
    nothing = {"judged": "top fraction", "fraction": 0.0}
    prompt = {"images": images(batch_of(files[:8])), **cascade(judge, **nothing)}
    _, dump = run(comfyui, prompt, "images", "count")
    assert dump == {"images": None, "count": [0]}
    prompt |= cascade(judge, nothing_kept="pass the best one", **nothing)
    _, dump = run(comfyui, prompt, "indices")
    assert dump["indices"] == [int(scores[:8].argmax())]


def test_a_cascade_over_bad_pictures(comfyui, judge):
    prompt = {"images": images({"count": 4, "nan": [0, 3]}), **cascade(judge, k=4)}
    _, dump = run(comfyui, prompt, "count", "agreement")
    assert dump["count"] == [2]
    prompt |= {"images": images({"count": 0})}
    _, dump = run(comfyui, prompt, "count")
    assert dump["count"] == [0]
    prompt |= {"images": images({"count": 1})}
    _, dump = run(comfyui, prompt, "count", "agreement")
    assert dump["count"] == [1] and np.isnan(dump["agreement"][0])


@pytest.mark.parametrize(
    "node, menu",
    [
        ("TastemakerSelectImages", "keep"),
        ("TastemakerQualityMap", "region"),
        ("TastemakerCascadeSelect", "judged"),
    ],
)
def test_a_choice_that_is_in_no_menu_is_told(comfyui, files, node, menu):
    schema = comfyui.object_info(node)[node]["input"]["required"]
    inputs = {
        name: spec[1]["default"] if "default" in spec[1] else spec[1].get("options", [None])[0]
        for name, spec in schema.items()
        if spec[0] in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")
    }
    linked = dict.fromkeys(("scorer", "cheap", "judge"), ["load", 0]) | {"images": ["images", 0]}
    wanted = schema.keys() | {"scorer"} if menu == "keep" else schema.keys()
    inputs |= {name: link for name, link in linked.items() if name in wanted}
    prompt = {
        **NODES,
        "images": images(batch_of(files[:2])),
        "it": {"class_type": node, "inputs": {**inputs, menu: "gone"}},
        "dump": {"class_type": "ProbeDump", "inputs": {"name": "gone", "value": ["it", 0]}},
    }
    with pytest.raises(ExecutionError, match=f"{menu}: what was chosen is not in the menu"):
        comfyui.run(prompt)
