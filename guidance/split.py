"""A batch that its denoiser is given in parts, where all of its samples must be at the same step."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor

from .initial import replaced
from .prune import denoisers, picked


@contextmanager
def split(pipe: Any, count: int, batch_size: int) -> Iterator[None]:
    """Within the context, the denoisers get at most `batch_size` of a run's `count` samples at a time
    (twice as many rows where CFG doubles the batch), and the VAE decodes one picture at a time.
    """
    vae = getattr(pipe, "vae", None)
    with ExitStack() as stack:
        if batch_size < count:
            for module in denoisers(pipe):
                forward = _split(module.forward, count, batch_size)
                stack.enter_context(replaced(module, "forward", forward))
            if hasattr(vae, "use_slicing"):
                stack.callback(setattr, vae, "use_slicing", vae.use_slicing)
                vae.use_slicing = True
        yield


def _split(own: Callable, count: int, batch_size: int) -> Callable:
    @functools.wraps(own)
    def forward(*args: Any, **kwargs: Any) -> Any:
        rows = len(args[0] if args else next(iter(kwargs.values())))  # latents come first
        size = batch_size * max(1, rows // count)
        found = []
        for start in range(0, rows, size):
            index = list(range(start, min(start + size, rows)))
            own_args = (picked("", value, rows, index) for value in args)
            own_kwargs = {name: picked(name, value, rows, index) for name, value in kwargs.items()}
            found.append(own(*own_args, **own_kwargs))
        return _joined(found)

    return forward


def _joined(parts: list[Any]) -> Any:
    """Outputs of parts of a batch as that of the whole."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.cat(parts)
    if isinstance(first, Mapping):  # diffusers' outputs
        return type(first)(**{name: _joined([part[name] for part in parts]) for name in first})
    if isinstance(first, tuple):
        return tuple(_joined(list(each)) for each in zip(*parts, strict=True))
    return [each for part in parts for each in part]  # a list, one a sample
