"""`tastemaker rank`: pictures, best first, as a contact sheet and a report."""

from __future__ import annotations

import webbrowser
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.core import ParameterSource

from .beside import known_later, refuse_among_pictures, refuse_over_pictures
from .options import OUTPUT_FILE, ScorerOptions, SourceOptions, scorer_options, scores_options

if TYPE_CHECKING:
    from ..report.rows import Row
    from .scoring import Scores

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
PRINTED = 5  # of the ranking, on the terminal


@click.command("rank")
@scores_options
@click.option(
    "--top",
    type=click.IntRange(1, 500),
    default=24,
    show_default=True,
    help="The best so many are on the contact sheet, and kept when the report opens.",
)
@click.option("--worst", type=click.IntRange(1, 500), help="Also a sheet of the worst so many.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("tastemaker-report"),
    show_default=True,
    help="Folder for whatever is written.",
)
@click.option("--sheet", type=OUTPUT_FILE, help="The contact sheet. [default: OUT/sheet.png]")
@click.option("--report", type=OUTPUT_FILE, help="The report. [default: OUT/report.html]")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=3000,
    show_default=True,
    help="The report shows at most so many, the best; 1000 take about 14 MB.",
)
@click.option("--title", help="Heading of sheet and report. [default: the PATHS]")
@click.option("--open", "open_report", is_flag=True, help="Open the report in the browser.")
@scorer_options
def command(
    source: SourceOptions,
    options: ScorerOptions,
    top: int,
    worst: int | None,
    out: Path,
    sheet: Path | None,
    report: Path | None,
    limit: int,
    title: str | None,
    open_report: bool,
) -> None:
    """Rank pictures: a contact sheet of the best, and a report to look at all of them, change the
    picks by hand and save them as lists for `tastemaker filter --list`.

    Scores come from the journal where it has them, or from --scores FILE; the rest are made now.
    """
    sheet, report = sheet or out / "sheet.png", report or out / "report.html"
    given = click.get_current_context().get_parameter_source("out") is not ParameterSource.DEFAULT
    used = out in (sheet.parent, report.parent)
    _check_outputs(source.paths, out, sheet, report)
    by_default = used and not given
    sheets = [sheet, _worst(sheet)] if worst else [sheet]
    _check_places(source.paths, sheets, out if by_default else None)

    from ..report.page import is_listable
    from .scoring import scores_of  # imports torch, so only when there is something to do

    scores = scores_of(
        source.paths,
        options,
        journal=source.journal,
        scores=source.scores,
        retry_errors=source.retry_errors,
        exclude=[out],
    )
    if known_later(source.paths):
        _check_places([row.path for row in scores.rows], sheets, out if by_default else None)
    title = title or _title(source)
    own = out if used else None
    ranked = publish(scores, title, sheet, report, top=top, worst=worst, limit=limit, own=own)
    _print_best(ranked)
    without = len(scores.rows) - len(ranked)
    if without:
        click.echo(f"{without} without a score: the report says why")
    if unlisted := sum(not is_listable(row.path) for row in ranked):
        click.echo(
            f"{unlisted} with a line break in the name, or not UTF-8: ranked, but the report cannot "
            "put such names into a list"
        )
    echo_files(("contact sheet", sheet), ("worst", worst and _worst(sheet)), ("report", report))
    if open_report:
        open_in_browser(report)


def publish(
    scores: Scores,
    title: str,
    sheet: Path,
    report: Path,
    *,
    top: int,
    worst: int | None = None,
    limit: int = 3000,
    own: Path | None = None,
) -> list[Row]:
    """Writes the contact sheet(s) and the report. Returns the rows with a score, best first.

    Args:
        own: the folder for whatever is written: its pictures are never ranked or filtered later.

    Raises:
        ValueError: no picture has a score; nothing is written.
    """
    from ..report.page import split_rows, write_report
    from .files import mark_as_ours

    ranked, failed = split_rows(scores.rows)
    if not ranked:
        raise ValueError(f"none of {len(failed)} pictures has a score: {failed[0].error}")
    if own:
        mark_as_ours(own)
    numbered = list(enumerate(ranked, 1))
    heading = f"{scores.name} | {title} |"
    best = numbered[:top]
    write_sheet(sheet, best, f"{heading} best {len(best)} of {len(ranked)}")
    if worst:
        last = numbered[-worst:]
        write_sheet(_worst(sheet), last, f"{heading} worst {len(last)} of {len(ranked)}")
    write_report(report, scores, title=title, keep=top, limit=limit, progress=True)
    return ranked


def write_sheet(path: Path, ranked: Sequence[tuple[int, Row]], title: str) -> None:
    """A contact sheet of (rank, row), written whole or not at all."""
    from ..report.contact_sheet import contact_sheet
    from ..scorers.checkpoint import replacing

    ranks, rows = zip(*ranked, strict=True)
    image = contact_sheet(
        [row.path for row in rows], [row.score for row in rows], ranks=ranks, title=title
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        image.save(temporary, FORMATS[path.suffix.lower()], quality=92)


def echo_files(*files: tuple[str, Path | None]) -> None:
    """One line a file: what it is and where it lies."""
    for what, path in files:
        if path:
            click.echo(f"{what:<14} {click.format_filename(path)}")


def open_in_browser(report: Path) -> None:
    if not webbrowser.open(report.absolute().as_uri()):
        click.echo("no browser could be started: open the report yourself", err=True)


def _check_outputs(paths: Sequence[str], out: Path, sheet: Path, report: Path) -> None:
    """Wrong names are told before the scoring, which may take hours."""
    if sheet.suffix.lower() not in FORMATS:
        raise click.BadParameter(f"a sheet ends in {', '.join(FORMATS)}, got {sheet.name}")
    if report.suffix.lower() not in (".html", ".htm"):
        raise click.BadParameter(f"a report ends in .html, got {report.name}")
    if out.resolve() in {Path(path).resolve() for path in paths}:
        raise click.BadParameter(
            f"--out {out} is itself to be ranked: nothing is written beside pictures, choose another"
        )


def _check_places(paths: Sequence[str | Path], sheets: Sequence[Path], out: Path | None) -> None:
    """Raises click.ClickException where pictures would be written over; or, by default, beside them."""
    if out:
        refuse_among_pictures(paths, out, "the report")
    for sheet in sheets:
        refuse_over_pictures(paths, sheet)


def _worst(sheet: Path) -> Path:
    return sheet.with_stem(f"{sheet.stem}-worst")


def _title(source: SourceOptions) -> str:
    """What was ranked, in a few words."""
    names = [Path(path).resolve().name or path for path in source.paths]
    names = names or [source.scores.name if source.scores else "pictures"]
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _print_best(ranked: Sequence[Row]) -> None:
    """The best few as a table."""
    from ..report.contact_sheet import format_score

    click.echo(f"{'rank':>6} {'score':>9}  picture")
    for rank, row in enumerate(ranked[:PRINTED], 1):
        name = " ".join(click.format_filename(row.path).splitlines())
        click.echo(f"{rank:>6} {format_score(row.score):>9}  {name}")
    if len(ranked) > PRINTED:
        click.echo(f"{'':>6} {'...':>9}  {len(ranked)} ranked")
