"""The HTML report: one file to look at a ranking, change the picks by hand, and save them as lists."""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader
from PIL import Image
from tqdm.auto import tqdm

from .. import ranking
from ..scorers.checkpoint import replacing
from .contact_sheet import format_score, open_thumbnail
from .rows import Row, Scores

LIMIT = 3000  # pictures in one report: about 40 MB, which browsers still scroll smoothly
THUMBNAIL = (288, 288)  # pixels; sharp at the 190 to 280 CSS pixels of the grid
BINS = 60


def write_report(
    path: Path,
    scores: Scores,
    *,
    title: str,
    keep: int = 0,
    limit: int = LIMIT,
    progress: bool = False,
) -> None:
    """Writes a self-contained page: no other file and no network is needed to open it.

    It is written picture by picture, and appears only when it is whole. Picks are kept by the
    browser under the fingerprint and the paths, so that the same ranking finds them again.

    Args:
        scores: rows in any order. Those without a score are listed with their error.
        keep: the report opens with the best `keep` pictures kept.
        limit: at most so many pictures, the best, are shown.
        progress: show a progress bar while thumbnails are made.
    """
    ranked, failed = split_rows(scores.rows)
    values = [row.score for row in ranked]
    shown = tqdm(ranked[:limit], "report", unit="image", disable=None if progress else True)
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True
    )
    chunks = environment.get_template("page.html").generate(
        title=displayable(title),
        subtitle=_subtitle(scores),
        about=_about(scores),
        total=len(ranked),
        shown=min(limit, len(ranked)),
        failed=failed,
        unlisted=sum(not is_listable(row.path) for row in ranked[:limit]),
        histogram=histogram(values),
        threshold=_threshold(values, keep),
        report_id=_report_id(scores.fingerprint_id, ranked[:limit]),
        nonce=secrets.token_urlsafe(16),  # only this page's own script and style may run
        cards=_cards(shown, ranking.percentile(values).tolist()),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(chunks)


def split_rows(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """(rows with a finite score, best first; rows without one, each with its error)."""
    scored, failed = [], []
    for row in rows:
        error = row.error or (None if math.isfinite(row.score) else f"its score is {row.score}")
        if error:
            failed.append(Row(Path(displayable(str(row.path))), math.nan, displayable(error)))
        else:
            scored.append(row)
    order = ranking.sort([row.score for row in scored]).tolist()
    return [scored[i] for i in order], failed


def is_listable(path: Path) -> bool:
    """Whether it can be a line of a list: of UTF-8, without a line break."""
    return str(path).splitlines() == [displayable(str(path))]


def displayable(text: str) -> str:
    """`text` with whatever UTF-8 cannot write (names of undecodable bytes) replaced."""
    return text.encode("utf-8", "replace").decode("utf-8")


class Card(NamedTuple):
    """One picture of the report, as the template shows it."""

    rank: int
    path: str
    name: str
    uri: str
    score: float
    shown: str
    percentile: str
    thumbnail: str | None  # a data URI
    listable: bool


def _cards(rows: Iterable[Row], percentiles: Sequence[float]) -> Iterator[Card]:
    """Cards in order; thumbnails are made by threads, only a few ahead of the file."""

    def make(ranked: tuple[int, Row]) -> Card:
        i, row = ranked
        return Card(
            rank=i + 1,
            path=displayable(str(row.path)),
            name=displayable(row.path.name),
            uri=row.path.absolute().as_uri(),
            score=row.score,
            shown=format_score(row.score),
            percentile=f"{percentiles[i]:.0f}",
            thumbnail=_thumbnail(row.path),
            listable=is_listable(row.path),
        )

    return _ahead(make, enumerate(rows))


def _ahead(function: Callable[[Any], Any], items: Iterable) -> Iterator:
    """`map` by threads, in order, with a bounded number of results waiting."""
    workers = min(16, os.cpu_count() or 1)
    waiting: deque[Future] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tastemaker-thumbnail") as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 4 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _thumbnail(path: Path) -> str | None:
    """A data URI, or None for a file that can no longer be opened."""
    try:
        thumbnail = open_thumbnail(path, THUMBNAIL)
    except Exception:  # whatever a broken file makes a decoder raise belongs to that file
        return None
    return data_uri(thumbnail, "webp", quality=78, method=2)


def data_uri(picture: Image.Image, kind: str = "png", **options: Any) -> str:
    """The picture itself, for pages that load nothing."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return f"data:image/{kind};base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


class Bar(NamedTuple):
    """In a plot of 1000 x 100."""

    x: float
    width: float
    height: float


class Histogram(NamedTuple):
    low: float
    high: float
    bars: list[Bar]


def histogram(scores: Sequence[float]) -> Histogram | None:
    """Counts of finite scores; None without any. `low` and `high` lie a little outside of them.

    So a threshold at `low` keeps everything, and one at `high` nothing.
    """
    if not scores:
        return None
    least, most = min(scores), max(scores)
    # Where the scores are (nearly) one number, wide enough that the rounding of floats is not seen.
    margin = max((most - least) / (BINS - 2), 1e-6 * max(abs(least), abs(most), 1e-6))
    low, high = least - margin, most + margin
    counts = [0] * BINS
    for score in scores:
        counts[min(BINS - 1, int((score - low) / (high - low) * BINS))] += 1
    step = 1000 / BINS
    # A bin of one picture among thousands stays visible.
    heights = [max(2.0, count / max(counts) * 96) if count else 0.0 for count in counts]
    bars = [
        Bar(round(i * step, 2), round(step * 0.9, 2), round(h, 2)) for i, h in enumerate(heights)
    ]
    return Histogram(low, high, [bar for bar in bars if bar.height])


def _threshold(scores: Sequence[float], keep: int) -> float:
    """The score from which on the best `keep` are kept; `scores` are best first."""
    if not scores:
        return 0.0
    return scores[min(keep, len(scores)) - 1] if keep > 0 else histogram(scores).high


def _report_id(fingerprint_id: str, rows: Sequence[Row]) -> str:
    """Stands for this ranking: the scores' fingerprint, and the pictures in their order."""
    digest = hashlib.sha256(fingerprint_id.encode())
    for row in rows:
        digest.update(f"\n{row.path}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()[:16]


def _subtitle(scores: Scores) -> str:
    """Who judged; what a score is, where that is known."""
    card = scores.card
    return scores.name if card is None else f"{card.name} ({card.task}): {card.unit}"


def _about(scores: Scores) -> list[tuple[str, str]]:
    """What the numbers mean and what they were made with."""
    facts = [("scorer", scores.name), ("fingerprint", scores.fingerprint_id)]
    if (card := scores.card) is not None:
        low, high = card.range
        facts += [
            ("score", f"{card.unit}; {low:g} to {high:g}, {card.direction}"),
            ("licence", card.licence),
            ("paper", card.paper or ""),
            ("limits", card.limits),
            ("not for", card.out_of_scope),
            *((key, str(value)) for key, value in sorted(card.fingerprint.items())),
        ]
    return [(key, value) for key, value in facts if value]
