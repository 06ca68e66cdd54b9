"""Comparisons of images: who was preferred to whom, in memory and in files.

    read_comparisons("pairs.json")   # JoyQuality's: {"train": [[a, b, label], ...], "test": ...}
    read_comparisons("pairs.csv")    # left,right,p
    read_comparisons("votes.db")     # what `tastemaker vote` keeps

A JSON label is 1 (the left one is preferred), -1 (the right one) or 0 (a tie); p is the probability
that the left one is preferred. Paths are relative to the file that holds them.
"""

from __future__ import annotations

import csv
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scorers.checkpoint import replacing
from ..wording import counted
from .tables import columns_of, number_of, read_table

LABELS = {1: 1.0, 0: 0.5, -1: 0.0}  # of the JSON -> p
HEADER = ["left", "right", "p"]


@dataclass(frozen=True)
class Comparisons:
    """P comparisons of N images.

    Attributes:
        images: the N images, each once.
        pairs: [P, 2] int64, indices into `images`: left, right.
        p: [P] float64, the probability that the left one is preferred: of a vote 1, 0.5 (a tie)
            or 0.
    """

    images: tuple[Path, ...]
    pairs: Tensor
    p: Tensor

    def __post_init__(self):
        if self.pairs.dtype != torch.int64 or self.pairs.ndim != 2 or self.pairs.shape[1] != 2:
            raise ValueError(f"pairs must be int64 [P, 2], got {list(self.pairs.shape)}")
        if self.p.shape != self.pairs.shape[:1]:
            raise ValueError(f"p must be [{len(self.pairs)}], got {list(self.p.shape)}")

    def __len__(self) -> int:
        return len(self.pairs)

    @classmethod
    def of(cls, rows: Iterable[tuple[str | os.PathLike, str | os.PathLike, float]]) -> Comparisons:
        """From (left, right, p). Paths become absolute; two spellings of a path are one image."""
        index: dict[Path, int] = {}
        pairs, p = [], []
        for left, right, probability in rows:
            both = (Path(os.path.abspath(each)) for each in (left, right))
            pairs.append([index.setdefault(each, len(index)) for each in both])
            p.append(float(probability))
        return cls(
            tuple(index),
            torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            torch.tensor(p, dtype=torch.float64),
        )

    def rows(self) -> Iterator[tuple[Path, Path, float]]:
        """(left, right, p) of each."""
        for (left, right), p in zip(self.pairs.tolist(), self.p.tolist(), strict=True):
            yield self.images[left], self.images[right], p

    def take(self, which: Tensor) -> Comparisons:
        """Those at `which` (indices or a mask [P]), with the images that they compare."""
        pairs = self.pairs[which]
        used, compact = pairs.unique(return_inverse=True)
        images = tuple(self.images[i] for i in used.tolist())
        return Comparisons(images, compact.reshape(-1, 2), self.p[which])

    def of_two(self) -> Comparisons:
        """Those of two images: an image compared with itself says nothing."""
        return self.take(self.pairs[:, 0] != self.pairs[:, 1])

    def merged(self, same: Mapping[Path, Path]) -> Comparisons:
        """Every image replaced by what `same` has for it: copies of one picture become one image."""
        return Comparisons.of((same[a], same[b], p) for a, b, p in self.rows())


def read_comparisons(
    path: str | Path, voter: str | None = None
) -> tuple[Comparisons, Comparisons | None]:
    """The comparisons of a file, and those that it sets apart for testing, or None.

    Args:
        voter: of a store of votes, whose; by default those of the only one who voted.

    Raises:
        FileNotFoundError, ValueError: naming the file, and the line or entry that is wrong; the
            voters of a store, where several voted and none is named.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"a folder, not a file of comparisons: {path}")
    try:
        with open(path, "rb") as file:
            start = file.read(16)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    if start == b"SQLite format 3\0":
        from .votes import read_votes

        train, test = read_votes(path, voter=voter), None
    elif voter is not None:
        raise ValueError(f"{path} has no voters: --voter goes with a store of votes")
    elif path.suffix.lower() == ".json":
        train, test = _read_json(path)
    elif path.suffix.lower() == ".csv":
        train, test = Comparisons.of(_csv_rows(path)), None
    else:
        raise ValueError(f"not a file of comparisons: {path} (.json, .csv or a vote store)")
    if not len(train):
        raise ValueError(f"no comparisons in {path}")
    return train, test


def read_noting(
    path: str | Path, voter: str | None = None
) -> tuple[Comparisons, Comparisons | None, list[str]]:
    """As `read_comparisons`, with a line on each thing that it would warn of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        train, test = read_comparisons(path, voter)
    return train, test, [str(warning.message) for warning in said]


def write_comparisons(path: str | Path, train: Comparisons, test: Comparisons | None = None):
    """Writes `path` (.json or .csv), whole or not at all; what lies below its folder as relative.

    Raises:
        ValueError: another kind of file; a CSV with a `test`; a JSON of what are no votes.
    """
    path = Path(path)
    if path.suffix.lower() == ".csv":
        if test is not None:
            raise ValueError(
                f"{path}: a CSV has one list of comparisons; write .json, or two files"
            )
        _write(
            path,
            [HEADER, *([a, b, repr(p)] for a, b, p in _relative(train.rows(), path))],
            _dump_csv,
        )
    elif path.suffix.lower() == ".json":
        parts = {"train": train} | ({"test": test} if test is not None else {})
        lists = {name: _labelled(part, path) for name, part in parts.items()}
        _write(path, lists, lambda lists, file: json.dump(lists, file, indent=1))
    else:
        raise ValueError(f"comparisons are written as .json or .csv, not {path}")


def write_pairs(path: str | Path, pairs: Iterable[tuple[Path, Path]]) -> None:
    """Writes a CSV of pairs to be voted on: like `write_comparisons`, with p left empty."""
    path = Path(path)
    _write(path, [HEADER, *_relative(((*pair, "") for pair in pairs), path)], _dump_csv)


def is_unanswered(path: Path) -> bool:
    """Whether a file is what `write_pairs` wrote, and nobody has written an answer into it."""
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        lines = csv.reader(file)
        try:
            return next(lines, None) == HEADER and all(not any(row[2:]) for row in lines)
        except csv.Error:
            return False


def _read_json(path: Path) -> tuple[Comparisons, Comparisons | None]:
    try:
        found = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {path} ({error})") from None
    if not isinstance(found, dict) or "train" not in found or found.keys() - {"train", "test"}:
        raise ValueError(f'{path} must be {{"train": [[left, right, label], ...], "test": [...]}}')
    parts = {name: Comparisons.of(_json_rows(found[name], name, path)) for name in found}
    test = parts.get("test")
    return parts["train"], test if test is not None and len(test) else None


def _json_rows(rows: Any, name: str, path: Path) -> Iterator[tuple[Path, Path, float]]:
    if not isinstance(rows, list):
        raise ValueError(f'{path}: "{name}" must be a list of [left, right, label]')
    for i, row in enumerate(rows):
        where = f"{name}[{i}] of {path}"
        if not isinstance(row, list) or [type(cell) for cell in row[:2]] != [str, str]:
            raise ValueError(f"{where} is no comparison: [left, right, label]")
        if len(row) != 3 or not row[0] or not row[1]:
            raise ValueError(f"{where} is no comparison: [left, right, label]")
        if type(row[2]) not in (int, float) or row[2] not in LABELS:
            raise ValueError(
                f"{where}: a label is 1 (left is preferred), -1 (right) or 0 (a tie), "
                f"got {row[2]!r}; probabilities go into a .csv of left,right,p"
            )
        yield path.parent / row[0], path.parent / row[1], LABELS[row[2]]


def _csv_rows(path: Path) -> Iterator[tuple[Path, Path, float]]:
    """Those that have an answer; a warning counts the others."""
    rows, header, decimal_comma = read_table(path)
    at = columns_of(header, HEADER, path)
    unanswered = 0
    for number, cells in rows:
        where = f"line {number} of {path}"
        if len(cells) != len(header) or not all(cells[i].strip() for i in at[:2]):
            raise ValueError(f"{where} is no comparison: {','.join(header)}")
        left, right, text = (cells[i] for i in at)
        if text.strip():
            yield path.parent / left, path.parent / right, _probability(text, decimal_comma, where)
        else:
            unanswered += 1
    if unanswered and unanswered == len(rows):
        raise ValueError(f"nobody has answered {path} yet: tastemaker vote {path}")
    if unanswered:
        warnings.warn(
            f"{path}: left out, {counted(unanswered, 'pair')} without an answer", stacklevel=4
        )


def _probability(text: str, decimal_comma: bool, where: str) -> float:
    p = number_of(text, decimal_comma)
    if p is None:
        raise ValueError(f"{where}: p must be a number, got {text!r}")
    if not 0 <= p <= 1:
        raise ValueError(
            f"{where}: p is the probability that the left one is preferred, in [0, 1], "
            f"got {text}; labels of -1, 0 and 1 go into a .json"
        )
    return p


def _labelled(comparisons: Comparisons, path: Path) -> list[list]:
    labels = {p: label for label, p in LABELS.items()}
    if odd := sorted(set(comparisons.p.tolist()) - labels.keys()):
        raise ValueError(f"a JSON holds votes, not probabilities such as {odd[0]}: write a .csv")
    return [[a, b, labels[p]] for a, b, p in _relative(comparisons.rows(), path)]


def _relative(
    rows: Iterable[tuple[Path, Path, float | str]], path: Path
) -> Iterator[tuple[str, str, float | str]]:
    folder = Path(os.path.abspath(path)).parent
    for *both, p in rows:
        a, b = (str(x.relative_to(folder) if x.is_relative_to(folder) else x) for x in both)
        yield a, b, p


def _dump_csv(rows: list[list], file: Any) -> None:
    csv.writer(file).writerows(rows)  # ends lines as RFC 4180 does, and so quotes both their ends


def _write(path: Path, contents: Any, dump: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            dump(contents, file)
