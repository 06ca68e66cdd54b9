"""What translators start from says what the nodes say, and changes nothing that a user sees."""

import json

import pytest
from comfyui_locales import FOLDER, MAIN, node_texts
from comfyui_server import PACK

pytestmark = pytest.mark.comfyui


def read(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))


def test_the_texts_are_the_nodes_own(comfyui):
    """If not: python tests/comfyui_locales.py"""
    assert read("nodeDefs") == {n: node_texts(node) for n, node in comfyui.nodes().items()}
    assert read("main") == MAIN


def test_they_are_served(comfyui):
    served = comfyui.get("/i18n")["en"]
    assert {n: served["nodeDefs"][n] for n in comfyui.nodes()} == read("nodeDefs")
    assert {kind for node in comfyui.nodes().values() for kind in node["output"]} >= set(
        read("main")["dataTypes"]
    )


def test_the_page_says_what_the_nodes_say(comfyui, comfyui_page):
    """Commands of the page's language for messages would show up as gaps or errors."""
    for node_id, node in comfyui.nodes().items():
        key = "nodeDefs." + node_id
        script = """
            const i18n = document.querySelector('#vue-app').__vue_app__.config.globalProperties;
            return i18n.$t(arguments[0]);
        """
        assert comfyui_page.js(script, key + ".display_name") == node["display_name"]
        assert comfyui_page.js(script, key + ".description") == node["description"]
        specs = {**node["input"].get("required", {}), **node["input"].get("optional", {})}
        for name, (_, options) in specs.items():
            shown = comfyui_page.js(script, f"{key}.inputs.{name}.tooltip")
            assert shown == options["tooltip"], name
    assert comfyui.folder == PACK and comfyui_page.console() == []
