"""Does a scorer put a picture above its own spoiled copy? JPEG and low resolution.

The two tasks of JoyQuality's training (https://github.com/fpgaminer/joyquality), which a scorer
loses easily when it is trained further: an original against its JPEG at a third of the size, and an
original of at most 1024 pixels a side against itself scaled down and up again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from ..scorers import Scorer
from ..scorers.corruptions import CORRUPTIONS, NotCompressible
from ..scorers.decode import read_picture
from .bootstrap import LEVEL, Interval, wilson

TASKS = ("jpeg", "low_resolution")
LARGEST = 1024  # pixels of the longer side, of what low resolution is made of

Cell = tuple[str, int, int]  # kind, which image, 0 for the original or 1 for the copy


@dataclass(frozen=True)
class Task:
    """One kind of corruption.

    Attributes:
        n: how many pictures were judged, one pair each.
        accuracy: the share of originals that score strictly higher; NaN without any.
        interval: Wilson's; the pictures are independent.
        drop: the median fall of the score from original to copy.
        skipped: pictures that could not be read, or that no JPEG quality makes so small.
    """

    n: int
    accuracy: float
    interval: Interval
    drop: float
    skipped: int


def robustness(
    scorer: Scorer,
    images: Sequence[Path],
    kinds: Iterable[str] = TASKS,
    *,
    seed: int = 0,
    level: float = LEVEL,
    batch_size: int | None = None,
    progress: bool | None = False,
) -> dict[str, Task]:
    """Scores pictures and one spoiled copy of each and kind, seeded by the file's name and `seed`.

    Args:
        kinds: of `scorers.corruptions.CORRUPTIONS`.
        progress: as `tqdm`'s `disable` turned round; None shows a bar on a terminal.
    """
    kinds = list(kinds)
    if unknown := set(kinds) - CORRUPTIONS.keys():
        raise ValueError(
            f"no such corruption: {unknown.pop()} (there are {', '.join(CORRUPTIONS)})"
        )
    made: list[list[Cell]] = []  # what the score of each picture is put into
    results = scorer.score_iter(_pictures(images, kinds, seed, made, progress), batch_size)
    scores = [result.score for result in results]
    found = {kind: np.full((len(images), 2), np.nan) for kind in kinds}
    for cells, score in zip(made, scores, strict=True):
        for kind, *cell in cells:
            found[kind][tuple(cell)] = score
    return {kind: _task(pairs, level) for kind, pairs in found.items()}


def _task(pairs: np.ndarray, level: float) -> Task:
    """Of scores [N, 2]: original, copy."""
    judged = pairs[np.isfinite(pairs).all(1)]
    n, skipped = len(judged), len(pairs) - len(judged)
    if not n:
        return Task(0, np.nan, (np.nan, np.nan), np.nan, skipped)
    fall = judged[:, 0] - judged[:, 1]
    accuracy = float((fall > 0).mean())
    return Task(n, accuracy, wilson(accuracy, n, level), float(np.median(fall)), skipped)


def _pictures(
    images: Sequence[Path],
    kinds: Sequence[str],
    seed: int,
    made: list[list[Cell]],
    progress: bool | None,
) -> Iterator[Image.Image]:
    """Originals and copies, one at a time; its cells go to `made` when a picture is given."""
    disable = None if progress is None else not progress
    for i, path in enumerate(tqdm(images, unit="image", desc="robustness", disable=disable)):
        try:
            original = Image.fromarray(read_picture(path).permute(1, 2, 0).numpy())
        except (OSError, ValueError):
            continue
        capped = _capped(original)
        bases = {kind: capped if kind == "low_resolution" else original for kind in kinds}
        # Most pictures are small enough for both tasks: then they are scored once.
        for base in {id(base): base for base in bases.values()}.values():
            made.append([(kind, i, 0) for kind in kinds if bases[kind] is base])
            yield base
        for kind, base in bases.items():
            try:
                copy = CORRUPTIONS[kind](base, Random(f"{seed}:{path.name}"))
            except NotCompressible:
                continue
            made.append([(kind, i, 1)])
            yield copy


def _capped(picture: Image.Image) -> Image.Image:
    """As upstream: at most 1024 pixels a side, with Lanczos."""
    scale = LARGEST / max(picture.size)
    if scale >= 1:
        return picture
    return picture.resize([max(1, int(side * scale)) for side in picture.size], Image.LANCZOS)
