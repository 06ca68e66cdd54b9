"""One pre-norm vision transformer for both SigLIP and CLIP towers, built to be fast and differentiable.

https://arxiv.org/abs/2010.11929 with the two variants' details. Against the usual implementation:
queries, keys and values are one matrix product; so are the patches, with the pixels' normalisation
folded into its weights; the last layer computes only the tokens that are read. In bfloat16 the
matrix products run in bfloat16 while residual stream, norms and heads stay float32, which is what
autocast gives and is closer to float32 than weights cast whole.

`TowerScorer` is what the scorers on such a tower share.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attention, best_backend
from .base import Scorer, check_images, working_precision
from .values import COUNT, POSITIVE, TEXT, value

# quick_gelu(x) = x sigmoid(1.702 x) = silu(1.702 x) / 1.702: `mlp_state` folds both factors into the
# weights, which leaves one pass over the activations instead of three.
QUICK = 1.702
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": F.silu,
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

    def __post_init__(self):
        kinds = {"int": COUNT, "float": POSITIVE, "str": TEXT}
        for name, field in self.__dataclass_fields__.items():
            value(vars(self), name, kinds[field.type], "vision_config")
        if self.hidden_act not in ACTIVATIONS:
            raise ValueError(f"unknown activation {self.hidden_act!r}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide {self.hidden_size}")
        if self.image_size < self.patch_size:
            raise ValueError(f"{self.patch_size} px patches of a {self.image_size} px picture")

    @classmethod
    def read(cls, values: Any, source: str | Path, **defaults: Any) -> VitConfig:
        """From a checkpoint's `vision_config`, which may leave out what is at its default."""
        if not isinstance(values, Mapping):
            raise ValueError(f"{source} has no vision_config")
        if values.get("num_channels", 3) != 3:
            raise ValueError(
                f"{source}: not a tower of RGB pictures: {values['num_channels']} channels"
            )
        known = {name: values[name] for name in cls.__dataclass_fields__ if name in values}
        try:
            return cls(**{**defaults, **known})
        except (TypeError, ValueError) as error:
            raise ValueError(f"{source}: {error}") from None


class VisionTransformer(nn.Module):
    """[B, 3, S, S] in [0, 1] -> normed tokens: all [B, N, D], or the class token [B, D] if there is one."""

    checkpointing = False  # recompute the blocks in the backward pass instead of keeping them

    def __init__(self, config: VitConfig, class_token: bool, dtype: torch.dtype):
        super().__init__()
        d, self.patch, tokens = config.hidden_size, config.patch_size, class_token
        tokens += (config.image_size // config.patch_size) ** 2
        self.heads = config.num_attention_heads
        self.patches = nn.Linear(3 * config.patch_size**2, d, bias=False, dtype=dtype)
        self.position = nn.Parameter(torch.empty(tokens, d))
        self.class_token = nn.Parameter(torch.empty(d)) if class_token else None
        self.pre_norm = Norm(d, config.layer_norm_eps) if class_token else nn.Identity()
        self.blocks = nn.ModuleList(Block(config, dtype) for _ in range(config.num_hidden_layers))
        self.post_norm = Norm(d, config.layer_norm_eps)

    def forward(self, images: Tensor) -> Tensor:
        x = self.patches(patchify(images, self.patch, self.patches.weight.dtype))  # [B, N, D]
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

    def compile(self, **options: Any) -> None:
        """Compiles the tower as one graph: fewer, fused kernels after a slow first call per shape.

        `options` are those of `torch.compile`.
        """
        run = torch.compile(self.forward, **{"fullgraph": True, **options})
        tokens, d = self.position.shape

        def forward(images: Tensor) -> Tensor:
            shape = (len(images), self.heads, tokens, tokens, d // self.heads)
            grad = torch.is_grad_enabled() and images.requires_grad
            # The graph keeps the attention backend that is chosen while it is traced.
            with best_backend(images.device, self.patches.weight.dtype, shape, grad):
                return run(images)

        self.forward = forward

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


def patchify(images: Tensor, patch: int, dtype: torch.dtype) -> Tensor:
    """[B, 3, H, W] in [0, 1] -> [B, N, 3 * patch * patch] centred pixels, for `fold_patches` weights.

    A pixel enters as (255 x - 127.5) / 128, which 8-bit pixels are without rounding even in bfloat16.
    """
    rows, columns = images.shape[-2] // patch, images.shape[-1] // patch
    # Where the patch does not divide the picture (384 / 14), a convolution drops the rest too.
    x = images[..., : rows * patch, : columns * patch] * (255 / 128) - 127.5 / 128
    x = x.to(dtype).unflatten(-1, (columns, patch)).unflatten(-3, (rows, patch))
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


class Keys:
    """A checkpoint's tensors below a prefix; remembers which were read."""

    def __init__(self, state: Mapping[str, Tensor], prefix: str = "", read: set[str] | None = None):
        self.state, self.prefix = state, prefix
        self.read: set[str] = set() if read is None else read

    def __getitem__(self, name: str) -> Tensor:
        tensor = self.state[self.prefix + name]
        self.read.add(self.prefix + name)
        return tensor

    def __contains__(self, name: str) -> bool:
        return self.prefix + name in self.state

    def below(self, prefix: str) -> Keys:
        return Keys(self.state, self.prefix + prefix, self.read)

    def linear(self, old: str, new: str) -> dict[str, Tensor]:
        """The weight and bias of one layer, under its new name."""
        return {f"{new}.{part}": self[f"{old}.{part}"] for part in ("weight", "bias")}

    def check_all_read(self, source: str | Path) -> None:
        # Old checkpoints carry the numbers 0, 1, 2, ... as `position_ids`.
        unknown = [k for k in self.state if k not in self.read and not k.endswith(".position_ids")]
        if unknown:
            raise ValueError(f"{source} has {len(unknown)} unknown keys: {', '.join(unknown[:3])}")


def fold_patches(
    weight: Tensor, mean: Sequence[float], std: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """A patch convolution [D, 3, p, p] over (x - mean) / std as a matrix [D, 3 p p] over `patchify`.

    Returns the matrix and the offset [D] that the normalisation adds to every patch, in float64.
    """
    wide = weight.double()
    mean, std = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1, 1) for v in (mean, std))
    offset = (wide * (0.5 - mean) / std).sum((1, 2, 3))
    return (wide * 128 / (255 * std)).flatten(1), offset


def tower_state(
    keys: Keys, config: VitConfig, mean: Sequence[float], std: Sequence[float]
) -> dict[str, Tensor]:
    """A checkpoint's vision tower (names below `vision_model.`) as the state of `VisionTransformer`.

    Raises:
        KeyError: naming the first key that is missing.
    """
    weight, offset = fold_patches(keys["embeddings.patch_embedding.weight"], mean, std)
    if "embeddings.patch_embedding.bias" in keys:
        offset = offset + keys["embeddings.patch_embedding.bias"].double()
    # What every patch gets alike goes to the position, which is added in float32.
    position = keys["embeddings.position_embedding.weight"].double()
    result = {"patches.weight": weight}
    if "embeddings.class_embedding" in keys:
        result["class_token"] = keys["embeddings.class_embedding"]
        result |= keys.linear("pre_layrnorm", "pre_norm")  # spelt so in every CLIP checkpoint
        result["position"] = torch.cat([position[:1], position[1:] + offset])
    else:
        result["position"] = position + offset
    for i in range(config.num_hidden_layers):
        layer = keys.below(f"encoder.layers.{i}.")
        block = block_state(layer, config.hidden_act)
        result |= {f"blocks.{i}.{name}": tensor for name, tensor in block.items()}
    return result | keys.linear("post_layernorm", "post_norm")


def block_state(keys: Keys, activation: str) -> dict[str, Tensor]:
    """One encoder layer as the state of `Block`."""
    result = keys.linear("layer_norm1", "norm1") | keys.linear("layer_norm2", "norm2")
    for part in ("weight", "bias"):
        qkv = [keys[f"self_attn.{name}_proj.{part}"] for name in "qkv"]
        result[f"qkv.{part}"] = torch.cat(qkv)
    return result | keys.linear("self_attn.out_proj", "out") | mlp_state(keys, activation)


def mlp_state(keys: Keys, activation: str) -> dict[str, Tensor]:
    """fc1 and fc2 for what `ACTIVATIONS` holds."""
    result = keys.linear("mlp.fc1", "fc1") | keys.linear("mlp.fc2", "fc2")
    if activation == "quick_gelu":
        for name, factor in (("fc1.weight", QUICK), ("fc1.bias", QUICK), ("fc2.weight", 1 / QUICK)):
            result[name] = result[name].float() * factor
    return result


class TowerScorer(Scorer):
    """A scorer whose head reads one feature per picture, made by a vision tower.

    Subclasses set `tower` and `head` and write `features`.
    """

    default_batch_size = 32
    tower: VisionTransformer
    head: nn.Module  # [B, D] to [B] or [B, 1]

    def features(self, x: Tensor) -> Tensor:
        """Model input [B, 3, h, w] in [0, 1] to what the head reads, [B, D]."""
        raise NotImplementedError

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.head(self.features(x)).flatten().float()

    def embed(self, images: Tensor) -> Tensor:
        """What the head reads, [B, D] float32, of images as the call takes them. Differentiable."""
        check_images(images, self.device)
        return self.features(self.prepare(working_precision(images))).float()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers are recomputed in the backward pass: less memory, about a third more time."""
        return self.tower.checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.tower.checkpointing = on

    def compile(self, **options: Any) -> None:
        """Compiles the tower; see `VisionTransformer.compile`."""
        self.tower.compile(**options)
        self.kernels = "torch, compiled"
