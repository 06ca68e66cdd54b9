"""What travels along the wires: scorers and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..scorers import ScorerCard

SCORER = io.Custom("SCORER")  # a `managed.ManagedScorer`
SCORES = io.Custom("SCORES")  # a `Scores`
CATEGORY = "Tastemaker"


Chosen = dict[str, Any]  # what a menu with widgets of its own (DynamicCombo) gives


def chosen(value: Chosen | None, name: str) -> Chosen:
    """The value of a menu; ValueError where ComfyUI gave none, as it does for what is not listed."""
    if value is None:
        raise ValueError(f"{name}: what was chosen is not in the menu any more; choose again")
    return value


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of N images and who judged them. Higher is better."""

    values: Tensor  # [N] float32 on the CPU; NaN where an image could not be scored
    card: ScorerCard

    def __len__(self) -> int:
        return len(self.values)

    def take(self, indices: Tensor) -> Scores:
        return replace(self, values=self.values[indices])

    @classmethod
    def join(cls, parts: Sequence[Scores]) -> Scores:
        """One after the other. ValueError if they were not made by one scorer in one way."""
        if len({part.card.fingerprint_id for part in parts}) > 1:
            names = ", ".join(dict.fromkeys(f"{p.card.name} ({p.card.task})" for p in parts))
            raise ValueError(f"scores of different scorers or settings cannot be mixed: {names}")
        return cls(torch.cat([part.values for part in parts]), parts[0].card)
