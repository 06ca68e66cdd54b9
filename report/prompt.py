"""What ComfyUI's prompt, {node id: {"class_type", "inputs"}}, tells about the images that came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Prompt = Mapping[str, Mapping[str, Any]]

SEEDS = ("seed", "noise_seed")
NUMBERS = (*SEEDS, "value", "int", "number")  # what nodes that hand a seed on call it


def find_seed(prompt: Prompt, node: str, name: str) -> int | None:
    """The seed of the samplers upstream of a node's input; None unless there is exactly one."""
    found = {
        _number(prompt, above, key)
        for above in _upstream(prompt, node, name)
        for key in SEEDS
        if key in prompt[above]["inputs"]
    }
    return found.pop() if len(found) == 1 else None


def widgets(prompt: Prompt) -> dict[str, dict[str, Any]]:
    """A node's title or type -> its widgets; of several of one name, the first's."""
    found: dict[str, dict[str, Any]] = {}
    for node in prompt.values():
        values = {k: v for k, v in node["inputs"].items() if not isinstance(v, (list, dict))}
        for title in (node["class_type"], node.get("_meta", {}).get("title")):
            found.setdefault(title, values)
    return found


def _upstream(prompt: Prompt, node: str, name: str) -> Iterator[str]:
    """Every node that an input depends on, once."""
    links = [_source(prompt, node, name)]
    seen: set[str] = set()
    while links:
        above = links.pop()
        if above is None or above in seen:
            continue
        seen.add(above)
        yield above
        links += [_source(prompt, above, key) for key in prompt[above]["inputs"]]


def _source(prompt: Prompt, node: str, name: str) -> str | None:
    """The node that an input is connected to; None for a widget."""
    value = prompt.get(node, {}).get("inputs", {}).get(name)
    linked = isinstance(value, list) and len(value) == 2 and str(value[0]) in prompt
    return str(value[0]) if linked else None


def _number(prompt: Prompt, node: str, name: str) -> int | None:
    """A widget's whole number, or that of the node which it is connected to."""
    if (above := _source(prompt, node, name)) is not None:
        values = [prompt[above]["inputs"].get(key) for key in NUMBERS]
    else:
        values = [prompt[node]["inputs"].get(name)]
    whole = [v for v in values if isinstance(v, int) and not isinstance(v, bool)]
    return whole[0] if len(whole) == 1 else None
