"""Buckets of equal width and equal count, their edges, and the tags."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.ranking import (
    QUALITY_NAMES,
    assign_buckets,
    bucket_edges,
    buckets,
    percentile,
    quality_tags,
)

NAN, INF = math.nan, math.inf
METHODS = ["equal_width", "quantile"]

methods = st.sampled_from(METHODS)
counts = st.integers(1, 12)
finite = st.one_of(
    st.sampled_from([-2.5, -0.0, 0.0, 1.0, 7.25]),
    st.floats(allow_nan=False, allow_infinity=False, width=32),
)
score_lists = st.lists(st.one_of(finite, st.sampled_from([NAN, INF, -INF])), max_size=30)
finite_lists = st.lists(finite, min_size=1, max_size=30)


@given(score_lists, counts, methods)
def test_labels_are_in_range_and_rise_with_the_score(values, n, method):
    labels = buckets(values, n, method)
    assert labels.dtype == torch.int64 and labels.shape == (len(values),)
    kept = sorted((v, k) for v, k in zip(values, labels.tolist(), strict=True) if v == v)
    assert all(k == -1 for v, k in zip(values, labels.tolist(), strict=True) if v != v)
    assert all(0 <= k < n for _, k in kept)
    assert all(a[1] <= b[1] for a, b in zip(kept, kept[1:], strict=False))


@given(score_lists.filter(len), counts, methods, st.data())
def test_equal_scores_share_a_bucket(values, n, method, data):
    values = values + data.draw(st.lists(st.sampled_from(values), max_size=10))
    seen = {}
    for value, label in zip(values, buckets(values, n, method).tolist(), strict=True):
        assert seen.setdefault(value, label) == label or math.isnan(value)


@given(score_lists, counts, methods, st.data())
def test_labels_move_with_the_candidates(values, n, method, data):
    order = data.draw(st.permutations(range(len(values))))
    labels = buckets(values, n, method).tolist()
    assert buckets([values[i] for i in order], n, method).tolist() == [labels[i] for i in order]


@given(finite_lists.filter(lambda v: min(v) < max(v)), st.integers(2, 12))
def test_equal_width_divides_the_range_evenly(values, n):
    edges = bucket_edges(values, n)
    assert edges.dtype == torch.float64 and edges.shape == (n - 1,)
    low, high = min(values), max(values)
    expected = [low + (high - low) * j / n for j in range(1, n)]
    assert edges.tolist() == pytest.approx(expected, abs=1e-9 * (high - low))
    labels = buckets(values, n).tolist()
    assert labels[values.index(low)] == 0 and labels[values.index(high)] == n - 1


def test_equal_width_by_hand():
    # Edges 2, 4, 6, 8: a score on an edge belongs to the bucket above it.
    values = [0.0, 1.9, 2.0, 3.9, 4.0, 5.0, 6.0, 7.9, 8.0, 10.0, INF, -INF, NAN]
    assert bucket_edges(values, 5).tolist() == [2.0, 4.0, 6.0, 8.0]
    assert buckets(values, 5).tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 4, 0, -1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_width_of_adjacent_floats_and_of_the_widest_range(dtype):
    one = torch.tensor(1.0, dtype=dtype)
    pair = torch.stack([one, torch.nextafter(one, one + 1)])
    assert buckets(pair, 4).tolist() == [0, 3]
    highest = torch.finfo(dtype).max
    labels = buckets(torch.tensor([-highest, 0, highest], dtype=dtype), 3).tolist()
    # The width of the widest float64 range is itself out of range: only its ends are told apart.
    assert labels == ([0, 1, 2] if dtype == torch.float32 else [0, 0, 2])


def test_equal_width_edges_between_whole_numbers_are_exact():
    for n in range(2, 50):
        assert bucket_edges([-7.0, n - 7.0], n).tolist() == [j - 7.0 for j in range(1, n)]


@given(st.lists(finite, min_size=1, max_size=60, unique=True), counts)
def test_quantile_counts_differ_by_at_most_one(values, n):
    sizes = np.bincount(buckets(values, n, "quantile").numpy(), minlength=n)
    assert sizes.max() - sizes.min() <= 1


@given(finite_lists, st.lists(finite, max_size=10), counts)
def test_quantile_label_is_the_share_of_the_percentile(values, new, n):
    """Of the set's own scores and of new ones between, above and below them."""
    labels = assign_buckets(values + new, bucket_edges(values, n, "quantile"))
    # Whole numbers: floor(n * (below + not above) / (2 N)).
    array = np.array(values)
    expected = [
        min(n * int((array < v).sum() + (array <= v).sum()) // (2 * len(values)), n - 1)
        for v in values + new
    ]
    assert labels.tolist() == expected
    share = (percentile(values + new, values) * n / 100).floor().clamp(max=n - 1)
    assert ((labels - share).abs() <= 1).all()  # percentile is rounded, the labels are not


@given(finite_lists.filter(lambda v: min(v) < max(v)), counts, methods)
def test_old_edges_put_old_scores_where_they_were(values, n, method):
    edges = bucket_edges(values, n, method)
    assert assign_buckets(values, edges).tolist() == buckets(values, n, method).tolist()
    kept = torch.tensor(edges.tolist(), dtype=torch.float64)  # as read back from JSON
    assert assign_buckets(values, kept).tolist() == buckets(values, n, method).tolist()
    assert assign_buckets([-INF, INF, NAN], edges).tolist() == [0, n - 1, -1]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n", [1, 2, 5, 10])
def test_scores_that_do_not_differ_are_in_the_middle(method, n):
    assert buckets([3.0], n, method).tolist() == [n // 2]
    assert buckets([3.0] * 7, n, method).tolist() == [n // 2] * 7
    edges = bucket_edges([3.0, 3.0], n, method)
    assert assign_buckets([2.9, 3.0, 3.1], edges).tolist() == [0, n // 2, n - 1]


@pytest.mark.parametrize("method", METHODS)
def test_without_finite_scores(method):
    assert buckets([], 5, method).tolist() == []
    assert buckets([NAN, INF, -INF], 5, method).tolist() == [-1, 4, 0]
    assert buckets([INF, INF], 5, method).tolist() == [4, 4]
    with pytest.raises(ValueError, match="at least one finite score"):
        bucket_edges([NAN, INF], 5, method)


def test_infinite_scores_do_not_move_the_edges():
    for method in METHODS:
        plain, odd = bucket_edges([1.0, 2.0, 5.0], 3, method), [1.0, 2.0, 5.0, INF, INF, -INF, NAN]
        assert bucket_edges(odd, 3, method).tolist() == plain.tolist()


def test_an_imbalanced_set_shows_what_each_method_promises():
    scores = torch.cat([torch.linspace(0, 0.9, 90), torch.linspace(9, 10, 10)])
    assert buckets(scores, 10, "equal_width").bincount(minlength=10).tolist() == [
        *[90, 0, 0, 0, 0, 0, 0, 0, 0, 10]
    ]
    assert buckets(scores, 10, "quantile").bincount(minlength=10).tolist() == [10] * 10


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: buckets([1.0], 0), ValueError, "n must be at least 1, got 0"),
        (lambda: buckets([], 0), ValueError, "n must be at least 1"),
        (lambda: buckets([1.0], 2.5), TypeError, "integer"),
        (lambda: buckets([1.0], 2, "width"), ValueError, "method must be"),
        (lambda: buckets([], 2, "width"), ValueError, "method must be"),
        (lambda: assign_buckets([1.0], [2.0, 1.0]), ValueError, "must ascend"),
        (lambda: assign_buckets([1.0], [NAN]), ValueError, "no NaN"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call()


# Tags


def test_default_tags_run_from_worst_to_best():
    scores = [NAN, 0.0, 3.0, 5.0, 7.0, 10.0]
    tags = quality_tags(buckets(scores, len(QUALITY_NAMES)))
    assert tags == [None, *QUALITY_NAMES]
    assert QUALITY_NAMES[0] == "worst quality" and QUALITY_NAMES[-1] == "best quality"


@given(st.lists(st.integers(-1, 2)))
def test_tags_are_the_names_of_the_labels(labels):
    expected = [{0: "a", 1: "b", 2: "c", -1: None}[label] for label in labels]
    assert quality_tags(labels, ["a", "b", "c"]) == expected
    assert quality_tags(torch.tensor(labels, dtype=torch.int64), ("a", "b", "c")) == expected


@pytest.mark.parametrize(
    ("labels", "names", "error", "words"),
    [
        ([5], QUALITY_NAMES, ValueError, "label 5 has no name: there are 5 names"),
        ([-2], QUALITY_NAMES, ValueError, "label -2 has no name"),
        (torch.tensor([1.0]), QUALITY_NAMES, TypeError, "whole numbers"),
        ([0], [], ValueError, "at least one tag"),
        ([0], "best quality", ValueError, "at least one tag"),
    ],
)
def test_bad_labels_say_what_is_wrong(labels, names, error, words):
    with pytest.raises(error, match=words):
        quality_tags(labels, names)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_ten_million_scores(method):
    scores = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    sizes = buckets(scores, 10, method).bincount(minlength=10)
    assert sizes.sum() == 10_000_000
    if method == "quantile":  # float32 has ties at this size, but few
        assert sizes.max() - sizes.min() < 1000
