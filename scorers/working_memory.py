"""How much memory a forward pass takes beside the weights, measured without running it.

The scorer runs on torch's "meta" device, where tensors have shapes and no contents: every operation
reports what it would allocate, and the peak of what is alive is the answer. It takes a fraction of a
second for any model and any size, and needs neither the device nor free memory.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
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
    """
    with torch.inference_mode():
        return _peak(_Run(scorer), lambda: torch.empty(count, 3, height, width, dtype=torch.uint8))


class _Run(nn.Module):
    """`score_runs` as a call, since `functional_call` makes calls."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    def forward(self, pictures: Tensor) -> Tensor:
        return self.scorer.score_runs([pictures])


def _peak(run: nn.Module, make_input: Callable[[], Tensor]) -> int:
    weights = {**dict(run.named_parameters()), **dict(run.named_buffers())}
    weights = {name: torch.empty_like(w, device="meta") for name, w in weights.items()}
    with torch.device("meta"), _Peak() as peak, _FusedAttention():
        torch.func.functional_call(run, weights, (make_input(),))
    return peak.bytes


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
