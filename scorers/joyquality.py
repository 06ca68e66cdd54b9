"""JoyQuality: a SigLIP 2 vision tower with a linear head, trained on pairwise preferences.

https://github.com/fpgaminer/joyquality, hub id fancyfeast/joyquality-siglip2-so400m-512-16-o8eg1n4c,
Apache-2.0. Scores are unbounded latents, higher is better: the probability that A beats B is
sigmoid(score(A) - score(B)).

Called as the upstream script does: picture squeezed to a square without cropping, vision tower,
attention-pooling head, linear head - not the stock classification forward, which averages patches.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Scorer, ScorerCard, check_images, working_precision
from .checkpoint import (
    load_exactly,
    read_config,
    read_pickled_weights,
    read_weights,
    weight_files,
    weights_digest,
)
from .vit import ACTIVATIONS, Norm, VisionTransformer, VitConfig, tower_state

MEAN = STD = (0.5, 0.5, 0.5)
# Attention heads by width, where a training checkpoint does not say: SigLIP's own sizes.
HEADS = {1152: 16, 1536: 16}
IGNORED = ("embeddings.position_ids",)  # a constant that old checkpoints carry


class PoolingHead(nn.Module):
    """SigLIP's attention pooling [B, N, D] -> [B, D], its constant query folded into the keys.

    A learned probe is the only query, so the keys' projection shrinks to one vector a head; and since
    attention weights add up to one, values are projected after pooling. The result is the same.
    """

    def __init__(self, config: VitConfig):
        super().__init__()
        d, self.heads = config.hidden_size, config.num_attention_heads
        self.key = nn.Parameter(torch.empty(self.heads, d))
        self.value = nn.Linear(d, d)
        self.out = nn.Linear(d, d)
        self.norm = Norm(d, config.layer_norm_eps)
        self.fc1 = nn.Linear(d, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, d)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor) -> Tensor:
        weights = (self.key @ x.transpose(1, 2)).softmax(-1)  # [B, heads, N]
        pooled = weights @ x  # [B, heads, D]
        value = self.value.weight.unflatten(0, (self.heads, -1))  # [heads, d, D]
        pooled = torch.einsum("bhi,hdi->bhd", pooled, value).flatten(1) + self.value.bias
        x = self.out(pooled)
        return x + self.fc2(self.activation(self.fc1(self.norm(x))))

    @staticmethod
    def state(state: Mapping[str, Tensor], heads: int) -> dict[str, Tensor]:
        """From a checkpoint's keys below `vision_model.head.`."""
        q, k, v = state["attention.in_proj_weight"].double().chunk(3)
        q_bias, _, v_bias = state["attention.in_proj_bias"].double().chunk(3)
        query = F.linear(state["probe"].double().reshape(-1), q, q_bias)
        query = query.unflatten(0, (heads, -1))  # [heads, d]
        key = torch.einsum("hd,hdi->hi", query, k.unflatten(0, (heads, -1)))
        result = {"key": key * query.shape[1] ** -0.5, "value.weight": v, "value.bias": v_bias}
        names = {
            "attention.out_proj": "out",
            "layernorm": "norm",
            "mlp.fc1": "fc1",
            "mlp.fc2": "fc2",
        }
        for old, new in names.items():
            result |= {f"{new}.{part}": state[f"{old}.{part}"] for part in ("weight", "bias")}
        return result


class JoyQuality(Scorer):
    """JoyQuality behind the contract; `load_joyquality` makes one."""

    default_batch_size = 32

    def __init__(self, config: VitConfig, dtype: torch.dtype, digest: str, revision: str | None):
        super().__init__()
        self.size = config.image_size
        self.tower = VisionTransformer(config, class_token=False, dtype=dtype)
        self.pool = PoolingHead(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self._card = ScorerCard(
            name="joyquality",
            licence="Apache-2.0",
            unit="latent score; win probability = sigmoid of a difference",
            range=(float("-inf"), float("inf")),
            hub_id="fancyfeast/joyquality-siglip2-so400m-512-16-o8eg1n4c",
            revision=revision,
            paper="https://github.com/fpgaminer/joyquality",
            capabilities=("embed", "score_video", "differentiable", "win_probability"),
            limits="A number means something only against other scores of the same model. Trained on "
            "one labeller's preferences; meant to be fine-tuned on your own comparisons.",
            out_of_scope="prompt adherence, safety, factual or identity judgements",
            fingerprint={
                "weights": digest,
                "preprocessing": f"{self.size}x{self.size} bicubic, aspect not kept",
            },
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.head(self._pooled(x)).squeeze(-1).float()

    def embed(self, images: Tensor) -> Tensor:
        """Pooled features [B, D] float32 that the linear head reads. Differentiable."""
        check_images(images, self.device)
        return self._pooled(self.prepare(working_precision(images))).float()

    def _pooled(self, x: Tensor) -> Tensor:
        return self.pool(self.tower(x.to(self.tower.position.dtype)))

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass: less memory, about a third more time."""
        return self.tower.checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.tower.checkpointing = on


def load_joyquality(
    path: Path,
    *,
    revision: str | None,
    task: str,
    device: torch.device,
    dtype: torch.dtype | None,
    heads: int | None = None,
    gradient_checkpointing: bool = False,
) -> JoyQuality:
    """Loads JoyQuality, or a personal fine-tune of any SigLIP size.

    Args:
        path: a folder in the hub format (SiglipForImageClassification with one label), or one file
            in the training script's format (`clip_model.*`, `head.1.*`; `.safetensors` or `.pt`).
        revision: the hub commit that the folder is, for the card.
        task: "quality".
        device: where it runs.
        dtype: of the matrix products; by default the checkpoint's on a GPU, float32 on the CPU.
        heads: attention heads, where a training checkpoint of an unusual width does not say.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, more time.

    Raises:
        FileNotFoundError, ValueError: what is missing from the checkpoint or does not fit.
    """
    if task != "quality":
        raise ValueError(f'joyquality judges "quality" only, got task={task!r}')
    state, config = _read_folder(path) if path.is_dir() else _read_file(path, heads)
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else state["classifier.weight"].dtype
    scorer = JoyQuality(config, dtype, weights_digest(state), revision)
    load_exactly(scorer, convert(state, config, path), path)
    scorer.gradient_checkpointing = gradient_checkpointing
    return scorer.freeze().to(device)


def convert(state: Mapping[str, Tensor], config: VitConfig, path: Path) -> dict[str, Tensor]:
    """A checkpoint with hub keys as the state of `JoyQuality`.

    Raises:
        ValueError: naming a key that is missing or unknown, or a head that is no quality head.
    """
    read: set[str] = set()
    keys = _Watched(state, read)
    try:
        tower = tower_state(_below(keys, "vision_model."), config, MEAN, STD)
        pool = PoolingHead.state(_below(keys, "vision_model.head."), config.num_attention_heads)
        weight, bias = keys["classifier.weight"], keys["classifier.bias"]
    except KeyError as error:
        raise ValueError(f"{path} is no JoyQuality checkpoint: it lacks {error.args[0]}") from None
    if weight.shape[0] != 1:
        raise ValueError(f"{path} has {weight.shape[0]} labels, a quality head has one")
    unknown = [k for k in state if k not in read and not k.endswith(IGNORED)]
    if unknown:
        raise ValueError(f"{path} has {len(unknown)} unknown keys: {', '.join(unknown[:3])}")
    return {
        **{f"tower.{k}": v for k, v in tower.items()},
        **{f"pool.{k}": v for k, v in pool.items()},
        "head.weight": weight,
        "head.bias": bias,
    }


class _Watched(dict):
    """A mapping that remembers which of its keys were read."""

    def __init__(self, state: Mapping[str, Tensor], read: set[str], prefix: str = ""):
        super().__init__(state)
        self.read, self.prefix = read, prefix

    def __getitem__(self, key: str) -> Tensor:
        if key not in self:
            raise KeyError(self.prefix + key)
        self.read.add(self.prefix + key)
        return super().__getitem__(key)

    def get(self, key: str, default=None):
        return self[key] if key in self else default


def _below(keys: _Watched, prefix: str) -> _Watched:
    inside = {k.removeprefix(prefix): v for k, v in keys.items() if k.startswith(prefix)}
    return _Watched(inside, keys.read, keys.prefix + prefix)


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], VitConfig]:
    config = read_config(folder)
    vision = config.get("vision_config")
    if not isinstance(vision, dict):
        raise ValueError(f"{folder / 'config.json'} has no vision_config")
    return read_weights(weight_files(folder)), VitConfig.read(vision, folder / "config.json")


def _read_file(path: Path, heads: int | None) -> tuple[dict[str, Tensor], VitConfig]:
    """A training checkpoint, its keys renamed to the hub's, and its sizes."""
    if path.suffix == ".safetensors":
        state = read_weights([path])
    elif path.suffix in (".pt", ".pth"):
        state = read_pickled_weights(path)
    else:
        raise ValueError(f"not a checkpoint: {path} (.safetensors or .pt)")
    names = {"clip_model.": "vision_model.", "head.1.": "classifier."}
    renamed = {}
    for key, tensor in state.items():
        short = key.removeprefix("module.").removeprefix("_orig_mod.")
        old = next((old for old in names if short.startswith(old)), None)
        renamed[short if old is None else names[old] + short.removeprefix(old)] = tensor
    return renamed, infer_config(renamed, path, heads)


def infer_config(state: Mapping[str, Tensor], path: Path, heads: int | None) -> VitConfig:
    """The sizes of a training checkpoint, which stores none, from its tensors' shapes."""
    try:
        width, _, patch, _ = state["vision_model.embeddings.patch_embedding.weight"].shape
        tokens = state["vision_model.embeddings.position_embedding.weight"].shape[0]
        mlp = state["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise ValueError(f"{path} is no JoyQuality checkpoint: it lacks {error.args[0]}") from None
    layers = {k.split(".")[3] for k in state if k.startswith("vision_model.encoder.layers.")}
    return VitConfig(
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=len(layers),
        num_attention_heads=heads or HEADS.get(width, max(1, width // 64)),
        image_size=round(tokens**0.5) * patch,
        patch_size=patch,
    )
