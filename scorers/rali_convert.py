"""The official RALI release (`ckpt.pt`, `pca.pkl`, `basis.npz`, `best/`) to one safetensors + config.

Nothing in the release is executed: `ckpt.pt` is read with `weights_only=True`, `pca.pkl` by
`rali_pca`, `basis.npz` without pickles. Of `best/` only the two configurations are read: its weights
are in `ckpt.pt` too, as fine-tuned.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .checkpoint import read_config, read_pickled_weights, write_checkpoint
from .rali import HEAD, TOWER, default_folder
from .rali_pca import read_pca

FILES = ("ckpt.pt", "pca.pkl", "basis.npz", "best/config.json", "best/preprocessor_config.json")
BICUBIC = 3  # Pillow's number for it, as the file writes it


def convert_rali(folder: str | Path, out: str | Path | None = None) -> Path:
    """Converts the release in `folder`; returns the folder that `load_scorer` then reads.

    Args:
        folder: the release as downloaded.
        out: where to write; by default where `load_scorer("rali")` looks.

    Raises:
        FileNotFoundError: naming the files of the release that are missing.
        ValueError: naming the file that is damaged, hostile or does not fit; nothing is written.
    """
    folder, out = Path(folder), Path(out) if out else default_folder()
    missing = [name for name in FILES if not (folder / name).exists()]
    if missing:
        raise FileNotFoundError(f"{folder} is no RALI release: it lacks {', '.join(missing)}")
    state = read_pickled_weights(folder / "ckpt.pt")
    state = {k.removeprefix("module."): v for k, v in state.items()}
    config = {
        "tastemaker": "rali",
        "vision_config": read_config(folder / "best").get("vision_config", {}),
        "preprocessing": _preprocessing(folder / "best" / "preprocessor_config.json"),
    }
    tensors = _tower(state, folder) | _anchors(state, folder)
    write_checkpoint(out, config, tensors)
    return out


def _tower(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The vision tower and its projection; the text tower is left behind."""
    inside = {k.removeprefix("clip."): v for k, v in state.items() if k.startswith("clip.")}
    tower = {k: v for k, v in inside.items() if k.startswith(TOWER) and "position_ids" not in k}
    projection = inside.get("visual_projection.weight")
    if not tower or projection is None:
        raise ValueError(f"{folder / 'ckpt.pt'} has no clip.vision_model or clip.visual_projection")
    return {**tower, "visual_projection.weight": projection}


def _anchors(state: Mapping[str, Tensor], folder: Path) -> dict[str, Tensor]:
    """The head. The mean exists in `pca.pkl` only; scale and components were trained further."""
    names = ("pca_scale", "pca_components", "prototypes", "proto_scores", "logit_scale")
    lacking = [name for name in names if f"scorer.{name}" not in state]
    if lacking:
        raise ValueError(f"{folder / 'ckpt.pt'} lacks scorer.{', scorer.'.join(lacking)}")
    scale, components, prototypes, scores, logit_scale = (state[f"scorer.{n}"] for n in names)
    mean = torch.tensor(read_pca(folder / "pca.pkl")["mean_"], dtype=torch.float32)
    _check_fit(folder, mean, scale, components, prototypes, scores)
    head = {
        "mean": mean,
        "scale": scale,
        "components": components,
        "prototypes": prototypes,
        "scores": scores,
        "tau": 1 / logit_scale.float().clamp(min=1e-6).reshape(()),
    }
    return {f"{HEAD}{name}": tensor for name, tensor in head.items()}


def _check_fit(
    folder: Path,
    mean: Tensor,
    scale: Tensor,
    components: Tensor,
    prototypes: Tensor,
    scores: Tensor,
) -> None:
    reduced, embedding = components.shape
    shapes = {
        "pca.pkl mean_": (mean, [embedding]),
        "ckpt.pt scorer.pca_scale": (scale, [embedding]),
        "ckpt.pt scorer.prototypes": (prototypes, [len(scores), reduced]),
    }
    for name, (tensor, wanted) in shapes.items():
        if list(tensor.shape) != wanted:
            raise ValueError(f"{folder / name} has shape {list(tensor.shape)}, expected {wanted}")
    if not mean.any():
        raise ValueError(f"{folder / 'pca.pkl'} has a blank mean_: scores would be wrong")
    with _opened(folder / "basis.npz") as basis:
        if list(basis["vectors"].shape) != list(prototypes.shape):
            raise ValueError(
                f"{folder / 'basis.npz'} has {list(basis['vectors'].shape)} vectors, the checkpoint "
                f"{list(prototypes.shape)}"
            )


def _opened(path: Path) -> Any:
    try:
        basis = np.load(path, allow_pickle=False)
        basis["vectors"], basis["scores"]
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise ValueError(f"not RALI's basis: {path} ({reason})") from None
    return basis


def _preprocessing(path: Path) -> dict[str, Any]:
    """What `Preprocessing` holds, from CLIP's preprocessor_config.json of any age."""
    values = json.loads(path.read_text(encoding="utf-8"))
    size, crop = values["size"], values["crop_size"]
    if values.get("resample", BICUBIC) != BICUBIC:
        raise ValueError(
            f"{path} asks for resample {values['resample']}; only bicubic is supported"
        )
    return {
        "shortest": size["shortest_edge"] if isinstance(size, dict) else size,
        "crop": crop["height"] if isinstance(crop, dict) else crop,
        "mean": values["image_mean"],
        "std": values["image_std"],
    }
