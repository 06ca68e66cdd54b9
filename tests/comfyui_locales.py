"""Writes locales/en, from which translators start: python tests/comfyui_locales.py

In English, ComfyUI would find all of it in the nodes themselves. A language is a copy of the folder,
with the texts translated: locales/de/nodeDefs.json. What a file lacks is shown in English.
"""

import json
import re
import tempfile
from pathlib import Path

from comfyui_server import ComfyUI
from comfyui_source import ROOT

FOLDER = ROOT / "locales" / "en"
MAIN = {
    "nodeCategories": {"Tastemaker": "Tastemaker"},
    "dataTypes": {"SCORER": "SCORER", "SCORES": "SCORES"},
}


def node_texts(node: dict) -> dict:
    """What there is to translate of a node, from its description by /object_info."""
    inputs = _inputs({**node["input"].get("required", {}), **node["input"].get("optional", {})})
    outputs = zip(node["output_name"], node["output_tooltips"] or [], strict=True)
    return {
        "display_name": node["display_name"],
        "description": _message(node["description"]),
        "inputs": inputs,
        "outputs": {
            str(i): {"name": name, "tooltip": _message(tooltip)}
            for i, (name, tooltip) in enumerate(outputs)
        },
    }


def _inputs(specs: dict, prefix: str = "") -> dict:
    """Key to texts; what an option of a menu brings stands behind the menu, as menu_input."""
    found = {}
    for name, (kind, options) in specs.items():
        texts = {"name": name, "tooltip": _message(options.get("tooltip", ""))}
        found[(prefix + name).replace(".", "_")] = texts
        if kind == "COMFY_DYNAMICCOMBO_V3":
            for option in options["options"]:
                inner = option["inputs"]
                brought = {**inner.get("required", {}), **inner.get("optional", {})}
                found |= _inputs(brought, f"{prefix}{name}_")
    return found


def _message(text: str) -> str:
    """The page reads { } @ | as commands."""
    return re.sub(r"[{}@|]", lambda found: f"{{'{found[0]}'}}", text)


def write(nodes: dict[str, dict]) -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    texts = {node_id: node_texts(node) for node_id, node in sorted(nodes.items())}
    for name, contents in (("main", MAIN), ("nodeDefs", texts)):
        text = json.dumps(contents, indent=2, ensure_ascii=False)
        (FOLDER / f"{name}.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder, ComfyUI(Path(folder)) as server:
        write(server.nodes())
