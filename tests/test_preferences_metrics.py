"""Metrics of comparisons, against scikit-learn, scipy and values made by hand; and their intervals."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, roc_auc_score

from tastemaker.preferences.bootstrap import bootstrap, bootstrap_rows, pair_intervals, wilson
from tastemaker.preferences.metrics import (
    accuracy_by,
    calibration_curve,
    importance_weights,
    pair_metrics,
    per_distance,
    quantile_edges,
    risk_coverage,
    verdicts,
)

NAN = math.nan
SURE = ("accuracy", "auc", "ece", "aurc")  # over decided comparisons only


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, float)))


def simulated(count=400, seed=0, tau=1.0, ties=0.0):
    """Differences, and votes drawn with the probabilities they stand for."""
    rng = np.random.default_rng(seed)
    d = rng.normal(size=count) * 2
    p = (rng.random(count) < sigmoid(d / tau)).astype(float)
    p[rng.random(count) < ties] = 0.5
    return d, p


# Parity


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weighted", [False, True])
def test_scikit_learn_agrees(seed, weighted):
    d, p = simulated(seed=seed)
    w = np.random.default_rng(seed).random(len(d)) if weighted else np.ones(len(d))
    q, found = sigmoid(d / 1.7), pair_metrics(d, p, tau=1.7, weights=w)
    assert found["accuracy"] == pytest.approx(accuracy_score(p, q > 0.5, sample_weight=w))
    assert found["nll"] == pytest.approx(log_loss(p, q, sample_weight=w))
    assert found["brier"] == pytest.approx(brier_score_loss(p, q, sample_weight=w))
    assert found["r2"] == pytest.approx(1 - log_loss(p, q, sample_weight=w) / math.log(2))
    both_ways = roc_auc_score(np.r_[p, 1 - p], np.r_[d, -d], sample_weight=np.r_[w, w])
    assert found["auc"] == pytest.approx(both_ways)


def upstream_ece(p, y, w):
    """As the formula is published: 15 bins of the confidence, mean gap by weight."""
    confidence, edges, total = np.maximum(p, 1 - p), np.linspace(0, 1, 16), 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = (confidence >= low) & ((confidence < high) | (high == 1))
        if inside.any():
            right = ((p >= 0.5) == (y == 1))[inside]
            gap = np.average(right, weights=w[inside]) - np.average(
                confidence[inside], weights=w[inside]
            )
            total += abs(gap) * w[inside].sum() / w.sum()
    return total


@given(st.integers(0, 10**6), st.integers(1, 60), st.booleans())
def test_ece_and_aurc_are_the_published_sums(seed, count, weighted):
    d, p = simulated(count, seed)
    w = np.random.default_rng(seed).random(count) + 0.1 if weighted else np.ones(count)
    found = pair_metrics(d, p, weights=w)
    assert found["ece"] == pytest.approx(upstream_ece(sigmoid(d), p, w))
    order = np.argsort(-abs(d))
    wrong = ((d > 0) != (p == 1))[order] * w[order]
    risk = wrong.cumsum() / w[order].cumsum()
    assert found["aurc"] == pytest.approx(np.average(risk, weights=w[order]))
    if not weighted and count > 1:  # upstream's trapezium leaves out half of the first and the last
        trapezium = ((risk[1:] + risk[:-1]) / 2).sum() / count
        left_out = (risk[0] + risk[-1]) / (2 * count)
        assert found["aurc"] == pytest.approx(trapezium + left_out)


def test_by_hand():
    # Three votes: right and sure, right and unsure, wrong.
    d, p = [math.log(9), -math.log(3), math.log(3)], [1, 0, 0]  # q 0.9, 0.25, 0.75
    found = pair_metrics(d, p)
    assert found["accuracy"] == pytest.approx(2 / 3)
    nll = -(math.log(0.9) + math.log(0.75) + math.log(0.25)) / 3
    assert found["nll"] == pytest.approx(nll)
    assert found["r2"] == pytest.approx(1 - nll / math.log(2))
    assert found["brier"] == pytest.approx((0.01 + 0.0625 + 0.5625) / 3)
    assert found["ece"] == pytest.approx((0.1 + 2 * abs(0.5 - 0.75)) / 3)
    # Margins 2.2, 1.1, -1.1: of 9 sums, the 5 with 2.2 and 1.1 + 1.1 are above 0, two are 0.
    assert found["auc"] == pytest.approx((6 + 2 / 2) / 9)
    # The two of confidence 0.75 enter together: risk 0, then 1/3 for two of three.
    assert found["aurc"] == pytest.approx((0 + 2 * (1 / 3)) / 3)


# What ties mean


def test_a_tie_of_the_scorer_is_half_right_and_not_right_as_upstream_has_it():
    assert pair_metrics([0.0, 0.0], [1, 1])["accuracy"] == 0.5
    assert pair_metrics([0.0, 1.0], [1, 1])["accuracy"] == 0.75


def test_a_tie_of_the_voter_counts_where_it_can():
    d, p = simulated(100)
    tied = pair_metrics(np.r_[d, 3.0], np.r_[p, 0.5])
    plain = pair_metrics(d, p)
    assert all(tied[name] == plain[name] for name in SURE)
    assert tied["nll"] == pytest.approx((plain["nll"] * 100 + math.log(2 * math.cosh(1.5))) / 101)
    assert tied["brier"] == pytest.approx((plain["brier"] * 100 + (sigmoid(3) - 0.5) ** 2) / 101)


def test_probabilities_are_scored_as_probabilities():
    found = pair_metrics([0.0, math.log(3)], [0.7, 0.75])
    assert found["accuracy"] == 0.75  # the first: a scorer's tie, half right
    entropy = -0.75 * math.log(0.75) - 0.25 * math.log(0.25)
    assert found["nll"] == pytest.approx((math.log(2) + entropy) / 2)
    assert found["brier"] == pytest.approx((0.2**2) / 2)


def test_only_ties_and_no_comparison_at_all_have_no_accuracy():
    tied, none = pair_metrics([1.0, -2.0], [0.5, 0.5]), pair_metrics([], [])
    assert all(math.isnan(tied[name]) for name in SURE) and tied["nll"] > math.log(2)
    assert all(math.isnan(value) for value in none.values())
    assert calibration_curve([], []) == accuracy_by([], []) == []


def test_one_comparison():
    found = pair_metrics([2.0], [1])
    assert (found["accuracy"], found["aurc"], found["auc"]) == (1, 0, 1)
    assert found["ece"] == pytest.approx(1 - sigmoid(2))
    wrong = pair_metrics([2.0], [0])
    assert (wrong["accuracy"], wrong["aurc"], wrong["auc"]) == (0, 1, 0)


def test_all_scores_equal_are_a_coin():
    found = pair_metrics(np.zeros(10), [1, 0] * 5)
    assert found["accuracy"] == found["auc"] == found["aurc"] == 0.5
    assert found["nll"] == pytest.approx(math.log(2)) and found["r2"] == pytest.approx(0)
    assert found["brier"] == 0.25 and found["ece"] == 0


def test_certainty_does_not_overflow():
    found = pair_metrics([2000.0, -2000.0], [1, 1])
    assert found["nll"] == pytest.approx(1000) and found["brier"] == pytest.approx(0.5)


def test_without_a_tau_only_the_order_is_judged():
    d, p = simulated()
    found, known = pair_metrics(d, p, tau=None), pair_metrics(d, p)
    assert {n for n, v in found.items() if math.isnan(v)} == {"nll", "r2", "brier", "ece"}
    assert all(found[name] == known[name] for name in ("accuracy", "auc", "aurc"))


# Properties


@given(st.integers(0, 10**6), st.integers(1, 40), st.floats(0.1, 10))
def test_left_and_right_are_names(seed, count, scale):
    d, p = simulated(count, seed, ties=0.2)
    flip = np.where(np.random.default_rng(seed).random(count) < 0.5, -1, 1)
    there, back = pair_metrics(d, p), pair_metrics(d * flip, np.where(flip > 0, p, 1 - p))
    scaled = pair_metrics(d * scale, p, tau=scale)
    for name, value in there.items():
        assert back[name] == pytest.approx(value, nan_ok=True)
        assert scaled[name] == pytest.approx(value, nan_ok=True)


@given(st.integers(0, 10**6), st.integers(1, 40))
def test_a_weight_of_two_is_the_comparison_twice(seed, count):
    d, p = simulated(count, seed, ties=0.2)
    times = np.random.default_rng(seed).integers(0, 3, count)
    rows = np.stack([times, np.ones(count)])
    weighted = pair_metrics(d, p, weights=rows)
    repeated = pair_metrics(np.repeat(d, times), np.repeat(p, times))
    plain = pair_metrics(d, p)
    for name, values in weighted.items():
        assert values[0] == pytest.approx(repeated[name], nan_ok=True)
        assert values[1] == pytest.approx(plain[name], nan_ok=True)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: pair_metrics([1.0], [1, 0]), r"must be \[P\]"),
        (lambda: pair_metrics([NAN], [1]), "must be finite: leave out"),
        (lambda: pair_metrics([1.0], [2]), r"p must be in \[0, 1\]"),
        (lambda: pair_metrics([1.0], [NAN]), r"p must be in \[0, 1\]"),
        (lambda: pair_metrics([1.0], [1], tau=0), "tau must be a finite number above 0"),
        (lambda: pair_metrics([1.0], [1], weights=[1, 2]), r"weights must be \[1\]"),
        (lambda: pair_metrics([1.0], [1], weights=[-1]), "not below 0"),
        (lambda: importance_weights([1.0], []), "no distances of the population"),
        (lambda: importance_weights([5.0], [0.0, 10.0]), "as far apart"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Curves and distances


def test_curves_tell_what_their_metrics_sum_up():
    d, p = simulated(1000)
    judged = verdicts(d, p, 1.0)
    curve = calibration_curve(judged.confidence, judged.right)
    ece = sum(b.n * abs(b.accuracy - b.mean) for b in curve) / 1000
    assert pair_metrics(d, p)["ece"] == pytest.approx(ece)
    coverage, risk = risk_coverage(judged.confidence, judged.right)
    assert coverage[-1] == 1 and risk[-1] == pytest.approx(1 - pair_metrics(d, p)["accuracy"])
    assert pair_metrics(d, p)["aurc"] == pytest.approx(risk.mean())
    assert (np.diff(coverage) > 0).all()


def test_accuracy_rises_with_the_difference():
    judged = verdicts(*simulated(20_000), 1.0)
    bins = accuracy_by(abs(judged.margin), judged.right)
    assert [b.n for b in bins] == [2000] * 10
    assert all(a.high == b.low for a, b in zip(bins, bins[1:], strict=False))
    for b in bins:
        assert b.low <= b.mean <= b.high and b.accuracy == pytest.approx(sigmoid(b.mean), abs=0.04)


def test_distance_bins_hold_equally_many_and_their_own_metrics():
    d, p = simulated(1000)
    distance = np.random.default_rng(1).random(1000)
    bins = per_distance(d, p, distance, bins=4)
    assert [b["n"] for b in bins] == [250] * 4
    inside = (distance >= bins[1]["low"]) & (distance < bins[1]["high"])
    assert bins[1]["auc"] == pytest.approx(pair_metrics(d[inside], p[inside])["auc"])
    (same,) = per_distance(d, p, np.ones(1000))  # nothing to divide
    assert same["n"] == 1000 and same["low"] == same["high"] == 1
    assert quantile_edges(np.array([1, 1, 1, 1, 9.0]), 4).tolist() == [1, 9]


def test_importance_weights_undo_a_choice():
    rng = np.random.default_rng(0)
    population = rng.random(100_000)
    chosen = rng.choice(population, 20_000, p=(w := np.exp(-3 * population)) / w.sum())
    weights = importance_weights(chosen, population)
    assert weights.mean() == pytest.approx(1) and (weights >= 0).all()
    assert np.average(chosen, weights=weights) == pytest.approx(population.mean(), abs=0.01)
    assert np.average(chosen) < 0.35
    # Two bins by hand: three quarters of the pairs are far, half of those compared.
    by_hand = importance_weights([0.0, 1.0], [0.0, 1.0, 1.0, 1.0], bins=2)
    assert by_hand.tolist() == [0.5, 1.5]


# Intervals


def test_wilson_by_hand():
    low, high = wilson(0.5, 100)
    assert (low, high) == (pytest.approx(0.4038, abs=1e-4), pytest.approx(0.5962, abs=1e-4))
    assert wilson(1.0, 10) == (pytest.approx(0.7225, abs=1e-4), 1.0)
    assert wilson(0.0, 10) == (0.0, pytest.approx(1 - 0.7225, abs=1e-4))
    assert all(math.isnan(end) for end in (*wilson(NAN, 5), *wilson(0.5, 0)))


def test_intervals_are_seeded_and_hold_the_estimate():
    d, p = simulated(200, ties=0.1)
    pairs = np.random.default_rng(0).integers(60, size=(200, 2))
    once = pair_intervals(d, p, pairs, rounds=200, seed=3)
    assert once == pair_intervals(d, p, pairs, rounds=200, seed=3)
    assert once != pair_intervals(d, p, pairs, rounds=200, seed=4)
    for name, value in pair_metrics(d, p).items():
        low, high = once[name]
        assert low <= value <= high and low < high


def test_comparisons_that_are_judged_again_and_again_are_no_surer():
    d, p = simulated(80, ties=0.1)
    pairs = np.random.default_rng(0).integers(60, size=(80, 2))
    once = pair_intervals(d, p, pairs, rounds=200)
    thrice = pair_intervals(
        *(np.tile(x, 3) for x in (d, p)), pairs, of=3 * [*range(80)], rounds=200
    )
    few = pair_intervals(d[:40], p[:40], pairs, of=range(40), rounds=200)
    assert few == pair_intervals(d[:40], p[:40], pairs[:40], rounds=200)  # the others never were
    for name in once:
        assert thrice[name] == pytest.approx(once[name], rel=1e-6)


def test_intervals_of_hardly_anything():
    alone = pair_intervals([1.0], [1], [[0, 1]])
    assert all(math.isnan(end) for interval in alone.values() for end in interval)
    tied = pair_intervals([1.0, 2.0], [0.5, 0.5], [[0, 1], [1, 2]], rounds=50)
    assert math.isnan(tied["accuracy"][0]) and not math.isnan(tied["nll"][0])
    perfect = pair_intervals([3.0] * 50, [1] * 50, np.arange(100).reshape(50, 2), rounds=50)
    assert perfect["accuracy"] == (pytest.approx(wilson(1, 50)[0]), 1.0)


def test_comparisons_that_share_no_image_are_as_good_as_their_number():
    d, p = simulated(2000)
    apart = np.arange(4000).reshape(2000, 2)
    low, high = pair_intervals(d, p, apart, rounds=2000)["brier"]
    errors = (sigmoid(d) - p) ** 2
    assert high - low == pytest.approx(2 * 1.96 * errors.std() / math.sqrt(2000), rel=0.1)


def test_comparisons_that_are_one_image_over_and_over_are_worth_less():
    """Errors that belong to images: the true spread is known, and comparisons alone miss it."""
    rng = np.random.default_rng(0)
    n, k, widths, alone, means = 100, 20, [], [], []
    for _ in range(60):
        of_image = rng.normal(size=n)
        pairs = np.stack([np.repeat(np.arange(n), k // 2), rng.integers(n, size=n * k // 2)], 1)
        value = of_image[pairs].sum(1)

        def mean(w, value=value):
            return {"r2": w @ value / w.sum(-1)}

        low, high = bootstrap(mean, pairs, rounds=200)["r2"]
        widths.append((high - low) / (2 * 1.96))
        means.append(value.mean())
        alone.append(value.std() / math.sqrt(len(value)))
    assert np.mean(widths) == pytest.approx(np.std(means), rel=0.25)
    assert np.mean(alone) < 0.5 * np.std(means)


def test_resampled_rows_cover_the_mean():
    values = np.random.default_rng(0).normal(size=400)
    low, high = bootstrap_rows(lambda i: {"mean": values[i].mean()}, 400, rounds=500)["mean"]
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
