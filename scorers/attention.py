"""Attention by the backend that is fastest where it runs, found by a short benchmark, once per shape.

torch's own order of preference depends on its version and is off by up to 2x on some GPUs: cuDNN
leads on Hopper, flash on Ampere. https://github.com/pytorch/pytorch/pull/192799
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

BACKENDS = (
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
)
ROUNDS = 8


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float | None = None) -> Tensor:
    """softmax(q k^T scale) v for [B, heads, N, d]; scale is d^-0.5 by default. No mask."""
    if not q.is_cuda or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(q, k, v, scale=scale)
    grad = torch.is_grad_enabled() and (q.requires_grad or k.requires_grad or v.requires_grad)
    bucket = 1 << (q.shape[0] - 1).bit_length()  # the batch, up to a power of two
    shape = (bucket, q.shape[1], q.shape[2], k.shape[2], q.shape[3])
    with sdpa_kernel(fastest_backend(q.device, q.dtype, shape, grad)):
        return F.scaled_dot_product_attention(q, k, v, scale=scale)


@functools.lru_cache(maxsize=256)
def fastest_backend(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...], grad: bool
) -> SDPBackend:
    """The fastest of `BACKENDS` for (B, heads, queries, keys, d), with a backward pass if `grad`."""
    times = {}
    for backend in BACKENDS:
        try:
            times[backend] = _milliseconds(device, dtype, shape, grad, backend)
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
    q, k, v = (
        torch.randn(batch, heads, n, d, device=device, dtype=dtype, requires_grad=grad)
        for n in (queries, keys, keys)
    )

    def run() -> None:
        with torch.set_grad_enabled(grad), sdpa_kernel(backend):
            out = F.scaled_dot_product_attention(q, k, v)
            if grad:
                out.sum().backward()

    for _ in range(2):
        run()
    # cuDNN's backward pass has given NaN for finite inputs: such a backend is not used.
    if grad and not all(torch.isfinite(t.grad).all() for t in (q, k, v)):
        raise RuntimeError(f"{backend} gives gradients that are not finite")
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(ROUNDS):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / ROUNDS
