"""`tag`: the words of methods A and B, in tables and in sidecars that never cost a caption."""

import json
import math
import os
from pathlib import Path

import pytest
from cli_tools import Cli, flat_picture, staircase

from tastemaker.cli import sidecars
from tastemaker.cli.export import read_table
from tastemaker.cli.sidecars import write_sidecars
from tastemaker.scorers import checkpoint

WORDS = ["worst quality", "low quality", "average quality", "high quality", "best quality"]


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


def tags(table: Path) -> dict[str, str | None]:
    return {Path(row["path"]).name: row["tag"] or None for row in read_table(table)}


def write_pairs(path: Path, *pairs, header: bool = True) -> Path:
    lines = [f"{winner},{loser}" for winner, loser in pairs]
    path.write_text("\n".join(["winner,loser", *lines] if header else lines))
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_equal_width_and_quantile(run, tmp_path, suffix):
    for i, grey in enumerate([0, 10, 20, 30, 250]):
        flat_picture(tmp_path / f"{i}.png", grey)
    (tmp_path / "broken.png").write_bytes(b"x")
    table = tmp_path / f"t{suffix}"
    output = run("tag", tmp_path, "--export", table).stdout
    assert output.splitlines()[0].split(maxsplit=1) == ["1", "best quality"]
    assert output.splitlines()[-1].split(maxsplit=1) == ["1", "no score"]
    width = [*WORDS[:1] * 4, WORDS[4]]
    assert list(tags(table).values()) == [*width, None]
    run("tag", tmp_path, "--method", "quantile", "--export", table)
    assert list(tags(table).values()) == [*WORDS, None]
    row = next(read_table(table))
    assert list(row) == ["path", "score", "error", "scorer", "fingerprint", "tag"]


def test_labels(run, tmp_path):
    staircase(tmp_path / "in", 4)
    table = tmp_path / "t.csv"
    run("tag", tmp_path / "in", "--labels", "bad, good", "--export", table)
    assert list(tags(table).values()) == ["bad", "bad", "good", "good"]
    assert "different words" in run.usage_error("tag", tmp_path / "in", "--labels", "bad,,good")
    assert "different words" in run.usage_error("tag", tmp_path / "in", "--labels", "bad,bad")


def test_calibrated_by_tau_and_b(run, tmp_path):
    """rank = 10 sigmoid((s - 0.6) / 0.1) = 0.18, 1.19, 5.00, 8.81, 9.82: by hand."""
    staircase(tmp_path / "in")
    table = tmp_path / "t.csv"
    command = ["tag", tmp_path / "in", "--method", "calibrated", "--export", table]
    ten = ["--labels", ",".join(f"rank {i}" for i in range(10))]
    run(*command, "--tau", 0.1, "--b", 0.5999, *ten)
    assert list(tags(table).values()) == ["rank 0", "rank 1", "rank 5", "rank 8", "rank 9"]
    # Without b the mean rank becomes 5: these scores lie evenly about 0.6.
    assert "tau 0.1, b 0.6" in run(*command, "--tau", 0.1).stdout


def test_calibrated_by_comparisons_and_by_a_file(run, tmp_path, monkeypatch):
    paths = staircase(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    # The odds of 3 to 1 at a difference of 0.4: tau = 0.4 / ln 3.
    pairs = write_pairs(tmp_path / "p.csv", *[("3.png", paths[1])] * 3, (paths[1], "3.png"))
    command = ["tag", ".", "--method", "calibrated"]
    output = run(*command, "--pairs", pairs, "--export", tmp_path / "a.csv").stdout
    assert f"tau {0.4 / math.log(3):.4f}"[:9] in output
    reference = tmp_path / "reference.json"
    run("calibrate", ".", "--scorer", "nano", "--pairs", pairs, "--out", reference)
    run(*command, "--calibration", reference, "--export", tmp_path / "b.csv")
    assert tags(tmp_path / "a.csv") == tags(tmp_path / "b.csv")

    contents = json.loads(reference.read_text())
    contents["members"][0]["fingerprint"]["dtype"] = "bfloat16"
    reference.write_text(json.dumps(contents))
    assert "has no calibration of brightness" in run.error(*command, "--calibration", reference)
    del contents["members"][0]["calibration"]
    reference.write_text(json.dumps(contents))
    assert "none: calibrate with --pairs" in run.error(*command, "--calibration", reference)


def test_comparisons_must_be_of_scored_pictures(run, tmp_path):
    paths = staircase(tmp_path / "in")
    command = ["tag", tmp_path / "in", "--method", "calibrated", "--pairs"]
    stranger = flat_picture(tmp_path / "s.png", 3)
    pairs = write_pairs(tmp_path / "p.csv", (paths[0], stranger), header=False)
    assert f"not among the scored pictures: {stranger}" in run.error(*command, pairs)
    write_pairs(tmp_path / "p.csv", (paths[0], ""))
    assert "line 2 of" in run.error(*command, pairs)
    write_pairs(tmp_path / "p.csv")
    assert "no comparisons in" in run.error(*command, pairs)
    pairs.write_text("winner,loser\na,{}\n".format("x" * 140_000))
    assert "line 2 of" in (error := run.error(*command, pairs)) and "field larger" in error
    write_pairs(tmp_path / "p.csv", (paths[4], paths[0]))
    assert "never contradict" in run.error(*command, pairs)


def test_options_that_do_not_go_together(run, tmp_path):
    staircase(tmp_path, 1)
    assert "takes one of" in run.usage_error("tag", tmp_path, "--method", "calibrated")
    assert "--tau goes with" in run.usage_error("tag", tmp_path, "--tau", 1)
    assert "--b goes with --method" in run.usage_error("tag", tmp_path, "--b", 1)
    both = ["--method", "calibrated", "--tau", 1, "--pairs", tmp_path / "0.png"]
    assert "takes one of" in run.usage_error("tag", tmp_path, *both)
    b = ["--method", "calibrated", "--pairs", tmp_path / "0.png", "--b", 1]
    assert "--b goes with --tau" in run.usage_error("tag", tmp_path, *b)
    assert "ends in .csv" in run.error("tag", tmp_path, "--export", tmp_path / "t.txt")
    assert run.loaded == []


def test_sidecars(run, tmp_path):
    staircase(tmp_path)
    (tmp_path / "broken.png").write_bytes(b"x")
    (tmp_path / "4.txt").write_text("a caption")
    command = ["tag", tmp_path, "--sidecars"]
    assert "5 sidecars written, 0 unchanged" in run(*command).stdout
    found = {p.name: p.read_text() for p in tmp_path.glob("*.txt")}
    assert found.pop("4.txt") == "a caption"
    assert found == {f"{i}.quality.txt": f"{word}\n" for i, word in enumerate(WORDS)}
    assert "0 sidecars written, 5 unchanged" in run(*command).stdout
    assert (
        "2 sidecars written, 3 unchanged"
        in run(*command, "--labels", "awful,low quality,average quality,high quality,great").stdout
    )
    assert (tmp_path / "0.quality.txt").read_text() == "awful\n"
    before = sorted(tmp_path.iterdir())
    run("tag", tmp_path)  # only counts
    assert sorted(tmp_path.iterdir()) == before


def test_a_file_of_others_is_never_changed(run, tmp_path):
    staircase(tmp_path)
    command = ["tag", tmp_path, "--sidecars"]
    (tmp_path / "0.quality.txt").write_text("low quality\n")  # ours could have said so
    (tmp_path / "1.quality.txt").symlink_to(tmp_path / "caption.txt")  # to nowhere
    (tmp_path / "2.quality.txt").mkdir()
    result = run(*command)
    assert "2 sidecars written" in result.stdout
    assert "3 exist and were not written by tastemaker" in result.stderr
    assert str(tmp_path / "0.quality.txt") in result.stderr
    assert (tmp_path / "0.quality.txt").read_text() == "low quality\n"
    assert not (tmp_path / "caption.txt").exists()
    # What was ours and then changed by hand is no longer ours.
    (tmp_path / "4.quality.txt").write_text("best quality, my own words\n")
    run(*command, "--labels", "a,b,c,d,e")
    assert (tmp_path / "4.quality.txt").read_text() == "best quality, my own words\n"
    assert (tmp_path / "3.quality.txt").read_text() == "d\n"


@pytest.mark.parametrize(
    "suffix",
    [".txt", ".TXT", ".caption", ".json", ".npz", ".png", "quality", ".", "", "./x", ".a/b"],
)
def test_suffixes_of_captions_and_pictures_are_refused(run, tmp_path, suffix):
    staircase(tmp_path, 1)
    before = sorted(tmp_path.iterdir())
    run.error("tag", tmp_path, "--sidecars", "--suffix", suffix)
    assert sorted(tmp_path.iterdir()) == before and run.loaded == []


def test_pictures_that_share_a_name_get_one_only_if_they_agree(run, tmp_path):
    for name, grey in (("a.png", 0), ("a.jpg", 255), ("b.png", 255), ("b.jpg", 255)):
        flat_picture(tmp_path / name, grey)
    result = run("tag", tmp_path, "--sidecars")
    assert "1 pictures share a name and differ" in result.stderr
    assert [p.name for p in tmp_path.glob("*.txt")] == ["b.quality.txt"]


@pytest.mark.parametrize("when", ["write", "replace"])
def test_an_interruption_leaves_old_or_new_and_a_repeat_finishes(tmp_path, monkeypatch, when):
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path / "home"))
    pictures = [tmp_path / f"{i}.png" for i in range(4)]
    write_sidecars(dict.fromkeys(pictures, "old"), ".q")
    turns = iter(range(2))

    def stop_after_two(own):
        def stopping(*args):
            if next(turns, None) is None:
                raise KeyboardInterrupt
            return own(*args)

        return stopping

    with monkeypatch.context() as patch:
        if when == "write":
            patch.setattr(Path, "write_bytes", stop_after_two(Path.write_bytes))
        else:
            patch.setattr(checkpoint.os, "replace", stop_after_two(os.replace))
        with pytest.raises(KeyboardInterrupt):
            write_sidecars(dict.fromkeys(pictures, "new"), ".q")
    found = [picture.with_suffix(".q").read_text() for picture in pictures]
    assert found == ["new\n", "new\n", "old\n", "old\n"]
    result = write_sidecars(dict.fromkeys(pictures, "new"), ".q")
    assert (result.fresh, result.unchanged, result.foreign) == (2, 2, [])
    assert {picture.with_suffix(".q").read_text() for picture in pictures} == {"new\n"}


def test_many_sidecars_are_written_in_batches(tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(sidecars, "BATCH", 3)
    words = {tmp_path / f"{i}.png": "x" for i in range(8)}
    assert write_sidecars(words, ".q").fresh == 8
    assert len(list(tmp_path.glob("*.q"))) == 8
