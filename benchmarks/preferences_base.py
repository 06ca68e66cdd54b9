"""What a base brings, by how much it knows of a taste; writes preferences_base.md.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python benchmarks/preferences_base.py

The pictures and tastes of `simulated.py`. A base brings its score and, where it has one, its
`head_prior`. Here nano stands beside parts of itself: its score alone; its prior alone; and both, the
prior made of no statistic that the three tastes are made of. And beside a base that was taught other
tastes: a head on nano's features, from comparisons of the two tastes that the user does not have.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tastes
import torch
from measure import machine, table
from preferences_report import mean_and_interval
from simulated import (
    Images,
    Study,
    answers,
    arguments,
    cached,
    fit,
    held_out_accuracy,
    judged,
    random_pairs,
    split,
    votes,
)
from torch import Tensor
from tqdm import tqdm

from tastemaker.scorers import load_scorer
from tastemaker.training import head_prior
from tastemaker.training.head_prior import Settings

OUT = Path(__file__).with_suffix(".md")
COUNTS = (25, 50, 100, 150, 200, 1000)
FIRST_USER = 4000  # nothing was chosen on these
# What the three tastes are made of: their pixels' tone, colour, detail, and what spoils them.
INGREDIENTS = ("faults", "mean", "deviation", "quantile", "detail")
TAUGHT, TEACHER = 2500, 77  # comparisons of each of the two other tastes; their seed


class Base(NamedTuple):
    """A base as the pictures show it, and what it brings."""

    compared: Images
    held_out: Images
    score: bool = True
    prior: Tensor | None = None


def main() -> None:
    options = arguments(__doc__)
    study = cached(options)
    other = other_prior(options.sources)
    users = range(FIRST_USER, FIRST_USER + options.users)
    rows = [row(name, base, taste, users) for taste, name, base in bases(study, other)]
    head = HEAD.format(machine(torch.device("cpu")), len(users), users[0], users[-1], TAUGHT)
    header = ["taste", "base", "it alone, %", *map(str, COUNTS)]
    OUT.write_text(head + table(header, rows), encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def other_prior(sources: list[Path]) -> Tensor:
    """One that is made like nano's, but of no ingredient of the three tastes."""
    scorer, settings = load_scorer("nano", device="cpu"), Settings()
    crops = head_prior.made(scorer, split(sources)[0], settings)
    return head_prior.head_prior(crops, settings, INGREDIENTS)


def bases(study: Study, other: Tensor) -> Iterator[tuple[int, str, Base]]:
    pictures = study.compared, study.held_out
    for taste in range(len(tastes.TASTES)):
        yield taste, "nano's score", Base(*pictures)
        yield taste, "nano's prior", Base(*pictures, False, study.prior)
        yield taste, "nano", Base(*pictures, True, study.prior)
        yield taste, "nano, other statistics", Base(*pictures, True, other)
        yield taste, "the other two tastes", Base(*taught(pictures, taste), True, study.prior)


def taught(pictures: tuple[Images, Images], taste: int) -> tuple[Images, ...]:
    """The same pictures, with the scores of a head that learned the other tastes."""
    compared, rng = pictures[0], np.random.default_rng(TEACHER)
    others = [other for other in range(len(tastes.TASTES)) if other != taste]
    pairs = [random_pairs(len(compared.scores), TAUGHT, rng) for _ in others]
    said = [votes(compared.tastes[:, t], p, rng) for t, p in zip(others, pairs, strict=True)]
    head = fit(compared, torch.cat(pairs), torch.cat(said))
    return tuple(each._replace(scores=judged(head, each)) for each in pictures)


def row(name: str, base: Base, taste: int, users: range) -> list[str]:
    who = list(tastes.TASTES)[taste]
    gained = np.array([gains(base, taste, user) for user in tqdm(users, desc=f"{who}, {name}")])
    cells = [mean_and_interval(each) for each in gained.T]
    alone = 100 * held_out_accuracy(None, base.held_out, taste)
    told = f"{alone:.1f}" if base.score else ""
    return [who, name, told, *(f"{100 * m:+.1f} ± {100 * h:.1f}" for m, h in cells)]


def gains(base: Base, taste: int, user: int) -> list[float]:
    """What the base adds to the held-out accuracy of a head from scratch, by count."""
    found = []
    pairs, p = answers(base.compared, taste, max(COUNTS), np.random.default_rng(user))
    for count in COUNTS:
        asked = base.compared, pairs[:count], p[:count]
        own, scratch = fit(*asked, base.prior, base.score), fit(*asked, base=False)
        after = held_out_accuracy(own, base.held_out, taste)
        found.append(after - held_out_accuracy(scratch, base.held_out, taste))
    return found


HEAD = """# What a base brings

Made by `python benchmarks/preferences_base.py`: {}.

The pictures and tastes of [preferences.md](preferences.md); {} users of each taste, {} to {}, on whom nothing
was chosen. Percentage points of held-out accuracy that a base adds to a head from scratch, by the
number of comparisons; ± is the 95 % interval of the mean over users. *It alone*: how much of the
taste its score orders right before any comparison; 50 is chance.

- *nano's score*: a head that may start from it. *nano's prior*: one that knows what the tastes of others
  weigh nano's features by (`training/head_prior.py`). *nano*: both, as `train(robust=False)` fits it.
- *nano, other statistics*: both, but the prior made without what the three tastes are made of, the
  faults, tone, and the amount of detail: of skewness, kurtosis, entropy, layout, evenness and direction.
- *the other two tastes*: a head on nano's features that was taught {} comparisons of each; its score, and
  nano's prior.

"""

if __name__ == "__main__":
    main()
