"""Cascade: a cheap scorer on all, a judge on the best."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.ranking import cascade, sort, spearman

NAN = math.nan
scores_of = st.one_of(st.sampled_from([0.0, 1.0, 2.0, NAN]), st.floats(-9, 9, width=32))


class Scorer:
    """Looks candidate i's score up, and remembers what it was asked."""

    def __init__(self, values):
        self.values = values
        self.asked = []

    def __call__(self, items):
        self.asked.append(items)
        return torch.tensor([self.values[int(i)] for i in items])


@given(st.lists(st.tuples(scores_of, scores_of), max_size=20), st.integers(0, 25))
def test_the_final_order(table, k):
    first, second = ([row[side] for row in table] for side in (0, 1))
    n, cheap, judge = len(table), Scorer(first), Scorer(second)
    result = cascade(list(range(n)), cheap, judge, k=k)

    ranked = [i for i in sort(first).tolist() if not math.isnan(first[i])]
    chosen, rest = ranked[:k], ranked[k:]
    judged = [i for i in chosen if not math.isnan(second[i])]
    judged.sort(key=lambda i: (-second[i], chosen.index(i)))  # ties stay in the cheap order
    lost = sorted(set(range(n)) - set(judged) - set(rest))
    assert result.order.tolist() == judged + rest + lost
    assert result.unscored == len(lost)

    torch.testing.assert_close(result.cheap, torch.tensor(first), equal_nan=True)
    shown = [second[i] if i in chosen else NAN for i in range(n)]
    torch.testing.assert_close(result.judge, torch.tensor(shown), equal_nan=True)
    assert cheap.asked == ([list(range(n))] if n else [])
    assert judge.asked == ([chosen] if chosen else [])


def test_agreement_is_over_the_judged():
    first, second = [5.0, 4.0, 3.0, 2.0, 1.0], [1.0, 3.0, 2.0, 9.0, 9.0]
    result = cascade(range(5), Scorer(first), Scorer(second), k=3)
    assert result.agreement == spearman(first[:3], second[:3]) == -0.5
    assert result.order.tolist() == [1, 2, 0, 3, 4]
    assert math.isnan(cascade(range(5), Scorer(first), Scorer(second), k=1).agreement)
    assert math.isnan(cascade(range(5), Scorer(first), Scorer(second), k=0).agreement)


def test_a_fraction_is_of_the_scored_rounded_up():
    judge = Scorer([1.0] * 6)
    cascade(range(6), Scorer([0.0, NAN, 2.0, 3.0, 4.0, 5.0]), judge, fraction=0.5)
    assert judge.asked == [[5, 4, 3]]


def test_items_in_a_tensor_stay_in_one():
    images = torch.rand(6, 3, 2, 2)
    judge = Recorder(lambda batch: batch[:, 1].mean((1, 2)))
    result = cascade(images, lambda batch: batch.mean((1, 2, 3)), judge, k=2)
    best = sort(images.mean((1, 2, 3)))[:2]
    torch.testing.assert_close(judge.batch, images[best])
    torch.testing.assert_close(result.judge[best], images[best][:, 1].mean((1, 2)))


class Recorder:
    def __init__(self, scorer):
        self.scorer = scorer

    def __call__(self, batch):
        self.batch = batch
        return self.scorer(batch)


def test_scorers_may_return_lists_and_differ_in_precision():
    result = cascade("abc", lambda items: [1, 2, 3], lambda items: torch.rand(2).half(), k=2)
    assert result.cheap.tolist() == [1, 2, 3]
    assert result.order.tolist()[2] == 0
    assert result.judge.isnan().tolist() == [True, False, False]


def test_when_every_candidate_is_lost_the_judge_is_not_called():
    result = cascade([1, 2], lambda items: [NAN, NAN], None, k=2)
    assert result.order.tolist() == [0, 1] and result.unscored == 2
    result = cascade([], None, None, fraction=1.0)
    assert result.order.tolist() == [] and result.unscored == 0


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, ValueError, "either k or fraction"),
        ({"k": 1, "fraction": 0.5}, ValueError, "either k or fraction"),
        ({"k": -1}, ValueError, "k must be at least 0"),
        ({"k": 0.5}, TypeError, "integer"),
        ({"fraction": 2}, ValueError, "fraction must be in"),
    ],
)
def test_bad_arguments_say_what_is_wrong(options, error, words):
    with pytest.raises(error, match=words):
        cascade([1, 2], lambda items: [1.0, 2.0], lambda items: [1.0], **options)


def test_a_scorer_that_returns_the_wrong_number_is_named():
    with pytest.raises(ValueError, match="cheap must return one score per item: 2, got 1"):
        cascade([1, 2], lambda items: [1.0], lambda items: [1.0], k=1)
    with pytest.raises(ValueError, match="judge must return one score per item: 1, got 2"):
        cascade([1, 2], lambda items: [1.0, 2.0], lambda items: [1.0, 2.0], k=1)
