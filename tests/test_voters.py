"""One file of votes, several voters: whose votes are meant is said, never guessed."""

import json
import shlex

import pytest
from cli_tools import Cli, flat_picture

from tastemaker.cli import vote
from tastemaker.preferences.votes import Votes

SEVERAL = "holds votes of several: me (6), bob (3); name one, --voter NAME"


@pytest.fixture
def folder(tmp_path):
    for i in range(7):
        flat_picture(tmp_path / f"{i}.png", 20 + 30 * i)
    return tmp_path


@pytest.fixture
def store(folder):
    """The votes of two: one prefers the brighter picture, the other the darker one."""
    votes = Votes(folder / "votes.sqlite", folder)
    for voter, count, answer in (("me", 6, "right"), ("bob", 3, "left")):
        for i in range(count):
            votes.add(voter, folder / f"{i}.png", folder / f"{i + 1}.png", answer)
    votes.add("ann", folder / "0.png", folder / "1.png", "skip")  # has compared nothing
    return votes


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"), None)


def test_a_scorer_is_trained_on_one_voters_votes(run, store, tmp_path):
    train = ("train", store.path, "--test-fraction", 0, "--no-robust", "--out")
    assert SEVERAL in run.error(*train, tmp_path / "both")
    assert not (tmp_path / "both").exists()
    for voter, count in (("me", 6), ("bob", 3)):
        run(*train, tmp_path / voter, "--voter", voter)
        config = json.loads((tmp_path / voter / "config.json").read_text(encoding="utf-8"))
        assert config["data"]["comparisons"] == count
    error = run.error(*train, tmp_path / "eve", "--voter", "eve")
    assert "no votes of eve in" in error and "(votes of: me, bob, ann)" in error


def test_a_file_without_voters_has_none_to_name(run, folder):
    (folder / "pairs.csv").write_text("left,right,p\n0.png,1.png,1\n")
    error = run.error("train", folder / "pairs.csv", "--voter", "me", "--out", folder / "taste")
    assert "pairs.csv has no voters: --voter goes with a store of votes" in error


def test_a_scorer_is_evaluated_against_one_voter(run, store):
    assert SEVERAL in run.error("evaluate", "nano", store.path)
    found = run("evaluate", "nano", store.path, "--voter", "bob", "--rounds", 10).stdout
    assert "votes.sqlite, bob: 3 comparisons" in found


def test_scores_are_calibrated_to_one_voter(monkeypatch, store, folder):
    run = Cli(monkeypatch, folder / "home")
    measure = ("calibrate", folder, "--scorer", "nano", "--out", folder / "reference.json")
    tag = ("tag", folder, "--method", "calibrated")
    for command in (measure, tag):
        assert SEVERAL in run.error(*command, "--pairs", store.path)
        error = run.error(*command, "--pairs", store.path, "--voter", "eve")
        assert "no votes of eve" in error
    assert "--voter goes with --pairs" in run.usage_error(*measure, "--voter", "me")
    assert "--voter goes with --pairs" in run.usage_error("tag", folder, "--voter", "me")
    (folder / "pairs.csv").write_text("winner,loser\n0.png,1.png\n")
    error = run.error(*measure, "--pairs", folder / "pairs.csv", "--voter", "me")
    assert "pairs.csv has no voters: --voter goes with a store of votes" in error


@pytest.mark.parametrize("voter", ["me", "bob"])
def test_what_to_do_next_names_a_voter_among_others(store, voter):
    said = shlex.split(vote._advice(store, voter, "nano"))
    assert said[:3] == ["tastemaker", "train", str(store.path)]
    assert said[said.index("--voter") + 1] == voter


def test_what_to_do_next_names_who_was_named(folder):
    alone = Votes(folder / "alone.sqlite", folder)
    assert "--voter" not in vote._advice(alone, "me", "nano")
    assert "--voter 'my wife'" in vote._advice(alone, "my wife", "nano")
