"""Successive halving: candidates that look weak early are dropped, and cost no more.

A candidate is judged by the decoded x0 of its step, long before its picture is finished. All candidates
must be compared at the same step, and not all fit into one batch: so each batch is a run of its own, in
a thread that waits at every cut until all the others have come as far. One runs at a time.
"""

from __future__ import annotations

import copy
import math
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import ranking
from .decode import Decoder
from .prune import Pruner, check_prunable, pruning
from .record import Row
from .sampling import Samples, sample
from .surroundings import Surroundings
from .tap import Step, tap


class Cut(NamedTuple):
    """After this share of the steps, only this share of the candidates goes on."""

    after: float  # in (0, 1)
    keep: float  # in (0, 1), of all candidates at the start


# 16 candidates become 8, 4, 2 and 1 in the first half of the run.
HALVING = (Cut(0.1, 1 / 2), Cut(0.2, 1 / 4), Cut(0.3, 1 / 8), Cut(0.4, 1 / 16))


def halving_cuts(n: int, keep: int) -> list[Cut]:
    """`HALVING` for n candidates of which `keep` are wanted: 16 become 8 and 4 if four are.

    Early previews tell little, so twice as many go on as are wanted, up to the last cut.
    """
    if keep >= n:
        return []
    *early, last = HALVING
    last = Cut(last.after, max(last.keep, keep / n))
    return [cut for cut in early if cut.keep * n >= 2 * keep and cut.keep > last.keep] + [last]


def check_cuts(cuts: Sequence[Cut | tuple[float, float]]) -> list[Cut]:
    """ValueError unless they come one after the other and keep fewer and fewer."""
    try:
        found = [Cut(*cut) for cut in cuts]
    except TypeError:
        raise ValueError(
            f'prune is "halving", cuts [(after, keep), ...] or a calibration, got {cuts!r}'
        ) from None
    flat = [value for cut in found for value in cut]
    ordered = all(a.after < b.after and a.keep > b.keep for a, b in pairwise(found))
    if not all(0 < value < 1 for value in flat) or not ordered:
        raise ValueError(f"cuts are (after, keep) in (0, 1), later ones keeping fewer: {cuts}")
    return found


def placed(cuts: Sequence[Cut], steps: int) -> dict[int, Cut]:
    """Index of the step after which each cut comes, in their order.

    Of those that fall on one step only the last is left: a preview is not judged twice. None comes
    after the last step, where nothing is left to save.
    """
    found = {max(0, round(cut.after * steps) - 1): cut for cut in cuts}
    return {index: cut for index, cut in found.items() if index < steps - 1}


class Candidate(NamedTuple):
    """One that came to its end."""

    number: int  # its place among the seeds
    pixels: Tensor  # [3, H, W], or [T, 3, H, W] of a video
    latents: Tensor | None
    noise: Tensor | None = None  # that it was made from, where a search is among noises


class Halving:
    """One search among candidates that are sampled together.

    Args:
        rate: pixels [B, ...] to scores [S, B] of S scorers on the CPU.
        combine: those of all candidates [S, N] to one each, [N]: several scorers are compared by
            ranks, which only the whole set has.
        decode: how x0 becomes pixels at a cut; see `Decoder`.
        least: candidates that are never dropped.
        watched: the last of `rate`'s scores is a held-out one: recorded, but no part of the choice.
        ended: called with the number of candidates that were dropped, or came to their end.
    """

    def __init__(
        self,
        pipe: Any,
        seeds: Sequence[int],
        pipe_kwargs: Mapping[str, Any],
        cuts: Sequence[Cut],
        rate: Callable[[Tensor], Tensor],
        combine: Callable[[Tensor], Tensor],
        *,
        batch_size: int,
        decode: Any = "vae",
        least: int = 1,
        watched: bool = False,
        ended: Callable[[int], object] = lambda count: None,
    ):
        check_prunable(pipe, pipe_kwargs)
        self.pipe, self.seeds, self.pipe_kwargs = pipe, list(seeds), pipe_kwargs
        self.cuts, self.decode, self.least = list(cuts), decode, least
        self.rate, self.combine, self.ended = rate, combine, ended
        self.watched = watched
        self.calls = 0  # of the denoiser, times candidates
        self.survivors: list[list[int]] = []  # after each cut
        self.rows: list[Row] = []  # one a cut
        starts = range(0, len(self.seeds), batch_size)
        self.lanes = [Lane(self, i, self.seeds[i : i + batch_size]) for i in starts]
        self.running: Lane | None = None
        self.due: dict[int, Cut] | None = None  # by index of the step, known from the first one on

    def run(self) -> list[Candidate]:
        """The candidates that came to the end, in their order."""
        if getattr(self.pipe, "_interrupt", False):  # an earlier run's
            self.pipe._interrupt = False
        with pruning(self.pipe, lambda: self.running and self.running.pruner):
            try:
                told = {lane: self._turn(lane, None) for lane in self.lanes}
                for cut in self.due.values():
                    table = torch.cat(list(told.values()), 1)
                    table, held_out = (table[:-1], table[-1]) if self.watched else (table, None)
                    scores = self.combine(table)
                    kept = self._choose(told, scores, cut)
                    self._record(told, scores, held_out, kept)
                    told = {lane: self._turn(lane, local) for lane, local in kept.items() if local}
            finally:
                for lane in self.lanes:
                    lane.stop()
        found = [candidate for lane in told for candidate in told[lane]]
        self.ended(len(found))
        return found

    def place(self, steps: int) -> None:
        """Places the cuts in a run of so many steps."""
        if self.due is not None:
            return
        self.due = placed(self.cuts, steps)
        if len(self.due) < len(self.cuts):
            done = ", ".join(str(index + 1) for index in self.due)
            warnings.warn(
                f"{len(self.cuts)} cuts do not fit into {steps} steps: "
                + (f"pruned after steps {done}" if done else "nothing is pruned"),
                stacklevel=2,
            )

    def _record(
        self,
        told: dict[Lane, Tensor],
        scores: Tensor,
        held_out: Tensor | None,
        kept: dict[Lane, list[int]],
    ) -> None:
        numbers = sorted(n for lane in kept for n in lane.numbers(kept[lane]))
        self.survivors.append(numbers)
        self.ended(len(scores) - len(numbers))
        step = next(iter(told)).step
        left = len(numbers) / len(self.seeds)
        self.rows.append(Row(step.index, step.sigma, step.noise_ratio, scores, held_out, left=left))

    def _turn(self, lane: Lane, local: list[int] | None) -> Any:
        """Lets one batch run up to its next cut or its end; what it says there."""
        self.running = lane
        try:
            return lane.proceed(local)
        finally:
            self.running = None

    def _choose(self, told: dict[Lane, Tensor], scores: Tensor, cut: Cut) -> dict[Lane, list[int]]:
        """Which positions of each batch go on; the scores [N] are of all batches."""
        places = [(lane, i) for lane, table in told.items() for i in range(table.shape[1])]
        count = max(self.least, math.ceil(cut.keep * len(self.seeds)))
        chosen = ranking.top_k(scores, min(count, len(scores)), "original").kept.tolist()
        if not chosen:
            raise ValueError(f"none of {len(scores)} candidates has a score at a preview")
        kept: dict[Lane, list[int]] = {lane: [] for lane in told}
        for place in chosen:
            lane, i = places[place]
            kept[lane].append(i)
        return kept


class Dropped(Exception):
    """Ends a run of which no candidate goes on."""


class Lane(threading.Thread):
    """One batch's run, on a copy of the pipeline with a scheduler of its own."""

    def __init__(self, halving: Halving, first: int, seeds: list[int]):
        super().__init__(daemon=True)
        self.halving, self.first, self.seeds = halving, first, seeds
        self.pipe = copy.copy(halving.pipe)
        self.pipe.scheduler = copy.deepcopy(halving.pipe.scheduler)
        if hasattr(self.pipe, "set_progress_bar_config"):
            # One bar a batch, all at once, would tell little.
            self.pipe.set_progress_bar_config(disable=True)
        self.decoder = Decoder(self.pipe, halving.decode)
        self.pruner: Pruner | None = None
        self.step: Step | None = None  # the last one
        self.x0: Tensor | None = None  # of those that are left
        self.surroundings = Surroundings()  # of the caller's thread
        self.stopped = False
        self.orders: SimpleQueue[list[int] | None] = SimpleQueue()
        self.reports: SimpleQueue[Any] = SimpleQueue()

    def numbers(self, local: Sequence[int]) -> list[int]:
        """The candidates at these positions."""
        return [self.first + self.pruner.alive[i] for i in local]

    def proceed(self, local: list[int] | None) -> Any:
        """Starts, or goes on with those positions; scores at the next cut, or the survivors."""
        if not self.is_alive() and self.pruner is None:
            self.start()
        else:
            self.orders.put(local)
        report = self.reports.get()
        if isinstance(report, BaseException):
            raise report
        return report

    def stop(self) -> None:
        """Ends the run: where it waits, or at its next step."""
        self.stopped = True
        if self.is_alive():
            self.orders.put(None)
            self.join()

    def run(self) -> None:
        try:
            with self.surroundings.entered():
                self.reports.put(self._sampled())
        except Dropped:
            pass
        except BaseException as error:  # the one who waits for this batch raises it
            self.reports.put(error)

    def _sampled(self) -> list[Candidate]:
        with self.decoder.watching(), tap(self.pipe.scheduler, self._seen):
            found: Samples = sample(
                self.pipe, self.seeds, self.halving.pipe_kwargs, self._on_step, self._on_start
            )
        self._check()
        if not found.steps:
            raise NotImplementedError(
                f"{type(self.pipe).__name__} has no callback_on_step_end: leave prune out"
            )
        latents = found.latents
        return [
            Candidate(self.first + number, found.pixels[i], None if latents is None else latents[i])
            for i, number in enumerate(self.pruner.alive)
        ]

    def _on_start(self, generators: list[torch.Generator]) -> None:
        self.pruner = Pruner(self.pipe, len(self.seeds), generators)

    def _check(self) -> None:
        """Raises where this run shall not go on."""
        if self.stopped:
            raise Dropped
        # A pipeline that is interrupted skips the steps that are left, and with them its cuts.
        if any(getattr(pipe, "_interrupt", False) for pipe in (self.pipe, self.halving.pipe)):
            raise RuntimeError("the pipeline was interrupted before its candidates were finished")

    def _seen(self, step: Step) -> None:
        self._check()
        self.step, self.x0 = step, step.x0
        self.halving.calls += len(step.x0)

    def _on_step(self, pipe: Any, i: int, latents: Tensor) -> Tensor:
        self._check()
        self.halving.place(pipe.num_timesteps)
        return self._cut(latents) if i in self.halving.due else latents

    def _cut(self, latents: Tensor) -> Tensor:
        """Reports the scores of the previews, waits, and drops who does not go on."""
        with torch.no_grad():
            self.reports.put(self.halving.rate(self.decoder(self.x0)))
        local = self.orders.get()
        if not local:
            raise Dropped
        self.x0 = self.x0[torch.as_tensor(local, device=self.x0.device)]
        return self.pruner.keep(latents, local)
