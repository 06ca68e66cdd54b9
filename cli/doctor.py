"""`tastemaker doctor`: what is installed, what runs where, and whether a scorer behaves."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import click

from .options import ScorerOptions, load_from_options, scorer_options

if TYPE_CHECKING:
    from torch import Tensor

    from ..scorers import Scorer, ScorerCard

PACKAGES = (
    *("transformers", "safetensors", "huggingface-hub", "numpy", "pillow"),
    *("flash-linear-attention", "av", "pyarrow"),
)
OPTIONAL = {"av": "videos", "pyarrow": "Parquet", "flash-linear-attention": "faster Q-ReAlign"}
TOLERANCE = 1e-5  # batch = alone, in float32


@click.command("doctor")
@scorer_options
def command(options: ScorerOptions) -> None:
    """Report versions, the device and its kernels, a scorer's card, prompt and fingerprint, and
    test it on a built-in picture. Send this along with a bug report."""
    from .. import __version__
    from ..scorers.home import home

    click.echo(
        f"tastemaker {__version__}, Python {platform.python_version()}, {platform.platform()}"
    )
    for line in (*installed(), *devices()):
        click.echo(line)
    click.echo(f"data: {home()}\n")
    scorer = load_from_options(options)
    for line in described(scorer.card):
        click.echo(line)
    if prompt := getattr(scorer, "rendered_prompt", None):
        click.echo(f"prompt: {prompt!r}")
    click.echo(f"device: {scorer.device}\n")
    if not self_test(scorer):
        raise SystemExit(1)


def installed() -> Iterator[str]:
    """A line for each package that matters; torch's own version names its build."""
    import torch

    yield f"torch {torch.__version__}"
    for package in PACKAGES:
        try:
            yield f"{package} {version(package)}"
        except PackageNotFoundError:
            yield f"{package} is not installed (optional: {OPTIONAL.get(package, 'required')})"


def devices() -> Iterator[str]:
    """Processors, memory, and the attention kernels that torch may choose from."""
    import torch

    yield f"CPU: {os.cpu_count()} processors, torch uses {torch.get_num_threads()} threads"
    for i in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(i)
        name, (major, minor) = torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)
        yield f"cuda:{i}: {name}, sm_{major}{minor}, {_gib(free)} of {_gib(total)} free"
    if torch.backends.mps.is_available():
        yield "mps: available"
    if torch.cuda.is_available():
        backends = torch.backends.cuda
        enabled = {
            "flash": backends.flash_sdp_enabled(),
            "memory-efficient": backends.mem_efficient_sdp_enabled(),
            "cuDNN": backends.cudnn_sdp_enabled(),
            "math": backends.math_sdp_enabled(),
        }
        yield f"attention kernels: {', '.join(name for name, on in enabled.items() if on)}"


def described(card: ScorerCard) -> Iterator[str]:
    """The card, a line for each thing that it states."""
    others = f" of {', '.join(card.tasks)}" if len(card.tasks) > 1 else ""
    yield f"scorer: {card.name} (task {card.task}{others})"
    low, high = card.range
    span = f"{low:g} to {high:g}" if math.isfinite(high - low) else "without bounds"
    yield f"score: {card.unit}; {span}, {card.direction}"
    yield f"can: {', '.join(card.capabilities) or 'nothing more'}"
    yield f"weights: {card.parameters:,} parameters, {card.memory / 2**20:,.1f} MiB"
    for name in ("licence", "hub_id", "revision", "paper", "limits", "out_of_scope"):
        if getattr(card, name):
            yield f"{name.replace('_', ' ')}: {getattr(card, name)}"
    yield f"fingerprint {card.fingerprint_id}: {json.dumps(dict(card.fingerprint), indent=2)}"


def self_test(scorer: Scorer) -> bool:
    """Scores a built-in picture alone and in a batch. False where that differs too much."""
    picture = test_picture()
    alone = float(scorer.score([picture]))
    batch = scorer.score([picture.flip(2), picture, picture.flip(1)], batch_size=3)
    difference = abs(float(batch[1]) - alone)
    exact = scorer.card.fingerprint["dtype"] == "float32"
    good = alone == alone and difference <= (TOLERANCE if exact else float("inf"))
    verdict = ("ok" if good else "WRONG") if exact else "not judged below float32"
    click.echo(f"self-test: {alone:.6f}; in a batch {difference:.1e} away: {verdict}")
    return good


def test_picture() -> Tensor:
    """A picture by formula, uint8 [3, 192, 256]: smooth colours, an edge, a fine texture."""
    import torch

    y, x = torch.meshgrid(torch.arange(192), torch.arange(256), indexing="ij")
    smooth = torch.stack([x * 255 // 255, y * 255 // 191, (x + y) * 255 // 446])
    edge = 60 * ((x // 32 + y // 32) % 2)
    texture = (x * 7919 + y * 104729) % 31
    return (smooth * 160 // 255 + edge + texture).clamp(0, 255).to(torch.uint8)


def _gib(count: int) -> str:
    return f"{count / 2**30:.1f} GiB"
