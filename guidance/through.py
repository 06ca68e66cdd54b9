"""The gradient of the reward through the denoiser and its CFG, on pipelines as they are.

Pipelines run under `torch.no_grad`. Here grad mode is switched on inside that, from where the initial
latents are ready, and for as long as the next step is one that is guided: each step starts from a sample
that requires a gradient, so the graph is that of one call of the denoiser, CFG included. The pipeline's
own `no_grad` ends as it would have.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .climb import frozen
from .guide import Guide
from .initial import replaced
from .offload import check_hooks
from .prune import denoisers
from .schedulers import level
from .tap import Step, tap

# What a backward costs in calls of the denoiser, that of checkpointing among them.
BACKWARD = 3


@contextmanager
def tap_through(pipe: Any, guide: Guide) -> Iterator[None]:
    """Within the context, the pipeline is guided by the full gradient.

    Raises:
        NotImplementedError: naming the pipeline and what stands in the way.
    """
    check_differentiable(pipe)
    scheduler, own, before = pipe.scheduler, pipe.prepare_latents, torch.is_grad_enabled()

    def prepare_latents(*args: Any, **named: Any) -> Any:
        prepared = own(*args, **named)
        if not guide.scale:
            return prepared
        if torch.is_inference_mode_enabled():
            raise RuntimeError("through_model=True needs gradients: not under torch.inference_mode")
        # The schedule may not be known yet; whether the first step is in the window, neither.
        torch.set_grad_enabled(True)
        if isinstance(prepared, tuple):  # with the places of the latents
            return (_leaf(prepared[0]), *prepared[1:])
        return _leaf(prepared)

    def after(index: int, sample: Tensor) -> None:
        wanted = index < len(scheduler.timesteps) and guide.wants(
            level(scheduler, scheduler.timesteps[index]).noise_ratio
        )
        torch.set_grad_enabled(wanted)
        sample.requires_grad_(wanted)

    try:
        with (
            frozen(pipe, checkpointing=True),
            replaced(pipe, "prepare_latents", prepare_latents),
            tap(scheduler, _counted(guide), guide.start, after),
        ):
            yield
    finally:
        torch.set_grad_enabled(before)


def _leaf(latents: Tensor) -> Tensor:
    return latents.detach().requires_grad_()


def _counted(guide: Guide) -> Callable[[Step], Tensor | None]:
    """The guide, its backwards through the denoiser counted."""

    def function(step: Step) -> Tensor | None:
        if not guide.wants(step.noise_ratio):
            return guide(dataclasses.replace(step, pullback=None))
        if step.pullback is None:
            raise RuntimeError(
                f"the sample of step {step.index} requires no gradient: a callback that returns other "
                "latents does not go with through_model"
            )
        guide.record.denoiser_calls += BACKWARD * len(step.x0)
        return guide(step)

    return function


def check_differentiable(pipe: Any) -> None:
    """Raises NotImplementedError, with what to do, for a pipeline that cannot be differentiated."""
    name = type(pipe).__name__
    if not denoisers(pipe) or not hasattr(pipe, "prepare_latents"):
        raise NotImplementedError(f"{name} is not known well enough for through_model=True")
    check_hooks(pipe, "through_model=True")
