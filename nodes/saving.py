"""What the nodes that save share: pictures with the graph and the score that made them, in one place."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui
from PIL import Image
from torch import Tensor

from .. import ranking
from ..report.names import FIELD, fill, inside, score_text
from ..report.prompt import find_seed, widgets
from ..scorers import ScorerCard
from .images import to_pil
from .sockets import Scores

FIELDS = ("score", "scorer", "task", "seed", "rank", "width", "height", "batch_num")
RUN_FIELDS = {"scorer": "name", "task": "task"}  # of what all images of a run have in common
FIELDS_HELP = (
    "Fields: %score% (zero-padded; unscored where there is none), %rank% (01 is the best of this "
    "run), %scorer%, %task%, %seed%, %width%, %height%, %batch_num%, %date:yyyy-MM-dd%, and "
    "%KSampler.steps% for any node's widget. / makes subfolders."
)


def output_folder() -> Path:
    return Path(folder_paths.get_output_directory())


def refusal(template: Any, fields: Iterable[str] = FIELDS) -> str | bool:
    """What `validate_inputs` says of a file name, before the first image is sampled."""
    if not isinstance(template, str):
        return True  # connected: it is not known yet
    # Nor are the nodes whose widgets it may name.
    known = FIELD.sub(lambda m: "x" if "." in m[1] else m[0], template)
    try:
        inside(output_folder(), fill(known, dict.fromkeys(fields, "x")))
    except ValueError as error:
        return str(error)
    return True


class Names:
    """Fills the templates of one run: all its files have the same date."""

    def __init__(self, cls: type[io.ComfyNode], scores: Scores, seeds: Sequence[int | None]):
        self.now, self.scores, self.seeds = datetime.now(), scores, seeds
        self.widgets = widgets(cls.hidden.prompt or {})
        order = ranking.sort(scores.values).tolist()
        self.ranks = {image: rank for rank, image in enumerate(order, 1)}

    def name(self, template: str, i: int, size: tuple[int, int]) -> str:
        """What image `i`, of a size (width, height), is called."""
        card = self.scores.card
        values = {
            "score": score_text(float(self.scores.values[i]), card.range),
            "scorer": card.name,
            "task": card.task,
            "seed": self.seeds[i],
            "rank": f"{self.ranks[i]:0{max(2, len(str(len(self.ranks))))}}",
            "width": size[0],
            "height": size[1],
            "batch_num": i,
        }
        return fill(template, values, self.now, self.widgets)

    def of_run(self, template: str) -> str:
        """What all images together are called."""
        values = {key: getattr(self.scores.card, name) for key, name in RUN_FIELDS.items()}
        return fill(template, values, self.now, self.widgets)


def seeds_of(cls: type[io.ComfyNode], given: Sequence[int] | None, count: int) -> list[int | None]:
    """The seeds given, one for all or one an image; or else that of the sampler upstream."""
    if given is None:
        return [find_seed(cls.hidden.prompt or {}, cls.hidden.unique_id, "images")] * count
    if len(given) not in (1, count):
        raise ValueError(f"seed: {len(given)} seeds for {count} images; give one, or one an image")
    return list(given) * count if len(given) == 1 else list(given)


def graph_texts(cls: type[io.ComfyNode]) -> dict[str, str]:
    """The prompt and the workflow, as Save Image keeps them in its files."""
    if args.disable_metadata:
        return {}
    texts = {"prompt": cls.hidden.prompt} if cls.hidden.prompt else {}
    return {
        key: json.dumps(value) for key, value in (texts | (cls.hidden.extra_pnginfo or {})).items()
    }


def score_texts(score: float, card: ScorerCard, seed: int | None) -> dict[str, str]:
    """The text `tastemaker`: JSON of what judged a picture, and how."""
    if args.disable_metadata:
        return {}
    facts = {
        "score": score if math.isfinite(score) else None,
        "scorer": card.name,
        "task": card.task,
        "fingerprint": card.fingerprint_id,
        "seed": seed,
    }
    return {"tastemaker": json.dumps(facts)}


def to_file(picture: Tensor) -> Image.Image:
    """[H, W, C] in [0, 1] to the picture that Save Image would write, alpha and all."""
    rgb = to_pil(picture)
    if picture.shape[-1] == 4:
        rgb.putalpha(to_pil(picture[..., 3:]).getchannel(0))
    return rgb


def saved_result(path: Path) -> ui.SavedResult:
    subfolder = path.parent.relative_to(output_folder()).as_posix()
    return ui.SavedResult(path.name, "" if subfolder == "." else subfolder, io.FolderType.output)
