"""A file of Save Scored Image, dropped onto the real page, brings its workflow back."""

import pytest

pytestmark = pytest.mark.comfyui

BUILD = """
const app = window.app, graph = app.graph;
graph.clear();
const add = (type, x, y) => {
    const node = LiteGraph.createNode(type);
    node.pos = [x, y];
    graph.add(node);
    return node;
};
const link = (from, slot, to, name) => from.connect(slot, to, to.findInputSlot(name));
const image = add("EmptyImage", 0, 0), scorer = add("TastemakerLoadScorer", 0, 250);
const save = add("TastemakerSaveScoredImage", 450, 0);
link(image, 0, save, "images");
link(scorer, 0, save, "scorer");
const widget = (name) => save.widgets.find((w) => w.name === name);
widget("file_name").value = arguments[0];
widget("format").value = arguments[1];
widget("format").callback?.(arguments[1]);
return graph.serialize();
"""
DROP = """
const answer = await fetch(arguments[0]);
const file = new File([await answer.blob()], arguments[1], {type: arguments[2]});
window.app.graph.clear();
await window.app.handleFile(file);
return window.app.graph.nodes.map((node) => node.type).sort();
"""


@pytest.mark.parametrize(
    "format, mime", [("PNG", "image/png"), ("WebP lossless", "image/webp"), ("WebP", "image/webp")]
)
def test_a_saved_file_brings_its_workflow_back(comfyui, comfyui_page, format, mime):
    page, name = comfyui_page, "dropped-" + format.replace(" ", "-")
    page.load(page.js(BUILD, name, format))
    assert page.complaints() == []
    entry = page.run()
    ((saved,),) = [comfyui.files(entry, node) for node in entry["outputs"]]
    assert saved.name.startswith(name)
    url = f"/view?filename={saved.name}&type=output"
    found = page.wait_js(DROP, url, saved.name, mime)
    assert found == ["EmptyImage", "TastemakerLoadScorer", "TastemakerSaveScoredImage"]
    widgets = page.js(
        "return window.app.graph.nodes.find((n) => n.type.endsWith('ScoredImage')).widgets.map("
        "(w) => w.value)"
    )
    assert name in widgets and format in widgets
