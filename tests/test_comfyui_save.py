"""Save Scored Image: files that carry score and workflow, a table, and nothing outside the folder."""

import csv
import json
import math

import numpy as np
import pytest
from comfyui_server import ExecutionError, failure
from PIL import Image

from tastemaker import load_scorer
from tastemaker.cli.export import read_table

pytestmark = pytest.mark.comfyui

WORKFLOW = {"nodes": [{"id": 9, "type": "Ä"}], "version": 0.4}


@pytest.fixture(scope="module")
def nano():
    return load_scorer("nano")


@pytest.fixture
def pictures(comfyui, tmp_path):
    """Three pictures of one size in the input folder, each noisier than the one before."""
    step = np.mgrid[0:64, 0:96].sum(0)[..., None] * [1, 0.5, 1.5]
    noise = np.random.default_rng(0).normal(0, 1, (64, 96, 3))
    for i, amount in enumerate([0, 12, 40]):
        pixels = (step + amount * noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"save-{i}.png")
    files = sorted(tmp_path.glob("save-*.png"))
    comfyui.put(*files)
    return files


def graph(pictures, more=None, **inputs) -> dict:
    """A prompt that scores pictures and saves them; node 4 saves."""
    parts = [{"files": [picture.name for picture in pictures]}]
    save = {"file_name": "%score%", "format": "PNG", "csv": "", **inputs}
    return {
        "1": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(parts)}},
        "2": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "4": {
            "class_type": "TastemakerSaveScoredImage",
            "inputs": {"images": ["1", 0], "scorer": ["2", 0], **save},
        },
        **(more or {}),
    }


def with_scores(prompt: dict) -> dict:
    """The same, with scores in the place of the scorer."""
    inputs = {"scorer": ["2", 0], "images": ["1", 0], "preview": False}
    del prompt["4"]["inputs"]["scorer"]
    prompt["4"]["inputs"]["scores"] = ["3", 1]
    return {**prompt, "3": {"class_type": "TastemakerScoreImages", "inputs": inputs}}


def with_rival(prompt: dict) -> dict:
    """The same, and ComfyUI's own nodes save it too: 8 as PNG, 9 as WebP."""
    # A prefix of its own: what is cached would keep an older prompt.
    same = {"images": ["1", 0], "filename_prefix": f"rival{prompt['4']['inputs']['format']}"}
    webp = {**same, "fps": 6.0, "lossless": False, "quality": 80, "method": "fastest"}
    rivals = {
        "8": {"class_type": "SaveImage", "inputs": same},
        "9": {"class_type": "SaveAnimatedWEBP", "inputs": webp},
    }
    return {**prompt, **rivals}


def padded(score: float) -> str:
    return f"{'-' if score < 0 else ''}{abs(score):06.3f}"


def test_pictures_are_saved_as_they_are_with_their_scores(comfyui, pictures, nano):
    extra = {"extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}}
    name = "a/%scorer%_%score%_r%rank%_%width%x%height%_%batch_num%"
    entry = comfyui.run(with_rival(with_scores(graph(pictures, file_name=name))), **extra)
    files, rivals = comfyui.files(entry, "4"), comfyui.files(entry, "8")
    scores = nano.score(pictures).tolist()
    ranks = [1 + sum(other > score for other in scores) for score in scores]
    assert [file.name for file in files] == [
        f"nano_{padded(score)}_r{rank:02}_96x64_{i}_00001_.png"
        for i, (score, rank) in enumerate(zip(scores, ranks, strict=True))
    ]
    assert {file.parent for file in files} == {comfyui.output / "a"}
    assert nano.score(files).tolist() == scores
    for file, rival, score in zip(files, rivals, scores, strict=True):
        with Image.open(file) as saved, Image.open(rival) as expected:
            assert saved.tobytes() == expected.tobytes()
            texts = dict(saved.text)
            own = json.loads(texts.pop("tastemaker"))
            assert texts == expected.text and json.loads(texts["workflow"]) == WORKFLOW
            assert own == {
                "score": score,
                "scorer": "nano",
                "task": "quality",
                "fingerprint": nano.card.fingerprint_id,
                "seed": None,
            }


@pytest.mark.parametrize(
    "kind, more, exact",
    [("WebP lossless", {}, True), ("WebP", {"format.quality": 60}, False)],
)
def test_webp(comfyui, pictures, kind, more, exact):
    extra = {"extra_data": {"extra_pnginfo": {"workflow": WORKFLOW}}}
    prompt = graph(pictures[:1], file_name=f"webp-{exact}", format=kind, **more)
    entry = comfyui.run(with_rival(prompt), **extra)
    (file,), (rival,) = comfyui.files(entry, "4"), comfyui.files(entry, "9")
    with Image.open(file) as saved, Image.open(pictures[0]) as source:
        assert saved.format == "WEBP"
        assert (saved.convert("RGB").tobytes() == source.tobytes()) == exact
        exif = dict(saved.getexif())
    assert json.loads(exif.pop(0x010E).removeprefix("tastemaker:"))["scorer"] == "nano"
    with Image.open(rival) as expected:
        assert exif == dict(expected.getexif()) and len(exif) == 2


def test_the_same_name_again_takes_the_next_number(comfyui, pictures):
    names = []
    for seed in (1, 2):  # another prompt, or the node is cached
        prompt = graph(pictures, file_name="again")
        prompt["1"]["inputs"]["spec"] = json.dumps(
            [{"count": 2, "height": 20, "width": 20, "seed": seed}]
        )
        names += [file.name for file in comfyui.files(comfyui.run(prompt), "4")]
    assert names == [f"again_{i:05}_.png" for i in range(1, 5)]
    assert all((comfyui.output / name).stat().st_size for name in names)


def test_a_scorer_in_the_place_of_scores_and_a_list_of_sizes(comfyui, pictures, nano):
    prompt = graph(pictures, file_name="sizes/%width%")
    parts = [{"height": 40, "width": 50}, {"height": 30, "width": 70, "channels": 4}]
    prompt["1"]["inputs"]["spec"] = json.dumps(parts)
    files = comfyui.files(comfyui.run(prompt), "4")
    assert [file.name for file in files] == ["50_00001_.png", "70_00001_.png"]
    with Image.open(files[1]) as saved:
        assert saved.mode == "RGBA" and np.ptp(np.asarray(saved)[..., 3]) > 100
        kept = json.loads(saved.text["tastemaker"])["score"]
    assert kept == nano.score(files)[1]


def test_what_has_no_score_is_saved_too(comfyui, pictures):
    prompt = graph(pictures, file_name="nan/%score%_%rank%", csv="nan/scores.csv")
    prompt["1"]["inputs"]["spec"] = json.dumps([{"count": 2, "nan": [0]}])
    files = comfyui.files(comfyui.run(prompt), "4")
    assert files[0].name == "unscored_02_00001_.png"
    with Image.open(files[0]) as saved:
        assert json.loads(saved.text["tastemaker"])["score"] is None
    first, second = rows(comfyui.output / "nan" / "scores.csv")
    assert first["score"] == "" and math.isfinite(float(second["score"]))


# --- the seed


def test_the_seed_of_the_sampler_upstream(comfyui, pictures):
    # A node with a seed, between the pictures and the saver, as a sampler is.
    noise = {"class_type": "ImageAddNoise", "inputs": {"image": ["1", 0], "strength": 0.1}}
    noise["inputs"]["seed"] = 4242
    prompt = graph(pictures[:2], file_name="up%batch_num%_%seed%", more={"5": noise})
    prompt["4"]["inputs"]["images"] = ["5", 0]
    entry = comfyui.run(prompt)
    assert [f.name for f in comfyui.files(entry, "4")] == [
        "up0_4242_00001_.png",
        "up1_4242_00001_.png",
    ]


@pytest.mark.parametrize("given, seeds", [([77], [77, 77]), ([5, 6], [5, 6])])
def test_seeds_that_are_connected(comfyui, pictures, given, seeds):
    probe = {"class_type": "ProbeList", "inputs": {"spec": json.dumps(given)}}
    name = f"given{len(given)}"
    prompt = graph(
        pictures[:2], file_name=name + "_%batch_num%_%seed%", seed=["6", 0], more={"6": probe}
    )
    files = comfyui.files(comfyui.run(prompt), "4")
    assert [f.name for f in files] == [f"{name}_{i}_{s}_00001_.png" for i, s in enumerate(seeds)]


def test_seeds_of_another_number_are_refused(comfyui, pictures):
    probe = {"class_type": "ProbeList", "inputs": {"spec": "[1, 2]"}}
    prompt = graph(pictures, seed=["6", 0], more={"6": probe})
    with pytest.raises(ExecutionError, match="2 seeds for 3 images"):
        comfyui.run(prompt)


# --- the table


def rows(path) -> list[dict]:
    with open(path, newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_grows_and_mends_itself(comfyui, pictures, nano):
    table = comfyui.output / "table" / "scores.csv"
    for i, chosen in enumerate([pictures[:2], pictures[2:]]):
        if i:
            table.write_bytes(table.read_bytes() + b'"/a/torn, "')  # as a kill would leave it
        comfyui.run(graph(chosen, file_name="table/x", csv="table/scores.csv"))
    found = rows(table)
    scores = nano.score(pictures).tolist()
    assert [float(row["score"]) for row in found] == scores
    assert [row["path"] for row in found] == [
        str(comfyui.output / "table" / f"x_{i:05}_.png") for i in (1, 2, 3)
    ]
    assert {(row["scorer"], row["task"], row["fingerprint"]) for row in found} == {
        ("nano", "quality", nano.card.fingerprint_id)
    }
    assert {(row["width"], row["height"], row["seed"]) for row in found} == {("96", "64", "")}
    assert [row["score"] for row in read_table(table)] == scores  # by `tastemaker ... --scores`


def test_a_table_that_is_none_of_ours_is_refused_before_anything_is_saved(comfyui, pictures):
    (comfyui.output / "mine.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ExecutionError, match="other columns"):
        comfyui.run(graph(pictures, file_name="not-saved", csv="mine.csv"))
    assert (comfyui.output / "mine.csv").read_text() == "a,b\n1,2\n"
    assert not list(comfyui.output.glob("not-saved*"))


# --- refusals


@pytest.mark.parametrize(
    "name", ["../x", "/tmp/x", "a\\..\\..\\x", "C:/x", "a/../../x", "folder/", "%scores%", "a?"]
)
@pytest.mark.parametrize("widget", ["file_name", "csv"])
def test_bad_names_are_refused_before_the_prompt_runs(comfyui, pictures, name, widget):
    before = sorted(comfyui.base.rglob("*.png"))
    with pytest.raises(ExecutionError, match="Custom validation failed") as refused:
        comfyui.queue(graph(pictures, **{widget: name}))
    assert "node_errors" in refused.value.details
    assert sorted(comfyui.base.rglob("*.png")) == before


@pytest.mark.parametrize("name", ["scores.txt", "scores", ".csv"])
def test_a_table_of_another_ending_is_refused_before_the_prompt_runs(comfyui, pictures, name):
    with pytest.raises(ExecutionError, match="Custom validation failed.*ends in .csv"):
        comfyui.queue(graph(pictures, csv=name))


def test_a_link_that_leads_out_is_refused(comfyui, pictures, tmp_path):
    (comfyui.output / "out").symlink_to(tmp_path)
    try:
        with pytest.raises(ExecutionError, match="leads out of the output folder"):
            comfyui.run(graph(pictures, file_name="out/x"))
    finally:
        (comfyui.output / "out").unlink()
    assert not list(tmp_path.glob("x*"))


def test_a_field_cannot_open_a_folder(comfyui, pictures):
    prompt = graph(pictures[:1], file_name="%ProbeList.spec%x")
    prompt["6"] = {"class_type": "ProbeList", "inputs": {"spec": '["../../x"]'}}
    (file,) = comfyui.files(comfyui.run(prompt), "4")
    assert file.parent == comfyui.output and file.is_file()


def test_without_scores_and_scorer(comfyui, pictures):
    prompt = graph(pictures)
    del prompt["4"]["inputs"]["scorer"]
    with pytest.raises(ExecutionError, match="connect scores"):
        comfyui.queue(prompt)


def test_scores_of_other_images(comfyui, pictures):
    prompt = with_scores(graph(pictures, more={"7": graph(pictures[:2])["1"]}))
    prompt["4"]["inputs"]["images"] = ["7", 0]
    entry = comfyui.run(prompt, check=False)
    assert "2 images but 3 scores" in failure(entry)["exception_message"]
    assert not list(comfyui.output.glob("*.tmp"))


def test_nothing_to_save(comfyui, pictures):
    prompt = graph(pictures)
    prompt["1"]["inputs"]["spec"] = json.dumps([{"count": 0}])
    assert comfyui.run(prompt)["outputs"].get("4", {}).get("images", []) == []


def test_a_format_that_does_not_exist(comfyui, pictures):
    with pytest.raises(ExecutionError, match="format: what was chosen is not in the menu"):
        comfyui.run(graph(pictures, format="JPEG"))
