"""Search among initial noises: whole runs of the pipeline, by trial or along the gradient.

https://arxiv.org/abs/2501.09732 (random and zero-order search), https://arxiv.org/abs/2406.04312 (ReNO).

A noise is what a pipeline takes as `latents=`, in the layout of its own `prepare_latents`, [1, ...] of
about unit variance. The sampler must add none of its own: then the noise determines the image.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .climb import Climb, frozen
from .initial import check_deterministic, initial_noise, row
from .offload import LAYERS, check_hooks
from .record import Record, SearchResult
from .rewards import Scorer, Scorers, weighted
from .sampling import check_batch_size, check_pipeline, numbered, searches
from .search import Search

METHODS = ("zero-order", "random")
REACH = 0.6
LR = 0.05


def search_noise(
    pipe: Any,
    scorer: Scorers,
    rounds: int = 4,
    *,
    method: str = "zero-order",
    n: int = 4,
    keep: int = 1,
    reach: float = REACH,
    batch_size: int = 4,
    seeds: int | Sequence[int] = 0,
    held_out: Scorer | None = None,
    prompts: str | Sequence[str] | None = None,
    pipe_kwargs: Mapping[str, Any],
    progress: bool = True,
) -> SearchResult:
    """Searches the initial noise by trial: `rounds` rounds of `n` whole runs each; no gradient.

        result = search_noise(pipe, scorer, rounds=4, pipe_kwargs=dict(prompt="a lighthouse"))
        again = pipe(prompt="a lighthouse", latents=result.noise[:1]).images[0]  # the same image

    Random and zero-order search of https://arxiv.org/abs/2501.09732. Use few steps for the search; a
    noise that is good with 4 steps is mostly good with 20.

    Args:
        pipe: a diffusers pipeline of images or videos that takes `latents`.
        scorer: one, several, or several with weights (compared by ranks, as in `best_of_n`).
        method: "zero-order", every round after the first looks around the best noise z so far, at
            sqrt(1 - a^2) z + a eps, which is as much noise as before; "random", it looks anywhere.
        reach: a in (0, 1], how far around.
        batch_size: runs that are sampled together; halved when memory runs out.
        seeds: the first of rounds * n seeds in a row, or as many: of the new noise of each run.
        prompts: what scorers that read prompts are given, as in `best_of_n`.

    Returns:
        `noise` [K, ...] of the kept images is what makes them again: to the bit with the batch they
        were sampled in, up to rounding in another. The record has a row a round; a seed alone makes
        its image again only where the noise is all new.

    Raises:
        NotImplementedError: a scheduler that adds noise, or a pipeline that takes no latents.
        TypeError, ValueError: naming the argument.
    """
    check_pipeline(pipe)
    count = rounds * n
    seeds = numbered(seeds, count)
    if rounds < 1 or n < 1 or not 1 <= keep <= count or len(seeds) != count:
        raise ValueError(
            f"rounds * n seeds and 1 <= keep <= rounds * n: rounds={rounds}, n={n}, keep={keep}, "
            f"{len(seeds)} seeds"
        )
    if method not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}, got {method!r}")
    if not 0 < reach <= 1:
        raise ValueError(f"reach must be in (0, 1], got {reach}")
    check_batch_size(batch_size)
    runs, scorers, found = searches(pipe_kwargs, prompts), weighted(scorer), []
    record = Record(across="round")
    bar = tqdm(total=count * len(runs), desc="noises", unit="image", disable=not progress)
    with bar:
        for kwargs, prompt in runs:
            check_deterministic(pipe, kwargs)
            search = Search(pipe, scorers, held_out, kwargs, prompt, batch_size, record, bar)
            around = reach if method == "zero-order" else 1.0
            found.append(_searched(search, seeds, n, keep, around))
            batch_size = search.batch_size
    return SearchResult.join(found, record)


def _searched(search: Search, seeds: list[int], n: int, keep: int, reach: float) -> SearchResult:
    """The search for one prompt."""
    tried, tables, held, pivot = [], [], [], None
    for first in range(0, len(seeds), n):
        now = seeds[first : first + n]
        noise = initial_noise(search.pipe, now, search.kwargs)
        if pivot is not None:
            noise = neighbours(pivot, noise, reach)
        made, table, held_out = search.all(now, noise)
        made = [each._replace(number=first + each.number) for each in made]
        tried, tables, held = tried + made, [*tables, table], [*held, held_out]
        scores = search.combined(torch.cat(tables, 1))
        search.record.rows.append(row(first // n, scores[first:], held_out))
        if not scores.isnan().all():
            pivot = tried[int(scores.nan_to_num(-math.inf).argmax())].noise
    held_out = None if search.held_out is None else torch.cat(held)
    return search.kept(tried, torch.cat(tables, 1), held_out, seeds, keep)


def neighbours(z: Tensor, eps: Tensor, reach: float) -> Tensor:
    """sqrt(1 - a^2) z + a eps: noises [n, ...] of the same distribution around z [...]."""
    return (math.sqrt(1 - reach**2) * z.float() + reach * eps.float()).to(eps.dtype)


def optimize_noise(
    pipe: Any,
    scorer: Scorers,
    iterations: int = 4,
    *,
    seeds: int | Sequence[int] = 0,
    lr: float = LR,
    regulariser: float = 1.0,
    checkpointing: bool = True,
    stop_on_decline: bool = True,
    held_out: Scorer | None = None,
    prompts: str | Sequence[str] | None = None,
    pipe_kwargs: Mapping[str, Any],
    progress: bool = True,
) -> SearchResult:
    """Experimental: moves the initial noise along the reward's gradient through the whole pipeline.

        few = dict(prompt="a lighthouse", num_inference_steps=4)
        result = optimize_noise(pipe, scorer, iterations=4, pipe_kwargs=few)
        image = pipe(prompt="a lighthouse", latents=result.noise, num_inference_steps=20).images[0]

    ReNO, https://arxiv.org/abs/2406.04312. Memory and time grow with the number of steps: meant for
    models that need 1 to 4, or to find a noise that is then sampled with more steps. Each iteration is

        z <- (z + lr * sqrt(d) * m) * (1 + regulariser * (sqrt(d - 1) / |z| - 1))

    with d the number of z's elements, and m the moving sum of gradients of norm 1. (ReNO clips the
    gradient's norm at 0.1, which fixes it for steep rewards only; here the unit of the reward does not
    matter.) sqrt(d - 1) is the likeliest norm of noise: a longer z pleases scorers with harsh colours.

    Args:
        pipe: a pipeline whose call is decorated with `torch.no_grad`, as diffusers' are. Its weights
            get no gradients and are as they were afterwards.
        scorer: differentiable: one, several, or several with weights.
        iterations: moves; 0 is the plain pipeline. Few are enough, and many please the scorer only.
        seeds: one seed or several, each with its own search; the images come best first.
        lr: root mean square of a move. Useful from 0.02 to 0.1.
        regulariser: how much of the way the norm is taken back, from 0 to 1.
        checkpointing: compute activations again in the backward, one more call for much less memory.
        stop_on_decline: stop when the held-out reward falls; that noise is not kept.
        held_out: a scorer that does not guide, only looks.
        prompts: what scorers that read prompts are given, as in `best_of_n`.

    Returns:
        Each seed's best noise and its image. The record has a row an iteration; `denoiser_calls` counts
        a backward as 2 calls (3 with checkpointing). `all_scores` are the best of each seed.

    Raises:
        TypeError: naming a scorer without a gradient.
        NotImplementedError: a scheduler that adds noise, a pipeline that gives no gradient, or offload
            of whole models.
    """
    check_pipeline(pipe)
    check_hooks(pipe, "optimize_noise", LAYERS)
    seeds = numbered(seeds, 1)
    if iterations < 0 or not seeds:
        raise ValueError(f"iterations >= 0 and a seed: iterations={iterations}, seeds={seeds}")
    if not lr >= 0 or not 0 <= regulariser <= 1:
        raise ValueError(f"lr >= 0 and regulariser in [0, 1]: lr={lr}, regulariser={regulariser}")
    runs, scorers, found = searches(pipe_kwargs, prompts), weighted(scorer), []
    record = Record(across="iteration")
    total = len(seeds) * len(runs) * (iterations + 1)
    bar = tqdm(total=total, desc="noise", unit="run", disable=not progress)
    with bar, ExitStack() as stack:
        stack.enter_context(frozen(pipe, checkpointing))
        for kwargs, prompt in runs:
            check_deterministic(pipe, kwargs)
            search = Search(pipe, scorers, held_out, kwargs, prompt, 1, record, bar)
            # A backward is two calls, what checkpointing computes again is one.
            climb = Climb(search, lr, regulariser, 3 + checkpointing, stop_on_decline)
            found.append(climb.run(seeds, iterations))
    return SearchResult.join(found, record)
