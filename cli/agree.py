"""`tastemaker agree`: how alike voters and scorers judge the same pairs."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .options import OUTPUT_FILE, ScorerOptions, device_options, with_scorer

if TYPE_CHECKING:
    from ..preferences.agreement import Agreement
    from ..preferences.comparisons import Comparisons

HEADER = f"{'shared':>7} {'decided':>8}  {'agreement':<26}{'of three outcomes':<26}kappa"


class Voter(NamedTuple):
    """Somebody whose comparisons are in a file."""

    name: str
    comparisons: Comparisons


@click.command("agree")
@click.argument("judges", nargs=-1, metavar="A [B]...")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
@click.option("--seed", default=0, show_default=True, help="Of the intervals.")
@click.option("--rounds", type=click.IntRange(min=2), default=1000, show_default=True, hidden=True)
@click.option("--journal", type=OUTPUT_FILE, help="Where one scorer's scores are kept.")
@click.option("--retry-errors", is_flag=True, help="Try again what failed before.")
@device_options
def command(
    judges: tuple[str, ...],
    as_json: bool,
    seed: int,
    rounds: int,
    journal: Path | None,
    retry_errors: bool,
    options: ScorerOptions,
) -> None:
    """How alike each two judges compare, with 95 % intervals.

    A judge is a file of comparisons (FILE, or STORE=VOTER; a store of several voters is several
    judges) or a scorer (a name, folder or hub id, or NAME=TASK). Scorers judge the pairs that the
    voters judged. Agreement is the share of alike choices where neither has a tie; kappa is Cohen's,
    with ties as a third outcome; a dash says that too few pairs are behind a number. Voters of one
    file come to share pairs as they vote: see `tastemaker vote --help`.
    """
    from ..preferences.agreement import agreement, verdicts_by, verdicts_of

    voters, scorers = _sorted(judges)
    if not voters:
        raise ValueError("name a file of comparisons or votes: scorers judge the pairs in it")
    if journal and len(scorers) > 1:
        raise click.UsageError("one journal holds one scorer: leave --journal out")
    if len(voters) + len(scorers) < 2:
        raise ValueError("that is one judge: name another one, or a store of several voters")
    key = _key(voters)
    verdicts = {voter.name: verdicts_of(voter.comparisons, key) for voter in voters}
    pairs = sorted(set().union(*verdicts.values()))
    images = dict.fromkeys(image for voter in voters for image in voter.comparisons.images)
    for scorer in scorers:
        scores = _scores(list(images), with_scorer(options, scorer), journal, retry_errors, key)
        verdicts[scorer] = verdicts_by(scores, pairs)
    found = {}
    for a, b in combinations(verdicts, 2):
        try:
            found[a, b] = agreement(verdicts[a], verdicts[b], rounds=rounds, seed=seed)
        except ValueError as error:
            click.echo(f"{a} and {b}: {error}", err=True)
    if not found:
        raise ValueError("no two judges share a comparison")
    _warn_of_few(found)
    _print_json(found) if as_json else _print(found)


def _sorted(judges: tuple[str, ...]) -> tuple[list[Voter], list[str]]:
    """Voters and names of scorers, both in the order in which they were named."""
    voters, scorers = [], []
    for judge in dict.fromkeys(judges):
        of_file = _voters(judge)
        voters += of_file
        if not of_file:
            scorers.append(judge)
    names = [voter.name for voter in voters]
    if len(set(names)) < len(names):  # files of one name in several folders
        voters = [Voter(f"{i}: {v.name}", v.comparisons) for i, v in enumerate(voters, 1)]
    return voters, scorers


def _voters(judge: str) -> list[Voter]:
    """Of a file of comparisons, its voters; none where it is a scorer's name."""
    from ..preferences.votes import ANSWERS, Votes, is_votes, read_votes
    from .judged import is_comparisons, read_part

    file, _, voter = judge.rpartition("=")
    if not Path(judge).exists() and file and Path(file).is_file() and is_votes(file):
        return [Voter(f"{Path(file).name}={voter}", read_votes(Path(file), voter=voter))]
    path = Path(judge)
    if not path.is_file() or not is_comparisons(path):
        return []
    if is_votes(path):
        answered = (v for v in Votes(path).votes() if ANSWERS[v.answer] is not None)
        names = dict.fromkeys(vote.voter for vote in answered)
        return [Voter(f"{path.name}={name}", read_votes(path, voter=name)) for name in names]
    return [Voter(path.name, read_part(path, "all")[0])]


def _key(voters: list[Voter]) -> Callable[[Path], Hashable]:
    """What an image is known by: its path, or its contents where two voters share no path."""
    from ..preferences.votes import sha256_of

    known = [set(voter.comparisons.images) for voter in voters]
    if all(a & b for a, b in combinations(known, 2)):
        return str
    click.echo("Not all share paths: images are known by their contents", err=True)
    contents = {path: sha256_of(path).hex() if path.is_file() else str(path)
                for path in set().union(*known)}  # fmt: skip
    return contents.__getitem__


def _scores(
    images: list[Path],
    options: ScorerOptions,
    journal: Path | None,
    retry_errors: bool,
    key: Callable[[Path], Hashable],
) -> dict[Hashable, float]:
    from .judged import scores_of_images

    scores = scores_of_images(images, options, journal, retry_errors)
    return {key(row.path): row.score for row in scores.rows}


def _warn_of_few(found: dict[tuple[str, str], Agreement]) -> None:
    from ..preferences.agreement import FEW

    few = [f"{a} and {b} ({of.decided})" for (a, b), of in found.items() if of.decided < FEW]
    if few:
        click.echo(
            f"Too few pairs in common to tell how alike they judge, fewer than {FEW} that neither "
            f"calls a tie: {', '.join(few)}",
            err=True,
        )


def _print(found: dict[tuple[str, str], Agreement]) -> None:
    names = {pair: f"{pair[0]} and {pair[1]}" for pair in found}
    width = max(map(len, names.values()))
    click.echo(f"{'':<{width}}  {HEADER}")
    for pair, a in found.items():
        shown = [_shown(a, name) for name in ("agreement", "alike", "kappa")]
        counts = f"{a.shared:>7} {a.decided:>8}"
        click.echo(f"{names[pair]:<{width}}  {counts}  {shown[0]:<26}{shown[1]:<26}{shown[2]}")


def _shown(found: Agreement, name: str) -> str:
    low, high = found.intervals[name]
    return f"{getattr(found, name):.3f} ({low:.3f} to {high:.3f})" if found.tells(name) else "-"


def _print_json(found: dict[tuple[str, str], Agreement]) -> None:
    from .judged import echo_json

    rows: list[dict[str, Any]] = []
    for (a, b), values in found.items():
        row: dict[str, Any] = {"a": a, "b": b, "shared": values.shared, "decided": values.decided}
        for name, (low, high) in values.intervals.items():
            told = {"value": getattr(values, name), "low": low, "high": high}
            row[name] = told if values.tells(name) else dict.fromkeys(told)
        rows.append(row)
    echo_json(rows)
