"""The file of votes: kept once, never lost, shared, moved along with its pictures, refused when foreign."""

import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from cli_tools import flat_picture
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tastemaker.preferences.comparisons import read_comparisons
from tastemaker.preferences.votes import ANSWERS, AlreadyAnswered, Votes, is_votes, read_votes

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path) -> Path:
    for i in range(6):
        flat_picture(tmp_path / "set" / "deep" / f"{i}.png", 40 * i + 10)
    return tmp_path / "set"


@pytest.fixture
def votes(folder) -> Votes:
    return Votes(folder.parent / "kept" / "votes.sqlite", folder)


def picture(folder: Path, i: int) -> Path:
    return folder / "deep" / f"{i}.png"


def ask(votes: Votes, left: int, right: int, tab: str = "tab-1", voter: str = "me"):
    return votes.ask(voter, tab, picture(votes.folder, left), picture(votes.folder, right))


def answers(votes: Votes, voter=None) -> list[tuple[str, str, str]]:
    """(left, right, answer) of what counts."""
    return [(Path(v.left.path).stem, Path(v.right.path).stem, v.answer) for v in votes.votes(voter)]


# Votes and undo


def test_votes_are_comparisons_in_their_order(votes):
    for pair, answer in zip([(0, 1), (2, 1), (3, 4), (5, 0)], ANSWERS, strict=True):
        assert votes.vote(ask(votes, *pair).key, answer)
    found = read_votes(votes.path)
    names = [image.name for image in found.images]
    assert names == ["0.png", "1.png", "2.png", "3.png", "4.png"], "a skipped pair is none"
    assert found.pairs.tolist() == [[0, 1], [2, 1], [3, 4]] and found.p.tolist() == [1.0, 0.5, 0.0]
    assert all(image.is_file() for image in found.images)
    train, test = read_comparisons(votes.path)
    assert train.images == found.images and test is None


def test_a_vote_that_is_sent_again_is_kept_once(votes):
    key = ask(votes, 0, 1).key
    assert votes.vote(key, "left") and not votes.vote(key, "left")
    with pytest.raises(AlreadyAnswered, match="left"):
        votes.vote(key, "right")
    assert answers(votes) == [("0", "1", "left")]


def test_a_pair_counts_once_in_whichever_tab_and_order(votes):
    first, second = ask(votes, 0, 1), ask(votes, 1, 0, tab="tab-2")
    votes.vote(first.key, "left")
    assert votes.open("me", "tab-2") == []
    with pytest.raises(AlreadyAnswered, match="another tab"):
        votes.vote(second.key, "left")
    assert answers(votes) == [("0", "1", "left")]
    other = ask(votes, 0, 1, voter="ann")
    assert votes.vote(other.key, "right"), "another voter has a vote of her own"


def test_what_is_undone_is_asked_again_and_stays_in_the_history(votes):
    first, second, third = ask(votes, 0, 1), ask(votes, 2, 3), ask(votes, 4, 5)
    votes.vote(first.key, "left")
    votes.vote(second.key, "tie")
    assert votes.last("me", "tab-1") == second.key
    votes.undo(second.key)
    assert votes.last("me", "tab-1") == first.key
    votes.undo(first.key)
    again = votes.open("me", "tab-1")
    assert [(q.left, q.right) for q in again] == [
        (q.left, q.right) for q in (first, second, third)
    ], "the latest undo is on top, the pair that was shown meanwhile comes after"
    assert answers(votes) == [] and votes.last("me", "tab-1") is None
    assert [vote.answer for vote in votes.history()] == ["left", "tie"]
    assert all(vote.undone for vote in votes.history())
    votes.vote(again[0].key, "right")
    assert answers(votes) == [("0", "1", "right")]


def test_an_undo_that_is_sent_again_does_nothing_and_an_old_vote_does_not_come_back(votes):
    key = ask(votes, 0, 1).key
    votes.vote(key, "left")
    again = votes.undo(key)
    assert votes.undo(key) is None and len(votes.open("me", "tab-1")) == 1
    assert not votes.vote(key, "left"), "a late repetition of the vote that was undone"
    assert answers(votes) == []
    votes.vote(again.key, "right")
    assert votes.undo(key) is None and answers(votes) == [("0", "1", "right")]


def test_undo_is_a_matter_of_the_tab(votes):
    mine, other = ask(votes, 0, 1), ask(votes, 2, 3, tab="tab-2")
    votes.vote(mine.key, "left")
    votes.vote(other.key, "left")
    assert votes.last("me", "tab-1") == mine.key and votes.last("me", "tab-2") == other.key


def test_a_new_tab_undoes_what_was_voted_before_it_was_opened(votes):
    """The browser was closed: its tab does not come back, the votes can."""
    first, second = ask(votes, 0, 1), ask(votes, 2, 3)
    for question in (first, second):
        votes.vote(question.key, "left")
    assert votes.last("me", "tab-2") == second.key, "also before it was asked anything"
    own = ask(votes, 4, 5, tab="tab-2")
    votes.vote(own.key, "left")
    for key, pair in [(own.key, own), (second.key, second), (first.key, first)]:
        assert votes.last("me", "tab-2") == key
        again = votes.undo(key, "tab-2")
        assert (again.left, again.right, again.tab) == (pair.left, pair.right, "tab-2")
        assert votes.open("me", "tab-2")[0] == again
    assert votes.last("me", "tab-2") is None and answers(votes) == []
    assert votes.open("me", "tab-1") == [], "it is asked where it was taken back"


def test_of_two_open_tabs_neither_undoes_what_the_other_voted_meanwhile(votes):
    before = ask(votes, 0, 1)
    votes.vote(before.key, "left")
    mine, other = ask(votes, 2, 3), ask(votes, 4, 5, tab="tab-2")
    votes.vote(mine.key, "left")
    assert votes.last("me", "tab-2") == before.key
    votes.undo(before.key, "tab-2")
    assert votes.last("me", "tab-2") is None and votes.last("me", "tab-1") == mine.key
    votes.vote(other.key, "left")
    assert votes.last("me", "tab-2") == other.key and votes.last("me", "tab-1") == mine.key
    assert votes.undo(before.key, "tab-1") is None, "both pressed it at once"
    assert len([q for q in votes.open("me", "tab-1") if q.left == before.left]) == 0


def test_nobody_undoes_votes_of_others_or_from_elsewhere(votes):
    votes.vote(ask(votes, 0, 1, voter="ann").key, "left")
    votes.add("me", picture(votes.folder, 2), picture(votes.folder, 3), "left")
    assert votes.last("me", "tab-1") is None


def test_wrong_keys_and_answers(votes):
    with pytest.raises(KeyError):
        votes.vote("nothing", "left")
    key = ask(votes, 0, 1).key
    with pytest.raises(KeyError):
        votes.undo(key)
    with pytest.raises(ValueError, match="left, tie, right, skip"):
        votes.vote(key, "up")
    assert answers(votes) == []


STEPS = st.lists(
    st.tuples(st.sampled_from(["vote", "undo", "repeat"]), st.integers(0, 9), st.integers(0, 3)),
    max_size=30,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS)
def test_any_sequence_of_votes_undos_and_repetitions_is_what_a_list_would_hold(tmp_path, steps):
    folder = tmp_path / "pictures"
    if not folder.exists():
        for i in range(6):
            flat_picture(folder / "deep" / f"{i}.png", 40 * i)
    votes = Votes(Path(tempfile.mkdtemp(dir=tmp_path)) / "votes.sqlite", folder)
    pairs = [(a, b) for a in range(6) for b in range(a)]
    expected: list[tuple[str, str]] = []  # (key, answer)
    for kind, which, answer in steps:
        word = list(ANSWERS)[answer]
        if kind == "vote":
            waiting = votes.open("me", "tab-1") or [ask(votes, *pairs.pop())] if pairs else []
            if waiting:
                votes.vote(waiting[0].key, word)
                expected.append((waiting[0].key, word))
        elif expected and kind == "undo":
            key, _ = expected.pop()
            assert votes.last("me", "tab-1") == key
            votes.undo(key)
        elif expected:
            assert not votes.vote(*expected[which % len(expected)])
        assert [(v.key, v.answer) for v in votes.votes()] == expected


# Several voters, folders that move


def test_voters_are_told_apart(votes):
    votes.vote(ask(votes, 0, 1).key, "left")
    votes.vote(ask(votes, 0, 1, voter="ann").key, "right")
    votes.vote(ask(votes, 2, 3, voter="ann").key, "tie")
    assert votes.voters() == {"me": 1, "ann": 2}
    assert read_votes(votes.path, voter="me").p.tolist() == [1.0]
    assert read_votes(votes.path, voter="ann").p.tolist() == [0.0, 0.5]
    for read in (read_votes, read_comparisons):
        with pytest.raises(
            ValueError, match=r"several: me \(1\), ann \(2\); name one, --voter NAME"
        ):
            read(votes.path)
    assert read_comparisons(votes.path, "ann")[0].p.tolist() == [0.0, 0.5]
    with pytest.raises(ValueError, match="no votes of bob.*me, ann"):
        read_votes(votes.path, voter="bob")


def test_votes_follow_a_folder_that_is_moved(votes, folder):
    votes.vote(ask(votes, 0, 1).key, "left")
    moved = folder.rename(folder.with_name("elsewhere"))
    with pytest.raises(ValueError, match="name the folder"):
        read_votes(votes.path)
    assert read_votes(votes.path, moved).images == (picture(moved, 0), picture(moved, 1))
    assert read_votes(votes.path).images[0] == picture(moved, 0), "and it is remembered"


def test_votes_follow_a_file_that_is_renamed_or_copied(votes, folder):
    votes.vote(ask(votes, 0, 1).key, "left")
    picture(folder, 0).rename(folder / "another name.png")
    os.utime(picture(folder, 1), (1, 1))  # as a copy would have it
    found = read_votes(votes.path)
    assert found.images == (folder / "another name.png", picture(folder, 1))


def test_votes_about_what_was_overwritten_or_deleted_are_left_out_by_name(votes, folder):
    for pair in [(0, 1), (2, 3), (4, 5)]:
        votes.vote(ask(votes, *pair).key, "left")
    time.sleep(0.01)
    shutil.copy(picture(folder, 4), picture(folder, 0))
    picture(folder, 3).unlink()
    with pytest.warns(UserWarning, match=r"2 of 6 .*deep/0.png, deep/3.png.*left out, 2 votes"):
        found = read_votes(votes.path)
    assert found.images == (picture(folder, 4), picture(folder, 5))
    votes.vote(ask(votes, 0, 1).key, "right")
    with pytest.warns(UserWarning):
        assert len(read_votes(votes.path)) == 2, "as a new picture it is asked about anew"


def test_another_folder_is_refused(votes, folder, tmp_path):
    votes.vote(ask(votes, 0, 1).key, "left")
    flat_picture(tmp_path / "other" / "x.png", 3)
    with pytest.raises(ValueError, match="about other pictures.*deep/0.png"):
        Votes(votes.path, tmp_path / "other")
    assert Votes(votes.path).folder == folder


@pytest.mark.skipif(os.name == "nt", reason="names are Unicode there")
def test_any_file_name(votes, folder):
    names = [os.fsdecode(b"\xff\xfe.png"), "a'b\"c;\n.png", "日本語 é.png"]
    paths = [flat_picture(folder / f"{i}.png", 50 * i + 3) for i in range(3)]
    paths = [path.rename(path.with_name(name)) for path, name in zip(paths, names, strict=True)]
    votes.add("me", paths[0], paths[1], "left")
    votes.add("me", paths[2], paths[0], "tie")
    assert read_votes(votes.path).images == tuple(paths)
    assert [vote.source for vote in votes.votes()] == ["elsewhere"] * 2


# Files that are no votes


def test_a_missing_file_is_not_made_by_reading(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no such file of votes: .*votes\.sqlite"):
        read_votes(tmp_path / "no" / "votes.sqlite")
    assert list(tmp_path.iterdir()) == []


def test_a_foreign_file_is_refused_and_left_as_it_is(tmp_path, folder):
    text, other = tmp_path / "text.sqlite", tmp_path / "other.sqlite"
    text.write_text("not a database at all " * 100)
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE votes (mine)")
    db.close()
    for path in (text, other):
        before = path.read_bytes()
        assert not is_votes(path)
        for how in ({}, {"folder": folder}):
            with pytest.raises(ValueError, match=f"not a file of votes.*{path.name}"):
                Votes(path, **how)
        assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"text.sqlite", "other.sqlite", "set"}


def test_a_damaged_file_is_refused_at_the_start(votes):
    for i in range(1, 6):
        votes.vote(ask(votes, 0, i).key, "left")
    assert is_votes(votes.path)
    content = bytearray(votes.path.read_bytes())
    content[4096 * 3 : 4096 * 4] = b"\xa5" * 4096
    votes.path.write_bytes(content)
    with pytest.raises(ValueError, match=r"damaged: .*votes\.sqlite"):
        Votes(votes.path)


def test_a_later_format_is_refused(votes):
    with sqlite3.connect(votes.path) as db:
        db.execute("PRAGMA user_version = 7")
    db.close()
    with pytest.raises(ValueError, match="has format 7, this version reads 1"):
        Votes(votes.path)


def test_a_picture_that_is_gone_is_no_question(votes):
    with pytest.raises(OSError):
        votes.ask("me", "tab-1", picture(votes.folder, 0), votes.folder / "gone.png")
    assert votes.open("me", "tab-1") == []


# Kills, and several programs at once

VOTER = """
import itertools, runpy, sys
runpy.run_path(sys.argv[1] + "/tests/conftest.py")
from pathlib import Path
from tastemaker.preferences.votes import Votes
path, folder, voter = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
pictures = sorted(folder.rglob("*.png"))
print("begun", flush=True)
for a, b in itertools.combinations(pictures, 2):
    question = Votes(path, folder).ask(voter, "tab-1", a, b)
    answer = "tie" if len(question.key) % 2 else "left"
    Votes(path, folder).vote(question.key, answer)
    print(question.key, answer, flush=True)  # acknowledged
"""


def start_voter(path: Path, folder: Path, voter: str) -> subprocess.Popen:
    command = [sys.executable, "-c", VOTER, str(ROOT), str(path), str(folder), voter]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert run.stdout.readline() == "begun\n"
    return run


def test_kill_9_loses_no_acknowledged_vote(tmp_path, folder):
    """Killed at random times after 0, 1 or 2 votes, six times on the same file: never damaged."""
    path = tmp_path / "votes.sqlite"
    rng, acknowledged = random.Random(0), []
    for turn in range(6):
        run = start_voter(path, folder, f"voter {turn}")
        said = "".join(run.stdout.readline() for _ in range(turn % 3))
        time.sleep(rng.uniform(0, 0.15))
        run.kill()
        said += run.communicate()[0]
        acknowledged += [tuple(line.split()) for line in said.splitlines() if line.count(" ")]
        kept = {vote.key: vote.answer for vote in Votes(path, folder).votes()}
        assert kept.items() >= dict(acknowledged).items()
        assert len(kept) <= len(acknowledged) + turn + 1, "at most one a kill was on its way"
    assert is_votes(path) and acknowledged


def test_two_programs_vote_at_once(tmp_path, folder):
    path = tmp_path / "votes.sqlite"
    runs = [start_voter(path, folder, voter) for voter in ("ann", "bob")]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert Votes(path).voters() == {"ann": 15, "bob": 15}
    assert [len(read_votes(path, voter=voter)) for voter in ("ann", "bob")] == [15, 15]


def test_a_full_disk_is_told_and_not_taken_for_a_vote(votes, monkeypatch):
    """SQLite's own limit on the file's size stands for the disk's."""
    import tastemaker.preferences.votes_file as file

    key = ask(votes, 0, 1).key
    connect = sqlite3.connect

    def full(*arguments, **how):
        db = connect(*arguments, **how)
        db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
        return db

    monkeypatch.setattr(file.sqlite3, "connect", full)
    questions = []
    with pytest.raises(OSError, match=r"votes\.sqlite: .*full"):
        for i in range(2, 2000):
            questions.append(votes.ask("me", "x" * 64, *[picture(votes.folder, i % 6)] * 2))
    monkeypatch.undo()
    assert len(votes.open("me", "x" * 64)) == len(questions), "what failed left nothing behind"
    assert votes.vote(key, "left") and answers(votes) == [("0", "1", "left")]
