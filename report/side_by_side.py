"""The HTML report of a few ways to make the same pictures: side by side, with what each scores."""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, FileSystemLoader
from PIL import Image

from ..scorers.checkpoint import replacing
from .contact_sheet import format_score
from .page import data_uri, displayable


class Way(NamedTuple):
    """A column: a way of making pictures."""

    name: str
    about: str  # such as its price


class Made(NamedTuple):
    """A picture and its scores by name, in the same order everywhere."""

    picture: Image.Image
    scores: Mapping[str, float]


class Value(NamedTuple):
    """A score as it is shown."""

    name: str
    text: str
    best: bool  # of the row


class Shown(NamedTuple):
    """A picture as it is shown."""

    uri: str
    values: list[Value]


class Figure(NamedTuple):
    title: str
    uri: str


class Line(NamedTuple):
    name: str
    cells: list[Shown]


def write_side_by_side(
    path: Path,
    ways: Sequence[Way],
    rows: Mapping[str, Sequence[Made]],
    *,
    title: str,
    about: Sequence[str] = (),
    figures: Mapping[str, Image.Image] | None = None,
) -> None:
    """Writes a self-contained page: no other file and no network is needed to open it.

    Args:
        ways: the columns.
        rows: of each name, such as a prompt, what each way made.
        figures: pictures that are shown below, by their titles.

    Raises:
        ValueError: a row without a picture for each way.
    """
    for name, made in rows.items():
        if len(made) != len(ways):
            raise ValueError(f"{name!r} has {len(made)} pictures for {len(ways)} columns")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    page = environment.get_template("side_by_side.html").render(
        title=displayable(title),
        about=about,
        columns=ways,
        rows=[Line(displayable(name), _shown(made)) for name, made in rows.items()],
        means=_values(means(list(rows.values()))),
        figures=[Figure(name, data_uri(x)) for name, x in (figures or {}).items()],
        nonce=secrets.token_urlsafe(16),
    )
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def means(rows: Sequence[Sequence[Made]]) -> list[dict[str, float]]:
    """The mean scores of each column; NaN where a picture has none."""
    columns = zip(*rows, strict=True)
    return [
        {name: sum(made.scores[name] for made in column) / len(column) for name in column[0].scores}
        for column in columns
    ]


def _shown(made: Sequence[Made]) -> list[Shown]:
    values = _values([one.scores for one in made])
    return [Shown(data_uri(m.picture), v) for m, v in zip(made, values, strict=True)]


def _values(scores: Sequence[Mapping[str, float]]) -> list[list[Value]]:
    """Of each column its scores, the highest of each name marked."""
    highest = {
        name: max((x[name] for x in scores if not math.isnan(x[name])), default=math.nan)
        for name in (scores[0] if scores else ())
    }
    return [
        [Value(name, format_score(x), x == highest[name]) for name, x in one.items()]
        for one in scores
    ]
