"""A head that learns from the votes while they are made, and tells how well it guesses them.

Every vote is guessed before it is learned from (prequential evaluation, Dawid 1984): each guess is
about a pair that the head has not seen. Votes about suggested pairs do not count, because those are
suggested for being hard to guess; nor do ties.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, Sequence
from itertools import islice
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
PAUSED = "Learning failed: the next vote tries again. No vote is lost; the terminal says why."

log = logging.getLogger(__name__)


class Model(Protocol):
    """What is learned, on which features. Loaded and used by one background thread."""

    w0: Tensor  # [D], the weight that gives the base scorer's own scores

    def embed(self, paths: Sequence[Path]) -> Tensor:
        """[N, D]. OSError or ValueError for a picture that cannot be opened."""

    def fit(self, x: Tensor, pairs: Tensor, p: Tensor) -> Tensor:
        """The weight [D] that predicts p [P] of pairs [P, 2] of the pictures with features x [N, D].

        All N were voted on; x is float32.
        """

    def suggest(self, x: Tensor, pairs: Tensor, p: Tensor, w: Tensor) -> list[tuple[int, int]]:
        """Informative pairs of the N pictures, the best first, after a fit that gave w."""


class Guess(NamedTuple):
    """Score of the left picture minus that of the right one, before the vote was learned from."""

    learned: float
    base: float


class Features:
    """What is known of pictures, each once: as many rows as there may be are set aside, and filled."""

    def __init__(self, most: int):
        self.row: dict[Path, int] = {}
        self._most, self._rows = most, torch.empty(0, 0)

    @property
    def x(self) -> Tensor:
        """[N, D] float32 of those that are known, in the order in which they came; no copy."""
        return self._rows[: len(self.row)]

    def add(self, paths: Sequence[Path], x: Tensor) -> None:
        """x [N, D] of N new paths."""
        if not self.row:
            self._rows = torch.empty(self._most, x.shape[1])
        first = len(self.row)
        self._rows[first : first + len(x)] = x.cpu()
        self.row.update({path: first + i for i, path in enumerate(paths)})


class Learner:
    """A background thread. What goes wrong in it is told, stops no vote, and is tried again with the next.

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
        self._model: Model | None = None
        self._waiting = dict.fromkeys(pictures)  # not embedded yet, in order
        self._resting: set[Path] = set()  # of these, what failed: not tried before the next vote
        self._total = len(self._waiting)
        self._features = Features(self._total)  # a picture that cannot be opened has none
        self._guesses: dict[str, Guess] = {}  # by the votes' keys
        self._fitted: tuple[str, ...] | None = None  # the keys of what was learned from
        self._suggestions: list[tuple[Path, Path]] = []
        self._measured = measure([], {})
        self._doing = "loading the scorer"
        self._wrong: set[str] = set()  # what failed when it was last tried
        self._logged = ""
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
        error = PAUSED if self._wrong else ""
        about = {"doing": self._doing, "error": error, "name": self._name}
        return self._measured | about

    def suggest(self, taken: Collection[Pair], seed: int) -> tuple[Path, Path] | None:
        """The most informative pair that is not taken, as of the last fit; None without any."""
        return next((pair for pair in self._suggestions if Pair(pair) not in taken), None)

    # ---- the thread

    def _run(self) -> None:
        while not self._stopped.is_set():
            if self._wake.is_set():
                self._wake.clear()  # first: a vote that comes from here on wakes it again
                self._try_again()
            if not self._attempt("step", self._step):
                self._wake.wait()

    def _step(self) -> bool:
        """The most urgent thing, if there is any: a short one, so that no vote waits for long."""
        if self._model is None:
            self._model = self._load()
        votes = self._votes()
        keys = tuple(vote.key for vote in votes)
        voted = [path for path in dict.fromkeys(self._pictures(votes)) if self._is_due(path)]
        if voted:
            self._attempt("embed", lambda: self._embed(voted[:CHUNK]))
        elif keys != self._fitted:
            self._fitted = keys
            self._attempt("learn", lambda: self._learn(votes))
        elif chunk := list(islice(filter(self._is_due, self._waiting), CHUNK)):
            self._attempt("embed", lambda: self._embed(chunk))
        else:
            return False
        return True

    def _is_due(self, path: Path) -> bool:
        return path in self._waiting and path not in self._resting

    def _attempt(self, name: str, act: Callable[[], Any]) -> Any:
        """The page says that something is wrong, the log what; once, if it is the same again."""
        try:
            found = act()
        except Exception as error:  # votes go on without it
            self._wrong.add(name)
            what = f"{type(error).__name__}: {error}"
            if what != self._logged:
                log.warning("learning from votes failed, the next one tries again", exc_info=error)
            self._doing, self._logged = "", what
            return None
        self._wrong.discard(name)
        return found

    def _try_again(self) -> None:
        self._resting.clear()
        if self._wrong:
            self._fitted = None

    def _embed(self, paths: list[Path]) -> None:
        try:
            self._add(paths, self._model.embed(paths))
        except Exception as error:
            self._embed_each(paths, error)
        done = self._total - len(self._waiting)
        more = any(map(self._is_due, self._waiting))
        self._doing = f"looking at the pictures: {done} of {self._total}" if more else ""
        if not self._waiting:
            self._fitted = None  # suggestions from all pictures

    def _embed_each(self, paths: list[Path], error: Exception) -> None:
        """Raises the error where none can be embedded, for then it is not the pictures' fault."""
        failed = []
        for path in paths:
            try:
                self._add([path], self._model.embed([path]))
            except (OSError, ValueError):  # it cannot be opened, of which the page tells
                del self._waiting[path]
            except Exception:
                failed.append(path)
        self._resting.update(self._waiting if len(failed) == len(paths) else failed)
        if len(failed) == len(paths):
            raise error

    def _add(self, paths: list[Path], x: Tensor) -> None:
        self._features.add(paths, x)
        for path in paths:
            del self._waiting[path]

    def _learn(self, votes: list[Vote]) -> None:
        """Guesses the votes that are new, then learns from them; block by block after a restart."""
        model, known = self._model, self._features.row
        usable = [v for v in votes if all(path in known for path in self._pictures([v]))]
        old = [vote for vote in usable if vote.key in self._guesses]
        new = [vote for vote in usable if vote.key not in self._guesses]
        w = self._fit(model, old)
        while new and not self._stopped.is_set():
            block = new[: max(1, len(old) // REPLAY)]
            self._guess(block, w, model.w0.double())
            old, new = old + block, new[len(block) :]
            w = self._fit(model, old)
        self._measured = measure(old, self._guesses)
        self._suggestions = self._informative(model, old, w)

    def _guess(self, votes: Sequence[Vote], w: Tensor, w0: Tensor) -> None:
        left, right = self._features.x[self._rows(votes)].double().unbind(1)
        difference = left - right  # [P, D]
        guesses = zip((difference @ w).tolist(), (difference @ w0).tolist(), strict=True)
        for vote, guess in zip(votes, guesses, strict=True):
            self._guesses[vote.key] = Guess(*guess)

    def _fit(self, model: Model, votes: Sequence[Vote]) -> Tensor:
        if not votes:
            return model.w0.double()
        rows = self._rows(votes).flatten().tolist()
        place = {row: i for i, row in enumerate(dict.fromkeys(rows))}  # as they were voted on
        pairs = torch.tensor([place[row] for row in rows]).view(-1, 2)
        return model.fit(self._features.x[list(place)], pairs, _probabilities(votes)).double()

    def _informative(
        self, model: Model, votes: Sequence[Vote], w: Tensor
    ) -> list[tuple[Path, Path]]:
        if not votes:
            return []
        x, paths = self._features.x, list(self._features.row)
        found = model.suggest(x, self._rows(votes), _probabilities(votes), w)
        return [(paths[i], paths[j]) for i, j in found]

    def _rows(self, votes: Sequence[Vote]) -> Tensor:
        """The pairs as rows of the features, [P, 2]."""
        row = self._features.row
        return torch.tensor([[row[path] for path in self._pictures([v])] for v in votes])

    def _votes(self) -> list[Vote]:
        votes = self._store.votes(self._voter)
        return [vote for vote in votes if ANSWERS[vote.answer] is not None]

    def _pictures(self, votes: Sequence[Vote]) -> list[Path]:
        """Left and right of each."""
        return [self._store.locate(picture) for v in votes for picture in (v.left, v.right)]


def _probabilities(votes: Sequence[Vote]) -> Tensor:
    return torch.tensor([ANSWERS[vote.answer] for vote in votes], dtype=torch.float64)


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
