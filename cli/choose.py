"""`tastemaker choose`: which pictures to compare, and with which, for few votes that go far."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..wording import counted
from .beside import refuse_foreign
from .options import EXISTING_FILE, OUTPUT_FILE, ScorerOptions, device_options, load_from_options

if TYPE_CHECKING:
    from torch import Tensor

    from ..preferences.directions import Directions


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
    from ..preferences.comparisons import is_unanswered, write_pairs
    from ..preferences.directions import read_directions
    from ..preferences.pairing import fixed_k_pairs

    refuse_foreign(out, "file of pairs without answers", is_unanswered)
    options = replace(options, scorer=base)
    files = _pictures(paths)
    wanted = len(files) if images is None else images
    if not per_image < wanted <= len(files):
        raise ValueError(
            f"of {len(files)} pictures, --images must be {per_image + 1} to {len(files)} "
            f"for --per-image {per_image}, got {wanted}"
        )
    x = read_directions(embeddings, files) if embeddings else _embedded(files, options)
    if wanted < len(files):
        groups = _groups(files, x, options, balance, clusters, seed)
        files, x = _chosen(files, x, wanted, groups, seed)
    pairing = fixed_k_pairs(x, per_image, random, seed=seed)
    write_pairs(out, ((files[i], files[j]) for i, j in pairing.pairs.tolist()))
    near = int(pairing.near.sum())
    click.echo(
        f"{counted(len(pairing.pairs), 'pair')} of {wanted} pictures, {near} of them similar, in {out}\n"
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


def _chosen(
    files: Sequence[Path], x: Tensor | Directions, count: int, groups: Tensor | None, seed: int
) -> tuple[list[Path], Tensor | Directions]:
    """So many of the pictures, far apart, with their embeddings."""
    from torch import Tensor

    from ..preferences.select import farthest_points

    chosen = sorted(farthest_points(x, count, seed=seed, groups=groups).tolist())
    taken = x[chosen] if isinstance(x, Tensor) else x.take(chosen)
    return [files[i] for i in chosen], taken


def _groups(
    files: Sequence[Path],
    x: Tensor | Directions,
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
