"""JoyQuality: a SigLIP 2 vision tower with a linear head, trained on pairwise preferences.

https://github.com/fpgaminer/joyquality, hub id fancyfeast/joyquality-siglip2-so400m-512-16-o8eg1n4c,
Apache-2.0. Scores are unbounded latents, higher is better: the probability that A beats B is
sigmoid(score(A) - score(B)).

Called as the upstream script does: picture squeezed to a square without cropping, vision tower,
attention-pooling head, linear head - not the stock classification forward, which averages patches.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import ScorerCard
from .checkpoint import (
    hub_id_of,
    load_exactly,
    read_config,
    read_pickled_weights,
    read_weights,
    weight_files,
    weights_digest,
)
from .resize import METHOD
from .tuned import tuned_card
from .vit import (
    ACTIVATIONS,
    Keys,
    Norm,
    TowerScorer,
    VisionTransformer,
    VitConfig,
    mlp_state,
    tower_state,
)

MEAN = STD = (0.5, 0.5, 0.5)


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
    def state(keys: Keys, config: VitConfig) -> dict[str, Tensor]:
        """From a checkpoint's names below `vision_model.head.`."""
        q, k, v = keys["attention.in_proj_weight"].double().chunk(3)
        # The keys' bias adds the same to every token's weight, so it drops out of the softmax.
        q_bias, _, v_bias = keys["attention.in_proj_bias"].double().chunk(3)
        query = F.linear(keys["probe"].double().reshape(-1), q, q_bias)
        query = query.unflatten(0, (config.num_attention_heads, -1))  # [heads, d]
        key = torch.einsum("hd,hdi->hi", query, k.unflatten(0, (config.num_attention_heads, -1)))
        return {
            "key": key * query.shape[1] ** -0.5,
            "value.weight": v,
            "value.bias": v_bias,
            **keys.linear("attention.out_proj", "out"),
            **keys.linear("layernorm", "norm"),
            **mlp_state(keys, config.hidden_act),
        }


class JoyQuality(TowerScorer):
    """JoyQuality behind the contract; `load_joyquality` makes one."""

    def __init__(
        self,
        config: VitConfig,
        dtype: torch.dtype,
        digest: str,
        hub_id: str | None = None,
        revision: str | None = None,
    ):
        super().__init__()
        self.config, self.size = config, config.image_size
        self.tower = VisionTransformer(config, class_token=False, dtype=dtype)
        self.pool = PoolingHead(config)
        self.head = nn.Linear(config.hidden_size, 1)
        self._card = ScorerCard(
            name="joyquality",
            licence="Apache-2.0",
            unit="latent score; win probability = sigmoid of a difference",
            range=(float("-inf"), float("inf")),
            hub_id=hub_id,
            revision=revision,
            paper="https://github.com/fpgaminer/joyquality",
            capabilities=("embed", "score_video", "differentiable", "win_probability"),
            limits="A number means something only against other scores of the same model. Trained on "
            "one labeller's preferences; meant to be fine-tuned on your own comparisons.",
            out_of_scope="prompt adherence, safety, factual or identity judgements",
            fingerprint={
                "weights": digest,
                "preprocessing": f"{self.size}x{self.size}, aspect not kept; {METHOD}",
            },
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.size, self.size

    def features(self, x: Tensor) -> Tensor:
        return self.pool(self.tower(x.to(self.tower.position.dtype)))


def load_joyquality(
    path: Path,
    *,
    revision: str | None,
    task: str,
    device: torch.device,
    dtype: torch.dtype | None,
    heads: int | None = None,
    image_size: int | None = None,
    gradient_checkpointing: bool = False,
) -> JoyQuality:
    """Loads JoyQuality, or a personal fine-tune of any SigLIP size.

    Args:
        path: a folder in the hub format (SiglipForImageClassification with one label), or one file
            in the training script's format (`clip_model.*`, `head.1.*`; `.safetensors` or `.pt`).
        revision: the hub commit that the folder is, for the card.
        task: "quality".
        device: where it runs.
        dtype: of the matrix products; None for the checkpoint's.
        heads: attention heads, where a training checkpoint of an unusual width does not say. By
            default 16 for SigLIP's widths 1152 and 1536, and width / 64 for others.
        image_size: pixels of the square that the tower sees, where a training checkpoint does not
            say: by default patches times patch size, which is too small for 384 in patches of 14.
        gradient_checkpointing: recompute layers in the backward pass: less memory, more time.

    Raises:
        FileNotFoundError, ValueError: what is missing from the checkpoint or does not fit.
        TypeError: an option that JoyQuality does not have.
    """
    if task != "quality":
        raise ValueError(f'joyquality judges "quality" only, got task={task!r}')
    state, config = _read_folder(path) if path.is_dir() else _read_file(path)
    said = {"num_attention_heads": heads, "image_size": image_size}
    config = replace(config, **{name: own for name, own in said.items() if own is not None})
    tensors = convert(state, config, path)
    dtype = dtype or state["vision_model.encoder.layers.0.mlp.fc1.weight"].dtype
    scorer = JoyQuality(config, dtype, weights_digest(state), hub_id_of(path), revision)
    if dtype == torch.float64:
        scorer.double()
    load_exactly(scorer, tensors, path)
    if path.is_dir():
        scorer._card = tuned_card(scorer._card, read_config(path))
    scorer.gradient_checkpointing = gradient_checkpointing
    return scorer.freeze().to(device)


def convert(state: Mapping[str, Tensor], config: VitConfig, path: Path) -> dict[str, Tensor]:
    """A checkpoint with hub keys as the state of `JoyQuality`.

    Raises:
        ValueError: naming a key that is missing or unknown, or a head that is no quality head.
    """
    keys = Keys(state)
    try:
        tower = tower_state(keys.below("vision_model."), config, MEAN, STD)
        pool = PoolingHead.state(keys.below("vision_model.head."), config)
        weight, bias = keys["classifier.weight"], keys["classifier.bias"]
    except KeyError as error:
        raise ValueError(f"{path} is no JoyQuality checkpoint: it lacks {error.args[0]}") from None
    if weight.shape[0] != 1:
        raise ValueError(f"{path} has {weight.shape[0]} labels, a quality head has one")
    keys.check_all_read(path)
    return {
        **{f"tower.{k}": v for k, v in tower.items()},
        **{f"pool.{k}": v for k, v in pool.items()},
        "head.weight": weight,
        "head.bias": bias,
    }


def _read_folder(folder: Path) -> tuple[dict[str, Tensor], VitConfig]:
    config = VitConfig.read(read_config(folder).get("vision_config"), folder / "config.json")
    return read_weights(weight_files(folder)), config


def _read_file(path: Path) -> tuple[dict[str, Tensor], VitConfig]:
    """A training checkpoint, its keys renamed to the hub's, and its sizes."""
    if path.suffix == ".safetensors":
        state = read_weights([path])
    elif path.suffix in (".pt", ".pth"):
        state = read_pickled_weights(path)
    else:
        raise ValueError(f"not a checkpoint: {path} (.safetensors or .pt)")
    renamed = {_hub_name(key): tensor for key, tensor in state.items()}
    return renamed, infer_config(renamed, path)


def _hub_name(key: str) -> str:
    """The hub's name for a key of the training script, whatever wrapped the model."""
    while key.startswith(("module.", "_orig_mod.")):
        key = key.split(".", 1)[1]
    for old, new in (("clip_model.", "vision_model."), ("head.1.", "classifier.")):
        if key.startswith(old):
            return new + key.removeprefix(old)
    return key


def heads_of(width: int) -> int:
    """Attention heads of SigLIP's towers by width, which a training checkpoint does not say."""
    return 16 if width in (1152, 1536) else max(1, width // 64)


def infer_config(state: Mapping[str, Tensor], path: Path) -> VitConfig:
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
        num_attention_heads=heads_of(width),
        image_size=math.isqrt(tokens) * patch,
        patch_size=patch,
    )
