"""How alike two judges compare: voters, or scorers, on the pairs of images that both judged.

Left and right are names: everything here counts each comparison both ways round. So kappa's chance
agreement does not depend on the side on which a picture was shown, and without ties kappa is
2 * agreement - 1.
"""

from __future__ import annotations

import math
import os
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .bootstrap import LEVEL, ROUNDS, Interval, bootstrap
from .comparisons import Comparisons

Pair = tuple[Hashable, Hashable]  # two images, in a fixed order
Verdicts = Mapping[Pair, float]  # probability that the first of the pair is preferred
FEW = 5  # from fewer pairs Wilson's interval is about half of [0, 1] or more, whatever was counted


@dataclass(frozen=True)
class Agreement:
    """Of two judges.

    Attributes:
        shared: pairs that both judged, each once; decided: those without a tie of either.
        agreement: the share of the decided ones that both judge alike.
        alike: the share of all shared ones with the same outcome of three (a tie is one).
        kappa: Cohen's, of the three outcomes: 0 as by chance, 1 always alike.
        intervals: of these three. NaN where there is nothing to count.
    """

    shared: int
    decided: int
    agreement: float
    alike: float
    kappa: float
    intervals: Mapping[str, Interval]

    def tells(self, name: str) -> bool:
        """Whether so many pairs are behind that one of the three that it says anything."""
        counted = self.decided if name == "agreement" else self.shared
        return counted >= FEW and not math.isnan(getattr(self, name))


def verdicts_of(
    comparisons: Comparisons, key: Callable[[Path], Hashable] = os.fspath
) -> dict[Pair, float]:
    """A voter's verdicts; the mean where a pair was judged several times. `key` names an image."""
    found: dict[Pair, list[float]] = defaultdict(list)
    for left, right, p in comparisons.rows():
        a, b = key(left), key(right)
        if a != b:
            found[(a, b) if a < b else (b, a)].append(p if a < b else 1 - p)
    return {pair: float(np.mean(ps)) for pair, ps in found.items()}


def verdicts_by(scores: Mapping[Hashable, float], pairs: Iterable[Pair]) -> dict[Pair, float]:
    """A scorer's verdicts on pairs: 1, 0.5 or 0. Pairs with an image that has no score are left out."""
    found = {}
    for a, b in pairs:
        difference = scores.get(a, math.nan) - scores.get(b, math.nan)
        if not math.isnan(difference):
            found[a, b] = (np.sign(difference) + 1) / 2
    return found


def agreement(
    a: Verdicts,
    b: Verdicts,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> Agreement:
    """Counts what both judged. ValueError if that is nothing."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        raise ValueError("they share no comparison")
    one, other = (np.sign([side[pair] - 0.5 for pair in shared]) for side in (a, b))
    decided = (one != 0) & (other != 0)
    same = one == other

    def statistics(w: np.ndarray) -> dict[str, np.ndarray]:
        return {
            "agreement": _share(w[:, decided], same[decided]),
            "alike": _share(w, same),
            "kappa": _kappa(w, same, one == 0, other == 0),
        }

    names = {
        image: i for i, image in enumerate(dict.fromkeys(im for pair in shared for im in pair))
    }
    pairs = [[names[x], names[y]] for x, y in shared]
    shares = {"agreement": decided, "alike": np.ones(len(shared), bool)}
    intervals = bootstrap(statistics, pairs, shares=shares, rounds=rounds, seed=seed, level=level)
    values = {name: float(v[0]) for name, v in statistics(np.ones((1, len(shared)))).items()}
    return Agreement(len(shared), int(decided.sum()), **values, intervals=intervals)


def _share(weights: np.ndarray, true: np.ndarray) -> np.ndarray:
    total = weights.sum(1)
    return np.divide(weights @ true, total, out=np.full(len(weights), np.nan), where=total > 0)


def _kappa(w: np.ndarray, same: np.ndarray, tie_a: np.ndarray, tie_b: np.ndarray) -> np.ndarray:
    """Cohen's kappa [R]: the sides are as likely as each other, since each is counted both ways."""
    seen, a, b = _share(w, same), _share(w, tie_a), _share(w, tie_b)
    chance = a * b + (1 - a) * (1 - b) / 2
    return np.divide(seen - chance, 1 - chance, out=np.full(len(w), np.nan), where=chance < 1)
