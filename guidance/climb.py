"""The way of an initial noise along the reward's gradient, through a whole run of the pipeline."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .halving import Candidate
from .initial import initial_noise, row
from .offload import modules_of, still
from .prune import denoisers
from .record import SearchResult
from .rewards import ascent, norms
from .sampling import Samples, sample
from .search import Search, candidates

MOMENTUM = 0.5


class Climb:
    """The iterations for one prompt.

    Args:
        cost: of an iteration with its gradient, in calls of the denoiser a step.
    """

    def __init__(self, search: Search, lr: float, regulariser: float, cost: int, stop: bool):
        self.search, self.lr, self.regulariser = search, lr, regulariser
        self.cost, self.stop = cost, stop

    def run(self, seeds: list[int], iterations: int) -> SearchResult:
        found = [self._best(seed, number, iterations) for number, seed in enumerate(seeds)]
        tables, held = torch.stack([each.table for each in found], 1), None
        if self.search.held_out is not None:
            held = torch.stack([each.held_out for each in found])
        made = [each.candidate for each in found]
        return self.search.kept(made, tables, held, seeds, len(seeds))

    def _best(self, seed: int, number: int, iterations: int) -> Tried:
        """The best that is met from one seed's noise on."""
        z = initial_noise(self.search.pipe, [seed], self.search.kwargs)  # [1, ...]
        kept, z, velocity = z.dtype, z.float(), torch.zeros_like(z, dtype=torch.float32)
        tried: list[Tried] = []
        for i in range(iterations + 1):
            if i < iterations:
                now, direction = self._slope(seed, z.to(kept))
                velocity = MOMENTUM * velocity + direction.float()
            else:
                now = self._plain(seed, z.to(kept))
            now = now._replace(candidate=now.candidate._replace(number=number))
            if tried and self._declined(tried[-1], now) and self.stop:
                break
            tried.append(now)
            z = moved(z, velocity, self.lr, self.regulariser)
        return tried[self._first(tried)]

    def _slope(self, seed: int, z: Tensor) -> tuple[Tried, Tensor]:
        """A run from noise z [1, ...], and the direction in which its reward rises."""
        search, ran = self.search, []

        def pixels_of(noise: Tensor) -> Tensor:
            samples = sample(
                search.pipe, [seed], {**search.kwargs, "latents": noise}, gradient=True
            )
            if not samples.pixels.requires_grad:
                raise NotImplementedError(
                    f"{type(search.pipe).__name__} gives no gradient of its pictures: use search_noise"
                )
            ran.append(samples)
            return samples.pixels

        prompts = None if search.prompt is None else [search.prompt]
        rewards, direction, pixels = ascent(search.scorers, z, pixels_of, prompts)
        search.record.denoiser_calls += self.cost * ran[0].steps
        search.record.scorer_calls += len(search.scorers)
        search.bar.update()
        latents = None if ran[0].latents is None else ran[0].latents.detach()
        samples = Samples(pixels, latents, ran[0].steps)
        return self._told(samples, z, rewards[:, 0].cpu()), direction

    def _plain(self, seed: int, z: Tensor) -> Tried:
        """A run without a gradient."""
        samples = self.search.sample([seed], z)
        self.search.bar.update()
        return self._told(samples, z, self.search.table(samples.pixels)[:, 0])

    def _told(self, samples: Samples, z: Tensor, table: Tensor) -> Tried:
        search, held = self.search, None
        if search.held_out is not None:
            held = search.rate(samples.pixels, [search.held_out])[0, 0]
        reward = sum(weight * each for (_, weight), each in zip(search.scorers, table, strict=True))
        shown = None if held is None else held.reshape(1)
        search.record.rows.append(row(len(search.record.rows), reward.reshape(1), shown))
        return Tried(candidates(samples, 0, z)[0], table, held)

    def _declined(self, before: Tried, now: Tried) -> bool:
        """Whether the held-out reward fell; with the guiding one risen, that is a gap."""
        if now.held_out is None or not now.held_out < before.held_out:
            return False
        self.search.record.stopped = self.search.record.stopped or self.stop
        self.search.record.gap = self.search.record.gap or bool((now.table > before.table).any())
        return True

    def _first(self, tried: list[Tried]) -> int:
        scores = self.search.combined(torch.stack([each.table for each in tried], 1))
        return int(scores.nan_to_num(-math.inf).argmax())


class Tried(NamedTuple):
    """One iteration."""

    candidate: Candidate
    table: Tensor  # [S]
    held_out: Tensor | None  # one number


def moved(z: Tensor, velocity: Tensor, lr: float, regulariser: float) -> Tensor:
    """The next noise [B, ...]: along the velocity, then back towards the likeliest norm."""
    d = z[0].numel()
    z = z + lr * math.sqrt(d) * velocity
    return z * (1 + regulariser * (math.sqrt(d - 1) / norms(z) - 1))


@contextmanager
def frozen(pipe: Any, checkpointing: bool) -> Iterator[None]:
    """Within the context, no weight of the pipeline learns; afterwards all is as it was."""
    modules = modules_of(pipe)
    flags = [
        (each, each.gradient_checkpointing)
        for module in modules
        for each in module.modules()
        if hasattr(each, "gradient_checkpointing")
    ]
    with ExitStack() as stack:
        stack.callback(_set_flags, flags)
        for module in modules:
            stack.enter_context(still(module))
        for module in [*denoisers(pipe), getattr(pipe, "vae", None)] if checkpointing else []:
            if getattr(module, "_supports_gradient_checkpointing", False):
                module.enable_gradient_checkpointing()
        yield


def _set_flags(flags: list[tuple[nn.Module, bool]]) -> None:
    for each, flag in flags:
        each.gradient_checkpointing = flag
