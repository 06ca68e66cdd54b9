"""Percentile, rank correlation, reference statistics and aggregation over scorers."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy import stats

from tastemaker.ranking import (
    aggregate,
    percentile,
    reference_statistics,
    sort,
    spearman,
    standardize,
)

NAN, INF = math.nan, math.inf
METHODS = ["mean_rank", "worst_rank", "rrf"]

levels = st.sampled_from([-INF, -2.5, 0.0, 1.0, 7.25, INF])
finite = st.floats(-1e6, 1e6, width=32)
score_lists = st.lists(st.one_of(levels, finite), max_size=25)
scores_with_nan = st.lists(st.one_of(levels, finite, st.just(NAN)), max_size=25)


def same(a, b, **tolerance):
    torch.testing.assert_close(a, b, equal_nan=True, check_dtype=False, **tolerance)


# Percentile


@given(score_lists, score_lists.filter(len))
def test_percentile_is_scipys_mean_kind(values, reference):
    expected = [stats.percentileofscore(reference, v, kind="mean") for v in values]
    same(percentile(values, reference), torch.tensor(expected, dtype=torch.float64))


@given(scores_with_nan)
def test_percentile_within_the_set_is_the_mid_rank_of_the_scored(values):
    kept = [v for v in values if not math.isnan(v)]
    ranks = iter(100 * (stats.rankdata(kept) - 0.5) / max(len(kept), 1))
    expected = [NAN if math.isnan(v) else float(next(ranks)) for v in values]
    same(percentile(values), torch.tensor(expected, dtype=torch.float64))


@given(score_lists, score_lists)
def test_percentile_rises_with_the_score(values, reference):
    values = sorted(values)
    percent = percentile(values, reference or [0.0])
    assert (percent.diff() >= 0).all() and (percent >= 0).all() and (percent <= 100).all()


def test_percentile_at_the_ends():
    assert percentile([3.0]).tolist() == [50.0]
    assert percentile([4.0] * 3).tolist() == [50.0] * 3
    assert percentile([0.0, 9.0], [1.0, 2.0]).tolist() == [0.0, 100.0]
    assert percentile([-INF, INF]).tolist() == [25.0, 75.0]
    assert percentile([]).shape == (0,)
    same(percentile([1.0, NAN], []), torch.tensor([NAN, NAN]))
    same(percentile([1.0], [NAN]), torch.tensor([NAN]))


def test_percentile_compares_float32_with_float64_by_value():
    single = torch.tensor([0.1], dtype=torch.float32)
    assert percentile(single, single.double()).tolist() == [50.0]
    assert percentile(single, torch.tensor([0.1], dtype=torch.float64)).tolist() == [100.0]


def test_percentile_of_a_strided_view():
    scores = torch.arange(10.0)
    same(percentile(scores[::2]), percentile(scores[::2].clone()))


# Rank correlation


@given(st.lists(st.tuples(st.one_of(levels, finite), st.one_of(levels, finite)), min_size=2))
def test_spearman_is_scipys(points):
    a, b = map(list, zip(*points, strict=True))
    assume(len(set(a)) > 1 and len(set(b)) > 1)
    ranks = np.corrcoef(stats.rankdata(a), stats.rankdata(b))[0, 1]
    assert spearman(a, b) == pytest.approx(ranks, abs=1e-9)
    if all(map(math.isfinite, a + b)):
        assert spearman(a, b) == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)


def test_spearman_leaves_out_what_one_side_could_not_score():
    assert spearman([1.0, NAN, 2.0, 3.0], [1.0, 9.0, 2.0, NAN]) == 1.0
    assert spearman([1.0, 2.0, 3.0], [30.0, 20.0, 10.0]) == -1.0


@pytest.mark.parametrize("a, b", [([], []), ([1.0], [2.0]), ([1.0, 1.0], [1.0, 2.0])])
def test_spearman_without_an_order_to_compare_is_nan(a, b):
    assert math.isnan(spearman(a, b))


def test_spearman_refuses_different_sets():
    with pytest.raises(ValueError, match="got 1 and 2 scores"):
        spearman([1.0], [1.0, 2.0])


# Reference statistics


@given(st.lists(finite, min_size=1))
def test_reference_statistics_are_the_population_ones(values):
    mean, std, n = reference_statistics([*values, NAN])
    assert n == len(values)
    assert mean == pytest.approx(np.mean(values), rel=1e-9, abs=1e-9)
    assert std == pytest.approx(np.std(values), rel=1e-9, abs=1e-6)


@given(st.lists(finite, min_size=2, unique=True))
def test_standardized_scores_have_mean_0_and_deviation_1(values):
    mean, std, _ = reference_statistics(values)
    assume(std > 1e-6 * (1 + abs(mean)))  # else the float64 rounding of the mean shows
    z = reference_statistics(standardize(values, mean, std))
    assert z.mean == pytest.approx(0, abs=1e-6) and z.std == pytest.approx(1, abs=1e-6)
    assert (standardize(sorted(values), mean, std).diff() >= 0).all()


def test_scores_that_never_vary_have_no_scale():
    mean, std, n = reference_statistics([0.1] * 3)  # their float mean is not 0.1
    assert (mean, std, n) == (0.1, 0.0, 3)
    assert reference_statistics([4.0]) == (4.0, 0.0, 1)
    with pytest.raises(ValueError, match="std must be a finite number above 0, got 0.0"):
        standardize([0.1], mean, std)


@pytest.mark.parametrize("values", [[], [NAN], [1.0, INF], [1.0, -INF]])
def test_reference_statistics_need_finite_scores(values):
    with pytest.raises(ValueError, match="reference statistics need"):
        reference_statistics(values)


def test_standardize_keeps_nan_and_the_gradient():
    scores = torch.tensor([[3.0, NAN]], requires_grad=True)
    z = standardize(scores, mean=1.0, std=4.0)
    same(z.detach(), torch.tensor([[0.5, NAN]]))
    z[0, 0].backward()
    assert scores.grad[0, 0] == 0.25
    with pytest.raises(ValueError, match="mean must be finite"):
        standardize(scores, mean=NAN, std=1.0)


# Aggregation


anything = st.one_of(levels, finite, st.just(NAN))


@st.composite
def tables(draw, element=anything):
    """S rows of N scores."""
    s, n = draw(st.integers(1, 4)), draw(st.integers(1, 12))
    return draw(st.lists(st.lists(element, min_size=n, max_size=n), min_size=s, max_size=s))


def ranks_with_nan_last(row):
    """1 for the best, by scipy: NaN become lower than -inf."""
    order = {v: i for i, v in enumerate(sorted({v for v in row if not math.isnan(v)}), 1)}
    keys = [0 if math.isnan(v) else order[v] for v in row]
    return stats.rankdata([-key for key in keys])


@given(tables(), st.data())
def test_aggregates_are_their_definitions(table, data):
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(table), max_size=len(table)))
    ranks = np.stack([ranks_with_nan_last(row) for row in table])
    percent = 100 * (len(table[0]) - ranks + 0.5) / len(table[0])
    w = np.array(weights)[:, None]
    lost = np.isnan(np.array(table)).all(0)
    for method, given_weights, expected in [
        ("mean_rank", weights, (w * percent).sum(0) / w.sum()),
        ("mean_rank", None, percent.mean(0)),
        ("worst_rank", None, percent.min(0)),
        ("rrf", weights, (w / (60 + ranks)).sum(0)),
        ("rrf", None, (1 / (60 + ranks)).sum(0)),
    ]:
        expected = torch.from_numpy(np.where(lost, NAN, expected))
        same(aggregate(table, method, given_weights), expected, rtol=1e-9, atol=1e-9)


@given(tables(element=finite), st.sampled_from(METHODS))
def test_one_scorer_keeps_its_order(table, method):
    assert sort(aggregate(table[:1], method)).tolist() == sort(table[0]).tolist()


@given(tables(element=finite))
def test_one_scorers_mean_rank_is_its_percentile(table):
    same(aggregate(table[:1]), percentile(table[0]))


@given(tables(), st.sampled_from(METHODS), st.data())
def test_aggregates_move_with_the_candidates(table, method, data):
    order = data.draw(st.permutations(range(len(table[0]))))
    moved = aggregate([[row[i] for i in order] for row in table], method)
    same(moved, aggregate(table, method)[list(order)], rtol=0, atol=0)


@given(tables(), st.sampled_from(["mean_rank", "rrf"]), st.data())
def test_equal_candidates_are_exactly_equal(table, method, data):
    weights = data.draw(st.lists(st.floats(0.1, 9), min_size=len(table), max_size=len(table)))
    result = aggregate([row * 3 for row in table], method, weights)
    first, second, third = result.view(3, -1)
    same(first, second, rtol=0, atol=0)
    same(first, third, rtol=0, atol=0)


@given(tables(element=st.integers(-1000, 1000)), st.sampled_from(METHODS))
def test_the_scales_of_the_scorers_do_not_matter(table, method):
    stretched = [[(s + 1) * v**3 + 5 for v in row] for s, row in enumerate(table)]
    same(aggregate(stretched, method), aggregate(table, method), rtol=0, atol=0)


@given(tables(element=finite), st.sampled_from(METHODS))
def test_a_candidate_best_everywhere_wins(table, method):
    table = [[*row, 2e6] for row in table]
    assert aggregate(table, method).argmax() == len(table[0]) - 1


def test_nan_is_last_for_its_scorer_and_nan_for_all_is_nan():
    table = torch.tensor([[3.0, NAN, -INF, NAN], [1.0, 2.0, 3.0, NAN]])
    # Scorer 1 ranks them 1, 3.5, 2, 3.5; scorer 2 ranks them 3, 2, 1, 4.
    expected = [100 * (4.5 - (a + b) / 2) / 4 for a, b in [(1, 3), (3.5, 2), (2, 1)]]
    same(aggregate(table), torch.tensor([*expected, NAN], dtype=torch.float64))


def test_a_scorer_of_weight_0_is_left_out():
    table = [[1.0, 2.0, NAN], [9.0, 5.0, 7.0]]
    same(aggregate(table, "rrf", [1, 0]), aggregate(table[:1], "rrf"))


def test_worst_rank_asks_for_the_agreement_of_all():
    table = [[10.0, 9.0, 8.0], [0.0, 1.0, 2.0], [10.0, 9.0, 0.0]]
    assert aggregate(table, "worst_rank").argmax() == 1


def test_rrf_prefers_a_top_place_to_middling_ones():
    # Candidate 0 is first and last, candidate 1 in the middle twice: equal in mean rank.
    table = [[3.0, 2.0, 1.0], [1.0, 2.0, 3.0]]
    rrf = aggregate(table, "rrf")
    assert aggregate(table).unique().numel() == 1
    assert rrf[0] > rrf[1] and rrf[0] == rrf[2]


@pytest.mark.parametrize("method", METHODS)
def test_aggregate_of_no_candidates_or_constant_scores(method):
    assert aggregate(torch.empty(2, 0), method).shape == (0,)
    assert aggregate(torch.ones(2, 3), method).unique().numel() == 1
    assert aggregate([[1.0]], method).isfinite().all()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: aggregate([]), "at least one scorer"),
        (lambda: aggregate([[1.0], [1.0, 2.0]]), r"the same candidates, got \[1, 2\] scores"),
        (lambda: aggregate(torch.zeros(2, 2, 2)), "one dimension"),
        (lambda: aggregate([[1.0]], "mean"), "method must be"),
        (lambda: aggregate([[1.0]], "worst_rank", [1.0]), "worst_rank takes no weights"),
        (lambda: aggregate([[1.0]], weights=[1.0, 2.0]), "one per scorer: 1, got 2"),
        (lambda: aggregate([[1.0]], weights=[0.0]), "not all 0"),
        (lambda: aggregate([[1.0], [2.0]], weights=[1.0, -1.0]), "not negative"),
        (lambda: aggregate([[1.0]], weights=[NAN]), "finite"),
        (lambda: aggregate([[1.0]], weights=[INF]), "finite"),
    ],
)
def test_aggregate_says_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()
