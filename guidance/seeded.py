"""A scheduler's noise from the run's own generators, also where the pipeline keeps these to itself.

SD3, Flux, Wan and others pass no `generator` to `scheduler.step`, so a scheduler that adds noise takes
it from torch's global generator: no seed makes the image again, and candidates depend on one another.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

HELD = "_tastemaker_generators"


class _Generators:
    def __init__(self, generators: Sequence[torch.Generator]):
        self.generators = generators

    def __deepcopy__(self, memo: dict) -> None:
        return None  # a copy of the scheduler is another run's


@contextmanager
def seeded(pipe: Any, generators: Sequence[torch.Generator]) -> Iterator[None]:
    """Within the context, steps that are given no generator get these, one an image."""
    scheduler = getattr(pipe, "scheduler", None)
    own = type(scheduler)
    if scheduler is None or "generator" not in inspect.signature(own.step).parameters:
        yield
        return
    scheduler.__class__ = _seeded(own)
    setattr(scheduler, HELD, _Generators(generators))
    try:
        yield
    finally:
        scheduler.__class__ = own
        vars(scheduler).pop(HELD, None)


@functools.cache
def _seeded(own: type) -> type:
    @functools.wraps(own.step)
    def step(self: Any, *args: Any, **named: Any) -> Any:
        held = vars(self).get(HELD)
        if held is not None and "generator" not in named:
            named["generator"] = held.generators
        return own.step(self, *args, **named)

    names = {"__module__": own.__module__, "__qualname__": own.__qualname__, "step": step}
    return type(own.__name__, (own,), names)
