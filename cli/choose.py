"""`tastemaker choose`: which pictures to compare, and with which, for few votes that go far."""

from __future__ import annotations

import csv
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import EXISTING_FILE, OUTPUT_FILE, ScorerOptions, device_options, load_from_options

if TYPE_CHECKING:
    from torch import Tensor

HEADER = ["left", "right", "p"]


@click.command("choose")
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("--out", type=OUTPUT_FILE, required=True, help="The pairs: a CSV of left,right,p.")
@click.option(
    "--images", type=click.IntRange(min=2), help="So many of them, far apart. [default: all]"
)
@click.option(
    "--per-image",
    type=click.IntRange(min=1),
    default=4,
    show_default=True,
    help="In how many pairs each picture is.",
)
@click.option(
    "--random",
    type=click.FloatRange(0, 1),
    default=0.3,
    show_default=True,
    help="Share of the pairs drawn at random; the others are of similar pictures.",
)
@click.option(
    "--base",
    default="nano",
    show_default=True,
    help="The scorer whose embedding says what is similar. Nano's is technical: it knows sharp from "
    "soft, not cats from dogs.",
)
@click.option(
    "--embeddings",
    type=EXISTING_FILE,
    help="Your own instead, of content, such as CLIP's or SigLIP's: a .npy with one row a picture "
    'in the order of PATHS, or a .safetensors with "embeddings" and, in its metadata, "paths", a '
    "JSON list. They are compared by angle.",
)
@click.option(
    "--balance",
    is_flag=True,
    help="As many pictures of each tenth of the range of the base's scores.",
)
@click.option(
    "--clusters", type=click.IntRange(min=2), help="As many pictures of each of so many clusters."
)
@click.option("--seed", type=int, default=0, show_default=True)
@device_options
def command(
    paths: tuple[str, ...],
    out: Path,
    images: int | None,
    per_image: int,
    random: float,
    base: str,
    embeddings: Path | None,
    balance: bool,
    clusters: int | None,
    seed: int,
    options: ScorerOptions,
) -> None:
    """Choose pictures, and pairs of them, to compare.

    The pictures are chosen far apart in an embedding, so that few cover many. Each is then in the
    same number of pairs, most of them with similar pictures. Vote on them with
    `tastemaker vote OUT`, which asks the pairs in the order of the file: any first part of it is a
    fair part of the whole.
    """
    if balance and clusters:
        raise click.UsageError("give one of --balance and --clusters")
    from ..preferences.pairing import fixed_k_pairs
    from ..preferences.select import farthest_points

    options = replace(options, scorer=base)
    files = _pictures(paths)
    wanted = len(files) if images is None else images
    if not per_image < wanted <= len(files):
        raise ValueError(
            f"of {len(files)} pictures, --images must be {per_image + 1} to {len(files)} "
            f"for --per-image {per_image}, got {wanted}"
        )
    x = _given(embeddings, files) if embeddings else _embedded(files, options)
    chosen = list(range(len(files)))
    if wanted < len(files):
        groups = _groups(files, x, options, balance, clusters, seed)
        chosen = sorted(farthest_points(x, wanted, seed=seed, groups=groups).tolist())
    pairing = fixed_k_pairs(x[chosen], per_image, random, seed=seed)
    _write(out, [(files[chosen[i]], files[chosen[j]]) for i, j in pairing.pairs.tolist()])
    near = int(pairing.near.sum())
    click.echo(
        f"{len(pairing.pairs)} pairs of {wanted} pictures, {near} of them similar, in {out}\n"
        f"Vote: tastemaker vote {click.format_filename(out)}"
    )


def _pictures(paths: Sequence[str]) -> list[Path]:
    """Each once, in order. Videos in folders are left out."""
    from ..scorers.video import is_video
    from .files import expand

    return list(dict.fromkeys(path for path in expand(paths) if not is_video(path)))


def _embedded(files: Sequence[Path], options: ScorerOptions) -> Tensor:
    """[N, D] of the base, every feature as wide as any other; kept on disk."""
    from ..preferences.embeddings import embed_images
    from ..preferences.head import Space

    scorer = load_from_options(options)
    shown = sys.stderr.isatty()
    found = embed_images(scorer, files, batch_size=options.batch_size, progress=shown)
    return Space.of(found)(found).float()


def _given(path: Path, files: Sequence[Path]) -> Tensor:
    """[N, D] of a file, of length 1 each; mapped rather than read as a whole until then.

    Raises:
        ValueError: another kind of file, or rows that are not of these pictures.
    """
    import torch.nn.functional as F

    found, names = _read_npy(path) if path.suffix == ".npy" else _read_safetensors(path)
    if found.ndim != 2:
        raise ValueError(f"embeddings must be [N, D], got {list(found.shape)} in {path}")
    if names is not None:
        rows = {os.path.abspath(path.parent / name): i for i, name in enumerate(names)}
        if missing := [file for file in files if str(file) not in rows]:
            raise ValueError(f"{path} has no row for {len(missing)} pictures, such as {missing[0]}")
        found = found[[rows[str(file)] for file in files]]
    if len(found) != len(files):
        raise ValueError(f"{path} has {len(found)} rows for {len(files)} pictures")
    return F.normalize(found.float(), dim=1)


def _read_npy(path: Path) -> tuple[Tensor, None]:
    import numpy as np
    import torch

    return torch.from_numpy(np.load(path, allow_pickle=False)), None


def _read_safetensors(path: Path) -> tuple[Tensor, list[str] | None]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = json.loads((file.metadata() or {}).get("paths", "null"))
            return file.get_tensor("embeddings"), names
    except SafetensorError as error:
        raise ValueError(f'{path} is no .npy or .safetensors with "embeddings": {error}') from None


def _groups(
    files: Sequence[Path],
    x: Tensor,
    options: ScorerOptions,
    balance: bool,
    clusters: int | None,
    seed: int,
) -> Tensor | None:
    from ..preferences import select

    if clusters:
        return select.clusters(x, clusters, seed=seed)
    if not balance:
        return None
    import torch

    from .scoring import scores_of

    # `./` keeps a file that is called @x, - or *.png from being read as something else.
    scores = scores_of([os.path.join(".", path) for path in files], options)
    return select.score_groups(torch.tensor(scores.values))


def _write(path: Path, pairs: Sequence[tuple[Path, Path]]) -> None:
    """Whole or not at all; pictures below the file's folder relative to it. p is for the votes."""
    from ..scorers.checkpoint import replacing

    folder = Path(os.path.abspath(path)).parent
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(HEADER)
            for pair in pairs:
                names = (p.relative_to(folder) if p.is_relative_to(folder) else p for p in pair)
                table.writerow([*map(str, names), ""])
