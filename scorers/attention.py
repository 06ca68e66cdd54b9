"""Attention by the backend that is fastest where it runs, found by a short benchmark, once per shape.

torch's own order of preference depends on its version and is off by up to 2x on some GPUs: cuDNN
leads on Hopper, flash on Ampere. https://github.com/pytorch/pytorch/pull/192799
"""

from __future__ import annotations

import functools
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# cuDNN's backward pass gives NaN for some finite inputs, depending on their values, so no benchmark
# would notice: it is not used for gradients. https://github.com/pytorch/pytorch/issues/196678
BACKENDS = {
    False: (
        SDPBackend.CUDNN_ATTENTION,
        SDPBackend.FLASH_ATTENTION,
        SDPBackend.EFFICIENT_ATTENTION,
    ),
    True: (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION),
}
ROUNDS = 8


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale) v for [B, heads, N, d]; scale is d^-0.5 by default. No mask."""
    if (
        not q.is_cuda or torch.compiler.is_compiling()
    ):  # who compiles chooses: `best_backend` outside
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    grad = torch.is_grad_enabled() and any(t.requires_grad for t in (q, k, v))
    shape = (q.shape[0], q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    with best_backend(q.device, q.dtype, shape, grad):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


def best_backend(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], grad: bool
) -> AbstractContextManager:
    """Context in which torch uses the fastest backend for (B, heads, queries, keys, d)."""
    if device.type != "cuda":
        return nullcontext()
    bucket = 1 << (shape[0] - 1).bit_length()  # the batch, up to a power of two
    return sdpa_kernel(fastest_backend(device, dtype, (bucket, *shape[1:]), grad))


@functools.lru_cache(maxsize=256)
def fastest_backend(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], grad: bool
) -> SDPBackend:
    """The fastest backend for (B, heads, queries, keys, d), with a backward pass if `grad`.

    MATH, which stores every attention weight, is the last resort: where no other takes the inputs.
    """
    times = {}
    for backend in BACKENDS[grad]:
        try:
            times[backend] = _milliseconds(device, dtype, shape, grad, backend)
        except torch.cuda.OutOfMemoryError:  # says nothing about the backend: nothing is remembered
            raise
        except RuntimeError:  # this backend does not take this shape, dtype or device
            continue
    return min(times, key=times.get) if times else SDPBackend.MATH


@torch.inference_mode(False)
def _milliseconds(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    grad: bool,
    backend: SDPBackend,
) -> float:
    batch, heads, queries, keys, d = shape
    noise = torch.Generator(device).manual_seed(0)  # its own: the user's sampling must not change

    def draw(tokens: int) -> Tensor:
        # In memory as the projections leave it: heads beside each other in one token.
        drawn = torch.randn(
            batch, tokens, heads, d, device=device, dtype=dtype, generator=noise
        ).transpose(1, 2)
        return drawn.requires_grad_(grad)

    q, k, v = draw(queries), draw(keys), draw(keys)

    def run() -> None:
        with torch.set_grad_enabled(grad), sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v)
            if grad:
                torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    for _ in range(2):
        run()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(ROUNDS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / ROUNDS
