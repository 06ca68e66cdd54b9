"""The text tower of Qwen3.5: embedded tokens to the last one's hidden state, and nothing more.

Parameters carry the checkpoint's names (below `model.language_model.`). Three of four layers are
gated delta networks (https://arxiv.org/abs/2412.06464), every fourth is full attention. Sequences are
causal, so right padding needs no mask: no real token sees it.

A layer's state after a prefix is returned, never changed in place: several continuations can fork
from it, and gradients flow through.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .qwen_delta import gated_delta_rule
from .qwen_vision import rotate

State = tuple[Tensor, Tensor]  # full attention: keys, values; gated delta: last inputs, memory


class TextTower(nn.Module):
    """Embedded tokens [B, S, D] -> hidden state [B, D] of one token of each sequence."""

    checkpointing = False  # recompute the layers in the backward pass instead of keeping them

    def __init__(self, config):
        super().__init__()
        self.layers = nn.ModuleList(Layer(config, kind) for kind in config.layer_types)
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        rope = config.rope_parameters
        self.rope_theta, self.sections = rope["rope_theta"], rope["mrope_section"]
        self.rotary_dim = int(config.head_dim * rope.get("partial_rotary_factor", 1.0))

    def rotary(self, positions: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
        """cos and sin [S, 1, rotary_dim] float32 of positions [3, S] (time, row, column).

        The frequencies take turns: of every three, the second turns with the row and the third
        with the column, up to the length of their sections; the others turn with time.
        """
        frequency = 1.0 / self.rope_theta ** (torch.arange(0, self.rotary_dim, 2) / self.rotary_dim)
        axis = torch.zeros(len(frequency), dtype=torch.long)
        for i in (1, 2):
            axis[i : 3 * self.sections[i] : 3] = i
        angle = (positions[axis].T * frequency).repeat(1, 2)[:, None].to(device)
        return angle.cos(), angle.sin()

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        past: list[State] | None = None,
        last: Tensor | None = None,
        keep: bool = False,
    ) -> tuple[Tensor, list[State]]:
        """Reads a sequence, or continues one.

        Args:
            x: [B, S, D] embedded tokens.
            rope: `rotary` of their positions.
            past: the states that reading the earlier tokens left behind.
            last: [B] index of each sequence's last real token; by default the final one.
            keep: return the states after these tokens.

        Returns:
            Normed hidden state [B, D] of token `last`, and the states (empty unless `keep`).
        """
        rope = tuple(part.to(x.dtype) for part in rope)
        if last is None:
            last = torch.full((len(x),), x.shape[1] - 1, device=x.device)
        states = []
        for i, layer in enumerate(self.layers):
            final = last if i == len(self.layers) - 1 else None
            run = self._recomputed if self.checkpointing else Layer.__call__
            x, state = run(layer, x, rope, past[i] if past else None, final)
            if keep:
                states.append(state)
        return self.norm(x)[:, 0], states

    @staticmethod
    def _recomputed(layer: Layer, x: Tensor, *args) -> tuple[Tensor, State]:
        if torch.is_grad_enabled() and x.requires_grad:
            return checkpoint(layer, x, *args, use_reentrant=False)
        return layer(x, *args)


class Layer(nn.Module):
    """With `last`, only that token of each sequence comes out: [B, 1, D]."""

    def __init__(self, config, kind: str):
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = Mlp(config)
        if kind == "full_attention":
            self.self_attn = Attention(config)
        else:
            self.linear_attn = GatedDelta(config)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: State | None, last: Tensor | None
    ) -> tuple[Tensor, State]:
        h = self.input_layernorm(x)
        if hasattr(self, "self_attn"):
            mixed, state = self.self_attn(h, rope, past, last)
        else:
            mixed, state = self.linear_attn(h, past)
            mixed = mixed if last is None else take(mixed, last)
        x = (x if last is None else take(x, last)) + mixed
        return x + self.mlp(self.post_attention_layernorm(x)), state


class Attention(nn.Module):
    """Causal attention with grouped keys and values, a gate on its output, and partial rotation."""

    def __init__(self, config):
        super().__init__()
        d, self.head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.q_proj = nn.Linear(d, 2 * self.heads * self.head_dim, bias)  # queries and gates
        self.k_proj = nn.Linear(d, self.groups * self.head_dim, bias)
        self.v_proj = nn.Linear(d, self.groups * self.head_dim, bias)
        self.o_proj = nn.Linear(self.heads * self.head_dim, d, bias)
        self.q_norm = RMSNorm(self.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(self.head_dim, config.rms_norm_eps)

    def forward(
        self, x: Tensor, rope: tuple[Tensor, Tensor], past: State | None, last: Tensor | None
    ) -> tuple[Tensor, State]:
        k = rotate_first(self.k_norm(self.k_proj(x).unflatten(-1, (self.groups, -1))), *rope)
        k = k.transpose(1, 2)  # [B, groups, S, d]
        v = self.v_proj(x).unflatten(-1, (self.groups, -1)).transpose(1, 2)
        before = 0 if past is None else past[0].shape[2]
        if past is not None:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        if last is not None:
            x, rope = take(x, last), tuple(part[last][:, None] for part in rope)
        q, gate = self.q_proj(x).unflatten(-1, (self.heads, -1)).chunk(2, -1)
        q = rotate_first(self.q_norm(q), *rope).transpose(1, 2)  # [B, heads, S or 1, d]
        out = self._attend(q, k, v, before, last)
        return self.o_proj(out.transpose(1, 2).flatten(2) * gate.flatten(2).sigmoid()), (k, v)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, before: int, last: Tensor | None) -> Tensor:
        if last is not None:  # the heads of a group are queries of their one key head
            mask = torch.arange(k.shape[2], device=k.device) <= before + last[:, None, None, None]
            grouped = q.unflatten(1, (self.groups, -1)).squeeze(3)
            return F.scaled_dot_product_attention(grouped, k, v, mask).flatten(1, 2).unsqueeze(2)
        shared = self.heads // self.groups
        k, v = k.repeat_interleave(shared, 1), v.repeat_interleave(shared, 1)
        if not before:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        mask = torch.ones(q.shape[2], k.shape[2], dtype=torch.bool, device=q.device).tril(before)
        return F.scaled_dot_product_attention(q, k, v, mask)


class GatedDelta(nn.Module):
    """A gated delta network: short causal convolution, then the gated delta rule."""

    def __init__(self, config):
        super().__init__()
        d = config.hidden_size
        self.k_heads, self.v_heads = config.linear_num_key_heads, config.linear_num_value_heads
        k_dim = self.k_heads * config.linear_key_head_dim
        v_dim = self.v_heads * config.linear_value_head_dim
        self.split = [k_dim, k_dim, v_dim]
        kernel = config.linear_conv_kernel_dim
        self.in_proj_qkv = nn.Linear(d, 2 * k_dim + v_dim, bias=False)
        self.in_proj_z = nn.Linear(d, v_dim, bias=False)
        self.in_proj_b = nn.Linear(d, self.v_heads, bias=False)
        self.in_proj_a = nn.Linear(d, self.v_heads, bias=False)
        channels = sum(self.split)
        self.conv1d = nn.Conv1d(channels, channels, kernel, groups=channels, bias=False)
        self.dt_bias = nn.Parameter(torch.ones(self.v_heads))
        self.A_log = nn.Parameter(torch.zeros(self.v_heads))
        self.norm = GatedRMSNorm(config.linear_value_head_dim, config.rms_norm_eps)
        self.out_proj = nn.Linear(v_dim, d, bias=False)

    def forward(self, x: Tensor, past: State | None) -> tuple[Tensor, State]:
        inputs, memory = past or (None, None)
        q, k, v, inputs = self._convolved(x, inputs)
        beta = self.in_proj_b(x).sigmoid()  # how much of each value is written
        g = -self.A_log.float().exp() * F.softplus(self.in_proj_a(x).float() + self.dt_bias)
        out, memory = gated_delta_rule(q, k, v, g, beta, memory)
        out = self.norm(out, self.in_proj_z(x).unflatten(-1, (self.v_heads, -1)))
        return self.out_proj(out.flatten(2)), (inputs, memory)

    def _convolved(self, x: Tensor, inputs: Tensor | None) -> tuple[Tensor, ...]:
        """q, k, v [B, S, v_heads, d], and the convolution's last inputs [B, C, kernel - 1]."""
        qkv = self.in_proj_qkv(x).transpose(1, 2)  # [B, C, S]
        tail = self.conv1d.kernel_size[0] - 1
        qkv = F.pad(qkv, (tail, 0)) if inputs is None else torch.cat([inputs, qkv], 2)
        mixed = F.silu(self.conv1d(qkv)).transpose(1, 2)
        q, k, v = mixed.split(self.split, -1)
        shared = self.v_heads // self.k_heads
        q, k = (
            part.unflatten(-1, (self.k_heads, -1)).repeat_interleave(shared, 2) for part in (q, k)
        )
        # Copied, so that a kept state does not keep the whole sequence.
        return q, k, v.unflatten(-1, (self.v_heads, -1)), qkv[..., -tail:].contiguous()


class Mlp(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class RMSNorm(nn.Module):
    """Centred on one: the weights are stored as their difference from it. Computed in float32."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.zeros(size)), eps

    def forward(self, x: Tensor) -> Tensor:
        return (rms_normed(x, self.eps) * (1.0 + self.weight.float())).to(x.dtype)


class GatedRMSNorm(nn.Module):
    """Normed first, then multiplied by silu(gate)."""

    def __init__(self, size: int, eps: float):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(size)), eps

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:
        normed = self.weight * rms_normed(x, self.eps).to(x.dtype)
        return (normed * F.silu(gate.float())).to(x.dtype)


def rms_normed(x: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)


def take(x: Tensor, index: Tensor) -> Tensor:
    """Token `index` [B] of x [B, S, D]: [B, 1, D]."""
    return x[torch.arange(len(x), device=x.device), index][:, None]


def rotate_first(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates the first channels of x [B, S, heads, d], as many as there are angles."""
    turned, kept = x.split([cos.shape[-1], x.shape[-1] - cos.shape[-1]], -1)
    return torch.cat([rotate(turned, cos, sin), kept], -1)
