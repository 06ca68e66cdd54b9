"""The record of past scores: named, kept on disk, shared by every program that opens it.

It stands beside the reports because it is what has been scored so far, and needs no ComfyUI.
Scores are kept for each name and each scorer's fingerprint, and never mix; an image is counted once,
however often it is judged. A reset forgets nothing: it begins a new generation, and can be undone.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..scorers.sqlite import WAIT, write_ahead

APPLICATION_ID = 0x7461_7367  # "tasg"
FORMAT = 1

_TABLES = (
    """CREATE TABLE scores (
        id INTEGER PRIMARY KEY, name TEXT, generation INTEGER, scorer TEXT, image BLOB, score REAL,
        UNIQUE (name, generation, scorer, image))""",
    # Generation 0 is not listed: every name begins with it.
    "CREATE TABLE resets (generation INTEGER PRIMARY KEY, name TEXT, undone INTEGER DEFAULT 0)",
    f"PRAGMA application_id = {APPLICATION_ID}",
    f"PRAGMA user_version = {FORMAT}",
)
_THIS = "name = ? AND generation = ? AND scorer = ?"


class Past(NamedTuple):
    """The record after N candidates were added to it, as `ranking.gate` takes it."""

    scores: Tensor  # float64 [M], in the order in which they came
    known: Tensor  # int64 [N], how many there were as each candidate had been added


class History:
    """The records in one file, which is made when the first score is added.

    Every method is one transaction. Raises ValueError where the file is something else or damaged.
    """

    def __init__(self, path: Path):
        self.path = path

    def add(self, name: str, scorer: str, images: Sequence[bytes], scores: Sequence[float]) -> Past:
        """Adds candidates in turn, and says what there was in each turn.

        Args:
            name: which record; any text but an empty one.
            scorer: the fingerprint of what made the scores.
            images: what identifies each image; one that is there already is not added again.
            scores: one an image; NaN is not added.
        """
        with self._transaction() as db:
            key = (name, _generation(db, _named(name)), scorer)
            count = db.execute(f"SELECT count(*) FROM scores WHERE {_THIS}", key).fetchone()[0]
            known = []
            insert = "INSERT OR IGNORE INTO scores (name, generation, scorer, image, score)"
            for image, score in zip(images, map(float, scores), strict=True):
                if not math.isnan(score):
                    row = (*key, image, score)
                    count += db.execute(f"{insert} VALUES (?, ?, ?, ?, ?)", row).rowcount
                known.append(count)
            rows = db.execute(f"SELECT score FROM scores WHERE {_THIS} ORDER BY id", key)
            record = [score for (score,) in rows]
        return Past(torch.tensor(record, dtype=torch.float64), torch.tensor(known).long())

    def count(self, name: str) -> int:
        """How many scores the present generation holds, of all scorers."""
        return self._read(name, lambda db, generation: _count(db, name, generation))

    def changes(self) -> int:
        """Another number after every reset and undo of any record."""
        if not self.path.exists():
            return 0
        with self._transaction() as db:
            return db.execute("SELECT count(*) + total(undone) FROM resets").fetchone()[0]

    def generation(self, name: str) -> int:
        """Another number after every reset and undo."""
        return self._read(name, lambda db, generation: generation)

    def reset(self, name: str) -> int:
        """Begins a new generation, empty. Returns how many scores were set aside."""
        with self._transaction() as db:
            aside = _count(db, name, _generation(db, _named(name)))
            db.execute("INSERT INTO resets (name) VALUES (?)", (name,))
        return aside

    def undo_reset(self, name: str) -> int:
        """Brings back the generation before. Returns how many scores it holds.

        What was scored since the reset is set aside in its turn. ValueError if there was no reset.
        """
        with self._transaction() as db:
            generation = _generation(db, _named(name))
            if not generation:
                raise ValueError(f"the record {name!r} has not been reset")
            db.execute("UPDATE resets SET undone = 1 WHERE generation = ?", (generation,))
            return _count(db, name, _generation(db, name))

    def _read(self, name: str, ask) -> int:
        if not self.path.exists():
            return 0
        with self._transaction() as db:
            return ask(db, _generation(db, name))

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """Alone with the file; what fails leaves it as it was."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            db = sqlite3.connect(self.path, timeout=WAIT, isolation_level=None)
            try:
                write_ahead(db)
                db.execute("PRAGMA synchronous = NORMAL")
                with db:  # commits, or rolls back
                    db.execute("BEGIN IMMEDIATE")
                    self._prepare(db)
                    yield db
            finally:
                db.close()
        except sqlite3.DatabaseError as error:
            advice = "move it away to begin anew, if it is damaged"
            raise ValueError(f"the record of scores {self.path}: {error}; {advice}") from error

    def _prepare(self, db: sqlite3.Connection) -> None:
        found = [
            db.execute(f"PRAGMA {key}").fetchone()[0] for key in ("application_id", "user_version")
        ]
        if found == [0, 0] and not db.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            for statement in _TABLES:
                db.execute(statement)
        elif found != [APPLICATION_ID, FORMAT]:
            raise ValueError(f"{self.path} is not a record of scores of this version")


def _named(name: str) -> str:
    if not name:
        raise ValueError("the record needs a name")
    return name


def _generation(db: sqlite3.Connection, name: str) -> int:
    latest = "SELECT max(generation) FROM resets WHERE name = ? AND NOT undone"
    return db.execute(latest, (name,)).fetchone()[0] or 0


def _count(db: sqlite3.Connection, name: str, generation: int) -> int:
    count = "SELECT count(*) FROM scores WHERE name = ? AND generation = ?"
    return db.execute(count, (name, generation)).fetchone()[0]
