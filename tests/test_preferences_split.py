"""Splits and folds share no image, keep whole what hangs together, and are the same every time."""

from pathlib import Path

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.split import folds, split


def compared(pairs) -> Comparisons:
    return Comparisons.of((f"/{a}.png", f"/{b}.png", 1.0) for a, b in pairs)


def fixed_degree(n: int, k: int, seed: int = 0) -> Comparisons:
    """n images, each in about k comparisons with images at random."""
    generator = torch.Generator().manual_seed(seed)
    ends = torch.arange(n).repeat(k)[torch.randperm(n * k, generator=generator)].reshape(-1, 2)
    return compared(pair for pair in ends.tolist() if pair[0] != pair[1])


edges = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30)), min_size=2, max_size=80)


@given(edges, st.floats(0.05, 0.6), st.integers(0, 5))
def test_no_image_is_in_both_parts_and_nothing_is_lost_uncounted(pairs, fraction, seed):
    comparisons = compared(pairs)
    try:
        train, test, dropped = split(comparisons, fraction, seed)
    except ValueError:
        assume(False)
    assert not set(train.images) & set(test.images)
    assert len(train) + len(test) + dropped == len(comparisons)
    for part in (train, test):
        images = set(part.images)
        inside = [row for row in comparisons.rows() if images.issuperset(row[:2])]
        assert list(part.rows()) == inside


@given(edges, st.integers(2, 5), st.integers(1, 3))
def test_folds_train_on_no_image_that_they_test(pairs, k, repeats):
    comparisons = compared(pairs)
    train, test = folds(comparisons, k, repeats)
    assert train.shape == test.shape == (len(pairs), k * repeats)
    for trained, tested in zip(train.T, test.T, strict=True):
        images = [set(comparisons.pairs[part].flatten().tolist()) for part in (trained, tested)]
        assert not images[0] & images[1]
    assert (test.reshape(-1, repeats, k).sum(-1) <= 1).all()  # at most once a repeat


def test_separate_comparisons_lose_nothing():
    train, test, dropped = split(compared((2 * i, 2 * i + 1) for i in range(1000)), 0.1)
    assert (len(train), len(test), dropped) == (900, 100, 0)


def test_a_small_part_of_many_components_is_not_cut():
    assert split(compared((2 * i, 2 * i + 1) for i in range(1000)), 0.002).dropped == 0


def test_communities_stay_whole():
    generator = torch.Generator().manual_seed(0)
    pairs = [
        (20 * c + int(a), 20 * c + int(b))
        for c in range(50)
        for a, b in torch.randint(20, (40, 2), generator=generator)
        if a != b
    ]
    train, test, dropped = split(compared(pairs), 0.2)
    assert len(test) >= 0.2 * len(pairs) and dropped <= 0.05 * len(pairs)


def test_one_connected_graph_keeps_most_of_its_comparisons():
    comparisons = fixed_degree(1500, 8)  # what is drawn at random loses 43 % for a test of 10 %
    train, test, dropped = split(comparisons, 0.1)
    assert len(test) == pytest.approx(0.1 * len(comparisons), rel=0.02)
    assert dropped < 0.25 * len(comparisons)


def test_folds_test_most_comparisons_of_a_sparse_graph():
    train, test = folds(fixed_degree(1000, 4), 5)
    assert test.sum() > 0.4 * len(test)  # drawn at random: 20 %
    assert (test.sum(0) > 0.05 * len(test)).all()


def test_the_same_every_time_and_another_with_another_seed():
    comparisons = fixed_degree(200, 4)
    one, same, other = (split(comparisons, 0.2, seed).test.images for seed in (3, 3, 4))
    assert one == same != other


def test_a_hub_cannot_be_divided():
    with pytest.raises(ValueError, match="9 comparisons of 10 images cannot be divided"):
        split(compared((0, i) for i in range(1, 10)), 0.1)


@pytest.mark.parametrize("fraction", [0, 1, -0.1, float("nan")])
def test_a_fraction_is_between_0_and_1(fraction):
    with pytest.raises(ValueError, match="must be above 0 and below 1"):
        split(fixed_degree(20, 2), fraction)


def test_paths_are_one_image_however_they_are_spelt():
    assert Comparisons.of([("/a/../a/x", "/a//x", 1.0)]).images == (Path("/a/x"),)
