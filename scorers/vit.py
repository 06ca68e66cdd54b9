"""One pre-norm vision transformer for both SigLIP and CLIP towers, built to be fast and differentiable.

https://arxiv.org/abs/2010.11929 with the two variants' details. Against the usual implementation:
queries, keys and values are one matrix product; so are the patches, with the pixels' normalisation
folded into its weights; the last layer computes only the tokens that are read. In bfloat16 the
matrix products run in bfloat16 while residual stream, norms and heads stay float32, which is what
autocast gives and is closer to float32 than weights cast whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attention

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
}


@dataclass(frozen=True)
class VitConfig:
    """Sizes, under the names that checkpoints' config.json uses. The defaults are SigLIP's."""

    hidden_size: int = 768
    intermediate_size: int = 3072
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    image_size: int = 224
    patch_size: int = 16
    hidden_act: str = "gelu_pytorch_tanh"
    layer_norm_eps: float = 1e-6

    @classmethod
    def read(cls, values: Mapping[str, Any], source: str | Path, **defaults: Any) -> VitConfig:
        """From a checkpoint's `vision_config`, which may leave out what is at its default."""
        known = cls.__dataclass_fields__
        config = cls(**{**defaults, **{k: v for k, v in values.items() if k in known}})
        if config.hidden_act not in ACTIVATIONS:
            raise ValueError(f"{source}: unknown activation {config.hidden_act!r}")
        if values.get("num_channels", 3) != 3 or config.hidden_size % config.num_attention_heads:
            raise ValueError(f"{source}: not a vision tower of RGB pictures: {dict(values)}")
        return config


class VisionTransformer(nn.Module):
    """[B, 3, S, S] in [0, 1] -> normed tokens: all [B, N, D], or the class token [B, D] if there is one."""

    checkpointing = False  # recompute the blocks in the backward pass instead of keeping them

    def __init__(self, config: VitConfig, class_token: bool, dtype: torch.dtype):
        super().__init__()
        d, self.patch, tokens = config.hidden_size, config.patch_size, class_token
        tokens += (config.image_size // config.patch_size) ** 2
        self.patches = nn.Linear(3 * config.patch_size**2, d, dtype=dtype)
        self.position = nn.Parameter(torch.empty(tokens, d))
        self.class_token = nn.Parameter(torch.empty(d)) if class_token else None
        self.pre_norm = Norm(d, config.layer_norm_eps) if class_token else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, dtype) for _ in range(config.num_hidden_layers))
        self.post_norm = Norm(d, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(patchify(images, self.patch).to(self.patches.weight.dtype))  # [B, N, D]
        x = x.to(self.position.dtype)
        if self.class_token is not None:
            x = torch.cat([self.class_token.expand(len(x), 1, -1), x], 1)
        x = self.pre_norm(x + self.position)
        for block in self.blocks[:-1]:
            x = self._run(block, x, None)
        # Where only the class token is read, the last layer need not compute the others.
        read = None if self.class_token is None else 1
        x = self.post_norm(self._run(self.blocks[-1], x, read))
        return x if read is None else x[:, 0]

    def _run(self, block: Block, x: Tensor, read: int | None) -> Tensor:
        if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(block, x, read, use_reentrant=False)
        return block(x, read)


class Block(nn.Module):
    """Attention and MLP, each normed before and added to the float32 stream."""

    def __init__(self, config: VitConfig, dtype: torch.dtype):
        super().__init__()
        d, self.heads = config.hidden_size, config.num_attention_heads
        self.norm1 = Norm(d, config.layer_norm_eps)
        self.qkv = nn.Linear(d, 3 * d, dtype=dtype)
        self.out = nn.Linear(d, d, dtype=dtype)
        self.norm2 = Norm(d, config.layer_norm_eps)
        self.fc1 = nn.Linear(d, config.intermediate_size, dtype=dtype)
        self.fc2 = nn.Linear(config.intermediate_size, d, dtype=dtype)
        self.activation = ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, read: int | None = None) -> Tensor:
        """[B, N, D] -> [B, N, D]; with `read`, only the first so many tokens come out."""
        h = self.norm1(x).to(self.qkv.weight.dtype)
        if read is None:
            q, k, v = self.qkv(h).chunk(3, -1)
        else:
            d = h.shape[-1]
            q = F.linear(h[:, :read], self.qkv.weight[:d], self.qkv.bias[:d])
            k, v = F.linear(h, self.qkv.weight[d:], self.qkv.bias[d:]).chunk(2, -1)
            x = x[:, :read]
        q, k, v = (t.unflatten(-1, (self.heads, -1)).transpose(1, 2) for t in (q, k, v))
        mixed = attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.out(mixed)
        h = self.norm2(x).to(self.fc1.weight.dtype)
        return x + self.fc2(self.activation(self.fc1(h)))


class Norm(nn.LayerNorm):
    """Layer norm in the stream's precision, float32 or more, whatever the weights were cast to."""

    def forward(self, x: Tensor) -> Tensor:
        weight, bias = self.weight.to(x.dtype), self.bias.to(x.dtype)
        return F.layer_norm(x, self.normalized_shape, weight, bias, self.eps)


def patchify(images: Tensor, patch: int) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, N, 3 * patch * patch] centred pixels, for `fold_patches` weights.

    A pixel enters as (255 x - 127.5) / 128, which 8-bit pixels are without rounding even in bfloat16.
    """
    x = images * (255 / 128) - 127.5 / 128
    b, c, h, w = x.shape
    x = x.reshape(b, c, h // patch, patch, w // patch, patch).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(b, (h // patch) * (w // patch), c * patch * patch)


def fold_patches(
    weight: Tensor, bias: Tensor | None, mean: tuple[float, ...], std: tuple[float, ...]
) -> tuple[Tensor, Tensor]:
    """A patch convolution [D, 3, p, p] over (x - mean) / std as a matrix [D, 3 p p] over `patchify`."""
    wide = weight.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))
    offset = (wide * (0.5 - mean) / std).sum((1, 2, 3))
    folded = (wide * 128 / (255 * std)).flatten(1)
    return folded, offset if bias is None else offset + bias.double()


def tower_state(
    state: Mapping[str, Tensor],
    config: VitConfig,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> dict[str, Tensor]:
    """A checkpoint's vision tower, keys below `vision_model.`, as the state of `VisionTransformer`.

    Raises:
        KeyError: naming the first key that is missing.
    """
    weight = state["embeddings.patch_embedding.weight"]
    weight, bias = fold_patches(weight, state.get("embeddings.patch_embedding.bias"), mean, std)
    result = {
        "patches.weight": weight,
        "patches.bias": bias,
        "position": state["embeddings.position_embedding.weight"],
    }
    pairs = {"post_layernorm": "post_norm"}
    if "embeddings.class_embedding" in state:
        result["class_token"] = state["embeddings.class_embedding"]
        pairs["pre_layrnorm"] = "pre_norm"  # spelt so in every CLIP checkpoint
    for i in range(config.num_hidden_layers):
        old, new = f"encoder.layers.{i}", f"blocks.{i}"
        pairs |= {
            f"{old}.layer_norm1": f"{new}.norm1",
            f"{old}.layer_norm2": f"{new}.norm2",
            f"{old}.self_attn.out_proj": f"{new}.out",
            f"{old}.mlp.fc1": f"{new}.fc1",
            f"{old}.mlp.fc2": f"{new}.fc2",
        }
        for part in ("weight", "bias"):
            qkv = [state[f"{old}.self_attn.{name}_proj.{part}"] for name in "qkv"]
            result[f"{new}.qkv.{part}"] = torch.cat(qkv)
    for old, new in pairs.items():
        for part in ("weight", "bias"):
            result[f"{new}.{part}"] = state[f"{old}.{part}"]
    return result
