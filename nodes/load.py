"""Load Scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from comfy_api.latest import io

from ..scorers.load import NAMES
from ..scorers.qrealign_prompt import STYLES, TASKS
from .ensemble import load_reference
from .folders import cached_checkpoints, local_checkpoints, resolve, signature
from .managed import managed
from .sockets import CATEGORY, SCORER

GONE = (
    "the chosen scorer is no longer in models/tastemaker/ or in the hub's cache: "
    "press R to refresh the list, and choose another"
)


class LoadScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerLoadScorer",
            display_name="Load Scorer",
            category=CATEGORY,
            description="Loads a judge of images. nano is embedded and needs no download; the others "
            "are downloaded once, or read from models/tastemaker/.",
            search_aliases=[
                "quality",
                "aesthetic",
                "iqa",
                "joyquality",
                "q-realign",
                "rali",
                "nano",
            ],
            inputs=[
                io.DynamicCombo.Input(
                    "scorer",
                    options=[
                        io.DynamicCombo.Option(name, _options(kind))
                        for name, kind in _choices().items()
                    ],
                    tooltip="Who judges. nano: technical quality in milliseconds. joyquality: a "
                    "labeller's preferences. rali and q-realign: perceived quality. Folders of "
                    "models/tastemaker/ and hub checkpoints that you have are listed below them.",
                ),
            ],
            outputs=[
                SCORER.Output(display_name="scorer", tooltip="The judge, for the other nodes.")
            ],
        )

    @classmethod
    def execute(cls, scorer: dict[str, Any] | None = None) -> io.NodeOutput:
        if scorer is None:  # ComfyUI passes on nothing that is not in the menu
            raise FileNotFoundError(GONE)
        options = dict(scorer)
        path = resolve(options.pop("scorer"))
        task, dtype = options.pop("task", "quality"), options.pop("dtype", "auto")
        if not options.get("max_pixels", 1):
            options["max_pixels"] = None
        if isinstance(path, Path) and path.suffix == ".json":
            return io.NodeOutput(load_reference(path))
        return io.NodeOutput(managed(path, signature(path), task=task, dtype=dtype, **options))

    @classmethod
    def fingerprint_inputs(cls, scorer: dict[str, Any] | None = None) -> tuple:
        """A checkpoint that changed on disk is loaded anew."""
        return signature(resolve(scorer["scorer"])) if scorer else ()


def _choices() -> dict[str, str]:
    """Name in the menu -> the kind whose options it has."""
    own = {name: "q-realign" if name.startswith("q-realign") else name for name in NAMES}
    return own | local_checkpoints() | cached_checkpoints()


def _options(kind: str) -> list[io.Input]:
    """The widgets that a kind of scorer has."""
    dtype = io.Combo.Input(
        "dtype",
        options=["auto", "float32", "bfloat16", "float16"],
        default="auto",
        tooltip="Precision of the weights. auto: the checkpoint's own on a GPU, float32 on a CPU.",
    )
    if kind in ("nano", "ensemble"):
        return []
    if kind != "q-realign":
        return [dtype]
    return [
        io.Combo.Input(
            "task",
            options=list(TASKS),
            default="quality",
            tooltip="What is judged: technical quality, aesthetics, or a video's quality. Two nodes "
            "that differ in the task only share one model.",
        ),
        dtype,
        io.Int.Input(
            "max_pixels",
            default=0,
            min=0,
            max=2**26,
            step=2**16,
            tooltip="Larger pictures are scaled down to this many pixels before they are judged, "
            "which is faster and changes their scores. 1048576 is 1024 x 1024. 0: the "
            "checkpoint's own limit of 16.8 million.",
        ),
        io.Combo.Input(
            "prompt_style",
            options=list(STYLES),
            default=STYLES[0],
            tooltip="How the question is put: card, as the model card does (the published "
            "behaviour); the others give other scores.",
        ),
    ]
