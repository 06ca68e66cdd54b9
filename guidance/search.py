"""Best of N: sample candidates, score them, keep the best."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import ranking
from ..scorers.stream import out_of_memory
from .record import Record, SearchResult
from .rewards import Scorer, Scorers, rate, weighted
from .sampling import Samples, one_prompt_each, sample, to_pil

log = logging.getLogger(__name__)


def best_of_n(
    pipe: Any,
    scorer: Scorers,
    n: int = 16,
    keep: int = 1,
    *,
    batch_size: int = 4,
    seeds: int | Sequence[int] = 0,
    held_out: Scorer | None = None,
    pipe_kwargs: Mapping[str, Any],
    progress: bool = True,
) -> SearchResult:
    """Samples `n` candidates and keeps the `keep` best, best first.

        result = best_of_n(pipe, scorer, n=16, keep=4, pipe_kwargs=dict(prompt="a lighthouse"))
        result.images[0].save(f"{result.seeds[0]}.png")

    Args:
        pipe: a diffusers pipeline of images or videos; any scheduler.
        scorer: one, several, or several with weights; none needs a gradient. Several are compared by
            their candidates' ranks, since their units differ.
        batch_size: candidates sampled together; halved (and kept so) when memory runs out.
        seeds: the first of n seeds in a row, or n seeds: of generators on the CPU.
        held_out: a scorer that does not choose, only looks.
        pipe_kwargs: what the pipeline is called with. A list of prompts is a search for each, with the
            same seeds; the results follow one another.

    Raises:
        TypeError, ValueError: naming the argument. A candidate whose score is NaN is never kept;
            ValueError if none has a score.
    """
    seeds = [seeds + i for i in range(n)] if isinstance(seeds, int) else list(seeds)
    if not 1 <= keep <= n or len(seeds) != n:
        raise ValueError(f"n seeds and 1 <= keep <= n: n={n}, keep={keep}, {len(seeds)} seeds")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    runs, scorers, record = one_prompt_each(pipe_kwargs), weighted(scorer), Record()
    bar = tqdm(total=n * len(runs), desc=f"best of {n}", unit="image", disable=not progress)
    found = []
    with bar:
        for kwargs in runs:
            search = _Search(pipe, scorers, held_out, kwargs, batch_size, record, bar)
            found.append(search.best(seeds, keep))
            batch_size = search.batch_size
    return SearchResult.join(found, record)


class _Search:
    """The search for one prompt."""

    def __init__(self, pipe, scorers, held_out, kwargs, batch_size, record, bar):
        self.pipe, self.scorers, self.held_out = pipe, scorers, held_out
        self.kwargs, self.batch_size, self.record, self.bar = kwargs, batch_size, record, bar
        self.prompt = kwargs.get("prompt")

    def best(self, seeds: list[int], keep: int) -> SearchResult:
        samples, scores, held = [], [], []
        while len(samples) < len(seeds):
            part = self.sample(seeds[len(samples) :])
            scores.append(self.rate(part.pixels, [s for s, _ in self.scorers]))
            if self.held_out is not None:
                held.append(self.rate(part.pixels, [self.held_out]))
            count = len(part.pixels)
            samples += [(part.pixels[i], _row(part.latents, i)) for i in range(count)]
            self.bar.update(count)
        table = torch.cat(scores, 1)  # [S, N]
        combined = combine(table, [weight for _, weight in self.scorers])
        kept = ranking.top_k(combined, keep).kept.tolist()
        if not kept:
            raise ValueError(f"none of {len(seeds)} candidates has a score")
        latents = [samples[i][1] for i in kept]
        return SearchResult(
            images=to_pil(torch.stack([samples[i][0] for i in kept])),
            scores=combined[kept],
            seeds=[seeds[i] for i in kept],
            prompts=[self.prompt] * len(kept),
            latents=None if latents[0] is None else torch.stack(latents),
            held_out=torch.cat(held, 1)[0][kept] if held else None,
            all_scores=combined,
            all_seeds=seeds,
            record=self.record,
        )

    def sample(self, seeds: list[int]) -> Samples:
        """The next batch."""
        while True:
            now = seeds[: self.batch_size]
            try:
                samples = sample(self.pipe, now, self.kwargs)
                break
            except RuntimeError as error:
                if len(now) == 1 or not out_of_memory(error):
                    raise
                log.warning("memory ran out: %d candidates at a time from here on", len(now) // 2)
            self.batch_size = len(now) // 2
            if torch.cuda.is_available():  # outside the handler: the traceback holds the batch
                torch.cuda.empty_cache()
        self.record.denoiser_calls += samples.steps * len(now)
        return samples

    @torch.no_grad()
    def rate(self, pixels: Tensor, scorers: Sequence[Scorer]) -> Tensor:
        """[S, B] on the CPU."""
        prompts = [self.prompt] * len(pixels) if isinstance(self.prompt, str) else None
        self.record.scorer_calls += len(scorers)
        return torch.stack([rate(scorer, pixels, prompts) for scorer in scorers]).cpu()


def combine(table: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores [S, N] of S scorers to one a candidate, [N]: of a single scorer, its own.

    Of several, the weighted mean of the candidates' percentiles; NaN where any has no score.
    """
    if len(table) == 1:
        return table[0]
    ranks = torch.stack([ranking.percentile(row) for row in table])
    return torch.tensor(weights, dtype=ranks.dtype) @ ranks


def _row(latents: Tensor | None, i: int) -> Tensor | None:
    return None if latents is None else latents[i]
