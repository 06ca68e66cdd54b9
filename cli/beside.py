"""Nothing is written among the user's pictures unless it is asked for by name, or over the user's files."""

from __future__ import annotations

import glob
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import click


def refuse_among_pictures(paths: Iterable[str | os.PathLike], out: Path, what: str) -> None:
    """For an output that goes to its default place, before any work.

    Args:
        paths: PATHS as on the command line; where they are `known_later`, then the files.
        out: where the output would lie.
        what: what it is, e.g. "the report".

    Raises:
        click.ClickException: that is in a folder of `paths`, or beside a file of them.
    """
    place = os.path.realpath(out)
    for folder, below in _folders(paths):
        real = os.path.realpath(folder)
        inside = Path(place).is_relative_to(real) if below else os.path.dirname(place) == real
        if inside:
            outside = os.path.relpath(os.path.join(os.path.dirname(real), out.name))
            raise click.ClickException(
                f"{what} would lie among the pictures of {click.format_filename(folder)}: "
                f"choose another place, e.g. --out {click.format_filename(outside)}"
            )


def refuse_over_pictures(paths: Iterable[str | os.PathLike], out: Path) -> None:
    """For an output that is there already: as `refuse_among_pictures`, where it would be one of them.

    Raises:
        click.ClickException: it is among `paths`, in no folder of our own output.
    """
    from .files import MARKER

    if not out.exists() or (out.parent / MARKER).exists():
        return
    place = Path(os.path.realpath(out))
    for path in _each(paths):
        if os.path.isdir(path):
            among = place.is_relative_to(os.path.realpath(path))
        else:
            among = os.path.exists(path) and os.path.samefile(path, place)
        if among:
            raise click.ClickException(
                f"{click.format_filename(out)} is there already, among the pictures to rank: it is not "
                "written over, name another file"
            )


def refuse_foreign(out: Path, kind: str, is_ours: Callable[[Path], bool]) -> None:
    """For an output, before any work: what is there already is replaced only if it is of its kind.

    Args:
        is_ours: whether a file that is not empty is such an output.

    Raises:
        click.ClickException: it is something else, such as what the command reads.
    """
    if out.exists() and out.stat().st_size and not is_ours(out):
        raise click.ClickException(
            f"{click.format_filename(out)} is there already and is no {kind}: it is not replaced, "
            "name another file"
        )


def known_later(paths: Iterable[str]) -> bool:
    """Whether which files are meant shows only when they are read: standard input, or a table."""
    return not paths or not {"-", "@-"}.isdisjoint(paths)


def _folders(paths: Iterable[str | os.PathLike]) -> Iterator[tuple[str, bool]]:
    """Each folder once, and whether all that lies below it is meant too."""
    seen = set()
    for path in _each(paths):
        below = os.path.isdir(path)
        folder = path if below else os.path.dirname(os.path.abspath(path))
        if (folder, below) not in seen:
            seen.add((folder, below))
            yield folder, below


def _each(paths: Iterable[str | os.PathLike]) -> Iterator[str]:
    """The files and folders that PATHS name, with those of lists and globs."""
    for path in map(os.fspath, paths):
        if path in ("-", "@-"):
            continue
        if os.path.lexists(path):
            yield path
        elif path.startswith("@") and os.path.isfile(path[1:]):
            with open(path[1:], encoding="utf-8-sig", errors="surrogateescape") as file:
                yield from (line.rstrip("\r\n") for line in file if line.strip())
        elif glob.has_magic(path):
            yield from glob.iglob(os.path.expanduser(path), recursive=True)
