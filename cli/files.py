"""PATHS on a command line to picture and video files, one at a time and in a fixed order."""

from __future__ import annotations

import functools
import glob
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TextIO

import click

from ..scorers.decode import special
from ..scorers.video import VIDEO_SUFFIXES

# An empty file in folders of our own output: their sheets are no pictures to be judged.
MARKER = ".tastemaker"
# What is taken from folders and globs. A file that is named itself is tried whatever its suffix.
PICTURE_SUFFIXES = (
    *(".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".avif", ".gif", ".bmp", ".dib"),
    *(".tif", ".tiff", ".jp2", ".j2k", ".jpx", ".ppm", ".pgm", ".pbm", ".pnm", ".qoi", ".tga"),
)
_SUFFIXES = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)


def expand(paths: Sequence[str], exclude: Iterable[str | os.PathLike] = ()) -> Iterator[Path]:
    """The files that PATHS mean, as absolute paths, streamed.

    Args:
        paths: files; folders (recursive, sorted, hidden entries and our own output skipped); globs;
            `@LIST`, a file with one path a line, where `@-` or `-` is standard input. Lines are
            taken as they are: a missing file shows when it is scored. What is named itself is
            taken even if it is our own output.
        exclude: folders that are not entered.

    Raises:
        FileNotFoundError: at once, for the first argument that does not exist.
        ValueError: at once, when no PATHS are given, one of them is a pipe, a socket or a device, or
            they hold no picture or video.
    """
    if not paths:
        raise ValueError("no PATHS given: name files, folders, globs or @lists")
    closed = {os.path.realpath(folder) for folder in exclude}
    parts = [_part(path, closed) for path in paths]  # each argument is checked before any is read
    found = (Path(os.path.abspath(path)) for path in chain.from_iterable(parts))
    first = next(found, None)
    if first is None:
        raise ValueError(f"no pictures or videos in {', '.join(paths)}")
    return chain([first], found)


def is_media(name: str) -> bool:
    """Whether a file in a folder is taken for a picture or a video."""
    return name.lower().endswith(_SUFFIXES)


def mark_as_ours(folder: Path) -> None:
    """Makes a folder whose pictures are our own output; one that holds others is left as it is."""
    if folder.is_dir() and next(_walk(str(folder), set(), set()), None):
        return
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARKER).touch()


def _part(path: str, closed: set[str]) -> Iterator[str]:
    """The files of one argument, which is checked at once and read when it is the turn."""
    if path in ("-", "@-"):
        return _lines(sys.stdin)
    if os.path.isdir(path):
        os.scandir(path).close()  # one that may not be read is an error, here and not halfway
        return _walk(path, closed, set())
    if os.path.lexists(path):
        if os.path.exists(path) and (kind := special(path)):
            raise ValueError(f"a {kind}, not a picture: {path}")
        return iter([path])
    if path.startswith("@"):
        if not os.path.isfile(path[1:]):
            raise FileNotFoundError(f"no such list: {path[1:]}")
        return _list(path[1:])
    if glob.has_magic(path):
        return _glob(path, closed)
    raise FileNotFoundError(f"no such file or folder: {path}")


def _list(path: str) -> Iterator[str]:
    # utf-8-sig: what Windows editors put first is no part of the first path.
    with open(path, encoding="utf-8-sig", errors="surrogateescape") as file:
        yield from _lines(file)


def _lines(file: TextIO) -> Iterator[str]:
    for line in file:
        if line.strip():
            yield line.rstrip("\r\n")


def _glob(pattern: str, closed: set[str]) -> Iterator[str]:
    named = os.path.expanduser(pattern)
    matches = sorted(glob.glob(named, recursive=True))
    if not matches:
        raise FileNotFoundError(f"nothing matches {pattern}")
    while glob.has_magic(named):
        named = os.path.dirname(named)
    return _matches(matches, closed, named)


def _matches(matches: list[str], closed: set[str], named: str) -> Iterator[str]:
    """The files of what a glob matches; `named` is the folder in front of its first wildcard."""
    visited: set[tuple[int, int]] = set()
    ours = functools.cache(_is_ours)
    for match in matches:
        below = [match]
        while len(parent := os.path.dirname(below[-1])) > len(named):
            below.append(parent)
        if any(map(ours, below)):
            continue
        if os.path.isdir(match):
            yield from _walk(match, closed, visited)
        elif is_media(match) and _is_file(match):
            yield match


def _walk(folder: str, closed: set[str], visited: set[tuple[int, int]]) -> Iterator[str]:
    """Files of a folder in sorted order, then those of its subfolders; each folder once."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in visited or os.path.realpath(folder) in closed:
            return
        visited.add((status.st_dev, status.st_ino))  # a link back to it is no second folder
        files, folders = _entries(folder)
    except OSError as error:
        click.echo(f"Warning: left out {folder} ({error.strerror})", err=True)
        return
    for name in files:
        yield os.path.join(folder, name)
    for name in folders:
        if not _is_ours(path := os.path.join(folder, name)):
            yield from _walk(path, closed, visited)


def _is_ours(folder: str) -> bool:
    return os.path.exists(os.path.join(folder, MARKER))


def _is_file(path: str) -> bool:
    """Not a pipe, a socket or a device. A link that leads nowhere is told of when it is opened."""
    return os.path.isfile(path) or not os.path.exists(path)


def _entries(folder: str) -> tuple[list[str], list[str]]:
    """Sorted names of the media files and of the subfolders that are not hidden."""
    files, folders = [], []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir():
                folders.append(entry.name)
            elif is_media(entry.name) and (entry.is_file() or _is_file(entry.path)):
                files.append(entry.name)
    return sorted(files), sorted(folders)
