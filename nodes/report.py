"""Score Report: a contact sheet, and a page on which a ranking can be gone through."""

from __future__ import annotations

import math
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from PIL import Image
from torch import Tensor

from .. import ranking, report
from ..report.contact_sheet import MOST
from ..report.names import inside, new_folder, numbered
from ..report.page import LIMIT
from ..report.pictures import PNG, save_picture
from .candidates import IMAGES, SCORE_INPUTS, Candidates, lacks_scores
from .images import from_pil, singles
from .managed import ManagedScorer
from .saving import (
    RUN_FIELDS,
    Names,
    graph_texts,
    output_folder,
    refusal,
    score_texts,
    seeds_of,
    to_file,
)
from .sockets import CATEGORY, Scores


class ScoreReport(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerScoreReport",
            display_name="Score Report",
            category=CATEGORY,
            description="Ranks images on a contact sheet, and saves them with a page that shows the "
            "ranking and lets you keep and reject by hand.",
            search_aliases=["contact sheet", "ranking", "html report", "grid", "gallery"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                IMAGES,
                *SCORE_INPUTS,
                io.String.Input(
                    "title", default="Score report", tooltip="Written above the ranking."
                ),
                io.String.Input(
                    "folder",
                    default="reports/%scorer%_%date:yyyy-MM-dd%",
                    tooltip="Below the output folder; a number that is free follows. Fields: "
                    "%scorer%, %task%, %date:yyyy-MM-dd%, and %KSampler.steps% for any node's widget. "
                    "/ makes subfolders.",
                ),
                io.Int.Input(
                    "keep",
                    default=0,
                    min=0,
                    max=LIMIT,
                    tooltip="The page opens with so many of the best images kept. 0: with none.",
                ),
            ],
            outputs=[
                io.Image.Output(
                    display_name="contact_sheet",
                    tooltip=f"All images, best first, with rank and score; the best {MOST} of more.",
                ),
                io.String.Output(display_name="path", tooltip="The page's file."),
            ],
        )

    @classmethod
    def validate_inputs(cls, folder, scores=None, scorer=None) -> bool | str:
        lacking = lacks_scores(scores, scorer)
        return refusal(folder[0], RUN_FIELDS) if lacking is True else lacking

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        title: list[str],
        folder: list[str],
        keep: list[int],
        scores: list[Scores] | None = None,
        scorer: list[ManagedScorer] | None = None,
    ) -> io.NodeOutput:
        judged = Candidates(images).scores(scores, scorer)
        if not len(judged):
            return io.NodeOutput(ExecutionBlocker(None), ExecutionBlocker(None))
        rows, pictures, place = save_pictures(cls, singles(images), judged, folder[0])
        page, card = place / "report.html", judged.card
        listed = report.Scores(rows, card.name, card.fingerprint_id, card)
        report.write_report(page, listed, title=title[0] or page.parent.name, keep=keep[0])
        sheet = from_pil(sheet_of(pictures, rows, title[0]))
        shown = ui.PreviewImage(sheet, cls=cls).as_dict()
        return io.NodeOutput(sheet, str(page), ui={**shown, "text": (str(page),)})


def save_pictures(
    cls: type[io.ComfyNode], images: list[Tensor], scores: Scores, template: str
) -> tuple[list[report.Row], list[Image.Image], Path]:
    """The pictures as files in a new folder, named by rank and score, each with its graph."""
    seeds = seeds_of(cls, None, len(images))
    names, graph = Names(cls, scores, seeds), graph_texts(cls)
    place = new_folder(numbered(inside(output_folder(), names.of_run(template)), ""))
    rows, pictures, bar = [], [], comfy.utils.ProgressBar(len(images))
    for i, image in enumerate(images):
        mm.throw_exception_if_processing_interrupted()
        picture, score = to_file(image), float(scores.values[i])
        path = place / "pictures" / f"{names.name('%rank%_%score%', i, picture.size)}.png"
        save_picture(picture, [path], PNG, graph | score_texts(score, scores.card, seeds[i]))
        rows.append(
            report.Row(path, score, "it could not be scored" if math.isnan(score) else None)
        )
        pictures.append(picture)
        bar.update(1)
    return rows, pictures, place


def sheet_of(pictures: list[Image.Image], rows: list[report.Row], title: str) -> Image.Image:
    """The best of them on a contact sheet, under the names of their files."""
    best = ranking.sort(torch.tensor([row.score for row in rows])).tolist()[:MOST]
    more = f", the best {MOST} of {len(rows)}" if len(rows) > MOST else ""
    return report.contact_sheet(
        [pictures[i] for i in best],
        [rows[i].score for i in best],
        names=[rows[i].path.stem for i in best],
        title=title + more,
    )
