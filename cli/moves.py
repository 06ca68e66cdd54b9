"""Logs of moves: written before the first file moves, so that a move can be finished or undone.

Whoever moves files holds the log's lock, which ends with the process however that ends: a log that is
neither finished nor locked is that of an interrupted move.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO

from ..scorers.checkpoint import replacing
from ..scorers.home import home
from .transfer import Failure, Step, move, perform

_UNFINISHED = ".unfinished.jsonl"


def write_log(steps: Sequence[Step], command: Mapping[str, Any]) -> Path:
    """Writes down what is about to move, and which command asked for it."""
    folder = home() / "moves"
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-{os.getpid()}{_UNFINISHED}"
    with replacing(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        file.write(json.dumps({"tastemaker": "moves", "command": command}) + "\n")
        for source, target in steps:
            # Absolute: it may be undone from another folder.
            step = {"from": os.path.abspath(source), "to": os.path.abspath(target)}
            file.write(json.dumps(step) + "\n")
    return path


def read_log(path: Path) -> tuple[dict[str, Any], list[Step]]:
    """The command and the moves of a log. Raises ValueError if it is no log."""
    try:
        header, *lines = (
            json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()
        )
        if header["tastemaker"] != "moves":
            raise KeyError
        return header["command"], [Step(Path(x["from"]), Path(x["to"])) for x in lines]
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"not a log of moves: {path}") from None


def unfinished() -> list[Path]:
    """Logs of moves that run or were interrupted, oldest first."""
    return sorted((home() / "moves").glob(f"*{_UNFINISHED}"))


def is_running(log: Path) -> bool:
    """Whether a process is at it now."""
    with open(log, "rb") as file:
        return not _lock(file)


def touches(log: Path, paths: Iterable[str | os.PathLike]) -> bool:
    """Whether a move takes or makes any of these files, or files in any of these folders."""
    asked = {os.path.abspath(path) for path in paths}
    files = (file for step in read_log(log)[1] for file in step)
    return any(str(path) in asked for file in files for path in (file, *file.parents))


def carry_out(log: Path) -> Iterator[Failure | None]:
    """Moves what the log says and is not moved yet; the log then counts as finished.

    Raises:
        RuntimeError: another process is at it now.
    """
    yield from _perform(log, read_log(log)[1])


def undo(log: Path) -> Iterator[Failure | None]:
    """Moves back what the log says and is not back yet, last first; raises as `carry_out`."""
    yield from _perform(log, back(read_log(log)[1]))


def _perform(log: Path, steps: Sequence[Step]) -> Iterator[Failure | None]:
    with _locked(log):
        yield from perform(steps, move)
    if log.name.endswith(_UNFINISHED):
        os.replace(log, finished(log))


@contextmanager
def _locked(log: Path) -> Iterator[None]:
    """Holds the log against other processes: till its end, or a kill."""
    with open(log, "rb") as file:
        tries = 5  # `is_running` holds it for a moment too
        while not _lock(file):
            if not (tries := tries - 1):
                raise RuntimeError(f"this move is running now, in another process: {log}")
            time.sleep(0.05)
        yield


def _lock(file: BinaryIO) -> bool:
    """Locks a file until it is closed; False where it is locked already."""
    try:
        if os.name == "nt":
            import msvcrt

            file.seek(1 << 40)  # beyond the text: where it is locked, Windows lets nobody read
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def back(steps: Sequence[Step]) -> list[Step]:
    """What takes moves back, last first."""
    return [Step(target, source) for source, target in reversed(steps)]


def finished(log: Path) -> Path:
    """The name of a log whose moves are done."""
    return log.with_name(log.name.replace(_UNFINISHED, ".jsonl"))
