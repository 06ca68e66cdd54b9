"""What a diffusers scheduler's sample is made of, and the x0 that a model output stands for.

Every supported scheduler steps a sample x = alpha x0 + sigma eps, and every prediction type is affine
in x and the model output, so x0 = a x + b output with two numbers a step. The schedulers themselves
compute x0 inside `step` in many ways and most do not return it.

Duck-typed: nothing of diffusers is imported.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch


class Level(NamedTuple):
    """The sample of one step: x = alpha x0 + sigma eps."""

    alpha: float
    sigma: float

    @property
    def noise_ratio(self) -> float:
        """r = sigma / sqrt(alpha^2 + sigma^2), from 0 (clean) to 1 (noise), whatever the scheduler."""
        return self.sigma / math.hypot(self.alpha, self.sigma)


def _variance_preserving(scheduler: Any, timestep: Any) -> Level:
    alpha_bar = float(scheduler.alphas_cumprod[int(timestep)])
    return Level(alpha_bar**0.5, (1 - alpha_bar) ** 0.5)


def _variance_exploding(scheduler: Any, timestep: Any) -> Level:
    return Level(1.0, _sigma(scheduler, timestep))


def _multistep(scheduler: Any, timestep: Any) -> Level:
    sigma = scheduler.sigmas[_index(scheduler, timestep)]
    alpha, sigma = scheduler._sigma_to_alpha_sigma_t(sigma.double())
    return Level(float(alpha), float(sigma))


def _flow(scheduler: Any, timestep: Any) -> Level:
    sigma = _sigma(scheduler, timestep)
    return Level(1 - sigma, sigma)


# Explicit: a scheduler that is not here may look alike and mean something else. The interpolated
# sigmas of the KDPM2 schedulers, for one, are off by 16 %.
LEVELS: dict[str, Callable[[Any, Any], Level]] = {
    "DDIMScheduler": _variance_preserving,
    "DDPMScheduler": _variance_preserving,
    "LCMScheduler": _variance_preserving,
    "EulerDiscreteScheduler": _variance_exploding,
    "EulerAncestralDiscreteScheduler": _variance_exploding,
    "HeunDiscreteScheduler": _variance_exploding,
    "DPMSolverMultistepScheduler": _multistep,
    "UniPCMultistepScheduler": _multistep,
    "DEISMultistepScheduler": _multistep,
    "FlowMatchEulerDiscreteScheduler": _flow,
    "FlowMatchHeunDiscreteScheduler": _flow,
}


def name_of(scheduler: Any) -> str:
    """The scheduler's class, tapped or not."""
    return type(scheduler).__name__


def check_scheduler(scheduler: Any) -> None:
    """Raises NotImplementedError, saying which schedulers to use instead, for one that is unknown."""
    if name_of(scheduler) not in LEVELS:
        # PNDM, the default of SD 1.5's folders, asks twice at one timestep and mixes the answers.
        other = "DDIM" if name_of(scheduler) == "PNDMScheduler" else "EulerDiscrete"
        raise NotImplementedError(
            f"{name_of(scheduler)} is not supported: "
            f"pipe.scheduler = {other}Scheduler.from_config(pipe.scheduler.config) gives the pipeline one "
            f"that is; all are {', '.join(LEVELS)}"
        )
    prediction(scheduler)


def level(scheduler: Any, timestep: Any) -> Level:
    """Of the sample that the next `step` gets."""
    return LEVELS[name_of(scheduler)](scheduler, timestep)


def prediction(scheduler: Any) -> str:
    """What the model's output is. NotImplementedError for what is not known."""
    if "FlowMatch" in name_of(scheduler):
        return "flow_prediction"
    found = scheduler.config.prediction_type
    found = {"original_sample": "sample"}.get(found, found)
    if found not in ("epsilon", "v_prediction", "sample", "flow_prediction"):
        raise NotImplementedError(
            f"{name_of(scheduler)} predicts {found!r}, which is not supported"
        )
    return found


def x0_coefficients(level: Level, prediction: str) -> tuple[float, float]:
    """(a, b) of x0 = a x + b output."""
    alpha, sigma = level
    if prediction == "epsilon":
        return 1 / alpha, -sigma / alpha
    if prediction == "v_prediction":  # of the sample scaled to unit variance
        norm = math.hypot(alpha, sigma)
        return alpha / norm**2, -sigma / norm
    if prediction == "flow_prediction":  # output = eps - x0
        return 1 / (alpha + sigma), -sigma / (alpha + sigma)
    return 0.0, 1.0


def adds_noise(scheduler: Any, pipe_kwargs: Mapping[str, Any]) -> bool:
    """Whether its steps are random: then two equal samples do not stay equal."""
    always = ("EulerAncestralDiscreteScheduler", "DDPMScheduler", "LCMScheduler")
    config = scheduler.config
    return (
        name_of(scheduler) in always
        or str(config.get("algorithm_type")).startswith("sde")
        or bool(config.get("stochastic_sampling"))
        or (name_of(scheduler) == "DDIMScheduler" and bool(pipe_kwargs.get("eta")))
    )


def clips(scheduler: Any) -> bool:
    """Whether `step` changes x0 itself before it uses it: then what is asked for is not what is used."""
    config = scheduler.config
    return bool(config.get("clip_sample") or config.get("thresholding"))


def _sigma(scheduler: Any, timestep: Any) -> float:
    return float(scheduler.sigmas[_index(scheduler, timestep)])


def _index(scheduler: Any, timestep: Any) -> int:
    if scheduler.step_index is None:  # before the first step
        timestep = torch.as_tensor(timestep, device=scheduler.timesteps.device)
        scheduler._init_step_index(timestep)
    return scheduler.step_index
