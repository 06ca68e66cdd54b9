"""What a user meets before the first prompt: a quiet start, every node, its help, its names."""

import json
import re

import pytest
from comfyui_locales import node_texts
from comfyui_page import Page
from comfyui_server import PACK, ROOT, ComfyUI

pytestmark = pytest.mark.comfyui

IDS = sorted(
    node_id
    for file in (ROOT / "nodes").glob("*.py")
    for node_id in re.findall(r'node_id="(\w+)"', file.read_text(encoding="utf-8"))
)
WORKFLOWS = {path.stem: path for path in sorted((ROOT / "workflows").glob("*.json"))}

# What ComfyUI says about itself: the tests install neither OpenGL nor its own templates.
THEIRS = (
    "nodes_glsl",
    "comfy_extras/ nodes",
    "updated ComfyUI",
    "-r requirements.txt",
    "templates",
)


def records(log: str) -> list[tuple[str, str]]:
    """(level, text) of what was logged; other output belongs to the record before it."""
    parts = re.split(r"^\[(DEBUG|INFO|WARNING|ERROR|CRITICAL)\] ", log, flags=re.MULTILINE)
    return [("", parts[0]), *zip(parts[1::2], parts[2::2], strict=True)]


def test_records_are_told_apart():
    log = "odd: DeprecationWarning\n[INFO] fine\n[ERROR] bad\nTraceback\n[WARNING] so so\n"
    assert records(log) == [
        ("", "odd: DeprecationWarning\n"),
        ("INFO", "fine\n"),
        ("ERROR", "bad\nTraceback\n"),
        ("WARNING", "so so\n"),
    ]


def test_the_start_is_quiet(comfyui):
    found = records(comfyui.start_log())
    loud = [text for level, text in found if level not in ("DEBUG", "INFO")]
    assert [t for t in loud if t.strip() and not any(known in t for known in THEIRS)] == []
    ours = [line for line in comfyui.start_log().splitlines() if PACK in line]
    assert len(ours) == 1 and re.fullmatch(r"\[INFO\] +[\d.]+ seconds: .*", ours[0]), ours


def test_every_node_is_there(comfyui):
    assert sorted(comfyui.nodes()) == IDS != []


def test_it_loads_in_a_moment(comfyui):
    """torch is there already; transformers waits until a scorer needs it."""
    (seconds,) = re.findall(rf"([\d.]+) seconds: .*{PACK}", comfyui.start_log())
    assert float(seconds) < 5


@pytest.mark.parametrize("node_id", IDS)
def test_every_input_and_output_is_explained(comfyui, node_id):
    node = comfyui.nodes()[node_id]
    assert node["description"] and node["category"].split("/")[0] == "Tastemaker"
    inputs = node_texts(node)["inputs"]  # those that a menu's options bring are among them
    assert [name for name, texts in inputs.items() if not texts["tooltip"]] == []
    assert len(node["output_tooltips"] or []) == len(node["output"])
    assert all(node["output_tooltips"] or [])


@pytest.mark.parametrize("node_id", IDS)
def test_every_node_has_a_help_page(comfyui, node_id):
    served = comfyui.read(f"/extensions/{PACK}/docs/{node_id}.md").decode()
    assert served.strip() == (ROOT / f"web/docs/{node_id}.md").read_text(encoding="utf-8").strip()
    assert len(served) > 200


def test_no_help_page_without_its_node():
    assert {path.stem for path in (ROOT / "web" / "docs").glob("*.md")} <= set(IDS)


def test_names_are_served_in_english(comfyui):
    """They are what translators start from, so they say what the nodes themselves say."""
    names = comfyui.get("/i18n")["en"]["nodeDefs"]
    assert {n: names[n]["display_name"] for n in IDS} == {
        n: node["display_name"] for n, node in comfyui.nodes().items()
    }


def test_workflows_are_listed_and_served(comfyui):
    assert sorted(comfyui.get("/workflow_templates")[PACK]) == sorted(WORKFLOWS) != []
    for name, path in WORKFLOWS.items():
        served = comfyui.get(f"/api/workflow_templates/{PACK}/{name}.json")
        assert served == json.loads(path.read_text(encoding="utf-8"))


def test_the_help_panel_shows_the_pages(tmp_path, comfyui_release, comfyui_browser):
    """In a folder without a dot: the page asks for help under the name up to the first dot."""
    with ComfyUI(tmp_path, comfyui_release, folder="tastemaker") as server:
        page = Page(comfyui_browser, server).open()
        for node_id in IDS:
            text = (ROOT / f"web/docs/{node_id}.md").read_text(encoding="utf-8")
            words = re.findall(r"^[A-Z][\w ,]{20,}", text, flags=re.MULTILINE)
            assert words[0] in page.help(node_id)
