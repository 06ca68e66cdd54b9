"""A pipeline's initial noise: what it is, and that it determines the image."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

from torch import Tensor

from .record import Row
from .sampling import sample
from .schedulers import adds_noise, check_scheduler, name_of


def row(index: int, reward: Tensor, held_out: Tensor | None) -> Row:
    return Row(index, 1.0, 1.0, reward, held_out)  # what is tried is all noise


class _Prepared(Exception):
    """Ends a run whose initial noise is known."""


def initial_noise(pipe: Any, seeds: Sequence[int], pipe_kwargs: Mapping[str, Any]) -> Tensor:
    """What the pipeline starts from with generators of these seeds, as it takes it as `latents`.

    [n, ...], before the scale that some schedulers want. Only the prompt is encoded.
    """
    if "latents" not in inspect.signature(type(pipe).__call__).parameters:
        raise NotImplementedError(f"{type(pipe).__name__} takes no latents: use best_of_n")
    twin = copy.copy(pipe)
    vars(twin)["scheduler"] = SimpleNamespace(init_noise_sigma=1.0)
    found: list[Tensor] = []

    def prepare_latents(*args: Any, **named: Any):
        prepared = type(pipe).prepare_latents(twin, *args, **named)
        found.append(prepared[0] if isinstance(prepared, tuple) else prepared)
        raise _Prepared

    with replaced(pipe, "prepare_latents", prepare_latents):
        try:
            sample(pipe, seeds, pipe_kwargs)
        except _Prepared:
            pass
    return found[0]


@contextmanager
def replaced(thing: Any, name: str, value: Callable[..., Any]) -> Iterator[None]:
    """Within the context, a method of this one instance is another function.

    Contexts may end in any order. A newer function stays; it may still call the one below it, whose
    context is over, but that one does not come back when the newer ends.
    """
    value.below = vars(thing).get(name)
    setattr(thing, name, value)
    try:
        yield
    finally:
        above, now = None, vars(thing).get(name)
        while now is not None and now is not value:
            above, now = now, getattr(now, "below", None)
        if now is None:  # a thing that dies before its context may have lost it
            pass
        elif above is not None:
            above.below = value.below
        elif value.below is not None:
            setattr(thing, name, value.below)
        else:
            vars(thing).pop(name)


def check_deterministic(pipe: Any, pipe_kwargs: Mapping[str, Any]) -> None:
    """Raises NotImplementedError unless the initial noise determines the image."""
    check_scheduler(pipe.scheduler)
    if adds_noise(pipe.scheduler, pipe_kwargs):
        raise NotImplementedError(
            f"{name_of(pipe.scheduler)} adds noise at every step, so the initial noise does not "
            "determine the image: use a scheduler that adds none (DDIM, Euler, DPM++, FlowMatch), or "
            "steer_particles"
        )
