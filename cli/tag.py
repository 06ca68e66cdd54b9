"""`tastemaker tag`: quality words as text-to-image training captions use them.

Method A of the JoyQuality README is `equal_width` or `quantile`, method B is `calibrated`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import (
    EXISTING_FILE,
    OUTPUT_FILE,
    ScorerOptions,
    SourceOptions,
    scorer_options,
    scores_options,
)

if TYPE_CHECKING:
    from .scoring import Scores

SHOWN = 5


@click.command("tag")
@scores_options
@click.option(
    "--method",
    type=click.Choice(["equal_width", "quantile", "calibrated"]),
    default="equal_width",
    show_default=True,
    help="Divide the range of the scores; or their number; or the calibrated ranks 0 to 10.",
)
@click.option("--labels", help="Words from worst to best, with commas between. [default: five]")
@click.option("--calibration", type=EXISTING_FILE, help="From tastemaker calibrate --pairs.")
@click.option("--pairs", type=EXISTING_FILE, help="Comparisons or votes, to calibrate here.")
@click.option("--voter", help="Of a store of votes: whose. [default: the only one's]")
@click.option("--tau", type=float, help="Score difference that makes the odds e to 1.")
@click.option("--b", type=float, help="Score of rank 5. [default: the set's mean rank becomes 5]")
@click.option("--export", type=OUTPUT_FILE, help="Write a table with a column `tag`.")
@click.option("--sidecars", is_flag=True, help="Write a file with the words beside each picture.")
@click.option("--suffix", default=".quality.txt", show_default=True, help="Of the sidecar files.")
@scorer_options
def command(
    source: SourceOptions,
    options: ScorerOptions,
    method: str,
    labels: str | None,
    calibration: Path | None,
    pairs: Path | None,
    voter: str | None,
    tau: float | None,
    b: float | None,
    export: Path | None,
    sidecars: bool,
    suffix: str,
) -> None:
    """Quality words for each picture, into a table or into sidecar files.

    A sidecar never replaces a file that tastemaker did not write: captions are safe. Without
    --export and --sidecars, only the counts are printed.
    """
    how = {"calibration": calibration, "pairs": pairs, "tau": tau}
    _check(method, how, b)
    if voter is not None and not pairs:
        raise click.UsageError("--voter goes with --pairs")
    from . import sidecars as files
    from .export import check_output
    from .scoring import scores_for

    names = _names(labels)
    if export:
        check_output(export)
    files.check_suffix(suffix)
    scores = scores_for(source, options)
    tags = tags_of(scores, names, method, b=b, voter=voter, **how)
    for name in reversed(names):
        click.echo(f"{tags.count(name):>8}  {name}")
    click.echo(f"{tags.count(None):>8}  no score")
    if export:
        _export(export, scores, tags)
    if sidecars:
        words = {row.path: tag for row, tag in zip(scores.rows, tags, strict=True) if tag}
        _report(files.write_sidecars(words, suffix), suffix)


def tags_of(
    scores: Scores,
    names: list[str],
    method: str,
    *,
    calibration: Path | None = None,
    pairs: Path | None = None,
    voter: str | None = None,
    tau: float | None = None,
    b: float | None = None,
) -> list[str | None]:
    """A word for each row, None where there is no score."""
    from .. import ranking
    from ..scorers.calibration import read_calibration
    from .calibration import fit, read_pairs

    if method != "calibrated":
        return ranking.quality_tags(ranking.buckets(scores.values, len(names), method), names)
    if calibration:
        fitted = read_calibration(calibration, scores.name, scores.fingerprint_id)
    elif b is not None and tau is not None:
        fitted = ranking.Calibration(tau, b)
    else:
        fitted = fit(scores, read_pairs(pairs, voter) if pairs else [], tau)
    click.echo(f"tau {fitted.tau:.6g}, b {fitted.b:.6g}")
    ranks = fitted.rank(scores.values)
    return ranking.quality_tags(ranking.rank_bucket(ranks, len(names)), names)


def _check(method: str, how: dict, b: float | None) -> None:
    """Raises click.UsageError for options that do not go together."""
    given = [f"--{name}" for name, value in how.items() if value is not None]
    if method == "calibrated" and len(given) != 1:
        raise click.UsageError("--method calibrated takes one of --calibration, --pairs and --tau")
    if method != "calibrated" and (given or b is not None):
        raise click.UsageError(f"{(given or ['--b'])[0]} goes with --method calibrated")
    if b is not None and how["tau"] is None:
        raise click.UsageError("--b goes with --tau")


def _names(labels: str | None) -> list[str]:
    from ..ranking import QUALITY_NAMES, read_names

    if labels is None:
        return list(QUALITY_NAMES)
    try:
        names = read_names(labels.split(","))
    except ValueError:
        raise click.UsageError("--labels are different words with commas between") from None
    if len(names) < 2:
        raise click.UsageError("--labels are two words at least: one would say the same of all")
    return names


def _export(export: Path, scores: Scores, tags: list[str | None]) -> None:
    from .export import COLUMNS, export_rows, write_table

    rows = export_rows(scores.rows, scores.name, scores.fingerprint_id)
    tagged = ((*row, tag) for row, tag in zip(rows, tags, strict=True))
    write_table(export, tagged, (*COLUMNS, "tag"))


def _report(written, suffix: str) -> None:
    click.echo(f"{written.fresh} sidecars written, {written.unchanged} unchanged ({suffix})")
    reasons = {
        "exist and were not written by tastemaker, left as they are": written.foreign,
        "pictures share a name and differ in words, left out": written.ambiguous,
    }
    for reason, paths in reasons.items():
        if paths:
            click.echo(f"{len(paths)} {reason}:", err=True)
        for path in paths[:SHOWN]:
            click.echo(f"  {path}", err=True)
