"""Mean opinion scores (MOS): a CSV of ratings, and how well a scorer's numbers go with them.

image_name,MOS              KonIQ-10k
Image name,MOS              SPAQ, whose spreadsheet is exported to CSV first
dist_img,ref_img,dmos,var   KADID-10k (its dmos is higher for better pictures)
name,...,mos_quality,...    AGIQA-3K
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike

from .bootstrap import LEVEL, ROUNDS, Interval, bootstrap_rows
from .strengths import ranking_metrics, scipy
from .tables import Row, number_of, read_table

# What columns are called, the likeliest first; capitals, blanks and underscores do not matter.
IMAGE_COLUMNS = (
    *("image", "imagename", "distimg", "imagepath", "img", "imgname", "name", "filename", "file"),
    *("path", "imageid"),
)
SPLIT_COLUMNS = ("set", "split", "subset", "partition")  # KonIQ-10k: set is training, test...
SCORE_COLUMNS = ("score", "mos", "mosquality", "dmos", "rating", "meanscore", "meanopinionscore")

UNRATED = ("", "nan", "na", "n/a", "#n/a", "null", "none")  # how tables say that there is no rating


@dataclass(frozen=True)
class Ratings:
    """N rated images, each once.

    Attributes:
        images: absolute paths.
        values: [N] float64, higher is better; the mean where an image has several rows.
        rows: how many ratings were read.
        columns: the names of the columns that they are from: image, score.
        left_out: how many rows were not asked for. unrated: how many of the others have no rating.
        splits: where all were taken: columns that look like a split, each value's rows.
    """

    images: tuple[Path, ...]
    values: np.ndarray
    rows: int
    columns: tuple[str, str]
    left_out: int = 0
    unrated: int = 0
    splits: Mapping[str, Mapping[str, int]] = field(default_factory=dict)


def read_ratings(
    path: str | Path,
    *,
    root: str | Path | None = None,
    image_column: str | None = None,
    score_column: str | None = None,
    lower_is_better: bool = False,
    where: Sequence[tuple[str, str]] = (),
) -> Ratings:
    """The ratings of a CSV with a header; commas, semicolons or tabs part its cells.

    Args:
        root: the folder that the paths are relative to; by default the file's own.
        image_column, score_column: by default the first of the usual names (above) that there is.
        lower_is_better: turns the ratings round, for difference scores such as LIVE's DMOS.
        where: (column, value) of the rows to take, such as ("set", "test"), exactly so written; of
            several columns all must fit, of several values of one column any.

    Raises:
        FileNotFoundError: no such file, or not one of the images is there.
        ValueError: naming the file, and its columns, the values that `where` could have named, or
            the line that has no rating.
    """
    path = Path(path)
    every, header, decimal_comma = read_table(path)
    rows = _selected(path, every, header, where) if where else every
    image = _column(path, header, image_column, IMAGE_COLUMNS, "image")
    score = _column(path, header, score_column, SCORE_COLUMNS, "score")
    folder = Path(os.path.abspath(path.parent if root is None else root))
    found: dict[Path, list[float]] = {}
    unrated = 0
    for number, cells in rows:
        line = f"line {number} of {path}"
        if len(cells) <= max(image, score) or not cells[image].strip():
            raise ValueError(f"{line} has no {header[image]} and {header[score]}")
        if cells[score].strip().lower() in UNRATED:
            unrated += 1
            continue
        value = number_of(cells[score], decimal_comma)
        if value is None:
            raise ValueError(f"{line}: {header[score]} must be a number, got {cells[score]!r}")
        name = Path(os.path.abspath(folder / cells[image].strip()))
        found.setdefault(name, []).append(-value if lower_is_better else value)
    if not found:
        raise ValueError(f"no ratings in {path}")
    if not any(map(os.path.isfile, found)):
        raise FileNotFoundError(
            f"no such file: {next(iter(found))}: give the images' folder, --root"
        )
    values = np.array([np.mean(each) for each in found.values()])
    return Ratings(
        images=tuple(found),
        values=values,
        rows=len(rows) - unrated,
        columns=(header[image], header[score]),
        left_out=len(every) - len(rows),
        unrated=unrated,
        splits={} if where else _splits(rows, header),
    )


def logistic(x: ArrayLike, b1: float, b2: float, b3: float, b4: float) -> np.ndarray:
    """The four-parameter logistic b2 + (b1 - b2) / (1 + exp(-(x - b3) / |b4|)).

    Of the Video Quality Experts Group's final report from the FR-TV test, phase II (2003).
    """
    z = (np.asarray(x, np.float64) - b3) / abs(b4)
    return b2 + (b1 - b2) * np.exp(-np.logaddexp(0, -z))


def fit_logistic(scores: ArrayLike, values: ArrayLike) -> tuple[float, float, float, float]:
    """(b1, b2, b3, b4) of the rising `logistic` nearest to the ratings, by least squares.

    From VQEG's start: the ratings' maximum and minimum, the scores' mean, their deviation / 4. Both
    sides are standardised first, so that units do not matter. A curve that falls is never fitted:
    it would make a scorer that has it the wrong way round look good.

    Raises:
        ValueError: fewer than four images, or constant scores or ratings.
    """
    least_squares = scipy("optimize").least_squares
    x, y = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if len(x) < 4 or not np.ptp(x) or not np.ptp(y):
        raise ValueError(
            "a logistic needs four images at least, and scores and ratings that differ"
        )
    (x_mean, x_std), (y_mean, y_std) = ((v.mean(), v.std()) for v in (x, y))
    x, y = (x - x_mean) / x_std, (y - y_mean) / y_std

    def errors(b: np.ndarray) -> np.ndarray:  # b: rise, floor, middle, width
        return logistic(x, b[1] + b[0], b[1], b[2], b[3]) - y

    bounds = ([0, -np.inf, -np.inf, 1e-3], [1e4, np.inf, np.inf, 1e4])
    b = least_squares(errors, [np.ptp(y), y.min(), 0.0, 0.25], bounds=bounds, max_nfev=2000).x
    floor = y_mean + y_std * b[1]
    return tuple(map(float, (floor + y_std * b[0], floor, x_mean + x_std * b[2], x_std * b[3])))


def rating_metrics(
    scores: ArrayLike,
    values: ArrayLike,
    *,
    rounds: int = ROUNDS,
    seed: int = 0,
    level: float = LEVEL,
) -> tuple[dict[str, float], dict[str, Interval], tuple[float, float, float, float] | None]:
    """How N scores go with N mean opinion scores.

    Returns:
        srcc (Spearman), krcc (Kendall's tau-b), plcc (Pearson) in [-1, 1]; plcc_logistic and rmse
        after `fit_logistic`, rmse in units of the ratings. Their intervals: images resampled, the
        curve as it is. And the curve, or None where there is none (then both are NaN).
    """
    x, y = np.asarray(scores, np.float64), np.asarray(values, np.float64)
    if x.shape != y.shape or not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise ValueError(f"scores and ratings must be finite and as many, got {len(x)}, {len(y)}")
    try:
        curve = fit_logistic(x, y)
    except ValueError:
        curve = None
    fitted = np.full(len(x), np.nan) if curve is None else logistic(x, *curve)

    def statistics(rows: np.ndarray) -> Mapping[str, float]:
        ranking = ranking_metrics(x[rows], y[rows])
        return {
            "srcc": ranking["spearman"],
            "plcc": _pearson(x[rows], y[rows]),
            "plcc_logistic": _pearson(fitted[rows], y[rows]),
            "krcc": ranking["kendall"],
            "rmse": math.sqrt(((fitted - y)[rows] ** 2).mean()) if len(rows) else math.nan,
        }

    found = dict(statistics(np.arange(len(x))))
    if len(x) < 2:
        return found, dict.fromkeys(found, (math.nan, math.nan)), curve
    how = {"rounds": rounds, "seed": seed, "level": level}
    return found, bootstrap_rows(statistics, len(x), **how), curve


def _pearson(a: np.ndarray, b: np.ndarray) -> float:
    if len(a) < 2 or not np.ptp(a) > 0 or not np.ptp(b) > 0:  # NaN is not above 0 either
        return math.nan
    return float(np.corrcoef(a, b)[0, 1])


def told(values: Mapping[str, int], most: int = 8) -> str:
    """ "test (2015), training (7058)...", the most frequent first."""
    common = sorted(values.items(), key=lambda each: (-each[1], each[0]))
    listed = ", ".join(f"{value[:40] or 'nothing'} ({count})" for value, count in common[:most])
    return listed + (f" and {len(common) - most} others" if len(common) > most else "")


def _selected(
    path: Path, rows: list[Row], header: list[str], where: Sequence[tuple[str, str]]
) -> list[Row]:
    """The rows that have one of the wanted values in each of the columns."""
    wanted: dict[str, list[str]] = {}
    for column, value in where:
        wanted.setdefault(column, []).append(value)
    at = {column: _column(path, header, column, (), "") for column in wanted}
    kept = [
        row
        for row in rows
        if all(_cell(row, at[name]) in values for name, values in wanted.items())
    ]
    if not kept:
        asked = ", ".join(f"{name}={' or '.join(values)}" for name, values in wanted.items())
        there = "; ".join(f"{name} is {told(_values(rows, at[name]))}" for name in wanted)
        raise ValueError(f"no row of {path} has {asked}" + (f": {there}" if rows else ""))
    return kept


def _splits(rows: list[Row], header: list[str]) -> dict[str, Counter[str]]:
    """What looks like a split into parts, of which only some are for testing."""
    plain = [cell.lower() for cell in header]
    found = {
        header[plain.index(name)]: plain.index(name) for name in SPLIT_COLUMNS if name in plain
    }
    values = {name: _values(rows, column) for name, column in found.items()}
    return {name: counts for name, counts in values.items() if 1 < len(counts) <= 20}


def _values(rows: list[Row], column: int) -> Counter[str]:
    return Counter(_cell(row, column) for row in rows)


def _cell(row: Row, column: int) -> str:
    return row[1][column].strip() if column < len(row[1]) else ""


def _column(
    path: Path, header: list[str], name: str | None, usual: tuple[str, ...], what: str
) -> int:
    """Where a column is: the one of that name, or the first of the usual names that there is."""
    if name is not None:
        if name in header:
            return header.index(name)
        raise ValueError(f"{path} has no column {name!r} (columns: {', '.join(header)})")
    plain = ["".join(filter(str.isalnum, cell.lower())) for cell in header]
    for candidate in usual:
        if candidate in plain:
            return plain.index(candidate)
    columns = f"columns: {', '.join(header)}; a file of comparisons has left, right and p"
    raise ValueError(f"which column of {path} is the {what}? Give --{what}-column ({columns})")
