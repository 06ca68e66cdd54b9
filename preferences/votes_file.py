"""The file that votes are kept in: its tables, its rows, and how it is opened.

Nothing in it is ever changed or removed; `votes.py` says what the lines mean.
"""

from __future__ import annotations

import os
import secrets
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from ..scorers.sqlite import WAIT, write_ahead

APPLICATION_ID = 0x7461_7376  # "tasv"
FORMAT = 1

_TABLES = (
    "CREATE TABLE folder (path TEXT, time REAL)",  # the last line is where it is
    """CREATE TABLE images (
        id INTEGER PRIMARY KEY, path NOT NULL, sha256 BLOB NOT NULL, size INTEGER NOT NULL,
        mtime_ns INTEGER NOT NULL, UNIQUE (path, sha256))""",
    """CREATE TABLE questions (
        id INTEGER PRIMARY KEY, key TEXT UNIQUE NOT NULL, voter TEXT NOT NULL, tab TEXT NOT NULL,
        left INTEGER NOT NULL REFERENCES images, right INTEGER NOT NULL REFERENCES images,
        source TEXT NOT NULL, again INTEGER NOT NULL, time REAL NOT NULL)""",
    "CREATE INDEX questions_of ON questions (voter, tab)",
    "CREATE INDEX questions_about ON questions (left, right)",
    """CREATE TABLE votes (
        id INTEGER PRIMARY KEY, question INTEGER UNIQUE NOT NULL REFERENCES questions,
        answer TEXT NOT NULL CHECK (answer IN ('left', 'tie', 'right', 'skip')),
        time REAL NOT NULL)""",
    "CREATE TABLE undone (vote INTEGER PRIMARY KEY REFERENCES votes, time REAL NOT NULL)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
QUESTION = """
SELECT q.id, q.key, q.voter, q.tab, q.source, l.path, l.sha256, r.path, r.sha256
FROM questions q JOIN images l ON l.id = q.left JOIN images r ON r.id = q.right
"""
VOTE = """
SELECT q.key, q.voter, l.path, l.sha256, r.path, r.sha256, v.answer, v.time, q.source, u.time
FROM votes v JOIN questions q ON q.id = v.question
JOIN images l ON l.id = q.left JOIN images r ON r.id = q.right LEFT JOIN undone u ON u.vote = v.id
"""


class Picture(NamedTuple):
    """As it was voted on: `path` is relative to the folder, with forward slashes."""

    path: str
    sha256: bytes


class Question(NamedTuple):
    """Two pictures that a voter is asked about, in one tab of the browser."""

    id: int
    key: str
    voter: str
    tab: str
    source: str  # queue, random, shared or suggested: how the pair was chosen
    left: Picture
    right: Picture


class Vote(NamedTuple):
    """An answer; `undone` is when it was taken back, or None."""

    key: str
    voter: str
    left: Picture
    right: Picture
    answer: str
    time: float
    source: str
    undone: float | None


@contextmanager
def transaction(path: Path) -> Iterator[sqlite3.Connection]:
    """Alone with the file; what fails leaves it as it was, what ends well is on the disk.

    Raises:
        ValueError: the file is something else, or damaged.
        OSError: it cannot be written now (a full disk, another program that keeps
            it).
    """
    try:
        db = sqlite3.connect(path, timeout=WAIT, isolation_level=None)
        try:
            _prepare(db, path)
            db.execute("PRAGMA synchronous = FULL")  # a vote survives the power's failure too
            with db:  # commits, or rolls back
                db.execute("BEGIN IMMEDIATE")
                yield db
        finally:
            db.close()
    except sqlite3.OperationalError as error:  # a full disk or a lock: not the file's fault
        raise OSError(f"the file of votes {path}: {error}") from error
    except sqlite3.DatabaseError as error:
        raise ValueError(
            f"not a file of votes, or damaged: {path} ({error}); nothing in it was changed"
        ) from error


def _prepare(db: sqlite3.Connection, path: Path) -> None:
    """Makes the tables of a new file. A file of something else is refused before it is touched."""
    if _is_ours(db, path):
        return
    write_ahead(db)
    with db:
        db.execute("BEGIN IMMEDIATE")
        if not _is_ours(db, path):  # no other process was faster
            for statement in _TABLES:
                db.execute(statement)


def _is_ours(db: sqlite3.Connection, path: Path) -> bool:
    """False for a new file."""
    kind, version = (
        db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version")
    )
    if (kind, version) == (APPLICATION_ID, FORMAT):
        return True
    if kind == APPLICATION_ID:
        raise ValueError(f"{path} has format {version}, this version reads {FORMAT}")
    if kind or version or db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
        raise ValueError(f"not a file of votes: {path} is another program's")
    return False


def check(db: sqlite3.Connection) -> None:
    """Raises sqlite3.DatabaseError where the file is damaged: at the start, not amid the votes."""
    found = db.execute("PRAGMA quick_check(1)").fetchone()[0]
    if found != "ok":
        raise sqlite3.DatabaseError(" ".join(found.split()))


def image_id(db: sqlite3.Connection, row: tuple) -> int:
    insert = "INSERT OR IGNORE INTO images (path, sha256, size, mtime_ns) VALUES (?, ?, ?, ?)"
    db.execute(insert, row)
    found = db.execute("SELECT id FROM images WHERE path = ? AND sha256 = ?", row[:2])
    return found.fetchone()[0]


def ask(db: sqlite3.Connection, voter, tab, images, source, again: int = 0) -> Question:
    key = secrets.token_urlsafe(12)
    db.execute(
        "INSERT INTO questions (key, voter, tab, left, right, source, again, time) "
        "VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (key, voter, tab, *images, source, again, time.time()),
    )
    return question(db, key)


def question(db: sqlite3.Connection, key: str) -> Question:
    row = db.execute(f"{QUESTION} WHERE q.key = ?", (key,)).fetchone()
    if row is None:
        raise KeyError(f"no question {key!r}")
    return as_question(row)


def counted(db: sqlite3.Connection, question: Question) -> bool:
    """Whether a vote of this voter about this pair counts, in whichever order and tab."""
    found = db.execute(
        "SELECT 1 FROM questions mine JOIN questions q ON q.voter = mine.voter "
        "AND (q.left = mine.left AND q.right = mine.right "
        "OR q.left = mine.right AND q.right = mine.left) "
        "JOIN votes v ON v.question = q.id "
        "WHERE mine.id = ? AND v.id NOT IN (SELECT vote FROM undone)",
        (question.id,),
    )
    return found.fetchone() is not None


def latest(db: sqlite3.Connection, where: str, values: tuple) -> str | None:
    """The question's key of the latest of these votes that counts."""
    row = db.execute(
        "SELECT q.key FROM votes v JOIN questions q ON q.id = v.question "
        f"WHERE {where} AND v.id NOT IN (SELECT vote FROM undone) ORDER BY v.id DESC LIMIT 1",
        values,
    ).fetchone()
    return row and row[0]


def as_question(row: tuple) -> Question:
    left, right = Picture(decoded(row[5]), row[6]), Picture(decoded(row[7]), row[8])
    return Question(*row[:5], left, right)


def as_vote(row: tuple) -> Vote:
    key, voter, left, left_sha256, right, right_sha256, *rest = row
    pictures = Picture(decoded(left), left_sha256), Picture(decoded(right), right_sha256)
    return Vote(key, voter, *pictures, *rest)


def encoded(path: str) -> str | bytes:
    """The path as SQLite can hold it: names that are not Unicode are kept as bytes."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return os.fsencode(path)
    return path


def decoded(key: str | bytes) -> str:
    return os.fsdecode(key)
