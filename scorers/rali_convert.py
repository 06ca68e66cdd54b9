"""The official RALI release (`ckpt.pt`, `pca.pkl`, `basis.npz`, `best/`) to one safetensors + config.

Nothing in the release is executed: `ckpt.pt` is read with `weights_only=True`, `pca.pkl` by
`rali_pca`, `basis.npz` without pickles. Of `best/` only the two configurations are read: its weights
are in `ckpt.pt` too, as fine-tuned.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import read_config, read_pickled_weights, write_checkpoint
from .messages import one_line
from .rali import HEAD, TOWER, Preprocessing, default_folder, make_rali
from .rali_pca import read_pca

FILES = ("ckpt.pt", "pca.pkl", "basis.npz", "best/config.json", "best/preprocessor_config.json")
BICUBIC = 3  # Pillow's number for it, as the file writes it
# Names in `ckpt.pt`, below `scorer.`, and in the result, below `anchors.`.
HEAD_NAMES = {
    "pca_scale": "scale",
    "pca_components": "components",
    "prototypes": "prototypes",
    "proto_scores": "scores",
    "logit_scale": "tau",
}


def convert_rali(folder: str | Path, out: str | Path | None = None) -> Path:
    """Converts the release in `folder`; returns the folder that `load_scorer` then reads.

    Args:
        folder: the release as downloaded.
        out: a folder that is new or empty; by default where `load_scorer("rali")` looks. It appears
            whole or not at all.

    Raises:
        FileNotFoundError: naming the files of the release that are missing.
        FileExistsError: `out` already holds something.
        ValueError: naming the file that is damaged, hostile or does not fit; nothing is written.
    """
    folder, out = Path(folder), Path(out) if out else default_folder()
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} is no RALI release: it lacks {', '.join(missing)}")
    if out.exists() and any(out.iterdir()):
        raise FileExistsError(f"{out} already holds something: remove it, or name another folder")
    state = read_pickled_weights(folder / "ckpt.pt")
    state = {k.removeprefix("module."): v for k, v in state.items()}
    config = {
        "tastemaker": "rali",
        "vision_config": read_config(folder / "best").get("vision_config"),
        "preprocessing": _preprocessing(folder / "best" / "preprocessor_config.json"),
    }
    tensors = _tower(state, folder / "ckpt.pt") | _anchors(state, folder)
    make_rali(config, tensors, folder, torch.float32)  # what would not load is not written
    _write_whole(out, config, tensors)
    return out


def _write_whole(out: Path, config: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as temporary:
        write_checkpoint(Path(temporary) / "whole", config, tensors)
        if out.exists():
            out.rmdir()  # empty: Windows does not rename onto a folder
        os.replace(Path(temporary) / "whole", out)


def _tower(state: Mapping[str, Tensor], ckpt: Path) -> dict[str, Tensor]:
    """The vision tower and its projection; the text tower is left behind."""
    inside = {k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")}
    tower = {k: v for k, v in inside.items() if k.startswith(TOWER)}
    projection = inside.get("visual_projection.weight")
    if not tower or projection is None:
        raise ValueError(f"{ckpt} has no clip.vision_model or clip.visual_projection")
    return {**tower, "visual_projection.weight": projection}


def _anchors(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The head. The mean exists in `pca.pkl` only; scale and components were trained further."""
    ckpt = folder / "ckpt.pt"
    found = {k.removeprefix("scorer.") for k in state if k.startswith("scorer.")}
    if found != set(HEAD_NAMES):
        lacking, unknown = sorted(set(HEAD_NAMES) - found), sorted(found - set(HEAD_NAMES))
        raise ValueError(f"{ckpt} has another scorer: {lacking} missing, {unknown} unknown")
    head = {new: state[f"scorer.{old}"] for old, new in HEAD_NAMES.items()}
    head["tau"] = 1 / head["tau"].float().clamp(min=1e-6).reshape(())  # it is stored as 1 / tau
    for old, new in HEAD_NAMES.items():
        if not torch.isfinite(head[new]).all() or not (new != "scale" or head[new].all()):
            raise ValueError(f"{ckpt}: scorer.{old} has values that cannot be computed with")
    mean = torch.tensor(read_pca(folder / "pca.pkl")["mean_"], dtype=torch.float32)
    if not mean.any():  # the official script would go on, and score wrongly
        raise ValueError(f"{folder / 'pca.pkl'} has a blank mean_: scores would be wrong")
    _check_shapes(folder, head, mean)
    return {f"{HEAD}{name}": tensor for name, tensor in {**head, "mean": mean}.items()}


def _check_shapes(folder: Path, head: Mapping[str, Tensor], mean: Tensor) -> None:
    vectors = torch.empty(_basis_shape(folder / "basis.npz"), device="meta")
    reduced, embedding = (*head["components"].shape, 0)[:2]
    anchors = len(head["scores"])
    for name, tensor, wanted in (
        ("pca.pkl mean_", mean, [embedding]),
        ("ckpt.pt scorer.pca_scale", head["scale"], [embedding]),
        ("ckpt.pt scorer.prototypes", head["prototypes"], [anchors, reduced]),
        ("basis.npz vectors", vectors, [anchors, reduced]),
    ):
        if list(tensor.shape) != wanted:
            raise ValueError(f"{folder / name} has shape {list(tensor.shape)}, expected {wanted}")


def _basis_shape(path: Path) -> tuple[int, ...]:
    """The shape of the anchors before training: all that the checkpoint does not overwrite."""
    try:
        with np.load(path, allow_pickle=False) as basis:
            return basis["vectors"].shape
    except Exception as error:
        raise ValueError(f"not RALI's basis: {path} ({one_line(error, 200)})") from None


def _preprocessing(path: Path) -> dict[str, Any]:
    """What `Preprocessing` holds, from CLIP's preprocessor_config.json of any age."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        size, crop = values["size"], values["crop_size"]
        result = {
            "shortest": size["shortest_edge"] if isinstance(size, dict) else size,
            "crop": crop["height"] if isinstance(crop, dict) else crop,
            "mean": values["image_mean"],
            "std": values["image_std"],
        }
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"not CLIP's preprocessing: {path} ({error!r})") from None
    Preprocessing.read(result, f"not CLIP's preprocessing: {path}")
    steps = ("do_resize", "do_center_crop", "do_rescale", "do_normalize")
    if values.get("resample", BICUBIC) != BICUBIC or not all(values.get(s, True) for s in steps):
        raise ValueError(f"{path} asks for other steps than CLIP's: {values}")
    return result
