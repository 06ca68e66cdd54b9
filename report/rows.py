"""Scores of files, as they are listed, ranked and shown."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..scorers.base import ScorerCard


@dataclass(frozen=True, slots=True)
class Row:
    """One image: where it is, its score (NaN where there is none), and why there is none."""

    path: Path
    score: float
    error: str | None = None


@dataclass(frozen=True)
class Scores:
    """Rows in the order of the images, and what made them."""

    rows: list[Row]
    name: str  # the scorer's
    fingerprint_id: str
    card: ScorerCard | None = None  # None where the scores come from an export

    @property
    def values(self) -> list[float]:
        """[N], NaN where there is no score."""
        return [row.score for row in self.rows]
