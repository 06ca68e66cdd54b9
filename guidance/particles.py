"""Feynman-Kac steering: n samples of one prompt, of which the better ones multiply while they form.

https://arxiv.org/abs/2501.06848. Each particle carries a weight w. At a few steps the reward of its
predicted x0 multiplies it by exp(phi_k - phi_{k-1}), with phi = lam * reward; when the weights have become
uneven, particles are drawn in proportion to them and go on with equal ones. The factors telescope, so
whatever was drawn, the particles at the end are those of exp(lam * reward) times the model's own
distribution, once n is large.

Weights that did not lead to a resampling are carried on to the next step: without them, they would not
telescope.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..scorers.stream import out_of_memory
from .decode import Decoder
from .prune import shrink_history
from .record import Record, SearchResult
from .resample import POTENTIALS, Weights, effective, renoised
from .rewards import Scorer, Scorers, weighted
from .sampling import (
    Samples,
    check_batch_size,
    check_pipeline,
    numbered,
    sample,
    searches,
)
from .schedulers import Level, adds_noise, level
from .search import Search, candidates
from .split import split
from .tap import Step, tap

AT = (0.2, 0.35, 0.5, 0.65)
ETA = 0.8


def steer_particles(
    pipe: Any,
    scorer: Scorers,
    n: int = 8,
    keep: int = 1,
    *,
    batch_size: int | None = None,
    seeds: int | Sequence[int] = 0,
    lam: float = 4.0,
    eta: float | None = None,
    at: Sequence[float] = AT,
    ess: float = 0.5,
    potential: str = "difference",
    decode: Any = "vae",
    held_out: Scorer | None = None,
    prompts: str | Sequence[str] | None = None,
    pipe_kwargs: Mapping[str, Any],
    progress: bool = True,
) -> SearchResult:
    """Samples `n` particles together, resamples them by their rewards on the way, keeps the best.

        result = steer_particles(pipe, scorer, n=8, pipe_kwargs=dict(prompt="a lighthouse"))

    Feynman-Kac steering, https://arxiv.org/abs/2501.06848: as many calls of the denoiser as best of n.
    Higher rewards, for less variety: many of the n images descend from the same few.

    Args:
        pipe: a diffusers pipeline of images or videos.
        scorer: one, several, or several with weights; none needs a gradient. Each is divided by the
            standard deviation of its scores among the particles (the largest so far), so `lam` is
            in deviations, whatever the scorer's unit.
        keep: how many of the final images are returned, best first.
        batch_size: how many of the n, which go through the steps together, the denoiser is given at a
            time; by default all. Halved, from the start again, when memory runs out.
        seeds: the first of n seeds in a row, or n seeds: of generators on the CPU.
        lam: how strongly the reward counts, from 0 (not at all: the plain batch). Below 2 it does
            little; 4 to 10 is useful.
        eta: how much of a particle's noise is new after a resampling, in [0, 1]: copies must differ to
            become different images. By default 0.8, and 0 where the scheduler adds noise itself.
        at: shares of the steps after which particles are weighed, in (0, 1).
        ess: resample when fewer than this share of the particles carry the weight, in [0, 1].
        potential: "difference" weighs each step's reward; "max" the best so far, which forgives a
            preview that looks worse than an earlier one. Both end at the final reward.
        decode: how a preview becomes pixels: "vae", an AutoencoderTiny, "linear"; see `Decoder`.
        held_out: a scorer that does not steer, only looks.
        prompts: what scorers that read prompts are given, as in `best_of_n`.
        pipe_kwargs: what the pipeline is called with. A list of prompts is a search for each, with the
            same seeds; the results follow one another.

    Returns:
        Of each kept image, `seeds` names the noise that it descends from: its other ancestors' noise
        matters too, so the same call makes it again, the seed alone does not. `weights` [n] turn
        means over the n particles into means under exp(lam * reward). The record has each step's
        rewards, effective sample size and ancestors.

    Raises:
        NotImplementedError: naming a scheduler or pipeline that is not supported, and what to do.
        TypeError, ValueError: naming the argument.
        RuntimeError: memory runs out with one particle at a time.
    """
    check_pipeline(pipe)
    seeds = numbered(seeds, n)
    if not 1 <= keep <= n or len(seeds) != n:
        raise ValueError(f"n seeds and 1 <= keep <= n: n={n}, keep={keep}, {len(seeds)} seeds")
    check_options(lam, eta, at, ess, potential)
    batch_size = n if batch_size is None else batch_size
    check_batch_size(batch_size)
    runs, scorers, record = searches(pipe_kwargs, prompts), weighted(scorer), Record()
    if eta is None:
        eta = 0.0 if adds_noise(pipe.scheduler, pipe_kwargs) else ETA
    found = []
    with tqdm(total=n * len(runs), desc="particles", unit="image", disable=not progress) as bar:
        for kwargs, prompt in runs:
            search = Search(pipe, scorers, held_out, kwargs, prompt, batch_size, record, bar)

            def particles(search: Search = search) -> Particles:
                weights = Weights(lam, [weight for _, weight in scorers], potential)
                return Particles(search, weights, Decoder(pipe, decode), eta, at, ess)

            found.append(_that_fits(particles, search, seeds, keep))
            batch_size = search.batch_size
            bar.update(n)
    return SearchResult.join(found, record)


def _that_fits(
    particles: Callable[[], Particles], search: Search, seeds: list[int], keep: int
) -> SearchResult:
    """A run with as many particles at a time as fit into memory."""
    while True:
        known = len(search.record.rows)
        try:
            return particles().run(seeds, keep)
        except RuntimeError as error:
            if search.batch_size == 1 and out_of_memory(error):
                raise RuntimeError(
                    "memory ran out with one particle at a time: take smaller pictures, or call "
                    "pipe.enable_model_cpu_offload() before"
                ) from error
            search.halve(min(search.batch_size, len(seeds)), error)
            del search.record.rows[known:]


def check_options(
    lam: float, eta: float | None, at: Sequence[float], ess: float, potential: str
) -> None:
    """Raises ValueError, naming the argument."""
    if not lam >= 0:
        raise ValueError(f"lam must not be negative, got {lam}")
    for name, value in (("eta", eta or 0.0), ("ess", ess)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} must be in [0, 1], got {value}")
    if not isinstance(at, Iterable) or not all(0 < share < 1 for share in at):
        raise ValueError(f"at must be shares of the steps in (0, 1), as in [0.5], got {at}")
    if potential not in POTENTIALS:
        raise ValueError(f"potential must be one of {', '.join(POTENTIALS)}, got {potential!r}")


class Particles:
    """The particles of one prompt."""

    def __init__(
        self,
        search: Search,
        weights: Weights,
        decoder: Decoder,
        eta: float,
        at: Sequence[float],
        ess: float,
    ):
        self.search, self.weights, self.decoder = search, weights, decoder
        self.eta, self.at, self.ess = eta, sorted(at), ess
        self.step: Step | None = None  # the last one
        self.generators: list[torch.Generator] = []
        self.lineage: list[int] = []  # whose initial noise each particle descends from

    def run(self, seeds: list[int], keep: int) -> SearchResult:
        self.lineage = list(range(len(seeds)))
        finished = candidates(self._sampled(seeds), 0)
        _, table, held_out = self.search.judged(finished)
        self.weights.update(table, final=True)
        seeds = [seeds[i] for i in self.lineage]
        result = self.search.kept(finished, table, held_out, seeds, keep)
        result.weights = self.weights.normalised()
        return result

    def _sampled(self, seeds: list[int]) -> Samples:
        pipe, parts = self.search.pipe, split(self.search.pipe, len(seeds), self.search.batch_size)
        with self.decoder.watching(), tap(pipe.scheduler, self._seen), parts:
            found = sample(pipe, seeds, self.search.kwargs, self._on_step, self._on_start)
        if not found.steps:
            raise NotImplementedError(
                f"{type(pipe).__name__} has no callback_on_step_end: use best_of_n or search_noise"
            )
        return found

    def _on_start(self, generators: list[torch.Generator]) -> None:
        # Each place keeps its generator, whoever comes to stand there: copies never share noise.
        self.generators = generators

    def _seen(self, step: Step) -> None:
        self.step = step
        self.row = self.search.record.add(step)

    def _on_step(self, pipe: Any, i: int, latents: Tensor) -> Tensor:
        total = pipe.num_timesteps
        between = not getattr(pipe.scheduler, "state_in_first_order", True)  # halves of a Heun step
        due = [share for share in self.at if max(1, round(share * total)) <= i + 1]
        if not due or between or i + 1 >= total:
            return latents
        self.at = self.at[len(due) :]
        return self._weighed(pipe, latents)

    @torch.no_grad()
    def _weighed(self, pipe: Any, latents: Tensor) -> Tensor:
        """The latents [n, ...] to go on with, resampled if the weights have become uneven."""
        search = self.search
        pixels = [self.decoder(x0) for x0 in self.step.x0.split(search.batch_size)]
        table = torch.cat([search.table(part) for part in pixels], 1)  # [S, n]
        if search.held_out is not None:
            held_out = [search.rate(part, [search.held_out])[0] for part in pixels]
            self.row.held_out = torch.cat(held_out)
        self.row.reward = torch.tensor([weight for _, weight in search.scorers]) @ table
        self.weights.update(table)
        self.row.ess = float(effective(self.weights.log))
        if self.row.ess >= self.ess:
            return latents
        index = self.weights.resample(torch.rand(1, generator=self.generators[0]))
        self.row.ancestors = index.tolist()
        self.lineage = [self.lineage[i] for i in self.row.ancestors]
        return self._copied(pipe.scheduler, latents, index.to(latents.device))

    def _copied(self, scheduler: Any, latents: Tensor, index: Tensor) -> Tensor:
        """The latents of these particles, each with new noise."""
        shrink_history(scheduler, latents.shape, index)
        if not self.eta:
            return latents[index]
        if hasattr(scheduler, "last_sample"):  # UniPC would correct the new noise away with it
            scheduler.last_sample = None
        noise = torch.stack([torch.randn(latents.shape[1:], generator=g) for g in self.generators])
        after = following(scheduler, self.step.timestep)
        x, x0 = latents[index].float(), self.step.x0[index]
        return renoised(x, x0, after, self.eta, noise.to(x)).to(latents.dtype)


def following(scheduler: Any, timestep: Any) -> Level:
    """Of the sample that a step at this timestep gave."""
    return level(scheduler, next(t for t in scheduler.timesteps.tolist() if t < timestep))
