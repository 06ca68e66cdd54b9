"""Best of N Sampler: samples candidates, and finishes only those whose previews promise something."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .judging import RESULTS, SCORES_KEPT, SUMMARY, Judged, judge
from .managed import ManagedScorer
from .pruning import Pruner, pruner_of, pruning_modes
from .sampling import (
    HELD_OUT,
    MODELS,
    PROMPT,
    SEEDS,
    Run,
    Settings,
    batch_size_input,
    sampler_inputs,
)
from .sockets import CATEGORY

# It counts groups of three steps.
UNCUT = ("dpm_fast",)


class BestOfN(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerBestOfN",
            display_name="Best of N Sampler",
            category=CATEGORY,
            description="Samples n candidates, scores them and keeps the best; with pruning, weak ones "
            "are dropped while they form, and cost no more.",
            search_aliases=["best of n", "KSampler", "candidates", "seeds", "prune", "rerank"],
            is_output_node=True,
            inputs=[
                *MODELS,
                io.Int.Input(
                    "n", default=8, min=1, max=256, tooltip="Number of candidates. 1: a KSampler."
                ),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=256,
                    tooltip="Number of images kept, the best first. As many as n: all, sorted.",
                ),
                batch_size_input("candidates"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - 1,
                    control_after_generate=True,
                    tooltip="Seed of the first candidate; the next ones have the numbers after it. A "
                    "KSampler with one of them makes the same image.",
                ),
                *sampler_inputs(),
                io.DynamicCombo.Input(
                    "pruning",
                    options=pruning_modes(),
                    tooltip="Drop candidates whose previews score low, and save their steps. off: "
                    "finish all. halving: 16 become 8, 4, 2 and 1 at 10, 20, 30 and 40 % of the "
                    "steps; 8 and 4, the latter at 40 %, where 4 are kept. once: at a step of your "
                    "choice.",
                ),
                io.Vae.Input(
                    "preview_vae",
                    optional=True,
                    tooltip="Decodes the previews for pruning: a TAESD (Load VAE lists it), or the "
                    "model's VAE. None: a coarse preview of one pixel a latent, good for colours and "
                    "composition only.",
                ),
                HELD_OUT,
                PROMPT,
            ],
            outputs=[
                *RESULTS,
                io.Int.Output(
                    display_name="seeds", is_output_list=True, tooltip="Their seeds, as a list."
                ),
                SCORES_KEPT,
                SUMMARY,
            ],
        )

    @classmethod
    def execute(
        cls,
        vae: Any,
        scorer: ManagedScorer,
        n: int,
        keep: int,
        batch_size: int,
        seed: int,
        pruning: dict[str, Any] | None = None,
        preview_vae: Any = None,
        held_out: ManagedScorer | None = None,
        prompt: str = "",
        **sampling: Any,
    ) -> io.NodeOutput:
        settings = Settings(**sampling)
        pruner = pruner_of(
            pruning, settings.model, scorer, preview_vae, n, keep, batch_size, prompt
        )
        check(n, keep, pruner, settings)
        seeds = [(seed + i) % SEEDS for i in range(n)]
        run = Run(settings, settings.noise(seeds), seeds, batch_size, pruner)
        samples = run.samples()
        judged = judge(vae, samples, scorer, held_out, prompt)
        numbers = [seeds[i] for i in run.alive]
        selection = judged.best(keep)
        kept = selection.kept
        title = f"{len(kept)} of {n} kept by {scorer.card.name}"
        notes = [f"seed {number}" for number in numbers]
        shown = judged.preview(selection, notes, title, cls)
        said = told(run, judged, kept)
        return io.NodeOutput(
            *(judged.images(kept), settings.latents(samples[kept])),
            *([numbers[i] for i in kept.tolist()], judged.scores.take(kept), said),
            ui={**shown, "text": (said,)},
        )


def check(n: int, keep: int, pruner: Pruner | None, settings: Settings) -> None:
    """ValueError before anything is sampled."""
    if keep > n:
        raise ValueError(f"keep ({keep}) must not be above n ({n})")
    if pruner and settings.sampler_name in UNCUT:
        raise ValueError(
            f"sampler_name: {settings.sampler_name} cannot be pruned, since it does not tell of its "
            "steps: set pruning to off, or choose another, such as euler or dpmpp_2m"
        )


def told(run: Run, judged: Judged, kept: Tensor) -> str:
    """What was done, in a few lines."""
    lines, n = judged.told(kept), len(run.seeds)
    for step, total, left in run.pruner.cuts if run.pruner else []:
        lines.append(f"After step {step} of {total}, {left} of {n} went on.")
    share = run.calls / run.all_calls if run.all_calls else 1
    lines.append(f"{run.calls} calls of the model, {share:.0%} of those for all {n}.")
    return "\n".join(lines)
