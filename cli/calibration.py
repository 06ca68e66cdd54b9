"""Comparisons in files: what makes ranks and win probabilities out of scores."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ..ranking import Calibration, fit_tau, solve_b
from ..report.rows import Row
from .scoring import Scores

Pair = tuple[Path, Path]


def read_pairs(path: Path) -> list[Pair]:
    """Comparisons from a CSV of `winner,loser` paths; that header may be missing.

    Raises:
        ValueError: naming the file and the line that is no comparison.
    """
    pairs = []
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        for number, cells in enumerate(csv.reader(file), 1):
            if not cells or (number == 1 and cells[:2] == ["winner", "loser"]):
                continue
            if len(cells) < 2 or not cells[0] or not cells[1]:
                raise ValueError(f"line {number} of {path} is no comparison: winner,loser")
            winner, loser = (Path(os.path.abspath(cell)) for cell in cells[:2])
            pairs.append((winner, loser))
    if not pairs:
        raise ValueError(f"no comparisons in {path}")
    return pairs


def fit(scores: Scores, pairs: Sequence[Pair], tau: float | None = None) -> Calibration:
    """tau from the comparisons, unless it is given, and b so that the mean rank of all scores is 5.

    Raises:
        ValueError: a compared picture has no score among these; or tau does not exist.
    """
    if tau is None:
        tau = fit_tau(*_compared(scores.rows, pairs))
    return Calibration(tau, solve_b(scores.values, tau))


def _compared(rows: Sequence[Row], pairs: Sequence[Pair]) -> tuple[list[float], list[list[int]]]:
    """The scores, and the pairs as indices into them."""
    index = {row.path: i for i, row in enumerate(rows) if not math.isnan(row.score)}
    for path in (path for pair in pairs for path in pair):
        if path not in index:
            raise ValueError(f"compared, but not among the scored pictures: {path}")
    values = [row.score for row in rows]
    return values, [[index[winner], index[loser]] for winner, loser in pairs]
