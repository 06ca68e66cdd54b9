"""Farthest-point selection: the exact greedy, whatever the blocks; groups; what is refused."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.preferences import select
from tastemaker.preferences.select import clusters, farthest_points, score_groups, shares


def embeddings(n: int, seed: int = 0, d: int = 3) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


def one_by_one(x: torch.Tensor, first: int, count: int) -> list[int]:
    """The definition: each next is the farthest from all that are chosen."""
    chosen = [first]
    while len(chosen) < count:
        distance = torch.cdist(x.double(), x[chosen].double()).amin(1)
        distance[chosen] = -1
        chosen.append(int(distance.argmax()))
    return chosen


@given(st.integers(1, 60), st.data())
def test_it_is_the_greedy_choice_whatever_the_blocks_and_the_shortlist(n, data):
    x, count = embeddings(n, n), data.draw(st.integers(1, n))
    seed, listed = data.draw(st.integers(0, 9)), data.draw(st.integers(2, 70))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(select, "BLOCK", 7)
        patch.setattr(select, "SHORTLIST", listed)
        found = farthest_points(x, count, seed=seed)
    assert found.dtype == torch.int64
    assert found.tolist() == one_by_one(x, int(found[0]), count)
    assert torch.equal(found, farthest_points(x, count, seed=seed))


@given(st.integers(2, 30), st.integers(0, 5))
def test_twins_are_chosen_only_when_nothing_else_is_left(n, seed):
    x = embeddings(n).repeat(2, 1)
    found = farthest_points(x, 2 * n, seed=seed)
    assert sorted(found.tolist()) == list(range(2 * n))
    assert sorted((found[:n] % n).tolist()) == list(range(n))


def test_the_seed_draws_the_first():
    assert len({int(farthest_points(embeddings(50), 1, seed=seed)) for seed in range(9)}) > 3


def test_it_covers_what_is_rare():
    crowd = 0.1 * embeddings(2000)
    odd = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 0, 9]])
    found = farthest_points(torch.cat([crowd, odd]), 4)
    assert {2000, 2001, 2002} <= set(found.tolist())


def test_a_mapped_file_in_half_precision_gives_the_same(tmp_path):
    x = embeddings(300).half()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    groups = torch.arange(300) % 3
    assert torch.equal(farthest_points(mapped, 20), farthest_points(x, 20))
    chosen = farthest_points(mapped, 20, groups=groups)
    assert torch.equal(chosen, farthest_points(x, 20, groups=groups))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.data())
def test_shares_are_as_equal_as_the_sizes_allow(sizes, data):
    count = data.draw(st.integers(0, sum(sizes)))
    given_ = shares(sizes, count)
    assert sum(given_) == count
    assert all(0 <= share <= size for share, size in zip(given_, sizes, strict=True))
    unfilled = [s for s, size in zip(given_, sizes, strict=True) if s < size]
    assert not unfilled or min(unfilled) >= max(given_) - 1  # who gives less, gives all it has


def test_groups_give_equally_and_stay_apart():
    x = torch.cat([embeddings(900, 1), embeddings(100, 2), embeddings(5, 3)])
    groups = torch.tensor([0] * 900 + [1] * 100 + [2] * 5)
    found = farthest_points(x, 45, groups=groups)
    assert torch.bincount(groups[found]).tolist() == [20, 20, 5]
    assert len(set(found.tolist())) == 45
    ours = torch.cdist(x[found], x[found]).fill_diagonal_(torch.inf).min()
    drawn = x[torch.randperm(1005, generator=torch.Generator().manual_seed(0))[:45]]
    assert ours > torch.cdist(drawn, drawn).fill_diagonal_(torch.inf).min()


def test_score_groups_have_equal_widths():
    scores = torch.cat([torch.linspace(0, 1, 990), torch.tensor([50.0, -50.0])])
    groups = score_groups(scores, 4)  # the outliers do not stretch the scale
    assert groups.unique().tolist() == [0, 1, 2, 3]
    assert torch.bincount(groups).float().std() < 10
    assert score_groups(torch.ones(5), 3).unique().numel() == 1
    with pytest.raises(ValueError, match="finite"):
        score_groups(torch.tensor([0.0, torch.nan]))


def test_clusters_are_what_lies_together(monkeypatch):
    x = torch.cat([embeddings(40), 20 + embeddings(40, 1)])
    found = clusters(x, 2)
    assert found[:40].unique().numel() == found[40:].unique().numel() == 1
    assert found[0] != found[40]
    monkeypatch.setitem(sys.modules, "sklearn.cluster", None)
    with pytest.raises(ImportError, match=r"tastemaker\[train\]"):
        clusters(x, 2)


@pytest.mark.parametrize(
    "x, count, message",
    [
        (torch.ones(4), 1, r"\[N, D\]"),
        (torch.ones(4, 2), 5, "5 of 4"),
        (torch.ones(4, 2), 0, "0 of 4"),
        (torch.full((4, 2), torch.nan), 2, "finite"),
    ],
)
def test_what_cannot_be_is_said(x, count, message):
    with pytest.raises(ValueError, match=message):
        farthest_points(x, count)


def test_clusters_are_learned_from_some_where_there_are_many(monkeypatch):
    monkeypatch.setattr(select, "SAMPLE", 30)
    monkeypatch.setattr(select, "BLOCK", 7)
    x = torch.cat([embeddings(40), 20 + embeddings(40, 1)])
    found = clusters(x, 2)
    assert found[:40].unique().numel() == found[40:].unique().numel() == 1
    assert found[0] != found[40] and torch.equal(found, clusters(x, 2))
    with pytest.raises(ValueError, match="^embeddings must be finite$"):
        clusters(x / 0, 2)
