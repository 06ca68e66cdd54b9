"""Which pair a voter is asked about next."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from random import Random
from typing import NamedTuple

from .tables import columns_of, read_table

FIRST = 50  # votes before anything is suggested: fewer suggest worse than chance does
RANDOM_SHARE = 0.25  # of the pairs after that: the honest measure, and no taste is missed for good
SHARED = 0.25  # of the random pairs, where another voter judged some: only they tell how alike the two are

Pair = frozenset  # of two paths: whichever is left


class Next(NamedTuple):
    left: Path
    right: Path
    source: str  # queue, random, suggested, or shared: random, and judged by another voter


def read_queue(path: Path) -> list[tuple[Path, Path]]:
    """The pairs of a CSV with the columns left and right, in order, each once.

    Paths are relative to the file's folder. ValueError names the line that is no pair.
    """
    rows, header, _ = read_table(path)
    at = columns_of(header, ("left", "right"), path)
    folder, pairs = path.absolute().parent, {}
    for number, cells in rows:
        left, right = (cells[i] if i < len(cells) else "" for i in at)
        pair = _queued(left, right, folder, f"line {number} of {path}")
        pairs.setdefault(Pair(pair), pair)
    if not pairs:
        raise ValueError(f"{path} has no pairs")
    return list(pairs.values())


def _queued(left: str, right: str, folder: Path, where: str) -> tuple[Path, Path]:
    if not (left and right):
        raise ValueError(f"{where}: a pair needs left and right")
    paths = Path(os.path.abspath(folder / left)), Path(os.path.abspath(folder / right))
    if paths[0] == paths[1]:
        raise ValueError(f"{where}: {paths[0].name} with itself")
    return paths


def missing_files(pairs: Iterable[tuple[Path, Path]]) -> list[Path]:
    """Pictures of a queue that do not exist, each once."""
    return [path for path in dict.fromkeys(p for pair in pairs for p in pair) if not path.is_file()]


def next_in_queue(
    queue: Sequence[tuple[Path, Path]], taken: Collection[Pair], broken: Collection[Path]
) -> Next | None:
    """The first pair of the queue that is neither answered nor asked elsewhere."""
    for left, right in queue:
        if Pair((left, right)) not in taken and left not in broken and right not in broken:
            return Next(left, right, "queue")
    return None


def next_random(
    pictures: Sequence[Path], taken: Collection[Pair], broken: Collection[Path], rng: Random
) -> Next | None:
    """A pair of the pictures that were shown least, so that all come up; None if all are compared."""
    shown = Counter(path for pair in taken for path in pair)
    order = [path for path in pictures if path not in broken]
    for count in (8, len(order)):  # almost always two of the first few have not met
        few = heapq.nsmallest(count, order, key=lambda path: (shown[path], rng.random()))
        for i, left in enumerate(few):
            for right in few[i + 1 :]:
                if Pair((left, right)) not in taken:
                    return _shuffled(left, right, "random", rng)
    return None


def next_suggested(
    pictures: Sequence[Path],
    taken: Collection[Pair],
    broken: Collection[Path],
    rng: Random,
    suggest: Callable[[Collection[Pair], int], tuple[Path, Path] | None] | None,
    votes: int,
    judged: Sequence[tuple[Path, Path]] = (),
) -> Next | None:
    """A pair that `suggest` finds informative, except for a share of random ones.

    Without enough votes or suggestions, a random one. `suggest(taken, seed)` may return None.
    A share of the random ones are pairs that other voters `judged`, where there are any.
    """
    if suggest is not None and votes >= FIRST and rng.random() >= RANDOM_SHARE:
        pair = suggest(taken, rng.getrandbits(31))
        if pair and Pair(pair) not in taken and not any(path in broken for path in pair):
            return _shuffled(*pair, "suggested", rng)
    shared = next_shared(judged, taken, broken, rng)
    return shared or next_random(pictures, taken, broken, rng)


def next_shared(
    judged: Sequence[tuple[Path, Path]],
    taken: Collection[Pair],
    broken: Collection[Path],
    rng: Random,
) -> Next | None:
    """One of the pairs that others judged, for a share of the draws; none if none is left."""
    if not judged or rng.random() >= SHARED:
        return None
    open_ = [
        pair for pair in judged if Pair(pair) not in taken and not any(p in broken for p in pair)
    ]
    return _shuffled(*rng.choice(open_), "shared", rng) if open_ else None


def _shuffled(left: Path, right: Path, source: str, rng: Random) -> Next:
    """Neither side is favoured."""
    return Next(left, right, source) if rng.random() < 0.5 else Next(right, left, source)
