"""Solvers that extrapolate from the x0 of earlier steps, and a push that they must not extrapolate.

DPM++ 2M steps with x0 + (x0 - x0 before) / 2r. With pushed x0 in its history it overshoots when a push
begins and, worse, takes it back when it ends: at the last guided step, or at each where a sample is
left alone. So the history holds the model's own x0, extrapolated as ever, and the push is added to what
the step gives, by as much as it moves a step of first order.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .schedulers import Level, level, name_of


def extrapolates(scheduler: Any) -> bool:
    """Whether its steps are extrapolated from x0. (DEIS and others do so from the noise.)"""
    config = scheduler.config
    if name_of(scheduler) == "DPMSolverMultistepScheduler":
        return str(config.algorithm_type).endswith("++")
    return name_of(scheduler) == "UniPCMultistepScheduler" and bool(config.predict_x0)


def displace(scheduler: Any, here: Level, sample: Tensor, push: Tensor) -> None:
    """Moves, in place, the sample [B, ...] that a step from `here` just gave as if x0 had been pushed."""
    after = level(scheduler, None)  # its counter is at the next step
    moved = first_order(here, after, str(scheduler.config.get("algorithm_type"))) * push
    sample += moved.to(sample)
    last = getattr(scheduler, "last_sample", None)
    if last is not None and after.sigma > 0:
        # UniPC's next step computes this one again, from the sample before it times sigma' / sigma.
        scheduler.last_sample = last + (moved * (here.sigma / after.sigma)).to(last)


def first_order(here: Level, after: Level, algorithm: str = "") -> float:
    """How far a step of first order moves with x0: alpha' - alpha sigma' / sigma."""
    carried = after.sigma * here.alpha / here.sigma
    if algorithm.startswith("sde"):
        return after.alpha - carried**2 / after.alpha
    return after.alpha - carried
