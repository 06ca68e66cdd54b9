"""Ensemble Scorers: several scorers as one, on a scale measured on reference images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..ranking import ReferenceStatistics, reference_statistics
from ..scorers import Ensemble
from ..scorers.ensemble import statistics_from_reference
from .folders import local_checkpoints, resolve, signature
from .images import singles, to_pixels
from .managed import ManagedScorer, Weights, managed
from .sockets import CATEGORY, SCORER, Chosen, chosen

MOST = 8


class EnsembleScorers(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        scorers = SCORER.Input("scorer", tooltip="A scorer, or an ensemble of some.")
        return io.Schema(
            node_id="TastemakerEnsembleScorers",
            display_name="Ensemble Scorers",
            category=CATEGORY,
            description="Several scorers as one: the weighted mean of their scores, each in "
            "deviations from its own mean on the reference images. Scales then do not matter, and "
            "an image's score does not depend on its company.",
            search_aliases=["combine scorers", "average scores", "committee"],
            is_input_list=True,
            inputs=[
                io.Autogrow.Input(
                    "scorers",
                    template=io.Autogrow.TemplatePrefix(scorers, "scorer", min=2, max=MOST),
                    tooltip=f"2 to {MOST} scorers.",
                ),
                io.String.Input(
                    "weights",
                    default="",
                    tooltip="How much each counts, in order, as in: 2, 1. Empty: all the same. "
                    "0 leaves a scorer out.",
                ),
                io.Image.Input(
                    "reference_images",
                    optional=True,
                    tooltip="Typical images, good and bad, as a batch or a list of any sizes; 50 or "
                    "more make a steady scale. Keep them the same: other images, other scores. Not "
                    "needed with a file.",
                ),
                io.DynamicCombo.Input(
                    "reference",
                    options=[
                        # A socket in here, alone in the first option, would fail in ComfyUI's page.
                        io.DynamicCombo.Option("images", []),
                        io.DynamicCombo.Option(
                            "file",
                            [
                                io.Combo.Input(
                                    "file",
                                    options=_files() or [NO_FILE],
                                    tooltip="A file that `tastemaker calibrate` wrote into "
                                    "models/tastemaker/; it must know each of the scorers.",
                                )
                            ],
                        ),
                    ],
                    tooltip="Where each scorer's mean and deviation come from: measured on the "
                    "reference images, or read from a file of `tastemaker calibrate`.",
                ),
            ],
            outputs=[
                SCORER.Output(display_name="scorer", tooltip="0 is the reference images' average.")
            ],
        )

    @classmethod
    def execute(
        cls,
        scorers: dict[str, list[ManagedScorer]],
        weights: list[str],
        reference: Chosen | None = None,
        reference_images: list[Tensor] | None = None,
    ) -> io.NodeOutput:
        members = [scorer[0] for scorer in scorers.values() if scorer]
        shares = parse_weights(weights[0], len(members))
        source = chosen(reference, "reference")
        if source["reference"][0] == "file":
            path = Path(resolve(source["file"][0]))
            found = statistics_from_reference(path, [member.card for member in members])
            return io.NodeOutput(ensemble(members, *found, shares))
        if reference_images is None:
            raise ValueError("connect reference_images, or choose a file as the reference")
        scores = [member.score(reference_images).values for member in members]
        statistics = [reference_statistics(values) for values in scores]
        return io.NodeOutput(ensemble(members, statistics, _name(reference_images), shares))

    @classmethod
    def fingerprint_inputs(cls, reference: dict[str, list[Any]] | None = None, **_: Any) -> tuple:
        (file,) = (reference or {}).get("file") or [None]
        return signature(resolve(file)) if file and file != NO_FILE else ()


NO_FILE = "(none in models/tastemaker)"


def ensemble(
    members: Sequence[ManagedScorer],
    statistics: Sequence[ReferenceStatistics],
    reference: str,
    weights: Sequence[float] | None = None,
) -> ManagedScorer:
    """The members as one scorer that shares their weights."""
    scorer = Ensemble([m.scorer for m in members], statistics, weights, reference)
    parts: dict[Weights, None] = {part: None for member in members for part in member.weights}
    return ManagedScorer(scorer, list(parts))


def load_reference(path: Path, dtype: str = "auto") -> ManagedScorer:
    """The ensemble that a file of `tastemaker calibrate` describes, its members shared."""
    members: list[ManagedScorer] = []

    def load(name_or_path: str, task: str = "quality", **options: Any):
        local = Path(name_or_path)
        source = local if local.exists() else name_or_path
        members.append(managed(source, signature(source), task=task, dtype=dtype, **options))
        return members[-1].scorer

    scorer = Ensemble.from_reference(path, load=load)
    parts: dict[Weights, None] = {part: None for member in members for part in member.weights}
    return ManagedScorer(scorer, list(parts))


def parse_weights(text: str, count: int) -> list[float] | None:
    """ "2, 1" to [2.0, 1.0]; None for an empty text. ValueError if it is no list of `count` numbers."""
    words = text.replace(",", " ").split()
    if not words:
        return None
    try:
        weights = [float(word) for word in words]
    except ValueError:
        raise ValueError(f'weights must be numbers like "2, 1", got {text!r}') from None
    if len(weights) != count:
        raise ValueError(f"{count} scorers need {count} weights, got {len(weights)}: {text!r}")
    return weights


def _files() -> list[str]:
    return [name for name, kind in local_checkpoints().items() if kind == "ensemble"]


def _name(images: list[Tensor]) -> str:
    """Stands for a set of reference images."""
    digest, pictures = hashlib.sha256(), singles(images)
    for picture in pictures:
        pixels = to_pixels(picture)
        digest.update(b"nan" if pixels is None else pixels.cpu().numpy().tobytes())
    return f"{len(pictures)} reference images {digest.hexdigest()[:8]}"
