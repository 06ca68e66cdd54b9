"""The page's checks find what they are for, and a graph of ours opens, runs and shows its scores."""

import copy

import pytest
from cli_tools import staircase
from comfyui_server import ExecutionError, failure, interrupted

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
    assert "nobody-has-this.safetensors" in " ".join(comfyui_page.complaints())


def test_a_long_name_is_seen(comfyui_page):
    long = copy.deepcopy(EMPTY) | {"title": "A name that no node of this width can show"}
    comfyui_page.load(workflow(long))
    assert [text for text in comfyui_page.cut_off() if "A name" in text]
