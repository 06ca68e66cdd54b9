"""Win probability and calibrated ranks."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from scipy.optimize import minimize_scalar
from scipy.special import expit

from tastemaker.ranking import (
    Calibration,
    calibrated_rank,
    fit_tau,
    rank_bucket,
    solve_b,
    win_probability,
)

NAN, INF = math.nan, math.inf
finite = st.floats(-100, 100, width=32)
taus = st.floats(0.05, 20)
targets = st.floats(0.05, 9.95)


# Win probability


@given(finite, finite, taus)
def test_win_probability_is_the_logistic_of_the_difference(a, b, tau):
    assert float(win_probability(a, b, tau)) == pytest.approx(expit((a - b) / tau), abs=1e-12)
    assert float(win_probability(a, b) + win_probability(b, a)) == pytest.approx(1)
    assert win_probability(a, b) == win_probability(a, b, tau=1.0)


def test_win_probability_of_equal_and_infinite_scores():
    a = torch.tensor([2.0, INF, -INF, INF, -INF, NAN])
    b = torch.tensor([2.0, INF, -INF, 1.0, INF, 1.0])
    assert win_probability(a, b).tolist()[:5] == [0.5, 0.5, 0.5, 1.0, 0.0]
    assert math.isnan(win_probability(a, b)[5])


def test_win_probability_makes_a_table_and_keeps_the_gradient():
    scores = torch.tensor([0.0, 1.0, INF], requires_grad=True)
    table = win_probability(scores[:, None], scores, tau=2.0)
    assert table.shape == (3, 3) and table.dtype == torch.float32
    table[1, 0].backward()
    p = expit(0.5)
    torch.testing.assert_close(scores.grad[:2], torch.tensor([-1, 1]) * p * (1 - p) / 2)
    assert scores.grad[2] == 0


# tau


def simulated(tau, m, seed=0, n=200):
    """Scores, and m comparisons whose winners are drawn with the true tau."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=generator) * 3
    pairs = torch.randint(n, (m, 2), generator=generator)
    p = win_probability(scores[pairs[:, 0]], scores[pairs[:, 1]], tau)
    return scores, pairs, torch.bernoulli(p, generator=generator), p


@pytest.mark.parametrize("tau", [0.3, 1.0, 4.0])
def test_tau_is_recovered_from_comparisons(tau):
    scores, pairs, y, p = simulated(tau, 20_000)
    assert fit_tau(scores, pairs, y) == pytest.approx(tau, rel=0.05)
    assert fit_tau(scores, pairs, p) == pytest.approx(tau, rel=1e-5)  # the exact probabilities


@given(st.integers(0, 1000), taus)
def test_tau_minimises_the_cross_entropy(seed, tau):
    scores, pairs, y, _ = simulated(tau, 60, seed)
    d = (scores[pairs[:, 0]] - scores[pairs[:, 1]]).double()
    correct = (d * (2 * y - 1)).sign()
    assume((correct < 0).any() and (d * (y - 0.5)).sum() > 1e-3)

    def loss(beta):
        return float(torch.nn.functional.binary_cross_entropy_with_logits(d * beta, y.double()))

    fitted = fit_tau(scores, pairs, y)
    best = minimize_scalar(loss, bounds=(0, 10 / fitted), method="bounded")
    assert loss(1 / fitted) <= best.fun + 1e-9
    assert loss(1 / fitted) <= min(loss(0.999 / fitted), loss(1.001 / fitted))


@given(st.floats(1e-6, 1e6), finite)
def test_tau_scales_with_the_scores_and_ignores_their_offset(scale, offset):
    scores, pairs, y, _ = simulated(1.0, 300)
    moved = scores.double() * scale + offset * scale
    assert fit_tau(moved, pairs, y) == pytest.approx(fit_tau(scores, pairs, y) * scale, rel=1e-9)


def test_tau_does_not_depend_on_which_side_is_named_first():
    scores, pairs, y, _ = simulated(1.0, 500)
    winners_first = torch.where(y.bool()[:, None], pairs, pairs.flip(1))
    assert fit_tau(scores, winners_first) == pytest.approx(fit_tau(scores, pairs, y), rel=1e-12)
    assert fit_tau(scores, winners_first, 1.0) == fit_tau(scores, winners_first.tolist())
    assert fit_tau(scores, pairs, y) == fit_tau(scores, pairs, y)


def test_tau_by_hand():
    # One difference of 2, won 3 times of 4: sigmoid(2 / tau) = 3/4, so tau = 2 / ln 3.
    assert fit_tau([2.0, 0.0], [[0, 1]] * 4, [1, 1, 1, 0]) == pytest.approx(2 / math.log(3))
    assert fit_tau([2.0, 0.0], [[0, 1]], 0.75) == pytest.approx(2 / math.log(3))


def test_equal_scores_and_self_comparisons_say_nothing_about_tau():
    pairs = [[0, 1]] * 4
    extra = [*pairs, [1, 2], [0, 0], [2, 1]]
    alone, more = fit_tau([2.0, 0.0, 0.0], pairs, [1, 1, 1, 0]), [1, 1, 1, 0, 1, 1, 0.3]
    assert fit_tau([2.0, 0.0, 0.0], extra, more) == pytest.approx(alone)


def test_unscored_candidates_outside_the_pairs_do_not_matter():
    assert fit_tau([2.0, 0.0, NAN, INF], [[0, 1]], 0.75) == fit_tau([2.0, 0.0], [[0, 1]], 0.75)


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_comparisons_without_a_tau_are_refused(scale):
    scores = [3.0 * scale, 1.0 * scale, 0.0]
    with pytest.raises(ValueError, match="never contradict the scores, so tau would be 0"):
        fit_tau(scores, [[0, 1], [1, 2], [0, 2]])
    with pytest.raises(ValueError, match="do not favour the higher score"):
        fit_tau(scores, [[1, 0], [2, 1], [2, 0]])
    with pytest.raises(ValueError, match="do not favour"):  # each pair won as often as lost
        fit_tau(scores, [[0, 1], [1, 0], [1, 2], [2, 1], [0, 2], [2, 0]])
    with pytest.raises(ValueError, match="do not favour"):
        fit_tau(scores, [[0, 1], [1, 2]], 0.5)
    with pytest.raises(ValueError, match="comparison between different scores"):
        fit_tau(scores, [[0, 0]])


def test_a_nearly_separable_set_has_a_small_tau():
    tau = fit_tau([1.0, 1e-9, 0.0], [[0, 2]] * 999 + [[2, 1]])
    assert 0.01 < tau < 0.1


@pytest.mark.parametrize(
    ("scores", "pairs", "y", "words"),
    [
        ([1.0, 2.0], torch.zeros(2, 3, dtype=torch.int64), 1.0, r"int64 \[M, 2\]"),
        ([1.0, 2.0], torch.zeros(2, 2), 1.0, r"int64 \[M, 2\]"),
        ([1.0, 2.0], [], 1.0, r"int64 \[M, 2\]"),
        ([1.0, 2.0], torch.empty(0, 2, dtype=torch.int64), 1.0, "at least one comparison"),
        ([1.0, 2.0], [[0, 2]], 1.0, r"0\.\.1"),
        ([1.0, 2.0], [[-1, 0]], 1.0, "indices into the scores"),
        ([1.0, NAN], [[0, 1]], 1.0, "compared scores must be finite"),
        ([1.0, INF], [[0, 1]], 1.0, "compared scores must be finite"),
        ([1.0, 2.0], [[0, 1]], [1.0, 0.0], "one per pair"),
        ([1.0, 2.0], [[0, 1]], 1.5, r"y must be in \[0, 1\]"),
        ([1.0, 2.0], [[0, 1]], -1, r"y must be in \[0, 1\]"),
        ([1.0, 2.0], [[0, 1]], [NAN], r"y must be in \[0, 1\]"),
    ],
)
def test_bad_comparisons_say_what_is_wrong(scores, pairs, y, words):
    with pytest.raises(ValueError, match=words):
        fit_tau(scores, pairs, y)


# b and the rank


@given(st.lists(finite, min_size=1, max_size=40), taus, targets)
def test_solve_b_gives_the_mean_rank_asked_for(values, tau, target):
    b = solve_b(values, tau, target)
    assert float(calibrated_rank(values, tau, b).mean()) == pytest.approx(target, abs=1e-9)


@given(st.lists(finite, min_size=1, max_size=20), taus, targets, finite)
def test_b_moves_with_the_scores(values, tau, target, offset):
    moved = [v + offset for v in values]
    # The mean rank of far-apart scores hardly depends on b: it is judged by the mean it gives.
    rank = calibrated_rank(moved, tau, solve_b(values, tau, target) + offset)
    assert float(rank.mean()) == pytest.approx(target, abs=1e-7)


def test_b_by_hand():
    assert solve_b([3.0], 1.0, 5.0) == 3.0
    assert solve_b([3.0] * 5, 2.0, 7.5) == pytest.approx(3 - 2 * math.log(3))
    assert solve_b([-1.0, 1.0], 1.0) == pytest.approx(0, abs=1e-11)
    # The mean over 10, not 9: with upstream's 9 this would be a rank of 5.56.
    assert float(calibrated_rank([4.0], 1.0, solve_b([4.0], 1.0, 5.0))) == 5.0


@pytest.mark.parametrize("scale", [1e-8, 1e8])
def test_b_is_exact_in_any_unit(scale):
    values = (torch.linspace(-3, 3, 50) ** 3).double() * scale
    rank = calibrated_rank(values, scale, solve_b(values, scale, 3.0))
    assert float(rank.mean()) == pytest.approx(3.0, abs=1e-10)


@pytest.mark.parametrize("target", [1e-6, 10 - 1e-6])
def test_extreme_targets_are_reached(target):
    values = torch.linspace(-3, 3, 50)
    rank = calibrated_rank(values.double(), 0.5, solve_b(values, 0.5, target))
    assert float(rank.mean()) == pytest.approx(target, abs=1e-9)


def test_solve_b_counts_only_finite_scores():
    assert solve_b([1.0, 4.0, NAN, INF, -INF], 1.0, 3.0) == solve_b([1.0, 4.0], 1.0, 3.0)


def test_solve_b_ends_where_floats_do():
    b = solve_b([1e6, 1e6 + 1], 1e-12)  # tau is far below the spacing of floats there
    assert 1e6 <= b <= 1e6 + 1


@given(st.lists(st.floats(width=32), max_size=30), taus, finite)
def test_rank_is_in_range_and_rises_with_the_score(values, tau, b):
    rank = calibrated_rank(sorted(values, key=lambda v: (math.isnan(v), v)), tau, b)
    kept = rank[~rank.isnan()]
    assert len(kept) == sum(not math.isnan(v) for v in values)
    assert ((kept >= 0) & (kept <= 10)).all()
    assert (kept.diff() >= -1e-14).all()  # the last bit of exp may go either way


@given(finite, taus, finite, finite)
def test_ranks_keep_the_win_probability(score, tau, other, b):
    """The logit of a rank is the score in units of tau: what "calibrated" means."""
    assume(abs(score - b) / tau < 15 and abs(other - b) / tau < 15)
    r = calibrated_rank([score, other], tau, b)
    logit = (r / (10 - r)).log()
    p = torch.sigmoid(logit[0] - logit[1])
    assert float(p) == pytest.approx(float(win_probability(score, other, tau)), abs=1e-8)


def test_rank_at_the_ends_and_its_gradient():
    rank = calibrated_rank([INF, -INF, 2.0], 3.0, b=2.0)
    assert rank.tolist() == [10.0, 0.0, 5.0]
    assert calibrated_rank([], 1.0, 0.0).shape == (0,)
    scores = torch.zeros(2, 2, requires_grad=True)
    calibrated_rank(scores, 2.0, 0.0).sum().backward()
    assert (scores.grad == 10 * 0.25 / 2).all()


def test_rank_bucket_is_the_whole_part_and_never_n():
    rank = torch.tensor([0.0, 0.999, 1.0, 4.5, 7.0, 9.999, 10.0, NAN])
    assert rank_bucket(rank).tolist() == [0, 0, 1, 4, 7, 9, 9, -1]
    assert rank_bucket([0.0, 1.99, 2.0, 9.99, 10.0], n=5).tolist() == [0, 0, 1, 4, 4]
    assert rank_bucket([0.0, 10.0], n=1).tolist() == [0, 0]
    assert rank_bucket([]).tolist() == [] and rank_bucket(rank).dtype == torch.int64
    saturated = calibrated_rank(torch.tensor([1e6]), 1.0, 0.0)
    assert saturated == 10 and rank_bucket(saturated).tolist() == [9]


@given(st.lists(st.floats(0, 10), max_size=30), st.integers(1, 20))
def test_rank_bucket_divides_0_to_10(ranks, n):
    labels = rank_bucket(ranks, n).tolist()
    for rank, label in zip(ranks, labels, strict=True):
        assert 0 <= label < n
        assert 10 * label / n <= rank * (1 + 1e-15)
        assert rank <= 10 * (label + 1) / n * (1 + 1e-15)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: solve_b([1.0], 0.0), "tau must be a finite number above 0, got 0.0"),
        (lambda: solve_b([1.0], NAN), "tau must be"),
        (lambda: solve_b([1.0], 1.0, 0.0), "strictly between 0 and 10, got 0.0"),
        (lambda: solve_b([1.0], 1.0, 10.0), "strictly between 0 and 10"),
        (lambda: solve_b([1.0], 1.0, NAN), "strictly between 0 and 10"),
        (lambda: solve_b([], 1.0), "at least one finite score"),
        (lambda: solve_b([NAN, INF], 1.0), "at least one finite score"),
        (lambda: calibrated_rank([1.0], -1.0, 0.0), "tau must be"),
        (lambda: calibrated_rank([1.0], 1.0, INF), "b must be finite"),
        (lambda: win_probability(1.0, 2.0, tau=INF), "tau must be"),
        (lambda: rank_bucket([10.1]), r"ranks must be in \[0, 10\]"),
        (lambda: rank_bucket([-0.1]), r"ranks must be in \[0, 10\]"),
        (lambda: rank_bucket([1.0], 0), "n must be at least 1"),
        (lambda: Calibration(0.0, 1.0), "tau must be"),
        (lambda: Calibration(1.0, NAN), "b must be finite"),
        (lambda: Calibration.from_dict({"tau": 1.0}), r"keys tau and b, got \['tau'\]"),
        (lambda: Calibration.from_dict({"tau": 1, "b": 2, "c": 3}), "keys tau and b"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, words):
    with pytest.raises(ValueError, match=words):
        call()


# Calibration


def test_a_calibration_fits_ranks_and_travels_as_a_dict():
    scores, pairs, y, _ = simulated(2.0, 5000)
    calibration = Calibration.fit(scores, pairs, y, target_mean=4.0)
    assert calibration.tau == fit_tau(scores, pairs, y)
    assert calibration.b == solve_b(scores, calibration.tau, 4.0)
    assert float(calibration.rank(scores).mean()) == pytest.approx(4.0, abs=1e-5)
    winners_first = torch.where(y.bool()[:, None], pairs, pairs.flip(1))
    plain = Calibration.fit(scores, winners_first)
    assert plain == Calibration.fit(scores, winners_first, y=1.0, target_mean=5.0)
    assert Calibration.from_dict(calibration.to_dict()) == calibration
    assert calibration.to_dict() == {"tau": calibration.tau, "b": calibration.b}
    with pytest.raises(AttributeError):
        calibration.tau = 1.0


@pytest.mark.slow
def test_ten_million_scores():
    scores = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    b = solve_b(scores, 0.7, 6.0)
    rank = calibrated_rank(scores, 0.7, b)
    assert float(rank.double().mean()) == pytest.approx(6.0, abs=1e-5)
    assert rank_bucket(rank).bincount(minlength=10).shape == (10,)
