"""What the voting page asks and tells: questions, votes, undo and progress, for several tabs at once."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from random import Random
from typing import Any, Protocol

from .asking import Next, Pair, next_in_queue, next_suggested
from .showing import Memory, Shown, render
from .votes import Picture, Question, Vote, Votes, sha256_of

AWAY = 180  # seconds without a sign from a tab, after which its pair may be asked elsewhere


class Learner(Protocol):
    """What learns in the background (`learning.py`), as far as the page is concerned."""

    def votes_changed(self) -> None: ...
    def progress(self) -> dict[str, Any]: ...
    def suggest(self, taken, seed: int) -> tuple[Path, Path] | None: ...


class Booth:
    """One voter before one set of pictures. Threads may call it at the same time.

    Args:
        pictures: absolute paths; nothing else is ever shown.
        queue: the pairs to ask about, in order; by default they are chosen.
        advice: the command that trains a scorer from the votes.
        seed: of what is chosen at random.
    """

    def __init__(
        self,
        store: Votes,
        voter: str,
        pictures: Sequence[Path],
        queue: Sequence[tuple[Path, Path]] | None = None,
        learner: Learner | None = None,
        advice: str = "",
        seed: int | None = None,
    ):
        self.store, self.voter, self.learner, self.queue = store, voter, learner, queue
        self.advice = advice
        self.pictures = list(dict.fromkeys(pictures))
        self.broken: dict[Path, str] = {}
        self._known = set(self.pictures)
        self._rng = Random(seed)
        self._choosing = threading.Lock()
        self._heard: dict[str, float] = {}  # tab to the time of its last sign
        self._same: set[Pair] = set()  # pairs of equal contents
        self._shown: dict[str, Path] = {}  # sha256 to a picture that was asked about
        self._locate = cache(store.locate)  # of thousands of votes, before each question
        self._render = Memory(lambda path, box, stamp: render(path, box))
        self._sha256 = Memory(lambda path, stamp: sha256_of(path), 1000)
        self._votes = Memory(lambda version: store.votes(voter), 1)
        self._judged = Memory(lambda version: self._judged_by_others(), 1)

    # ---- what the page does

    def vote(self, key: str, answer: str) -> bool:
        """As `Votes.vote`: on disk when it returns."""
        new = self.store.vote(key, answer)
        self._tell_learner()
        return new

    def undo(self, key: str, tab: str) -> None:
        """As `Votes.undo`."""
        self.store.undo(key, tab)
        self._tell_learner()

    def picture(self, sha256: str, box: int | None) -> Shown:
        """A picture that was asked about. KeyError for any other, OSError if it is gone."""
        path = self._shown[sha256]
        return self._render(path, box, _stamp(path))

    # ---- what the page shows

    def state(self, tab: str, box: int, ahead: int = 1) -> dict[str, Any]:
        """Everything that a tab shows: its questions in order, and how far the voter is.

        Args:
            box: pixels of the longer side of a picture on that screen.
            ahead: at least so many questions are prepared, unless nothing is left to ask.
        """
        self._heard[tab] = time.monotonic()
        questions = self._open(tab)
        while len(questions) < ahead and self._ask(tab, box):
            questions = self._open(tab)
        votes = self.votes()
        return {
            "voter": self.voter,
            "folder": self.store.folder.name,
            "questions": [self._describe(question, box) for question in questions],
            "undo": self._undo(tab),
            "votes": sum(vote.answer != "skip" for vote in votes),
            "skipped": sum(vote.answer == "skip" for vote in votes),
            "queue": None if self.queue is None else self._done_of_queue(votes),
            "pictures": len(self.pictures),
            "broken": sorted(path.name for path in self.broken),
            "train": self.advice,
            "learning": self.learner.progress() if self.learner else None,
        }

    def votes(self) -> list[Vote]:
        """This voter's votes that count."""
        return self._votes(self.store.version())

    def _open(self, tab: str) -> list[Question]:
        """The tab's questions whose pictures are still there as they were."""
        return [
            question
            for question in self.store.open(self.voter, tab)
            if self._is_there(question.left) and self._is_there(question.right)
        ]

    def _undo(self, tab: str) -> str | None:
        """What that tab's undo takes back. A vote of another tab only where it can ask the pair again."""
        key = self.store.last(self.voter, tab)
        question = key and self.store.question(key)
        if not question or question.tab == tab:
            return key
        there = self._is_there(question.left) and self._is_there(question.right)
        return key if there else None

    def _is_there(self, picture: Picture) -> bool:
        path = self._locate(picture)
        if path not in self._known or path in self.broken:
            return False
        try:
            return self._sha256(path, _stamp(path)) == picture.sha256
        except OSError:
            return False

    def _describe(self, question: Question, box: int) -> dict[str, Any]:
        return {
            "key": question.key,
            "source": question.source,
            "left": self._describe_picture(question.left, box),
            "right": self._describe_picture(question.right, box),
        }

    def _describe_picture(self, picture: Picture, box: int) -> dict[str, Any]:
        path, name = self._locate(picture), picture.sha256.hex()
        self._shown[name] = path
        width, height = self._render(path, box, _stamp(path)).size
        return {"id": name, "name": picture.path, "width": width, "height": height}

    def _done_of_queue(self, votes: Sequence[Vote]) -> list[int]:
        """[how many of the queue are answered, how many there are]."""
        answered = {self._pair(vote) for vote in votes}
        return [sum(Pair(pair) in answered for pair in self.queue), len(self.queue)]

    # ---- what is asked next

    def _ask(self, tab: str, box: int) -> bool:
        """Prepares one more question; False if nothing is left."""
        with self._choosing:
            while (found := self._choose(tab)) is not None:
                if self._can_show(found, box):
                    self.store.ask(self.voter, tab, found.left, found.right, found.source)
                    return True
        return False

    def _choose(self, tab: str) -> Next | None:
        taken = self._taken()
        if self.queue is not None:
            return next_in_queue(self.queue, taken, self.broken.keys())
        suggest = self.learner.suggest if self.learner else None
        count = len(self.votes())
        judged = self._judged(self.store.version())
        return next_suggested(
            self.pictures, taken, self.broken.keys(), self._rng, suggest, count, judged
        )

    def _judged_by_others(self) -> list[tuple[Path, Path]]:
        """Pairs of these pictures that other voters judged, each once, in a fixed order.

        Without those that were suggested: they are harder than most, so agreement on them is lower.
        """
        votes = [
            vote
            for vote in self.store.votes()
            if vote.voter != self.voter and vote.answer != "skip" and vote.source != "suggested"
        ]
        pairs = {self._pair(v): tuple(map(self._locate, (v.left, v.right))) for v in votes}
        return [pair for pair in pairs.values() if self._known.issuperset(pair)]

    def _taken(self) -> set[Pair]:
        """Pairs that are answered, or asked in a tab that is still open."""
        taken = self._same | {self._pair(vote) for vote in self.votes()}
        for tab, heard in list(self._heard.items()):
            if time.monotonic() - heard < AWAY:
                taken |= {self._pair(question) for question in self.store.open(self.voter, tab)}
        return taken

    def _can_show(self, found: Next, box: int) -> bool:
        """Opens both pictures, which are then ready. What cannot be opened is not tried again."""
        for path in (found.left, found.right):
            try:
                self._render(path, box, _stamp(path))
            except (OSError, ValueError) as error:
                self.broken[path] = str(error)
                return False
        digests = {self._sha256(path, _stamp(path)) for path in (found.left, found.right)}
        if len(digests) == 1:  # a picture and its copy
            self._same.add(Pair((found.left, found.right)))
            return False
        return True

    def _pair(self, asked: Vote | Question) -> Pair:
        return Pair((self._locate(asked.left), self._locate(asked.right)))

    def _tell_learner(self) -> None:
        if self.learner:
            self.learner.votes_changed()


def _stamp(path: Path) -> tuple[int, int]:
    """Another one when the file is overwritten. OSError if it is gone."""
    status = os.stat(path)
    return status.st_size, status.st_mtime_ns
