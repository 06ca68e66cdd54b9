"""The checkpoints that a user has: in `models/tastemaker/` and in the hub's cache."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import folder_paths

from ..scorers.checkpoint import hub_id_of
from ..scorers.load import KINDS

FOLDER = "tastemaker"
PREFIX = f"models/{FOLDER}/"  # how the menu names what lies there


def register_folder() -> None:
    """Makes `models/tastemaker/` known to ComfyUI, so that extra_model_paths.yaml can add others."""
    folder = os.path.join(folder_paths.models_dir, FOLDER)
    os.makedirs(folder, exist_ok=True)
    folder_paths.add_model_folder_path(FOLDER, folder)


def local_checkpoints() -> dict[str, str]:
    """Name in the menu -> kind, of everything loadable in `models/tastemaker/`."""
    found = {}
    for root in map(Path, folder_paths.get_folder_paths(FOLDER)):
        entries = sorted(root.iterdir()) if root.is_dir() else []
        for path in entries:
            if kind := _kind(path):
                found.setdefault(PREFIX + path.name, kind)
    return found


def cached_checkpoints() -> dict[str, str]:
    """Hub id -> kind, of the checkpoints in the hub's cache that are scorers'."""
    from huggingface_hub.constants import HF_HUB_CACHE

    found = {}
    for config in sorted(Path(HF_HUB_CACHE).glob("models--*--*/snapshots/*/config.json")):
        kind = _kind(config.parent)
        if kind and (name := hub_id_of(config.parent)):
            found[name] = kind
    return found


def resolve(name: str) -> str | Path:
    """What `load_scorer` takes for a name in the menu. FileNotFoundError if it is gone."""
    if not name.startswith(PREFIX):
        return name
    for root in folder_paths.get_folder_paths(FOLDER):
        path = Path(root) / name.removeprefix(PREFIX)
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is no longer there: press R to refresh the list")


def signature(path: str | Path) -> tuple:
    """Changes whenever the files of a local checkpoint do; empty for names and hub ids."""
    if not isinstance(path, Path):
        return ()
    return tuple(
        (file.name, status.st_size, status.st_mtime_ns)
        for file in sorted(_files(path))
        if (status := file.stat())
    )


def _files(path: Path) -> Iterator[Path]:
    return (file for file in path.iterdir() if file.is_file()) if path.is_dir() else iter([path])


def _kind(path: Path) -> str | None:
    """What kind of scorer a folder or file is; None if it is none."""
    if path.suffix in (".safetensors", ".pt"):
        return "joyquality"  # the training format is a single file
    try:
        if path.suffix == ".json":
            return "ensemble" if _read(path).get("tastemaker") == "reference" else None
        config = _read(path / "config.json")
        return KINDS.get(config.get("tastemaker") or config.get("model_type"))
    except (OSError, ValueError, AttributeError, TypeError):
        return None  # not a checkpoint, or not readable: other files may lie here


def _read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
