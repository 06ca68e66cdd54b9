"""`tastemaker evaluate`: a scorer against comparisons or mean opinion scores, with intervals."""

from __future__ import annotations

from collections.abc import Mapping
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import EXISTING_FILE, OUTPUT_FILE, ScorerOptions, device_options, with_scorer

if TYPE_CHECKING:
    from PIL import Image

    from .evaluating import Evaluated, How

MEANING = {
    "accuracy": "how often the preferred one scores higher",
    "nll": "nats a comparison; a coin has 0.6931",
    "r2": "McFadden's: how much of the coin's nats is saved",
    "auc": "of the difference, each comparison both ways round",
    "brier": "squared error of the win probability; a coin has 0.25",
    "ece": "mean gap between how sure and how right it is",
    "aurc": "error among the surest, over all shares judged",
    "spearman": "against the ranking that the comparisons make",
    "kendall": "against the ranking that the comparisons make",
    "srcc": "Spearman's rank correlation",
    "plcc": "Pearson's correlation",
    "plcc_logistic": "after the four-parameter logistic",
    "krcc": "Kendall's rank correlation",
    "rmse": "after the logistic, in units of the ratings",
    "jpeg": "how often an original beats its JPEG of a third of the size",
    "low_resolution": "how often an original beats itself at 50-90 % of its sides",
}
TABLES = {"weighted": "as if the pairs had been drawn at random"}


@click.command("evaluate")
@click.argument("named", metavar="SCORER")  # `scorer` is one of the options' own
@click.argument("file", type=EXISTING_FILE, metavar="PAIRS|RATINGS.csv")
@click.option("--robustness", is_flag=True, help="Also JPEG and low-resolution copies.")
@click.option(
    "--robustness-images",
    type=click.IntRange(min=1),
    default=1000,
    show_default=True,
    help="At most so many images, drawn at random.",
)
@click.option("--plots", type=click.Path(file_okay=False, path_type=Path), help="Folder for plots.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option(
    "--part",
    type=click.Choice(["train", "test", "all"]),
    help="Which comparisons. [default: test, where the file sets some apart]",
)
@click.option(
    "--unseen", is_flag=True, help="Only comparisons of images that SCORER was not trained on."
)
@click.option("--voter", help="Of a store of votes: whose.")
@click.option("--tau", type=float, help="Score difference that makes the odds e to 1.")
@click.option("--calibration", type=EXISTING_FILE, help="From tastemaker calibrate --pairs.")
@click.option(
    "--distance-by",
    metavar="SCORER",
    help="Metrics by the distance of the two images in this scorer's embedding.",
)
@click.option(
    "--where",
    multiple=True,
    metavar="COLUMN=VALUE",
    callback=lambda _, option, given: [_condition(each, option) for each in given],
    help="Of ratings: only these rows, such as set=test. Repeat it for more columns, or for more "
    "values of one.",
)
@click.option("--image-column", help="Of ratings. [default: the usual names]")
@click.option("--score-column", help="Of ratings. [default: the usual names]")
@click.option(
    "--root",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Of ratings: the images' folder. [default: the file's]",
)
@click.option("--lower-is-better", is_flag=True, help="Of ratings: difference scores (DMOS).")
@click.option("--rounds", type=click.IntRange(min=2), default=1000, show_default=True, hidden=True)
@click.option("--seed", default=0, show_default=True, help="Of intervals and corruptions.")
@click.option("--journal", type=OUTPUT_FILE, help="Where scores are kept, as in score.")
@click.option("--retry-errors", is_flag=True, help="Try again what failed before.")
@device_options
def command(
    named: str,
    file: Path,
    robustness: bool,
    robustness_images: int,
    plots: Path | None,
    as_json: bool,
    options: ScorerOptions,
    **given: Any,
) -> None:
    """How well SCORER (a name, folder or hub id; NAME=TASK where it has several) predicts what
    people said of pictures, with 95 % intervals.

    The file is one of comparisons (JSON, a CSV of left,right,p, or a store of votes): accuracy,
    calibration and ranking. Or it is a CSV of mean opinion scores, such as KonIQ-10k's: SRCC, PLCC,
    KRCC, RMSE; with --where set=test of its test part alone. Scores are kept in the journal: an
    interrupted run goes on where it was.
    """
    from .evaluating import add_robustness, on_comparisons, on_ratings
    from .judged import is_comparisons

    options, how = with_scorer(options, named), _how(given)
    if how.tau is not None and how.calibration:
        raise click.UsageError("give one of --tau and --calibration")
    pairs = is_comparisons(file)
    _check(given, pairs)
    found = (on_comparisons if pairs else on_ratings)(file, options, how)
    if robustness:
        add_robustness(found, options, robustness_images, how)
    _print(found, as_json)
    if plots:
        _write(plots, found.plots, as_json)


def _condition(text: str, option: click.Parameter) -> tuple[str, str]:
    column, equals, value = text.partition("=")
    if not equals or not column.strip():
        raise click.BadParameter(f"{text!r} is not COLUMN=VALUE, such as set=test", param=option)
    return column.strip(), value.strip()


def _how(given: dict[str, Any]) -> How:
    from .evaluating import How

    names = ("image_column", "score_column", "root", "lower_is_better", "where")
    columns = {name: given[name] for name in names}
    bootstrap = {"rounds": given["rounds"], "seed": given["seed"]}
    own = {name: given[name] for name in How._fields if name in given}
    return How(**own, columns=columns, bootstrap=bootstrap)


def _check(given: dict[str, Any], pairs: bool) -> None:
    """Raises click.UsageError for options that go with the other kind of file."""
    of_pairs = ("part", "unseen", "voter", "tau", "calibration", "distance_by")
    of_ratings = ("image_column", "score_column", "root", "lower_is_better", "where")
    for name in of_ratings if pairs else of_pairs:
        if given[name] not in (None, False, []):
            kind = "ratings, not comparisons" if pairs else "comparisons, not ratings"
            raise click.UsageError(f"--{name.replace('_', '-')} goes with a file of {kind}")


def _print(found: Evaluated, as_json: bool) -> None:
    if as_json:
        from .judged import echo_json

        card = {"scorer": found.scores.name, "fingerprint": found.scores.fingerprint_id}
        metrics = {
            name or "metrics": {key: m._asdict() for key, m in table.items()}
            for name, table in found.tables.items()
        }
        echo_json({**card, **found.details, **metrics})
        return
    for line in found.lines:
        click.echo(line)
    for name, table in found.tables.items():
        click.echo(
            f"\n{name:<16}{'value':>9}   {'95 % interval':<18}  {TABLES.get(name, '')}".rstrip()
        )
        for key, m in table.items():
            value = "-" if isnan(m.value) else f"{m.value:.4f}"
            interval = "-" if isnan(m.low) else f"{m.low:.4f} to {m.high:.4f}"
            click.echo(f"{key:<16}{value:>9}   {interval:<18}  {MEANING[key]}")
    if by_distance := found.details.get("by_distance"):
        click.echo()
    for b in by_distance or ():
        click.echo(_distance_line(b))


def _distance_line(b: dict[str, float]) -> str:
    names = ("accuracy", "auc", "brier", "ece")
    values = ", ".join(f"{name} {b[name]:.4f}" for name in names)
    return f"distance {b['low']:.4f} to {b['high']:.4f}: {b['n']} comparisons, {values}"


def _write(folder: Path, plots: Mapping[str, Image.Image], quiet: bool) -> None:
    from ..scorers.checkpoint import replacing
    from .files import mark_as_ours

    mark_as_ours(folder)
    for name, picture in plots.items():
        with replacing(folder / f"{name}.png") as temporary:
            picture.save(temporary, "PNG")
        click.echo(f"written: {folder / name}.png", err=quiet)
    if not plots:
        click.echo("no plots: fewer than 20 decided comparisons", err=quiet)
