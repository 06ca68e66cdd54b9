"""`tastemaker score`: every picture once, into the journal; a summary, and a table if asked for."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..wording import counted
from .options import OUTPUT_FILE, ScorerOptions, SourceOptions, scorer_options, source_options

if TYPE_CHECKING:
    from .scoring import Run

SHOWN_ERRORS = 5


@click.command("score")
@source_options
@scorer_options
@click.option("--export", type=OUTPUT_FILE, help="Write a table: .csv, .jsonl or .parquet.")
def command(source: SourceOptions, options: ScorerOptions, export: Path | None) -> None:
    """Score pictures and videos, each once ever.

    PATHS are files, folders (with all their subfolders), quoted globs, or @LIST files with one path
    a line. Scores are kept in a journal: an interrupted run goes on where it was, and a file that
    changes is scored again. Pictures that fail are named and stop nothing; the exit status is 1 where
    all fail.
    """
    from .export import check_output, export_rows, write_table
    from .scoring import scored

    if export:
        check_output(export)
    with scored(source.paths, options, source.journal, source.retry_errors) as run:
        if export:
            card = run.journal.card
            write_table(export, export_rows(run.journal.rows(), card.name, card.fingerprint_id))
        failed = report(run)
    if failed:
        raise SystemExit(1)


def report(run: Run) -> bool:
    """Prints the summary. True where not one image has a score."""
    card, summary = run.journal.card, run.journal.summary()
    click.echo(f"{card.name} {card.fingerprint_id}: {card.unit}, {card.direction}")
    with_score = (
        f"{counted(summary.images, 'image')}, {summary.images - summary.errors} with a score"
    )
    click.echo(f"{with_score}: {run.fresh} looked at now, {run.known} known from the journal")
    if summary.low is not None:
        span = f"{summary.low:.4f} to {summary.high:.4f}"
        click.echo(f"scores: {span}, mean {summary.mean:.4f}")
    if summary.errors:
        click.echo(f"errors: {summary.errors}", err=True)
        for row in islice(run.journal.rows(only_errors=True), SHOWN_ERRORS):
            known = str(row.path) in row.error
            click.echo(f"  {row.error if known else f'{row.path}: {row.error}'}", err=True)
        if summary.errors > SHOWN_ERRORS:
            click.echo(f"  and {summary.errors - SHOWN_ERRORS} more", err=True)
        if passing := run.journal.passing_count():
            click.echo(f"  {passing} of them may pass: the next run tries again", err=True)
    click.echo(f"journal: {run.journal.path}")
    return summary.errors == summary.images
