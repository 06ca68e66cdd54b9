"""The tap: whatever a diffusers pipeline samples, x0 passes through a function of yours.

A scheduler's `step(output, t, x)` moves from x towards the x0 that the model's output stands for. The
tap computes that x0, hands it over, and when another comes back, steps with the output that stands
for it. It is exact for every solver, because x0 is affine in the output (see `schedulers`). Solvers that
extrapolate from earlier x0 keep the model's own in their history (see `multistep`). ComfyUI's post-CFG
function is the same thing.

The scheduler's class is swapped for a subclass for as long as the context lasts: `isinstance` and
`inspect.signature` see what they saw, and an instance that is copied meanwhile is not tapped.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .multistep import displace, extrapolates
from .schedulers import (
    adds_noise,
    check_scheduler,
    clips,
    level,
    name_of,
    prediction,
    x0_coefficients,
)


@dataclass(frozen=True, eq=False)
class Step:
    """One call of the denoiser, its guidance (CFG) included, before the scheduler uses it."""

    x0: Tensor  # [B, ...] float32 predicted clean latents, in the model's latent space
    noise_ratio: float  # r in [0, 1] of the sample that x0 was predicted from
    sigma: float  # its noise, in the scheduler's own unit
    index: int  # calls before this one; a Heun step makes two
    timestep: Any
    # From a gradient [B, ...] with respect to x0 to that with respect to the noisy sample, through the
    # denoiser; None unless the sample requires a gradient.
    pullback: Callable[[Tensor], Tensor] | None = None


HELD = "_tastemaker_tap"
OWN = "_tastemaker_own"  # of a tapped class, the one that it is made of
TapFunction = Callable[[Step], "Tensor | None"]


@contextmanager
def tap(
    scheduler: Any,
    function: TapFunction,
    on_start: Callable[[], None] | None = None,
    after: Callable[[int, Tensor], None] | None = None,
) -> Iterator[None]:
    """Within the context, `function` sees every step's x0, and may return another [B, ...].

    Args:
        on_start: called when a run begins (`set_timesteps`); steps are counted from 0 again.
        after: called after each step with the index of the next one and the sample it will start from.

    Raises:
        NotImplementedError: naming a scheduler that is not supported, and what to use instead.
        RuntimeError: the scheduler is tapped already.
    """
    check_scheduler(scheduler)
    if HELD in vars(scheduler):
        raise RuntimeError(
            f"{name_of(scheduler)} is tapped already: of reward_guidance, pruning, particles and "
            "calibrate_pruning only one works at a time; leave the other context first"
        )
    if clips(scheduler):
        warnings.warn(
            f"{name_of(scheduler)} clips x0 after the tap (clip_sample or thresholding): switch it off "
            "for exact guidance",
            stacklevel=3,
        )
    own = getattr(type(scheduler), OWN, type(scheduler))  # a tapped one may have been its model
    scheduler.__class__ = _tapped(own)
    setattr(scheduler, HELD, _Tap(function, on_start, after))
    try:
        yield
    finally:
        scheduler.__class__ = own
        vars(scheduler).pop(HELD, None)


def release(scheduler: Any) -> None:
    """Ends the tap of a run that broke off before it could end it itself."""
    held = getattr(scheduler, HELD, None)
    if held is not None and held.release is not None:
        held.release()


class _Tap:
    def __init__(
        self,
        function: TapFunction,
        on_start: Callable[[], None] | None,
        after: Callable[[int, Tensor], None] | None,
    ):
        self.function, self.on_start, self.after, self.index = function, on_start, after, 0
        self.release: Callable[[], None] | None = None  # whoever comes next may end it by this

    def __deepcopy__(self, memo: dict) -> None:
        return None  # some pipelines copy their scheduler, e.g. for sound: the copy is not tapped


@functools.cache
def _tapped(own: type) -> type:
    @functools.wraps(own.step)  # pipelines look for `eta` and `generator` in its signature
    def step(
        self: Any, model_output: Tensor, timestep: Any, sample: Tensor, *args: Any, **named: Any
    ):
        held = vars(self).get(HELD)
        if held is None:
            return own.step(self, model_output, timestep, sample, *args, **named)
        if "generator" not in named and adds_noise(self, named):
            _warn_of_noise(self)

        def go(output: Tensor, sample: Tensor) -> Any:
            return own.step(self, output, timestep, sample, *args, **named)

        return _through(held, self, go, model_output, timestep, sample)

    @functools.wraps(own.set_timesteps)  # and for `sigmas` in this one's
    def set_timesteps(self: Any, *args: Any, **named: Any):
        held = vars(self).get(HELD)
        if held is not None:
            held.index = 0
            if held.on_start is not None:
                held.on_start()
        return own.set_timesteps(self, *args, **named)

    names = {"__module__": own.__module__, "__qualname__": own.__qualname__}
    names |= {OWN: own, "step": step, "set_timesteps": set_timesteps}
    return type(own.__name__, (own,), names)


def _through(
    held: _Tap, scheduler: Any, go: Callable, output: Tensor, timestep: Any, sample: Tensor
) -> Any:
    """What the scheduler's own step `go` gives when the tap's function has seen x0."""
    here, index = level(scheduler, timestep), held.index
    a, b = x0_coefficients(here, prediction(scheduler))
    x0, pullback = a * sample.float() + b * output.float(), None
    if sample.requires_grad:
        pullback = _pullback(x0, sample, output)
        x0, sample, output = x0.detach(), sample.detach(), output.detach()
    new = held.function(Step(x0, here.noise_ratio, here.sigma, index, timestep, pullback))
    if new is not None and new.shape != x0.shape:
        raise ValueError(f"the tap returned {list(new.shape)} for an x0 of {list(x0.shape)}")
    if new is None:
        result = go(output, sample)
    elif extrapolates(scheduler):
        result = go(output, sample)
        displace(scheduler, here, result[0], new.to(x0) - x0)
    else:
        result = go((output.float() + (new.to(x0) - x0) / b).to(output.dtype), sample)
    held.index = index + 1
    if held.after is not None:
        held.after(held.index, result[0])
    return result


def _pullback(x0: Tensor, sample: Tensor, output: Tensor) -> Callable[[Tensor], Tensor]:
    if not output.requires_grad:
        raise RuntimeError(
            "the denoiser gives no gradient (it is cached, quantised or compiled without one): guide "
            "without through_model"
        )
    return lambda gradient: torch.autograd.grad(x0, sample, gradient.to(x0))[0]


def _warn_of_noise(scheduler: Any) -> None:
    warnings.warn(
        f"the pipeline does not hand its generator to {name_of(scheduler)}, whose noise then comes from "
        "torch's global one: call torch.manual_seed before each run to repeat it",
        stacklevel=4,
    )
