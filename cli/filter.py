"""`tastemaker filter`: keep the best by a rule or by hand, and print, link, copy or move them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..wording import counted
from .options import EXISTING_FILE, ScorerOptions, SourceOptions, scorer_options, scores_options

if TYPE_CHECKING:
    from .transfer import Failure, Step

FOLDER = click.Path(file_okay=False, path_type=Path)
SHOWN_FAILURES = 5
SHOWN_STRANGERS = 3


@dataclass(frozen=True)
class Rule:
    """What is kept; one of them is given."""

    threshold: float | None
    top_k: int | None
    top_fraction: float | None
    listed: Path | None


@click.command("filter")
@scores_options
@click.option("--threshold", type=float, help="Keep every score of at least so much.")
@click.option("--top-k", type=click.IntRange(min=0), help="Keep the best so many.")
@click.option("--top-fraction", type=click.FloatRange(0, 1), help="Keep the best share, e.g. 0.3.")
@click.option(
    "--list",
    "listed",
    type=EXISTING_FILE,
    help="Keep what this file names, e.g. the report's list.",
)
@click.option(
    "--action",
    type=click.Choice(["print", "link", "hardlink", "copy", "move"]),
    default="print",
    show_default=True,
    help="Print the kept paths, best first; or put the pictures into the folders below.",
)
@click.option("--kept", type=FOLDER, help="Folder for what is kept; without it, it stays.")
@click.option("--rejected", type=FOLDER, help="Folder for the rest; without it, it stays.")
@click.option(
    "--reject-unscored", is_flag=True, help="Reject what has no score too; without it, it stays."
)
@click.option(
    "--with-sidecars", is_flag=True, help="Take files of the same stem along: captions..."
)
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--resume", type=EXISTING_FILE, help="Finish an interrupted move; takes its log.")
@click.option("--undo", type=EXISTING_FILE, help="Move everything back; takes the move's log.")
@scorer_options
def command(
    source: SourceOptions,
    options: ScorerOptions,
    action: str,
    kept: Path | None,
    rejected: Path | None,
    reject_unscored: bool,
    with_sidecars: bool,
    dry_run: bool,
    resume: Path | None,
    undo: Path | None,
    **rule,
) -> None:
    """Keep the best pictures.

    Scores come from the journal where it has them, or from --scores FILE; the rest are made now.
    Pictures without a score (unreadable, not in FILE...) are neither kept nor rejected: they stay
    where they are. No file is ever overwritten: a second a.png becomes a-2.png. An interrupted run
    can be repeated as it was given.
    """
    if resume or undo:
        return _replay(resume, undo, dry_run)
    rule = Rule(**rule)
    _check(source, rule, action, kept, rejected)
    folders = [folder for folder in (kept, rejected) if folder]
    asked = _description(source, options, rule, kept, rejected, with_sidecars, reject_unscored)
    if action == "move" and not dry_run and _finish_interrupted(asked, source.paths):
        return
    keep, reject, unscored = _select(source, options, rule, folders, in_order=action != "print")
    if unscored:
        fate = "rejected" if reject_unscored else "left where they are"
        click.echo(f"{len(unscored)} without a score, {fate}", err=True)
    reject += unscored if reject_unscored else []
    click.echo(f"{len(keep)} kept, {len(reject)} rejected", err=True)
    if action == "print":
        for path in keep:
            click.echo(os.fsencode(path))  # the name's own bytes, for the next program
        return
    sides = [(paths, folder) for paths, folder in ((keep, kept), (reject, rejected)) if folder]
    _transfer(_plan(sides, action, with_sidecars), action, dry_run, asked)


def _check(
    source: SourceOptions, rule: Rule, action: str, kept: Path | None, rejected: Path | None
) -> None:
    """Raises click.UsageError for options that do not go together, before any work."""
    given = [value for value in vars(rule).values() if value is not None]
    if len(given) != 1:
        raise click.UsageError("give one of --threshold, --top-k, --top-fraction and --list")
    if rule.listed and source.scores:
        raise click.UsageError("--list names what is kept: --scores would not be read")
    folders = [os.path.realpath(folder) for folder in (kept, rejected) if folder]
    if (action == "print") == bool(folders):
        raise click.UsageError("--action link, copy and move go with --kept or --rejected FOLDER")
    if len(set(folders)) < len(folders):
        raise click.UsageError("--kept and --rejected are one folder")
    for path in source.paths:
        if os.path.realpath(path) in folders:
            raise click.UsageError(f"{path} is both to be filtered and to be filled")


def _select(
    source: SourceOptions, options: ScorerOptions, rule: Rule, exclude: list[Path], in_order: bool
) -> tuple[list[Path], list[Path], list[Path]]:
    """Paths kept, rejected and without a score: best first, or `in_order` of the PATHS."""
    if rule.listed:
        return *_by_list(source, rule.listed, exclude), []
    from .. import ranking
    from .scoring import scores_for

    scores = scores_for(source, options, exclude)
    order = "original" if in_order else "best"
    if rule.threshold is not None:
        selection = ranking.threshold(scores.values, rule.threshold, order)
    elif rule.top_k is not None:
        selection = ranking.top_k(scores.values, rule.top_k, order)
    else:
        selection = ranking.top_fraction(scores.values, rule.top_fraction, order)
    keep, reject = ([scores.rows[i] for i in side.tolist()] for side in selection)
    scored = [row.path for row in reject if not math.isnan(row.score)]
    unscored = [row.path for row in reject if math.isnan(row.score)]
    return [row.path for row in keep], scored, unscored


def _by_list(
    source: SourceOptions, listed: Path, exclude: list[Path]
) -> tuple[list[Path], list[Path]]:
    from .files import expand

    wanted = dict.fromkeys(expand([f"@{listed}"]))
    if not source.paths:
        return list(wanted), []
    found = dict.fromkeys(expand(source.paths, exclude))
    if strangers := [path for path in wanted if path not in found]:
        named = ", ".join(map(click.format_filename, strangers[:SHOWN_STRANGERS]))
        rest = "..." if len(strangers) > SHOWN_STRANGERS else ""
        raise ValueError(f"{len(strangers)} of {listed} are not among the PATHS: {named}{rest}")
    return [p for p in found if p in wanted], [p for p in found if p not in wanted]


def _plan(sides: list[tuple[list[Path], Path]], action: str, sidecars: bool) -> list[Step]:
    """All the steps, after telling what each folder gets."""
    from .transfer import plan, with_sidecars

    steps = []
    for paths, folder in sides:
        groups = [[path] for path in paths]
        if sidecars:
            groups, shared = with_sidecars(paths)
            if shared:
                click.echo(f"{shared} sidecars belong to several pictures and stay", err=True)
        fresh, done = plan(groups, folder, action)
        there = f", {done} already there" if done else ""
        click.echo(f"{action} {counted(len(fresh), 'file')} into {folder}{there}", err=True)
        steps += fresh
    return steps


def _transfer(steps: list[Step], action: str, dry_run: bool, asked: dict) -> None:
    from .moves import carry_out, finished, write_log
    from .transfer import ACTS, perform

    if dry_run:
        _print(steps)
    elif action != "move":
        _run(perform(steps, ACTS[action]), len(steps))
    elif steps:
        _check_running(asked, [path for step in steps for path in step])
        log = write_log(steps, asked)
        try:
            _run(carry_out(log), len(steps))
        finally:  # also when some files failed, or the user stops it
            done = finished(log)
            click.echo(f"to undo: tastemaker filter --undo {done if done.exists() else log}")


def _print(steps: Iterable[Step]) -> None:
    for source, target in steps:
        click.echo(os.fsencode(f"{source} -> {target}"))


def _run(results: Iterable[Failure | None], total: int) -> None:
    """Shows progress; names the first few failures. Exits with 1 if there are any."""
    from tqdm.auto import tqdm

    from .stopping import stopped_as_by_ctrl_c

    with stopped_as_by_ctrl_c():
        failures = [f for f in tqdm(results, total=total, unit="file", disable=None) if f]
    for failure in failures[:SHOWN_FAILURES]:
        click.echo(f"  {failure.source}: {failure.reason}", err=True)
    if failures:
        raise click.ClickException(
            f"{len(failures)} of {counted(total, 'file')} stayed where they are"
        )


def _finish_interrupted(asked: dict, paths: Sequence[str]) -> bool:
    """Finishes this same move if it was interrupted; refuses to start another over one that was."""
    for log in _check_running(asked, paths):
        if _command(log) != asked:
            raise RuntimeError(
                f"another move was interrupted: `tastemaker filter --resume {log}` finishes it, "
                f"--undo {log} takes it back"
            )
        _replay(log, None, dry_run=False)
        return True
    return False


def _check_running(asked: dict, paths: Iterable[str | Path]) -> list[Path]:
    """Logs of interrupted moves. Raises RuntimeError where this move, or one of these files, runs."""
    from .moves import is_running, touches, unfinished

    interrupted, paths = [], list(paths)
    for log in unfinished():
        try:
            if not is_running(log):
                interrupted.append(log)
            elif _command(log) == asked or touches(log, paths):
                raise RuntimeError(
                    "another tastemaker filter is moving these pictures now: "
                    f"wait until it has ended, or stop it there with Ctrl-C ({log})"
                )
        except FileNotFoundError:
            continue  # it has just ended
    return interrupted


def _command(log: Path) -> dict:
    from .moves import read_log

    return read_log(log)[0]


def _replay(resume: Path | None, undo: Path | None, dry_run: bool) -> None:
    from . import moves

    if resume and undo:
        raise click.UsageError("give one of --resume and --undo")
    log = resume or undo
    steps = moves.read_log(log)[1]
    steps = steps if resume else moves.back(steps)
    left = [step for step in steps if os.path.lexists(step.source)]
    if dry_run:
        return _print(left)
    _run(moves.carry_out(log) if resume else moves.undo(log), len(steps))
    click.echo(
        f"{'moved' if resume else 'moved back'}: {len(left)} of {counted(len(steps), 'file')}"
    )


def _description(
    source: SourceOptions, options: ScorerOptions, rule: Rule, *rest: Path | bool | None
) -> dict:
    """The command, as far as it decides what moves where."""
    parts = {**vars(source), **vars(options), **vars(rule), "rest": rest, "folder": os.getcwd()}
    return {name: _plain(value) for name, value in parts.items()}


def _plain(value):
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return str(value) if isinstance(value, Path) else value
