"""The head is the minimum of its loss, whatever the labels, and the same every time."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.head import Part, Rows, Space, bradley_terry, fit_head, fit_mean
from tastemaker.preferences.split import folds
from tastemaker.preferences.taste import fit_taste
from tastemaker.preferences.weighing import AT_MOST, cross_validate, repeats, surprise


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def simulated(n=300, d=12, count=2000, seed=0, sharp=4.0):
    """Features [n, d], comparisons of random images, and the taste [d] behind them."""
    g = generator(seed)
    mix = torch.randn(d, d, generator=g, dtype=torch.float64)
    features = torch.randn(n, d, generator=g, dtype=torch.float64) @ mix + 5
    pairs = torch.randint(n, (count, 2), generator=g)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    taste = torch.randn(d, generator=g, dtype=torch.float64)
    taste *= sharp / (features @ taste).std()
    score = features @ taste
    probability = torch.sigmoid(score[pairs[:, 0]] - score[pairs[:, 1]])
    p = (torch.rand(len(pairs), generator=g) < probability).double()
    images = tuple(map(str, range(n)))
    return features, Comparisons(images, pairs, p), taste


def difference(features, comparisons):
    left, right = comparisons.pairs.T
    return features[left] - features[right]


def gradient(x, p, w, w0, penalty):
    return (torch.sigmoid(x @ w) - p) @ x / len(x) + 2 * penalty * (w - w0)


@settings(max_examples=40)
@given(
    st.integers(1, 40),
    st.integers(1, 30),
    st.floats(1e-4, 10),
    st.integers(0, 1000),
    st.sampled_from(["votes", "ties", "probabilities"]),
)
def test_the_fit_is_the_minimum(count, d, penalty, seed, labels):
    g = generator(seed)
    x = torch.randn(count, d, generator=g, dtype=torch.float64)
    p = torch.rand(count, generator=g, dtype=torch.float64)
    p = {"votes": p.round(), "ties": (2 * p).round() / 2, "probabilities": p}[labels]
    w0 = torch.randn(d, generator=g, dtype=torch.float64)
    w = fit_head(x, p, w0, penalty)
    assert gradient(x, p, w, w0, penalty).abs().max() < 1e-7


def test_it_is_the_logistic_regression_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    features, comparisons, _ = simulated()
    x, p, penalty = difference(features, comparisons), comparisons.p, 1e-3
    model = linear_model.LogisticRegression(
        C=1 / (2 * penalty * len(x)), fit_intercept=False, tol=1e-12, max_iter=10000
    ).fit(x.numpy(), p.numpy())
    w = fit_head(x, p, torch.zeros(x.shape[1]), penalty)
    np.testing.assert_allclose(w.numpy(), model.coef_[0], rtol=1e-5, atol=1e-7)


def test_soft_labels_are_the_mean_of_hard_ones():
    features, comparisons, _ = simulated(count=200)
    x = difference(features, comparisons)
    p = torch.rand(len(x), generator=generator()).mul(4).round() / 4  # in quarters
    hard = torch.stack([(p > quarter) for quarter in (0.1, 0.35, 0.6, 0.85)]).double()
    w0 = torch.zeros(x.shape[1])
    soft = fit_head(x, p, w0, 1e-3)
    assert torch.allclose(soft, fit_head(x.repeat(4, 1), hard.flatten(), w0, 1e-3), atol=1e-7)


def test_a_tie_draws_the_scores_together():
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    w = fit_head(x, torch.tensor([1.0, 0.5]), torch.tensor([1.0, 1.0]), 0.1)
    assert w[0] > 1 and 0 < w[1] < 1


def test_it_recovers_the_taste_it_was_simulated_with():
    features, comparisons, taste = simulated(n=1000, count=20000)
    x = difference(features, comparisons)
    w = fit_head(x, comparisons.p, torch.zeros(12), 1e-7)
    assert torch.nn.functional.cosine_similarity(features @ w, features @ taste, dim=0) > 0.99
    assert (w - taste).norm() / taste.norm() < 0.1  # its scale too: scores are in logits


def test_an_infinite_penalty_gives_the_base_and_a_large_one_nearly():
    features, comparisons, _ = simulated()
    x, w0 = difference(features, comparisons), torch.randn(12, generator=generator()).double()
    assert torch.equal(fit_head(x, comparisons.p, w0, math.inf), w0)
    assert torch.allclose(fit_head(x, comparisons.p, w0, 1e8), w0, atol=1e-6)


def test_more_features_than_comparisons_and_features_that_say_nothing():
    g = generator()
    x = torch.randn(20, 100, generator=g, dtype=torch.float64)
    x[:, 50:] = 0
    p, w0 = torch.ones(20).double(), torch.randn(100, generator=g).double()
    w = fit_head(x, p, w0, 1e-3)
    assert gradient(x, p, w, w0, 1e-3).abs().max() < 1e-7
    assert torch.allclose(w[50:], w0[50:])


def test_the_same_to_a_millionth_every_time_on_any_number_of_threads():
    features, comparisons, _ = simulated(d=60)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 1):
            torch.set_num_threads(count)
            found.append(fit_taste(features, features[:, 0], comparisons))
    finally:
        torch.set_num_threads(threads)
    one, two, again = (taste.weight for taste in found)
    assert torch.equal(one, again)
    assert (one - two).abs().max() <= 1e-6 * one.abs().max()
    assert found[0].chosen.penalty == found[1].chosen.penalty


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(penalty=0.0), "penalty must be above 0"),
        (dict(penalty=math.nan), "penalty must be above 0"),
        (dict(p=torch.tensor([1.5, 0.0])), r"p in \[0, 1\]"),
        (dict(x=torch.tensor([[math.nan, 0.0], [0.0, 1.0]])), "finite"),
        (dict(w0=torch.zeros(3)), r"\[P, D\], \[P\] and \[D\]"),
        (dict(x=torch.zeros(0, 2), p=torch.zeros(0)), "no comparison"),
    ],
)
def test_what_cannot_be_fitted_is_refused(change, message):
    given = dict(x=torch.eye(2), p=torch.tensor([1.0, 0.0]), w0=torch.zeros(2), penalty=1.0)
    with pytest.raises(ValueError, match=message):
        fit_head(**{**given, **change})


def test_the_space_is_half_whitened_and_leaves_out_what_is_constant():
    features = torch.randn(500, 4, generator=generator()) @ torch.randn(
        4, 4, generator=generator(1)
    )
    features = torch.cat([features * torch.tensor([1.0, 100, 0.01, 1]) + 7, torch.ones(500, 1)], 1)
    space = Space.of(features)
    x = space(features)
    assert x.mean(0).abs().max() < 1e-9 and float(x.square().sum(1).mean()) == pytest.approx(1)
    covariance = x.T @ x / len(x)
    standard = torch.corrcoef(features[:, :4].double().T)
    expected = torch.linalg.eigvalsh(standard).sqrt()  # half whitened: the root of the variance
    assert torch.allclose(covariance, torch.diag(expected / expected.sum()), atol=1e-6)
    w = torch.randn(4, generator=generator()).double()
    assert torch.allclose(x @ w, (features.double() - space.center) @ space.weight(w))
    assert space.weight(w)[4] == 0


def test_the_space_of_two_images_and_of_equal_ones():
    assert Space.of(torch.eye(2, 9))(torch.eye(2, 9)).shape == (2, 1)
    assert Space.of(torch.ones(3, 9))(torch.ones(3, 9)).shape == (3, 0)


def test_half_of_a_space_is_what_is_known_of_tastes():
    features = torch.randn(200, 6, generator=generator()).double() * torch.arange(1, 7)
    prior = torch.randn(6, 2, generator=generator(1))
    alone, joined = Space.of(features), Space.of(features, prior)
    assert float(joined(features).square().sum(1).mean()) == pytest.approx(1)
    known = prior.double() / (alone.center - features).matmul(prior.double()).norm() * 200**0.5
    covariances = [root @ root.T for root in (alone.basis, known, joined.basis)]
    torch.testing.assert_close(sum(covariances[:2]) / 2, covariances[2])
    again = Space.of(features, 1e-3 * prior)  # its unit says nothing
    torch.testing.assert_close(again.basis @ again.basis.T, covariances[2])


def test_what_is_known_of_tastes_reaches_beyond_the_pictures():
    """Two pictures have one direction; a prior knows what else goes with it."""
    prior = torch.randn(9, 4, generator=generator())
    assert Space.of(torch.eye(2, 9), prior).basis.shape == (9, 2)  # seven features are constant
    pictures = torch.randn(2, 9, generator=generator(1))
    assert Space.of(pictures, prior).basis.shape == (9, 5)
    features = torch.randn(50, 3, generator=generator(2)).double()
    features = torch.cat([features, 3 * features[:, :1] + 1], 1)
    # They never differ along (3, 0, 0, -1).
    still = Space.of(features, torch.tensor([[3.0, 0, 0, -1]]).T)
    assert torch.equal(still.basis, Space.of(features).basis)
    nothing = torch.zeros(9, 4)
    assert torch.equal(Space.of(pictures, nothing).basis, Space.of(pictures).basis)
    assert Space.of(torch.ones(3, 9), prior).basis.shape == (9, 0)


def test_few_comparisons_go_further_where_tastes_are_known():
    """Tastes that lie in 3 of 40 dimensions: known, a third of the comparisons does."""
    features, many, _ = simulated(n=400, d=40, count=3000)
    prior = torch.randn(40, 3, generator=generator(5)).double()
    right = {False: [], True: []}
    for seed in range(10):
        taste = prior @ torch.randn(3, generator=generator(20 + seed)).double()
        meant = (difference(features, many) @ taste > 0).double()
        fitted, held = Comparisons(many.images, many.pairs[:60], meant[:60]), meant[60:]
        for known in right:
            own = fit_taste(features, None, fitted, prior=prior if known else None)
            says = difference(own(features), many)[60:] > 0
            right[known].append(float((says == held.bool()).double().mean()))
    assert np.mean(right[True]) > np.mean(right[False]) + 0.05


def test_cross_validation_prefers_the_base_when_the_base_is_the_taste():
    features, comparisons, taste = simulated(count=150, d=40)
    right = fit_taste(features, features @ taste, comparisons, unit=1.0)
    assert right.chosen.penalty >= 0.03 and 0.7 < right.gain < 1.4  # 0.1 of a logit is added
    score = right(features, features @ taste)
    assert torch.corrcoef(torch.stack([score, features @ taste]))[0, 1] > 0.99


def test_cross_validation_leaves_a_base_that_is_wrong():
    features, comparisons, taste = simulated(count=3000)
    wrong = torch.randn(300, generator=generator(9)).double()
    fitted = fit_taste(features, wrong, comparisons)
    scratch = fit_taste(features, None, comparisons)
    held_out = [float(each.chosen.nll[each.chosen.penalty]) for each in (fitted, scratch)]
    assert held_out[0] <= held_out[1] + 0.005 and scratch.gain == 0
    assert torch.corrcoef(torch.stack([scratch(features), features @ taste]))[0, 1] > 0.98


def test_a_base_of_the_opposite_taste_is_turned_round():
    features, comparisons, taste = simulated()
    assert fit_taste(features, -features @ taste, comparisons, unit=1.0).gain < 0


def test_held_out_differences_come_from_images_that_were_not_trained_on():
    """A head that can tell every image from all others learns nothing about new ones."""
    _, comparisons, _ = simulated(n=100, count=1000)
    alone = torch.eye(100)  # every image is a feature of its own
    left, right = comparisons.pairs.T
    found = cross_validate(alone[left] - alone[right], torch.zeros(100), comparisons, [1e-3, 1e-4])
    assert found.difference.abs().max() < 0.02  # fits that are compared are rough ones
    assert found.nll == pytest.approx({1e-3: math.log(2), 1e-4: math.log(2)}, abs=1e-3)


def test_too_few_comparisons_to_divide_keep_the_base():
    features, comparisons, taste = simulated(n=20, count=30, sharp=1)
    one = comparisons.take([0])
    found = fit_taste(features[:2], (features @ taste)[:2], one, unit=1.0)
    assert found.chosen.penalty == math.inf and not found.weight.any()
    assert 0.5 < found.gain < 2  # one comparison moves it little


def test_no_comparison_of_different_images():
    with pytest.raises(ValueError, match="two different images"):
        fit_taste(torch.eye(2), None, Comparisons(("a",), torch.tensor([[0, 0]]), torch.ones(1)))


def test_images_that_are_all_alike():
    _, comparisons, _ = simulated(n=10, count=20)
    with pytest.raises(ValueError, match="nothing to learn from"):
        fit_taste(torch.ones(10, 5), None, comparisons)


def test_the_average_image_scores_0_and_a_constant_base_is_no_obstacle():
    features, comparisons, _ = simulated()
    found = fit_taste(features, torch.full((300,), 3.0), comparisons)
    assert abs(float(found(features, torch.full((300,), 3.0)).mean())) < 1e-9


def test_the_loss_is_the_cross_entropy():
    z, p = torch.randn(9, generator=generator()), torch.rand(9, generator=generator(1))
    expected = torch.nn.functional.binary_cross_entropy_with_logits(z, p, reduction="none")
    assert torch.allclose(bradley_terry(z, p), expected)


@pytest.mark.parametrize("kept", [False, True])
def test_all_folds_at_once_are_fits_of_each(kept):
    features, comparisons, _ = simulated(n=60, d=12, count=2000)
    x, w0 = difference(features, comparisons), torch.randn(12, generator=generator()).double()
    x = x / x.std()
    more = Rows(3 * x[:50].flip(1), *torch.tensor([1.0, 0.1, -0.2]).double().expand(50, 3).T)
    more = more if kept else None
    penalties = [1.0, 1e-2, 1e-4]
    found = cross_validate(x, w0, comparisons, penalties, more=more)
    train, test = folds(comparisons, 5, repeats(len(x)), 0)
    for penalty in penalties:
        losses = []
        for a, b in zip(train.T, test.T, strict=True):
            w = fit_head(x[a], comparisons.p[a], w0, penalty, more)
            losses.append(bradley_terry(x[b] @ w, comparisons.p[b]))
        assert found.nll[penalty] == pytest.approx(float(torch.cat(losses).mean()), abs=2e-4)


def test_a_penalty_surprises_by_how_far_it_is_from_a_typical_taste():
    assert surprise(1 / (4 * 100), 100, 2.0) == pytest.approx(0)
    assert surprise(math.e**2 / (4 * 100), 100, 2.0) == pytest.approx(0.5)  # one deviation
    assert surprise(math.inf, 100, 2.0) == surprise(1e-9, 100, 2.0) == AT_MOST
    assert surprise(math.inf, 100, None) == 0


def test_a_taste_that_few_comparisons_show_is_learned():
    """By the held-out loss alone, two of these would learn nothing at all."""
    for seed in range(8, 12):
        features, comparisons, taste = simulated(n=400, d=40, count=25, sharp=2.0, seed=seed)
        found = fit_taste(features, None, comparisons)
        assert torch.corrcoef(torch.stack([found(features), features @ taste]))[0, 1] > 0.4


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(20, 400), st.integers(1, 4))
def test_the_parts_of_a_head_are_a_mean(seed, count, starts):
    features, comparisons, taste = simulated(n=60, d=8, count=count, seed=seed)
    x = difference(features, comparisons) / features.std()
    w0 = torch.arange(starts)[:, None] * taste
    found = cross_validate(x, w0, comparisons)
    weights = [part.weight for part in found.parts]
    assert sum(weights) == pytest.approx(1) and min(weights) > 0
    penalties = [part.penalty for part in found.parts]
    assert penalties == sorted(set(penalties), reverse=True) and found.penalty in penalties
    for part in found.parts:  # each starts at a mean of the starts
        share = part.w0 @ taste / (taste @ taste)
        assert -1e-9 <= share <= starts - 1 + 1e-9
        assert torch.allclose(part.w0, share * taste)
    again = cross_validate(x, w0, comparisons)
    pairs = zip(found.parts, again.parts, strict=True)
    assert all(torch.equal(a.w0, b.w0) and a[:2] == b[:2] for a, b in pairs)
    assert torch.equal(found.difference, again.difference)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 1000), st.integers(20, 400))
def test_the_mean_predicts_at_least_as_well_as_what_it_is_made_of_does_on_the_whole(seed, count):
    """The loss is convex: that of the mean is at most the mean of theirs, and so that of the worst."""
    features, comparisons, _ = simulated(n=60, d=8, count=count, seed=seed)
    x = difference(features, comparisons) / features.std()
    found = cross_validate(x, torch.zeros(8), comparisons)
    lost = float(bradley_terry(found.difference, found.p).mean())
    assert lost <= sum(part.weight * found.nll[part.penalty] for part in found.parts) + 1e-9


def test_the_mean_of_heads_is_fitted_one_by_one():
    features, comparisons, taste = simulated(count=300)
    x, p = difference(features, comparisons), comparisons.p
    parts = [Part(0.2, math.inf, taste), Part(0.5, 1e-2, -taste), Part(0.3, 1e-4, 0 * taste)]
    one_by_one = sum(part.weight * fit_head(x, p, part.w0, part.penalty) for part in parts)
    assert torch.allclose(fit_mean(x, p, parts), one_by_one, atol=1e-6)
    for part in parts:
        alone = fit_mean(x, p, [part._replace(weight=1.0)])
        assert torch.equal(alone, fit_head(x, p, part.w0, part.penalty))


def test_one_penalty_is_taken_as_it_is():
    features, comparisons, taste = simulated(count=100)
    found = fit_taste(features, None, comparisons, penalties=[0.02])
    x = found.view(features, None)
    left, right = comparisons.pairs.T
    w = fit_head(x[left] - x[right], comparisons.p, torch.zeros(x.shape[1]), 0.02)
    assert torch.equal(found.w, w) and found.chosen.penalty == 0.02


def test_a_base_that_is_no_use_is_left_and_one_that_is_the_taste_is_taken():
    features, comparisons, taste = simulated(count=400, d=40)
    noise = torch.randn(300, generator=generator(5)).double()

    def share(scores):
        chosen = fit_taste(features, scores, comparisons, unit=float(scores.std())).chosen
        return sum(part.weight * float(part.w0[-1]) for part in chosen.parts)

    assert share(noise) < 0.05 * share(features @ taste)


def test_a_taste_like_another_has_its_penalties_and_shares():
    features, comparisons, taste = simulated(count=200)
    scores = features @ taste
    first = fit_taste(features, scores, comparisons)
    same = fit_taste(features, scores, comparisons, like=first)
    assert torch.allclose(first.w, same.w, atol=1e-9)
    fewer = fit_taste(features[:, :5], scores, comparisons.take(range(150)), like=first)
    pairs = zip(first.chosen.parts, fewer.chosen.parts, strict=True)
    assert all(a[:2] == b[:2] and a.w0[-1] == pytest.approx(float(b.w0[-1])) for a, b in pairs)
