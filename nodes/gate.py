"""Score Gate: images that come one to four at a time, judged by all that came before them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import folder_paths
from aiohttp import web
from comfy_api.latest import io
from torch import Tensor

from .. import ranking
from ..ranking import Gate
from ..ranking.gate import recent
from ..report.contact_sheet import format_score
from ..report.history import History
from .candidates import (
    COMPANIONS,
    IMAGES,
    OUTPUTS,
    SCORE_INPUTS,
    Candidates,
    lacks_scores,
    outcome,
    preview_of,
)
from .images import singles, to_pixels
from .sockets import CATEGORY, Scores


class ScoreGate(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerScoreGate",
            display_name="Score Gate",
            category=CATEGORY,
            description="Blocks the worst share of everything that it has ever seen: for queues that "
            "make a few images at a time. Its record is kept on disk, under a name.",
            search_aliases=["filter queue", "overnight", "reject worst", "quality gate", "history"],
            is_input_list=True,
            is_output_node=True,
            hidden=[io.Hidden.unique_id],
            inputs=[
                IMAGES,
                *SCORE_INPUTS,
                *COMPANIONS,
                io.String.Input(
                    "record",
                    default="default",
                    tooltip="Name of the record. Gates of one name share it; every scorer has its "
                    "own under the same name.",
                ),
                io.Float.Input(
                    "reject_share",
                    default=0.3,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Part of all images that is blocked: 0.3 blocks what falls in the lowest "
                    "30 % of the record. 0 blocks only what has no score.",
                ),
                io.Int.Input(
                    "warm_up",
                    default=20,
                    min=0,
                    max=100_000,
                    tooltip="Number of images that pass before the gate begins to block. 0: it blocks "
                    "from the first images on, which it can hardly judge.",
                ),
                io.Int.Input(
                    "window",
                    default=0,
                    min=0,
                    max=10_000_000,
                    tooltip="Number of latest images that count, for work whose level changes. "
                    "0: all count.",
                ),
            ],
            outputs=[
                *OUTPUTS,
                io.Float.Output(
                    display_name="percentiles",
                    is_output_list=True,
                    tooltip="Share of the record below each image, 0 to 100; NaN without a score.",
                ),
            ],
        )

    @classmethod
    def validate_inputs(cls, images, scores=None, scorer=None) -> str | bool:
        return lacks_scores(scores, scorer)

    @classmethod
    def fingerprint_inputs(cls, record: list[str | None], **others) -> int:
        """After a reset, images that are known are judged anew."""
        # Which record is not known yet where the name is connected.
        return history().generation(_name(record)) if record[0] else history().changes()

    @classmethod
    def execute(
        cls, images, record, reject_share, warm_up, window, scores=None, scorer=None, **others
    ) -> io.NodeOutput:
        candidates = Candidates(images, **others)
        scored = candidates.scores(scores, scorer)
        values, digests = scored.values, [digest(p) for p in singles(images)]
        fingerprint = scored.card.fingerprint_id
        past = history().add(_name(record), fingerprint, digests, values.tolist())
        how = {"reject_share": reject_share[0], "warm_up": warm_up[0], "window": window[0]}
        found = ranking.gate(values, past.scores, past.known, **how)
        text = describe(found, scored, len(past.scores), warm_up[0], _name(record))
        tell(text, cls.hidden.unique_id)
        shown = _preview(candidates, found, scored, recent(past.scores, window[0]), text, cls)
        percentiles = found.percentiles.tolist()
        return outcome(candidates, found.selection, scored, percentiles, shown=shown)


def history() -> History:
    """The records of this ComfyUI's user folder; servers that share the folder share them."""
    return History(Path(folder_paths.get_user_directory()) / "tastemaker" / "gate.sqlite")


def digest(picture: Tensor) -> bytes:
    """What tells [H, W, C] pictures apart: the pixels that Save Image would write."""
    pixels = to_pixels(picture.nan_to_num(0, 0, 0)).contiguous().cpu()
    return hashlib.sha256(str(list(pixels.shape)).encode() + pixels.numpy().tobytes()).digest()


def describe(found: Gate, scores: Scores, count: int, warm_up: int, name: str) -> str:
    """The decision in one line."""
    kept = len(found.selection.kept)
    first = f"{kept} of {len(scores)} kept"
    if len(scores) == 1:
        value = format_score(float(scores.values[0]))
        first = f"{'kept' if kept else 'blocked'}: {value}"
    if count <= warm_up:
        return f"{first}; {name} is warming up, {count} of {warm_up}"
    return f"{first}; {name} has {count} scores, kept from {format_score(found.cut)}"


def tell(text: str, node: str) -> None:
    """Shows a line on a node: of a node's `ui`, the page shows text only in nodes that it knows."""
    from server import PromptServer

    server = PromptServer.instance
    server.send_progress_text(text, node, server.client_id)


def _preview(
    candidates: Candidates, found: Gate, scores: Scores, record: Tensor, text: str, cls: type
) -> dict[str, Any]:
    """The images over the record, its cut and their places in it; below them the line."""
    ranks = [int((record > score).sum()) + 1 for score in scores.values.double()]
    title = text.split(";")[0] if len(scores) > 1 else text.split(":")[0]
    notes = ["" if p != p else f"above {p:.0f} %" for p in found.percentiles.tolist()]
    how = {"ranks": ranks, "notes": notes, "record": record.tolist(), "cut": found.cut}
    picture = preview_of(candidates, found.selection, scores, cls, title=title, **how)
    return {**(picture.as_dict() if picture else {}), "text": (text,)}


def _name(record: list[str]) -> str:
    return record[0].strip()


async def _answer(request: web.Request, act: Callable[[str], int]) -> web.Response:
    """Does what the node's menu asks for with the record {"record": name}; {"scores": number}."""
    try:
        name = (await request.json())["record"].strip()
        return web.json_response({"scores": await asyncio.to_thread(act, name)})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return web.json_response({"error": str(error)}, status=400)


def register_routes() -> None:
    """What the buttons of the node ask for; needs a running server, so not at import."""
    from server import PromptServer

    routes = PromptServer.instance.routes
    for act in ("count", "reset", "undo_reset"):

        async def answer(request: web.Request, act: str = act) -> web.Response:
            return await _answer(request, getattr(history(), act))

        routes.post(f"/tastemaker/gate/{act}")(answer)
