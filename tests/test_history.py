"""The record of past scores: kept on disk, counted once, shared, reset and brought back."""

import math
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from tastemaker.report.history import History

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def history(tmp_path) -> History:
    return History(tmp_path / "a folder" / "record.sqlite")


def add(history, *scores, name="night", scorer="nano-1", first=0):
    images = [f"{first + i}".encode() for i in range(len(scores))]
    return history.add(name, scorer, images, scores)


def test_scores_come_back_in_their_order_after_a_restart(history):
    add(history, 0.5, 0.25)
    past = add(History(history.path), 0.125, first=2)
    assert past.scores.tolist() == [0.5, 0.25, 0.125] and past.known.tolist() == [3]


def test_each_turn_says_what_there_was(history):
    assert add(history, 1.0, 2.0, 3.0).known.tolist() == [1, 2, 3]
    assert add(history, 9.0, 9.0, first=3).known.tolist() == [4, 5]


def test_an_image_is_counted_once(history):
    add(history, 0.5, 0.25)
    past = add(history, 0.5, 0.25, 0.75)
    assert past.scores.tolist() == [0.5, 0.25, 0.75] and past.known.tolist() == [2, 2, 3]
    twice = history.add("night", "nano-1", [b"x", b"x"], [0.1, 0.1])
    assert twice.known.tolist() == [4, 4]


def test_nan_is_never_kept(history):
    past = add(history, math.nan, 1.0, math.nan)
    assert past.scores.tolist() == [1.0] and past.known.tolist() == [0, 1, 1]


def test_infinite_scores_are_scores(history):
    assert add(history, math.inf, -math.inf).scores.tolist() == [math.inf, -math.inf]


def test_names_and_fingerprints_never_mix(history):
    add(history, 1.0)
    assert add(history, 2.0, name="day").scores.tolist() == [2.0]
    assert add(history, 3.0, scorer="nano-2").scores.tolist() == [3.0]
    assert history.count("night") == 2 and history.count("day") == 1


@pytest.mark.parametrize("name", ["../../etc", "a'; DROP TABLE scores; --", "ночь", " "])
def test_a_name_is_only_a_name(history, name):
    assert add(history, 1.0, name=name).scores.tolist() == [1.0]
    assert [p.name.split("-")[0] for p in history.path.parent.iterdir()] == ["record.sqlite"]


def test_no_name_is_refused(history):
    with pytest.raises(ValueError, match="needs a name"):
        add(history, 1.0, name="")


def test_a_reset_begins_anew_and_can_be_undone(history):
    add(history, 1.0, 2.0)
    add(history, 5.0, name="day")
    before = history.generation("night")
    assert history.reset("night") == 2
    assert history.count("night") == 0 and history.count("day") == 1
    assert history.generation("night") != before
    assert add(history, 1.0).scores.tolist() == [1.0]  # the same image, counted anew
    assert history.undo_reset("night") == 2
    assert add(history, 3.0, first=2).scores.tolist() == [1.0, 2.0, 3.0]


def test_resets_are_undone_one_by_one(history):
    for score in (1.0, 2.0, 3.0):
        add(history, score)
        history.reset("night")
    assert add(history).scores.tolist() == []
    for score in (3.0, 2.0, 1.0):
        assert history.undo_reset("night") == 1
        assert add(history).scores.tolist() == [score]
    with pytest.raises(ValueError, match="has not been reset"):
        history.undo_reset("night")


def test_a_reset_after_an_undo_does_not_bring_back_what_was_set_aside(history):
    add(history, 1.0)
    history.reset("night")
    add(history, 2.0)
    history.undo_reset("night")
    history.reset("night")
    assert add(history).scores.tolist() == []


def test_every_reset_and_undo_is_a_change(history):
    add(history, 1.0)
    seen = [history.changes()]
    for act in (history.reset, history.undo_reset, history.reset):
        act("night")
        seen.append(history.changes())
    assert len(set(seen)) == 4


def test_nothing_is_made_by_looking(history):
    assert history.count("night") == history.generation("night") == history.changes() == 0
    assert not history.path.exists()


WRITER = """
import runpy, sys
from pathlib import Path
runpy.run_path(sys.argv[1] + "/tests/conftest.py")
from tastemaker.report.history import History
history = History(Path(sys.argv[2]))
for i in range(40):
    history.add("night", "nano-1", [f"{sys.argv[3]} {i}".encode(), b"shared"], [float(i), 0.5])
"""


def test_two_programs_share_it(history):
    """Neither loses a score, and both count the shared image once."""
    arguments = [sys.executable, "-c", WRITER, str(ROOT), str(history.path)]
    both = [subprocess.Popen([*arguments, who]) for who in ("a", "b")]
    assert [program.wait(60) for program in both] == [0, 0]
    assert history.count("night") == 81


def test_a_failure_adds_nothing(history):
    add(history, 1.0)
    with pytest.raises(TypeError):
        history.add("night", "nano-1", [b"7", b"8"], [2.0, None])
    with pytest.raises(ValueError):
        history.add("night", "nano-1", [b"7", b"8"], [2.0])
    assert add(history).scores.tolist() == [1.0]


def test_something_else_is_refused_and_left_alone(tmp_path):
    path = tmp_path / "record.sqlite"
    path.write_bytes(b"this is no database" * 100)
    with pytest.raises(ValueError, match="record.sqlite.*move it away"):
        add(History(path), 1.0)
    assert path.read_bytes() == b"this is no database" * 100
    other = tmp_path / "other.sqlite"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE mine (x)")
    with pytest.raises(ValueError, match="not a record of scores"):
        add(History(other), 1.0)


def test_a_record_cut_off_is_named(history):
    add(history, *range(500))
    data = history.path.read_bytes()
    history.path.write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match="record.sqlite"):
        add(history, 1.0, first=1000)
