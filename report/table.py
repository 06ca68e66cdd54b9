"""A table that grows row by row for years: several writers, and a kill, may not spoil it."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

TAIL = 1 << 16  # bytes: longer than any row


class Table:
    """A CSV file of given columns, made with its header when the first row comes.

    Rows are locked while they are written. One that a kill has cut short is removed by the next, for
    half a row (half a quoted text, half a letter) would make the rest unreadable.

    Raises:
        ValueError: the file exists and has other columns.
    """

    def __init__(self, path: Path, columns: Sequence[str]):
        self.path, self.header = path, _line(columns)
        if path.exists():
            with path.open("rb") as file:
                self._check(file)

    def append(self, row: Sequence[object]) -> None:
        """Adds one row; None is empty."""
        line = _line(row)
        if len(line) > TAIL:
            raise ValueError(f"a row of {len(line)} bytes is too long for {self.path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.open("ab").close()
        with self.path.open("r+b") as file, _locked(file):
            self._check(file)
            end = _whole_rows(file)
            file.truncate(end)
            file.seek(end)
            file.write(line if end else self.header + line)
            file.flush()
            os.fsync(file.fileno())

    def _check(self, file: BinaryIO) -> None:
        file.seek(0)
        start = file.read(len(self.header))
        # A file that was torn within its header is as good as empty.
        if not self.header.startswith(start):
            raise ValueError(f"{self.path} has other columns: choose another name, or move it away")


def _whole_rows(file: BinaryIO) -> int:
    """Where the last complete row ends."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - TAIL)
    file.seek(start)
    tail = file.read()
    return start + tail.rfind(b"\n") + 1


def _line(cells: Sequence[object]) -> bytes:
    # A line break within a cell would look like the end of a row.
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(
        ["" if cell is None else " ".join(str(cell).splitlines()) for cell in cells]
    )
    return text.getvalue().encode("utf-8", "surrogateescape")


@contextmanager
def _locked(file: BinaryIO) -> Iterator[None]:
    """Holds the file against other threads and processes; released when it is closed, or by a kill."""
    if os.name == "nt":
        import msvcrt

        file.seek(1 << 40)  # beyond the rows: where it is locked, Windows lets nobody read
        msvcrt.locking(file.fileno(), msvcrt.LK_LOCK, 1)
        try:
            yield
        finally:
            file.seek(1 << 40)
            msvcrt.locking(file.fileno(), msvcrt.LK_UNLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
        yield
