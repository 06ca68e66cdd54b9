"""The page's checks find what they are for, and a graph of ours opens, runs and shows its scores."""

import copy
import re

import pytest
from comfyui_server import ExecutionError
from PIL import Image

pytestmark = pytest.mark.comfyui


def node(number: int, kind: str, pos, size, values=(), **more) -> dict:
    """A node of the UI format; `inputs` and `outputs` as the page writes them."""
    plain = {"flags": {}, "order": number, "mode": 0, "inputs": [], "outputs": [], "properties": {}}
    named = {"id": number, "type": kind, "pos": pos, "size": size, "widgets_values": list(values)}
    return {**plain, **named, **more}


def workflow(*nodes: dict, links=()) -> dict:
    last = {"last_node_id": len(nodes), "last_link_id": len(links)}
    return {"version": 0.4, **last, "nodes": list(nodes), "links": list(links), "groups": []}


EMPTY = node(1, "EmptyImage", [0, 0], [270, 130], [64, 64, 1, 0])
NOTE = node(2, "Note", [400, 0], [300, 100], ["A few words."])


def test_a_sound_graph_has_no_complaints(comfyui_page):
    comfyui_page.load(workflow(EMPTY, NOTE))
    assert comfyui_page.complaints() == []
    assert comfyui_page.overlaps() == []
    assert comfyui_page.cut_off() == []
    assert comfyui_page.console() == []


@pytest.mark.parametrize("vue", [False, True])
def test_faults_are_seen(comfyui_page, vue):
    comfyui_page.setting("Comfy.VueNodes.Enabled", vue)
    try:
        comfyui_page.load(workflow(EMPTY, node(2, "NobodyMadeThis", [400, 0], [200, 100])))
        assert "NobodyMadeThis" in " ".join(comfyui_page.complaints())
        long = node(2, "Note", [100, 50], [300, 100], ["Many words. " * 100])
        comfyui_page.load(workflow(EMPTY, long))
        assert comfyui_page.complaints() == []
        assert len(comfyui_page.overlaps()) == 1
        assert [text for text in comfyui_page.cut_off() if "Many words" in text]
    finally:
        comfyui_page.setting("Comfy.VueNodes.Enabled", False)


def test_a_missing_file_is_seen(comfyui_page):
    gone = node(1, "UNETLoader", [0, 0], [300, 100], ["nobody-has-this.safetensors", "default"])
    comfyui_page.load(workflow(gone))
    assert re.search("nobody-has-this|model is missing", " ".join(comfyui_page.complaints()))


def test_a_long_name_is_seen(comfyui_page):
    long = copy.deepcopy(EMPTY) | {"title": "A name that no node of this width can show"}
    comfyui_page.load(workflow(long))
    assert [text for text in comfyui_page.cut_off() if "A name" in text]


def wire(page, *links: tuple[str, str, str, str]) -> None:
    """Nodes added to the empty graph, and connected output to input, the way a user would."""
    page.wait_js(
        """
        const made = {}, add = (type, x) => {
            const node = LiteGraph.createNode(type);
            node.pos = [x, 0];
            app.graph.add(node);
            return node;
        };
        for (const [from, output, to, input] of arguments[0]) {
            made[from] ??= add(from, Object.keys(made).length * 500);
            made[to] ??= add(to, Object.keys(made).length * 500);
            const [o, i] = [made[from].findOutputSlot(output), made[to].findInputSlot(input)];
            if (o < 0 || i < 0) throw Error(`${from}.${output} -> ${to}.${input}`);
            made[from].connect(o, made[to], i);
        }
        """,
        links,
    )
    page.calm()


@pytest.mark.parametrize("vue", [False, True])
def test_scores_are_seen_on_the_node(comfyui_page, vue):
    page = comfyui_page
    page.setting("Comfy.VueNodes.Enabled", vue)
    try:
        score = "TastemakerScoreImages"
        wire(
            page,
            ("TastemakerLoadScorer", "scorer", score, "scorer"),
            ("EmptyImage", "IMAGE", score, "images"),
        )
        assert page.complaints() == [] and page.cut_off() == []
        entry = page.run()
        (judge,) = [n["id"] for n in page.nodes() if n["type"] == score]
        (preview,) = page.server.files(entry, judge)
        assert page.previews(judge) == [Image.open(preview).size]
        assert page.complaints() == [] and page.console() == []
    finally:
        page.setting("Comfy.VueNodes.Enabled", False)


def test_a_failure_is_told_on_the_page(comfyui_page):
    """And the harness raises it."""
    wire(comfyui_page, ("EmptyImage", "IMAGE", "SaveImage", "images"))
    comfyui_page.js("app.graph.nodes.at(-1).widgets[0].value = '../outside'")
    with pytest.raises(ExecutionError, match="SaveImage"):
        comfyui_page.run()
    comfyui_page.calm()
    assert comfyui_page.complaints()
