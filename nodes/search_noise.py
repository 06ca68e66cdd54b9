"""Search Noise: looks for the initial noise of which the sampler makes the best image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..guidance.noise import REACH, neighbours
from .judging import RESULTS, SCORES_KEPT, SUMMARY, Judged, judge
from .managed import ManagedScorer
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

ZERO_ORDER, RANDOM = "zero-order", "random"


class SearchNoise(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerSearchNoise",
            display_name="Search Noise",
            category=CATEGORY,
            description="Searches for the initial noise of which the sampler makes the image that "
            "scores best, around the best so far; needs no gradient.",
            search_aliases=["inference time scaling", "zero order", "KSampler", "seed search"],
            is_output_node=True,
            inputs=[
                *MODELS,
                io.Combo.Input(
                    "method",
                    options=[ZERO_ORDER, RANDOM],
                    tooltip="zero-order: every round after the first looks around the best noise so "
                    "far. random: it looks anywhere, as Best of N Sampler does.",
                ),
                io.Int.Input("rounds", default=4, min=1, max=64, tooltip="Number of rounds."),
                io.Int.Input("n", default=4, min=1, max=64, tooltip="Number of images a round."),
                io.Float.Input(
                    "reach",
                    default=REACH,
                    min=0.01,
                    max=1.0,
                    step=0.05,
                    tooltip="How far zero-order looks around: the share of new noise, by amplitude. "
                    "0.3 keeps most of the image, 1 nothing: off, as random.",
                ),
                io.Int.Input(
                    "keep",
                    default=1,
                    min=1,
                    max=64,
                    tooltip="Number of images kept, the best first.",
                ),
                batch_size_input("images"),
                io.Int.Input(
                    "seed",
                    default=0,
                    min=0,
                    max=SEEDS - 1,
                    control_after_generate=True,
                    tooltip="Seed of the first noise, that of KSampler; the numbers after it are the "
                    "seeds of the noise that the others bring.",
                ),
                *sampler_inputs(),
                HELD_OUT,
                PROMPT,
            ],
            outputs=[
                *RESULTS,
                io.Noise.Output(
                    display_name="noise",
                    tooltip="The best image's, for SamplerCustomAdvanced, which makes it again, also "
                    "with more steps.",
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
        method: str,
        rounds: int,
        n: int,
        reach: float,
        keep: int,
        batch_size: int,
        seed: int,
        held_out: ManagedScorer | None = None,
        prompt: str = "",
        **sampling: Any,
    ) -> io.NodeOutput:
        if keep > rounds * n:
            raise ValueError(f"keep ({keep}) must not be above rounds * n ({rounds * n})")
        search = Search(Settings(**sampling), seed, batch_size)
        for _ in range(rounds):
            samples = search.sampled(n, 1.0 if method == RANDOM else reach)
            search.judged.append(judge(vae, samples, scorer, held_out, prompt))
        judged = Judged.join(search.judged)
        selection = judged.best(keep)
        kept = selection.kept
        notes = [f"round {i // n + 1}, noise {i % n + 1}" for i in range(rounds * n)]
        title = f"{len(kept)} of {rounds * n} kept by {scorer.card.name}"
        shown, said = judged.preview(selection, notes, title, cls), search.told(judged, kept)
        noise = FoundNoise(seed, torch.cat(search.noises)[kept[:1]])
        latents = search.settings.latents(torch.cat(search.samples)[kept])
        return io.NodeOutput(
            *(judged.images(kept), latents, noise, judged.scores.take(kept), said),
            ui={**shown, "text": (said,)},
        )


class Search:
    """The rounds of one search.

    Args:
        seed: of the first new noise, and of what a sampler adds at its steps to any image: so the
            initial noise alone makes the difference.
    """

    def __init__(self, settings: Settings, seed: int, batch_size: int):
        self.settings, self.seed, self.batch_size = settings, seed, batch_size
        self.noises: list[Tensor] = []  # [n, ...] a round
        self.samples: list[Tensor] = []
        self.judged: list[Judged] = []
        self.calls = 0

    def sampled(self, n: int, reach: float) -> Tensor:
        """The samples [n, ...] of the next round."""
        noise = self._noise(n, reach)
        run = Run(self.settings, noise, [self.seed] * n, self.batch_size)
        self.samples.append(run.samples())
        self.noises.append(noise)
        self.calls += run.calls
        return self.samples[-1]

    def _noise(self, n: int, reach: float) -> Tensor:
        first = self.seed + n * len(self.noises)
        fresh = self.settings.noise([(first + i) % SEEDS for i in range(n)])
        if not self.noises:
            return fresh
        scores = Judged.join(self.judged).scores.values
        best = int(scores.nan_to_num(-torch.inf).argmax())
        return neighbours(torch.cat(self.noises)[best], fresh, reach)

    def told(self, judged: Judged, kept: Tensor) -> str:
        """What was done, in a few lines."""
        lines = judged.told(kept)
        for number, each in enumerate(self.judged, 1):
            values = each.scores.values
            best, mean = float(values.nan_to_num(-torch.inf).max()), float(values.nanmean())
            lines.append(f"Round {number}: the best {best:.4g}, on average {mean:.4g}.")
        lines.append(f"{self.calls} calls of the model, counting each image by itself.")
        return "\n".join(lines)


class FoundNoise:
    """What a NOISE wire carries.

    Args:
        seed: of what a sampler adds at its steps.
        noise: [1, ...].
    """

    def __init__(self, seed: int, noise: Tensor):
        self.seed, self.noise = seed, noise

    def generate_noise(self, latent: dict[str, Any]) -> Tensor:
        found, wanted = _size(latent["samples"].shape), _size(self.noise.shape)
        if found != wanted:
            raise ValueError(
                f"latent_image is of {found}, but the noise was found for {wanted}: connect the "
                "latent_image of Search Noise"
            )
        return self.noise.to(latent["samples"].dtype)


def _size(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
