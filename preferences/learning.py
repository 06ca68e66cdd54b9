"""A head that learns from the votes while they are made, and tells how well it guesses them.

Every vote is guessed before it is learned from (prequential evaluation, Dawid 1984): each guess is
about a pair that the head has not seen. Votes about suggested pairs do not count, because those are
suggested for being hard to guess; nor do ties.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .asking import Pair
from .bootstrap import wilson
from .votes import ANSWERS, Vote, Votes

CHUNK = 8  # pictures embedded at a time; between them, new votes are learned from
REPLAY = 10  # of earlier votes, a tenth more is guessed by each fit
WINDOW = 30  # votes behind each point of the curve
POINTS = 40  # of the curve


class Model(Protocol):
    """What is learned, on which features. Loaded and used by one background thread."""

    w0: Tensor  # [D], the weight that gives the base scorer's own scores

    def embed(self, paths: Sequence[Path]) -> Tensor:
        """[N, D]. OSError or ValueError for a picture that cannot be opened."""

    def fit(self, x: Tensor, pairs: Tensor, p: Tensor) -> Tensor:
        """The weight [D] that predicts p [P] of pairs [P, 2] of the pictures with features x [N, D]."""

    def suggest(self, x: Tensor, pairs: Tensor, p: Tensor, w: Tensor) -> list[tuple[int, int]]:
        """Informative pairs of the N pictures, the best first, after a fit that gave w."""


class Guess(NamedTuple):
    """Score of the left picture minus that of the right one, before the vote was learned from."""

    learned: float
    base: float


class Learner:
    """A background thread; whatever goes wrong in it is told by `progress`, and stops no vote.

    Args:
        load: loads the model, in the thread.
    """

    def __init__(
        self,
        store: Votes,
        voter: str,
        pictures: Sequence[Path],
        load: Callable[[], Model],
        name: str,
    ):
        self._store, self._voter, self._load, self._name = store, voter, load, name
        self._waiting = dict.fromkeys(pictures)  # not embedded yet, in order
        self._x: dict[Path, Tensor] = {}  # features [D]; a picture that cannot be opened has none
        self._guesses: dict[str, Guess] = {}  # by the votes' keys
        self._fitted: tuple[str, ...] | None = None  # the keys of what was learned from
        self._suggestions: list[tuple[Path, Path]] = []
        self._total = len(self._waiting)
        self._measured = measure([], {})
        self._doing, self._error = "loading the scorer", ""
        self._wake, self._stopped = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="tastemaker-learner", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 5) -> None:
        """Ends the thread after what it is at; nothing of worth is lost if it does not end."""
        self._stopped.set()
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def votes_changed(self) -> None:
        self._wake.set()

    def progress(self) -> dict[str, Any]:
        """For the page: `measure`'s values, what is being done, and what went wrong."""
        about = {"doing": self._doing, "error": self._error, "name": self._name}
        return self._measured | about

    def suggest(self, taken: Collection[Pair], seed: int) -> tuple[Path, Path] | None:
        """The most informative pair that is not taken, as of the last fit; None without any."""
        return next((pair for pair in self._suggestions if Pair(pair) not in taken), None)

    # ---- the thread

    def _run(self) -> None:
        try:
            model = self._load()
            while not self._stopped.is_set():
                self._wake.clear()  # first: a vote that comes from here on wakes it again
                votes = self._votes()
                voted = dict.fromkeys(p for p in self._pictures(votes) if p in self._waiting)
                if voted:
                    self._embed(model, list(voted)[:CHUNK])
                elif tuple(vote.key for vote in votes) != self._fitted:
                    self._learn(model, votes)
                elif self._waiting:
                    self._embed(model, list(self._waiting)[:CHUNK])
                else:
                    self._wake.wait()
        except Exception as error:  # votes go on without it
            self._doing, self._error = "", " ".join(str(error).split()) or type(error).__name__

    def _embed(self, model: Model, paths: Sequence[Path]) -> None:
        for path in paths:
            del self._waiting[path]
        try:
            self._x.update(zip(paths, model.embed(paths).double().cpu(), strict=True))
        except (OSError, ValueError):
            for path in paths:  # one of them cannot be opened, of which the page tells
                with suppress(OSError, ValueError):
                    self._x[path] = model.embed([path])[0].double().cpu()
        done = self._total - len(self._waiting)
        self._doing = f"looking at the pictures: {done} of {self._total}" if self._waiting else ""
        if not self._waiting:
            self._fitted = None  # suggestions from all pictures

    def _learn(self, model: Model, votes: Sequence[Vote]) -> None:
        """Guesses the votes that are new, then learns from them; block by block after a restart."""
        usable = [v for v in votes if all(path in self._x for path in self._pictures([v]))]
        old = [vote for vote in usable if vote.key in self._guesses]
        new = [vote for vote in usable if vote.key not in self._guesses]
        w = self._fit(model, old)
        while new and not self._stopped.is_set():
            block = new[: max(1, len(old) // REPLAY)]
            self._guess(block, w, model.w0.double())
            old, new = old + block, new[len(block) :]
            w = self._fit(model, old)
        self._measured = measure(old, self._guesses)
        self._fitted = tuple(vote.key for vote in votes)
        self._suggestions = self._informative(model, old, w)

    def _guess(self, votes: Sequence[Vote], w: Tensor, w0: Tensor) -> None:
        x, pairs, _ = self._table(votes)
        difference = x[pairs[:, 0]] - x[pairs[:, 1]]  # [P, D]
        guesses = zip((difference @ w).tolist(), (difference @ w0).tolist(), strict=True)
        for vote, guess in zip(votes, guesses, strict=True):
            self._guesses[vote.key] = Guess(*guess)

    def _fit(self, model: Model, votes: Sequence[Vote]) -> Tensor:
        return (model.fit(*self._table(votes)) if votes else model.w0).double()

    def _informative(
        self, model: Model, votes: Sequence[Vote], w: Tensor
    ) -> list[tuple[Path, Path]]:
        if not votes:
            return []
        paths = list(self._x)
        return [(paths[i], paths[j]) for i, j in model.suggest(*self._table(votes, paths), w)]

    def _table(
        self, votes: Sequence[Vote], paths: Sequence[Path] = ()
    ) -> tuple[Tensor, Tensor, Tensor]:
        """x [N, D] of `paths` or of the voted pictures, pairs [P, 2] among them, p [P]."""
        index = {path: i for i, path in enumerate(paths)}
        pairs = [[index.setdefault(p, len(index)) for p in self._pictures([v])] for v in votes]
        p = [ANSWERS[vote.answer] for vote in votes]
        x = torch.stack([self._x[path] for path in index])
        return x, torch.tensor(pairs), torch.tensor(p, dtype=torch.float64)

    def _votes(self) -> list[Vote]:
        votes = self._store.votes(self._voter)
        return [vote for vote in votes if ANSWERS[vote.answer] is not None]

    def _pictures(self, votes: Sequence[Vote]) -> list[Path]:
        """Left and right of each."""
        return [self._store.locate(picture) for v in votes for picture in (v.left, v.right)]


def measure(votes: Sequence[Vote], guesses: dict[str, Guess]) -> dict[str, Any]:
    """How many of the votes were guessed right; ties and suggested pairs do not count.

    Returns:
        tested: how many count. accuracy, low, high: with the 95 % interval. base: the accuracy of
        the base scorer alone. curve: the accuracy of the latest votes as it developed.
    """
    judged = [v for v in votes if v.answer in ("left", "right") and v.source != "suggested"]
    right = [_right(vote, guesses[vote.key].learned) for vote in judged]
    base = [_right(vote, guesses[vote.key].base) for vote in judged]
    n = len(judged)
    low, high = wilson(sum(right) / n, n) if n else (0.0, 1.0)
    return {
        "tested": n,
        "accuracy": sum(right) / n if n else 0.5,
        "low": low,
        "high": high,
        "base": sum(base) / n if n else 0.5,
        "curve": _curve(right),
    }


def _right(vote: Vote, difference: float) -> float:
    """1 or 0; 0.5 where the guess was none."""
    if difference == 0:
        return 0.5
    return float((difference > 0) == (vote.answer == "left"))


def _curve(right: Sequence[float]) -> list[float]:
    ends = sorted({round(1 + i * (len(right) - 1) / (POINTS - 1)) for i in range(POINTS)})
    latest = [right[max(0, end - WINDOW) : end] for end in ends if 10 <= end <= len(right)]
    return [sum(window) / len(window) for window in latest]
