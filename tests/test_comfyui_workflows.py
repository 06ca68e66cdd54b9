"""The workflows of the template browser: they open as they were laid out, run, and keep the right files.

In place of ComfyUI's example.png, which they load, stands a picture that a real workflow made.
"""

import json
import re
from importlib import metadata
from pathlib import Path

import numpy as np
import pytest
import torch
from comfyui_server import PACK, ROOT
from PIL import Image

from tastemaker import load_scorer, ranking
from tastemaker.demo.rewards import load_reward
from tastemaker.scorers.calibration import scale_edges

pytestmark = pytest.mark.comfyui

WORKFLOWS = sorted((ROOT / "workflows").glob("*.json"))
NAMES = [path.stem for path in WORKFLOWS]
# What the page writes into a file about the machine it was saved on.
PRIVATE = ("ver", "cnr_id", "aux_id", "frontendVersion", "ds")


def read(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def picture(comfyui, tmp_path_factory) -> Image.Image:
    """768 x 768 pixels, as ComfyUI's own example.png, under its name in the input folder."""
    package = metadata.files("comfyui-workflow-templates-media-image") or []
    (found,) = [file for file in package if file.name == "flux_schnell-1.webp"]
    made = Image.open(found.locate()).convert("RGB").resize((768, 768), Image.Resampling.LANCZOS)
    path = tmp_path_factory.mktemp("workflows") / "example.png"
    made.save(path)
    comfyui.put(path)
    return made


@pytest.fixture(scope="module")
def cut_outs(picture) -> list[Image.Image]:
    """The 16 parts that two of the workflows make of it."""
    starts = range(0, 385, 128)
    return [picture.crop((x, y, x + 384, y + 384)) for y in starts for x in starts]


def scores_of(images) -> torch.Tensor:
    return load_scorer("nano", device="cpu").score(images)


def node_named(name: str, title: str) -> str:
    """The id of the node with that title, or of the only one of that type."""
    (node,) = [n for n in read(name)["nodes"] if title in (n.get("title"), n["type"])]
    return str(node["id"])


def run(page, name: str) -> dict:
    """A function of a node's title or type: the files that it made."""
    entry = page.run(ROOT / "workflows" / f"{name}.json")
    return entry, lambda title: page.server.files(entry, node_named(name, title))


def score_in(path: Path) -> str:
    """The three decimals in a name; `-00.620` is zero-padded so that files sort."""
    return re.search(r"-?\d+\.\d{3}", path.stem)[0]


def padded(score: float) -> str:
    return f"{score:07.3f}" if score < 0 else f"{score:06.3f}"


# How they open


@pytest.mark.parametrize("name", NAMES)
def test_it_opens_as_it_was_laid_out(comfyui_page, picture, name):
    comfyui_page.load(ROOT / "workflows" / f"{name}.json")
    assert comfyui_page.complaints() == [] and comfyui_page.console() == []
    assert comfyui_page.overlaps(gap=10) == [] and comfyui_page.cut_off() == []
    ours = [n for n in read(name)["nodes"] if n["type"].startswith("Tastemaker")]
    size = "return [...app.graph.getNodeById(arguments[0]).size]"
    assert [comfyui_page.js(size, n["id"]) for n in ours] == [n["size"] for n in ours]


@pytest.mark.parametrize("name", NAMES)
def test_it_reads_from_left_to_right(name):
    """And says what it shows."""
    workflow = read(name)
    places = {n["id"]: (n["pos"][0], n["size"][0]) for n in workflow["nodes"]}
    for _, source, _, target, *_ in workflow["links"]:
        assert places[target][0] >= places[source][0]
    (note,) = [n for n in workflow["nodes"] if n["type"] == "MarkdownNote"]
    assert note["pos"] == [0, 0] and "**Use it:**" in note["widgets_values"][0]


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_machine_is_in_it(name):
    def keys(value) -> set[str]:
        if isinstance(value, dict):
            return set(value).union(*map(keys, value.values()))
        return set().union(*map(keys, value)) if isinstance(value, list) else set()

    assert not keys(read(name)) & set(PRIVATE)
    kinds = {n["type"] for n in read(name)["nodes"]}
    assert any(kind.startswith("Tastemaker") for kind in kinds)


@pytest.mark.parametrize("name", NAMES)
def test_it_has_a_picture_in_the_template_browser(comfyui, name):
    assert comfyui.read(f"/api/workflow_templates/{PACK}/{name}.jpg")[:3] == b"\xff\xd8\xff"


def test_the_template_browser_opens_it(comfyui_page, picture):
    comfyui_page.load_template("score_and_filter")
    comfyui_page.until("return app.graph.nodes.length > 1", "the template did not open")
    assert comfyui_page.complaints() == []
    types = sorted(node["type"] for node in comfyui_page.nodes())
    assert types == sorted(node["type"] for node in read("score_and_filter")["nodes"])


def test_every_node_can_be_added(comfyui, comfyui_page):
    """A schema that the page cannot draw is no error anywhere else. And can be read as it comes."""
    for kind in comfyui.nodes():
        comfyui_page.ask("alone", kind)
        comfyui_page.calm()
        assert [node["type"] for node in comfyui_page.nodes()] == [kind]
        assert comfyui_page.complaints() == [] and comfyui_page.cut_off() == []


# What they do


def check_run(page, name: str, entry: dict) -> None:
    """No complaint, and every picture that a node reports is in sight."""
    assert page.complaints() == [] and page.console() == []
    assert page.overlaps(gap=10) == [] and page.cut_off() == []
    for node in (node for node, shown in entry["outputs"].items() if "images" in shown):
        sizes = page.previews(node)
        assert sizes == [Image.open(file).size for file in page.server.files(entry, node)]
        assert all(min(size) >= 64 for size in sizes), name


def test_score_and_filter(comfyui_page, picture):
    entry, files = run(comfyui_page, "score_and_filter")
    check_run(comfyui_page, "score_and_filter", entry)
    kept, rejected = files("Save the kept"), files("The rejected")
    assert (len(kept), len(rejected)) == (3, 2)
    assert np.array_equal(Image.open(kept[0]), picture)
    scores = scores_of(kept)
    assert scores.tolist() == sorted(scores.tolist(), reverse=True)
    assert scores.min() > scores_of(rejected).max()
    assert [score_in(file) for file in kept] == [padded(score) for score in scores.tolist()]


def test_best_4_of_16(comfyui_page, cut_outs):
    entry, files = run(comfyui_page, "best_4_of_16")
    check_run(comfyui_page, "best_4_of_16", entry)
    kept, scores = files("TastemakerSaveScoredImage"), scores_of(cut_outs)
    best = ranking.top_k(scores, 4).kept.tolist()
    assert [f"{i + 1:02}_{padded(scores[n])}" for i, n in enumerate(best)] == [
        file.stem[: -len("_00001_")] for file in kept
    ]
    for file, index in zip(kept, best, strict=True):
        upscaled = Image.open(file)
        assert upscaled.size == (768, 768)
        small = np.asarray(upscaled.resize((384, 384), Image.Resampling.BOX), float)
        assert np.abs(small - np.asarray(cut_outs[index], float)).mean() < 3


def test_quality_map_to_inpaint(comfyui_page, picture):
    entry, files = run(comfyui_page, "quality_map_to_inpaint")
    check_run(comfyui_page, "quality_map_to_inpaint", entry)
    (mask,), (repaired,) = files("Mask"), files("SaveImage")
    mask = np.asarray(Image.open(mask).convert("L"), float) / 255
    assert abs(mask.mean() - 0.2) < 0.03
    fault = np.zeros_like(mask, bool)
    fault[256:512, 256:512] = True
    assert mask[fault].mean() > 0.6, "the mask is where the fault is"
    error = np.abs(np.asarray(Image.open(repaired), float) - np.asarray(picture, float)).mean(2)
    assert error[~fault].max() <= 1 and error[mask == 1].max() <= 1


def test_dataset_tagging(comfyui_page, picture):
    entry, _ = run(comfyui_page, "dataset_tagging")
    check_run(comfyui_page, "dataset_tagging", entry)
    folder = comfyui_page.server.output / "tagged_dataset"
    images = sorted(folder.glob("*.png"))
    assert np.array_equal(Image.open(images[0]), picture)
    scorer = load_scorer("nano", device="cpu")
    buckets = ranking.assign_buckets(scorer.score(images), scale_edges(scorer.card, 5))
    words = ranking.quality_tags(buckets, ranking.QUALITY_NAMES)
    assert len(set(words)) > 2
    captions = [file.with_suffix(".txt").read_text(encoding="utf-8") for file in images]
    assert captions == [f"{word}, an example picture" for word in words]


def test_ensemble_and_cascade(comfyui_page, cut_outs):
    entry, files = run(comfyui_page, "ensemble_and_cascade")
    check_run(comfyui_page, "ensemble_and_cascade", entry)
    scores = scores_of(cut_outs).double()
    best = ranking.top_k(scores, 2).kept
    kept = files("Save the kept")
    for file, index in zip(kept, best.tolist(), strict=True):
        assert np.array_equal(Image.open(file), cut_outs[index])
    judged = ((scores - scores.mean()) / scores.std(correction=0))[best]
    found = torch.tensor([float(score_in(file)) for file in kept])
    torch.testing.assert_close(found, judged.float(), atol=1e-3, rtol=0)
    (report,) = entry["outputs"][node_named("ensemble_and_cascade", "TastemakerScoreReport")][
        "text"
    ]
    assert len(list(Path(report).parent.rglob("*.png"))) >= 16


def demo_scores(files) -> list[str]:
    """As in names of files, which were enlarged eight times after they had been scored."""
    pixels = [np.asarray(Image.open(file).convert("RGB"))[::8, ::8] for file in files]
    assert all(picture.shape == (32, 32, 3) for picture in pixels)
    images = torch.from_numpy(np.stack(pixels) / 255).permute(0, 3, 1, 2).float()
    return [padded(score) for score in load_reward("guiding")(images).tolist()]


def test_best_of_16_seeds(comfyui_page):
    entry, files = run(comfyui_page, "best_of_16_seeds")
    check_run(comfyui_page, "best_of_16_seeds", entry)
    kept = files("TastemakerSaveScoredImage")
    scores = [score_in(file) for file in kept]
    assert len(kept) == 4 and scores == demo_scores(kept)
    assert scores == sorted(scores, key=float, reverse=True)
    (said,) = entry["outputs"][node_named("best_of_16_seeds", "TastemakerBestOfN")]["text"]
    calls = 16 * 8 + 6 * 12
    assert said.splitlines()[-1] == f"{calls} calls of the model, 62% of those for all 16."


def test_steer_while_sampling(comfyui_page):
    name = "steer_while_sampling"
    entry, files = run(comfyui_page, name)
    check_run(comfyui_page, name, entry)
    titles = [f"{way}, by the other scorer" for way in ("Plain", "Guided", "Particles")]
    shown = [files(title)[0].read_bytes() for title in titles]
    assert len(set(shown)) == 3
    (guided,) = entry["outputs"][node_named(name, "What guidance did")]["text"]
    gains = re.search(r"added (\S+), and (\S+) to the held-out score", guided)
    assert float(gains[1]) > 0 and float(gains[2]) > 0
    (steered,) = entry["outputs"][node_named(name, "What became of the particles")]["text"]
    for before, after in re.findall(r"(-?[\d.]+) to (-?\d[\d.]*\d)", steered):
        assert float(after) > float(before), steered
    assert "Held out" in steered


def test_search_noise(comfyui_page):
    entry, files = run(comfyui_page, "search_noise")
    check_run(comfyui_page, "search_noise", entry)
    (file,) = files("TastemakerSaveScoredImage")
    score = load_reward("guiding").score([file])[0]  # of the enlarged picture
    assert score_in(file) == padded(score)
    (said,) = entry["outputs"][node_named("search_noise", "TastemakerSearchNoise")]["text"]
    rounds = [float(best) for best in re.findall(r"the best (-?[\d.]+),", said)]
    assert len(rounds) == 4 and max(rounds[1:]) > rounds[0]
    assert float(score_in(file)) > rounds[0], "with more steps, too, it is better than the first"
    assert said.splitlines()[-1].startswith("256 calls of the model")


def test_overnight_gate(comfyui_page, picture):
    """Pressed again and again, until the gate has blocked something."""
    name, page = "overnight_gate", comfyui_page
    page.server.post("/tastemaker/gate/reset", {"record": "overnight"})
    page.load(ROOT / "workflows" / f"{name}.json")
    ids = [node_named(name, title) for title in ("Save what passed", "What was blocked")]
    scores, passed = [], []
    while len(scores) < 14 or (all(passed) and len(scores) < 60):
        entry = page.run()
        (node,) = [node for node in ids if node in entry["outputs"]]
        (file,) = page.server.files(entry, node)
        scores.append(float(scores_of([file])))
        passed.append(node == ids[0])
        if passed[-1]:
            assert score_in(file) == padded(scores[-1])
    check_run(page, name, entry)
    record, known = torch.tensor(scores), torch.arange(1, len(scores) + 1)
    expected = ranking.gate(record, record, known, reject_share=0.3, warm_up=10).selection.kept
    assert [i for i, kept in enumerate(passed) if kept] == expected.tolist()
    assert all(passed[:10]) and not all(passed)
    table = (page.server.output / "overnight" / "scores.csv").read_text(encoding="utf-8")
    assert len(table.splitlines()) == 1 + sum(passed)
