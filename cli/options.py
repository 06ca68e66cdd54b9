"""The options that commands share: which scorer, which pictures, whose scores. Imports no torch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

if TYPE_CHECKING:
    from ..scorers import Scorer

TASKS = ("quality", "aesthetics", "video")
EXISTING_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
OUTPUT_FILE = click.Path(dir_okay=False, path_type=Path)


@dataclass(frozen=True)
class ScorerOptions:
    """Which scorer, loaded how. None is the scorer's own default."""

    scorer: str = "nano"
    task: str = "quality"
    device: str | None = None
    dtype: str = "auto"
    batch_size: int | None = None
    max_pixels: int | None = None
    prompt_style: str | None = None
    revision: str | None = None


@dataclass(frozen=True)
class SourceOptions:
    """Which pictures, and scores of which making."""

    paths: tuple[str, ...] = ()
    journal: Path | None = None
    scores: Path | None = None
    retry_errors: bool = False


_DEVICE = (
    click.option("--device", help="cpu, cuda, cuda:1... By default the GPU when there is one."),
    click.option(
        "--dtype",
        default="auto",
        show_default=True,
        help="auto is the checkpoint's own on a GPU, float32 on the CPU; or checkpoint, float32, "
        "float16, bfloat16.",
    ),
    click.option(
        "--batch-size",
        type=click.IntRange(min=1),
        help="Images a forward pass; halved when memory runs out.",
    ),
    click.option(
        "--max-pixels", type=click.IntRange(min=1), help="Q-ReAlign: larger images are reduced."
    ),
    click.option(
        "--prompt-style",
        type=click.Choice(["card", "closed_think", "upstream"]),
        help="Q-ReAlign: whose prompt. [default: card]",
    ),
    click.option("--revision", help="Commit, tag or branch of a hub checkpoint."),
)
_SCORER = (
    click.option(
        "--scorer",
        default="nano",
        show_default=True,
        help="A name (nano, joyquality, rali, q-realign-mini, -lite, -pro), a checkpoint folder, "
        "an ensemble's .json, or a hub id.",
    ),
    click.option(
        "--task",
        default="quality",
        show_default=True,
        type=click.Choice(TASKS),
        help="What to judge, where the scorer has several.",
    ),
)
_SOURCE = (
    click.argument("paths", nargs=-1, metavar="[PATHS]..."),
    click.option(
        "--from-file",
        "lists",
        multiple=True,
        metavar="LIST",
        help="A file with one path a line, as @LIST among the PATHS; - is standard input.",
    ),
    click.option(
        "--journal",
        type=OUTPUT_FILE,
        help="Where scores are kept. [default: one journal per fingerprint in your data folder]",
    ),
    click.option("--retry-errors", is_flag=True, help="Try again what failed before."),
)
_SCORES = click.option(
    "--scores",
    type=EXISTING_FILE,
    help="Use these scores (.csv, .jsonl, .parquet or a journal) instead of scoring; "
    "without PATHS, all of them.",
)


def scorer_options(command: Callable) -> Callable:
    """Adds --scorer, --task, --device...; the command receives `options: ScorerOptions`."""
    return _bundled(command, (*_SCORER, *_DEVICE), "options", ScorerOptions)


def device_options(command: Callable) -> Callable:
    """As `scorer_options`, without --scorer and --task: for commands with scorers of their own."""
    return _bundled(command, _DEVICE, "options", ScorerOptions)


def source_options(command: Callable) -> Callable:
    """Adds PATHS, --from-file, --journal, --retry-errors; the command receives `source`."""
    return _bundled(command, _SOURCE, "source", SourceOptions)


def scores_options(command: Callable) -> Callable:
    """As `source_options`, with --scores FILE: for commands that take existing scores too."""
    return _bundled(command, (*_SOURCE, _SCORES), "source", SourceOptions)


def load_from_options(options: ScorerOptions) -> Scorer:
    """The scorer. Raises what `load_scorer` raises."""
    from ..scorers import load_scorer

    return load_scorer(device=options.device, dtype=options.dtype, **load_arguments(options))


def with_scorer(options: ScorerOptions, scorer: str) -> ScorerOptions:
    """NAME or NAME=TASK. A folder may have an equals sign in its name, so only tasks are cut off."""
    name, _, task = scorer.rpartition("=")
    if name and task in TASKS:
        return replace(options, scorer=name, task=task)
    return replace(options, scorer=scorer)


def load_arguments(options: ScorerOptions) -> dict[str, Any]:
    """Arguments of `load_scorer` that say what is loaded, not where. What was not given is left out."""
    from ..scorers import NAMES

    path, name = Path(options.scorer).expanduser(), options.scorer
    if name not in NAMES and path.exists():
        name = str(path.absolute())
    given = {
        "revision": options.revision,
        "max_pixels": options.max_pixels,
        "prompt_style": options.prompt_style,
    }
    given = {key: value for key, value in given.items() if value is not None}
    return {"name_or_path": name, "task": options.task, **given}


def _refuse_unread() -> None:
    """Raises click.UsageError for options of a scorer beside --scores, where none is loaded."""
    context = click.get_current_context()
    unread = [field.name for field in fields(ScorerOptions)] + ["journal", "retry_errors"]
    for parameter in context.command.params:
        given = context.get_parameter_source(parameter.name) is ParameterSource.COMMANDLINE
        if given and parameter.name in unread:
            raise click.UsageError(
                f"--scores has the scores: {parameter.opts[0]} would not be read"
            )


def _bundled(command: Callable, options: tuple[Callable, ...], name: str, kind: type) -> Callable:
    """`command` with `options` added, whose values it receives as one `kind` called `name`."""
    names = {field.name for field in fields(kind)}

    @functools.wraps(command)
    def bundling(**values: Any):
        if "lists" in values and kind is SourceOptions:
            values["paths"] += tuple(f"@{name}" for name in values.pop("lists"))
        own = {key: values.pop(key) for key in names & values.keys()}
        if own.get("scores"):
            _refuse_unread()
        return command(**values, **{name: kind(**own)})

    for option in reversed(options):
        bundling = option(bundling)
    return bundling
