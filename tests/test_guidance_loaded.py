"""A scorer that ComfyUI could not load whole beside the model that samples, without ComfyUI."""

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

COMFY = (
    *("comfy", "comfy.model_management", "comfy.model_patcher", "comfy.patcher_extension"),
    *("comfy.utils", "comfy_api", "comfy_api.latest", "folder_paths", "nodes"),
)


@pytest.fixture
def managed(monkeypatch):
    for name in COMFY:
        monkeypatch.setitem(sys.modules, name, MagicMock())
    package = ModuleType("tastemaker.nodes")  # without what its own __init__ imports
    package.__path__ = [str(Path(__file__).resolve().parents[1] / "nodes")]
    monkeypatch.setitem(sys.modules, package.__name__, package)
    before = set(sys.modules)
    yield importlib.import_module("tastemaker.nodes.managed")
    for name in set(sys.modules) - before:
        del sys.modules[name]


def part(*devices):
    """Weights whose parameters lie on these devices; says what is called on it."""
    weights = [torch.nn.Parameter(torch.zeros(1, device=device)) for device in devices]
    patcher = SimpleNamespace(model=SimpleNamespace(parameters=lambda: iter(weights)))
    return SimpleNamespace(patcher=patcher, keep=MagicMock())


def scorer(*parts):
    card = SimpleNamespace(name="large")
    return SimpleNamespace(weights=parts, device=torch.device("cpu"), card=card)


def test_weights_that_are_all_there_are_kept(managed):
    parts = part("cpu", "cpu"), part("cpu")
    managed.ManagedScorer.loaded(scorer(*parts))
    assert all(each.keep.called for each in parts)


@pytest.mark.parametrize("behind", [("meta",), ("cpu", "meta")])
def test_weights_that_were_left_behind_are_told_by_name(managed, behind):
    parts = part("cpu"), part(*behind)
    with pytest.raises(
        RuntimeError, match="large does not fit on the cpu device .* smaller scorer"
    ):
        managed.ManagedScorer.loaded(scorer(*parts))
    assert not any(each.keep.called for each in parts)
