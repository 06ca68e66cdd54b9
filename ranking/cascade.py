"""A cheap scorer on every candidate, an expensive judge on the best of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .checks import Scores, as_scores, whole
from .ranks import spearman
from .select import count_of, sort


@dataclass(frozen=True, eq=False)
class Cascade:
    """The outcome for N candidates.

    `order` holds the judged candidates by judge score, best first, then the others by cheap score,
    then those without a usable score: the last `unscored`, which are never to be kept.
    """

    order: torch.Tensor  # int64 [N]
    unscored: int
    cheap: torch.Tensor  # [N]
    judge: torch.Tensor  # [N], NaN where not judged
    agreement: float  # Spearman's correlation of the two over the judged; NaN below two of them


def cascade(
    items: torch.Tensor | Sequence[Any],
    cheap: Callable[[Any], Scores],
    judge: Callable[[Any], Scores],
    *,
    k: int | None = None,
    fraction: float | None = None,
) -> Cascade:
    """Score all `items` with `cheap` and the best `k` (or `fraction`) of them with `judge`.

    Args:
        items: N candidates in a list or in a tensor's first dimension; `torch.arange(n)` gives the
            callables plain indices.
        cheap: called once with `items`, returns N scores.
        judge: called once with the chosen items, best first (a tensor stays one, else a list);
            returns a score for each.
        k, fraction: exactly one of them, with the meaning of `top_k` and `top_fraction`.

    No callable ever gets an empty batch. A NaN from `cheap` is never judged; a NaN from either puts
    the candidate last. Agreement over the judged alone is lower than over all: the cheap scorer
    has already chosen them to be alike.
    """
    if (k is None) == (fraction is None):
        raise ValueError("give either k or fraction")
    first = _call("cheap", cheap, items, len(items))
    ranked = sort(first)
    scored = len(items) - int(first.isnan().sum())
    k = count_of(fraction, scored) if k is None else min(whole("k", k, 0), scored)
    chosen = ranked[:k]
    verdict = _call("judge", judge, _take(items, chosen), k).to(first.device)

    judged, failed = chosen[sort(verdict)], int(verdict.isnan().sum())
    # Best judged, then best unjudged, then without a usable score in the original order.
    unscored = torch.cat([judged[k - failed :], ranked[scored:]]).sort().values
    order = torch.cat([judged[: k - failed], ranked[k:scored], unscored])
    second = torch.full((len(items),), torch.nan, dtype=verdict.dtype, device=first.device)
    second[chosen] = verdict
    return Cascade(order, len(unscored), first, second, spearman(first[chosen], verdict))


def _call(name: str, scorer: Callable[[Any], Scores], items: Any, n: int) -> torch.Tensor:
    """The scores of `items`, checked to be n."""
    if n == 0:
        return torch.empty(0)
    scores = as_scores(scorer(items)).detach()
    if scores.numel() != n:
        raise ValueError(f"{name} must return one score per item: {n}, got {scores.numel()}")
    return scores


def _take(items: torch.Tensor | Sequence[Any], indices: torch.Tensor) -> Any:
    if isinstance(items, torch.Tensor):
        return items[indices.to(items.device)]
    return [items[i] for i in indices.tolist()]
