"""RALI: a CLIP vision tower whose features are compared with learned anchors of known quality.

https://arxiv.org/abs/2510.11369, code and weights https://github.com/bytedance/Q-Insight (hub id
ByteDance/Q-Insight, folder RALI), Apache-2.0. Higher is better; a score is a weighted mean of the
anchors' scores, so it lies between the lowest and the highest of them (1 to 5 by training).

The release is pickled, so it is converted once (`tastemaker convert rali`); this file reads the
result. The text tower is never loaded. Only the picture's central square is seen.

The official script truncates floating-point pixels to 8 bits before it resizes them. Here they keep
their precision (and their gradient): files and 8-bit tensors score as officially, floating-point
tensors as the unrounded picture would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ScorerCard, unit_range
from .checkpoint import load_exactly, read_config, read_weights, weight_files, weights_digest
from .home import home
from .resize import METHOD, resize
from .values import COLOUR, COUNT, SCALE, value
from .vit import Keys, TowerScorer, VisionTransformer, VitConfig, tower_state

# What CLIP's vision_config means where it leaves something out.
CLIP_DEFAULTS = {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TOWER, HEAD = "vision_model.", "anchors."
PARTS = ("mean", "scale", "components", "prototypes", "scores", "tau")


@dataclass(frozen=True)
class Preprocessing:
    """CLIP's: the shortest side to `shortest` pixels, then the central `crop` x `crop`."""

    shortest: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if self.crop > self.shortest:
            raise ValueError(f"no preprocessing of pictures: {self}")

    @classmethod
    def read(cls, values: Any, source: str | Path) -> Preprocessing:
        kinds = {"shortest": COUNT, "crop": COUNT, "mean": COLOUR, "std": SCALE}
        known = {name: value(values, name, kind, source) for name, kind in kinds.items()}
        try:
            return cls(**{**values, **known})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None

    def resized(self, height: int, width: int) -> tuple[int, int]:
        """The whole picture's size before cropping; the long side is rounded down."""
        if height <= width:
            return self.shortest, int(self.shortest * width / height)
        return int(self.shortest * height / width), self.shortest


class AnchorHead(nn.Module):
    """Image embeddings [B, E] to scores: whitened, projected to K anchors' space, softly matched."""

    def __init__(self, embedding: int, reduced: int, anchors: int):
        super().__init__()
        self.mean = nn.Parameter(torch.empty(embedding))
        self.scale = nn.Parameter(torch.empty(embedding))
        self.components = nn.Parameter(torch.empty(reduced, embedding))
        self.prototypes = nn.Parameter(torch.empty(anchors, reduced))
        self.scores = nn.Parameter(torch.empty(anchors))
        self.tau = nn.Parameter(torch.empty(()))

    def similarities(self, e: Tensor) -> Tensor:
        """Cosine of each embedding to each anchor, [B, K] in [-1, 1]."""
        z = ((e - self.mean) / self.scale.abs()) @ self.components.T
        return F.normalize(z, dim=-1) @ F.normalize(self.prototypes, dim=-1).T

    def forward(self, e: Tensor) -> Tensor:
        return (self.similarities(e) / self.tau).softmax(-1) @ self.scores


class Rali(TowerScorer):
    """RALI behind the contract; `load_rali` makes one."""

    def __init__(
        self,
        config: VitConfig,
        head: AnchorHead,
        preprocessing: Preprocessing,
        dtype: torch.dtype,
        digest: str,
        revision: str | None,
    ):
        super().__init__()
        self.preprocessing = preprocessing
        self.tower = VisionTransformer(config, class_token=True, dtype=dtype)
        self.projection = nn.Linear(config.hidden_size, len(head.mean), bias=False)
        self.head = head
        self._digest, self._revision = digest, revision

    @property
    def _card(self) -> ScorerCard:
        low, high = (bound.item() for bound in self.head.scores.detach().float().aminmax())
        return ScorerCard(
            name="rali",
            licence="Apache-2.0",
            unit="mean opinion score of the nearest anchors",
            range=(low, high),
            hub_id="ByteDance/Q-Insight",
            revision=self._revision,
            paper="https://arxiv.org/abs/2510.11369",
            capabilities=("embed", "anchor_similarity", "score_video", "differentiable"),
            limits="Sees the central square only. Degrades on pictures unlike what it was fitted on "
            "(photographs): `anchor_similarity` is low for those. Weaker on generated pictures.",
            out_of_scope="aesthetics, prompt adherence, safety, factual or identity judgements",
            fingerprint={
                "weights": self._digest,
                "preprocessing": f"shortest side {self.preprocessing.shortest}, centre "
                f"{self.preprocessing.crop}; {METHOD}",
            },
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.preprocessing.crop, self.preprocessing.crop

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] resized to the tower's size by the shortest side; its central square."""
        crop, size = self.preprocessing.crop, self.preprocessing.resized(*images.shape[-2:])
        corner = [(side - crop) // 2 for side in size]
        return unit_range(resize(images, size, tuple((at, at + crop) for at in corner)))

    def features(self, x: Tensor) -> Tensor:
        return self.projection(self.tower(x.to(self.tower.position.dtype)))

    def anchor_similarity(self, images: Tensor) -> Tensor:
        """Cosine similarity to the nearest anchor, [B] in [-1, 1].

        A warning, not a score: low for images unlike anything RALI was fitted on, whose scores
        should not be trusted.
        """
        return self.head.similarities(self.embed(images)).amax(-1)


def load_rali(
    path: Path,
    *,
    revision: str | None,
    task: str,
    device: torch.device,
    dtype: torch.dtype | None,
    gradient_checkpointing: bool = False,
) -> Rali:
    """Loads the folder that `tastemaker convert rali` wrote.

    Args:
        path: folder with config.json and model.safetensors.
        revision: for the card.
        task: "quality".
        device: where it runs.
        dtype: of the tower's matrix products; None for float32, as the official recipe.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, more time.

    Raises:
        FileNotFoundError, ValueError: what is missing from the folder or does not fit.
    """
    if task != "quality":
        raise ValueError(f'rali judges "quality" only, got task={task!r}')
    values, state = read_config(path), read_weights(weight_files(path))
    scorer = make_rali(values, state, path, dtype or torch.float32, revision)
    scorer.gradient_checkpointing = gradient_checkpointing
    return scorer.to(device)


def make_rali(
    values: Mapping[str, Any],
    state: Mapping[str, Tensor],
    path: Path,
    dtype: torch.dtype,
    revision: str | None = None,
) -> Rali:
    """The scorer of a converted release: its config.json's values and its tensors.

    Raises:
        ValueError: naming `path` and what is missing, unknown or does not fit.
    """
    config = VitConfig.read(values.get("vision_config"), path / "config.json", **CLIP_DEFAULTS)
    preprocessing = Preprocessing.read(values.get("preprocessing"), path / "config.json")
    if preprocessing.crop != config.image_size:
        raise ValueError(f"{path}: {preprocessing.crop} px for a tower of {config.image_size} px")
    tensors = fold(state, config, preprocessing, path)
    head = AnchorHead(
        *(tensors[f"head.{name}"].shape[0] for name in ("mean", "components", "scores"))
    )
    scorer = Rali(config, head, preprocessing, dtype, weights_digest(state), revision)
    if dtype == torch.float64:
        scorer.double()
    load_exactly(scorer, tensors, path)
    return scorer.freeze()


def fold(
    state: Mapping[str, Tensor], config: VitConfig, preprocessing: Preprocessing, path: Path
) -> dict[str, Tensor]:
    """A converted release as the state of `Rali`.

    Raises:
        ValueError: naming a key that is missing or unknown.
    """
    keys = Keys(state)
    try:
        tower = tower_state(keys.below(TOWER), config, preprocessing.mean, preprocessing.std)
        head = {f"head.{name}": keys[f"{HEAD}{name}"] for name in PARTS}
        projection = keys["visual_projection.weight"]
    except KeyError as error:
        raise ValueError(f"{path} is no converted RALI: it lacks {error.args[0]}") from None
    keys.check_all_read(path)
    return {f"tower.{k}": v for k, v in tower.items()} | head | {"projection.weight": projection}


def converted_folder() -> Path:
    """Where `load_scorer("rali")` looks, and `tastemaker convert rali` writes unless told otherwise.

    Raises:
        FileNotFoundError: with the commands that fill it, when nothing is there.
    """
    folder = default_folder()
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"no converted RALI in {folder}. Its release is pickled; convert it once: "
            '`hf download ByteDance/Q-Insight --include "RALI/*" --local-dir release`, then '
            "`tastemaker convert rali release/RALI`"
        )
    return folder


def default_folder() -> Path:
    """The user's own folder for what is converted once."""
    return home() / "rali"
