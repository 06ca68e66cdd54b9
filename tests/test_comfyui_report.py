"""Score Report: a ranked sheet, and a page whose pictures and lists are real files."""

import html
import json
import re
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
from comfyui_server import ExecutionError
from PIL import Image

from tastemaker import load_scorer
from tastemaker.report import contact_sheet

pytestmark = pytest.mark.comfyui

PARTS = [
    {"count": 2, "height": 40, "width": 60, "seed": 1},
    {"count": 1, "height": 64, "width": 48, "seed": 2},
]


def graph(parts=PARTS, **inputs) -> dict:
    report = {"title": "My report", "folder": "reports/%scorer%", "keep": 1, **inputs}
    return {
        "1": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(parts)}},
        "2": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "3": {
            "class_type": "TastemakerScoreReport",
            "inputs": {"images": ["1", 0], "scorer": ["2", 0], **report},
        },
        "4": {
            "class_type": "SaveImage",
            "inputs": {"images": ["3", 0], "filename_prefix": "sheet"},
        },
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["3", 1]}},
    }


def attributes(page: str, name: str) -> list[str]:
    return [html.unescape(value) for value in re.findall(f'data-{name}="([^"]*)"', page)]


def test_the_page_shows_files_that_exist_ranked(comfyui):
    entry = comfyui.run(graph())
    (path,) = entry["outputs"]["5"]["text"]
    folder = comfyui.output / "reports" / "nano_00001_"
    assert path == str(folder / "report.html") == entry["outputs"]["3"]["text"][0]
    page = (folder / "report.html").read_text("utf-8")
    assert "<title>My report" in page and "nano (quality)" in page

    files = [folder / "pictures" / name for name in map(str, attributes(page, "path"))]
    assert sorted(files) == sorted((folder / "pictures").iterdir())
    assert [unquote(urlparse(uri).path) for uri in attributes(page, "uri")] == list(map(str, files))
    scores = load_scorer("nano").score(files).tolist()
    assert [float(score) for score in attributes(page, "score")] == scores
    assert scores == sorted(scores, reverse=True) and len(scores) == 3
    assert [file.name[:3] for file in files] == ["01_", "02_", "03_"]
    with Image.open(files[0]) as best:
        assert json.loads(best.text["tastemaker"])["score"] == scores[0]
        assert "3" in json.loads(best.text["prompt"])


def test_the_sheet_is_shown_and_handed_on(comfyui):
    entry = comfyui.run(graph(title="The sheet"))
    (shown,), (saved,) = comfyui.files(entry, "3"), comfyui.files(entry, "4")
    folder = sorted((comfyui.output / "reports").iterdir())[-1]
    files = sorted((folder / "pictures").iterdir())
    scores = load_scorer("nano").score(files).tolist()
    names = [file.stem for file in files]
    expected = np.asarray(contact_sheet(files, scores, names=names, title="The sheet"))
    for path in (shown, saved):
        with Image.open(path) as sheet:
            assert np.abs(np.asarray(sheet).astype(int) - expected).max() <= 1


def test_the_same_folder_again_gets_the_next_number(comfyui):
    pages = [
        comfyui.run(graph(folder="report-again", title=title))["outputs"]["3"]["text"][0]
        for title in "ab"
    ]
    assert pages == [str(comfyui.output / f"report-again_0000{i}_" / "report.html") for i in (1, 2)]
    titles = [
        (comfyui.output / f"report-again_0000{i}_" / "report.html").read_text() for i in (1, 2)
    ]
    assert "<title>a " in titles[0] and "<title>b " in titles[1]


def test_images_without_a_score_are_listed_apart(comfyui):
    entry = comfyui.run(graph([{"count": 3, "nan": [1]}], folder="unscored"))
    page = (comfyui.output / "unscored_00001_" / "report.html").read_text("utf-8")
    assert len(attributes(page, "path")) == 2
    assert "03_unscored.png</bdi>" in page and "it could not be scored" in page
    assert comfyui.files(entry, "3")[0].exists()


def test_no_images_no_report(comfyui):
    comfyui.run(graph([{"count": 0}], folder="none"))
    assert not list(comfyui.output.glob("none*"))


@pytest.mark.parametrize("folder", ["../x", "/tmp/x", "a\\b", "%score%", ""])
def test_bad_folders_are_refused_before_the_prompt_runs(comfyui, folder):
    with pytest.raises(ExecutionError, match="Custom validation failed"):
        comfyui.queue(graph(folder=folder))


def test_a_link_that_leads_out_is_refused(comfyui, tmp_path):
    (comfyui.output / "away").symlink_to(tmp_path)
    try:
        with pytest.raises(ExecutionError, match="leads out of the output folder"):
            comfyui.run(graph(folder="away/x"))
    finally:
        (comfyui.output / "away").unlink()
    assert not list(tmp_path.iterdir())
