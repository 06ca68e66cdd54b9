"""Logs of moves: written before the first file moves, so that a move can be finished or undone."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

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
            file.write(json.dumps({"from": str(source), "to": str(target)}) + "\n")
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
    """Logs of interrupted moves, oldest first."""
    return sorted((home() / "moves").glob(f"*{_UNFINISHED}"))


def carry_out(log: Path) -> Iterator[Failure | None]:
    """Moves what the log says and is not moved yet; the log then counts as finished."""
    yield from perform(read_log(log)[1], move)
    if log.name.endswith(_UNFINISHED):
        os.replace(log, finished(log))


def undo(log: Path) -> Iterator[Failure | None]:
    """Moves back what the log says and is not back yet, last first."""
    yield from perform(back(read_log(log)[1]), move)
    if log.name.endswith(_UNFINISHED):
        os.replace(log, finished(log))


def back(steps: Sequence[Step]) -> list[Step]:
    """What takes moves back, last first."""
    return [Step(target, source) for source, target in reversed(steps)]


def finished(log: Path) -> Path:
    """The name of a log whose moves are done."""
    return log.with_name(log.name.replace(_UNFINISHED, ".jsonl"))
