"""Selection: sort, threshold, top k, top fraction, best."""

import ast
import math
import sys
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tastemaker
from tastemaker.ranking import Selection, best, sort, threshold, top_fraction, top_k

NAN, INF = math.nan, math.inf
DEVICES = ["cpu"] + ["cuda"] * torch.cuda.is_available()

# Few distinct values, so that ties are common; -0.0 and 0.0 are one value.
levels = st.sampled_from([-INF, -2.5, -0.0, 0.0, 1e-30, 1.0, 7.25, INF, NAN])
score_lists = st.lists(st.one_of(levels, st.floats(width=32)), max_size=30)


def best_first(values):
    """What `sort` promises, in plain Python: stable, NaN last."""
    return sorted(range(len(values)), key=lambda i: (math.isnan(values[i]), -_number(values[i])))


def _number(value):
    return 0.0 if math.isnan(value) else value


def scored(values):
    return [i for i, value in enumerate(values) if not math.isnan(value)]


@given(score_lists)
def test_sort_is_stable_and_best_first_with_nan_last(values):
    assert sort(values).tolist() == best_first(values)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sort_treats_signed_zero_and_signed_nan_as_the_plain_ones(device, dtype):
    values = torch.tensor([0.0, -0.0, NAN, 0.0, -0.0, 1.0] * 1000, dtype=dtype, device=device)
    values[2::12].neg_()  # half of the NaN carry a sign
    assert sort(values).tolist() == best_first(values.tolist())
    assert sort(values).dtype == torch.int64 and sort(values).device.type == device


@given(score_lists, st.integers(0, 40))
def test_top_k_keeps_the_first_k_of_the_order(values, k):
    kept, rejected = top_k(values, k)
    count = min(k, len(scored(values)))
    assert kept.tolist() == best_first(values)[:count]
    assert rejected.tolist() == best_first(values)[count:]


@given(score_lists, st.one_of(levels, st.floats(width=32)).filter(lambda m: not math.isnan(m)))
def test_threshold_keeps_exactly_the_scores_that_reach_it(values, minimum):
    kept, rejected = threshold(values, minimum)
    reaching = {i for i, value in enumerate(values) if value >= minimum}
    assert kept.tolist() == [i for i in best_first(values) if i in reaching]
    assert rejected.tolist() == [i for i in best_first(values) if i not in reaching]


def test_threshold_at_the_infinities():
    values = [1.0, NAN, -INF, INF]
    assert threshold(values, -INF).kept.tolist() == [3, 0, 2]
    assert threshold(values, INF).kept.tolist() == [3]


def test_threshold_reads_its_minimum_in_the_precision_of_the_scores():
    for dtype in (torch.float32, torch.float64):
        assert threshold(torch.tensor([0.1, 0.7], dtype=dtype), 0.7).kept.tolist() == [1]
    assert threshold([0.1, 0.7], 0.7).kept.tolist() == [1]


@given(score_lists, st.decimals(0, 1, places=4))
def test_top_fraction_rounds_the_written_decimal_up(values, fraction):
    count = math.ceil(Fraction(fraction) * len(scored(values)))
    assert top_fraction(values, float(fraction)).kept.tolist() == best_first(values)[:count]


@pytest.mark.parametrize(
    ("fraction", "n", "count"),
    [
        (0, 10, 0),
        (1, 10, 10),
        (0.07, 100, 7),  # 0.07 * 100 is 7.000000000000001
        (0.7, 10, 7),
        (0.25, 10, 3),
        (1e-12, 10, 1),
        (1.0, 0, 0),
        (0.5, 1, 1),
        (np.float64(0.3), 10, 3),
    ],
)
def test_top_fraction_counts(fraction, n, count):
    scores = torch.arange(float(n))
    assert top_fraction(scores, fraction).kept.tolist() == list(range(n - 1, n - 1 - count, -1))


def test_top_fraction_is_of_the_scored_candidates():
    assert top_fraction([NAN, 1.0, NAN, 3.0, NAN, 2.0, 0.0], 0.5).kept.tolist() == [3, 5]
    assert top_fraction([NAN, 1.0, NAN], 1).kept.tolist() == [1]


@given(score_lists)
def test_best_is_the_first_of_the_highest(values):
    highest = max((values[i] for i in scored(values)), default=None)
    expected = [] if highest is None else [values.index(highest)]
    assert best(values).kept.tolist() == expected
    assert len(best(values).rejected) == len(values) - len(expected)


SELECTIONS = [
    lambda scores, order: threshold(scores, 0.5, order=order),
    lambda scores, order: top_k(scores, 3, order=order),
    lambda scores, order: top_fraction(scores, 0.4, order=order),
]


@pytest.mark.parametrize("select", SELECTIONS)
@given(values=score_lists)
def test_every_selection_splits_the_set_and_rejects_nan(select, values):
    selection = select(values, "best")
    assert isinstance(selection, Selection)
    assert sorted(torch.cat(selection).tolist()) == list(range(len(values)))
    assert not any(math.isnan(values[i]) for i in selection.kept.tolist())
    assert selection.kept.dtype == selection.rejected.dtype == torch.int64


@pytest.mark.parametrize("select", SELECTIONS)
@given(values=score_lists)
def test_original_order_holds_the_same_indices_ascending(select, values):
    by_score, by_place = select(values, "best"), select(values, "original")
    assert by_place.kept.tolist() == sorted(by_score.kept.tolist())
    assert by_place.rejected.tolist() == sorted(by_score.rejected.tolist())


@given(st.data())
def test_selection_does_not_depend_on_the_order_of_distinct_scores(data):
    values = data.draw(st.lists(st.floats(allow_nan=False), unique=True, max_size=20))
    order = data.draw(st.permutations(range(len(values))))
    shuffled = [values[i] for i in order]
    kept = [order[i] for i in top_fraction(shuffled, 0.3).kept.tolist()]
    assert kept == top_fraction(values, 0.3).kept.tolist()


def test_constant_scores_are_kept_from_the_front():
    assert top_k([5.0] * 4, 2).kept.tolist() == [0, 1]
    assert top_fraction([5.0] * 4, 0.5).kept.tolist() == [0, 1]
    assert threshold([5.0] * 4, 5.0).kept.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("empty", [[], torch.empty(0), torch.empty(0, dtype=torch.float16)])
def test_no_scores_give_an_empty_selection(empty):
    for selection in (threshold(empty, 0), top_k(empty, 3), top_fraction(empty, 1), best(empty)):
        assert [len(part) for part in selection] == [0, 0]
    assert sort(empty).shape == (0,)


@pytest.mark.parametrize(
    "scores",
    [[1, 3, 2], (1.0, 3.0, 2.0), np.array([1.0, 3.0, 2.0]), torch.tensor([1, 3, 2]), range(3)],
)
def test_any_sequence_of_numbers_will_do(scores):
    assert best(scores).kept.tolist() == [list(scores).index(max(scores))]


def test_python_floats_that_float32_cannot_tell_apart_stay_apart():
    assert sort([1.0, 1.0 + 1e-12]).tolist() == [1, 0]


def test_scores_are_left_as_they_were():
    scores = torch.tensor([2.0, NAN, -0.0], requires_grad=True)
    top_k(scores, 1)
    assert scores.tolist()[0] == 2.0 and math.isnan(scores.tolist()[1])
    assert math.copysign(1, scores.tolist()[2]) == -1


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: sort(torch.zeros(2, 2)), ValueError, r"one dimension, got shape \(2, 2\)"),
        (lambda: sort(torch.tensor(1.0)), ValueError, "one dimension"),
        (lambda: sort(torch.zeros(2, dtype=torch.complex64)), TypeError, "real numbers"),
        (lambda: sort(torch.tensor([True])), TypeError, "real numbers"),
        (lambda: top_k([1.0], -1), ValueError, "k must be at least 0, got -1"),
        (lambda: top_k([1.0], 1.5), TypeError, "integer"),
        (lambda: top_k([1.0], 1, order="worst"), ValueError, "order must be"),
        (lambda: top_fraction([1.0], 1.01), ValueError, r"fraction must be in \[0, 1\], got 1.01"),
        (lambda: top_fraction([1.0], -0.1), ValueError, "fraction"),
        (lambda: top_fraction([1.0], NAN), ValueError, "fraction"),
        (lambda: threshold([1.0], NAN), ValueError, "minimum must be a number"),
    ],
)
def test_bad_arguments_say_what_is_wrong(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.slow
def test_ten_million_scores():
    scores = torch.randn(10_000_000, generator=torch.Generator().manual_seed(0))
    scores[::7] = NAN
    kept, rejected = top_fraction(scores, 0.3)
    assert len(kept) == math.ceil(0.3 * (10_000_000 - len(scores[::7])))
    assert scores[kept].min() >= scores[rejected].nan_to_num(-INF).max()
    assert (scores[kept].diff() <= 0).all()


def test_ranking_needs_nothing_but_torch():
    folder = Path(tastemaker.__file__).parent / "ranking"
    files = sorted(folder.glob("*.py"))
    assert len(files) > 5
    for file in files:
        for node in ast.walk(ast.parse(file.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom):
                assert node.level <= 1, f"{file.name} reaches outside ranking"
                names = [] if node.level else [node.module]
            roots = {name.split(".")[0] for name in names}
            assert roots <= {"torch", *sys.stdlib_module_names}, file.name


def test_public_names_are_listed_and_documented():
    ranking = tastemaker.ranking
    assert len(set(ranking.__all__)) == len(ranking.__all__)
    for name in ranking.__all__:
        thing = getattr(ranking, name)
        assert not callable(thing) or thing.__module__.startswith("tastemaker.ranking.")
        assert thing.__doc__
