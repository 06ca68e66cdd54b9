"""Scores of pictures: those that exist, from a file, or fresh ones, through the journal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..report.rows import Row, Scores
from ..scorers import Scored, Scorer
from ..scorers.stream import out_of_memory, score_batches
from ..scorers.video import is_video, read_video
from . import one_line
from .export import read_table
from .files import expand
from .journal import Entry, Journal, is_journal
from .options import ScorerOptions, SourceOptions, load_from_options
from .stopping import stopped_as_by_ctrl_c

__all__ = ["Row", "Run", "Scores", "scored", "scores_for", "scores_of"]


def scores_of(
    paths: Sequence[str],
    options: ScorerOptions,
    *,
    journal: Path | None = None,
    scores: Path | None = None,
    retry_errors: bool = False,
    exclude: Iterable[Path] = (),
) -> Scores:
    """Existing or fresh scores, each image once, in the order of `paths`.

    Args:
        paths: as on the command line, see `files.expand`. Empty, with `scores`: all that it holds.
        journal: where fresh scores are kept; by default the user's journal of the fingerprint.
        scores: a CSV, JSONL or Parquet export, or a journal: nothing is scored, and images that it
            does not know get an error.
        retry_errors: try again what the journal knows to have failed.
        exclude: folders that are not entered.

    Raises:
        FileNotFoundError, ValueError: no such path, nothing found, a file of another kind, scores
            of several fingerprints; and whatever loading the scorer raises.
    """
    if scores is not None:
        return _existing(scores, paths, exclude)
    with scored(paths, options, journal, retry_errors, exclude) as run:
        card = run.journal.card
        return Scores(list(run.journal.rows()), card.name, card.fingerprint_id, card)


def scores_for(
    source: SourceOptions, options: ScorerOptions, exclude: Iterable[Path] = ()
) -> Scores:
    """`scores_of` what a command line asks for."""
    return scores_of(**vars(source), options=options, exclude=exclude)


@dataclass(frozen=True)
class Run:
    """A journal that knows every image of `paths`, and how many of them it knew before."""

    journal: Journal
    known: int
    fresh: int


@contextmanager
def scored(
    paths: Sequence[str],
    options: ScorerOptions,
    journal: Path | None = None,
    retry_errors: bool = False,
    exclude: Iterable[Path] = (),
) -> Iterator[Run]:
    """Scores what the journal does not know yet, with bounded memory; see `scores_of`."""
    found = expand(paths, exclude)
    scorer = load_from_options(options)
    with Journal.of(scorer.card, journal) as kept:
        total = kept.ask(found, retry_errors)
        fresh = kept.missing_count()
        _score_missing(scorer, kept, fresh, options.batch_size)
        yield Run(kept, total - fresh, fresh)


def _score_missing(scorer: Scorer, journal: Journal, count: int, batch_size: int | None) -> None:
    pictures = (entry for entry in journal.missing() if not is_video(entry.path))
    videos = (entry for entry in journal.missing() if is_video(entry.path))
    scored_pictures = score_batches(scorer, pictures, batch_size, "nan")
    batches = chain(scored_pictures, ([video] for video in _score_videos(scorer, videos)))
    with tqdm(total=count, unit="image", desc=journal.card.name, disable=None) as bar:
        try:
            with stopped_as_by_ctrl_c():
                for batch in batches:
                    for result in batch:
                        journal.record(*result)
                    journal.flush()  # the next batch may take long
                    bar.update(len(batch))
        except KeyboardInterrupt:
            click.echo("Stopped: what was scored is kept, the same command goes on", err=True)
            raise
        finally:
            journal.flush()


def _score_videos(scorer: Scorer, entries: Iterable[Entry]) -> Iterator[Scored]:
    for entry in entries:
        try:
            frames = read_video(entry.path)[None]
        except ImportError as error:
            click.echo(f"Warning: videos are not scored: {one_line(error)}", err=True)
            return  # not recorded: they are scored as soon as PyAV is there
        except FileNotFoundError as error:
            yield Scored(entry, float("nan"), one_line(error))
        except (ValueError, OSError) as error:
            yield Scored(entry, float("nan"), one_line(error), isinstance(error, OSError))
        else:
            yield _score_video(scorer, entry, frames)


def _score_video(scorer: Scorer, entry: Entry, frames: Tensor) -> Scored:
    """The score of one video's frames, uint8 [1, T, 3, H, W], or its error."""
    try:
        return Scored(entry, float(scorer.score_video(frames.to(scorer.device))))
    except (ValueError, RuntimeError, MemoryError) as error:
        passing = out_of_memory(error)
        if not isinstance(error, ValueError) and not passing:
            raise  # nothing of this one video: it would happen to all
        message = one_line(error)
    if torch.cuda.is_available():  # outside the handler: the traceback holds what was made so far
        torch.cuda.empty_cache()
    return Scored(entry, float("nan"), message, passing)


def _existing(source: Path, paths: Sequence[str], exclude: Iterable[Path]) -> Scores:
    """Scores from a file; with `paths`, theirs."""
    if is_journal(source):
        with Journal(source) as journal:
            if paths:
                journal.ask(expand(paths, exclude))
            rows = list(journal.rows() if paths else journal.all_rows())
            if paths and journal.missing_count() == len(rows):
                raise _knows_none(source, rows)
            return Scores(rows, journal.card.name, journal.card.fingerprint_id, journal.card)
    known, (name, fingerprint_id) = _read_export(source)
    if not paths:
        return Scores(list(known.values()), name, fingerprint_id)
    found = dict.fromkeys(expand(paths, exclude))  # each once, in order
    missing = f"no score in {source.name}"
    rows = [known.get(path) or Row(path, math.nan, missing) for path in found]
    if known.keys().isdisjoint(found):
        raise _knows_none(source, rows)
    return Scores(rows, name, fingerprint_id)


def _knows_none(source: Path, rows: Sequence[Row]) -> ValueError:
    return ValueError(f"{source} knows none of the {len(rows)} pictures, such as {rows[0].path}")


def _read_export(source: Path) -> tuple[dict[Path, Row], tuple[str, str]]:
    """Rows by absolute path, and the one scorer and fingerprint that made them."""
    rows, made_by = {}, set()
    for values in read_table(source):
        path = Path(os.path.abspath(values["path"]))
        score = math.nan if values["score"] is None else values["score"]
        rows[path] = Row(path, score, values["error"])
        made_by.add((values.get("scorer") or "", values.get("fingerprint") or ""))
    if not rows:
        raise ValueError(f"no scores in {source}")
    if len(made_by) > 1:
        named = ", ".join(f"{name} {fingerprint}" for name, fingerprint in sorted(made_by))
        raise ValueError(f"{source} mixes scores of several fingerprints: {named}")
    return rows, made_by.pop()
