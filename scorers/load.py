"""`load_scorer`: a name, a local folder or file, or a hub id to a scorer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from .base import Scorer
from .checkpoint import fetch, read_config

HUB_IDS = {
    "joyquality": "fancyfeast/joyquality-siglip2-so400m-512-16-o8eg1n4c",
    "q-realign-mini": "q-future/Q-ReAlign-Mini-0.8B",
    "q-realign-lite": "q-future/Q-ReAlign-Lite-4B",
    "q-realign-pro": "q-future/Q-ReAlign-Pro-9B",
}
NAMES = ("nano", "joyquality", "rali", "q-realign-mini", "q-realign-lite", "q-realign-pro")


# What a checkpoint's config.json says it is ("tastemaker", or "model_type") -> the scorer.
KINDS = {
    "nano": "nano",
    "rali": "rali",
    "siglip": "joyquality",
    "joyquality": "joyquality",
    "qwen3_5": "q-realign",
    "personal": "personal",
}


def load_scorer(
    name_or_path: str | Path = "nano",
    *,
    task: str = "quality",
    device: str | torch.device | None = None,
    dtype: str | torch.dtype = "auto",
    revision: str | None = None,
    **options: Any,
) -> Scorer:
    """Loads a scorer.

    Args:
        name_or_path: "nano" (embedded, no download), "joyquality", "rali", "q-realign-mini",
            "q-realign-lite", "q-realign-pro"; a checkpoint folder or file, whose kind is read from
            its own configuration; the .json of an ensemble, from `tastemaker calibrate`; or a hub id
            such as "someone/their-fine-tune".
        task: what to judge, where the scorer has several: "quality", "aesthetics" or "video".
        device: where it runs; by default the GPU when there is one.
        dtype: "auto" is the checkpoint's own on a GPU and float32 on the CPU; "checkpoint" is the
            checkpoint's own wherever it is; or a torch dtype or its name.
        revision: commit, tag or branch of a hub checkpoint. By default the commit that was first
            downloaded stays in use.
        options: the scorer's own, e.g. `max_pixels` and `prompt_style` of Q-ReAlign.

    Raises:
        FileNotFoundError: no such folder, or neither cached nor downloadable.
        ValueError: a device that is not there; a revision of what comes from no hub; a checkpoint
            that is damaged or of another kind.
        TypeError: an option that the scorer does not have.
    """
    device = _device(device)
    common = dict(task=task, device=device, dtype=_dtype(dtype, device), **options)
    if str(name_or_path) == "nano":
        _no_revision(name_or_path, revision)
        from .nano import load_nano

        return load_nano(None, revision=None, **common)
    path, revision = _locate(name_or_path, revision)
    return _loader(path)(path, revision=revision, **common)


def _device(device: str | torch.device | None) -> torch.device:
    """The device; by default the GPU when there is one. Raises ValueError for one that is not there."""
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(0, device=found)  # a name of a device may be right and none be here
    except (RuntimeError, AssertionError, ImportError):
        gpus = [f"cuda:{i}" for i in range(torch.cuda.device_count())]
        there = {"mps": torch.backends.mps.is_available(), "xpu": torch.xpu.is_available()}
        others = [kind for kind, here in there.items() if here]
        known = ", ".join(["cpu", *gpus, *others])
        raise ValueError(f"no device {str(device)!r} for this torch (there are: {known})") from None
    return found


def _no_revision(name_or_path: str | Path, revision: str | None) -> None:
    if revision is not None:
        raise ValueError(
            f"revision {revision!r} is for hub checkpoints: {name_or_path} comes from no hub"
        )


def _dtype(dtype: str | torch.dtype, device: torch.device) -> torch.dtype | None:
    """The torch dtype; None for the checkpoint's own."""
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else None
    if dtype == "checkpoint":
        return None
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        known = '"auto", "checkpoint" or a floating-point torch dtype'
        raise ValueError(f"dtype must be {known}, got {dtype!r}")
    return found


def _locate(name_or_path: str | Path, revision: str | None) -> tuple[Path, str | None]:
    """The checkpoint's folder or file, and the hub commit it came from."""
    name = str(name_or_path)
    if name == "rali":
        from .rali import converted_folder

        _no_revision(name, revision)
        return converted_folder(), None
    if name in HUB_IDS:
        return fetch(HUB_IDS[name], revision)
    path = Path(name_or_path).expanduser()
    if path.exists():
        _no_revision(name, revision)
        return path, None
    if (
        isinstance(name_or_path, str)
        and name.count("/") == 1
        and not name.startswith((".", "~", "/"))
    ):
        return fetch(name, revision)
    raise FileNotFoundError(f"no such scorer or folder: {name} (names: {', '.join(NAMES)})")


def _loader(path: Path):
    """The loader for a checkpoint, chosen by its own configuration."""
    if path.suffix == ".json":
        from .ensemble import load_ensemble

        return load_ensemble
    from . import joyquality, nano, personal, qrealign, rali

    if path.is_file():
        return joyquality.load_joyquality  # the training format is a single file
    if (path / "ckpt.pt").exists() and (path / "pca.pkl").exists():
        raise ValueError(
            f"{path} is the RALI release: run `tastemaker convert rali {path} OUT` first"
        )
    config = read_config(path)
    kind = config.get("tastemaker") or config.get("model_type")
    loaders = {
        "nano": nano.load_nano,
        "rali": rali.load_rali,
        "joyquality": joyquality.load_joyquality,
        "q-realign": qrealign.load_qrealign,
        "personal": personal.load_personal,
    }
    if kind not in KINDS:
        raise ValueError(f"{path} is no checkpoint of a known scorer (model_type: {kind!r})")
    return loaders[KINDS[kind]]
