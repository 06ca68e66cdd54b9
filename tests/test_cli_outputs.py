"""What a command reads is never written over, and what it does not read is never given."""

import numpy as np
import pytest
from cli_tools import Cli, staircase


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


@pytest.fixture
def pictures(tmp_path):
    staircase(tmp_path / "in")
    return tmp_path / "in"


ANSWERED = "left,right,p\nin/0.png,in/1.png,1\n"


@pytest.mark.parametrize(
    "name, contents, command",
    [
        ("p.csv", ANSWERED, ["calibrate", "--scorer", "nano", "--pairs", "p.csv", "--out"]),
        ("conf.json", '{"name": "mine"}', ["calibrate", "--scorer", "nano", "--out"]),
        ("p.csv", ANSWERED, ["choose", "--per-image", "1", "--out"]),
        ("list.csv", "in/0.png\nin/1.png\n", ["score", "--export"]),
        ("r.csv", "path,score\nin/0.png,3.5\n", ["score", "--export"]),  # ratings
        ("mine.jsonl", '{"name": "mine"}\n', ["score", "--export"]),
        ("p.csv", ANSWERED, ["tag", "--export"]),
    ],
)
def test_another_file_is_not_replaced(run, pictures, monkeypatch, name, contents, command):
    monkeypatch.chdir(pictures.parent)
    (pictures.parent / name).write_text(contents)
    assert f"{name} is there already and is no" in run.error(*command, name, "in")
    assert (pictures.parent / name).read_text() == contents and not run.loaded


@pytest.mark.parametrize(
    "name, command",
    [
        ("r.json", ["calibrate", "--scorer", "nano", "--out"]),
        ("t.csv", ["score", "--export"]),
        ("t.jsonl", ["tag", "--export"]),
        ("t.parquet", ["score", "--export"]),
    ],
)
def test_its_own_is_replaced(run, pictures, monkeypatch, name, command):
    monkeypatch.chdir(pictures.parent)
    run(*command, name, "in")
    before = (pictures.parent / name).read_bytes()
    (pictures / "0.png").unlink()
    run(*command, name, "in")
    assert (pictures.parent / name).read_bytes() != before
    (pictures.parent / name).write_bytes(b"")
    run(*command, name, "in")


def test_a_picture_is_not_written_over_by_the_sheet_of_its_ranking(run, pictures):
    picture = pictures / "3.png"
    before = picture.read_bytes()
    assert "3.png is there already, among the pictures to rank" in run.error(
        "rank", pictures, "--sheet", picture, "--report", pictures.parent / "r.html"
    )
    link = pictures.parent / "elsewhere"
    link.symlink_to(pictures)
    worst = ["rank", pictures, "--sheet", link / "s.png", "--report", pictures.parent / "r.html"]
    staircase(pictures, 1)[0].rename(pictures / "s-worst.png")
    assert "s-worst.png is there already, among" in run.error(*worst, "--worst", 2)
    assert picture.read_bytes() == before and not (pictures / "s.png").exists()
    assert not run.loaded, "told before the scoring"
    lines = "\n".join(map(str, sorted(pictures.iterdir())))
    listed = ["rank", "-", *worst[2:], "--worst", 2]
    assert "s-worst.png is there already, among" in run(*listed, code=1, input=lines).stderr
    run(*worst)  # writes no sheet of the worst


def test_a_folder_of_reports_among_the_pictures_is_written_again(run, pictures):
    for _ in range(2):
        run("rank", pictures, "--out", pictures / "report")


@pytest.mark.parametrize("command", [["rank"], ["filter", "--top-k", "1"], ["tag"]])
def test_scores_that_exist_leave_no_scorer_to_name(run, pictures, tmp_path, command):
    table = tmp_path / "t.csv"
    run("score", pictures, "--export", table)
    for options in (["--scorer", "rali"], ["--task", "aesthetics"], ["--retry-errors"]):
        given = [*command, "--scores", table, *options]
        assert f"--scores has the scores: {options[0]} would not be read" in run.usage_error(*given)


@pytest.mark.parametrize("command", [["rank"], ["filter", "--top-k", "1"], ["tag"]])
def test_scores_of_other_pictures_are_no_scores(run, pictures, tmp_path, command):
    table, journal = tmp_path / "t.csv", tmp_path / "j.sqlite"
    run("score", pictures, "--export", table, "--journal", journal)
    staircase(tmp_path / "other", 2)
    for scores in (table, journal):
        error = run.error(*command, "--scores", scores, tmp_path / "other")
        assert f"{scores.name} knows none of the 2 pictures, such as" in error


def test_one_word_for_all_is_a_mistake(run, pictures):
    assert "two words at least" in run.usage_error("tag", pictures, "--labels", "good")


def test_pairs_are_replaced_until_one_is_answered(run, pictures, tmp_path):
    out, directions = tmp_path / "p.csv", tmp_path / "x.npy"
    np.save(directions, np.random.default_rng(0).standard_normal((5, 4)).astype(np.float32))
    command = ["choose", pictures, "--per-image", 2, "--embeddings", directions, "--out", out]
    run(*command)
    first = out.read_text()
    run(*command, "--random", 1, "--seed", 1)
    second = out.read_text()
    assert second != first
    answered = second.rstrip("\n") + "0.5\n"
    out.write_text(answered)
    assert "is no file of pairs without answers" in run.error(*command)
    assert out.read_text() == answered
