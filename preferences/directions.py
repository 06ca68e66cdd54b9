"""Embeddings of one's own, in a file that stays there: checked once, read in blocks, compared by angle."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

BLOCK = 8_192  # rows that are looked at together


@dataclass(frozen=True)
class Directions:
    """[N, D] rows of length 1 of a mapped file, made when they are asked for.

    Attributes:
        source: [M, D] numbers; only what is read of it is in memory.
        index: [N] the rows of `source`.
    """

    source: Tensor | np.ndarray
    index: np.ndarray
    ndim = 2

    def __len__(self) -> int:
        return len(self.index)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.source.shape[1]

    def __getitem__(self, which: slice | np.ndarray) -> np.ndarray:
        rows = self._read(which)
        return rows.div_(_length(rows)[:, None]).numpy()

    def take(self, which: Sequence[int]) -> Directions:
        """Some of them, still in the file."""
        return Directions(self.source, self.index[np.asarray(which, np.int64)])

    def lengths(self) -> Tensor:
        """[N] float64, before they became 1."""
        parts = [slice(start, start + BLOCK) for start in range(0, len(self), BLOCK)]
        return torch.cat([_length(self._read(part)) for part in parts])

    def _read(self, which: slice | np.ndarray) -> Tensor:
        rows = self.source[self.index[which]]
        found = rows if isinstance(rows, Tensor) else torch.from_numpy(np.asarray(rows))
        return found.float()


def _length(rows: Tensor) -> Tensor:
    """[N] float64: the square of a small or a large number leaves float32."""
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)


def read_directions(path: Path, files: Sequence[Path]) -> Directions:
    """The embeddings of these pictures: a .npy with a row for each, or a .safetensors with
    "embeddings" and, in its metadata, "paths", a JSON list.

    Raises:
        ValueError: another kind of file, rows that are not of these pictures, or a row that has no
            direction: not finite, or zeros only.
    """
    found, names = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    if found.ndim != 2:
        raise ValueError(f"embeddings must be [N, D], got {list(found.shape)} in {path}")
    index = np.arange(len(found)) if names is None else _named(names, found, path, files)
    if len(index) != len(files):
        raise ValueError(f"{path} has {len(index)} rows for {len(files)} pictures")
    directions = Directions(found, index)
    lengths = directions.lengths()
    for what, bad in (("not finite", ~lengths.isfinite()), ("zeros only", lengths == 0)):
        if bad.any():
            first = int(bad.nonzero()[0])
            where = f"row {int(index[first]) + 1} ({files[first]})"
            raise ValueError(f"{int(bad.sum())} embeddings of {path} are {what}, such as {where}")
    return directions


def _named(names: object, found: Tensor, path: Path, files: Sequence[Path]) -> np.ndarray:
    """[N] which row each picture has."""
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'"paths" in the metadata of {path} must be a JSON list of strings')
    if len(names) != len(found):
        raise ValueError(f"{path} has {len(found)} rows and {len(names)} paths")
    rows = {os.path.abspath(path.parent / name): i for i, name in enumerate(names)}
    if missing := [file for file in files if str(file) not in rows]:
        raise ValueError(f"{path} has no row for {len(missing)} pictures, such as {missing[0]}")
    return np.array([rows[str(file)] for file in files])


def _read_npy(path: Path) -> tuple[np.ndarray, None]:
    try:
        found = np.lib.format.open_memmap(path, mode="r")
    except (ValueError, EOFError, SyntaxError) as error:
        raise ValueError(f"{path} is no .npy of numbers: {error}") from None
    if found.dtype.kind not in "fiu":
        raise ValueError(f"{path} is no .npy of numbers: it holds {found.dtype}")
    return found, None


def _read_safetensors(path: Path) -> tuple[Tensor, object]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {}).get("paths", "null"))
            return file.get_tensor("embeddings"), names  # mapped: read as it is used
    except SafetensorError as error:
        raise ValueError(f'{path} is no .npy or .safetensors with "embeddings": {error}') from None
    except json.JSONDecodeError as error:
        raise ValueError(f'"paths" in the metadata of {path} is no JSON: {error}') from None
