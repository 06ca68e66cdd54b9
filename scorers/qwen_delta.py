"""The gated delta rule (https://arxiv.org/abs/2412.06464), in chunks.

    S_t = exp(g_t) S_{t-1} + beta_t k_t (v_t - exp(g_t) S_{t-1}^T k_t)^T        o_t = S_t^T q_t

Within a chunk the corrections solve one triangular system (the WY form), so that a sequence costs
matrix products and a short scan over chunks. Nothing is changed in place: gradients flow, into and
out of the memory too. On a GPU, the Triton kernel of flash-linear-attention does the same when it is
installed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK = 64
log = logging.getLogger(__name__)


def gated_delta_rule(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, memory: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Writes values under keys into a fading memory, and reads it with queries.

    Args:
        q, k: [B, S, heads, d_k]; brought to unit length, q also scaled by d_k^-0.5.
        v: [B, S, heads, d_v].
        g: [B, S, heads] log of what remains of the memory, at most 0.
        beta: [B, S, heads] writing strength, 0 to 1.
        memory: [B, heads, d_k, d_v] float32 that earlier tokens left behind; by default empty.

    Returns:
        Read values [B, S, heads, d_v] in v's dtype, and the memory afterwards.
    """
    if not uses_fla(v.device, v.dtype):
        return in_chunks(q, k, v, g, beta, memory)
    options = dict(output_final_state=True, use_qk_l2norm_in_kernel=True)
    return fla_kernel()(q, k, v, g=g, beta=beta, initial_state=memory, **options)


def in_chunks(
    q: Tensor, k: Tensor, v: Tensor, g: Tensor, beta: Tensor, memory: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`gated_delta_rule` in plain torch, float32 inside."""
    dtype, length = v.dtype, v.shape[1]
    q, k, v, g, beta = (chunks(part) for part in (q, k, v, g[..., None], beta[..., None]))
    q, k = unit(q) * q.shape[-1] ** -0.5, unit(k)
    if memory is None:
        memory = q.new_zeros(*q.shape[:2], q.shape[-1], v.shape[-1])
    decay = g.cumsum(-2)  # [B, heads, chunks, CHUNK, 1] log decay since before the chunk
    between = (decay - decay.mT).tril().exp().tril()  # from token j to a later token i
    # What each token writes, given that the tokens before it in the chunk have written:
    # (I + tril(beta K K^T between, -1)) [U W] = beta [V, exp(decay) K]; then U - W S.
    system = (beta * k) @ k.mT * between  # the solver reads below the diagonal only
    written = beta * torch.cat([v, decay.exp() * k], -1)
    solved = torch.linalg.solve_triangular(system, written, upper=False, unitriangular=True)
    u, w = solved.split([v.shape[-1], k.shape[-1]], -1)
    seen = q @ k.mT * between
    q = q * decay.exp()
    k = k * (decay[..., -1:, :] - decay).exp()
    fade = decay[..., -1:, :].exp()
    out = []
    for i in range(q.shape[2]):
        new = u[:, :, i] - w[:, :, i] @ memory
        out.append(q[:, :, i] @ memory + seen[:, :, i] @ new)
        memory = memory * fade[:, :, i] + k[:, :, i].mT @ new
    return torch.cat(out, 2)[:, :, :length].transpose(1, 2).to(dtype), memory


def chunks(x: Tensor) -> Tensor:
    """[B, S, heads, d] -> [B, heads, chunks, CHUNK, d] float32; zeros at the end change nothing."""
    x = F.pad(x.float(), (0, 0, 0, 0, 0, -x.shape[1] % CHUNK))
    return x.unflatten(1, (-1, CHUNK)).permute(0, 3, 1, 2, 4).contiguous()


def unit(x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.square().sum(-1, keepdim=True) + 1e-6)


def uses_fla(device: torch.device, dtype: torch.dtype) -> bool:
    """On GPUs, for 16-bit inputs: its products are not exact in float32, or refused."""
    return device.type == "cuda" and dtype.itemsize == 2 and fla_kernel() is not None


def kernels(device: torch.device, dtype: torch.dtype) -> str:
    """What runs the rule, for the fingerprint: "torch" or "fla x.y"."""
    return f"fla {fla_version()}" if uses_fla(device, dtype) else "torch"


@lru_cache(maxsize=1)
def fla_kernel() -> Callable | None:
    """flash-linear-attention's kernel, if it is installed; which one is used is said once."""
    try:
        from fla.ops.gated_delta_rule import chunk_gated_delta_rule as kernel
    except ModuleNotFoundError:
        log.info("Q-ReAlign runs faster with: pip install flash-linear-attention")
        return None
    except Exception as error:  # whatever Triton or the driver raises while it is imported
        log.warning("flash-linear-attention cannot be used: %s", error)
        return None
    log.info("Q-ReAlign uses the kernels of fla %s", fla_version())
    return kernel


def fla_version() -> str:
    for name in ("fla-core", "flash-linear-attention"):
        try:
            return version(name)
        except PackageNotFoundError:
            continue
    return "unknown"
