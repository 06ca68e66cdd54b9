"""The gate: each candidate is judged by the record as it was in its turn."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker import ranking

numbers = st.lists(st.floats(-5, 5, width=32) | st.just(math.nan), min_size=1, max_size=40)


def turns(scores: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """(record, known) after all of them came one by one."""
    there = [not math.isnan(score) for score in scores]
    known = torch.tensor(there).cumsum(0)
    return torch.tensor([s for s in scores if not math.isnan(s)], dtype=torch.float64), known


@given(numbers, st.floats(0, 1), st.integers(0, 10), st.integers(0, 15))
def test_as_counted_by_hand(scores, share, warm_up, window):
    record, known = turns(scores)
    found = ranking.gate(scores, record, known, reject_share=share, warm_up=warm_up, window=window)
    kept = []
    for i, score in enumerate(scores):
        past = record[: known[i]].tolist()
        latest = past[-window:] if window else past
        if math.isnan(score):
            assert math.isnan(found.percentiles[i])
            continue
        below = sum(s < score for s in latest) + 0.5 * sum(s == score for s in latest)
        assert found.percentiles[i] == pytest.approx(100 * below / len(latest))
        if len(past) <= warm_up or float(found.percentiles[i]) >= 100 * share:
            kept.append(i)
    assert found.selection.kept.tolist() == kept
    rejected = [i for i in range(len(scores)) if i not in kept]
    assert found.selection.rejected.tolist() == rejected


@given(numbers, st.integers(1, 39))
def test_how_many_come_at_once_does_not_matter(scores, at_once):
    record, known = turns(scores)
    together = ranking.gate(scores, record, known, warm_up=5)
    for start in range(0, len(scores), at_once):
        part = slice(start, start + at_once)
        until = int(known[part][-1])
        alone = ranking.gate(scores[part], record[:until], known[part], warm_up=5)
        assert alone.percentiles.equal(together.percentiles[part]) or torch.allclose(
            alone.percentiles, together.percentiles[part], equal_nan=True
        )
        assert (alone.selection.kept + start).tolist() == [
            i for i in together.selection.kept.tolist() if start <= i < start + at_once
        ]


@given(st.lists(st.floats(-5, 5), min_size=2, max_size=40), st.floats(0, 1))
def test_the_cut_parts_those_that_would_pass_now(record, share):
    record = torch.tensor(record, dtype=torch.float64)
    known = torch.full((len(record),), len(record))
    found = ranking.gate(record, record, known, reject_share=share, warm_up=1)
    assert (record[found.selection.kept] >= found.cut).all()
    assert (record[found.selection.rejected] < found.cut).all()


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5])
def test_the_share_holds_over_a_long_stream(share):
    scores = torch.randn(3000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    known = torch.arange(1, 3001)
    found = ranking.gate(scores, scores, known, reject_share=share)
    assert len(found.selection.rejected) / 2980 == pytest.approx(share, abs=0.02)


def test_while_it_warms_up_everything_with_a_score_passes():
    scores = torch.tensor([3.0, 2.0, 1.0, torch.nan, 0.0])
    found = ranking.gate(scores, [3.0, 2, 1, 0], torch.tensor([1, 2, 3, 3, 4]), warm_up=4)
    assert found.selection.kept.tolist() == [0, 1, 2, 4] and found.cut == -math.inf
    found = ranking.gate(scores, [3.0, 2, 1, 0], torch.tensor([1, 2, 3, 3, 4]), warm_up=3)
    assert found.selection.kept.tolist() == [0, 1, 2] and found.cut == 1


def test_a_window_follows_a_change_of_level():
    """A new prompt whose images all score lower is judged by its own kind after a while."""
    scores = torch.cat([torch.linspace(10, 11, 50), torch.linspace(0, 1, 50)[torch.randperm(50)]])
    known = torch.arange(1, 101)
    everything = ranking.gate(scores, scores, known)
    latest = ranking.gate(scores, scores, known, window=20)
    late = slice(75, 100)
    assert len(set(range(100)[late]) & set(everything.selection.kept.tolist())) < 13
    assert len(set(range(100)[late]) & set(latest.selection.kept.tolist())) > 13


def test_nothing_at_all():
    found = ranking.gate([], [], torch.zeros(0, dtype=torch.int64))
    assert len(found.percentiles) == 0 and found.cut == -math.inf


@pytest.mark.parametrize(
    "options, message",
    [
        ({"reject_share": 1.1}, "reject_share must be in"),
        ({"reject_share": math.nan}, "reject_share must be in"),
        ({"warm_up": -1}, "warm_up must be at least 0"),
        ({"window": -1}, "window must be at least 0"),
    ],
)
def test_numbers_outside_their_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ranking.gate([1.0], [1.0], torch.tensor([1]), **options)


@pytest.mark.parametrize("known", [[2], [-1], [1, 1]])
def test_known_must_fit_the_record(known):
    with pytest.raises(ValueError, match="known must be 1 numbers from 0 to 1"):
        ranking.gate([1.0], [1.0], torch.tensor(known))
