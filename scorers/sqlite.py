"""SQLite files that several programs may write at once: scores, embeddings, votes, records."""

from __future__ import annotations

import sqlite3
import time

WAIT = 60  # seconds that one program waits for another


def write_ahead(db: sqlite3.Connection, wait: float = WAIT) -> None:
    """Has the file keep a write-ahead log, in which a kill loses nothing that was committed.

    Unlike other statements, this one fails at once where another program does the same, whatever
    the connection's timeout: it is tried again for `wait` seconds.

    Raises:
        sqlite3.OperationalError: another program keeps the file, or it cannot be written.
    """
    end = time.monotonic() + wait
    while True:
        try:
            db.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error) or time.monotonic() > end:
                raise
            time.sleep(0.01)
