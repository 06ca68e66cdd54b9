"""Score Images: the scores, and a picture of them."""

from __future__ import annotations

from comfy_api.latest import io, ui
from torch import Tensor

from ..report.preview import SHOWN, score_preview
from .images import Pictures, from_pil, singles
from .managed import ManagedScorer
from .sockets import CATEGORY, SCORER, SCORES, Scores


class ScoreImages(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerScoreImages",
            display_name="Score Images",
            category=CATEGORY,
            description="Scores every image of a batch or list, higher is better, and shows each "
            "with its score.",
            search_aliases=["rate images", "image quality", "aesthetic score"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                SCORER.Input("scorer", tooltip="Who judges, from Load Scorer or an ensemble."),
                io.Image.Input("images", tooltip="A batch, or a list of images of any sizes."),
                io.Boolean.Input(
                    "preview",
                    default=True,
                    tooltip=f"Show the best {SHOWN} with their scores and a histogram. Off: only score.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, unchanged."),
                SCORES.Output(display_name="scores", tooltip="For the other Tastemaker nodes."),
                io.Float.Output(
                    display_name="score_list",
                    is_output_list=True,
                    tooltip="A number an image, in order; NaN where one could not be scored.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, scorer: list[ManagedScorer], images: list[Tensor], preview: list[bool]
    ) -> io.NodeOutput:
        scores = scorer[0].score(images)
        shown = preview_of(images, scores, cls) if preview[0] and len(scores) else None
        return io.NodeOutput(images, scores, scores.values.tolist(), ui=shown)


def preview_of(images: list[Tensor], scores: Scores, cls: type[io.ComfyNode]) -> ui.PreviewImage:
    """What the node shows: the images with their scores, best first."""
    card = scores.card
    pictures = Pictures(singles(images))
    title = f"{card.name} ({card.task})"
    sheet = score_preview(pictures, scores.values.tolist(), title=title)
    return ui.PreviewImage(from_pil(sheet), cls=cls)
