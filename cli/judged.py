"""Files of judgements - comparisons, votes, ratings - and the scores of the images in them."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..wording import counted
from .options import ScorerOptions

if TYPE_CHECKING:
    from ..preferences.comparisons import Comparisons
    from .scoring import Scores

PARTS = ("train", "test", "all")


def is_comparisons(path: Path) -> bool:
    """Whether a file is one of comparisons or votes, by its content; what is broken may be either.

    Not so: scores (a journal), an ensemble's .json, and tables without the columns left and right.
    """
    from ..preferences.tables import delimiter_of
    from ..preferences.votes import is_votes

    with open(path, "rb") as file:
        start = file.read(65536)
    if start.startswith(b"SQLite format 3\0"):
        return is_votes(path)
    text = start.decode("utf-8-sig", "replace").lstrip()
    if text.startswith(("{", "[")):
        return '"tastemaker"' not in text
    first = next(iter(text.splitlines()), "")
    try:
        header = next(csv.reader([first], delimiter=delimiter_of(first)), [])
    except csv.Error:  # a NUL, before Python 3.11
        return False
    return {"left", "right"} <= {cell.strip().lower() for cell in header}


def read_part(
    path: Path, part: str | None = None, voter: str | None = None
) -> tuple[Comparisons, str]:
    """The comparisons to look at: those set apart for testing where there are some, else all.

    Returns:
        They, and what they are called.

    Raises:
        ValueError: the file has no such part or voter, or is no file of comparisons.
    """
    from ..preferences.comparisons import Comparisons, read_noting

    train, test, notes = read_noting(path, voter)
    for note in notes:
        click.echo(f"Warning: {note}", err=True)
    if voter is not None:
        return train, f"{path.name}, {voter}"
    if part == "test" and test is None:
        raise ValueError(f"{path} sets no comparisons apart for testing")
    if test is None:
        return train, path.name
    if part == "all":
        return Comparisons.of([*train.rows(), *test.rows()]), f"{path.name}, all"
    return (train, f"{path.name}, train") if part == "train" else (test, f"{path.name}, test")


def scores_of_images(
    images: Iterable[Path],
    options: ScorerOptions,
    journal: Path | None = None,
    retry_errors: bool = False,
) -> Scores:
    """Scores, fresh or from the journal, of those images that are files.

    Raises:
        FileNotFoundError: not one of them is.
    """
    from .scoring import scores_of

    images = list(images)
    there = [image for image in images if image.is_file()]
    if not there:
        raise FileNotFoundError(f"none of {len(images)} images is a file, such as {images[0]}")
    if len(there) < len(images):
        lost = next(image for image in images if not image.is_file())
        click.echo(
            f"Warning: no files: {counted(len(images) - len(there), 'image')}, such as {lost}",
            err=True,
        )
    scores = scores_of(
        [str(image) for image in there], options, journal=journal, retry_errors=retry_errors
    )
    if failed := [row for row in scores.rows if math.isnan(row.score)]:
        click.echo(f"Warning: {len(failed)} have no score, such as {failed[0].error}", err=True)
    return scores


def echo_json(value: Any) -> None:
    """JSON without NaN, which it does not have: null."""
    click.echo(json.dumps(_finite(value), indent=2))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
