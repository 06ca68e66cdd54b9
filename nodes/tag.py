"""Quality Tag: scores to the quality words of training captions."""

from __future__ import annotations

import math
from typing import Any

from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker

from .. import ranking
from ..ranking import QUALITY_NAMES
from ..report.panels import tag_counts
from ..scorers.calibration import own_tau, read_calibration, scale_edges
from .folders import FOLDER, local_checkpoints, resolve
from .images import from_pil
from .sockets import CATEGORY, SCORES, Chosen, Scores, chosen

NO_FILE = f"put a file of tastemaker calibrate --pairs into models/{FOLDER}"


class QualityTag(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerQualityTag",
            display_name="Quality Tag",
            category=CATEGORY,
            description="Turns scores into quality words, as training captions use them, and puts "
            "them before or after captions.",
            search_aliases=[
                "caption",
                "quality words",
                "bucket",
                "label",
                "masterpiece",
                "dataset",
            ],
            is_input_list=True,
            is_output_node=True,
            inputs=[
                SCORES.Input("scores", tooltip="What the images scored, from Score Images."),
                io.String.Input(
                    "captions",
                    optional=True,
                    force_input=True,
                    tooltip="A list of one an image, or one for all. Not connected: the tags alone.",
                ),
                io.DynamicCombo.Input(
                    "method",
                    options=_methods(),
                    tooltip="Where one word ends and the next begins. scale, edges, calibrated and "
                    "calibration file: by the score alone, whatever else is in the batch. equal width "
                    "and quantile divide this batch: for whole datasets only.",
                ),
                io.String.Input(
                    "labels",
                    multiline=True,
                    default="\n".join(QUALITY_NAMES),
                    tooltip="A word or phrase a line, from worst to best.",
                ),
                io.Combo.Input(
                    "position",
                    options=["before", "after"],
                    default="before",
                    tooltip="Where in the caption the tag goes. The caption itself is not changed.",
                ),
                io.String.Input(
                    "separator", default=", ", tooltip="Between tag and caption. Empty: nothing."
                ),
            ],
            outputs=[
                io.String.Output(
                    display_name="captions",
                    is_output_list=True,
                    tooltip="Captions with their tags; as they were where there is no score.",
                ),
                io.String.Output(
                    display_name="tags",
                    is_output_list=True,
                    tooltip="A tag an image; empty where one could not be scored.",
                ),
                io.Int.Output(
                    display_name="buckets",
                    is_output_list=True,
                    tooltip="Each tag's number: 0 worst; -1 where an image could not be scored.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        scores: list[Scores],
        labels: list[str],
        position: list[str],
        separator: list[str],
        method: Chosen | None = None,
        captions: list[str] | None = None,
    ) -> io.NodeOutput:
        judged, names = Scores.join(scores), ranking.read_names(labels[0].strip().splitlines())
        if not len(judged):
            return io.NodeOutput(*[[ExecutionBlocker(None)]] * 3)
        options = {key: value[0] for key, value in chosen(method, "method").items()}
        buckets = buckets_of(judged, len(names), **options)
        tags = ranking.quality_tags(buckets, names)
        given = captions_of(captions, len(judged))
        pairs = zip(given, tags, strict=True)
        tagged = [ranking.tag_caption(c, tag, position[0], separator[0]) for c, tag in pairs]
        shown = from_pil(tag_counts(counts_of(tags, names), "Quality tags"))
        words, shown = [tag or "" for tag in tags], ui.PreviewImage(shown, cls=cls)
        return io.NodeOutput(tagged, words, buckets.tolist(), ui=shown)


def counts_of(tags: list[str | None], names: list[str]) -> dict[str, int]:
    """How often each tag was given, best first, and how often none."""
    counts = {name: tags.count(name) for name in reversed(names)}
    return counts | ({"no score": tags.count(None)} if None in tags else {})


def _methods() -> list[io.DynamicCombo.Option]:
    """The ways to divide scores, with their widgets."""
    edges = io.String.Input(
        "edges",
        default="0.2, 0.4, 0.6, 0.8",
        tooltip="The lowest score of each tag but the worst, in the scorer's unit, ascending: one "
        "fewer than there are tags.",
    )
    tau = io.Float.Input(
        "tau",
        default=0.0,
        min=0.0,
        max=1e6,
        step=0.01,
        tooltip="The difference of scores that makes the odds e to 1, in the scorer's unit. 0: the "
        "scorer's own, where it has one.",
    )
    b = io.Float.Input(
        "b",
        default=0.0,
        min=-1e6,
        max=1e6,
        step=0.01,
        tooltip="The score in the middle of the scale (rank 5 of 10), in the scorer's unit.",
    )
    files = [name for name, kind in local_checkpoints().items() if kind == "ensemble"]
    file = io.Combo.Input(
        "file",
        options=files or [NO_FILE],
        tooltip=f"What tastemaker calibrate --pairs wrote, in models/{FOLDER}: its tau and b.",
    )
    inputs = {
        "scale": [],
        "edges": [edges],
        "calibrated": [tau, b],
        "calibration file": [file],
        "equal width": [],
        "quantile": [],
    }
    return [io.DynamicCombo.Option(name, widgets) for name, widgets in inputs.items()]


def buckets_of(scores: Scores, n: int, *, method: str, **options: Any):
    """The number of each score's tag among `n`: int64 [N], -1 for NaN. ValueError if it cannot be."""
    values, card = scores.values, scores.card
    if method in ("equal width", "quantile"):
        return ranking.buckets(values, n, method.replace(" ", "_"))
    if method == "edges":
        return ranking.assign_buckets(values, edges_of(options["edges"], n))
    if method == "scale":
        return ranking.assign_buckets(values, scale_edges(card, n))
    if method == "calibrated":
        tau = options["tau"] or own_tau(card)
        if tau is None:
            raise ValueError(
                f"tau: {card.name} has none of its own ({card.unit}): give one above 0"
            )
        fitted = ranking.Calibration(tau, options["b"])
    else:
        fitted = read_calibration(resolve(options["file"]), card.name, card.fingerprint_id)
    return ranking.rank_bucket(fitted.rank(values), n)


def edges_of(text: str, n: int) -> list[float]:
    """n - 1 ascending numbers with commas between."""
    wanted = f"edges: {n} labels need {n - 1} ascending scores with commas between, got {text!r}"
    try:
        edges = [float(part) for part in text.split(",")] if text.strip() else []
    except ValueError:
        raise ValueError(wanted) from None
    ascending = all(low < high for low, high in zip(edges, edges[1:], strict=False))
    if len(edges) != n - 1 or not ascending or not all(map(math.isfinite, edges)):
        raise ValueError(wanted)
    return edges


def captions_of(captions: list[str] | None, count: int) -> list[str]:
    captions = [""] if captions is None else captions
    if len(captions) not in (1, count):
        raise ValueError(f"captions: {len(captions)} for {count} scores; give one, or one a score")
    return captions * count if len(captions) == 1 else captions
