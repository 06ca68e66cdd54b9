"""Score Gate's buttons in the real page: what they ask, what they do, and that a workflow ignores them."""

import json

import pytest

pytestmark = pytest.mark.comfyui

PRESS = """
    const node = app.graph.nodes[0];
    const button = node.widgets.find(widget => widget.name === arguments[0]);
    window.pressed = button.callback.call(button);
"""
DIALOG = "[role=dialog], [role=alertdialog]"


def told(page, text: str) -> None:
    """Waits for a toast that says so."""
    toasts = "[...document.querySelectorAll('.p-toast-message')]"
    page.until(
        f"return {toasts}.some(toast => toast.innerText.includes({json.dumps(text)}))",
        f"no toast says {text!r}",
    )


def gate(page, record: str) -> None:
    """A gate alone on the graph, with that record."""
    page.ask("alone", "TastemakerScoreGate")
    page.calm()
    script = "app.graph.nodes[0].widgets.find(w => w.name === 'record').value = arguments[0]"
    page.js(script, record)


def fill(comfyui, record: str, count: int) -> None:
    comfyui.run(
        {
            "load": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
            "images": {
                "class_type": "ProbeImages",
                "inputs": {"spec": f'[{{"count": {count}, "height": 32, "width": 32}}]'},
            },
            "gate": {
                "class_type": "TastemakerScoreGate",
                "inputs": {
                    "images": ["images", 0],
                    "scorer": ["load", 0],
                    "record": record,
                    "reject_share": 0.3,
                    "warm_up": 20,
                    "window": 0,
                },
            },
        }
    )


def scores(comfyui, record: str) -> bytes:
    return comfyui.post("/tastemaker/gate/count", {"record": record})


def answer(page, confirmed: bool) -> str:
    """Presses a button of the dialog once it is there; what the dialog said."""
    said = page.until(f"return document.querySelector('{DIALOG}')?.innerText", "no dialog")
    buttons = page.browser.find_elements("css selector", f":is({DIALOG}) button")
    words = {True: ("Confirm", "OK", "Yes"), False: ("Cancel", "No")}[confirmed]
    next(button for button in buttons if button.text.strip() in words).click()
    page.wait_js("await window.pressed")
    page.until(f"return !document.querySelector('{DIALOG}')", "the dialog stays")
    page.calm()
    return said


def test_a_record_is_reset_only_when_confirmed_and_brought_back(comfyui, comfyui_page):
    page = comfyui_page
    fill(comfyui, "buttons", 7)
    gate(page, "buttons")
    page.js(PRESS, "reset record")
    assert '"buttons" holds 7 scores' in answer(page, confirmed=False)
    assert scores(comfyui, "buttons") == b'{"scores": 7}'
    page.js(PRESS, "reset record")
    answer(page, confirmed=True)
    told(page, "7 scores are set aside")
    assert scores(comfyui, "buttons") == b'{"scores": 0}'
    page.js(PRESS, "undo reset")
    page.wait_js("await window.pressed")
    page.calm()
    told(page, "holds 7 scores again")
    assert scores(comfyui, "buttons") == b'{"scores": 7}'
    assert page.console() == []


def test_what_cannot_be_undone_is_said(comfyui_page):
    gate(comfyui_page, "never reset")
    comfyui_page.js(PRESS, "undo reset")
    comfyui_page.wait_js("await window.pressed")
    comfyui_page.calm()
    told(comfyui_page, "has not been reset")


def test_the_buttons_are_no_part_of_a_workflow(comfyui_page):
    gate(comfyui_page, "saved")
    (node,) = comfyui_page.serialize()["nodes"]
    assert [value for value in node["widgets_values"] if value is not None] == ["saved", 0.3, 20, 0]
    comfyui_page.load(comfyui_page.serialize())
    script = (
        "return Object.fromEntries(app.graph.nodes[0].widgets.map(w => [w.name, w.value ?? null]))"
    )
    values = comfyui_page.js(script)
    assert values["record"] == "saved" and values["warm_up"] == 20
    inputs = comfyui_page.prompt()[str(node["id"])]["inputs"]
    assert set(inputs) == {"record", "reject_share", "warm_up", "window"}
