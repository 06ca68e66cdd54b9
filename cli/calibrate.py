"""`tastemaker calibrate`: mean and deviation of scorers on the user's own set, in a small file."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from ..wording import counted
from .beside import known_later, refuse_among_pictures, refuse_foreign
from .options import (
    EXISTING_FILE,
    OUTPUT_FILE,
    ScorerOptions,
    SourceOptions,
    device_options,
    load_arguments,
    source_options,
    with_scorer,
)

if TYPE_CHECKING:
    from ..report.rows import Row
    from .scoring import Scores


@click.command("calibrate")
@source_options
@click.option(
    "--scorer",
    "scorers",
    multiple=True,
    required=True,
    help="A scorer as in tastemaker score, or SCORER=TASK. Give it once for each.",
)
@click.option(
    "--pairs",
    type=EXISTING_FILE,
    help="Comparisons or votes (or a CSV of winner,loser): fit tau and b too.",
)
@click.option("--voter", help="Of a store of votes: whose. [default: the only one's]")
@click.option("--name", help="What the set is called. [default: the PATHS]")
@click.option(
    "--out", type=OUTPUT_FILE, default=Path("reference.json"), show_default=True, help="The file."
)
@device_options
def command(
    source: SourceOptions,
    options: ScorerOptions,
    scorers: tuple[str, ...],
    pairs: Path | None,
    voter: str | None,
    name: str | None,
    out: Path,
) -> None:
    """Measure scorers on your own pictures.

    The file is an ensemble: --scorer reference.json scores with the weighted mean of its members'
    standardised scores. With --pairs it also holds what `tag --method calibrated` and `compare`
    need.
    """
    from ..scorers.checkpoint import replacing
    from .calibration import read_pairs
    from .scoring import scores_for

    if voter is not None and not pairs:
        raise click.UsageError("--voter goes with --pairs")
    if source.journal and len(scorers) > 1:
        raise click.UsageError("one journal holds one scorer: leave --journal out")
    if len(set(scorers)) < len(scorers):
        raise click.UsageError("a scorer is named twice")
    refuse_foreign(out, "file of tastemaker calibrate", _is_reference)
    chosen = click.get_current_context().get_parameter_source("out")
    if chosen is ParameterSource.DEFAULT:
        refuse_among_pictures(source.paths, out, str(out))
    compared = read_pairs(pairs, voter) if pairs else None
    members, rows = [], []
    for each in scorers:
        own = with_scorer(options, each)
        scores = scores_for(source, own)
        members.append(_measure(scores, own, compared))
        rows = scores.rows
        if chosen is ParameterSource.DEFAULT and known_later(source.paths):
            refuse_among_pictures((row.path for row in rows), out, str(out))
    contents = {
        "tastemaker": "reference",
        "set": {"name": name or _name(source.paths), "n": len(rows), "digest": set_digest(rows)},
        "members": members,
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    with replacing(out) as temporary:
        temporary.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")
    click.echo(f"written: {out}")


def _is_reference(path: Path) -> bool:
    from ..scorers.values import read_json

    try:
        return read_json(path).get("tastemaker") == "reference"
    except ValueError:
        return False


def set_digest(rows: Iterable[Row]) -> str:
    """16 hex digits that stand for a set of files, wherever it lies: their names and sizes."""
    lines = sorted(os.fsencode(row.path.name) + b" %d" % _size(row.path) for row in rows)
    return hashlib.sha256(b"\n".join(lines)).hexdigest()[:16]


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else -1


def _measure(scores: Scores, options: ScorerOptions, pairs: list | None) -> dict[str, Any]:
    """One scorer's entry: how to load it, what it was, and its statistics."""
    from ..ranking import reference_statistics
    from .calibration import fit

    mean, std, n = reference_statistics(scores.values)
    if std == 0:
        raise ValueError(
            f"{scores.name} scored {mean:.4f} for each of {n} pictures, which is no scale to measure "
            "others on: nothing is written. Give more pictures, or ones that differ"
        )
    known = [value for value in scores.values if value == value]
    low, high = min(known), max(known)
    click.echo(
        f"{scores.name}: {counted(n, 'score')}, {low:.4f} to {high:.4f}, mean {mean:.4f}, std {std:.4f}"
    )
    entry = {
        "load": load_arguments(options),
        "name": scores.name,
        "fingerprint": dict(scores.card.fingerprint),
        **{"mean": mean, "std": std, "n": n, "low": low, "high": high, "weight": 1.0},
    }
    if pairs:
        fitted = fit(scores, pairs)
        click.echo(f"  {counted(len(pairs), 'comparison')}: tau {fitted.tau:.6g}, b {fitted.b:.6g}")
        entry["calibration"] = fitted.to_dict()
    return entry


def _name(paths: tuple[str, ...]) -> str:
    return ", ".join(Path(path).resolve().name or path for path in paths)
