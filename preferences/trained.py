"""What training made, and what to say and show of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..scorers.base import Scorer
from ..wording import counted
from .plots import pair_plots


@dataclass
class Trained:
    """What `train` made.

    Attributes:
        scorer: as `load_scorer(folder)` opens it, on the base that it was trained on.
        metrics: as `card_metrics` has them: "held_out" of this scorer and "base" of its base, on
            comparisons of images that it never saw; where nothing was held out "cross_validated",
            and "base" of all comparisons.
        penalty: the likeliest of those that cross-validation weighs; infinite is the base alone.
        dropped: comparisons between images of both parts, which were left out.
        notes: what was noticed about the comparisons, a line each.
        difference, p: [P] what `metrics` are of: left score minus right one, and the comparisons.
    """

    scorer: Scorer
    folder: Path
    metrics: dict[str, Any]
    penalty: float
    dropped: int
    notes: list[str]
    difference: np.ndarray
    p: np.ndarray

    def lines(self) -> list[str]:
        """What it is, how well it does beside its base, and what was noticed."""
        config = self.scorer.config
        data, base = config["data"], config["base"]["name"]
        name, count, images = config["name"], data["comparisons"], data["images"]
        first = f"{name}: a head on {base}, trained on {counted(count, 'comparison')} of {counted(images, 'image')}."
        measured = accuracy_lines(self.metrics, base, self.dropped)
        return [first, *measured, *map(_sentence, self.remarks())]

    def remarks(self) -> list[str]:
        """What was noticed."""
        found = list(self.notes)
        if self.dropped:
            found.append(left_out(self.dropped))
        if not self.scorer.head.weight.any():
            found.append("the comparisons say no more than the base does: its order is kept")
        return found

    def plot(self) -> Image.Image | None:
        """The calibration curve; None of fewer than 20 decided comparisons."""
        name = self.scorer.card.name
        if kind := measured_part(self.metrics):
            found = self.metrics[kind]
            name += f", right in {found['accuracy']:.1%} of {found['decided']}"
        return pair_plots(self.difference, self.p, name=name).get("calibration")


def accuracy_lines(metrics: Mapping[str, Any], base: str, dropped: int) -> list[str]:
    """How often a scorer is right, and its base; or why that is not known."""
    kind = measured_part(metrics)
    if not metrics:
        none = f"{_why_none(dropped)}, and there are too few comparisons to cross-validate"
        return [_sentence(none)]
    if kind is None:
        return [_sentence(measured_on(metrics, dropped))]
    after, before = metrics[kind], metrics["base"]
    found = f"Right in {after['accuracy']:.1%}{_interval(after)} of {counted(after['decided'], 'comparison')}"
    what = {
        "held_out": f"{found} of images that it never saw",
        "cross_validated": f"{found}, by cross-validation, since {_why_none(dropped)}",
    }
    return [f"{what[kind]}; {base} in {before['accuracy']:.1%}{_interval(before)}."]


def left_out(dropped: int) -> str:
    """What is said of comparisons between what is fitted and what is held out."""
    return f"left out: {counted(dropped, 'comparison')} between both parts"


def measured_on(metrics: Mapping[str, Any], dropped: int) -> str:
    """What the metrics are of, or why there are none; `dropped` as in `Trained`."""
    kind = measured_part(metrics)
    if kind == "held_out":
        return (
            f"{_decided(metrics[kind], 'held-out comparison')} of images that were not trained on"
        )
    if kind == "cross_validated":
        return f"{_why_none(dropped)}; cross-validation of {_decided(metrics[kind], 'comparison')}"
    if "held_out" in metrics:
        count = metrics["held_out"]["comparisons"]
        return f"the {count} comparisons held out are all ties, so no accuracy was measured"
    if "cross_validated" in metrics:
        return "the comparisons are all ties, so no accuracy was measured"
    return f"{_why_none(dropped)}, so nothing was measured"


def _decided(found: Mapping[str, Any], what: str) -> str:
    """How many comparisons; ties have no right side, so accuracy is of the others."""
    decided, ties = found["decided"], found["comparisons"] - found["decided"]
    found = counted(decided, what)
    return f"{found} and {counted(ties, 'tie')}" if ties else found


def _why_none(dropped: int) -> str:
    """Why nothing is held out."""
    if dropped:
        return "all that was held out shares images with what was trained on"
    return "nothing was held out"


def measured_part(metrics: Mapping[str, Any]) -> str | None:
    """Which of the metrics are the scorer's own; None if there are none."""
    parts = ("held_out", "cross_validated")
    return next((part for part in parts if "accuracy" in metrics.get(part, {})), None)


def _interval(found: Mapping[str, Any]) -> str:
    if "accuracy" not in (intervals := found.get("intervals", {})):
        return ""
    low, high = intervals["accuracy"]
    return f" (95 %: {low:.1%} to {high:.1%})"


def _sentence(note: str) -> str:
    return f"{note[0].upper()}{note[1:]}."
