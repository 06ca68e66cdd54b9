"""What choosing and steering are worth, in denoiser calls: every method on the embedded generator.

    python benchmarks/guidance.py                  # about 15 minutes of a CPU core; writes guidance.md
    python benchmarks/guidance.py --groups 4       # quick, prints only
    python benchmarks/guidance.py --only plain "best of 16"

Each method makes one image a group; groups differ in prompt and seeds, and are the same for every
method. An embedded reward model chooses or guides; the other, which learnt the same taste from other
pictures with another architecture, is held out. The nearest of 8192 real pictures says what an image is
truly worth, which no method can fool, and how far from real it is.
"""

from __future__ import annotations

import argparse
import importlib.util
import math
import platform
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

if importlib.util.find_spec("tastemaker") is None:
    sys.exit('tastemaker is not installed: run `pip install -e ".[test]"` in the checkout')

import tastemaker
from tastemaker.demo.generator import GUIDANCE_SCALE, load_pipeline
from tastemaker.demo.loop import pixels
from tastemaker.demo.realism import real_pictures, real_realism, realism
from tastemaker.demo.rewards import load_reward
from tastemaker.guidance.calibrate import calibrate_pruning

RESULTS = Path(__file__).with_suffix(".md")
PROMPTS = ("a shape", "a circle", "a star on blue", "a green shape")
STEPS, FEW = 20, 4  # of a run; of the short runs of a noise search
N = 16
BUDGET = 0.4  # of best of N's denoiser calls
CALIBRATION_SEED, GROUP_SEED = 900_000, 1_000  # a group has a thousand seeds


@dataclass
class Made:
    """What a method made: one image a group."""

    images: list[Image.Image]
    calls: float  # of the denoiser, for each image


@dataclass
class Bench:
    """The pipeline, its judges, and what several methods share."""

    groups: int
    pipe: Any = field(default_factory=load_pipeline)
    guiding: Any = field(default_factory=lambda: load_reward("guiding"))
    held_out: Any = field(default_factory=lambda: load_reward("held-out"))

    def __post_init__(self):
        self.pipe.set_progress_bar_config(disable=True)
        self._pool: list[tuple[list[Image.Image], Tensor]] | None = None
        self._cuts: dict[float | None, Any] = {}  # by budget

    def prompt(self, group: int) -> str:
        return PROMPTS[group % len(PROMPTS)]

    def kwargs(self, group: int, steps: int = STEPS) -> dict[str, Any]:
        named = dict(num_inference_steps=steps, guidance_scale=GUIDANCE_SCALE)
        return dict(prompt=self.prompt(group), **named)

    def seeds(self, group: int) -> int:
        return GROUP_SEED * (group + 1)

    def pool(self) -> list[tuple[list[Image.Image], Tensor]]:
        """N plain candidates of each group in the order of their seeds, and the guiding rewards."""
        if self._pool is None:
            self._pool = [self._candidates(group) for group in range(self.groups)]
        return self._pool

    def _candidates(self, group: int) -> tuple[list[Image.Image], Tensor]:
        result = tastemaker.best_of_n(
            *(self.pipe, self.guiding, N, N),
            **dict(batch_size=N, seeds=self.seeds(group), pipe_kwargs=self.kwargs(group)),
            progress=False,
        )
        order = np.argsort(result.seeds)
        return [result.images[i] for i in order], result.all_scores

    def cuts(self, budget: float | None = None) -> Any:
        """Where to prune, from candidates of other seeds."""
        if budget not in self._cuts:
            self._cuts[budget] = calibrate_pruning(
                *(self.pipe, self.guiding, 128),
                **dict(n=N, budget=budget, batch_size=N, seed=CALIBRATION_SEED, progress=False),
                pipe_kwargs={**self.kwargs(0), "prompt": list(PROMPTS)},
            )
        return self._cuts[budget]

    def each(self, search: Callable[[int], Any], extra: float = 0.0) -> Made:
        """One search a group: its best image."""
        found = [search(group) for group in range(self.groups)]
        calls = sum(result.record.denoiser_calls for result in found) / self.groups
        return Made([result.images[0] for result in found], calls + extra)


def best_of(bench: Bench, n: int) -> Made:
    images = []
    for candidates, scores in bench.pool():
        images.append(candidates[int(scores[:n].argmax())])
    return Made(images, n * STEPS)


def pruned(bench: Bench, cuts: Any) -> Made:
    return bench.each(
        lambda group: tastemaker.best_of_n(
            *(bench.pipe, bench.guiding, N),
            **dict(batch_size=N, seeds=bench.seeds(group), prune=cuts, progress=False),
            pipe_kwargs=bench.kwargs(group),
        )
    )


def particles(bench: Bench, n: int, lam: float = 4.0) -> Made:
    return bench.each(
        lambda group: tastemaker.steer_particles(
            *(bench.pipe, bench.guiding, n),
            **dict(lam=lam, seeds=bench.seeds(group), progress=False),
            pipe_kwargs=bench.kwargs(group),
        )
    )


def zero_order(bench: Bench, rounds: int) -> Made:
    """Searches with short runs, then samples the noise that it found with all steps."""

    def search(group: int) -> Any:
        found = tastemaker.search_noise(
            *(bench.pipe, bench.guiding, rounds),
            **dict(seeds=bench.seeds(group), progress=False),
            pipe_kwargs=bench.kwargs(group, FEW),
        )
        return again(bench, group, found)

    return bench.each(search, extra=STEPS)


def reno(bench: Bench, iterations: int) -> Made:
    def search(group: int) -> Any:
        found = tastemaker.optimize_noise(
            *(bench.pipe, bench.guiding, iterations),
            **dict(seeds=bench.seeds(group), checkpointing=False, progress=False),
            pipe_kwargs=bench.kwargs(group, FEW),
        )
        return again(bench, group, found)

    return bench.each(search, extra=STEPS)


def again(bench: Bench, group: int, found: Any) -> Any:
    """The noise that a search found, sampled with all steps."""
    found.images = bench.pipe(**bench.kwargs(group), latents=found.noise[:1]).images
    return found


def guided(bench: Bench, **options: Any) -> Made:
    """Reward guidance of one plain sample a group; a batch a prompt."""
    images: list[Any] = [None] * bench.groups
    calls = 0
    for first in range(len(PROMPTS)):
        groups = range(first, bench.groups, len(PROMPTS))
        if not groups:
            continue
        generators = [torch.Generator().manual_seed(bench.seeds(group)) for group in groups]
        kwargs = {**bench.kwargs(first), "prompt": [bench.prompt(first)] * len(groups)}
        with tastemaker.reward_guidance(bench.pipe, bench.guiding, **options) as run:
            made = bench.pipe(**kwargs, generator=generators).images
        calls += run.denoiser_calls
        for group, image in zip(groups, made, strict=True):
            images[group] = image
    return Made(images, calls / bench.groups)


# In the order of the table.
METHODS: dict[str, Callable[[Bench], Made]] = {
    "plain": lambda bench: best_of(bench, 1),
    "best of 2": lambda bench: best_of(bench, 2),
    "best of 4": lambda bench: best_of(bench, 4),
    "best of 8": lambda bench: best_of(bench, 8),
    "best of 16": lambda bench: best_of(bench, 16),
    'best of 16, prune="halving"': lambda bench: pruned(bench, "halving"),
    "best of 16, pruned to keep 97 %": lambda bench: pruned(bench, bench.cuts().cuts),
    "best of 16, pruned for 40 %": lambda bench: pruned(bench, bench.cuts(BUDGET).cuts),
    "particles, 4": lambda bench: particles(bench, 4),
    "particles, 8": lambda bench: particles(bench, 8),
    "particles, 16": lambda bench: particles(bench, 16),
    f"zero-order, 4 rounds of 4 x {FEW} steps": lambda bench: zero_order(bench, 4),
    "guidance, as by default": lambda bench: guided(bench),
    "guidance, scale 0.2": lambda bench: guided(bench, scale=0.2),
    "guidance, all steps": lambda bench: guided(bench, window=(0.0, 1.0)),
    "full gradient": lambda bench: guided(bench, through_model=True),
    f"ReNO, 2 x {FEW} steps": lambda bench: reno(bench, 2),
    f"ReNO, 4 x {FEW} steps": lambda bench: reno(bench, 4),
}


@dataclass
class Row:
    """Means over the groups, with the standard error of the first three."""

    method: str
    calls: float
    guiding: tuple[float, float]
    held_out: tuple[float, float]
    truth: tuple[float, float]
    distance: float
    diversity: float
    seconds: float


@torch.no_grad()
def measure(name: str, bench: Bench, made: Made, real: Any, seconds: float) -> Row:
    x = stacked(made.images)
    nearest = realism(x, real)
    values = [bench.guiding(x), bench.held_out(x), nearest.taste]
    means = [(float(v.mean()), float(v.std()) / math.sqrt(len(v))) for v in values]
    distance = float(nearest.distance.mean())
    return Row(name, made.calls, *means, distance, diversity(x), seconds)


def stacked(images: Sequence[Image.Image]) -> Tensor:
    """[N, 3, H, W] in [0, 1]."""
    return torch.stack([pixels(image) for image in images])


def diversity(x: Tensor) -> float:
    """Mean root mean square difference of two images of one prompt: its groups are the batch."""
    found = []
    for first in range(len(PROMPTS)):
        flat = x[first :: len(PROMPTS)].flatten(1)
        if len(flat) > 1:
            found.append(torch.pdist(flat).mean() / math.sqrt(flat.shape[1]))
    return float(torch.stack(found).mean()) if found else math.nan


def table(rows: Sequence[Row]) -> str:
    head = [
        "method",
        "calls",
        "guiding",
        "held out",
        "true, of the nearest",
        "distance",
        "diversity",
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in rows:
        values = (row.guiding, row.held_out, row.truth)
        cells = [row.method, f"{row.calls:.0f}", *(f"{m:.3f} ± {e:.3f}" for m, e in values)]
        cells += [f"{row.distance:.3f}", f"{row.diversity:.3f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bars(rows: Sequence[Row], baseline: float) -> list[str]:
    """What the project promises, with what was measured."""
    by = {row.method: row for row in rows}
    plain, best, cut = by["plain"], by["best of 16"], by["best of 16, pruned for 40 %"]
    share = (cut.guiding[0] - plain.guiding[0]) / (best.guiding[0] - plain.guiding[0])
    default = by["guidance, as by default"]
    held = default.held_out[0] - plain.held_out[0]
    told = [
        f"Pruned best of 16 keeps {share:.1%} of best of 16's gain with {cut.calls / best.calls:.1%} "
        "of its denoiser calls (bar: 97 % with at most 40 %)."
    ]
    for n in (4, 8, 16):
        one, other = by[f"particles, {n}"], by[f"best of {n}"]
        told.append(
            f"{n} particles against best of {n}, at {one.calls:.0f} and {other.calls:.0f} calls: "
            f"{one.guiding[0]:.3f} against {other.guiding[0]:.3f} (bar: above)."
        )
    told.append(
        f"Guidance as by default moves the held-out reward by {held:+.3f} (bar: above 0), at "
        f"{default.distance / baseline:.3f} times the distance of real pictures from the nearest "
        f"({baseline:.3f}; bar: at most 1.05)."
    )
    return told


def identical(bench: Bench) -> str:
    """That what is switched off changes no bit of the plain pipeline's images."""
    kwargs = {**bench.kwargs(0), "output_type": "pt"}

    def made(**options: Any) -> Tensor:
        generator = torch.Generator().manual_seed(7)
        with tastemaker.reward_guidance(bench.pipe, bench.guiding, **options):
            return bench.pipe(**kwargs, generator=generator).images

    plain = bench.pipe(**kwargs, generator=torch.Generator().manual_seed(7)).images
    one = tastemaker.best_of_n(
        *(bench.pipe, bench.guiding, 1), seeds=7, pipe_kwargs=bench.kwargs(0), progress=False
    ).images
    found = {
        "scale 0": torch.equal(made(scale=0.0), plain),
        "an empty window": torch.equal(made(window=(0.0, 0.0)), plain),
        "N = 1": torch.equal(stacked(one), (plain * 255).round() / 255),
    }
    told = ", ".join(f"{name} {'yes' if same else 'NO'}" for name, same in found.items())
    return f"Bit-identical to the plain pipeline: {told}."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--groups", type=int, default=64, help="images of each method")
    parser.add_argument(
        "--only", nargs="+", choices=METHODS, metavar="METHOD", help="print only these"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)  # so small a model is slower on several
    bench, real = Bench(options.groups), real_pictures()
    rows = []
    for name in options.only or METHODS:
        started = time.perf_counter()
        made = METHODS[name](bench)
        rows.append(measure(name, bench, made, real, time.perf_counter() - started))
        print(table(rows[-1:]).splitlines()[-1], f"{rows[-1].seconds:.0f} s", flush=True)
    if options.only:
        return
    baseline = float(real_realism(real).distance.mean())
    told = [*bars(rows, baseline), identical(bench)]
    print("\n".join(told))
    if options.groups == 64:
        RESULTS.write_text(document(rows, told, bench, baseline), encoding="utf-8")


def document(rows: Sequence[Row], told: Sequence[str], bench: Bench, baseline: float) -> str:
    found = bench.cuts(BUDGET)
    cuts = ", ".join(f"{cut.keep:.1%} after {cut.after:.0%} of the steps" for cut in found.cuts)
    listed = "\n".join(f"- {line}" for line in told)
    return f"""# Reward in the sampling loop: what each method gains, by denoiser calls

Written by `python benchmarks/guidance.py`; do not edit. The embedded generator (Stable Diffusion's
class, 32 px), DDIM with {STEPS} steps, classifier-free guidance {GUIDANCE_SCALE:g}; {bench.groups} groups, one image
each, over {len(PROMPTS)} prompts. Means ± standard errors. Calls count samples, a backward as 2, and not
twice for classifier-free guidance. "True" is the taste of the nearest of 8192 real pictures, distance
the root mean square difference from it (of other real pictures: {baseline:.3f}), diversity that between
two images of one prompt.

{table(rows)}

{listed}

Calibration with a budget of {BUDGET:.0%} chose to keep {cuts}. On the candidates that it was made with,
that keeps {found.kept:.1%} of the gain for {found.cost:.0%} of the calls.
Machine: {platform.machine()}, torch {torch.__version__}.
"""


if __name__ == "__main__":
    main()
