"""Candidates: images and what belongs to them, chosen together. What the selecting nodes share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io, ui
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..ranking import Selection
from ..report.selection import selection_preview
from .images import Pictures, from_pil, singles
from .managed import ManagedScorer
from .sockets import SCORER, SCORES, Scores

IMAGES = io.Image.Input("images", tooltip="A batch, or a list of images of any sizes.")
SCORE_INPUTS = [
    SCORES.Input(
        "scores",
        optional=True,
        tooltip="What the images scored, from Score Images. Wins over the scorer.",
    ),
    SCORER.Input(
        "scorer",
        optional=True,
        tooltip="Scores the images here, where no scores are connected.",
    ),
]
COMPANIONS = [
    io.Latent.Input(
        "latents",
        optional=True,
        tooltip="The images' latents, as many as there are images: chosen along with them.",
    ),
    io.Mask.Input(
        "masks",
        optional=True,
        tooltip="A mask for each image, chosen along with it; a single mask stays as it is.",
    ),
    io.AnyType.Input(
        "items",
        optional=True,
        tooltip="A list of anything that belongs to the images, such as prompts, seeds or file "
        "names: chosen along with them. A single value stays as it is.",
    ),
]


def _outputs(which: str) -> list[io.Output]:
    gone = f"Where no image is {which}, what follows is skipped."
    return [
        io.Image.Output(
            display_name=f"{which}_images", is_output_list=True, tooltip=f"Those {which}. {gone}"
        ),
        io.Latent.Output(
            display_name=f"{which}_latents", is_output_list=True, tooltip=f"Their latents. {gone}"
        ),
        io.Mask.Output(
            display_name=f"{which}_masks", is_output_list=True, tooltip=f"Their masks. {gone}"
        ),
        io.AnyType.Output(
            display_name=f"{which}_items", is_output_list=True, tooltip=f"Their items. {gone}"
        ),
        SCORES.Output(display_name=f"{which}_scores", tooltip=f"Their scores. {gone}"),
    ]


OUTPUTS = [
    *_outputs("kept"),
    *_outputs("rejected"),
    io.Int.Output(
        display_name="indices",
        is_output_list=True,
        tooltip="The numbers, from 0, of the images kept. Where none is, what follows is skipped.",
    ),
    io.Int.Output(display_name="count", tooltip="How many images are kept; 0 where none is."),
]


@dataclass(frozen=True, eq=False)
class Candidates:
    """N images and what was connected beside them, all as lists: a batch is a list of one.

    ValueError if the numbers do not agree.
    """

    images: list[Tensor]  # [b, H, W, C]
    latents: list[dict[str, Any]] | None = None
    masks: list[Tensor] | None = None  # [b, H, W], or one for all
    items: list[Any] | None = None  # or one for all

    def __post_init__(self) -> None:
        if self.latents is not None:
            self.check("latents", sum(map(_latent_count, self.latents)))
        if self.masks is not None and (masks := sum(map(_mask_count, self.masks))) != 1:
            self.check("masks", masks)
        if self.items is not None and len(self.items) != 1:
            self.check("items", len(self.items))

    def __len__(self) -> int:
        return sum(map(len, self.images))

    def check(self, name: str, count: int) -> None:
        if count != len(self):
            raise ValueError(
                f"{len(self)} images but {count} {name}: connect the {name} of the same images"
            )

    def scores(
        self, scores: Sequence[Scores] | None, scorer: Sequence[ManagedScorer] | None
    ) -> Scores:
        """The scores given, or else the scorer's. ValueError if there is neither."""
        if scores:
            joined = Scores.join(scores)
            self.check("scores", len(joined))
            return joined
        if not scorer:
            raise ValueError(NO_SCORES)
        return scorer[0].score(self.images)

    def take(self, indices: Tensor, scores: Scores) -> list[Any]:
        """What the five outputs of the chosen get, as many as `_outputs` lists."""
        if not len(indices):
            return [*([[ExecutionBlocker(None)]] * 4), ExecutionBlocker(None)]
        return [
            self._choose(self.images, indices, len, _rows),
            _missing("latents") if self.latents is None else self._latents(indices),
            _missing("masks") if self.masks is None else self._masks(indices),
            _missing("items") if self.items is None else self._items(indices),
            scores.take(indices),
        ]

    def _latents(self, indices: Tensor) -> list[dict[str, Any]]:
        return self._choose(self.latents, indices, _latent_count, latent_rows)

    def _masks(self, indices: Tensor) -> list[Tensor]:
        if sum(map(_mask_count, self.masks)) == 1:
            return self.masks
        return self._choose(self.masks, indices, _mask_count, _rows)

    def _choose(
        self,
        batches: list,
        indices: Tensor,
        count: Callable[[Any], int],
        rows: Callable[[Any, Tensor], Any],
    ) -> list:
        """One batch to one batch; a list, whose parts may be batches too, to a list of single ones.

        What belongs to a list of images becomes a list: the next node goes through both together.
        """
        if len(batches) == 1 and len(self.images) == 1:
            return [rows(batches[0], indices)]
        places = [(batch, row) for batch in batches for row in range(count(batch))]
        return [rows(batch, torch.tensor([row])) for batch, row in (places[i] for i in indices)]

    def _items(self, indices: Tensor) -> list[Any]:
        return self.items if len(self.items) == 1 else [self.items[i] for i in indices.tolist()]


NO_SCORES = "connect scores (of Score Images) or a scorer (of Load Scorer)"


def lacks_scores(scores: Any, scorer: Any) -> str | bool:
    """What `validate_inputs` says: known before the first image is sampled."""
    return NO_SCORES if scores is None and scorer is None else True


def outcome(
    candidates: Candidates,
    selection: Selection,
    scores: Scores,
    *extra: Any,
    shown: dict[str, Any] | ui.PreviewImage | None,
) -> io.NodeOutput:
    """The values of `OUTPUTS`, and `extra` ones after them."""
    kept, rejected = selection
    indices = kept.tolist() or [ExecutionBlocker(None)]
    parts = [*candidates.take(kept, scores), *candidates.take(rejected, scores)]
    return io.NodeOutput(*parts, indices, len(kept), *extra, ui=shown)


def preview_of(
    candidates: Candidates, selection: Selection, scores: Scores, cls: type, **how: Any
) -> ui.PreviewImage | None:
    """What the node shows: those kept, and dimmed those rejected."""
    if not len(candidates):
        return None
    pictures = Pictures(singles(candidates.images))
    kept, rejected = (part.tolist() for part in selection)
    sheet = selection_preview(pictures, scores.values.tolist(), kept, rejected, **how)
    return ui.PreviewImage(from_pil(sheet), cls=cls)


def latent_rows(latent: dict[str, Any], rows: Tensor) -> dict[str, Any]:
    """The latents at `rows` (int64) of a LATENT, made again by the seed that made them all.

    As Latent From Batch does: a noise mask for all stays, fewer masks than latents are repeated,
    and `batch_index` tells the sampler which part of a batch's noise is whose. Other keys stay.
    """
    count = _latent_count(latent)
    index = list(latent.get("batch_index", range(count)))
    if len(index) != count:
        raise ValueError(f"{count} latents but {len(index)} in their batch_index")
    chosen = {**latent, "samples": latent["samples"][rows]}
    chosen["batch_index"] = [index[i] for i in rows.tolist()]
    masks = latent.get("noise_mask")
    if masks is not None and masks.shape[0] != 1:
        chosen["noise_mask"] = masks[rows % masks.shape[0]]
    return chosen


def _rows(batch: Tensor, rows: Tensor) -> Tensor:
    return batch.reshape(-1, *batch.shape[-2:])[rows] if batch.ndim == 2 else batch[rows]


def _latent_count(latent: dict[str, Any]) -> int:
    return latent["samples"].shape[0]


def _mask_count(mask: Tensor) -> int:
    return 1 if mask.ndim == 2 else len(mask)


def _missing(name: str) -> list[ExecutionBlocker]:
    return [ExecutionBlocker(f"no {name} are connected, so there are none to give")]
