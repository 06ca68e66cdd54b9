"""Compare Images: which of two is better, and how surely."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from ..ranking import win_probability
from ..report.panels import PAIRS, Pair, comparison
from ..scorers import ScorerCard
from ..scorers.calibration import own_tau
from .images import from_pil, singles, to_pil
from .managed import ManagedScorer
from .sockets import CATEGORY, SCORER, SCORES, Scores


class CompareImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        several = (
            "One, or a batch or list of as many as the other; one is compared with each of many."
        )
        return io.Schema(
            node_id="TastemakerCompareImages",
            display_name="Compare Images",
            category=CATEGORY,
            description="How likely image A wins over image B, and the winner. Batches are compared "
            "pair by pair; one image with each of many.",
            search_aliases=["a/b test", "better image", "win probability", "versus", "preference"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                SCORER.Input("scorer", tooltip="Who judges, from Load Scorer or an ensemble."),
                io.Image.Input("image_a", tooltip=several),
                io.Image.Input("image_b", tooltip=several),
                io.Float.Input(
                    "tau",
                    default=0.0,
                    min=0.0,
                    max=1e6,
                    step=0.01,
                    tooltip="The difference of scores that makes the odds e to 1, in the scorer's "
                    "unit; tastemaker calibrate --pairs measures it. 0: the scorer's own, where it "
                    "has one (nano, JoyQuality).",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="winner",
                    is_output_list=True,
                    tooltip="The better image of each pair; A where they are equal.",
                ),
                SCORES.Output(display_name="winner_scores", tooltip="What the winners scored."),
                io.Float.Output(
                    display_name="win_probability",
                    is_output_list=True,
                    tooltip="Of A over B, 0 to 1, a number a pair; NaN where one has no score.",
                ),
                io.Float.Output(
                    display_name="score_a", is_output_list=True, tooltip="A's score, one a pair."
                ),
                io.Float.Output(
                    display_name="score_b", is_output_list=True, tooltip="B's score, one a pair."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        scorer: list[ManagedScorer],
        image_a: list[Tensor],
        image_b: list[Tensor],
        tau: list[float],
    ) -> io.NodeOutput:
        judge, tau = scorer[0], tau_of(scorer[0].card, tau[0])
        a, b = singles(image_a), singles(image_b)
        indices = pairs_of(len(a), len(b))
        if not len(indices):
            return io.NodeOutput(NOTHING, NOTHING[0], NOTHING, NOTHING, NOTHING)
        # Apart: the same image on both sides has the same neighbours, so the scores are equal exactly.
        scores = Scores.join([judge.score(image_a), judge.score(image_b)])
        winners, *numbers = decide(scores.values, indices, tau)  # numbers: A's, B's, probabilities
        won = batched([[*a, *b][i] for i in winners], len(image_a) == len(image_b) == 1)
        title = f"{judge.card.name} ({judge.card.task}), tau {tau:g}"
        shown = preview_of([*a, *b], indices, zip(*numbers, strict=True), title)
        shown = ui.PreviewImage(from_pil(shown), cls=cls)
        score_a, score_b, probability = numbers
        return io.NodeOutput(won, scores.take(winners), probability, score_a, score_b, ui=shown)


NOTHING = [ExecutionBlocker(None)]


def tau_of(card: ScorerCard, tau: float) -> float:
    """The tau given, or for 0 the scorer's own. ValueError if it has none."""
    tau = tau or own_tau(card)
    if tau is None:
        raise ValueError(
            f"tau: how likely one wins, {card.name}'s scores do not say ({card.unit}); "
            "give a tau above 0, as tastemaker calibrate --pairs measures it"
        )
    return tau


def pairs_of(a: int, b: int) -> Tensor:
    """Which images meet: int64 [P, 2], indices into those of A followed by those of B."""
    if a != b and 1 not in (a, b):
        raise ValueError(
            f"image_a has {a} images and image_b {b}: give as many, or one to compare with each"
        )
    count = min(a, b) and max(a, b)
    first = torch.arange(a).expand(count) if a != 1 else torch.zeros(count, dtype=torch.int64)
    second = torch.arange(b).expand(count) if b != 1 else torch.zeros(count, dtype=torch.int64)
    return torch.stack([first, a + second], 1)


def decide(
    values: Tensor, indices: Tensor, tau: float
) -> tuple[Tensor, list[float], list[float], list[float]]:
    """Of pairs [P, 2] of scored images: the winners' indices, both scores, A's win probability."""
    a, b = values[indices.T]  # [P] each
    # What has no score loses to what has one.
    b_wins = (b > a) | (a.isnan() & ~b.isnan())
    winners = torch.where(b_wins, indices[:, 1], indices[:, 0])
    return winners, a.tolist(), b.tolist(), win_probability(a, b, tau).tolist()


def batched(images: list[Tensor], as_batch: bool) -> list[Tensor]:
    """Images [H, W, C] as a list of batches of one; as one batch if asked for and of one size."""
    if as_batch and len({image.shape for image in images}) == 1:
        return [torch.stack(images)]
    return [image[None] for image in images]


def preview_of(
    pictures: list[Tensor], indices: Tensor, numbers: Iterable[tuple], title: str
) -> Image.Image:
    """The first pairs side by side, each with its two scores and probability."""
    shown = [
        Pair(*(to_pil(pictures[i]) for i in pair), *each)
        for pair, each in zip(indices[:PAIRS].tolist(), numbers, strict=False)
    ]
    more = f", the first {PAIRS} of {len(indices)} pairs" if len(indices) > PAIRS else ""
    return comparison(shown, title + more)
