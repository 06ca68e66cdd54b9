"""The journal: an SQLite file that keeps the scores of one fingerprint, and survives any kill.

An image is known by its absolute path, size and modification time: one that changes is scored
again. Failures are kept too, save those that may pass: memory that ran out, a disk that did not
answer. Such pictures are tried again by the next run. The scores of a million images are never in
memory together: the images of a run are listed in a temporary table on disk, which also fixes their
order.
"""

from __future__ import annotations

import json
import math
import os
import re
import sqlite3
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

from ..report.rows import Row
from ..scorers.base import ScorerCard, differences
from ..scorers.home import home
from ..scorers.sqlite import WAIT, write_ahead

APPLICATION_ID = 0x7461_7374  # "tast"
FORMAT = 1
FLUSH_SECONDS, FLUSH_ROWS = 1.0, 1000  # between the flushes of who records one by one
PAGE = 1000

_TABLES = f"""
CREATE TABLE meta (name TEXT PRIMARY KEY, value TEXT NOT NULL);
CREATE TABLE scores (
    path PRIMARY KEY, size INTEGER, mtime_ns INTEGER, score REAL, error TEXT
) WITHOUT ROWID;
PRAGMA application_id = {APPLICATION_ID};
PRAGMA user_version = {FORMAT};
"""
_ASKED = """
CREATE TEMP TABLE asked (position INTEGER PRIMARY KEY, path UNIQUE, size INTEGER, mtime_ns INTEGER)
"""
# Failures that may pass: they belong to this run.
_PASSING = "CREATE TEMP TABLE passing (path PRIMARY KEY, reason TEXT NOT NULL) WITHOUT ROWID"
# The images of this run, with their scores where they are known.
_JOINED = """
FROM asked LEFT JOIN scores
ON scores.path = asked.path AND scores.size = asked.size AND scores.mtime_ns = asked.mtime_ns
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """An image as it was found: what a score is recorded for. Opens like a path."""

    path: str
    size: int  # -1 where the file does not exist
    mtime_ns: int

    def __fspath__(self) -> str:
        return self.path


class Summary(NamedTuple):
    """Of the images of a run."""

    images: int
    errors: int
    mean: float | None
    low: float | None
    high: float | None


class Journal:
    """Opens, or creates, the journal of a scorer. A context manager: leaving it keeps everything.

    Raises:
        ValueError: the file is something else, or holds the scores of another fingerprint.
    """

    def __init__(self, path: Path, card: ScorerCard | None = None):
        self.path = path
        self._pending: list[tuple] = []
        self._flushed = time.monotonic()
        if card is None and not path.exists():
            raise FileNotFoundError(f"no such journal: {path}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
            try:
                self.card = self._open(card)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise self._named(error) from None

    @classmethod
    def of(cls, card: ScorerCard, path: Path | None = None) -> Journal:
        """The journal at `path`, or the user's own journal of this fingerprint."""
        name = re.sub(r"[^\w.-]+", "-", card.name)
        return cls(path or home() / "scores" / f"{name}-{card.fingerprint_id}.sqlite", card)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind, error, traceback) -> None:
        try:
            self.flush()
        except sqlite3.Error as failure:
            error = failure
        self._db.close()
        if isinstance(error, sqlite3.Error):
            raise self._named(error) from error

    def ask(self, paths: Iterable[Path], retry_errors: bool = False) -> int:
        """Lists the images of this run, each once. Returns how many there are."""
        rows = ((sqlite_key(path), *_state(path)) for path in paths)
        insert = "INSERT OR IGNORE INTO asked (path, size, mtime_ns) VALUES (?, ?, ?)"
        with self._db:  # commits, or rolls back
            self._db.execute("BEGIN")
            self._db.executemany(insert, rows)
        if retry_errors:
            failed = "error IS NOT NULL AND path IN (SELECT path FROM asked)"
            self._db.execute(f"DELETE FROM scores WHERE {failed}")
        return self._value("SELECT count(*) FROM asked")

    def missing_count(self) -> int:
        """How many images of this run have neither a score nor a recorded failure."""
        return self._value(f"SELECT count(*) {_JOINED} WHERE scores.path IS NULL")

    def missing(self) -> Iterator[Entry]:
        """Those images, in order; scores may be recorded meanwhile."""
        query = f"SELECT position, asked.path, asked.size, asked.mtime_ns {_JOINED}"
        for _, path, *state in self._pages(f"{query} WHERE scores.path IS NULL AND position > ?"):
            yield Entry(os.fsdecode(path), *state)

    def record(
        self, entry: Entry, score: float, error: str | None = None, passing: bool = False
    ) -> None:
        """Takes a result, which no kill can cost once it is flushed.

        That happens by itself with the thousandth, and with the first that comes a second after the
        last flush; whoever waits for the next result flushes first.

        Args:
            passing: the error is none of the image's: the next run tries it again.
        """
        if math.isnan(score):
            score, error = None, error or "the scorer returned NaN"
        if passing:
            self._db.execute(
                "INSERT OR REPLACE INTO passing VALUES (?, ?)", (sqlite_key(entry.path), error)
            )
            return
        self._pending.append((sqlite_key(entry.path), entry.size, entry.mtime_ns, score, error))
        if len(self._pending) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        """Commits what is pending, in one short transaction: others may write to the journal too."""
        if self._pending:
            insert = "INSERT OR REPLACE INTO scores VALUES (?, ?, ?, ?, ?)"
            with self._db:
                self._db.execute("BEGIN IMMEDIATE")
                self._db.executemany(insert, self._pending)
            self._pending.clear()  # after the commit: what is interrupted before is kept again
        self._flushed = time.monotonic()

    def rows(self, only_errors: bool = False) -> Iterator[Row]:
        """The images of this run in order. One that nothing is known of has an error that says so."""
        error = "CASE WHEN scores.path IS NULL THEN coalesce(reason, 'not scored') ELSE error END"
        query = f"SELECT position, asked.path, score, {error} {_JOINED} LEFT JOIN passing"
        condition = "score IS NULL AND position > ?" if only_errors else "position > ?"
        for _, *row in self._pages(f"{query} ON passing.path = asked.path WHERE {condition}"):
            yield _row(*row)

    def all_rows(self) -> Iterator[Row]:
        """Everything in the journal, by path."""
        for row in self._db.execute("SELECT path, score, error FROM scores ORDER BY path"):
            yield _row(*row)

    def summary(self) -> Summary:
        """Of the images of this run."""
        counts = "count(*), count(*) - count(score), avg(score), min(score), max(score)"
        return Summary(*self._db.execute(f"SELECT {counts} {_JOINED}").fetchone())

    def passing_count(self) -> int:
        """How many images of this run failed in a way that may pass."""
        return self._value("SELECT count(*) FROM passing")

    def _open(self, card: ScorerCard | None) -> ScorerCard:
        if card is not None and self._is_empty():
            self._create(card)
        if self._value("PRAGMA application_id") != APPLICATION_ID:
            raise ValueError(f"not a journal of Tastemaker: {self.path}")
        if (version := self._value("PRAGMA user_version")) != FORMAT:
            raise ValueError(f"{self.path} has format {version}, this version reads {FORMAT}")
        stored = _card(self._value("SELECT value FROM meta WHERE name = 'card'"))
        if card is not None and stored.fingerprint_id != card.fingerprint_id:
            raise ValueError(
                f"{self.path} holds scores of another fingerprint "
                f"({differences(stored.fingerprint, card.fingerprint)}): use another --journal"
            )
        self._db.execute("PRAGMA synchronous = NORMAL")
        self._db.execute(_ASKED)
        self._db.execute(_PASSING)
        return stored

    def _create(self, card: ScorerCard) -> None:
        write_ahead(self._db)
        value = json.dumps(asdict(card) | {"fingerprint": dict(card.fingerprint)})
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            if self._is_empty():  # no other process was faster
                for statement in _TABLES.split(";"):
                    self._db.execute(statement)
                self._db.execute("INSERT INTO meta VALUES ('card', ?)", (value,))

    def _is_empty(self) -> bool:
        return not self._value("SELECT count(*) FROM sqlite_master")

    def _named(self, error: sqlite3.Error) -> Exception:
        """The error with the file's name: a full disk and a lock are not the file's fault."""
        if isinstance(error, sqlite3.OperationalError):
            return RuntimeError(f"journal {self.path}: {error}")
        return ValueError(f"not a journal of Tastemaker, or damaged: {self.path} ({error})")

    def _pages(self, query: str) -> Iterator[tuple]:
        """The rows of a query whose first column is `position` and whose parameter the last one read.

        Page by page, because a query that is read while its tables change is undefined.
        """
        last = 0
        while page := self._db.execute(
            f"{query} ORDER BY position LIMIT {PAGE}", (last,)
        ).fetchall():
            yield from page
            last = page[-1][0]

    def _value(self, query: str):
        return self._db.execute(query).fetchone()[0]


def is_journal(path: Path) -> bool:
    """Whether it is an SQLite file."""
    with open(path, "rb") as file:
        return file.read(16) == b"SQLite format 3\0"


def sqlite_key(path: str | os.PathLike) -> str | bytes:
    """The path as SQLite can hold it: names that are not Unicode are kept as bytes."""
    text = os.fspath(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        return os.fsencode(text)
    return text


def _state(path: Path) -> tuple[int, int]:
    """Size and modification time, (-1, -1) where there is no file: when it comes, it is another."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _row(path: str | bytes, score: float | None, error: str | None) -> Row:
    return Row(Path(os.fsdecode(path)), math.nan if score is None else score, error)


def _card(value: str) -> ScorerCard:
    values = json.loads(value)
    for name in ("range", "tasks", "capabilities"):
        values[name] = tuple(values[name])
    return ScorerCard(**values)
