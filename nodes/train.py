"""Train Personal Scorer: a head of the user's own on a scorer, from comparisons."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import comfy.model_management as mm
import comfy.utils
import folder_paths
from comfy_api.latest import io, ui
from PIL import Image

from ..preferences.train import SAME, train
from ..report.names import inside
from ..scorers import Scorer
from ..scorers.home import home
from ..scorers.load import NAMES
from .folders import FOLDER, PREFIX, cached_checkpoints, local_checkpoints, resolve, signature
from .images import from_pil
from .managed import managed
from .sockets import CATEGORY, SCORER, Chosen, chosen

FILE = "a file"
PAGE = "voting page: "  # and the name of what it keeps
NO_BASES = ("q-realign", "ensemble")  # kinds without an embedding


class TrainPersonalScorer(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerTrainPersonalScorer",
            display_name="Train Personal Scorer",
            category=CATEGORY,
            description="Learns your taste from comparisons of pictures, in seconds, and makes a "
            "scorer of it, which Load Scorer lists from then on.",
            search_aliases=[
                "preference",
                "fine-tune",
                "own taste",
                "votes",
                "learn",
                "reward model",
            ],
            is_output_node=True,
            inputs=[
                io.DynamicCombo.Input(
                    "votes",
                    options=[
                        io.DynamicCombo.Option(FILE, [_path_input()]),
                        *(io.DynamicCombo.Option(PAGE + name, []) for name in _stores()),
                    ],
                    tooltip="The comparisons: a file, or the votes that `tastemaker vote` keeps of a "
                    "folder. Press R after voting on another folder.",
                ),
                io.Combo.Input(
                    "base",
                    options=_bases(),
                    tooltip="Whose eyes it sees with. nano: technical quality only, in seconds. "
                    "joyquality, rali: what the pictures show as well.",
                ),
                io.String.Input(
                    "name",
                    default="my-taste",
                    tooltip=f"Its folder in {PREFIX}, and its name in Load Scorer.",
                ),
                io.Float.Input(
                    "test_fraction",
                    default=0.1,
                    min=0.0,
                    max=0.5,
                    step=0.05,
                    tooltip="Share of the comparisons that are held out, to measure it on images "
                    "that it never saw. 0: off, all are trained on, and cross-validation measures.",
                ),
                io.Boolean.Input(
                    "overwrite",
                    default=False,
                    tooltip="Replace the personal scorer of this name. Off: refuse, unless it was "
                    "made of the same comparisons and base, with the same choice of robust.",
                ),
                io.String.Input(
                    "voter",
                    default="",
                    optional=True,
                    tooltip="Whose votes, where a store holds those of several. Empty: of the only "
                    "one who voted.",
                ),
                io.Boolean.Input(
                    "robust",
                    default=True,
                    optional=True,
                    tooltip="JPEG and low-resolution copies of your pictures stay below them, whatever "
                    "the votes say. Off: by the votes alone, which it then guesses better.",
                ),
            ],
            outputs=[
                SCORER.Output(display_name="scorer", tooltip="The personal scorer."),
                io.String.Output(
                    display_name="report",
                    tooltip="How often it is right, and its base; what was noticed.",
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        base: str,
        name: str,
        test_fraction: float,
        overwrite: bool,
        votes: Chosen | None = None,
        voter: str = "",
        robust: bool = True,
    ) -> io.NodeOutput:
        folder, source = destination(name), resolve(base)
        made = train(
            *(votes_file(votes), source, folder),
            voter=voter.strip() or None,
            test_fraction=test_fraction,
            robust=robust,
            overwrite=overwrite or SAME,
            load=lambda images: _load(source, images),
            progress=_progress(),
        )
        report = "\n".join(
            [*made.lines(), f"Load Scorer has it as {PREFIX}{folder.name} (press R)."]
        )
        plot = made.plot()
        shown = ui.PreviewImage(from_pil(plot), cls=cls).as_dict() if plot else {}
        scorer = managed(folder, signature(folder), task="quality", dtype="auto")
        return io.NodeOutput(scorer, report, ui={**shown, "text": (report,)})

    @classmethod
    def fingerprint_inputs(cls, base: str, votes: Chosen | None = None, **named: object) -> tuple:
        """It trains again when the comparisons or the base have changed."""
        try:
            file = votes_file(votes)
            # What a store was told last may still be in its log.
            logs = [path for end in ("", "-wal") if (path := Path(f"{file}{end}")).is_file()]
            digest = hashlib.sha256(b"".join(path.read_bytes() for path in logs)).hexdigest()
            return (digest, *signature(resolve(base)))
        except (OSError, ValueError):
            return ()  # `execute` says what is wrong


def votes_file(votes: Chosen | None) -> Path:
    """The file that was chosen; ValueError if none was."""
    found = chosen(votes, "votes")
    if found["votes"] != FILE:
        return _folder() / found["votes"].removeprefix(PAGE)
    path = found["path"].strip().strip('"')
    if not path:
        raise ValueError("votes: give the path of a .csv, .json or .sqlite of comparisons")
    return Path(folder_paths.get_input_directory(), Path(path).expanduser())


def destination(name: str) -> Path:
    """The folder of that name; ValueError if it is no plain name, or leads elsewhere."""
    name = name.strip()
    if "/" in name or name.startswith(".") or Path(name).suffix in (".json", ".safetensors", ".pt"):
        raise ValueError(f"name: must be a plain name without / or an ending, got {name!r}")
    try:
        return inside(folder_paths.get_folder_paths(FOLDER)[0], name)
    except ValueError as error:
        raise ValueError(f"name: {error}") from None


def _load(source: str | Path, images: Sequence[Path]) -> Scorer:
    """The base on its device, with memory beside it for a batch of the largest of the images."""
    base = managed(source, signature(source), task="quality", dtype="auto")
    _, memory = base.plan(base.scorer.default_batch_size, *_largest(images))
    return base.load(memory)


def _largest(images: Sequence[Path]) -> tuple[int, int]:
    """(height, width) of the picture with the most pixels, as far as they can be opened."""
    sizes = [(1, 1)]
    for path in images:
        try:
            with Image.open(path) as picture:
                sizes.append(picture.size[::-1])
        except (OSError, ValueError, Image.DecompressionBombError):
            continue  # whoever embeds it says what is wrong
    return max(sizes, key=lambda size: size[0] * size[1])


def _progress():
    """Shows how many images are embedded; an interrupt is heard after each."""
    bar = comfy.utils.ProgressBar(1)

    def show(done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        bar.update_absolute(done, total)

    return show


def _bases() -> list[str]:
    """What the menu of bases has: scorers with an embedding."""
    own = {name: name for name in NAMES if not name.startswith("q-realign")}
    known = own | local_checkpoints() | cached_checkpoints()
    return [name for name, kind in known.items() if kind not in NO_BASES]


def _stores() -> list[str]:
    """The files that the voting page keeps by itself."""
    return sorted(path.name for path in _folder().glob("*.sqlite"))


def _folder() -> Path:
    return home() / "votes"


def _path_input() -> io.Input:
    return io.String.Input(
        "path",
        default="",
        tooltip="A .csv with left,right,p, a .json of [left, right, 1, 0 or -1], or the --store of "
        "`tastemaker vote`; relative to ComfyUI's input folder. Pictures are relative to the file.",
    )
