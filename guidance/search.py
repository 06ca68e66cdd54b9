"""Best of N: sample candidates, score them, keep the best; with pruning, finish only the promising."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import ranking
from ..scorers.stream import out_of_memory
from .decode import check_decode
from .halving import Candidate, Cut, Halving, check_cuts, halving_cuts
from .record import Record, Row, SearchResult
from .rewards import Scorer, Scorers, check_scorer, rate, weighted
from .sampling import (
    Samples,
    check_batch_size,
    check_pipeline,
    numbered,
    sample,
    searches,
    to_pil,
)
from .tap import release

if TYPE_CHECKING:
    from .calibrate import PruningCalibration

log = logging.getLogger(__name__)


def best_of_n(
    pipe: Any,
    scorer: Scorers,
    n: int = 16,
    keep: int = 1,
    *,
    batch_size: int = 4,
    seeds: int | Sequence[int] = 0,
    prune: str | Sequence[tuple[float, float]] | PruningCalibration | None = None,
    decode: Any = "vae",
    held_out: Scorer | None = None,
    prompts: str | Sequence[str] | None = None,
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
        batch_size: candidates sampled, and judged, together; halved (and kept so) when memory runs
            out.
        seeds: the first of n seeds in a row, or n seeds: of generators on the CPU.
        prune: drop candidates whose previews are weak, and save their steps: "halving" (16 become 8,
            4, 2, 1 in the first half of the run; 8 and 4 where four are kept), or cuts (share of the
            steps done, share of the candidates that goes on). How early a preview tells depends on
            model and scorer: measure it with `calibrate_pruning`, and give what it returns. Never
            fewer than `keep` go on. Of cuts that fall on one step of few only the last is made.
        decode: how a preview becomes pixels: "vae", an AutoencoderTiny, "linear"; see `Decoder`.
        held_out: a scorer that does not choose, only looks.
        prompts: what scorers that read prompts are given, one for each of the pipeline's; by default
            those of `pipe_kwargs`. Embeddings say nothing to a scorer: give it their text here.
        pipe_kwargs: what the pipeline is called with. A list of prompts is a search for each, with the
            same seeds; the results follow one another.

    Returns:
        The kept images with their scores, seeds and latents. The record has a row for each cut, and one
        for the finished candidates.

    Raises:
        NotImplementedError: with `prune`, naming a scheduler or pipeline that cannot be pruned.
        TypeError, ValueError: naming the argument. A candidate whose score is NaN is never kept;
            ValueError if none has a score.
        RuntimeError: with `prune`, the pipeline was interrupted (`pipe._interrupt`).
    """
    prune = getattr(prune, "cuts", prune)  # a calibration's
    check_pipeline(pipe, scheduler=bool(prune))
    check_decode(decode)  # also where nothing is pruned, and nothing decoded by it
    seeds = numbered(seeds, n)
    if not 1 <= keep <= n or len(seeds) != n:
        raise ValueError(f"n seeds and 1 <= keep <= n: n={n}, keep={keep}, {len(seeds)} seeds")
    check_batch_size(batch_size)
    cuts = check_cuts(halving_cuts(n, keep) if prune == "halving" else prune or ())
    runs, scorers, record = searches(pipe_kwargs, prompts), weighted(scorer), Record()
    bar = tqdm(total=n * len(runs), desc=f"best of {n}", unit="image", disable=not progress)
    found = []
    with bar:
        for kwargs, prompt in runs:
            search = Search(pipe, scorers, held_out, kwargs, prompt, batch_size, record, bar)
            judged = search.pruned(seeds, keep, cuts, decode) if cuts else search.all(seeds)
            found.append(search.best(judged, seeds, keep))
            batch_size = search.batch_size
    return SearchResult.join(found, record)


class Judged(NamedTuple):
    """Candidates that came to their end, and what the scorers say of them."""

    candidates: list[Candidate]
    table: Tensor  # [S, N]
    held_out: Tensor | None  # [N]


class Search:
    """The search for one prompt: `kwargs` are the pipeline's, `prompt` is what scorers read."""

    def __init__(self, pipe, scorers, held_out, kwargs, prompt, batch_size, record, bar):
        self.pipe, self.scorers, self.held_out = pipe, scorers, held_out
        self.kwargs, self.batch_size, self.record, self.bar = kwargs, batch_size, record, bar
        self.prompt: str | None = prompt
        self.steps = 0  # calls of the denoiser that a finished candidate took
        if held_out is not None:
            check_scorer(held_out)  # before the work, not after it
        release(getattr(pipe, "scheduler", None))

    def all(self, seeds: list[int], noise: Tensor | None = None) -> Judged:
        """Every seed's candidate, batch by batch; from these noises [N, ...] if given.

        Each batch is judged before the next is sampled: a scorer that fails shall do so early.
        """
        found, tables, held = [], [], []
        while len(found) < len(seeds):
            done = len(found)
            samples = self.sample(seeds[done:], None if noise is None else noise[done:])
            made, table, held_out = self.judged(candidates(samples, done, noise))
            # On the CPU: all of them at once would fill the device.
            found += [each._replace(pixels=each.pixels.cpu()) for each in made]
            tables, held = [*tables, table], [*held, held_out]
            self.bar.update(len(found) - done)
        return Judged(found, torch.cat(tables, 1), None if held[0] is None else torch.cat(held))

    def pruned(self, seeds: list[int], keep: int, cuts: Sequence[Cut], decode: Any) -> Judged:
        """The candidates that survive the cuts."""
        before = self.bar.n
        while True:
            halving = Halving(
                *(self.pipe, seeds, self.kwargs, cuts, self.previewed, self.combined),
                batch_size=self.batch_size,
                decode=decode,
                least=keep,
                watched=self.held_out is not None,
                ended=self.bar.update,
            )
            try:
                found = halving.run()
                break
            except RuntimeError as error:
                self.halve(self.batch_size, error)
                self.bar.update(before - self.bar.n)
            finally:
                self.record.denoiser_calls += halving.calls
        self.steps = max(lane.step.index + 1 for lane in halving.lanes)
        self.record.survivors += halving.survivors
        self.record.rows += halving.rows
        return self.judged(found)

    def best(self, judged: Judged, seeds: list[int], keep: int) -> SearchResult:
        """The best of the finished candidates."""
        candidates, table, held_out = judged
        scores = self.combined(table)
        self.record.rows.append(Row(self.steps, 0.0, 0.0, scores, held_out))
        return self.kept(candidates, table, held_out, seeds, keep)

    def judged(self, candidates: list[Candidate]) -> Judged:
        """Finished candidates with their scores."""
        table = self.told(candidates, [scorer for scorer, _ in self.scorers])
        held_out = None if self.held_out is None else self.told(candidates, [self.held_out])[0]
        return Judged(candidates, table, held_out)

    def told(self, candidates: list[Candidate], scorers: Sequence[Scorer]) -> Tensor:
        """What the scorers say of finished candidates, [S, N] on the CPU; as many at a time as fit."""
        tables, done = [], 0
        while done < len(candidates):
            now = candidates[done : done + self.batch_size]
            try:
                tables.append(self.rate(torch.stack([each.pixels for each in now]), scorers))
                done += len(now)
            except RuntimeError as error:
                self.halve(len(now), error)
        return torch.cat(tables, 1)

    def kept(
        self,
        candidates: list[Candidate],
        table: Tensor,
        held_out: Tensor | None,
        seeds: list[int],
        keep: int,
    ) -> SearchResult:
        """The best of judged candidates."""
        numbers = [candidate.number for candidate in candidates]
        scores, held = torch.full((2, len(seeds)), torch.nan)
        scores[numbers] = self.combined(table).float()
        if held_out is not None:
            held[numbers] = held_out
        kept = ranking.top_k(scores, keep).kept.tolist()
        if not kept:
            raise ValueError(f"none of {len(seeds)} candidates has a score")
        chosen = [candidates[numbers.index(number)] for number in kept]
        return SearchResult(
            images=to_pil(torch.stack([candidate.pixels for candidate in chosen])),
            scores=scores[kept],
            seeds=[seeds[i] for i in kept],
            prompts=[self.prompt] * len(kept),
            latents=stacked([candidate.latents for candidate in chosen]),
            held_out=None if held_out is None else held[kept],
            all_scores=scores,
            all_seeds=seeds,
            record=self.record,
            noise=stacked([candidate.noise for candidate in chosen]),
        )

    def sample(self, seeds: list[int], noise: Tensor | None = None) -> Samples:
        """The next batch."""
        while True:
            now = seeds[: self.batch_size]
            given = {} if noise is None else {"latents": noise[: len(now)]}
            try:
                samples = sample(self.pipe, now, {**self.kwargs, **given})
                break
            except RuntimeError as error:
                self.halve(len(now), error)
        self.steps = samples.steps
        self.record.denoiser_calls += samples.steps * len(now)
        return samples

    def halve(self, count: int, error: RuntimeError) -> None:
        """Halves the batch where memory ran out; raises any other error, or that of one candidate."""
        if count == 1 or not out_of_memory(error):
            raise error
        log.warning("memory ran out: %d candidates at a time from here on", count // 2)
        self.batch_size = count // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def table(self, pixels: Tensor) -> Tensor:
        """What each of the scorers says of a batch, [S, B] on the CPU."""
        return self.rate(pixels, [scorer for scorer, _ in self.scorers])

    def previewed(self, pixels: Tensor) -> Tensor:
        """`table` of forming pictures, with the held-out scorer's row last where there is one."""
        held_out = [] if self.held_out is None else [self.held_out]
        return self.rate(pixels, [*(scorer for scorer, _ in self.scorers), *held_out])

    def combined(self, table: Tensor) -> Tensor:
        """One score a candidate, [N], of the scorers' [S, N] of all candidates."""
        return combine(table, [weight for _, weight in self.scorers])

    @torch.no_grad()
    def rate(self, pixels: Tensor, scorers: Sequence[Scorer]) -> Tensor:
        """[S, B] on the CPU."""
        prompts = None if self.prompt is None else [self.prompt] * len(pixels)
        self.record.scorer_calls += len(scorers)
        return torch.stack([rate(scorer, pixels, prompts) for scorer in scorers]).cpu()


def candidates(samples: Samples, first: int, noise: Tensor | None = None) -> list[Candidate]:
    """A run's, numbered from `first` on; `noise` is that of all candidates."""
    return [
        Candidate(
            first + i,
            pixels,
            None if samples.latents is None else samples.latents[i],
            None if noise is None else noise[first + i],
        )
        for i, pixels in enumerate(samples.pixels)
    ]


def stacked(found: Sequence[Tensor | None]) -> Tensor | None:
    return None if any(each is None for each in found) else torch.stack(list(found))


def combine(table: Tensor, weights: Sequence[float]) -> Tensor:
    """Scores [S, N] of S scorers to one a candidate, [N]: of a single scorer, its own.

    Of several, the weighted mean of the candidates' percentiles; NaN where any has no score.
    """
    if len(table) == 1:
        return table[0]
    ranks = torch.stack([ranking.percentile(row) for row in table])
    return torch.tensor(weights, dtype=ranks.dtype) @ ranks
