"""`tastemaker compare A B`: both scores, and how likely the first wins."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import EXISTING_FILE, OUTPUT_FILE, ScorerOptions, scorer_options

if TYPE_CHECKING:
    from .scoring import Scores


@click.command("compare")
@click.argument("a", type=EXISTING_FILE)
@click.argument("b", type=EXISTING_FILE)
@click.option("--tau", type=float, help="Score difference that makes the odds e to 1.")
@click.option("--calibration", type=EXISTING_FILE, help="From tastemaker calibrate --pairs.")
@click.option("--journal", type=OUTPUT_FILE, help="Where scores are kept, as in score.")
@scorer_options
def command(
    a: Path,
    b: Path,
    tau: float | None,
    calibration: Path | None,
    journal: Path | None,
    options: ScorerOptions,
) -> None:
    """Compare two pictures.

    The win probability is sigmoid((score A - score B) / tau). Scorers trained on comparisons have
    tau 1; of the others only the order is known, until --tau or --calibration says more.
    """
    if tau is not None and calibration:
        raise click.UsageError("give one of --tau and --calibration")
    from .scoring import scores_of

    # `./` keeps a file that is called @x, - or *.png from being read as something else.
    paths = [os.path.join(".", path) for path in (a, b)]
    scores = scores_of(paths, options, journal=journal, retry_errors=True)
    known = {row.path: row for row in scores.rows}
    rows = [known[Path(os.path.abspath(path))] for path in (a, b)]
    for name, path, row in zip("AB", (a, b), rows, strict=True):
        if row.error:
            raise ValueError(row.error)
        click.echo(f"{name} {row.score:12.6f}  {click.format_filename(path)}")
    click.echo(verdict(rows[0].score, rows[1].score, scores, tau, calibration))


def verdict(a: float, b: float, scores: Scores, tau: float | None, calibration: Path | None) -> str:
    """Who is judged better, and how surely where that can be said."""
    from ..ranking import win_probability
    from ..scorers.calibration import own_tau, read_calibration

    better = "they are equal" if a == b else f"{'A' if a > b else 'B'} is judged better"
    source = "as given"
    if calibration:
        found = read_calibration(calibration, scores.name, scores.fingerprint_id)
        tau, source = found.tau, calibration.name
    elif tau is None:
        tau, source = own_tau(scores.card), "the scorer's own"
        if tau is None:
            return (
                f"{better}; the scores do not say how likely ({scores.card.unit}): "
                "give --tau or --calibration"
            )
    probability = float(win_probability(a, b, tau))
    return f"{better}; A wins with probability {probability:.4f} (tau {tau:.6g}, {source})"
