"""What a scorer's numbers mean beyond their order: its own tau and scale, or a file's calibration."""

from __future__ import annotations

import math
from pathlib import Path

from ..ranking import Calibration
from .base import ScorerCard, fingerprint_id
from .ensemble import read_reference


def own_tau(card: ScorerCard) -> float | None:
    """1.0 where the sigmoid of a difference is a win probability already; else None."""
    return 1.0 if "win_probability" in card.capabilities else None


def scale_edges(card: ScorerCard, n: int) -> list[float]:
    """The n - 1 scores that divide a scorer's own scale into n equal parts, whatever was scored.

    That is its range, or, where it has none, the probability of winning over a score of 0.

    Raises:
        ValueError: it has neither.
    """
    low, high = card.range
    if math.isfinite(high - low):
        return [low + (high - low) * j / n for j in range(1, n)]
    if (tau := own_tau(card)) is None:
        raise ValueError(f"{card.name}'s scores have no scale of their own ({card.unit})")
    return [tau * math.log(j / (n - j)) for j in range(1, n)]


def read_calibration(path: Path, name: str, fingerprint: str) -> Calibration:
    """The calibration of a scorer's scores, from what `tastemaker calibrate --pairs` wrote.

    Args:
        name, fingerprint: the scorer's, the latter as its `fingerprint_id`.

    Raises:
        ValueError: the file has none for this fingerprint.
    """
    found = []
    for entry in read_reference(path)["members"]:
        if "calibration" in entry:
            if fingerprint_id(entry["fingerprint"]) == fingerprint:
                return Calibration.from_dict(entry["calibration"])
            found.append(f"{entry['name']} {fingerprint_id(entry['fingerprint'])}")
    held = f"of {', '.join(found)}" if found else "none: calibrate with --pairs"
    raise ValueError(f"{path} has no calibration of {name} {fingerprint} ({held})")
