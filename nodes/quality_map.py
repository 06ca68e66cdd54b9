"""Quality Map: where in a picture the score is lost."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import comfy.model_management as mm
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..report.quality_overlay import draw_overlay
from ..scorers import ScorerCard
from ..scorers import quality_map as maps
from .images import from_pil, singles
from .managed import ManagedScorer
from .sockets import CATEGORY, SCORER, Chosen, chosen


class QualityMap(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerQualityMap",
            display_name="Quality Map",
            category=CATEGORY,
            description="Shows where in an image the score is lost, and masks it for a detailer or "
            "an inpaint node. Scores tiles at full resolution.",
            search_aliases=["heatmap", "defect mask", "blur mask", "worst region", "detailer"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                SCORER.Input(
                    "scorer", tooltip="Who judges each tile. nano finds faults of pixels."
                ),
                io.Image.Input("images", tooltip="A batch, or a list of images of any sizes."),
                io.DynamicCombo.Input(
                    "region",
                    options=_regions(),
                    tooltip="What the mask covers. worst share: always so much of each image. below "
                    "score: what is below a fixed score. below median: what is worse than "
                    "the image's own middle, nothing if it is even.",
                ),
                io.Int.Input(
                    "tile",
                    default=128,
                    min=32,
                    max=4096,
                    step=32,
                    tooltip="Side of a tile in pixels. 128 suits nano; 384 to 512 the others, which "
                    "need to see things whole. An image that is smaller is one tile.",
                ),
                io.Float.Input(
                    "overlap",
                    default=0.5,
                    min=0.25,
                    max=0.9,
                    step=0.05,
                    tooltip="Share of a tile's side that neighbours have in common. 0.75: finer, and "
                    "four times as slow as 0.5.",
                ),
                io.Float.Input(
                    "flat",
                    default=10.0,
                    min=0.0,
                    max=255.0,
                    step=1.0,
                    tooltip="Tiles with less contrast than this (of 255), such as sky, are drawn to "
                    "the image's median, for there is little to judge. 0: off, every score as it is.",
                ),
                io.Int.Input(
                    "feather",
                    default=16,
                    min=0,
                    max=512,
                    tooltip="Pixels that the mask's edge is blurred to either side. 0: a hard edge.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="overlay",
                    is_output_list=True,
                    tooltip="The map over the grey image, the mask outlined, the scores below it.",
                ),
                io.Mask.Output(
                    display_name="mask",
                    is_output_list=True,
                    tooltip="1 where the score is lost: for Set Latent Noise Mask and detailers.",
                ),
                io.Mask.Output(
                    display_name="map",
                    is_output_list=True,
                    tooltip="The map itself: 1 at the image's worst score, 0 at its best.",
                ),
                io.Image.Output(
                    display_name="worst_tile",
                    is_output_list=True,
                    tooltip="The worst tile of each image, cut out.",
                ),
                io.Float.Output(
                    display_name="worst_score",
                    is_output_list=True,
                    tooltip="What that tile scored, as Score Images would; NaN if none has a score.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        scorer: list[ManagedScorer],
        images: list[Tensor],
        tile: list[int],
        overlap: list[float],
        flat: list[float],
        feather: list[int],
        region: Chosen | None = None,
    ) -> io.NodeOutput:
        how = {name: value[0] for name, value in chosen(region, "region").items()}
        judged = judge(scorer[0], singles(images), tile[0], overlap[0], flat[0])
        found = [picture_map(one, how, feather[0], scorer[0].card) for one in judged]
        if not found:
            return io.NodeOutput(*[[ExecutionBlocker(None)]] * 5)
        batches = _as_they_came([one[:4] for one in found], [len(batch) for batch in images])
        shown = [
            saved for overlay in batches[0] for saved in ui.PreviewImage(overlay, cls=cls).values
        ]
        scores = [one.worst_score for one in found]
        return io.NodeOutput(*batches, scores, ui={"images": shown, "animated": (False,)})


def _regions() -> list[io.DynamicCombo.Option]:
    share = io.Float.Input(
        "share",
        default=0.1,
        min=0.0,
        max=1.0,
        step=0.01,
        tooltip="Share of the image's area, about. 0: nothing.",
    )
    score = io.Float.Input(
        "score",
        default=-1.0,
        min=-1000.0,
        max=1000.0,
        step=0.05,
        tooltip="In the scorer's unit; the overlay's legend shows what your images score.",
    )
    margin = io.Float.Input(
        "margin",
        default=1.0,
        min=0.0,
        max=1000.0,
        step=0.05,
        tooltip="How far below the image's median, in the scorer's unit. 0: half of the image.",
    )
    return [
        io.DynamicCombo.Option("worst share", [share]),
        io.DynamicCombo.Option("below median", [margin]),
        io.DynamicCombo.Option("below score", [score]),
    ]


class Judged(NamedTuple):
    """A picture and the scores of its tiles."""

    picture: Tensor  # [H, W, C]
    grid: maps.Grid
    scores: Tensor  # [N], NaN where a tile could not be scored
    spared: Tensor  # [N], drawn to the median where a tile is flat


class Found(NamedTuple):
    """What the node gives for one picture, as batches of one."""

    overlay: Tensor
    mask: Tensor
    map: Tensor
    worst_tile: Tensor
    worst_score: float


def judge(
    scorer: ManagedScorer, pictures: list[Tensor], tile: int, overlap: float, flat: float
) -> list[Judged]:
    """The tiles of all pictures [H, W, C], scored together."""
    grids = [maps.Grid.of(*picture.shape[:2], tile, overlap) for picture in pictures]
    tiles = [
        [picture[box][None] for box in grid.boxes]
        for picture, grid in zip(pictures, grids, strict=True)
    ]
    values = scorer.score([one for cut in tiles for one in cut]).values
    scores = values.split([len(cut) for cut in tiles])
    details = [torch.cat([maps.detail(_planes(one)) for one in cut]) for cut in tiles]
    return [
        Judged(picture, grid, score, maps.spare_flat(score, detail.cpu(), flat))
        for picture, grid, score, detail in zip(pictures, grids, scores, details, strict=True)
    ]


def picture_map(judged: Judged, region: dict[str, Any], feather: int, card: ScorerCard) -> Found:
    """The map of one picture and what it shows."""
    mm.throw_exception_if_processing_interrupted()
    picture, grid, scores, spared = judged
    field = maps.blend(spared.reshape(grid.shape), grid)
    scale = maps.scale_of(field, card)
    lost = maps.without_specks(lost_region(field, region), min(grid.tile) // 8)
    worst = int(spared.nan_to_num(math.inf).argmin())
    rgb = _planes(picture[None])[0].movedim(0, -1).float().cpu()
    overlay = draw_overlay(rgb, field, lost, scale, f"{card.name} ({card.task})")
    return Found(
        from_pil(overlay),
        maps.feather(lost, feather)[None],
        maps.badness(field, scale)[None],
        picture[grid.boxes[worst]][None],
        float(scores[worst]),
    )


def lost_region(field: Tensor, region: dict[str, Any]) -> Tensor:
    """Where a map [H, W] is bad, as the `region` widgets say, bool [H, W]."""
    if region["region"] == "worst share":
        return maps.worst_share(field, region["share"])
    if region["region"] == "below score":
        return maps.below(field, region["score"])
    return maps.below_median(field, region["margin"])


def _planes(pictures: Tensor) -> Tensor:
    """[N, H, W, C] to [N, 3, H, W]; alpha is dropped, grey repeated."""
    rgb = pictures[..., :3]
    return rgb.expand(*rgb.shape[:-1], 3).movedim(-1, 1)


def _as_they_came(found: list[tuple[Tensor, ...]], sizes: list[int]) -> list[list[Tensor]]:
    """Results of single pictures to batches of those sizes: one list for each kind of result."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    spans = [(end - size, end) for end, size in zip(ends, sizes, strict=True) if size]
    kinds = list(zip(*found, strict=True))
    return [[torch.cat(kind[start:end]) for start, end in spans] for kind in kinds]
