"""Dropping candidates from a batch that is being sampled; the others go on as if they were alone.

The latents shrink in the pipeline's callback. Whatever else was made for the whole batch before the
loop - embeddings, masks, guidance - shrinks on its way into the denoiser, a multistep scheduler's
history in place, and so does the list of generators.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

# Tokens' places, the same for the whole batch: their first dimension is no batch.
SHARED = ("img_ids", "txt_ids")


class Pruner:
    """The candidates of one run, and which of them are left.

    Args:
        pipe: the pipeline that runs.
        count: of candidates at the start.
        generators: one a candidate; the list that the pipeline was given.
    """

    def __init__(self, pipe: Any, count: int, generators: list[torch.Generator]):
        self.pipe, self.count, self.generators = pipe, count, generators
        self.alive = list(range(count))

    def keep(self, latents: Tensor, local: Sequence[int]) -> Tensor:
        """Keeps those of the living with these positions, in this order; the latents that are left."""
        index = torch.as_tensor(local, device=latents.device)
        shrink_history(self.pipe.scheduler, latents.shape, index)
        self.generators[:] = [self.generators[i] for i in local]
        self.alive = [self.alive[i] for i in local]
        return latents[index]

    def shrunk(self, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        """What the denoiser is called with, for the living only."""
        if len(self.alive) == self.count:
            return args, kwargs
        now = len(args[0] if args else next(iter(kwargs.values())))  # latents come first
        parts = now // len(self.alive)  # 2 where CFG runs as one batch, unconditional first
        index = [part * self.count + i for part in range(parts) for i in self.alive]
        stale = parts * self.count

        shrunk = {name: picked(name, value, stale, index) for name, value in kwargs.items()}
        return tuple(picked("", value, stale, index) for value in args), shrunk


def picked(name: str, value: Any, count: int, index: Sequence[int]) -> Any:
    """Of an argument of the denoiser, what belongs to these of `count` samples."""
    if name in SHARED:
        return value
    if isinstance(value, Tensor) and value.ndim and len(value) == count:
        return value[torch.as_tensor(index, device=value.device)]
    if isinstance(value, list) and len(value) == count:
        return [value[i] for i in index]
    if isinstance(value, dict):
        return {key: picked(key, each, count, index) for key, each in value.items()}
    return value


def shrink_history(scheduler: Any, shape: Sequence[int], index: Tensor) -> None:
    """Picks candidates from whatever a scheduler keeps of earlier steps: tensors shaped as latents."""

    def pick(value: Any) -> Any:
        if isinstance(value, Tensor) and value.shape == torch.Size(shape):
            return value[index.to(value.device)]
        return [pick(each) for each in value] if isinstance(value, list) else value

    for name, value in vars(scheduler).items():
        if isinstance(value, (Tensor, list)):
            setattr(scheduler, name, pick(value))


def denoisers(pipe: Any) -> list[nn.Module]:
    """The networks that a pipeline calls at each step; some switch between two."""
    names = ("unet", "transformer", "transformer_2")
    found = [getattr(pipe, name, None) for name in names]
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def pruning(pipe: Any, current: Callable[[], Pruner | None]) -> Iterator[None]:
    """Within the context, the denoisers see only the living of the run that is at work."""

    def hook(module: nn.Module, args: tuple, kwargs: dict[str, Any]):
        pruner = current()
        return None if pruner is None else pruner.shrunk(args, kwargs)

    handles = [
        module.register_forward_pre_hook(hook, with_kwargs=True, prepend=True)
        for module in denoisers(pipe)
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def check_prunable(pipe: Any, pipe_kwargs: Any) -> None:
    """Raises NotImplementedError, with what to do, for a pipeline that cannot drop a candidate."""
    name = type(pipe).__name__
    scale = pipe_kwargs.get("guidance_scale", 5.0)
    if name.startswith("ZImage") and scale and scale > 0:
        raise NotImplementedError(
            f"{name} with CFG keeps its batch to the end: prune without CFG (guidance_scale=0, as its "
            "turbo model wants), or leave prune out"
        )
    if not denoisers(pipe):
        raise NotImplementedError(f"{name} has no unet or transformer to prune for")
