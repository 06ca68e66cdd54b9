"""What the ranking functions accept, and the number type they compute in."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence

import torch

Scores = torch.Tensor | Sequence[float]


def as_real(values: Scores | float) -> torch.Tensor:
    """`values` as a float32 or float64 tensor of any shape; the gradient is kept."""
    if not isinstance(values, torch.Tensor):
        # torch would read Python floats as float32, where scores that differ can become equal.
        known = hasattr(values, "__array__")
        values = torch.as_tensor(values, dtype=None if known else torch.float64)
    if values.dtype.is_complex or values.dtype == torch.bool:
        raise TypeError(f"scores must be real numbers, got {values.dtype}")
    if values.dtype in (torch.float16, torch.bfloat16):
        return values.float()
    return values if values.is_floating_point() else values.to(exact_dtype(values.device))


def as_scores(scores: Scores) -> torch.Tensor:
    """`scores` as a float tensor `[N]`. Raises ValueError for any other number of dimensions."""
    scores = as_real(scores)
    if scores.ndim != 1:
        raise ValueError(f"scores must have one dimension, got shape {tuple(scores.shape)}")
    return scores


def exact_dtype(device: torch.device) -> torch.dtype:
    """float64, or float32 on the one device that lacks it."""
    return torch.float32 if device.type == "mps" else torch.float64


def whole(name: str, value: int, minimum: int) -> int:
    """`value` as an int of at least `minimum`; TypeError for 2.5, ValueError for too little."""
    value = operator.index(value)
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return value


def positive(name: str, value: float) -> float:
    """`value` as a finite float above 0."""
    value = float(value)
    if not (math.isfinite(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0, got {value}")
    return value
