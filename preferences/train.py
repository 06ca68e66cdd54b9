"""Comparisons and a base scorer in, a personal scorer's folder out: embed once, fit a convex problem."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..ranking import Calibration
from ..scorers import load_scorer
from ..scorers.base import Scorer
from ..scorers.calibration import own_tau
from ..scorers.checkpoint import read_config, write_checkpoint
from ..scorers.personal import base_entry, head_state, require_features, score_features
from .comparisons import Comparisons, read_comparisons
from .embeddings import embed_images
from .finetune import data_entry
from .metrics import pair_metrics, verdicts
from .problems import first_copies, problems, without
from .split import split
from .taste import Taste, fit_taste


@dataclass
class Trained:
    """What `train` made.

    Attributes:
        scorer: opened from `folder`, as `load_scorer(folder)` opens it.
        metrics: of the held-out comparisons: "held_out" of this scorer, "base" of its base.
        penalty: the weight that cross-validation chose; infinite leaves the base's own order.
        dropped: comparisons between images of both parts, which were left out.
        notes: what was noticed about the comparisons, a line each.
    """

    scorer: Scorer
    folder: Path
    metrics: dict[str, Any]
    penalty: float
    dropped: int
    notes: list[str]


def train(
    comparisons: Comparisons | str | os.PathLike,
    base: str | os.PathLike = "nano",
    out: str | os.PathLike = "my-taste",
    *,
    test: Comparisons | None = None,
    test_fraction: float = 0.1,
    name: str | None = None,
    seed: int = 0,
    device: str | None = None,
    overwrite: bool = False,
    progress: bool = True,
) -> Trained:
    """Fits a personal head to comparisons and writes it to the folder `out`.

    The held-out part only measures; images that it shares with the rest are taken out of it.

    Args:
        comparisons: or a file of them: JSON, CSV, or a store of votes.
        base: a scorer with an embedding: a name, a folder or a hub id.
        test: comparisons to hold out; by default the file's own, else `test_fraction` of all.
        test_fraction: in [0, 1); 0 holds nothing out, and nothing is measured.
        name: what the card calls it; by default the folder's name.
        overwrite: replace the personal scorer that `out` holds.

    Raises:
        ValueError: too few comparisons, images that are missing, a base without an embedding.
        FileExistsError: `out` holds something already.
    """
    folder = Path(out).absolute()
    _check_free(folder, overwrite)
    kept, held, dropped, notes = prepared(comparisons, test, test_fraction, seed)
    scorer = load_scorer(base, device=device)
    require_features(scorer)
    embedded = embed_images(scorer, kept.images, progress=progress)
    scores = base_scores(scorer, embedded)
    taste = fit_taste(embedded, scores, kept, unit=own_tau(scorer.card), seed=seed)
    metrics, calibration = _measured(scorer, taste, held, progress)
    entry = {
        "tastemaker": "personal",
        "name": name or folder.name,
        "base": base_entry(base, scorer.card),
        "data": data_entry(kept, held),
        "metrics": metrics,
        "calibration": calibration,
        "training": {"penalty": str(taste.chosen.penalty), "seed": seed},
    }
    state = head_state(taste.weight, taste.center, taste.gain, taste.bias)
    write_checkpoint(folder, entry, state)
    made = load_scorer(folder, device=device)
    return Trained(made, folder, metrics, taste.chosen.penalty, dropped, notes)


def _check_free(folder: Path, overwrite: bool) -> None:
    """FileExistsError unless the folder is new, empty, or a personal scorer's to be overwritten."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    if not overwrite:
        raise FileExistsError(f"{folder} holds something already: choose another, or overwrite it")
    if read_config(folder).get("tastemaker") != "personal":
        raise FileExistsError(f"{folder} holds no personal scorer, so it is not overwritten")


def prepared(
    comparisons: Comparisons | str | os.PathLike,
    test: Comparisons | None,
    test_fraction: float,
    seed: int,
) -> tuple[Comparisons, Comparisons | None, int, list[str]]:
    """What to train on, what to hold out, how many were left out between them, and what was noticed.

    Raises:
        ValueError: images that are missing; comparisons that cannot be divided.
    """
    if not isinstance(comparisons, Comparisons):
        comparisons, own = read_comparisons(Path(comparisons))
        test = own if test is None else test
    found = problems(comparisons, test)
    lines = list(found.lines())
    if found.missing:
        raise ValueError(lines[0])
    same = first_copies([*comparisons.images, *(test.images if test is not None else ())])
    if copies := [image for image, first in same.items() if image != first]:
        lines.append(f"{len(copies)} copies of others, one image each: {copies[0]}")
        comparisons = comparisons.merged(same)
        test = None if test is None else test.merged(same)
    dropped = 0
    if test is not None:
        dropped = len(test)
        test = without(comparisons, test)
        dropped -= len(test)
    elif test_fraction:
        comparisons, test, dropped = split(comparisons, test_fraction, seed)
    return comparisons, test if test is not None and len(test) else None, dropped, lines


@torch.no_grad()
def base_scores(scorer: Scorer, embedded: Tensor) -> Tensor:
    """The base's own scores [N] float64, of embeddings [N, D]."""
    parts = [score_features(scorer, part.to(scorer.device)) for part in embedded.split(4096)]
    return torch.cat(parts).double().cpu()


def _measured(
    scorer: Scorer, taste: Taste, held: Comparisons | None, progress: bool
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Metrics of the held-out comparisons, the base's too, and the calibration for ranks."""
    if held is None:
        return {}, None
    embedded = embed_images(scorer, held.images, progress=progress)
    before = base_scores(scorer, embedded)
    after = taste(embedded, before)
    metrics = {"held_out": _metrics(after, held), "base": _metrics(before, held)}
    try:
        calibration = Calibration.fit(after.float(), held.pairs, held.p).to_dict()
    except ValueError:  # the comparisons say nothing about it, or never contradict the scores
        calibration = None
    return metrics, calibration


def _metrics(scores: Tensor, held: Comparisons) -> dict[str, Any]:
    left, right = held.pairs.T
    difference = (scores[left] - scores[right]).numpy()
    found = {k: float(v) for k, v in pair_metrics(difference, held.p.numpy()).items()}
    decided = int(verdicts(difference, held.p.numpy()).decided.sum())
    return {k: v for k, v in found.items() if v == v} | {"decided": decided}
