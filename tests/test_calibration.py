"""What a scorer's numbers mean, and tags in captions."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tastemaker import load_scorer
from tastemaker.ranking import (
    assign_buckets,
    calibrated_rank,
    rank_bucket,
    read_names,
    tag_caption,
)
from tastemaker.scorers import ScorerCard
from tastemaker.scorers.calibration import own_tau, scale_edges

INF = math.inf


def card(low, high, *capabilities) -> ScorerCard:
    return ScorerCard("one", "MIT", "a number", (low, high), capabilities=capabilities)


def test_a_scorer_of_a_finite_range_is_divided_evenly():
    assert scale_edges(card(0, 1), 5) == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert scale_edges(card(-2, 2), 2) == [0] and scale_edges(card(0, 1), 1) == []


@given(st.floats(-20, 20), st.integers(1, 10))
def test_an_unbounded_scale_is_that_of_calibrated_ranks(score, n):
    edges = scale_edges(card(-INF, INF, "win_probability"), n)
    if any(abs(score - edge) < 1e-9 for edge in edges):
        return  # on an edge, where the sigmoid may round to either side
    expected = rank_bucket(calibrated_rank([score], 1.0, 0.0), n)
    assert assign_buckets([score], edges).tolist() == expected.tolist()


def test_a_scorer_without_a_scale_says_so():
    with pytest.raises(ValueError, match=r"one's scores have no scale of their own \(a number\)"):
        scale_edges(card(0, INF), 3)


def test_whose_differences_are_probabilities():
    assert own_tau(load_scorer("nano").card) == 1.0 and own_tau(card(0, 1)) is None


def test_names():
    assert read_names([" bad ", "good"]) == ["bad", "good"]
    for wrong in ([], ["bad", ""], ["bad", "bad "]):
        with pytest.raises(ValueError, match="different words"):
            read_names(wrong)


@given(st.text(min_size=1), st.text(min_size=1), st.text(max_size=3))
def test_a_caption_is_never_changed(caption, tag, separator):
    before = tag_caption(caption, tag, "before", separator)
    assert before == tag + separator + caption
    assert tag_caption(caption, tag, "after", separator) == caption + separator + tag
    assert tag_caption(caption, None) == caption and tag_caption("", tag) == tag


def test_a_position_is_one_of_two():
    with pytest.raises(ValueError, match="position must be"):
        tag_caption("a", "b", "around")
