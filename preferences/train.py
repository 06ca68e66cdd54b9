"""Comparisons and a base scorer in, a personal scorer's folder out: embed once, fit a convex problem."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scorers import load_scorer
from ..scorers.base import Scorer
from ..scorers.calibration import own_tau
from ..scorers.checkpoint import read_config
from ..scorers.personal import (
    PersonalScorer,
    base_entry,
    check_base,
    head_state,
    require_features,
)
from ..scorers.personal_files import is_free, is_trained, write_personal
from ..wording import counted
from .comparisons import Comparisons, read_noting
from .destination import check_free
from .embeddings import Progress, base_scores, contents_of, embed_images
from .entries import calibration_entry, data_entry
from .evaluation import card_metrics
from .keeping import kept_copies
from .problems import apart_from, first_copies, learned_by, learned_of, problems
from .split import split
from .taste import Taste, fit_taste
from .trained import Trained
from .weighing import repeats

SAME = "same"


@torch.inference_mode(False)
def train(
    comparisons: Comparisons | str | os.PathLike,
    base: str | os.PathLike = "nano",
    out: str | os.PathLike = "my-taste",
    *,
    voter: str | None = None,
    test: Comparisons | None = None,
    test_fraction: float = 0.1,
    name: str | None = None,
    seed: int = 0,
    robust: bool = True,
    device: str | None = None,
    overwrite: bool | str = False,
    load: Callable[[Sequence[Path]], Scorer] | None = None,
    progress: bool | Progress = True,
) -> Trained:
    """Fits a personal head to comparisons and writes it to the folder `out`.

    `finetune` trains the whole base instead, which takes thousands of comparisons.

    The held-out part only measures; images that it shares with the rest are taken out of it. Where
    nothing is held out, cross-validation measures.

    Args:
        comparisons: or a file of them: JSON, CSV, or a store of votes.
        base: a scorer with an embedding: a name, a folder or a hub id.
        voter: of a store of votes, whose; needed where it holds those of several.
        test: comparisons to hold out; by default the file's own, else `test_fraction` of all.
        test_fraction: in [0, 1); 0 holds nothing out.
        name: what the card calls it; by default the folder's name.
        robust: JPEG and low-resolution copies of at most 1,024 of the images must stay below them, as
            far as the base knows it. Costs up to seven points of accuracy, four on the mean, most
            where the taste does not mind (`benchmarks/preferences.md`).
        overwrite: replace the scorer that training wrote to `out` before, at once; "same": only if it
            was made of the same comparisons and base, with the same `robust`.
        load: loads the base, given the images that it will see; by default `load_scorer`, on `device`.
        progress: as `embed_images` takes it.

    Raises:
        ValueError: too few comparisons, images that are missing, a base without an embedding.
        FileExistsError: `out` holds something already.
    """
    folder = Path(out).absolute()
    check_base(base)
    check_free(folder, bool(overwrite))
    learned = learned_by(base)
    kept, held, dropped, notes = prepared(
        comparisons, test, test_fraction, seed, voter, learned=learned
    )
    images = [*kept.images, *(held.images if held else ())]
    scorer = load(images) if load else load_scorer(base, device=device)
    require_features(scorer)
    entry = {
        "tastemaker": "personal",
        "name": name or folder.name,
        "base": base_entry(base, scorer.card),
        "data": data_entry(scorer, kept, held),
    }
    check_bases(folder, scorer, entry["base"])
    if overwrite == SAME:
        _check_same(folder, entry, robust)
    embedded = embed_images(scorer, images, progress=progress)
    scores, n = base_scores(scorer, embedded), len(kept.images)
    order = kept_copies(scorer, kept.images, seed, progress=progress) if robust else None
    how = {"unit": own_tau(scorer.card), "prior": scorer.head_prior, "kept": order, "seed": seed}
    taste = fit_taste(embedded[:n], scores[:n], kept, **how)
    if held:
        measured = _held_out(scorer, taste, embedded[n:], scores[n:], held)
    else:
        measured = _cross_validated(scorer, taste, scores, kept)
    metrics, calibration, difference, p = measured
    state = head_state(taste.weight, taste.center, taste.gain, taste.bias)
    entry |= {
        "metrics": metrics,
        "calibration": calibration,
        "training": {"penalty": str(taste.chosen.penalty), "seed": seed, "robust": robust},
    }
    seen = learned.union(contents_of(scorer, kept.images))
    made = PersonalScorer(scorer, state, write_personal(folder, entry, state, seen))
    about = (metrics, taste.chosen.penalty, dropped, notes)
    return Trained(made, folder, *about, difference.numpy(), p.numpy())


def _check_same(folder: Path, entry: dict[str, Any], robust: bool) -> None:
    """FileExistsError if the folder holds what was made of something else."""
    if is_free(folder):
        return
    there = read_config(folder) if is_trained(folder) else {}
    same = there.get("training", {}).get("robust") == robust
    if not same or any(there.get(key) != value for key, value in entry.items()):
        raise FileExistsError(
            f"{folder} was made of other comparisons, another base or another choice of robust: "
            "choose another name, or overwrite it"
        )


def check_bases(folder: Path, scorer: Scorer, said: dict[str, Any]) -> None:
    """ValueError if the folder is that of the base, or of what the base rests on."""
    while True:
        where = said["load"]
        if os.path.isabs(where) and os.path.realpath(where) == os.path.realpath(folder):
            raise ValueError(f"{folder} is what the base rests on: write to another folder")
        if not isinstance(scorer, PersonalScorer):
            return
        scorer, said = scorer.base, scorer.config["base"]


def prepared(
    comparisons: Comparisons | str | os.PathLike,
    test: Comparisons | None,
    test_fraction: float,
    seed: int,
    voter: str | None = None,
    *,
    learned: Collection[bytes] = (),
) -> tuple[Comparisons, Comparisons | None, int, list[str]]:
    """What to train on, what to hold out, how many were left out between them, and what was noticed.

    Args:
        learned: the hashes of what the base was trained on: nothing is measured on those images, as far
            as there are others.

    Raises:
        ValueError: images that are missing or no pictures; comparisons that cannot be divided.
    """
    lines: list[str] = []
    if not isinstance(comparisons, Comparisons):
        comparisons, own, lines = read_noting(comparisons, voter)
        test = own if test is None else test
    found = problems(comparisons, test)
    lines += found.lines()
    if found.faults:
        raise ValueError(found.faults)
    same = first_copies([*comparisons.images, *(test.images if test is not None else ())])
    if copies := [image for image, first in same.items() if image != first]:
        lines.append(f"{len(copies)} copies of others, one image each: {copies[0]}")
        comparisons = comparisons.merged(same)
        test = None if test is None else test.merged(same)
    comparisons, test = _of_two(comparisons, test, lines)
    dropped = 0
    if test is not None:
        dropped = len(test)
        test = apart_from(set(comparisons.images), test)
        dropped -= len(test)
    elif test_fraction:
        comparisons, test, dropped = _split(comparisons, test_fraction, seed)
    test = _unlearned(learned, comparisons, test, lines)
    return comparisons, test or None, dropped, lines


def _of_two(
    comparisons: Comparisons, test: Comparisons | None, lines: list[str]
) -> tuple[Comparisons, Comparisons | None]:
    """Both without those of an image with itself, and a line on them."""
    found, tested = comparisons.of_two(), None if test is None else test.of_two()
    if count := len(comparisons) - len(found) + len(test or ()) - len(tested or ()):
        lines.append(f"left out: {counted(count, 'comparison')} of an image with itself")
    if not len(found):
        raise ValueError("there is no comparison of two different images")
    return found, tested


def _unlearned(
    learned: Collection[bytes], fitted: Comparisons, test: Comparisons | None, lines: list[str]
) -> Comparisons | None:
    """The test without what the base learned from, and a line on it; one, too, where none is left."""
    if test:
        found = apart_from(learned_of(test.images, learned), test)
        if count := len(test) - len(found):
            lines.append(
                f"left out: {counted(count, 'held-out comparison')} of images that the base was trained on"
            )
        test = found
    apart = fitted if test else apart_from(learned_of(fitted.images, learned), fitted)
    if count := len(fitted) - len(apart):
        lines.append(
            f"the base was trained on images of {count} of {len(fitted)} comparisons: what is measured "
            "flatters it"
        )
    return test


def _split(
    comparisons: Comparisons, fraction: float, seed: int
) -> tuple[Comparisons, Comparisons, int]:
    try:
        return split(comparisons, fraction, seed)
    except ValueError as error:
        raise ValueError(
            f"{error}; or hold nothing out (--test-fraction 0), and cross-validation measures"
        ) from None


Measured = tuple[dict[str, Any], dict[str, float] | None, Tensor, Tensor]


def _held_out(
    scorer: Scorer, taste: Taste, embedded: Tensor, scores: Tensor, held: Comparisons
) -> Measured:
    """Metrics of the held-out comparisons, the base's too; the calibration for ranks; the
    differences [P] of the held-out scores, and p [P]."""
    after = taste(embedded, scores)
    difference, before = (_difference(each, held) for each in (after, scores))
    metrics = {
        "held_out": card_metrics(difference, held.p, held.pairs),
        "base": card_metrics(before, held.p, held.pairs, tau=own_tau(scorer.card)),
    }
    return metrics, calibration_entry(after, held), difference, held.p


def _cross_validated(scorer: Scorer, taste: Taste, scores: Tensor, kept: Comparisons) -> Measured:
    """The same by cross-validation, each fold's from what was fitted without its images.

    The intervals do not know that the folds' heads share most of what they were fitted to: a little narrow.
    """
    difference, p, of = taste.chosen.difference, taste.chosen.p, taste.chosen.of
    if not len(p):
        return {}, None, difference, p
    judged = kept.take(of.unique().tolist())  # those between folds never are
    before = _difference(scores, judged)
    before = card_metrics(before, judged.p, judged.pairs, tau=own_tau(scorer.card))
    metrics = {"cross_validated": card_metrics(difference, p, kept.pairs, of=of), "base": before}
    # Folds are repeated where there are few; each comparison about once, or intervals are too narrow.
    once = math.ceil(len(p) / repeats(len(kept)))
    return metrics, None, difference[:once], p[:once]


def _difference(scores: Tensor, comparisons: Comparisons) -> Tensor:
    """Left minus right [P] of scores [N]."""
    left, right = comparisons.pairs.T
    return scores[left] - scores[right]
