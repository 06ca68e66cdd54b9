"""A gate for candidates that come a few at a time: each is judged by those that came before it."""

from __future__ import annotations

from typing import NamedTuple

import torch

from .checks import Scores, as_scores, whole
from .ranks import percentile
from .select import Selection


class Gate(NamedTuple):
    """What a gate decides on N candidates."""

    selection: Selection  # in the original order
    percentiles: torch.Tensor  # [N] in 0..100, place in the record; NaN where there is no score
    cut: float  # the least score that passes now; -inf while everything does


def gate(
    scores: Scores,
    record: Scores,
    known: torch.Tensor,
    *,
    reject_share: float = 0.3,
    warm_up: int = 20,
    window: int = 0,
) -> Gate:
    """Reject what falls in the lowest `reject_share` of the record.

    A candidate is compared with the record as it was when its turn came, itself included, so that
    four at once fare as four in a row. Independent scores of one distribution are rejected in
    `reject_share` of all cases.

    Args:
        scores: [N]; NaN is always rejected.
        record: [M], every score so far in the order in which they came, those of the candidates too.
        known: int64 [N], how much of the record there was when a candidate's turn came.
        reject_share: in [0, 1]; 0 rejects only what has no score.
        warm_up: candidates pass while the record holds no more than this many scores.
        window: compare with at most the last so many; 0 is all.

    Raises:
        ValueError: a number outside its range, or `known` outside the record.
    """
    scores, record = as_scores(scores).detach(), as_scores(record).detach()
    warm_up, window = whole("warm_up", warm_up, 0), whole("window", window, 0)
    if not 0 <= reject_share <= 1:
        raise ValueError(f"reject_share must be in [0, 1], got {reject_share}")
    if known.shape != scores.shape or ((known < 0) | (known > len(record))).any():
        raise ValueError(f"known must be {len(scores)} numbers from 0 to {len(record)}")
    cut_percent = 100 * reject_share
    percentiles = torch.full_like(scores, torch.nan, dtype=torch.float64)
    for i, count in enumerate(known.tolist()):
        percentiles[i] = percentile(scores[i : i + 1], recent(record[:count], window))[0]
    # An empty record gives no percentile, and cannot speak against a candidate.
    passed = ~scores.isnan() & ((known <= warm_up) | ~(percentiles < cut_percent))
    selection = Selection(passed.nonzero()[:, 0], (~passed).nonzero()[:, 0])
    return Gate(selection, percentiles, _cut(record, cut_percent, warm_up, window))


def recent(record: torch.Tensor, window: int) -> torch.Tensor:
    """The last `window` scores; all if it is 0."""
    return record[-window:] if window else record


def _cut(record: torch.Tensor, cut_percent: float, warm_up: int, window: int) -> float:
    if len(record) <= warm_up:
        return float("-inf")
    latest = recent(record, window)
    passing = latest[percentile(latest) >= cut_percent]
    return float(passing.min()) if len(passing) else float("inf")
