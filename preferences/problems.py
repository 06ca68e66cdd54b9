"""What is wrong with comparisons, by name, before anything is learned from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from os import PathLike
from pathlib import Path

from PIL import Image

from ..scorers import NAMES
from ..scorers.decode import DAMAGE
from ..scorers.personal_files import read_trained_on
from .comparisons import Comparisons
from .embeddings import content_of

Pair = tuple[Path, Path]
READERS = 8  # files that are opened side by side: most of it is waiting for the disk
SAME = 1e-9  # results that differ by less are the same: 1 - 0.7 is not 0.3 in floating point


@dataclass(frozen=True)
class Problems:
    """What `problems` found. The first two keep a scorer from being trained: see `faults`.

    Attributes:
        missing: images that are no files.
        unreadable: files that cannot be opened as pictures.
        themselves: images that are compared with themselves, which says nothing.
        duplicates: pairs that are compared more than once with the same result.
        contradictions: pairs of which either one was preferred once.
        leaked: images of the test that were trained on as well: they flatter.
    """

    missing: tuple[Path, ...] = ()
    unreadable: tuple[Path, ...] = ()
    themselves: tuple[Path, ...] = ()
    duplicates: tuple[Pair, ...] = ()
    contradictions: tuple[Pair, ...] = ()
    leaked: tuple[Path, ...] = ()

    def __bool__(self) -> bool:
        return any(getattr(self, name) for name in self.__dataclass_fields__)

    @property
    def faults(self) -> str:
        """What keeps a scorer from being trained, in one line; empty where nothing does."""
        return "; ".join(Problems(self.missing, self.unreadable).lines())

    def lines(self, names: int = 3) -> Iterator[str]:
        """One line for each kind that there is, with the first few by name."""
        for field, what in _WHAT.items():
            if found := getattr(self, field):
                named = "; ".join(map(_name, found[:names]))
                more = f"; and {len(found) - names} more" if len(found) > names else ""
                yield f"{what} ({len(found)}): {named}{more}"


_WHAT = {
    "missing": "no such file",
    "unreadable": "no picture",
    "themselves": "compared with itself",
    "duplicates": "compared more than once, with the same result",
    "contradictions": "contradictory, each preferred once",
    "leaked": "in the test, and trained on as well",
}


def problems(train: Comparisons, test: Comparisons | None = None) -> Problems:
    """Looks through the comparisons, and for their files, whose headers are read: one that is cut
    off further down is found when its pixels are."""
    parts = [train] if test is None else [train, test]
    images = dict.fromkeys(image for part in parts for image in part.images)
    files = [image for image in images if image.is_file()]
    there = set(files)
    return replace(
        doubts(*parts),
        missing=tuple(image for image in images if image not in there),
        unreadable=_unreadable(files),
        leaked=tuple(sorted(set(train.images) & set(test.images))) if test is not None else (),
    )


def doubts(*parts: Comparisons) -> Problems:
    """What the comparisons alone show, without a look at their files."""
    results: dict[Pair, list[float]] = defaultdict(list)
    for part in parts:
        for left, right, p in part.rows():
            pair, p = ((left, right), p) if str(left) <= str(right) else ((right, left), 1 - p)
            results[pair].append(p)
    compared = {pair: found for pair, found in results.items() if pair[0] != pair[1]}
    return Problems(
        themselves=tuple(left for left, right in results if left == right),
        duplicates=tuple(pair for pair, found in compared.items() if _twice(found)),
        contradictions=tuple(
            pair for pair, found in compared.items() if min(found) < 0.5 < max(found)
        ),
    )


def _unreadable(files: Iterable[Path]) -> tuple[Path, ...]:
    """Headers alone, two to three seconds of one core for 10,000 pictures; pixels take minutes."""
    files = list(files)
    with ThreadPoolExecutor(READERS) as pool:
        opened = pool.map(_opens, files)
        return tuple(file for file, ok in zip(files, opened, strict=True) if not ok)


def _opens(file: Path) -> bool:
    try:
        with Image.open(file):
            return True
    except (*DAMAGE, Image.DecompressionBombError):
        return False


def _twice(results: Iterable[float]) -> bool:
    return any(higher - lower < SAME for lower, higher in pairwise(sorted(results)))


def first_copies(images: Iterable[Path]) -> dict[Path, Path]:
    """Each image to the first one with the same bytes. Only files of one size are read."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for image in dict.fromkeys(images):
        sizes[image.stat().st_size].append(image)
    same: dict[Path, Path] = {}
    for alike in sizes.values():
        first: dict[bytes, Path] = {}
        for image in alike:
            content = content_of(image) if len(alike) > 1 else b""
            same[image] = first.setdefault(content, image)
    return same


def learned_by(scorer: str | PathLike) -> frozenset[bytes]:
    """The hashes of what a scorer's own folder says it was trained on; a name is no folder's."""
    return frozenset() if str(scorer) in NAMES else read_trained_on(scorer)


def learned_of(images: Iterable[Path], learned: Collection[bytes]) -> set[Path]:
    """Those of the images that have one of these hashes. Without hashes no file is read."""
    return {path for path in images if learned and path.is_file() and content_of(path) in learned}


def apart_from(images: Collection[Path], comparisons: Comparisons) -> Comparisons:
    """The comparisons of which neither image is one of these."""
    apart = [left not in images and right not in images for left, right, _ in comparisons.rows()]
    return comparisons.take([i for i, ok in enumerate(apart) if ok])


def _name(item: Path | Pair) -> str:
    return " and ".join(map(str, item)) if isinstance(item, tuple) else str(item)
