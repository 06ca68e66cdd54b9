"""The vision tower of Qwen3.5-VL: pictures of one size to image tokens, batched and differentiable.

Parameters carry the checkpoint's names (below `model.visual.`). Same-size pictures share one
attention call per block; the position embedding and the rotary angles are cached per grid.

A picture of h x w pixels is a grid of (h / 16, w / 16) patches. Patches are listed 2x2 block by 2x2
block, because the merger joins each block into one image token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .attention import attention


class VisionTower(nn.Module):
    """[B, 3, h, w] in [0, 1], sides multiples of `patch * merge` -> image tokens [B, n, D]."""

    checkpointing = False  # recompute the blocks in the backward pass instead of keeping them

    def __init__(self, config):
        super().__init__()
        self.patch, self.merge = config.patch_size, config.spatial_merge_size
        self.patch_embed = nn.Module()
        kernel = (config.temporal_patch_size, config.patch_size, config.patch_size)
        self.patch_embed.proj = nn.Conv3d(config.in_channels, config.hidden_size, kernel, kernel)
        self.pos_embed = nn.Embedding(config.num_position_embeddings, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.depth))
        self.merger = Merger(config)
        self.head_dim = config.hidden_size // config.num_heads
        self.rope_theta = (getattr(config, "rope_parameters", None) or {}).get(
            "rope_theta", 10000.0
        )

    def fold_patches(self, mean: list[float], std: list[float]) -> None:
        """Replaces the 3D patch convolution by one matrix product, the normalisation folded in.

        A still picture is repeated over the two temporal slices of the kernel, so the slices add up.
        Pixels enter as (255 x - 127.5) / 128, which 8-bit pixels are without rounding even in
        bfloat16: with x the normalised value is 128 / (255 std) of that, plus (0.5 - mean) / std.
        """
        proj = self.patch_embed.proj
        weight = proj.weight.float().sum(2)  # [hidden, 3, patch, patch]
        mean, std = (torch.tensor(v, device=weight.device).reshape(1, 3, 1, 1) for v in (mean, std))
        bias = proj.bias.float() + (weight * (0.5 - mean) / std).sum((1, 2, 3))
        weight = (weight * 128 / (255 * std)).flatten(1)
        folded = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        folded.weight = nn.Parameter(weight.to(proj.weight.dtype), requires_grad=False)
        folded.bias = nn.Parameter(bias.to(proj.bias.dtype), requires_grad=False)
        self.patch_embed = folded

    def position(self, grid: tuple[int, int]) -> Tensor:
        """The learned square of position embeddings, bilinearly stretched to a grid: [N, hidden]."""
        side = round(self.pos_embed.num_embeddings**0.5)
        square = self.pos_embed.weight.float().T.reshape(1, -1, side, side)
        stretched = F.interpolate(square, size=grid, mode="bilinear", align_corners=True)
        return block_order(stretched[0], self.merge).to(self.pos_embed.weight.dtype)

    def rotary(self, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """cos and sin [N, 1, head_dim] float32 of every patch's row and column."""
        rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
        place = block_order(torch.stack([rows, columns]), self.merge)  # [N, 2]
        half = self.head_dim // 2
        frequency = 1.0 / self.rope_theta ** (torch.arange(0, half, 2) / half)
        angle = (place[:, :, None] * frequency).flatten(1).repeat(1, 2)[:, None]
        angle = angle.to(self.pos_embed.weight.device)
        return angle.cos(), angle.sin()

    def forward(self, x: Tensor, position: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        """`position` and `rope` are those of the picture's grid: constant, so the caller keeps them."""
        patches = patchify((x * 255 - 127.5) / 128, self.patch, self.merge)  # [B, N, 768]
        x = self.patch_embed(patches.to(self.patch_embed.weight.dtype)) + position
        for block in self.blocks:
            if self.checkpointing and torch.is_grad_enabled() and x.requires_grad:
                x = checkpoint(block, x, rope, use_reentrant=False)
            else:
                x = block(x, rope)
        return self.merger(x)


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.attn = Attention(config)
        self.mlp = Mlp(config)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.attn(self.norm1(x), rope)
        return x + self.mlp(self.norm2(x))


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.heads = config.num_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(self, x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(2)  # [B, N, heads, d]
        q, k = rotate(q, *rope), rotate(k, *rope)
        out = attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
        return self.proj(out.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.linear_fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.linear_fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_fc2(F.gelu(self.linear_fc1(x), approximate="tanh"))


class Merger(nn.Module):
    """Each block of merge x merge patches [B, N, hidden] becomes one token of the text [B, n, D]."""

    def __init__(self, config):
        super().__init__()
        self.per_token = config.spatial_merge_size**2
        merged = config.hidden_size * self.per_token
        self.norm = nn.LayerNorm(config.hidden_size, eps=1e-6)
        self.linear_fc1 = nn.Linear(merged, merged)
        self.linear_fc2 = nn.Linear(merged, config.out_hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(x).unflatten(1, (-1, self.per_token)).flatten(2)
        return self.linear_fc2(F.gelu(self.linear_fc1(x)))


def patchify(x: Tensor, patch: int, merge: int) -> Tensor:
    """[B, 3, h, w] -> [B, N, 3 * patch * patch], patches in block order."""
    b, c, h, w = x.shape
    side = patch * merge
    x = x.reshape(b, c, h // side, merge, patch, w // side, merge, patch)
    return x.permute(0, 2, 5, 3, 6, 1, 4, 7).reshape(b, -1, c * patch * patch)


def block_order(x: Tensor, merge: int) -> Tensor:
    """[C, gh, gw] -> [gh * gw, C], in the order of `patchify`."""
    return patchify(x[None], 1, merge)[0]


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding of x [..., N, heads, d]; float32 angles make it float32 inside."""
    first, second = x.chunk(2, -1)
    return (x * cos + torch.cat([-second, first], -1) * sin).to(x.dtype)
