"""Files that several programs open for the first time at once."""

import sqlite3
import threading
from contextlib import closing

import pytest

from tastemaker.scorers.sqlite import write_ahead


@pytest.fixture
def two(tmp_path):
    """Two programs' connections to a new file; neither waits by itself."""
    path = tmp_path / "new.sqlite"
    how = {"timeout": 0, "isolation_level": None, "check_same_thread": False}
    with closing(sqlite3.connect(path, **how)) as a, closing(sqlite3.connect(path, **how)) as b:
        yield a, b


def test_it_waits_for_another_program(two):
    ours, other = two
    other.execute("BEGIN EXCLUSIVE")
    done = threading.Timer(0.3, lambda: other.execute("COMMIT"))
    done.start()
    write_ahead(ours)
    done.join()
    assert ours.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_it_does_not_wait_for_ever(two):
    ours, other = two
    other.execute("BEGIN EXCLUSIVE")
    with pytest.raises(sqlite3.OperationalError, match="locked"):
        write_ahead(ours, wait=0.1)


def test_what_is_wrong_with_the_file_is_told_at_once(tmp_path):
    tmp_path.joinpath("text.sqlite").write_text("not a database" * 100)
    with closing(sqlite3.connect(tmp_path / "text.sqlite")) as db:
        with pytest.raises(sqlite3.DatabaseError, match="not a database"):
            write_ahead(db)
