"""Select Images: the best of a batch or list, with everything that belongs to them."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from .. import ranking
from ..ranking import Selection
from .candidates import (
    COMPANIONS,
    IMAGES,
    OUTPUTS,
    SCORE_INPUTS,
    Candidates,
    lacks_scores,
    outcome,
    preview_of,
)
from .sockets import CATEGORY, chosen

BEST_FIRST, ORIGINAL = "best first", "original"
BLOCK, PASS_BEST = "block the branch", "pass the best one"

ORDER = io.Combo.Input(
    "order",
    options=[BEST_FIRST, ORIGINAL],
    default=BEST_FIRST,
    tooltip="How kept and rejected are sorted: by score, or as they came.",
)
NOTHING_KEPT = io.Combo.Input(
    "nothing_kept",
    options=[BLOCK, PASS_BEST],
    default=BLOCK,
    tooltip="Where no image is good enough: skip what follows, or keep the best one after all. "
    "Images without a score are never kept.",
)
PREVIEW = io.Boolean.Input(
    "preview",
    default=True,
    tooltip="Show those kept and, dimmed, those rejected. Off: only select.",
)


class SelectImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerSelectImages",
            display_name="Select Images",
            category=CATEGORY,
            description="Keeps the best images of a batch or list, with their latents, masks, "
            "prompts or seeds; what it rejects has outputs of its own.",
            search_aliases=["filter images", "best of n", "top k", "pick best", "reject", "cull"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                IMAGES,
                *SCORE_INPUTS,
                *COMPANIONS,
                io.DynamicCombo.Input(
                    "keep",
                    options=_modes(),
                    tooltip="Which images are kept: the best k, the best part of them, those from a "
                    "score on, or the one best.",
                ),
                ORDER,
                NOTHING_KEPT,
                PREVIEW,
            ],
            outputs=OUTPUTS,
        )

    @classmethod
    def validate_inputs(cls, images, scores=None, scorer=None, keep=None) -> str | bool:
        # `images` is there to be named in the error; a dynamic input comes whether asked for or not.
        return lacks_scores(scores, scorer)

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        order,
        nothing_kept,
        preview,
        keep=None,
        scores=None,
        scorer=None,
        **others,
    ) -> io.NodeOutput:
        candidates, how = Candidates(images, **others), chosen(keep, "keep")
        scored = candidates.scores(scores, scorer)
        selection = select(scored.values, how, order[0], nothing_kept[0])
        title = f"{len(selection.kept)} of {len(scored)} kept by {scored.card.name}"
        shown = preview_of(candidates, selection, scored, cls, title=title) if preview[0] else None
        return outcome(candidates, selection, scored, shown=shown)


def _modes() -> list[io.DynamicCombo.Option]:
    """The ways to choose, each with the widget of its value."""
    k = io.Int.Input(
        "k",
        default=4,
        min=1,
        max=100_000,
        tooltip="Number of images kept; all that have a score where there are fewer.",
    )
    fraction = io.Float.Input(
        "fraction",
        default=0.7,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="Part of the images kept, rounded up: 0.7 drops the worst 30 %. 1 keeps all, 0 none.",
    )
    minimum = io.Float.Input(
        "minimum",
        default=0.5,
        min=-1000.0,
        max=1000.0,
        step=0.01,
        tooltip="The lowest score kept, in the scorer's own unit (its range is in Load Scorer's "
        "help). -1000 keeps every image that has a score.",
    )
    return [
        io.DynamicCombo.Option("top k", [k]),
        io.DynamicCombo.Option("top fraction", [fraction]),
        io.DynamicCombo.Option("threshold", [minimum]),
        io.DynamicCombo.Option("best", []),
    ]


def select(scores: Tensor, keep: dict[str, Any], order: str, nothing_kept: str) -> Selection:
    """What the widgets ask for."""
    by = "best" if order == BEST_FIRST else "original"
    match keep["keep"][0]:
        case "top k":
            selection = ranking.top_k(scores, keep["k"][0], by)
        case "top fraction":
            selection = ranking.top_fraction(scores, keep["fraction"][0], by)
        case "threshold":
            selection = ranking.threshold(scores, keep["minimum"][0], by)
        case "best":
            selection = ranking.top_k(scores, 1, by)
        case other:
            raise ValueError(f"keep must be one of the menu, got {other!r}")
    if not len(selection.kept) and nothing_kept == PASS_BEST:
        return ranking.top_k(scores, 1, by)
    return selection
