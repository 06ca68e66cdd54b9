"""Which candidates of a run go on: judged by what the model predicts of them on the way."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from .. import ranking
from ..guidance.halving import Cut, halving_cuts
from ..guidance.rewards import rate
from .guided import Decode, decoder
from .managed import ManagedScorer
from .sockets import chosen


def pruning_modes() -> list[io.DynamicCombo.Option]:
    after = io.Float.Input(
        "after",
        default=0.3,
        min=0.01,
        max=0.99,
        step=0.01,
        tooltip="Share of the steps after which the previews are compared. The earlier, the more is "
        "saved; the later, the more they tell.",
    )
    goes_on = io.Float.Input(
        "goes_on",
        default=0.25,
        min=0.01,
        max=0.99,
        step=0.01,
        tooltip="Share of the n candidates that goes on; never fewer than are kept.",
    )
    inputs = {"off": [], "halving": [], "once": [after, goes_on]}
    return [io.DynamicCombo.Option(name, widgets) for name, widgets in inputs.items()]


def pruner_of(
    pruning: dict[str, Any] | None,
    model: Any,
    scorer: ManagedScorer,
    vae: Any,
    n: int,
    keep: int,
    batch_size: int,
    prompt: str,
) -> Pruner | None:
    """What the menu asks for; None where it is off."""
    match chosen(pruning, "pruning")["pruning"]:
        case "off":
            return None
        case "halving":
            cuts = halving_cuts(n, keep)
        case _:
            cuts = (Cut(pruning["after"], pruning["goes_on"]),)
    decode = decoder(model.get_model_object("latent_format"), vae)
    counts = {cut.after: max(keep, math.ceil(cut.keep * n)) for cut in cuts}
    return Pruner(counts, scorer, vae, decode, batch_size, prompt)


@dataclass
class Pruner:
    """Says after each step which of a run's candidates go on.

    Args:
        counts: share of the steps to how many go on after it.
        vae: of `decode`; None for the latents' linear preview.
        decode: x0 [B, ...] to pixels.
        batch_size: previews decoded and scored at a time.
        prompt: of all, for scorers that read it; "" where it is not known.
    """

    counts: dict[float, int]
    scorer: ManagedScorer
    vae: Any
    decode: Decode
    batch_size: int
    prompt: str = ""
    cuts: list[tuple[int, int, int]] = field(
        default_factory=list
    )  # step, of steps, candidates left

    def patchers(self) -> list[Any]:
        """What it needs at a step."""
        patchers = [part.patcher for part in self.scorer.weights]
        return patchers + ([self.vae.patcher] if self.vae else [])

    def kept(self, step: int, total: int, x0: Tensor) -> list[int]:
        """The rows of x0 [B, ...] that go on after this step, in order."""
        after = {max(0, round(share * total) - 1): count for share, count in self.counts.items()}
        if after.get(step, len(x0)) >= len(x0):
            return list(range(len(x0)))
        prompts = [self.prompt] if self.prompt else []
        parts = [
            rate(self.scorer.scorer, self.decode(part), prompts * len(part))
            for part in x0.float().split(self.batch_size)
        ]
        scores = torch.cat(parts).cpu()
        kept = ranking.top_k(scores, after[step], "original").kept.tolist()
        if not kept:
            raise ValueError(f"none of the {len(scores)} previews has a score")
        self.cuts.append((step + 1, total, len(kept)))
        return kept
