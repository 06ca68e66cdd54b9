"""The votes: one SQLite file that several voters, pages and processes share, and that loses none.

Nothing in it is ever changed or removed. A question (which two pictures, to whom) is written before
it is shown, a vote answers a question once, and an undo is one more line. So what is sent twice is
kept once, whatever was killed in between.

A picture is known by its path relative to the folder, and by its contents: the folder may be moved
and a file renamed, and one that was overwritten is no longer what was voted on.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import time
import warnings
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from ..wording import counted
from . import votes_file as file
from .votes_file import Picture, Question, Vote

if TYPE_CHECKING:
    from .comparisons import Comparisons

ANSWERS = {"left": 1.0, "tie": 0.5, "right": 0.0, "skip": None}  # p, as in Comparisons


class AlreadyAnswered(ValueError):
    """Another vote of that voter about that pair counts already."""


class Votes:
    """The votes in one file. Every method is one transaction, on disk when it returns.

    Args:
        path: the file, which is made when `folder` is given.
        folder: where the pictures are now; by default where they were last.

    Raises:
        FileNotFoundError: there is no such file, and no `folder` to begin one.
        ValueError: the file is something else, or damaged, or about another folder's pictures.
    """

    def __init__(self, path: str | os.PathLike, folder: str | os.PathLike | None = None):
        self.path = Path(path)
        if folder is None and not self.path.is_file():
            raise FileNotFoundError(f"no such file of votes: {self.path}")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with file.transaction(self.path) as db:
            file.check(db)
            row = db.execute("SELECT path FROM folder ORDER BY rowid DESC LIMIT 1").fetchone()
            self.folder = Path(file.decoded(row[0]) if folder is None else os.path.abspath(folder))
            if folder is not None and (row is None or file.decoded(row[0]) != str(self.folder)):
                self._check_folder(db)
                line = (file.encoded(str(self.folder)), time.time())
                db.execute("INSERT INTO folder VALUES (?, ?)", line)

    def ask(
        self, voter: str, tab: str, left: Path, right: Path, source: str = "random"
    ) -> Question:
        """Writes down a question before it is shown. OSError if a picture cannot be read."""
        images = [self._identify(path) for path in (left, right)]
        with file.transaction(self.path) as db:
            ids = [file.image_id(db, image) for image in images]
            return file.ask(db, voter, tab, ids, source)

    def question(self, key: str) -> Question:
        """The question of that key. KeyError if there is none."""
        with file.transaction(self.path) as db:
            return file.question(db, key)

    def open(self, voter: str, tab: str) -> list[Question]:
        """What that tab was asked and has not answered, in the order in which it is to be answered.

        What an undo brought back comes first, the latest before the others. Left out is a pair that
        the voter has meanwhile judged elsewhere.
        """
        with file.transaction(self.path) as db:
            rows = db.execute(
                f"{file.QUESTION} WHERE q.voter = ? AND q.tab = ? AND NOT EXISTS "
                "(SELECT 1 FROM votes v WHERE v.question = q.id) "
                "ORDER BY q.again DESC, CASE q.again WHEN 1 THEN -q.id ELSE q.id END",
                (voter, tab),
            ).fetchall()
            questions = map(file.as_question, rows)
            return [question for question in questions if not file.counted(db, question)]

    def vote(self, key: str, answer: str) -> bool:
        """Keeps the answer to a question; False if this vote is there already (it is kept once).

        Raises:
            KeyError: no such question. ValueError: no such answer.
            AlreadyAnswered: with another answer, or the same pair by another question.
        """
        if answer not in ANSWERS:
            raise ValueError(f"an answer is {', '.join(ANSWERS)}, not {answer!r}")
        with file.transaction(self.path) as db:
            question = file.question(db, key)
            known = db.execute("SELECT answer FROM votes WHERE question = ?", (question.id,))
            if found := known.fetchone():
                if found[0] != answer:
                    raise AlreadyAnswered(f"this pair was answered before: {found[0]}")
                return False
            if file.counted(db, question):
                raise AlreadyAnswered("this pair was answered in another tab")
            row = (question.id, answer, time.time())
            db.execute("INSERT INTO votes (question, answer, time) VALUES (?, ?, ?)", row)
            return True

    def undo(self, key: str, tab: str | None = None) -> Question | None:
        """Takes the vote on a question back, and asks that tab (by default its own) the same pair again.

        Returns the new question; None if that vote was taken back before (nothing happens twice).
        KeyError if there is no such vote.
        """
        with file.transaction(self.path) as db:
            question = file.question(db, key)
            voted = db.execute("SELECT id FROM votes WHERE question = ?", (question.id,)).fetchone()
            if voted is None:
                raise KeyError(f"no vote {key!r} to take back")
            row = (voted[0], time.time())
            if not db.execute("INSERT OR IGNORE INTO undone VALUES (?, ?)", row).rowcount:
                return None
            ids = db.execute("SELECT left, right FROM questions WHERE id = ?", (question.id,))
            tab = question.tab if tab is None else tab
            return file.ask(db, question.voter, tab, ids.fetchone(), question.source, again=1)

    def add(self, voter: str, left: Path, right: Path, answer: str) -> None:
        """A question and its answer at once, for votes that come from elsewhere than the page."""
        self.vote(self.ask(voter, "", left, right, source="elsewhere").key, answer)

    def history(self, voter: str | None = None) -> list[Vote]:
        """Everything that was ever answered, in order, with what was taken back."""
        where, values = ("", ()) if voter is None else ("WHERE q.voter = ?", (voter,))
        with file.transaction(self.path) as db:
            return [
                file.as_vote(row)
                for row in db.execute(f"{file.VOTE} {where} ORDER BY v.id", values)
            ]

    def votes(self, voter: str | None = None) -> list[Vote]:
        """The votes that count, in order. Skipped pairs are among them."""
        return [vote for vote in self.history(voter) if vote.undone is None]

    def version(self) -> tuple[int, int]:
        """Another one after every vote and undo."""
        with file.transaction(self.path) as db:
            query = "SELECT (SELECT count(*) FROM votes), (SELECT count(*) FROM undone)"
            return db.execute(query).fetchone()

    def last(self, voter: str, tab: str) -> str | None:
        """The key of the latest vote that counts and that this tab's undo takes back.

        First those of the tab itself; then, so that a closed tab or browser takes no undo along, what
        the voter answered in others before this one was asked anything. What another tab answered
        since is that tab's to undo, for both may be open. Votes from elsewhere are no tab's.
        """
        with file.transaction(self.path) as db:
            return file.latest(db, "q.voter = ? AND q.tab = ?", (voter, tab)) or file.latest(
                db,
                "q.voter = ? AND q.tab != '' AND v.time <= coalesce("
                "(SELECT min(time) FROM questions WHERE voter = ? AND tab = ?), ?)",
                (voter, voter, tab, time.time()),
            )

    def voters(self) -> dict[str, int]:
        """How many votes of each voter count."""
        return dict(Counter(vote.voter for vote in self.votes()))

    def locate(self, picture: Picture) -> Path:
        """Where it was when it was asked about, in the folder as it is now."""
        return Path(os.path.normpath(self.folder / picture.path))

    def find(self) -> dict[Picture, Path]:
        """Where the pictures are now that were asked about, those that can be found.

        One that is where it was, with its size and time, is taken to be the same; any other must
        have the same contents, and is looked for in the whole folder.
        """
        with file.transaction(self.path) as db:
            rows = db.execute("SELECT path, sha256, size, mtime_ns FROM images").fetchall()
        found, lost = {}, {}
        for name, sha256, size, mtime_ns in rows:
            picture = Picture(file.decoded(name), sha256)
            path = self.locate(picture)
            if _is_same(path, sha256, size, mtime_ns):
                found[picture] = path
            else:
                lost[picture] = size
        return found | _search(self.folder, lost)

    def _identify(self, path: Path) -> tuple:
        """A row of `images`."""
        name = os.path.relpath(path, self.folder).replace(os.sep, "/")
        status = os.stat(path)
        return file.encoded(name), sha256_of(path), status.st_size, status.st_mtime_ns

    def _check_folder(self, db: sqlite3.Connection) -> None:
        """A folder that holds none of the pictures is another folder, not one that was moved."""
        names = [file.decoded(name) for (name,) in db.execute("SELECT DISTINCT path FROM images")]
        if names and not any(os.path.exists(self.folder / name) for name in names):
            raise ValueError(
                f"{self.path} holds votes about other pictures (such as {names[0]}), "
                f"none of which is in {self.folder}: use another file of votes"
            )


def sha256_of(path: str | os.PathLike) -> bytes:
    """Of a file's contents."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


def read_votes(
    path: str | os.PathLike,
    folder: str | os.PathLike | None = None,
    voter: str | None = None,
) -> Comparisons:
    """The votes that count, as comparisons for training, in the order in which they were made.

    Skipped pairs are no comparisons. Votes about pictures that are gone, or were overwritten, are
    left out, and a warning names them.

    Args:
        path: a file of votes.
        folder: where the pictures are now; by default where they were last.
        voter: whose votes; by default those of the only one who voted.

    Raises:
        FileNotFoundError, ValueError: as `Votes`; ValueError also if that voter has no votes, if
            several voted and none is named, or if none of the pictures is found.
    """
    from .comparisons import Comparisons

    store = Votes(path, folder)
    votes = [vote for vote in store.votes(voter) if ANSWERS[vote.answer] is not None]
    if not votes:
        known = ", ".join(store.voters()) or "nobody yet"
        raise ValueError(f"no votes{f' of {voter}' if voter else ''} in {path} (votes of: {known})")
    _check_one(votes, path)
    where = store.find()
    kept = [vote for vote in votes if vote.left in where and vote.right in where]
    _tell_lost(store, votes, kept, where)
    return Comparisons.of((where[v.left], where[v.right], ANSWERS[v.answer]) for v in kept)


def is_votes(path: str | os.PathLike) -> bool:
    """Whether it is a file of votes."""
    with open(path, "rb") as opened:
        if opened.read(16) != b"SQLite format 3\0":
            return False
    try:  # by SQLite: what it is may still be in its log
        with closing(sqlite3.connect(path)) as db:
            return db.execute("PRAGMA application_id").fetchone()[0] == file.APPLICATION_ID
    except sqlite3.DatabaseError:
        return False


def _check_one(votes: list[Vote], path: str | os.PathLike) -> None:
    """ValueError if they are of several voters: two tastes do not make one."""
    counts = Counter(vote.voter for vote in votes)
    if len(counts) > 1:
        listed = ", ".join(f"{voter} ({count})" for voter, count in counts.items())
        raise ValueError(f"{path} holds votes of several: {listed}; name one, --voter NAME")


def _tell_lost(store: Votes, votes: list[Vote], kept: list[Vote], where: dict) -> None:
    pictures = {picture for vote in votes for picture in (vote.left, vote.right)}
    lost = sorted({picture.path for picture in pictures - where.keys()})
    if not lost:
        return
    what = (
        f"{len(lost)} of {len(pictures)} voted pictures are not in {store.folder} any more, or were "
        f"overwritten since ({', '.join(lost[:3])}{', ...' if len(lost) > 3 else ''})"
    )
    if not kept:
        raise ValueError(f"{what}: name the folder that holds them")
    lost = counted(len(votes) - len(kept), "vote")
    warnings.warn(f"{what}: left out, {lost}", stacklevel=3)


def _is_same(path: Path, sha256: bytes, size: int, mtime_ns: int) -> bool:
    try:
        status = os.stat(path)
        if status.st_size != size:
            return False
        return status.st_mtime_ns == mtime_ns or sha256_of(path) == sha256
    except OSError:
        return False


def _search(folder: Path, lost: dict[Picture, int]) -> dict[Picture, Path]:
    """Files with the contents of `lost` (picture to size): only files of such a size are read."""
    wanted: dict[bytes, list[Picture]] = {}
    for picture in lost:
        wanted.setdefault(picture.sha256, []).append(picture)
    sizes, found = set(lost.values()), {}
    for path in sorted(folder.rglob("*")) if lost else ():
        if path.is_file() and path.stat().st_size in sizes:
            for picture in wanted.get(sha256_of(path), ()):
                found.setdefault(picture, path)
    return found
