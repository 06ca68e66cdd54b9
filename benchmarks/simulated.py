"""What the benchmarks of preferences share: pictures as nano sees them, and users who compare them.

The users' tastes and the pictures' versions are in `tastes.py`. A head is fitted as `tastemaker train`
fits it, and judged on pictures that nano never saw.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import tastes
import torch
from torch import Tensor
from tqdm import tqdm

from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.keeping import PICTURES
from tastemaker.preferences.taste import Kept, Taste, fit_taste
from tastemaker.scorers import load_scorer
from tastemaker.scorers.corruptions import CORRUPTIONS, NotCompressible
from tastemaker.training.judging import as_tensor
from tastemaker.training.nano import trained_on
from tastemaker.training.pictures import Picture, unseen, usable_pictures

ROBUST, FREE = "default", "--no-robust"  # how `tastemaker train` is called
KINDS = ("jpeg", "low_resolution")
VERSIONS, HELD_OUT_VERSIONS = 6, 8  # of each picture
TESTED = 20_000  # held-out pairs
DRAWS = 2  # low-resolution copies of each held-out picture


class Images(NamedTuple):
    """N versions of pictures: what nano makes of them, and what each user thinks of them."""

    embeddings: Tensor  # [N, D] float64
    scores: Tensor  # [N] float64
    tastes: Tensor  # [N, 3] float64


class Study(NamedTuple):
    compared: Images
    held_out: Images
    prior: Tensor  # [128, R], nano's `head_prior`
    copies: tuple[Tensor, Kept]  # spoiled copies of some compared ones: of which [A], and both
    robustness: dict[str, tuple[Images, Images]]  # originals, copies


def arguments(description: str) -> argparse.Namespace:
    """What every one of these scripts is asked; torch is left with one thread."""
    parser = argparse.ArgumentParser(description=description.split("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="wheels or folders of pictures")
    parser.add_argument("--users", type=int, default=24, help="of each taste, with other luck")
    parser.add_argument("--cache", type=Path, help="keep the embedded pictures here")
    torch.set_num_threads(1)
    return parser.parse_args()


def cached(options: argparse.Namespace) -> Study:
    if options.cache and options.cache.exists():
        return torch.load(options.cache, weights_only=False)  # written by the lines below
    study = build_study(options.sources)
    if options.cache:
        torch.save(study, options.cache)
    return study


def build_study(sources: Sequence[Path]) -> Study:
    """The pictures that nano was trained on are compared, those that it never saw are held out."""
    known, fresh = split(sources)
    shown = versions(known, VERSIONS)
    compared = images(shown)
    return Study(
        compared,
        images(versions(fresh, HELD_OUT_VERSIONS)),
        load_scorer("nano", device="cpu").head_prior,
        kept_copies(compared, shown),
        {kind: spoiled(fresh, kind) for kind in KINDS},
    )


def split(sources: Sequence[Path]) -> tuple[list[Picture], list[Picture]]:
    """The pictures that nano was trained on, and those that it never saw."""
    pictures, seen = usable_pictures(sources), trained_on()
    names = {picture.name for picture in seen}
    return [picture for picture in pictures if picture.name in names], unseen(pictures, seen)


def versions(pictures: Sequence[Picture], count: int) -> list[np.ndarray]:
    return [version.pixels for version in tastes.versions(pictures, count, 0)]


@torch.no_grad()
def images(pixels: Sequence[np.ndarray]) -> Images:
    scorer = load_scorer("nano", device="cpu")
    embeddings = torch.cat([scorer.embed(as_tensor(p)[None]) for p in tqdm(pixels)]).double()
    scores = embeddings @ scorer.head.weight[0].double() + scorer.head.bias.double()
    judged = [[taste(p) for taste in tastes.TASTES.values()] for p in pixels]
    return Images(embeddings, scores, torch.tensor(judged, dtype=torch.float64))


def kept_copies(compared: Images, pixels: Sequence[np.ndarray]) -> tuple[Tensor, Kept]:
    """Spoiled copies of every picture that is compared, where nano puts them below it."""
    which, copies = [], []
    for i, kind in itertools.product(range(len(pixels)), KINDS):
        try:
            copies.append(CORRUPTIONS[kind](pixels[i], Random(f"{kind}:{i}")))
            which.append(i)
        except NotCompressible:
            continue
    made, which = images(copies), torch.tensor(which)
    right = compared.scores[which] > made.scores
    which, worse = which[right], Images(*(value[right] for value in made))
    better = compared.embeddings[which], compared.scores[which]
    return which, Kept(better[0], worse.embeddings, better[1], worse.scores)


def spoiled(pictures: Sequence[Picture], kind: str) -> tuple[Images, Images]:
    """Clean crops, as users compare them, and their copies."""
    pairs = []
    for picture in pictures:
        for draw in range(DRAWS):
            rng = Random(f"robust:{picture.name}:{draw}")
            original = np.array(tastes.clean_crop(picture, rng))
            try:
                pairs.append((original, CORRUPTIONS[kind](original, rng)))
            except NotCompressible:
                continue
    originals, copies = zip(*pairs, strict=True)
    return images(originals), images(copies)


def random_pairs(n: int, count: int, rng: np.random.Generator) -> Tensor:
    a = rng.integers(0, n, count)
    b = (a + rng.integers(1, n, count)) % n
    return torch.from_numpy(np.stack([a, b], 1))


def votes(taste: Tensor, pairs: Tensor, rng: np.random.Generator) -> Tensor:
    """1 for the left one, 0 for the right one; a share of them the opposite of what was meant."""
    meant = taste[pairs[:, 0]] > taste[pairs[:, 1]]
    slipped = torch.from_numpy(rng.random(len(pairs)) < tastes.FLIPS)
    return (meant ^ slipped).double()


def answers(
    compared: Images, taste: int, count: int, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Random pairs [count, 2], and what a user of the taste says of them [count]."""
    pairs = random_pairs(len(compared.scores), count, rng)
    return pairs, votes(compared.tastes[:, taste], pairs, rng)


def fit(
    compared: Images,
    pairs: Tensor,
    p: Tensor,
    prior: Tensor | None = None,
    base: bool = True,
    copies: tuple[Tensor, Kept] | None = None,
) -> Taste:
    """As `tastemaker train` does it, on the pictures that were compared."""
    used, index = pairs.unique(return_inverse=True)
    names = tuple(Path(str(i)) for i in used.tolist())
    scores = compared.scores[used] if base else None
    kept = None
    if copies is not None:
        drawn = used[torch.randperm(len(used), generator=torch.Generator().manual_seed(0))]
        mine = torch.isin(copies[0], drawn[:PICTURES])
        kept = Kept(*(value[mine] for value in copies[1]))
    comparisons = Comparisons(names, index, p)
    return fit_taste(compared.embeddings[used], scores, comparisons, kept=kept, prior=prior)


def judged(own: Taste | None, images: Images) -> Tensor:
    """Scores [N] of a head, with a base or without. Without `own`: nano's."""
    if own is None:
        return images.scores
    return own(images.embeddings, None if own.view.gain is None else images.scores)


def held_out_accuracy(own: Taste | None, held_out: Images, taste: int) -> float:
    """Share of held-out pairs that are ordered as the taste does."""
    left, right = random_pairs(len(held_out.scores), TESTED, np.random.default_rng(2**32)).T
    ours, theirs = (s[left] > s[right] for s in (judged(own, held_out), held_out.tastes[:, taste]))
    return (ours == theirs).double().mean().item()


def still(own: Taste | None, originals: Images, copies: Images) -> float:
    """Share of originals that score above their copies."""
    return (judged(own, originals) > judged(own, copies)).double().mean().item()
