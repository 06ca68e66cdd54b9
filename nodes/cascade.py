"""Cascade Select: a cheap scorer looks at every image, a judge at the best of them."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from .. import ranking
from ..ranking import Cascade, Selection
from ..report.contact_sheet import format_score
from .candidates import COMPANIONS, IMAGES, OUTPUTS, Candidates, outcome, preview_of
from .images import singles
from .managed import ManagedScorer
from .select import BEST_FIRST, NOTHING_KEPT, ORDER, PASS_BEST, PREVIEW
from .sockets import CATEGORY, SCORER, SCORES, Scores, chosen


class CascadeSelect(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerCascadeSelect",
            display_name="Cascade Select",
            category=CATEGORY,
            description="Scores every image with a cheap scorer and only the best of them with a "
            "judge, and keeps the judge's favourites.",
            search_aliases=["two stage filter", "judge the best", "finalists", "shortlist"],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                IMAGES,
                SCORER.Input("cheap", tooltip="Scores every image, such as nano."),
                SCORER.Input(
                    "judge", tooltip="Scores only the cheap scorer's best, such as q-realign-pro."
                ),
                *COMPANIONS,
                io.DynamicCombo.Input(
                    "judged",
                    options=_shares(),
                    tooltip="How many images the judge sees: a number, or a part of them.",
                ),
                io.Int.Input(
                    "keep",
                    default=4,
                    min=1,
                    max=100_000,
                    tooltip="Number of images kept, by the judge's scores. Only judged images are "
                    "kept, so never more than the judge sees.",
                ),
                ORDER,
                NOTHING_KEPT,
                PREVIEW,
            ],
            outputs=[
                *OUTPUTS,
                SCORES.Output(
                    display_name="cheap_scores", tooltip="The cheap scorer's, of all images."
                ),
                SCORES.Output(
                    display_name="judge_scores",
                    tooltip="The judge's, of all images: NaN where it did not look.",
                ),
                io.Float.Output(
                    display_name="agreement",
                    tooltip="Rank correlation of the two over the judged images, -1 to 1; NaN below "
                    "two of them. Near 0, judge more images.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls, images, cheap, judge, keep, order, nothing_kept, preview, judged=None, **others
    ) -> io.NodeOutput:
        candidates = Candidates(images, **others)
        found = judge_best(candidates.images, cheap[0], judge[0], chosen(judged, "judged"))
        selection = choose(found, keep[0], order[0], nothing_kept[0])
        first, second = Scores(found.cheap, cheap[0].card), Scores(found.judge, judge[0].card)
        shown = None
        if preview[0]:
            shown = preview_of(candidates, selection, second, cls, **_words(found, first, second))
        return outcome(candidates, selection, second, first, second, found.agreement, shown=shown)


def _shares() -> list[io.DynamicCombo.Option]:
    k = io.Int.Input(
        "k", default=8, min=1, max=100_000, tooltip="Number of images that the judge sees."
    )
    fraction = io.Float.Input(
        "fraction",
        default=0.25,
        min=0.0,
        max=1.0,
        step=0.05,
        tooltip="Part of the images that the judge sees, rounded up. 1 shows it all, 0 none.",
    )
    return [
        io.DynamicCombo.Option("top k", [k]),
        io.DynamicCombo.Option("top fraction", [fraction]),
    ]


def judge_best(
    images: list[Tensor], cheap: ManagedScorer, judge: ManagedScorer, judged: dict[str, Any]
) -> Cascade:
    """The cascade over the images' indices."""
    pictures = singles(images)

    def by(scorer: ManagedScorer):
        return lambda indices: scorer.score([pictures[i][None] for i in indices]).values

    share = {key: value[0] for key, value in judged.items() if key in ("k", "fraction")}
    return ranking.cascade(torch.arange(len(pictures)), by(cheap), by(judge), **share)


def choose(found: Cascade, keep: int, order: str, nothing_kept: str) -> Selection:
    """The judge's best `keep`. Where it scored none, "the best one" is the cheap scorer's."""
    count = min(keep, int((~found.judge.isnan()).sum()))
    if not count and nothing_kept == PASS_BEST:
        count = min(1, len(found.order) - found.unscored)
    kept, rejected = found.order[:count], found.order[count:]
    if order == BEST_FIRST:
        return Selection(kept, rejected)
    return Selection(kept.sort().values, rejected.sort().values)


def _words(found: Cascade, cheap: Scores, judge: Scores) -> dict[str, Any]:
    """What stands in the preview: places by both, and under each image the cheap score."""
    ranks = found.order.argsort() + 1
    notes = [
        f"image {i}, {cheap.card.name} {format_score(score)}"
        for i, score in enumerate(cheap.values.tolist())
    ]
    judged = int((~judge.values.isnan()).sum())
    title = f"{judge.card.name} judged {judged} of {len(cheap)}"
    if judged > 1:
        title += f", agreement {found.agreement:.2f}"
    return {"ranks": ranks.tolist(), "notes": notes, "title": title}
