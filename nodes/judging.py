"""What the samplers that choose have in common: their finished images, judged, and shown."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from comfy_api.latest import io, ui
from torch import Tensor

from .. import ranking
from ..report.selection import selection_preview
from .images import Pictures, from_pil
from .managed import ManagedScorer
from .sockets import SCORES, Scores

RESULTS = [
    io.Image.Output(
        display_name="images", tooltip="Those kept, best first; of videos, their frames."
    ),
    io.Latent.Output(display_name="latents", tooltip="Their latents."),
]
SCORES_KEPT = SCORES.Output(display_name="scores", tooltip="Their scores.")
SUMMARY = io.String.Output(display_name="summary", tooltip="What was done, in a few lines.")


class Judged(NamedTuple):
    """N candidates."""

    pictures: list[Tensor]  # each [1, H, W, C], or [T, H, W, C] of a video
    scores: Scores
    held_out: Scores | None

    @classmethod
    def join(cls, parts: Sequence[Judged]) -> Judged:
        """One after the other."""
        pictures = [picture for part in parts for picture in part.pictures]
        held_out = [part.held_out for part in parts if part.held_out]
        scores = Scores.join([part.scores for part in parts])
        return cls(pictures, scores, Scores.join(held_out) if held_out else None)

    def best(self, k: int) -> ranking.Selection:
        """Best first. ValueError if none has a score."""
        selection = ranking.top_k(self.scores.values, k)
        if not len(selection.kept):
            raise ValueError(f"none of the {len(self.pictures)} images has a score")
        return selection

    def images(self, kept: Tensor) -> Tensor:
        """An IMAGE batch."""
        return torch.cat([self.pictures[i] for i in kept.tolist()])

    def told(self, kept: Tensor) -> list[str]:
        """Lines about the scores of those kept beside those of all."""
        found = [("", self.scores)] + ([("Held out: ", self.held_out)] if self.held_out else [])
        return [
            f"{name}{scores.card.name} gives those kept {float(scores.values[kept].mean()):.4g} on "
            f"average, all {len(scores)} of them {float(scores.values.nanmean()):.4g}."
            for name, scores in found
        ]

    def preview(
        self, selection: ranking.Selection, notes: Sequence[str], title: str, cls: type
    ) -> dict[str, Any]:
        """What the node shows: all images with their scores, those kept first."""
        pictures = Pictures([picture[len(picture) // 2] for picture in self.pictures])
        kept, rejected = (part.tolist() for part in selection)
        scores = self.scores.values.tolist()
        sheet = selection_preview(pictures, scores, kept, rejected, title=title, notes=notes)
        return ui.PreviewImage(from_pil(sheet), cls=cls).as_dict()


def judge(
    vae: Any, samples: Tensor, scorer: ManagedScorer, held_out: ManagedScorer | None, prompt: str
) -> Judged:
    """The pictures and scores of latents [N, ...], all made for one prompt, which may be unknown: ""."""
    decoded = vae.decode(samples)  # [N, H, W, C], of videos [N, T, H, W, C]
    pictures = list(decoded) if decoded.ndim == 5 else list(decoded.split(1))
    scores, others = (each and _scores(each, pictures, prompt) for each in (scorer, held_out))
    return Judged(pictures, scores, others)


def _scores(scorer: ManagedScorer, pictures: list[Tensor], prompt: str) -> Scores:
    if all(len(picture) == 1 for picture in pictures):
        return scorer.score(pictures, prompt)
    values = [scorer.score_video(picture).values for picture in pictures]
    return Scores(torch.cat(values), scorer.card)
