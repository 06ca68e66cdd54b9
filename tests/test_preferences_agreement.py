"""Agreement of judges, against scikit-learn and by hand; and evaluations as a whole."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import cohen_kappa_score

from tastemaker.preferences.agreement import agreement, verdicts_by, verdicts_of
from tastemaker.preferences.bootstrap import wilson
from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.evaluation import (
    differences,
    distances,
    evaluate_comparisons,
    evaluate_ratings,
)
from tastemaker.preferences.metrics import pair_metrics
from tastemaker.preferences.ratings import Ratings

A, B, C, D = (Path(f"/x/{name}.png") for name in "abcd")
SEEDS = st.integers(0, 10**6)


# Agreement


@given(SEEDS, st.integers(1, 60))
def test_scikit_learn_agrees_on_kappa_both_ways_round(seed, count):
    rng = np.random.default_rng(seed)
    one, other = rng.choice([0, 0.5, 1], (2, count))
    other = np.where(rng.random(count) < 0.5, one, other)
    pairs = [(f"{i}a", f"{i}b") for i in range(count)]
    found = agreement(
        dict(zip(pairs, one, strict=True)), dict(zip(pairs, other, strict=True)), rounds=2
    )
    both = (np.r_[one, 1 - one] * 2).astype(int), (np.r_[other, 1 - other] * 2).astype(int)
    if found.kappa == found.kappa:
        assert found.kappa == pytest.approx(cohen_kappa_score(*both))
    else:
        assert (one == 0.5).all() and (other == 0.5).all()
    assert found.alike == pytest.approx((one == other).mean())
    assert found.shared == count and found.decided == ((one != 0.5) & (other != 0.5)).sum()


def test_by_hand():
    one = {("a", "b"): 1, ("a", "c"): 1, ("b", "c"): 0, ("c", "d"): 0.5, ("x", "y"): 1}
    other = {("a", "b"): 1, ("a", "c"): 0, ("b", "c"): 0, ("c", "d"): 1, ("y", "z"): 1}
    found = agreement(one, other, rounds=20)
    assert (found.shared, found.decided) == (4, 3)
    assert found.agreement == pytest.approx(2 / 3) and found.alike == 0.5
    assert found.kappa == pytest.approx((0.5 - 0.75 / 2) / (1 - 0.75 / 2))
    for name, (low, high) in found.intervals.items():
        assert low <= getattr(found, name) <= high
    with pytest.raises(ValueError, match="share no comparison"):
        agreement(one, {("x", "z"): 1})


def test_without_ties_kappa_is_twice_the_agreement_less_one():
    rng = np.random.default_rng(0)
    pairs = [(f"{i}a", f"{i}b") for i in range(500)]
    one = dict(zip(pairs, rng.integers(2, size=500), strict=True))
    other = {pair: v if rng.random() < 0.8 else 1 - v for pair, v in one.items()}
    found = agreement(one, other, rounds=300)
    assert found.kappa == pytest.approx(2 * found.agreement - 1)
    assert found.intervals["agreement"] == pytest.approx(wilson(found.agreement, 500), abs=0.01)
    assert agreement(one, one, rounds=5).kappa == 1
    never = agreement(one, {pair: 1 - v for pair, v in one.items()}, rounds=5)
    assert never.kappa == -1 and never.agreement == 0


def test_verdicts_do_not_depend_on_the_side_and_repeats_are_averaged():
    votes = Comparisons.of([(A, B, 1), (B, A, 0), (B, A, 0.5), (C, A, 1), (D, D, 1)])
    found = verdicts_of(votes)
    assert found == {(str(A), str(B)): pytest.approx(2.5 / 3), (str(A), str(C)): 0}
    named = verdicts_of(votes, {A: "z", B: "y", C: "x", D: "w"}.__getitem__)
    assert named == {("y", "z"): pytest.approx(0.5 / 3), ("x", "z"): 1}


def test_a_scorer_judges_what_it_scored():
    pairs = [("a", "b"), ("b", "c"), ("c", "d"), ("a", "e")]
    found = verdicts_by({"a": 2.0, "b": 1.0, "c": 1.0, "d": 3.0, "e": math.nan}, pairs)
    assert found == {("a", "b"): 1, ("b", "c"): 0.5, ("c", "d"): 0}


# Evaluations


def simulated(n=60, count=900, seed=0):
    """Images whose scores are known, and votes drawn from their win probabilities."""
    rng = np.random.default_rng(seed)
    images = [Path(f"/x/{i}.png") for i in range(n)]
    scores = dict(zip(images, rng.normal(size=n) * 2, strict=True))
    pairs = [rng.choice(n, 2, replace=False) for _ in range(count)]
    rows = []
    for a, b in pairs:
        p = 1 / (1 + math.exp(scores[images[b]] - scores[images[a]]))
        rows.append((images[a], images[b], float(rng.random() < p)))
    return scores, Comparisons.of(rows)


def test_an_evaluation_is_the_metrics_with_intervals():
    scores, votes = simulated()
    found = evaluate_comparisons(scores, votes, rounds=100)
    kept, d = differences(scores, votes)
    expected = pair_metrics(d, kept.p)
    for name, value in expected.items():
        assert found.metrics[name].value == pytest.approx(value)
    assert found.metrics["spearman"].value > 0.95 and found.ranked == 60
    assert all(m.low <= m.value <= m.high for m in found.metrics.values())
    assert (found.left_out, found.ties, found.images) == (0, 0, 60)
    assert not found.weighted and found.distance is None and found.calibration
    assert not evaluate_comparisons(scores, votes, tau=None, rounds=2).calibration


def test_images_without_a_score_are_left_out_and_counted():
    scores, votes = simulated()
    gone = votes.images[0]
    without = sum(gone in (a, b) for a, b, _ in votes.rows())
    del scores[gone]
    scores[votes.images[1]] = math.nan
    found = evaluate_comparisons(scores, votes, rounds=2)
    assert found.left_out > without > 0 and found.images == 58
    assert found.left_out + len(found.p) == len(votes)
    with pytest.raises(ValueError, match="none has a score for both images"):
        evaluate_comparisons({}, votes)


def test_embeddings_add_distances_and_weights():
    scores, votes = simulated()
    rng = np.random.default_rng(0)
    embeddings = {image: rng.normal(size=8) for image in votes.images}
    found = evaluate_comparisons(scores, votes, embeddings=embeddings, rounds=20)
    a, b = (np.stack([embeddings[votes.images[i]] for i in side]) for side in votes.pairs.T)
    cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    np.testing.assert_allclose(found.distance, 1 - cosine, atol=1e-12)
    assert sum(row["n"] for row in found.by_distance) == 900 and len(found.by_distance) == 10
    # These pairs were drawn at random: weights hardly change anything.
    assert found.weighted["nll"].value == pytest.approx(found.metrics["nll"].value, abs=0.03)


def test_all_pairs_are_looked_at_or_a_million_of_them():
    x = np.random.default_rng(0).normal(size=(1600, 3))
    compared, population = distances(x, [[0, 1]])
    assert len(population) == 1_000_000 and len(compared) == 1
    few, all_of_them = distances(x[:4], [[2, 3]])
    assert len(all_of_them) == 6 and few[0] == pytest.approx(all_of_them[-1])
    assert population.mean() == pytest.approx(distances(x[:1000], [[0, 1]])[1].mean(), abs=0.05)


def test_ratings_of_what_has_a_score():
    images = tuple(Path(f"/x/{i}.png") for i in range(30))
    ratings = Ratings(images, np.arange(30.0), 30, ("image", "score"))
    scores = {image: i**3 for i, image in enumerate(images[:-1])} | {images[3]: math.nan}
    found = evaluate_ratings(scores, ratings, rounds=20)
    assert found.left_out == 2 and len(found.values) == 28
    assert found.metrics["srcc"].value == pytest.approx(1)
    assert 0.8 < found.metrics["plcc"].value < found.metrics["plcc_logistic"].value
    with pytest.raises(ValueError, match="of 30 rated images, none has a score"):
        evaluate_ratings({}, ratings)
