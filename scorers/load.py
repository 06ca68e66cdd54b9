"""`load_scorer`: a name, a local folder or file, or a hub id to a scorer."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch

from .base import Scorer
from .checkpoint import fetch, read_config
from .ensemble import load_ensemble
from .joyquality import load_joyquality
from .nano import load_nano
from .personal import load_personal
from .qrealign import load_qrealign
from .rali import converted_folder, load_rali


class Named(NamedTuple):
    """A scorer that has a name: its kind, and where on the hub it is, if it is there."""

    kind: str
    hub_id: str | None = None


NAMED = {
    "nano": Named("nano"),  # embedded
    "joyquality": Named("joyquality", "fancyfeast/joyquality-siglip2-so400m-512-16-o8eg1n4c"),
    "rali": Named("rali"),  # converted by the user
    "q-realign-mini": Named("q-realign", "q-future/Q-ReAlign-Mini-0.8B"),
    "q-realign-lite": Named("q-realign", "q-future/Q-ReAlign-Lite-4B"),
    "q-realign-pro": Named("q-realign", "q-future/Q-ReAlign-Pro-9B"),
}
NAMES = tuple(NAMED)
LOADERS = {
    "nano": load_nano,
    "joyquality": load_joyquality,
    "rali": load_rali,
    "q-realign": load_qrealign,
    "personal": load_personal,
    "ensemble": load_ensemble,
}
# What a checkpoint's config.json says it is ("tastemaker", or "model_type") -> its kind.
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
    common = dict(task=task, device=device, dtype=_dtype(dtype, device))
    named = NAMED.get(str(name_or_path))
    if named:
        _check_options(named.kind, options)  # before anything is downloaded
    path, revision = _locate(name_or_path, revision)
    kind = _kind(path) if path else "nano"
    _check_options(kind, options)
    return LOADERS[kind](path, revision=revision, **common, **options)


def _check_options(kind: str, options: Mapping[str, Any]) -> None:
    """Raises TypeError, naming the kind of scorer, for an option that it does not have."""
    parameters = inspect.signature(LOADERS[kind]).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return  # a personal scorer's are its base's
    common = ("revision", "task", "device", "dtype")
    own = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in common]
    if unknown := [name for name in options if name not in own]:
        raise TypeError(f"{kind} has no option {unknown[0]} (it has {', '.join(own) or 'none'})")


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
        known = '"auto", "checkpoint" or a floating-point dtype of torch such as "float16"'
        raise ValueError(f"dtype must be {known}, got {dtype!r}")
    return found


def _locate(name_or_path: str | Path, revision: str | None) -> tuple[Path | None, str | None]:
    """The checkpoint's folder or file, None if it is embedded, and the hub commit it came from."""
    name = str(name_or_path)
    if name in NAMED:
        if hub_id := NAMED[name].hub_id:
            return fetch(hub_id, revision)
        _no_revision(name, revision)
        return (converted_folder() if name == "rali" else None), None
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


def _kind(path: Path) -> str:
    """The kind of a checkpoint, by its own configuration."""
    if path.suffix == ".json":
        return "ensemble"
    if path.is_file():
        return "joyquality"  # the training format is a single file
    if (path / "ckpt.pt").exists() and (path / "pca.pkl").exists():
        raise ValueError(
            f"{path} is the RALI release: run `tastemaker convert rali {path} OUT` first"
        )
    config = read_config(path)
    said = config.get("tastemaker") or config.get("model_type")
    if not isinstance(said, str) or said not in KINDS:
        raise ValueError(f"{path} is no checkpoint of a known scorer (model_type: {said!r})")
    return KINDS[said]
