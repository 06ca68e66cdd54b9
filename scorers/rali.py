"""RALI: a CLIP vision tower whose features are compared with learned anchors of known quality.

https://arxiv.org/abs/2510.11369, code and weights https://github.com/bytedance/Q-Insight (hub id
ByteDance/Q-Insight, folder RALI), Apache-2.0. Higher is better; a score is a weighted mean of the
anchors' scores, so it lies between the lowest and the highest of them (1 to 5 by training).

The release is pickled, so it is converted once (`tastemaker convert rali`); this file reads the
result. The text tower is never loaded. Only the picture's central square is seen.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Scorer, ScorerCard, check_images, unit_range, working_precision
from .checkpoint import load_exactly, read_config, read_weights, weight_files, weights_digest
from .resize import resize
from .vit import VisionTransformer, VitConfig, tower_state

# What CLIP's vision_config means where it leaves something out.
CLIP_DEFAULTS = {"patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5}
TOWER, HEAD = "vision_model.", "anchors."


@dataclass(frozen=True)
class Preprocessing:
    """CLIP's: the shortest side to `shortest` pixels, then the central `crop` x `crop`."""

    shortest: int
    crop: int
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self):
        if not 0 < self.crop <= self.shortest or len(self.mean) != 3 or len(self.std) != 3:
            raise ValueError(f"no preprocessing of RGB pictures: {self}")

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


class Rali(Scorer):
    """RALI behind the contract; `load_rali` makes one."""

    default_batch_size = 32

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
                "preprocessing": f"shortest side {self.preprocessing.shortest} bicubic, centre "
                f"{self.preprocessing.crop}",
            },
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.preprocessing.crop, self.preprocessing.crop

    def prepare(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] resized to the tower's size by the shortest side; its central square."""
        crop = self.preprocessing.crop
        x = resize(images, self.preprocessing.resized(*images.shape[-2:]))
        top, left = (x.shape[-2] - crop) // 2, (x.shape[-1] - crop) // 2
        return unit_range(x[..., top : top + crop, left : left + crop])

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.head(self._embedded(x)).float()

    def embed(self, images: Tensor) -> Tensor:
        """CLIP embeddings [B, E] float32 that the anchors are compared with. Differentiable."""
        check_images(images, self.device)
        return self._embedded(self.prepare(working_precision(images))).float()

    def anchor_similarity(self, images: Tensor) -> Tensor:
        """Cosine similarity to the nearest anchor, [B] in [-1, 1].

        A warning, not a score: low for images unlike anything RALI was fitted on, whose scores
        should not be trusted.
        """
        return self.head.similarities(self.embed(images)).amax(-1)

    def _embedded(self, x: Tensor) -> Tensor:
        return self.projection(self.tower(x.to(self.tower.position.dtype)))

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass: less memory, about a third more time."""
        return self.tower.checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.tower.checkpointing = on


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
        dtype: of the tower's matrix products; by default float32, as the official recipe.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, more time.

    Raises:
        FileNotFoundError, ValueError: what is missing from the folder or does not fit.
    """
    if task != "quality":
        raise ValueError(f'rali judges "quality" only, got task={task!r}')
    values, state = read_config(path), read_weights(weight_files(path))
    config = VitConfig.read(values["vision_config"], path / "config.json", **CLIP_DEFAULTS)
    preprocessing = Preprocessing(**values["preprocessing"])
    try:
        head = AnchorHead(
            state[f"{HEAD}mean"].shape[0],
            state[f"{HEAD}components"].shape[0],
            state[f"{HEAD}scores"].shape[0],
        )
        tower = {k.removeprefix(TOWER): v for k, v in state.items() if k.startswith(TOWER)}
        tower = tower_state(tower, config, preprocessing.mean, preprocessing.std)
        projection = state["visual_projection.weight"]
    except KeyError as error:
        raise ValueError(f"{path} is no converted RALI: it lacks {error.args[0]}") from None
    digest = weights_digest(state)
    scorer = Rali(config, head, preprocessing, dtype or torch.float32, digest, revision)
    anchors = {k.removeprefix(HEAD): v for k, v in state.items() if k.startswith(HEAD)}
    fitted = {f"tower.{k}": v for k, v in tower.items()} | {"projection.weight": projection}
    load_exactly(scorer, fitted | {f"head.{k}": v for k, v in anchors.items()}, path)
    scorer.gradient_checkpointing = gradient_checkpointing
    return scorer.freeze().to(device)


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
    """$TASTEMAKER_HOME/rali, or rali in the user's cache."""
    home = os.environ.get("TASTEMAKER_HOME")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return (Path(home) if home else Path(cache) / "tastemaker") / "rali"
