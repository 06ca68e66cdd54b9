"""How early a preview tells: measured for a pipeline and a scorer, and turned into cuts for pruning."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .. import ranking
from .decode import Decoder
from .halving import Cut
from .rewards import Scorers, rate, weighted
from .sampling import check_pipeline, sample, searches
from .search import combine
from .tap import Step, release, tap

KEEPS = (1 / 2, 1 / 4, 1 / 8, 1 / 16)
DRAWS = 256  # groups of candidates that a schedule is tried on


@dataclass(frozen=True, eq=False)
class PruningCalibration:
    """What was measured, and the cuts that follow: `best_of_n(..., prune=calibration)`."""

    after: list[float]  # share of the steps done, of each preview
    noise_ratios: list[float]
    correlation: list[float]  # Spearman's, of the previews' scores with the final ones
    cuts: list[Cut]  # empty where no pruning keeps enough
    kept: float  # share of best-of-N's gain over one candidate that the cuts keep, on these candidates
    cost: float  # denoiser calls, as a share of those without pruning


def calibrate_pruning(
    pipe: Any,
    scorer: Scorers,
    candidates: int = 32,
    *,
    n: int = 16,
    keep: float = 0.97,
    budget: float | None = None,
    batch_size: int = 4,
    seed: int = 0,
    decode: Any = "vae",
    prompts: str | Sequence[str] | None = None,
    pipe_kwargs: Mapping[str, Any],
    progress: bool = True,
) -> PruningCalibration:
    """Samples candidates to their end, scoring every preview, and chooses where to cut.

    By default the cheapest cuts that keep enough; with a budget those that keep most for it.

    Args:
        scorer: one, several, or several with weights, as `best_of_n` will be given them.
        candidates: how many are sampled for each prompt; more make a steadier choice.
        n: of the best-of-N that will be pruned.
        keep: share of its gain that pruning must keep, in (0, 1].
        budget: instead, the share of its denoiser calls that pruning may spend, in (0, 1].
        seed: the first of as many seeds in a row: other ones than those that are pruned later.
        decode: as `best_of_n` will be given it: another decoder tells earlier or later.
        prompts: what scorers that read prompts are given, as in `best_of_n`.
        pipe_kwargs: typical arguments, with one prompt or several.

    Returns:
        How well each step's preview predicts the final score, and the cuts: none where no pruning keeps
        enough, which is also so where a score is NaN.

    Raises:
        NotImplementedError: naming a scheduler or pipeline that is not supported, and what to do.
        TypeError, ValueError: naming the argument.
    """
    shares = 0 < keep <= 1 and (budget is None or 0 < budget <= 1)
    if candidates < 2 or n < 2 or batch_size < 1 or not shares:
        raise ValueError(
            "candidates >= 2, n >= 2, 0 < keep <= 1, 0 < budget <= 1, batch_size >= 1: "
            f"candidates={candidates}, n={n}, keep={keep}, budget={budget}, batch_size={batch_size}"
        )
    check_pipeline(pipe)
    release(pipe.scheduler)
    scorers = weighted(scorer)
    decoder = Decoder(pipe, decode)
    runs = searches(pipe_kwargs, prompts)
    bar = tqdm(total=candidates * len(runs), desc="calibrate pruning", disable=not progress)
    weights = [weight for _, weight in scorers]
    tables, ratios = [], []
    with bar, decoder.watching():
        for kwargs, prompt in runs:
            seeds = range(seed, seed + candidates)
            parts = []
            for start in range(0, candidates, batch_size):
                own = list(seeds[start : start + batch_size])
                scores, ratios = _previews(pipe, scorers, decoder, own, kwargs, prompt)
                parts.append(scores)
                bar.update(len(own))
            told = torch.cat(parts, 2)  # of all candidates: several scorers are compared by ranks
            tables.append(torch.stack([combine(row, weights).float() for row in told]))
    return choose_cuts(tables, ratios, n=n, keep=keep, budget=budget)


@torch.no_grad()
def _previews(
    pipe: Any,
    scorers: Sequence,
    decoder: Decoder,
    seeds: list[int],
    kwargs: Mapping[str, Any],
    prompt: str | None,
) -> tuple[Tensor, list[float]]:
    """Of every step's preview and of the finished picture, the scorers' scores [steps + 1, S, B]; the
    steps' noise ratios.
    """
    prompts = None if prompt is None else [prompt] * len(seeds)
    rows, ratios = [], []

    def score(pixels: Tensor) -> Tensor:
        return torch.stack([rate(scorer, pixels, prompts) for scorer, _ in scorers]).cpu()

    def seen(step: Step) -> None:
        rows.append(score(decoder(step.x0)))
        ratios.append(step.noise_ratio)

    with tap(pipe.scheduler, seen):
        found = sample(pipe, seeds, kwargs)
    return torch.stack([*rows, score(found.pixels)]), ratios


def choose_cuts(
    tables: Sequence[Tensor],
    noise_ratios: Sequence[float],
    *,
    n: int = 16,
    keep: float = 0.97,
    budget: float | None = None,
    seed: int = 0,
) -> PruningCalibration:
    """The cheapest schedule of halvings that keeps a share of best-of-n's gain, or the best for a budget.

    Args:
        tables: for each prompt, the scores [S + 1, M] of its candidates' previews at S steps, in their
            order, and of their finished pictures.
        noise_ratios: of the S steps.

    Every schedule is tried on the same groups of n, drawn with replacement; gains are averaged over
    the prompts. Deterministic.
    """
    steps = len(tables[0]) - 1
    after = [(i + 1) / steps for i in range(steps)]
    correlation = torch.tensor(
        [[ranking.spearman(row, table[-1]) for row in table[:-1]] for table in tables]
    ).mean(0)
    generator = torch.Generator().manual_seed(seed)
    groups = [torch.randint(table.shape[1], (DRAWS, n), generator=generator) for table in tables]
    drawn = [table[:, group] for table, group in zip(tables, groups, strict=True)]  # [S + 1, D, n]
    best, kept, cost = [], 1.0, 1.0
    for price, schedule in sorted((_cost(x, steps, n), x) for x in _schedules(steps)):
        if price >= 1 or (budget is not None and price > budget):
            break
        share = sum(_share(table, schedule, n) for table in drawn) / len(drawn)
        if budget is None and share >= keep:
            best, kept, cost = schedule, share, price
            break
        if budget is not None and (not best or share > kept):
            best, kept, cost = schedule, share, price
    cuts = [Cut(step / steps, share) for step, share in best]
    return PruningCalibration(after, list(noise_ratios), correlation.tolist(), cuts, kept, cost)


def _schedules(steps: int) -> list[list[tuple[int, float]]]:
    """Every way to halve one to four times, as (steps done, share that goes on)."""
    return [
        list(zip(chosen, KEEPS, strict=False))
        for count in range(1, len(KEEPS) + 1)
        for chosen in itertools.combinations(range(1, steps), count)
        if steps <= 20 or all(step % math.ceil(steps / 20) == 0 for step in chosen)
    ]


def _cost(schedule: list[tuple[int, float]], steps: int, n: int) -> float:
    """Denoiser calls as a share of all n candidates' whole runs."""
    calls, alive, done = 0, n, 0
    for step, share in schedule:
        calls += alive * (step - done)
        alive, done = max(1, math.ceil(share * n)), step
    return (calls + alive * (steps - done)) / (n * steps)


def _share(drawn: Tensor, schedule: list[tuple[int, float]], n: int) -> float:
    """The mean gain over one candidate, as a share of what the best of all n gains."""
    final = drawn[-1]  # [D, n]
    alive = torch.ones_like(final, dtype=torch.bool)
    for step, share in schedule:
        preview = drawn[step - 1].masked_fill(~alive, -torch.inf)
        top = preview.topk(max(1, math.ceil(share * n)), 1).indices
        alive = torch.zeros_like(alive).scatter(1, top, True)
    plain, whole = final.mean(), final.max(1).values.mean()
    found = final.masked_fill(~alive, -torch.inf).max(1).values.mean()
    return float((found - plain) / (whole - plain).clamp_min(1e-12))
