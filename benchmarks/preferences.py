"""How few comparisons a personal scorer needs, measured with simulated users; writes preferences.md.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python benchmarks/preferences.py

The users, their three tastes and the pictures that they compare are in `tastes.py`, which was
written, with all its constants, before anything was measured.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tastes  # noqa: E402

from tastemaker.preferences.asking import FIRST, RANDOM_SHARE  # noqa: E402
from tastemaker.preferences.comparisons import Comparisons  # noqa: E402
from tastemaker.preferences.keeping import PICTURES  # noqa: E402
from tastemaker.preferences.suggest import suggest_for  # noqa: E402
from tastemaker.preferences.taste import Kept, Taste, fit_taste  # noqa: E402
from tastemaker.scorers import load_scorer  # noqa: E402
from tastemaker.scorers.corruptions import CORRUPTIONS, NotCompressible  # noqa: E402
from tastemaker.training.judging import as_tensor  # noqa: E402
from tastemaker.training.nano import trained_on  # noqa: E402
from tastemaker.training.pictures import Picture, unseen, usable_pictures  # noqa: E402

COUNTS = (25, 50, 100, 150, 200, 375, 500, 750, 1000, 20000)
SUGGESTED = (100, 150, 200, 375, 500, 750, 1000)
KEPT = (50, 200, 1000, 20000)
KINDS = ("jpeg", "low_resolution")
VERSIONS, HELD_OUT_VERSIONS = 6, 8  # of each picture
FIRST_USER = 3000  # whose luck no constant was chosen on: those were, on users 100 to 123
TESTED = 20_000  # held-out pairs
DRAWS = 2  # low-resolution copies of each held-out picture
ROUND, AT_ONCE = 0.4, 50  # more comparisons, at most, before the head is fitted and suggests anew


class Images(NamedTuple):
    """N versions of pictures: what nano makes of them, and what each user thinks of them."""

    embeddings: Tensor  # [N, D] float64
    scores: Tensor  # [N] float64
    tastes: Tensor  # [N, 3] float64


class Study(NamedTuple):
    compared: Images
    prior: Tensor  # [128, R], nano's `head_prior`
    copies: tuple[Tensor, Kept]  # spoiled copies of some compared ones: of which [A], and both
    held_out: Images
    robustness: dict[str, tuple[Images, Images]]  # originals, copies


class Result(NamedTuple):
    """One user. Accuracies on held-out pairs, by how the head was trained, and by count."""

    taste: int
    user: int
    accuracy: dict[str, dict[int, float]]  # "base", "scratch", "suggested", "kept"
    robustness: dict[str, dict[int, tuple[float, ...]]]  # of "base" and "kept", of each kind


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="wheels or folders of pictures")
    parser.add_argument("--users", type=int, default=24, help="of each taste, with other luck")
    parser.add_argument("--cache", type=Path, help="keep the embedded pictures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = cached(options.sources, options.cache)
    users = range(FIRST_USER, FIRST_USER + options.users)
    everyone = tqdm(list(itertools.product(users, range(3))))
    results = [measure(study, taste, user) for user, taste in everyone]
    import preferences_report

    preferences_report.write(study, results)


def cached(sources: Sequence[Path], cache: Path | None) -> Study:
    if cache and cache.exists():
        return torch.load(cache, weights_only=False)  # this script's own file
    study = build_study(sources)
    if cache:
        torch.save(study, cache)
    return study


def build_study(sources: Sequence[Path]) -> Study:
    """The pictures that nano was trained on are compared, those that it never saw are held out."""
    known, fresh = split(sources)
    shown = versions(known, VERSIONS)
    compared = images(shown)
    return Study(
        compared,
        load_scorer("nano", device="cpu").head_prior,
        kept_copies(compared, shown),
        images(versions(fresh, HELD_OUT_VERSIONS)),
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
    return which, Kept(better[0], worse.embeddings, better[1], worse.scores, which)


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


def measure(study: Study, taste: int, user: int) -> Result:
    """The same comparisons for "base", "scratch" and "kept"; "suggested" begins with the same."""
    (compared, prior), rng = study[:2], np.random.default_rng(user)
    pairs = random_pairs(len(compared.scores), max(COUNTS), rng)
    p = votes(compared.tastes[:, taste], pairs, rng)
    accuracy = {"base": {}, "scratch": {}, "suggested": {}, "kept": {}}
    robustness = {"base": {}, "kept": {}}

    def note(how: str, count: int, own: Taste, base: bool = True) -> None:
        accuracy[how][count] = held_out_accuracy(own, study.held_out, taste, base)
        if how in robustness:
            robustness[how][count] = tuple(still(own, *study.robustness[k]) for k in KINDS)

    for count in COUNTS:
        asked = pairs[:count], p[:count]
        note("base", count, fit(compared, *asked, prior))
        note("scratch", count, fit(compared, *asked, base=False), base=False)
        if count in KEPT:
            note("kept", count, fit(compared, *asked, prior, copies=study.copies))
    for count, own in with_suggestions(study, taste, pairs[:FIRST], p[:FIRST], rng):
        note("suggested", count, own)
    return Result(taste, user, accuracy, robustness)


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
        kept = copies[1].take(mine)
    comparisons = Comparisons(names, index, p)
    return fit_taste(compared.embeddings[used], scores, comparisons, kept=kept, prior=prior)


def with_suggestions(
    study: Study, taste: int, pairs: Tensor, p: Tensor, rng: np.random.Generator
) -> Iterator[tuple[int, Taste]]:
    """(count, taste) with pairs chosen as the voting page does: a share of them at random."""
    compared, prior = study[:2]
    for count in SUGGESTED:
        while len(pairs) < count:
            own = fit(compared, pairs, p, prior)
            more = min(count - len(pairs), int(ROUND * len(pairs)), AT_ONCE)
            guided, seed = round(more * (1 - RANDOM_SHARE)), int(rng.integers(2**31))
            suggested = suggest_for(own, *compared[:2], pairs, guided, seed)
            fresh = random_pairs(len(compared.scores), more - guided, rng)
            fresh = torch.cat([suggested, fresh])
            p = torch.cat([p, votes(compared.tastes[:, taste], fresh, rng)])
            pairs = torch.cat([pairs, fresh])
        yield count, fit(compared, pairs, p, prior)


def random_pairs(n: int, count: int, rng: np.random.Generator) -> Tensor:
    a = rng.integers(0, n, count)
    b = (a + rng.integers(1, n, count)) % n
    return torch.from_numpy(np.stack([a, b], 1))


def votes(taste: Tensor, pairs: Tensor, rng: np.random.Generator) -> Tensor:
    """1 for the left one, 0 for the right one; a share of them the opposite of what was meant."""
    meant = taste[pairs[:, 0]] > taste[pairs[:, 1]]
    slipped = torch.from_numpy(rng.random(len(pairs)) < tastes.FLIPS)
    return (meant ^ slipped).double()


def held_out_accuracy(own: Taste | None, held_out: Images, taste: int, base: bool = True) -> float:
    """Share of held-out pairs that are ordered as the taste does. Without `own`: nano's."""
    pairs = random_pairs(len(held_out.scores), TESTED, np.random.default_rng(2**32))
    given = held_out.scores if base else None
    scores = held_out.scores if own is None else own(held_out.embeddings, given)
    ours, theirs = ((s[pairs[:, 0]] > s[pairs[:, 1]]) for s in (scores, held_out.tastes[:, taste]))
    return (ours == theirs).double().mean().item()


def still(own: Taste | None, originals: Images, copies: Images, base: bool = True) -> float:
    """Share of originals that score above their copies. Without `own`: by nano's scores."""
    scored = [
        s.scores if own is None else own(s.embeddings, s.scores if base else None)
        for s in (originals, copies)
    ]
    return (scored[0] > scored[1]).double().mean().item()


if __name__ == "__main__":
    main()
