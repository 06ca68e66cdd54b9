"""How few comparisons a personal scorer needs, measured with simulated users; writes preferences.md.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python benchmarks/preferences.py

The users, their three tastes and the pictures that they compare are in `tastes.py`, which was
written, with all its constants, before anything was measured.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import NamedTuple

import numpy as np
import preferences_report
import torch
from simulated import (
    FREE,
    KINDS,
    ROBUST,
    Study,
    answers,
    arguments,
    cached,
    fit,
    held_out_accuracy,
    random_pairs,
    still,
    votes,
)
from torch import Tensor
from tqdm import tqdm

from tastemaker.preferences.asking import FIRST, RANDOM_SHARE
from tastemaker.preferences.suggest import suggest_for
from tastemaker.preferences.taste import Taste

COUNTS = (25, 50, 100, 150, 200, 375, 500, 750, 1000, 20000)
SUGGESTED = (100, 150, 200, 375, 500, 750, 1000)
FIRST_USER = 5000  # whose luck no constant was chosen on: those were, on users 100 to 123
ROUND, AT_ONCE = 0.4, 50  # more comparisons, at most, before the head is fitted and suggests anew


class Measured(NamedTuple):
    accuracy: float  # of held-out pairs
    still: tuple[float, ...]  # of originals above their copies, of each kind


class Result(NamedTuple):
    """One user: what was measured by setting, head ("scratch", "base", "suggested") and count."""

    taste: int
    user: int
    found: dict[tuple[str, str, int], Measured]


def main() -> None:
    options = arguments(__doc__)
    study = cached(options)
    users = range(FIRST_USER, FIRST_USER + options.users)
    everyone = list(itertools.product(users, range(3)))
    with ProcessPoolExecutor(os.cpu_count(), None, torch.set_num_threads, (1,)) as pool:
        found = pool.map(functools.partial(measure, study), everyone)
        results = list(tqdm(found, total=len(everyone)))
    preferences_report.write(study, results)


def measure(study: Study, who: tuple[int, int]) -> Result:
    """All heads learn from the same comparisons; "suggested" begins with the same."""
    user, taste = who
    rng, found = np.random.default_rng(user), {}
    pairs, p = answers(study.compared, taste, max(COUNTS), rng)

    def note(setting: str, head: str, count: int, own: Taste) -> None:
        kept = tuple(still(own, *study.robustness[kind]) for kind in KINDS)
        found[setting, head, count] = Measured(held_out_accuracy(own, study.held_out, taste), kept)

    copies = {ROBUST: study.copies, FREE: None}
    for count, setting in itertools.product(COUNTS, copies):
        asked, order = (study.compared, pairs[:count], p[:count]), copies[setting]
        note(setting, "base", count, fit(*asked, study.prior, copies=order))
        note(setting, "scratch", count, fit(*asked, base=False, copies=order))
    for asked in with_suggestions(study, taste, pairs[:FIRST], p[:FIRST], rng):
        for setting, order in copies.items():
            own = fit(study.compared, *asked, study.prior, copies=order)
            note(setting, "suggested", len(asked[0]), own)
    return Result(taste, user, found)


def with_suggestions(
    study: Study, taste: int, pairs: Tensor, p: Tensor, rng: np.random.Generator
) -> Iterator[tuple[Tensor, Tensor]]:
    """Comparisons with pairs chosen as the voting page does: a share of them at random."""
    compared = study.compared
    for count in SUGGESTED:
        while len(pairs) < count:
            own = fit(compared, pairs, p, study.prior)
            more = min(count - len(pairs), int(ROUND * len(pairs)), AT_ONCE)
            guided, seed = round(more * (1 - RANDOM_SHARE)), int(rng.integers(2**31))
            suggested = suggest_for(own, *compared[:2], pairs, guided, seed)
            drawn = random_pairs(len(compared.scores), more - guided, rng)
            fresh = torch.cat([suggested, drawn])
            p = torch.cat([p, votes(compared.tastes[:, taste], fresh, rng)])
            pairs = torch.cat([pairs, fresh])
        yield pairs, p


if __name__ == "__main__":
    main()
