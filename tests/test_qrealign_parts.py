"""The pure functions under Q-ReAlign, each against a definition of its own."""

import logging
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_qwen import pillow_processing

from tastemaker.scorers import qwen_delta
from tastemaker.scorers.qrealign_prompt import LEVELS, expected_level, split
from tastemaker.scorers.qwen_delta import CHUNK, in_chunks, kernels, unit
from tastemaker.scorers.qwen_pixels import smart_resize
from tastemaker.scorers.qwen_reader import Recent, positions
from tastemaker.scorers.qwen_vision import block_order, patchify


@given(
    st.integers(1, 6000),
    st.integers(1, 6000),
    st.sampled_from([28, 32]),
    st.sampled_from([(65536, 16777216), (3136, 1003520), (65536, 65536)]),
)
@settings(max_examples=300, deadline=None)
def test_smart_resize_is_qwens(height, width, factor, area):
    if max(height, width) / min(height, width) > 200:
        with pytest.raises(ValueError, match=f"{width}x{height} px"):
            smart_resize(height, width, factor, *area)
        return
    expected = pillow_processing().smart_resize(height, width, factor, *area)
    assert smart_resize(height, width, factor, *area) == expected


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((512, 768), (512, 768)),  # generated pictures are not resized
        ((528, 560), (512, 576)),  # 16.5 rounds to 16, 17.5 to 18
        ((1, 1), (256, 256)),
        ((4000, 5000), (3648, 4576)),
    ],
)
def test_smart_resize_by_hand(size, expected):
    assert smart_resize(*size, 32, 65536, 16777216) == expected


def test_patches_come_block_by_block():
    grid = torch.arange(4 * 6).reshape(1, 4, 6)
    assert block_order(grid, 2)[:8, 0].tolist() == [0, 1, 6, 7, 2, 3, 8, 9]
    x = torch.rand(2, 3, 64, 96)
    patches = patchify(x, 16, 2)
    assert patches.shape == (2, 24, 768)
    torch.testing.assert_close(patches[1, 2], x[1, :, 16:32, :16].flatten())
    torch.testing.assert_close(patches[0, 4], x[0, :, :16, 32:48].flatten())


def test_positions_of_two_pictures():
    expected = [
        [0, 1, 2, 2, 2, 2, 2, 2, 5, 6, 6, 6, 6, 6, 6, 9, 10],
        [0, 1, 2, 2, 2, 3, 3, 3, 5, 6, 6, 6, 7, 7, 7, 9, 10],
        [0, 1, 2, 3, 4, 2, 3, 4, 5, 6, 7, 8, 6, 7, 8, 9, 10],
    ]
    assert positions([2, 1, 2], (2, 3)).tolist() == expected


def recurrence(q, k, v, g, beta, memory):
    """The gated delta rule as its docstring states it, a token at a time."""
    q, k = unit(q) / math.sqrt(q.shape[-1]), unit(k)
    out = []
    for t in range(q.shape[1]):
        memory = memory * g[:, t, :, None, None].exp()
        error = v[:, t] - torch.einsum("bhkv,bhk->bhv", memory, k[:, t])
        memory = memory + torch.einsum("bhk,bhv,bh->bhkv", k[:, t], error, beta[:, t])
        out.append(torch.einsum("bhkv,bhk->bhv", memory, q[:, t]))
    return torch.stack(out, 1), memory


def rule_inputs(length, seed, fade):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 2, length, 3, 8, generator=generator)
    k = k + 2  # keys that resemble one another, as those of image patches do
    beta = torch.rand(2, length, 3, generator=generator)
    g = -fade * torch.rand(2, length, 3, generator=generator)
    return q, k, v, g, beta, torch.randn(2, 3, 8, 8, generator=generator)


@given(st.integers(1, 3 * CHUNK), st.integers(0, 99), st.sampled_from([0.0, 0.1, 5.0, 100.0]))
@settings(max_examples=30, deadline=None)
def test_the_chunked_rule_is_the_recurrence(length, seed, fade):
    inputs = rule_inputs(length, seed, fade)
    out, memory = in_chunks(*inputs)
    expected, remembered = recurrence(*inputs)
    torch.testing.assert_close(out, expected, atol=2e-4, rtol=1e-4)
    torch.testing.assert_close(memory, remembered, atol=2e-4, rtol=1e-4)


def test_the_rule_goes_on_from_a_memory_and_carries_gradients():
    *inputs, memory = rule_inputs(100, 0, 0.1)
    inputs, memory = [x.requires_grad_() for x in inputs], memory.requires_grad_()
    whole, _ = in_chunks(*inputs, memory)
    first, kept = in_chunks(*(x[:, :70] for x in inputs), memory)
    second, _ = in_chunks(*(x[:, 70:] for x in inputs), kept)
    halves = torch.cat([first, second], 1)
    torch.testing.assert_close(halves, whole, atol=2e-5, rtol=1e-4)
    weights = torch.randn_like(whole)
    one = torch.autograd.grad((whole * weights).sum(), [*inputs, memory])
    two = torch.autograd.grad((halves * weights).sum(), [*inputs, memory])
    for a, b in zip(one, two, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_the_rules_gradient_survives_strong_fading():
    """exp of a large positive number, masked afterwards, would make it NaN."""
    inputs = [x.requires_grad_() for x in rule_inputs(100, 0, 1000.0)]
    out, _ = in_chunks(*inputs)
    assert all(g.isfinite().all() for g in torch.autograd.grad(out.sum(), inputs))


BF16, FP32, GPU, CPU = torch.bfloat16, torch.float32, torch.device("cuda"), torch.device("cpu")


@pytest.fixture
def fresh_kernel():
    qwen_delta.fla_kernel.cache_clear()
    yield
    qwen_delta.fla_kernel.cache_clear()


def test_fla_is_used_where_it_is_installed_and_said_once(monkeypatch, caplog, fresh_kernel):
    """Its call, states and gradients were compared with `in_chunks` in Triton's interpreter."""
    ops = SimpleNamespace(chunk_gated_delta_rule=lambda *_: None)
    for name in ("fla", "fla.ops", "fla.ops.gated_delta_rule"):
        monkeypatch.setitem(sys.modules, name, ops)
    monkeypatch.setattr(qwen_delta, "version", lambda name: "0.6.0")
    with caplog.at_level(logging.INFO):
        found = [kernels(device, dtype) for device in (GPU, CPU) for dtype in (BF16, FP32)]
        assert found == ["fla 0.6.0", "torch", "torch", "torch"]
        assert kernels(GPU, BF16) == "fla 0.6.0"
    assert caplog.messages == ["Q-ReAlign uses the kernels of fla 0.6.0"]


def test_a_broken_fla_is_said_and_not_used(monkeypatch, caplog, fresh_kernel):
    monkeypatch.setitem(sys.modules, "fla", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "fla.ops", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "fla.ops.gated_delta_rule", SimpleNamespace())
    assert kernels(GPU, BF16) == kernels(GPU, BF16) == "torch"
    assert len(caplog.records) == 1 and "cannot be used" in caplog.text


def test_without_fla(monkeypatch, fresh_kernel):
    monkeypatch.setitem(sys.modules, "fla", None)
    assert kernels(GPU, BF16) == "torch"


def test_expected_level():
    certain = torch.full((len(LEVELS), len(LEVELS)), -1e4).fill_diagonal_(0)
    assert expected_level(certain).tolist() == [1.0, 0.75, 0.5, 0.25, 0.0]
    assert expected_level(torch.zeros(2, 3, 5)).tolist() == [[0.5] * 3] * 2


def test_split():
    assert split([1, 9, 9, 2, 3], 9) == [(1,), (), (2, 3)]
    assert split([], 9) == [()]


def test_recent_keeps_the_last_and_makes_ordinary_tensors():
    recent, made = Recent(2), []

    def make(key):
        return recent(key, lambda: made.append(key) or torch.ones(1))

    with torch.inference_mode():
        for key in "abacab":
            assert not make(key).is_inference()
    assert made == ["a", "b", "c", "b"]
    assert len(recent) == 2
