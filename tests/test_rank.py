"""`tastemaker rank`: what it writes, where, what it prints, and how it fails."""

import os
from pathlib import Path

import pytest
from click.testing import CliRunner
from PIL import Image
from stub import Brightness

import tastemaker.cli.scoring
from tastemaker.cli import main, rank

WRITTEN = {".tastemaker", "sheet.png", "report.html"}


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder with six grey pictures in `pics`, the brightest last, and a stub scorer."""
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(tastemaker.cli.scoring, "load_from_options", lambda options: Brightness())
    folder = tmp_path / "here"
    (folder / "pics" / "deeper").mkdir(parents=True)
    for i in range(6):
        name = f"deeper/{i}.png" if i == 5 else f"{i}.png"
        Image.new("L", (40, 30), 40 * i).save(folder / "pics" / name)
    monkeypatch.chdir(folder)
    return folder


def run(*arguments: str, code: int = 0):
    result = CliRunner().invoke(main, ["rank", *arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_sheet_report_and_table(here):
    before = files(here)
    result = run("pics")
    assert files(here) - before == {f"tastemaker-report/{name}" for name in WRITTEN}
    with Image.open("tastemaker-report/sheet.png") as sheet:
        assert sheet.format == "PNG" and sheet.width >= 6 * 40
    lines = result.stdout.splitlines()
    assert lines[0].split() == ["rank", "score", "picture"]
    assert lines[1].split() == ["1", "0.784", str(here / "pics" / "deeper" / "5.png")]
    assert lines[2].split() == ["2", "0.627", str(here / "pics" / "4.png")]
    assert "6 ranked" in result.stdout and "0.000" not in result.stdout
    assert "tastemaker-report/report.html" in lines[-1]
    page = Path("tastemaker-report/report.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 6 and "<h1>pics</h1>" in page


def test_again_from_the_journal_and_its_own_output_is_not_ranked(here):
    first = run(".", "--out", "tastemaker-report").stdout
    assert "6 ranked" in first
    again = run(".", "--out", "tastemaker-report").stdout
    assert again == first, "the sheet of the first run is no picture of the set"
    assert "6 ranked" in run(".", "--out", "../elsewhere").stdout, (
        "nor for a run that goes elsewhere"
    )


def test_its_own_output_is_not_filtered(here):
    run(".", "--out", "look")
    result = CliRunner().invoke(main, ["filter", ".", "--top-k", "9"])
    assert result.exit_code == 0 and "look" not in result.stdout
    assert len(result.stdout.splitlines()) == 6


@pytest.mark.parametrize(
    ("at", "path", "instead"),
    [
        ("pics", ".", "../tastemaker-report"),
        ("pics/deeper", "..", "../../tastemaker-report"),
        ("pics", "../pics", "../tastemaker-report"),
    ],
)
def test_nothing_is_written_among_the_pictures_unless_asked_for(
    here, monkeypatch, at, path, instead
):
    monkeypatch.chdir(here / at)
    before = files(here)
    (line,) = run(path, code=1).stderr.splitlines()
    assert line.endswith(f"--out {instead}") and files(here) == before
    run(path, "--out", instead)
    assert (here / "tastemaker-report" / "sheet.png").exists()
    run(path, "--out", "tastemaker-report")
    assert Path("tastemaker-report/sheet.png").exists()


@pytest.mark.parametrize(
    "paths", [["0.png", "1.png"], ["*.png"], ["@../list.txt"], ["deeper/../1.png"]]
)
def test_nothing_is_written_beside_pictures_that_are_given_one_by_one(here, monkeypatch, paths):
    monkeypatch.setattr(tastemaker.cli.scoring, "load_from_options", None)
    Path("list.txt").write_text("0.png\n")
    monkeypatch.chdir("pics")
    before = files(here)
    (line,) = run(*paths, code=1).stderr.splitlines()
    assert f"among the pictures of {here / 'pics'}" in line
    assert line.endswith("--out ../tastemaker-report") and files(here) == before


def test_nor_beside_those_that_come_from_a_pipe_or_a_table(here, monkeypatch):
    monkeypatch.chdir("pics")
    before = files(here)
    for piped in (["-"], ["--from-file", "-"]):
        result = CliRunner().invoke(main, ["rank", *piped], input="0.png\n1.png\n")
        assert result.exit_code == 1 and "--out ../tastemaker-report" in result.stderr
    assert files(here) - before == set()
    Path("scores.csv").write_text("path,score\n0.png,3\n")
    assert "--out ../tastemaker-report" in run("--scores", "scores.csv", code=1).stderr
    run("--scores", "scores.csv", "--out", "../look")
    assert not Path("tastemaker-report").exists() and Path("../look/report.html").exists()


@pytest.mark.parametrize("path", ["../0.png", "deeper/5.png", "../*.png"])
def test_pictures_elsewhere_hinder_nothing(here, monkeypatch, path):
    """Only their own folder is theirs: what lies above or below is where people work."""
    monkeypatch.chdir("pics")
    if path.startswith(".."):
        Path("work").mkdir()
        monkeypatch.chdir("work")
    run(path)
    assert Path("tastemaker-report/report.html").exists()


def test_without_use_of_the_default_folder_it_may_lie_anywhere(here, monkeypatch):
    monkeypatch.chdir("pics")
    run(".", "--sheet", "../sheet.png", "--report", "../report.html")
    assert not Path("tastemaker-report").exists() and Path("../sheet.png").exists()


def test_top_and_worst(here):
    run("pics", "--top", "2", "--worst", "3")
    names = files(here / "tastemaker-report")
    assert names == WRITTEN | {"sheet-worst.png"}
    page = Path("tastemaker-report/report.html").read_text(encoding="utf-8")
    threshold = float(page.split("fresh = {threshold: ")[1].split(",")[0])
    assert abs(threshold - 160 / 255) < 1e-6, "the best two are kept"


def test_what_is_drawn(here, monkeypatch):
    drawn = []
    original = rank.write_sheet
    monkeypatch.setattr(rank, "write_sheet", lambda *a: drawn.append(a) or original(*a))
    run("pics", "--top", "2", "--worst", "3", "--title", "A & B")
    (sheet, best, title), (_, worst, worst_title) = drawn
    assert sheet == Path("tastemaker-report/sheet.png")
    assert [(number, row.path.name) for number, row in best] == [(1, "5.png"), (2, "4.png")]
    assert [(number, row.path.name) for number, row in worst] == [
        (4, "2.png"),
        (5, "1.png"),
        (6, "0.png"),
    ]
    assert title == "brightness | A & B | best 2 of 6"
    assert worst_title == "brightness | A & B | worst 3 of 6"


def test_own_names_and_formats(here):
    run("pics", "--sheet", "new/best.jpg", "--report", "other/look.html")
    assert {"new/best.jpg", "other/look.html"} <= files(here)
    assert not Path("tastemaker-report").exists()
    with Image.open("new/best.jpg") as sheet:
        assert sheet.format == "JPEG"


def test_existing_scores(here, monkeypatch):
    Path("scores.csv").write_text(
        "path,score,error\npics/0.png,3,\npics/1.png,5,\npics/2.png,,bad\n"
    )
    monkeypatch.setattr(tastemaker.cli.scoring, "load_from_options", None)
    result = run("--scores", "scores.csv")
    assert result.stdout.splitlines()[1].split()[:2] == ["1", "5.000"]
    assert "1 without a score" in result.stdout
    assert "<h1>scores.csv</h1>" in Path("tastemaker-report/report.html").read_text("utf-8")


def test_pictures_that_cannot_be_scored_are_told(here):
    Path("pics/broken.png").write_text("no picture")
    result = run("pics")
    assert "1 without a score: the report says why" in result.stdout
    page = Path("tastemaker-report/report.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 6 and "not a picture" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["pics", "--sheet", "sheet.gif"],
            "a sheet ends in .png, .jpg, .jpeg, .webp, got sheet.gif",
        ),
        (["pics", "--report", "report.pdf"], "a report ends in .html, got report.pdf"),
        (["pics", "--out", "pics"], "nothing is written beside pictures"),
        (["pics", "--top", "0"], "--top"),
        (["pics", "--top", "501"], "--top"),
        (["pics", "--limit", "0"], "--limit"),
        (["nowhere"], "nowhere"),
        ([], "no PATHS"),
    ],
)
def test_wrong_arguments_fail_before_anything_is_scored(here, monkeypatch, arguments, message):
    monkeypatch.setattr(tastemaker.cli.scoring, "load_from_options", None)
    before = files(here)
    result = CliRunner().invoke(main, ["rank", *arguments])
    assert result.exit_code in (1, 2) and message in " ".join(result.stderr.split())
    assert files(here) == before


def test_nothing_is_written_when_no_picture_has_a_score(here):
    for path in Path("pics").rglob("*.png"):
        path.write_text("no picture")
    result = run("pics", code=1)
    assert "none of 6 pictures has a score: not a picture" in result.stderr
    assert not Path("tastemaker-report").exists()


def test_a_full_disk_leaves_the_old_sheet(here, monkeypatch):
    run("pics")
    old = Path("tastemaker-report/sheet.png").read_bytes()

    def half(image, path, *arguments, **options):
        Path(path).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    result = run("pics", "--top", "3", code=1)
    assert "No space left" in result.stderr
    assert Path("tastemaker-report/sheet.png").read_bytes() == old
    assert files(here / "tastemaker-report") == WRITTEN


def test_a_killed_write_leaves_the_old_files(here, monkeypatch):
    run("pics")
    old = {
        name: (here / "tastemaker-report" / name).read_bytes()
        for name in ("sheet.png", "report.html")
    }

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", killed)
    result = CliRunner().invoke(main, ["rank", "pics", "--top", "1"])
    assert result.exit_code != 0
    assert {name: (here / "tastemaker-report" / name).read_bytes() for name in old} == old


def test_open(here, monkeypatch):
    opened = []
    monkeypatch.setattr(rank.webbrowser, "open", lambda url: opened.append(url) or True)
    run("pics", "--open")
    assert opened == [(here / "tastemaker-report" / "report.html").as_uri()]
    monkeypatch.setattr(rank.webbrowser, "open", lambda url: False)
    assert "open the report yourself" in run("pics", "--open").stderr


def test_odd_names_do_not_stop_it(here):
    odd = ["new\nline.png", "é 日本.png", "<b>&'\".png", "-n.png"]
    for name in odd:
        Image.new("L", (40, 30), 255).save(f"pics/{name}")
    undecodable = b"pics/bytes\xff.png"
    Image.new("L", (40, 30), 255).save(os.fsdecode(undecodable))
    result = run("pics")
    assert "11 ranked" in result.stdout and "without a score" not in result.stdout
    # the one with a line break and the undecodable one
    assert "2 with a line break in the name, or not UTF-8: ranked, but" in result.stdout
    assert len(result.stdout.splitlines()) == 1 + 5 + 1 + 1 + 2
    page = Path("tastemaker-report/report.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 11 and page.count(" data-unlisted>") == 2
    assert "2 pictures</b> cannot be put into a saved list" in page
    Path("pics/new\nline.png").unlink()
    os.unlink(undecodable)
    page = run("pics") and Path("tastemaker-report/report.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 9 and "cannot be put into" not in page
