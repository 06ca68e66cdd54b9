"""Save Scored Image: the score in the name, in the file beside the workflow, and in a table."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.utils
from comfy_api.latest import io, ui
from torch import Tensor

from ..report.names import fill, inside, numbered
from ..report.pictures import PNG, save_picture, webp
from ..report.table import Table
from .candidates import IMAGES, SCORE_INPUTS, Candidates, lacks_scores
from .images import singles
from .managed import ManagedScorer
from .saving import (
    FIELDS_HELP,
    Names,
    graph_texts,
    output_folder,
    refusal,
    saved_result,
    score_texts,
    seeds_of,
    to_file,
)
from .sockets import CATEGORY, Chosen, Scores, chosen

COLUMNS = (
    *("path", "score", "scorer", "task", "fingerprint", "seed", "width", "height"),
    "time",  # of the run, local
)


class SaveScoredImage(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerSaveScoredImage",
            display_name="Save Scored Image",
            category=CATEGORY,
            description="Saves images with their score in the name and, beside the workflow, in the "
            "file. Optionally adds a row for each to a table.",
            search_aliases=["save image", "export", "score in filename", "save webp", "save csv"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                IMAGES,
                *SCORE_INPUTS,
                io.Int.Input(
                    "seed",
                    optional=True,
                    force_input=True,
                    tooltip="For the name and the metadata: one seed, or a list of one an image. Not "
                    "connected: the seed of the sampler upstream, if there is only one.",
                ),
                io.String.Input(
                    "file_name",
                    default="scored/%scorer%_%score%",
                    tooltip=f"Below the output folder; a number that is free follows. {FIELDS_HELP}",
                ),
                io.DynamicCombo.Input(
                    "format",
                    options=[
                        io.DynamicCombo.Option("PNG", []),
                        io.DynamicCombo.Option("WebP lossless", []),
                        io.DynamicCombo.Option("WebP", [QUALITY]),
                    ],
                    tooltip="PNG as Save Image writes it; WebP lossless, the same pixels in fewer "
                    "bytes; or WebP with a quality, far smaller.",
                ),
                io.String.Input(
                    "csv",
                    default="",
                    tooltip="A table below the output folder that gets a row for each image, e.g. "
                    "scores.csv or %date:yyyy-MM%.csv. Empty: no table.",
                ),
            ],
            outputs=[
                io.Image.Output("images", is_output_list=True, tooltip="The images, unchanged."),
                io.String.Output(
                    display_name="paths", is_output_list=True, tooltip="The files, in order."
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, file_name, csv, scores=None, scorer=None, format=None) -> bool | str:
        # `format` is not asked for: a dynamic input comes all the same.
        known = {
            "": lacks_scores(scores, scorer),
            "file_name: ": refusal(file_name[0]),
            "csv: ": refused_table(csv[0]),
        }
        return next((name + why for name, why in known.items() if why is not True), True)

    @classmethod
    def execute(
        cls,
        images: list[Tensor],
        file_name: list[str],
        csv: list[str],
        format: Chosen | None = None,
        scores: list[Scores] | None = None,
        scorer: list[ManagedScorer] | None = None,
        seed: list[int] | None = None,
    ) -> io.NodeOutput:
        how = chosen(format, "format")
        table = Table(table_path(csv[0]), COLUMNS) if csv[0].strip() else None
        judged = Candidates(images).scores(scores, scorer)
        seeds = seeds_of(cls, seed, len(judged))
        saved = save_all(cls, singles(images), judged, seeds, file_name[0], how, table)
        paths = [str(path) for path in saved]
        return io.NodeOutput(images, paths, ui=ui.SavedImages([*map(saved_result, saved)]))


QUALITY = io.Int.Input(
    "quality",
    default=90,
    min=1,
    max=100,
    tooltip="1 smallest to 100 best. The file's own score is a little lower than the image's.",
)


def save_all(
    cls: type[io.ComfyNode],
    pictures: list[Tensor],
    scores: Scores,
    seeds: list[int | None],
    template: str,
    format: dict[str, list],
    table: Table | None,
) -> list:
    """Writes each picture, then its row. Shows progress; stops between two when interrupted."""
    names, graph, bar = (
        Names(cls, scores, seeds),
        graph_texts(cls),
        comfy.utils.ProgressBar(len(pictures)),
    )
    suffix, how = file_format(format)
    paths = []
    for i, picture in enumerate(pictures):
        mm.throw_exception_if_processing_interrupted()
        image, score = to_file(picture), float(scores.values[i])
        name = inside(output_folder(), names.name(template, i, image.size))
        texts = graph | score_texts(score, scores.card, seeds[i])
        paths.append(save_picture(image, numbered(name, suffix), how, texts))
        if table is not None:
            table.append(row_of(paths[-1], score, scores, seeds[i], image.size, names.now))
        bar.update(1)
    return paths


def file_format(format: dict[str, list]) -> tuple[str, dict[str, Any]]:
    """The ending of a file, and how it is saved."""
    kind = format["format"][0]
    if kind == "PNG":
        return ".png", PNG
    return ".webp", webp(format["quality"][0] if kind == "WebP" else None)


def table_path(name: str) -> Path:
    """Where the table lies that a widget names; ValueError if none can lie there."""
    path = inside(output_folder(), fill(name.strip(), {}))
    if path.suffix.lower() != ".csv":
        raise ValueError(f"csv: a table's name ends in .csv, got {name!r}")
    return path


def refused_table(name: str | None) -> str | bool:
    """What `validate_inputs` says of a table's name; nothing of one that is connected."""
    try:
        if name and name.strip():
            table_path(name)
    except ValueError as error:
        return str(error)
    return True


def row_of(path, score, scores, seed, size, now: datetime) -> tuple:
    """`COLUMNS`; an empty score where there is none, as `tastemaker score --export` writes it."""
    card = scores.card
    known = score if score == score else None
    when = now.isoformat(timespec="seconds")
    return (path, known, card.name, card.task, card.fingerprint_id, seed, *size, when)
