"""JoyQuality back in the hub's format: what `joyquality.convert` folds together, taken apart again.

Upstream's class reads the result: `SiglipForImageClassification.from_pretrained(folder)`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from .joyquality import STD, JoyQuality
from .vit import QUICK, VitConfig

State = Mapping[str, Tensor]


def hub_checkpoint(scorer: JoyQuality) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """config.json and the tensors of a scorer under the hub's names, float32 (or float64) on the CPU.

    The same function of a picture; not the same tensors as were once loaded, of which several can
    make one function (a bias on the keys, for one, changes nothing).
    """
    dtype = torch.float64 if scorer.dtype == torch.float64 else torch.float32
    wide = {name: tensor.detach().cpu().double() for name, tensor in scorer.state_dict().items()}
    state = {
        **_prefixed("vision_model.", _tower(_below(wide, "tower."), scorer.config)),
        **_prefixed("vision_model.head.", _pool(_below(wide, "pool."), scorer.config)),
        **_prefixed("classifier.", _below(wide, "head.")),
    }
    return _config(scorer.config, dtype), {k: v.to(dtype).contiguous() for k, v in state.items()}


def _config(config: VitConfig, dtype: torch.dtype) -> dict[str, Any]:
    return {
        "architectures": ["SiglipForImageClassification"],
        "model_type": "siglip",
        "id2label": {"0": "quality"},
        "label2id": {"quality": 0},
        "torch_dtype": str(dtype).removeprefix("torch."),
        "vision_config": {**asdict(config), "model_type": "siglip_vision_model"},
    }


def _below(state: State, prefix: str) -> dict[str, Tensor]:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _prefixed(prefix: str, state: State) -> dict[str, Tensor]:
    return {f"{prefix}{k}": v for k, v in state.items()}


def _renamed(state: State, old: str, new: str) -> dict[str, Tensor]:
    return _prefixed(f"{new}.", _below(state, f"{old}."))


def _tower(state: State, config: VitConfig) -> dict[str, Tensor]:
    """The inverse of `vit.tower_state` for a mean of 0.5, which leaves no offset in the position."""
    d, patch = config.hidden_size, config.patch_size
    std = torch.tensor(STD, dtype=torch.float64).reshape(3, 1, 1)
    weight = state["patches.weight"].unflatten(1, (3, patch, patch))
    result = {
        "embeddings.patch_embedding.weight": weight * std * (255 / 128),
        "embeddings.patch_embedding.bias": torch.zeros(d, dtype=torch.float64),
        "embeddings.position_embedding.weight": state["position"],
        **_renamed(state, "post_norm", "post_layernorm"),
    }
    for i in range(config.num_hidden_layers):
        block = _block(_below(state, f"blocks.{i}."), config)
        result |= {f"encoder.layers.{i}.{name}": tensor for name, tensor in block.items()}
    return result


def _block(state: State, config: VitConfig) -> dict[str, Tensor]:
    """The inverse of `vit.block_state`."""
    result = _mlp(state, config)
    for old, new in (("norm1", "layer_norm1"), ("norm2", "layer_norm2")):
        result |= _renamed(state, old, new)
    for part in ("weight", "bias"):
        for name, tensor in zip("qkv", state[f"qkv.{part}"].chunk(3), strict=True):
            result[f"self_attn.{name}_proj.{part}"] = tensor
    return result | _renamed(state, "out", "self_attn.out_proj")


def _mlp(state: State, config: VitConfig) -> dict[str, Tensor]:
    """The inverse of `vit.mlp_state`."""
    result = _renamed(state, "fc1", "mlp.fc1") | _renamed(state, "fc2", "mlp.fc2")
    if config.hidden_act == "quick_gelu":
        for name, factor in (
            ("fc1.weight", 1 / QUICK),
            ("fc1.bias", 1 / QUICK),
            ("fc2.weight", QUICK),
        ):
            result[f"mlp.{name}"] = result[f"mlp.{name}"] * factor
    return result


def _pool(state: State, config: VitConfig) -> dict[str, Tensor]:
    """The inverse of `PoolingHead.state`.

    Only the products of a head's query with its keys' projection are known, [heads, D]. Here every
    query is all ones, made by the bias alone, and every row of the keys' projection is the same.
    """
    d, heads = config.hidden_size, config.num_attention_heads
    rows = (d // heads) ** -0.5 * state["key"]  # [heads, D]
    key = rows.repeat_interleave(d // heads, 0)
    zeros, ones = torch.zeros(d, dtype=torch.float64), torch.ones(d, dtype=torch.float64)
    result = {
        "probe": ones.reshape(1, 1, d),
        "attention.in_proj_weight": torch.cat([torch.zeros_like(key), key, state["value.weight"]]),
        "attention.in_proj_bias": torch.cat([ones, zeros, state["value.bias"]]),
        **_renamed(state, "out", "attention.out_proj"),
        **_renamed(state, "norm", "layernorm"),
        **_mlp(state, config),
    }
    return result
