"""Fixed-k pairing: degrees, sides, mix, and that near means near."""

import sys
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.preferences import pairing
from tastemaker.preferences.pairing import fixed_k_pairs


@st.composite
def sizes(draw):
    n = draw(st.integers(2, 40))
    return n, draw(st.integers(1, n - 1))


def embeddings(n: int, seed: int = 0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(sizes(), st.floats(0, 1), st.integers(0, 100))
def test_every_image_is_in_k_pairs_and_no_pair_comes_twice(size, random, seed):
    n, k = size
    pairs = fixed_k_pairs(embeddings(n, seed), k, random, seed=seed).pairs
    assert pairs.dtype == torch.int64 and pairs.shape == (n * k // 2, 2)
    degrees = torch.bincount(pairs.flatten(), minlength=n)
    assert sorted((k - degrees).tolist()) == [0] * (n - n * k % 2) + [1] * (n * k % 2)
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)
    assert (pairs[:, 0] != pairs[:, 1]).all()
    left = torch.bincount(pairs[:, 0], minlength=n)
    assert ((2 * left - degrees).abs() <= 1).all()


@given(st.integers(2, 12))
def test_all_possible_pairs_is_a_case_like_any_other(n):
    pairs = fixed_k_pairs(embeddings(n), n - 1, 0.5).pairs
    assert len({frozenset(pair) for pair in pairs.tolist()}) == n * (n - 1) // 2


@given(st.integers(0, 5), st.floats(0, 1))
def test_the_seed_decides(seed, random):
    x = embeddings(30)
    first, again = (fixed_k_pairs(x, 4, random, seed=seed) for _ in range(2))
    assert torch.equal(first.pairs, again.pairs) and torch.equal(first.near, again.near)
    other = fixed_k_pairs(x, 4, random, seed=seed + 1)
    assert not torch.equal(first.pairs, other.pairs)


@pytest.mark.parametrize("random", [0.0, 0.3, 1.0])
def test_the_mix_is_what_was_asked_for(random):
    pairing = fixed_k_pairs(embeddings(600, d=8), 4, random)
    assert abs(pairing.near.float().mean().item() - (1 - random)) < 0.02


def test_near_pairs_are_nearer():
    x = embeddings(600, d=8)
    result = fixed_k_pairs(x, 4, 0.5)
    a, b = x[result.pairs].unbind(1)
    distance = (a - b).norm(dim=1)
    among_all = torch.cdist(x, x).sort(1).values[:, 12].mean()  # the twelfth nearest, on average
    assert distance[result.near].mean() < among_all < 0.7 * distance[~result.near].mean()


def test_twins_find_each_other_whatever_cell_they_are_cut_into(monkeypatch):
    monkeypatch.setattr(pairing, "CELL", 16)
    half = 10 * embeddings(150, d=4)
    x = torch.cat([half, half + 1e-3])
    pairs = fixed_k_pairs(x, 1, 0.0).pairs
    twins = (pairs[:, 0] - pairs[:, 1]).abs() == 150
    assert twins.float().mean() > 0.7
    degrees = Counter(pairs.flatten().tolist())
    assert set(degrees.values()) == {1} and len(degrees) == 300


def test_first_pairs_are_a_fair_part_of_all():
    result = fixed_k_pairs(embeddings(600, d=8), 4, 0.5)
    assert abs(result.near[:300].float().mean().item() - 0.5) < 0.1


def test_a_file_that_is_mapped_gives_the_same(tmp_path):
    x = embeddings(50)
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert torch.equal(fixed_k_pairs(mapped).pairs, fixed_k_pairs(x).pairs)


@pytest.mark.parametrize("k, random, message", [(0, 0, "1 to 4"), (5, 0, "not 5"), (2, 1.1, "1.1")])
def test_what_cannot_be_is_said(k, random, message):
    with pytest.raises(ValueError, match=message):
        fixed_k_pairs(embeddings(5), k, random)


def test_random_pairs_need_no_scikit_learn_and_near_ones_say_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.neighbors", None)
    assert len(fixed_k_pairs(embeddings(9), 2, 1.0).pairs) == 9
    with pytest.raises(ImportError, match=r"tastemaker\[train\]"):
        fixed_k_pairs(embeddings(9), 2, 0.5)


def one_by_one(pairs, capacity) -> list[bool]:
    """The definition: each pair in turn, if both still have room."""
    room, taken = list(capacity), []
    for a, b in pairs:
        taken.append(bool(room[a] and room[b]))
        if taken[-1]:
            room[a], room[b] = room[a] - 1, room[b] - 1
    return taken


@given(st.integers(2, 20), st.data())
def test_the_pairs_taken_at_once_are_those_taken_one_by_one(n, data):
    everyone = [(a, b) for a in range(n) for b in range(a)]
    pairs = data.draw(st.permutations(everyone))[: data.draw(st.integers(0, len(everyone)))]
    capacity = data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n))
    found = pairing.greedy(np.array(pairs, np.int64).reshape(-1, 2), np.array(capacity))
    assert found.tolist() == one_by_one(pairs, capacity)


@given(sizes(), st.integers(0, 100))
def test_cells_change_nothing_that_is_promised(size, seed):
    n, k = size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pairing, "CELL", 5)
        pairs = fixed_k_pairs(embeddings(n, seed), k, 0.2, seed=seed).pairs
    degrees = torch.bincount(pairs.flatten(), minlength=n)
    assert sorted((k - degrees).tolist()) == [0] * (n - n * k % 2) + [1] * (n * k % 2)
    assert len({frozenset(pair) for pair in pairs.tolist()}) == len(pairs)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("cell", [5, 100])
def test_values_that_are_not_finite_are_refused_in_one_line(monkeypatch, bad, cell):
    monkeypatch.setattr(pairing, "CELL", cell)
    x = embeddings(30)
    x[17, 1] = bad
    with pytest.raises(ValueError, match=r"^embeddings must be finite$"):
        fixed_k_pairs(x, 2, 0.5)
