"""Comparisons in files: what makes ranks and win probabilities out of scores."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from ..ranking import Calibration, fit_tau, solve_b
from ..report.rows import Row
from .scoring import Scores

Pair = tuple[Path, Path, float]  # two pictures, and the probability that the first is preferred


def read_pairs(path: Path, voter: str | None = None) -> list[Pair]:
    """Comparisons from a CSV of `winner,loser` paths, or from a file of comparisons or votes.

    The header of `winner,loser` may be missing. Of a file that sets comparisons apart for testing,
    those: what a scorer was trained on says nothing of how sure it may be.

    Args:
        voter: of a store of votes, whose; needed where it holds those of several.

    Raises:
        ValueError: naming the file, and the line that is no comparison or who its voters are.
    """
    from .judged import is_comparisons, read_part

    if is_comparisons(path):
        return list(read_part(path, voter=voter)[0].rows())
    if voter is not None:
        raise ValueError(f"{path} has no voters: --voter goes with a store of votes")
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.reader(file)
        try:
            pairs = list(_wins(lines, path))
        except csv.Error as error:
            raise ValueError(f"line {lines.line_num} of {path}: {error}") from None
    if not pairs:
        raise ValueError(f"no comparisons in {path}")
    return pairs


def _wins(lines: Iterable[list[str]], path: Path) -> Iterator[Pair]:
    for number, cells in enumerate(lines, 1):
        if not cells or (number == 1 and cells[:2] == ["winner", "loser"]):
            continue
        if len(cells) < 2 or not cells[0] or not cells[1]:
            raise ValueError(f"line {number} of {path} is no comparison: winner,loser")
        winner, loser = (Path(os.path.abspath(cell)) for cell in cells[:2])
        yield winner, loser, 1.0


def fit(scores: Scores, pairs: Sequence[Pair], tau: float | None = None) -> Calibration:
    """tau from the comparisons, unless it is given, and b so that the mean rank of all scores is 5.

    Raises:
        ValueError: a compared picture has no score among these; or tau does not exist.
    """
    if tau is None:
        tau = fit_tau(*_compared(scores.rows, pairs))
    return Calibration(tau, solve_b(scores.values, tau))


def _compared(
    rows: Sequence[Row], pairs: Sequence[Pair]
) -> tuple[list[float], list[list[int]], list[float]]:
    """The scores, the pairs as indices into them, and the probabilities."""
    index = {row.path: i for i, row in enumerate(rows) if not math.isnan(row.score)}
    for path in (path for *both, _ in pairs for path in both):
        if path not in index:
            raise ValueError(f"compared, but not among the scored pictures: {path}")
    values = [row.score for row in rows]
    return values, [[index[a], index[b]] for a, b, _ in pairs], [p for *_, p in pairs]
