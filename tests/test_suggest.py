"""Suggested pairs: the posterior is the loss's, and what is gained is what variance falls by."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.head import fit_head
from tastemaker.preferences.suggest import (
    CANDIDATES,
    CURVED,
    IMAGES,
    information,
    linearity,
    observed,
    posterior,
    suggest_for,
    suggest_pairs,
    vote_precision,
)
from tastemaker.preferences.taste import fit_taste


def features(n: int, d: int = 4, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


def pairs_of(found: torch.Tensor) -> list[frozenset]:
    return [frozenset(pair) for pair in found.tolist()]


def test_the_posterior_is_the_curvature_of_what_fit_head_minimises():
    x, w0, penalty = features(30), torch.ones(4).double(), 0.02
    p = (features(30, 1, 1)[:, 0] > 0).double()
    w = fit_head(x, p, w0, penalty)

    def loss(w):  # the sum's
        z = x @ w
        data = torch.nn.functional.softplus(z) - p * z
        return data.sum() + len(x) * penalty * (w - w0).square().sum()

    found = posterior(x, w, penalty)
    expected = torch.autograd.functional.hessian(loss, w)
    assert torch.allclose(found.factor @ found.factor.T, expected, atol=1e-10)
    assert torch.equal(found.mean, w)


@given(st.integers(3, 8), st.integers(0, 99))
def test_information_is_the_variance_that_one_comparison_takes_off_the_others(m, seed):
    root, score = features(m, m, seed), features(m, 1, seed + 100)[:, 0]
    covariance, trust = root @ root.T, linearity(root)
    gain = information(score, covariance, trust)
    assert torch.allclose(gain, gain.T)
    for i, j in [(0, 1), (m - 1, 0)]:
        after = observed(score, covariance, i, j, trust)
        expected = 0.0
        for k in range(m):
            for other in range(k):
                d = torch.zeros(m).double()
                d[k], d[other] = 1, -1
                variance = d @ covariance @ d
                expected += variance - d @ after @ d
        assert gain[i, j].item() == pytest.approx(expected.item(), rel=1e-6)


@given(st.integers(0, 99))
def test_an_observed_comparison_is_one_more_row_of_the_posterior(seed):
    x, w = features(12, seed=seed), features(1, seed=seed + 1)[0]
    known = posterior(features(5), w, 0.1)
    precision = known.factor @ known.factor.T
    covariance = x @ torch.linalg.inv(precision) @ x.T
    d = x[3] - x[7]
    trust = linearity(x)
    weight = trust[3, 7] * vote_precision(
        (x @ w)[3] - (x @ w)[7], covariance[3, 3] + covariance[7, 7] - 2 * covariance[3, 7]
    )
    more = torch.linalg.inv(precision + weight * torch.outer(d, d))
    assert torch.allclose(observed(x @ w, covariance, 3, 7, trust), x @ more @ x.T, atol=1e-9)


def test_vote_precision_is_that_of_the_expected_vote():
    mean, variance = torch.tensor([0.0, 1.0, -3.0]), torch.tensor([0.01, 2.0, 9.0])
    z = mean + variance.sqrt() * torch.randn(200_000, 1, generator=torch.Generator().manual_seed(0))
    p = torch.sigmoid(z).mean(0)
    assert torch.allclose(vote_precision(mean, variance), p * (1 - p), atol=0.01)


@given(st.integers(2, 30), st.integers(0, 99), st.floats(1e-3, 1e3))
def test_votes_on_images_far_apart_are_trusted_less_whatever_the_unit(m, seed, unit):
    x = features(m, seed=seed)
    trust, distance = linearity(x), torch.cdist(x, x)
    apart = ~torch.eye(m, dtype=torch.bool)
    order = distance[apart].argsort()
    assert (trust[apart][order].diff() <= 1e-9).all() and ((trust > 0) & (trust <= 1)).all()
    assert torch.allclose(linearity(x * unit + 3), trust, rtol=1e-4)
    usual = distance[apart].square().mean()
    expected = 1 / (1 + CURVED * (distance.square() / usual).square())
    assert torch.allclose(trust, expected, atol=1e-9)


def test_images_that_are_all_one_are_trusted():
    assert torch.equal(linearity(torch.ones(3, 2).double()), torch.ones(3, 3).double())


def test_it_does_not_ask_about_the_two_ends_only():
    x = features(300, 3)
    x[:10] *= 8  # a linear taste would be learned from these alone
    known = posterior(torch.empty(0, 3), torch.zeros(3), 0.1)
    found = torch.cat([suggest_pairs(x, known, 4, seed=seed, images=300) for seed in range(5)])
    usual = torch.pdist(x).square().mean().sqrt()
    assert ((x[found[:, 0]] - x[found[:, 1]]).norm(dim=1) < 2 * usual).all()


def test_it_asks_about_what_is_not_known():
    x = torch.zeros(40, 2).double()
    x[:20, 0] = torch.linspace(-1, 1, 20)  # differ in a feature that was compared again and again
    x[20:, 1] = torch.linspace(-1, 1, 20)  # in one that never was
    known = posterior(torch.tensor([[1.0, 0.0]]).repeat(500, 1), torch.zeros(2), 1e-3)
    for seed in range(5):
        for i, j in suggest_pairs(x, known, 3, seed=seed).tolist():
            assert abs(x[i, 1] - x[j, 1]) > 0.5


@given(st.integers(2, 30), st.integers(1, 12), st.integers(0, 20))
def test_suggestions_are_pairs_that_differ_and_that_the_seed_decides(n, count, seed):
    x = features(n)
    known = posterior(x[:1] - x[1:2], torch.zeros(4), 0.1)
    found = suggest_pairs(x, known, count, seed=seed)
    assert found.shape == (min(count, n // 2), 2) and found.dtype == torch.int64
    assert found.unique().numel() == found.numel()  # no image twice
    assert torch.equal(found, suggest_pairs(x, known, count, seed=seed))


@given(st.integers(0, 30))
def test_what_was_compared_is_not_asked_again(seed):
    x = features(5)
    known = posterior(x[:1] - x[1:2], torch.zeros(4), 0.1)
    compared = torch.empty(0, 2, dtype=torch.int64)
    for _ in range(10):
        found = suggest_pairs(x, known, compared=compared, seed=seed)
        assert not set(pairs_of(found)) & set(pairs_of(compared))
        compared = torch.cat([compared, found.flip(1)])
    assert suggest_pairs(x, known, compared=compared).shape == (0, 2)


def test_either_side_comes_up():
    x = features(30)
    known = posterior(x[:1] - x[1:2], torch.ones(4), 0.1)
    found = torch.cat([suggest_pairs(x, known, 10, seed=seed) for seed in range(20)])
    first = (x @ known.mean)[found]
    assert 0.35 < (first[:, 0] > first[:, 1]).double().mean() < 0.65


@pytest.mark.parametrize("penalty", [0.0, -1.0, math.inf])
def test_a_penalty_that_is_none_is_refused(penalty):
    with pytest.raises(ValueError, match="penalty"):
        posterior(features(3), torch.zeros(4), penalty)


def test_wrong_features_are_named():
    with pytest.raises(ValueError, match=r"\[N, 4\]"):
        suggest_pairs(features(9, 3), posterior(features(3), torch.zeros(4), 1.0))


@pytest.mark.parametrize("penalty", [0.01, math.inf])
@pytest.mark.parametrize("based", [True, False])
def test_suggestions_for_a_taste_that_was_fitted(penalty, based):
    x = features(40)
    scores = x[:, 0] if based else None
    pairs = torch.tensor([[i, i + 1] for i in range(0, 20, 2)])
    comparisons = Comparisons(tuple(range(40)), pairs, torch.ones(10).double())
    taste = fit_taste(x, scores, comparisons, penalties=[penalty])
    found = suggest_for(taste, x, scores, pairs, 6, seed=1)
    assert found.shape == (6, 2) and found.unique().numel() == 12
    assert not set(pairs_of(found)) & set(pairs_of(pairs))
    assert torch.equal(found, suggest_for(taste, x, scores, pairs, 6, seed=1))
    shown = taste.view(x, scores) @ taste.w  # the same judgement, but for a constant
    apart = taste(x, scores) - shown
    assert (apart - apart[0]).abs().max() < 1e-9


@pytest.mark.parametrize("based", [True, False])
def test_of_many_images_only_those_drawn_or_compared_are_looked_at(based):
    """And they give what they would give if the rest were projected too."""
    x = features(3 * IMAGES)
    scores = x[:, 0] if based else None
    pairs = torch.tensor([[7 * i, 9 * i + 1] for i in range(40)])
    comparisons = Comparisons(tuple(range(len(x))), pairs, torch.ones(40).double())
    taste = fit_taste(x, scores, comparisons, penalties=[0.01])
    found = suggest_for(taste, x, scores, pairs, 6, seed=3)
    assert not set(pairs_of(found)) & set(pairs_of(pairs))

    shown = taste.view(x, scores)
    known = posterior(shown[pairs[:, 0]] - shown[pairs[:, 1]], taste.w, 0.01)
    assert torch.equal(suggest_pairs(shown, known, 6, compared=pairs, seed=3), found)

    drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(3))[:IMAGES]
    other = torch.ones(len(x), dtype=torch.bool)
    other[drawn] = other[pairs.flatten()] = False
    unseen = x.masked_fill(other[:, None], math.nan)
    assert other.any()
    assert torch.equal(suggest_for(taste, unseen, scores, pairs, 6, seed=3), found)


@given(st.integers(0, 99))
def test_candidates_are_random_pairs(seed):
    """Whatever the features say: of each image, those with the next few in the order drawn."""
    x = features(300, 4, seed)
    x[::10] *= 100  # pairs of these would tell most
    found = suggest_pairs(x, posterior(x[:20] - x[20:40], torch.zeros(4), 0.1), 5, seed=seed)
    drawn = torch.randperm(300, generator=torch.Generator().manual_seed(seed))[:IMAGES].tolist()
    for left, right in found.tolist():
        apart = abs(drawn.index(left) - drawn.index(right))
        assert min(apart, IMAGES - apart) <= CANDIDATES
