"""`tastemaker` itself, `score`, and tables of scores in all formats."""

import csv
import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import ROOT, Cli, flat_picture, staircase
from stub import Brightness

from tastemaker.cli import COMMANDS
from tastemaker.cli.export import COLUMNS, export_rows, read_table, write_table
from tastemaker.cli.options import ScorerOptions
from tastemaker.cli.scoring import scores_of
from tastemaker.report import Row

GREYS = [0.2, 0.4, 0.6, 0.8, 1.0]


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


def test_help_lists_every_command_and_imports_no_torch():
    code = """
import runpy, sys
runpy.run_path(sys.argv[1])
from click.testing import CliRunner
from tastemaker.cli import COMMANDS, main
for args in [["-h"], *([name, "--help"] for name in sys.argv[2:])]:
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    if args == ["-h"]:
        assert all(name in result.output for name in COMMANDS)
assert "torch" not in sys.modules
"""
    conftest = str(ROOT / "tests" / "conftest.py")
    subprocess.run([sys.executable, "-c", code, conftest, *COMMANDS], check=True)


def test_every_command_is_there_under_its_name(run):
    from importlib import import_module

    for name in COMMANDS:
        assert import_module(f"tastemaker.cli.{name}").command.name == name


def test_unknown_commands_are_told_the_known_ones(run):
    assert "commands: score, rank" in run.usage_error("scores", "x")


def test_errors_are_one_line_and_tracebacks_on_request(run, tmp_path):
    assert "no such file or folder" in run.error("score", tmp_path / "nowhere")
    with pytest.raises(AssertionError) as caught:
        run("--debug", "score", tmp_path / "nowhere")
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    with pytest.raises(AssertionError):
        run("score", tmp_path / "nowhere", env={"TASTEMAKER_DEBUG": "1"})


@pytest.mark.parametrize("error", [ValueError, TypeError, RuntimeError, ImportError, MemoryError])
def test_errors_of_every_expected_kind_are_one_line(run, tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error("first line\n  second line")

    staircase(tmp_path, 1)
    monkeypatch.setattr("tastemaker.scorers.load_scorer", fail)
    assert run.error("score", tmp_path) == "first line second line"


def test_nothing_is_loaded_before_the_paths_are_known_to_hold_something(run, tmp_path):
    run.error("score", tmp_path)
    run.error("score", tmp_path / "nowhere")
    run.error("score")
    assert run.loaded == []


def test_score(run, tmp_path):
    staircase(tmp_path / "in")
    before = sorted(tmp_path.rglob("*"))
    output = run("score", tmp_path / "in").stdout
    assert "5 images, 5 with a score: 5 looked at now, 0 known from the journal" in output
    assert "0.2000 to 1.0000, mean 0.6000" in output
    assert "0 looked at now, 5 known from the journal" in run("score", tmp_path / "in").stdout
    assert sorted(tmp_path.rglob("*")) == before  # nothing is written beside the images
    assert len(list(run.home.rglob("*.sqlite"))) == 1


def test_one_image_is_said_to_be_one(run, tmp_path):
    picture = flat_picture(tmp_path / "a.png", 128)
    assert "\n1 image, 1 with a score: 1 looked at now" in run("score", picture).output


def test_options_reach_the_scorer(run, tmp_path):
    staircase(tmp_path, 1)
    run("score", tmp_path, "--scorer", "q-realign-mini", "--task", "aesthetics", "--max-pixels", 9,
        "--dtype", "bfloat16", "--device", "cpu", "--prompt-style", "upstream", "--revision", "abc",
        "--batch-size", 3)  # fmt: skip
    how = dict(task="aesthetics", device="cpu", dtype="bfloat16", revision="abc")
    assert run.loaded == [("q-realign-mini", how | dict(max_pixels=9, prompt_style="upstream"))]
    run("score", tmp_path)
    assert run.loaded[1] == ("nano", dict(task="quality", device=None, dtype="auto"))


def test_a_scorer_folder_is_known_from_everywhere_and_names_come_first(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    staircase(tmp_path / "in", 1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "nano").mkdir()
    run("score", "in", "--scorer", "mine")
    run("score", "in", "--scorer", "nano")
    assert [name for name, _ in run.loaded] == [str(tmp_path / "mine"), "nano"]


def test_errors_are_counted_and_the_first_few_named(run, tmp_path):
    staircase(tmp_path, 2)
    for i in range(7):
        (tmp_path / f"broken{i}.png").write_bytes(b"x")
    result = run("score", tmp_path)
    assert "errors: 7" in result.stderr and result.stderr.count("broken4.png") == 1
    assert "broken5" not in result.stderr and "and 2 more" in result.stderr
    assert "9 images" in result.stdout
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    assert "7 images" in run("score", tmp_path, code=1).stdout  # not one score: a failure


def test_failures_that_may_pass_are_counted_apart(run, tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    staircase(tmp_path, 2)
    with monkeypatch.context() as away:
        away.setattr("PIL.Image.open", fail)
        error = run("score", tmp_path, code=1).stderr
    assert "errors: 2" in error and "0.png (Input/output error)" in error
    assert "2 of them may pass: the next run tries again" in error
    (tmp_path / "broken.png").write_bytes(b"x")
    result = run("score", tmp_path)
    assert "3 looked at now" in result.stdout
    assert "errors: 1" in result.stderr and "may pass" not in result.stderr


def test_lists_and_standard_input(run, tmp_path, monkeypatch):
    paths = staircase(tmp_path)
    (tmp_path / "list.txt").write_text("\n".join(map(str, paths[:2])))
    assert "2 images" in run("score", "--from-file", tmp_path / "list.txt").stdout
    assert "3 images" in run("score", f"@{tmp_path / 'list.txt'}", paths[4]).stdout
    assert "2 images" in run("score", "-", input=f"{paths[0]}\n{paths[3]}\n").stdout


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    """Ten frames, each of one grey: 100, 102... 118."""
    return written_video(tmp_path_factory.mktemp("video") / "v.mkv", 64)


@pytest.fixture(scope="module")
def small_video(tmp_path_factory) -> Path:
    return written_video(tmp_path_factory.mktemp("video") / "v.mkv", 32)


def written_video(path: Path, width: int) -> Path:
    av = pytest.importorskip("av")
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=10)
        stream.width, stream.height, stream.pix_fmt = width, 48, "yuv444p"
        for i in range(10):
            frame = np.full((48, width, 3), 100 + 2 * i, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_videos_are_scored_among_pictures(run, tmp_path, video):
    staircase(tmp_path, 2)
    (tmp_path / "0v.mkv").write_bytes(video.read_bytes())
    (tmp_path / "cut.mp4").write_bytes(b"no video")
    run("score", tmp_path, "--export", tmp_path / "s.jsonl")
    rows = {Path(row["path"]).name: row for row in read_table(tmp_path / "s.jsonl")}
    assert list(rows) == ["0.png", "0v.mkv", "1.png", "cut.mp4"]
    assert rows["0v.mkv"]["score"] == pytest.approx(109 / 255, abs=0.01)
    assert rows["cut.mp4"]["score"] is None and "cut.mp4" in rows["cut.mp4"]["error"]


class Picky(Brightness):
    """Takes 8-bit frames only, and fails on small ones."""

    error: Exception = ValueError("frames too small")

    def score_video(self, frames):
        assert frames.dtype == torch.uint8 and frames.ndim == 5
        if frames.shape[-1] < 64:
            raise self.error
        return super().score_video(frames)


@pytest.mark.parametrize(
    "error", [ValueError("frames too\nsmall"), torch.cuda.OutOfMemoryError("frames too small")]
)
def test_a_video_that_cannot_be_scored_is_an_error_of_its_own(
    monkeypatch, tmp_path, video, small_video, error
):
    run = Cli(monkeypatch, tmp_path / "home", Picky)
    monkeypatch.setattr(Picky, "error", error)
    for name, source in [("a.mkv", small_video), ("b.mkv", video)]:
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(source.read_bytes())
    run("score", tmp_path / "in", "--export", tmp_path / "s.jsonl")
    bad, good = read_table(tmp_path / "s.jsonl")
    assert bad["score"] is None and bad["error"] == "frames too small"
    assert good["score"] == pytest.approx(109 / 255, abs=0.01)


def test_other_errors_of_videos_end_the_run(monkeypatch, tmp_path, small_video):
    run = Cli(monkeypatch, tmp_path / "home", Picky)
    monkeypatch.setattr(Picky, "error", RuntimeError("shape mismatch"))
    assert run.error("score", small_video) == "shape mismatch"


def test_without_pyav_pictures_are_scored_and_videos_stay_unknown(
    run, tmp_path, video, monkeypatch
):
    staircase(tmp_path, 2)
    (tmp_path / "v.mkv").write_bytes(video.read_bytes())
    with monkeypatch.context() as without:
        without.setitem(sys.modules, "av", None)
        result = run("score", tmp_path)
    assert 'pip install "tastemaker[video]"' in result.stderr and "not scored" in result.stderr
    assert "1 looked at now, 2 known from the journal" in run("score", tmp_path).stdout


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_export_and_back(run, tmp_path, suffix):
    paths = staircase(tmp_path / 'in, "quoted"\u00e9')
    broken = paths[0].with_name("broken.png")
    broken.write_bytes(b"x")
    table = tmp_path / "out" / f"scores{suffix}"
    run("score", broken.parent, "--export", table)
    rows = list(read_table(table))
    assert list(rows[0]) == list(COLUMNS)
    assert [Path(row["path"]) for row in rows] == [*paths, broken]
    assert [row["score"] for row in rows[:5]] == pytest.approx(GREYS, abs=1e-7)
    assert rows[5]["score"] is None and "not a picture" in rows[5]["error"]
    assert {(row["scorer"], len(row["fingerprint"])) for row in rows} == {("brightness", 16)}

    fresh = scores_of([str(broken.parent)], ScorerOptions())
    read = scores_of([], ScorerOptions(scorer="never loaded"), scores=table)
    assert read.values[:5] == fresh.values[:5] and math.isnan(read.values[5])
    assert [r.path for r in read.rows] == [r.path for r in fresh.rows]
    assert (read.name, read.fingerprint_id) == (fresh.name, fresh.fingerprint_id)


def test_csv_and_jsonl_are_what_other_programs_read(tmp_path):
    rows = export_rows([Row(Path("/a"), 0.25), Row(Path("/b"), math.nan, "bad")], "s", "f")
    rows = list(rows)
    write_table(tmp_path / "s.csv", rows)
    write_table(tmp_path / "s.jsonl", rows)
    with open(tmp_path / "s.csv", newline="") as file:
        assert list(csv.reader(file))[1:] == [
            ["/a", "0.25", "", "s", "f"],
            ["/b", "", "bad", "s", "f"],
        ]
    first = json.loads((tmp_path / "s.jsonl").read_text().splitlines()[0])
    assert first == {"path": "/a", "score": 0.25, "error": None, "scorer": "s", "fingerprint": "f"}


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_names_that_are_not_unicode_are_exported(tmp_path, suffix):
    row = Row(Path(os.fsdecode(b"/a\xff.png")), 0.5)
    write_table(tmp_path / f"s{suffix}", export_rows([row], "s", "f"))
    (read,) = read_table(tmp_path / f"s{suffix}")
    assert read["path"] == ("/a\ufffd.png" if suffix == ".parquet" else str(row.path))


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_export_that_fails_leaves_the_old_one(tmp_path, suffix):
    table = tmp_path / f"s{suffix}"
    write_table(table, export_rows([Row(Path("/a"), 0.25)], "s", "f"))
    before = table.read_bytes()

    def failing():
        for i in range(20_000):
            yield f"/{i}", 0.5, None, "s", "f"
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_table(table, failing())
    assert table.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == [table.name]


def test_an_export_of_another_kind_is_refused_before_the_work(run, tmp_path, monkeypatch):
    staircase(tmp_path, 1)
    assert "ends in .csv, .jsonl, .parquet" in run.error("score", tmp_path, "--export", "s.xlsx")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    error = run.error("score", tmp_path, "--export", tmp_path / "s.parquet")
    assert 'pip install "tastemaker[parquet]"' in error
    assert run.loaded == []


def test_existing_scores_of_some_paths(run, tmp_path):
    paths = staircase(tmp_path / "in")
    table = tmp_path / "s.csv"
    run("score", tmp_path / "in", "--export", table)
    new = flat_picture(tmp_path / "in" / "new.png", 3)
    chosen = [str(paths[4]), str(new), str(paths[0]), str(paths[4])]
    (journal,) = run.home.rglob("*.sqlite")
    for source in (table, journal):
        read = scores_of(chosen, ScorerOptions(), scores=source)
        assert [row.path for row in read.rows] == [paths[4], new, paths[0]]
        assert read.values[0] == 1.0 and math.isnan(read.values[1])
        assert read.rows[1].error in ("no score in s.csv", "not scored")
    assert len(scores_of([], ScorerOptions(), scores=journal).rows) == 5
    assert len(run.loaded) == 1


@pytest.mark.parametrize(
    "name, contents, message",
    [
        (
            "s.csv",
            "path,score,scorer,fingerprint\n/a,1,x,1\n/b,2,x,2\n",
            "mixes scores .* x 1, x 2",
        ),
        ("s.csv", "path,score\n/a,high\n", "row 1 of .*: no number: 'high'"),
        ("s.csv", "file,score\n/a,1\n", "row 1 of .* has no path and score"),
        ("s.csv", "path,score\n", "no scores in"),
        ("s.jsonl", '{"path": "/a", "score": 1}\n{"pa', "line 2 of .* is not JSON"),
        ("s.jsonl", "[1]\n", "row 1 of .* has no path and score"),
        ("s.parquet", "PAR1", "not Parquet"),
        ("s.txt", "/a 1", "scores are read from .csv, .jsonl, .parquet or a journal"),
    ],
)
def test_tables_that_hold_no_scores_are_refused(tmp_path, name, contents, message):
    (tmp_path / name).write_text(contents)
    with pytest.raises(ValueError, match=message) as caught:
        scores_of([], ScorerOptions(), scores=tmp_path / name)
    assert "\n" not in str(caught.value) and name in str(caught.value)


def test_other_tables_need_only_path_and_score(tmp_path):
    (tmp_path / "s.csv").write_text("score,path,mine\n0.5,/a.png,x\n,/b.png,y\n")
    read = scores_of([], ScorerOptions(), scores=tmp_path / "s.csv")
    assert read.values[0] == 0.5 and math.isnan(read.values[1]) and read.name == ""
