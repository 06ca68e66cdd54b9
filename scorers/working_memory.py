"""How much memory a forward pass takes beside the weights, measured without running it.

The scorer runs on torch's "meta" device, where tensors have shapes and no contents: every operation
reports what it would allocate, and the peak of what is alive is the answer. It takes a fraction of a
second for any model and any size, and needs neither the device nor free memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from .base import Scorer


def working_memory(scorer: Scorer, count: int, height: int, width: int) -> int:
    """Peak bytes, beside the weights, of scoring a batch of `count` 8-bit pictures without gradient.

    What the device's allocator rounds up and its libraries keep for themselves is not in it.
    The scorer must not be in use by another thread meanwhile.
    """
    with torch.inference_mode(), on_meta(scorer), torch.device("meta"), _Peak() as peak:
        with _FusedAttention():
            scorer.score_runs([torch.empty(count, 3, height, width, dtype=torch.uint8)])
    return peak.bytes


@contextmanager
def on_meta(module: nn.Module) -> Iterator[None]:
    """The module's weights are shapes without contents inside, and what they were afterwards."""
    slots = [
        (slot, name, weight)
        for part in module.modules()  # each once, also where a module is a part twice
        for slot in (part._parameters, part._buffers)
        for name, weight in slot.items()
        if weight is not None
    ]
    try:
        for slot, name, weight in slots:
            slot[name] = torch.empty_like(weight, device="meta")
        yield
    finally:
        for slot, name, weight in slots:
            slot[name] = weight


class _Peak(TorchDispatchMode):
    """Follows the storages that operations make, from their making to their end."""

    def __init__(self):
        super().__init__()
        self.alive = 0
        self.bytes = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._follow(leaf.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.alive += size
        self.bytes = max(self.bytes, self.alive)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.alive -= size


class _FusedAttention(TorchFunctionMode):
    """Attention as GPUs compute it: only its result is stored, never the N x N weights."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.scaled_dot_product_attention:
            q, _, v = args[:3]
            return q.new_empty(*q.shape[:-1], v.shape[-1])
        return func(*args, **(kwargs or {}))
