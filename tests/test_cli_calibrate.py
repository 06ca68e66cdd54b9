"""`calibrate`, `compare`, `convert` and `doctor`."""

import json
import math
from pathlib import Path

import pytest
import torch
from cli_tools import Cli, flat_picture, staircase
from stub import Brightness

from tastemaker.cli.doctor import self_test
from tastemaker.scorers import Ensemble, ScorerCard, checkpoint


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


class Latent(Brightness):
    """Says that the sigmoid of a difference is a probability."""

    def __init__(self):
        super().__init__()
        self._card = ScorerCard(
            name="latent",
            licence="MIT",
            unit="latent",
            range=(-math.inf, math.inf),
            capabilities=("win_probability",),
            fingerprint={"weights": "latent"},
        )


@pytest.mark.parametrize("paths", [["."], ["../in"], ["0.png", "1.png"], ["*.png"]])
def test_the_reference_does_not_lie_among_pictures_by_default(run, tmp_path, monkeypatch, paths):
    staircase(tmp_path / "in")
    monkeypatch.chdir(tmp_path / "in")
    error = run.error("calibrate", *paths, "--scorer", "nano")
    assert error.startswith("reference.json would lie among the pictures of ")
    assert error.endswith("--out ../reference.json") and not run.loaded
    assert not Path("reference.json").exists()
    piped = run("calibrate", "-", "--scorer", "nano", code=1, input="0.png\n1.png\n")
    assert "--out ../reference.json" in piped.stderr and not Path("reference.json").exists()
    run("calibrate", *paths, "--scorer", "nano", "--out", "reference.json")
    assert Path("reference.json").exists()


def test_calibrate_measures_and_an_ensemble_reads_it(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in")
    (tmp_path / "in" / "broken.png").write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    output = run("calibrate", "in", "--scorer", "nano", "--scorer", "q-realign-mini=aesthetics",
                 "--max-pixels", 99, "--name", "my set").stdout  # fmt: skip
    assert "brightness: 5 scores, 0.2000 to 1.0000, mean 0.6000, std 0.2828" in output
    contents = json.loads(Path("reference.json").read_text())
    assert contents["set"]["name"] == "my set" and contents["set"]["n"] == 6
    first, second = contents["members"]
    assert first["mean"] == pytest.approx(0.6) and first["std"] == pytest.approx(math.sqrt(0.08))
    assert (first["n"], first["low"], first["high"]) == (5, pytest.approx(0.2), 1.0)
    assert second["load"] == {
        "name_or_path": "q-realign-mini", "task": "aesthetics", "max_pixels": 99,
    }  # fmt: skip
    monkeypatch.setattr(
        "tastemaker.scorers.load.load_scorer", lambda name_or_path, **how: Brightness()
    )
    ensemble = Ensemble.from_reference("reference.json")
    scores = ensemble.score([str(tmp_path / "in" / "2.png"), str(tmp_path / "in" / "4.png")])
    expected = torch.tensor([0.0, 0.4 / math.sqrt(0.08)])
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=1e-6)
    assert "my set" in ensemble.card.unit


def test_the_set_is_known_by_its_files_wherever_it_lies(run, tmp_path):
    def digest(folder: Path) -> str:
        run("calibrate", folder, "--scorer", "nano", "--out", tmp_path / "r.json")
        return json.loads((tmp_path / "r.json").read_text())["set"]["digest"]

    staircase(tmp_path / "a")
    staircase(tmp_path / "b")
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    (tmp_path / "b" / "0.png").unlink()
    assert digest(tmp_path / "a") != digest(tmp_path / "b")


def test_calibrate_that_fails_leaves_the_old_file(run, tmp_path, monkeypatch):
    staircase(tmp_path / "in")
    out = tmp_path / "r.json"
    command = ["calibrate", tmp_path / "in", "--scorer", "nano", "--out", out]
    run(*command, "--name", "old")
    old = out.read_text()

    def fail(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint.os, "fsync", fail)
        assert "No space left" in run.error(*command)
    assert out.read_text() == old
    run(*command)
    assert json.loads(out.read_text())["set"]["name"] == "in"


def test_calibrate_refuses_what_makes_no_sense(run, tmp_path):
    staircase(tmp_path / "in", 1)
    assert "Missing option '--scorer'" in run.usage_error("calibrate", tmp_path / "in")
    twice = ["calibrate", tmp_path / "in", "--scorer", "nano", "--scorer"]
    assert "named twice" in run.usage_error(*twice, "nano")
    journal = ["rali", "--journal", tmp_path / "x.sqlite"]
    assert "leave --journal out" in run.usage_error(*twice, *journal)
    (tmp_path / "in" / "0.png").write_bytes(b"x")
    assert "at least one score" in run.error(*twice[:-1], "--out", tmp_path / "r.json")
    assert not (tmp_path / "r.json").exists()


def test_compare_says_no_more_than_the_scorer_knows(run, tmp_path, monkeypatch):
    dark, *_, bright = staircase(tmp_path)
    output = run("compare", dark, bright).stdout
    assert "0.200000" in output and "1.000000" in output and "B is judged better" in output
    assert "give --tau or --calibration" in output and "probability" not in output
    with_tau = run("compare", bright, dark, "--tau", 0.4).stdout
    assert "A wins with probability 0.8808 (tau 0.4, as given)" in with_tau  # 1 / (1 + e^-2)
    assert "they are equal" in run("compare", dark, dark).stdout
    assert "one of --tau and --calibration" in run.usage_error(
        "compare", dark, bright, "--tau", 1, "--calibration", dark
    )


def test_compare_with_a_scorer_trained_on_comparisons(tmp_path, monkeypatch):
    run = Cli(monkeypatch, tmp_path / "home", Latent)
    dark, *_, bright = staircase(tmp_path / "in")
    output = run("compare", bright, dark).stdout
    assert f"probability {1 / (1 + math.exp(-0.8)):.4f} (tau 1, the scorer's own)" in output


def test_compare_with_a_calibration(run, tmp_path):
    dark, *_, bright = paths = staircase(tmp_path / "in")
    pairs = tmp_path / "p.csv"
    pairs.write_text(f"{paths[3]},{paths[1]}\n" * 3 + f"{paths[1]},{paths[3]}\n")
    reference = tmp_path / "r.json"
    run("calibrate", tmp_path / "in", "--scorer", "nano", "--pairs", pairs, "--out", reference)
    output = run("compare", bright, dark, "--calibration", reference).stdout
    assert "probability 0.9000" in output and "r.json" in output  # 3 to 1 twice: 9 to 1


def test_compare_takes_files_of_any_name(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("@a.png", "*.png"):
        flat_picture(Path(name), 51)
    assert "they are equal" in run("compare", "@a.png", "*.png").stdout
    Path("b.png").write_bytes(b"x")
    assert "not a picture" in run.error("compare", "@a.png", "b.png")
    assert "does not exist" in run.usage_error("compare", "@a.png", "c.png")


def test_convert_hands_over(run, tmp_path, monkeypatch):
    calls = []

    def convert_rali(folder, out):
        calls.append((folder, out))
        return out or Path("/default")

    monkeypatch.setattr("tastemaker.scorers.rali_convert.convert_rali", convert_rali)
    assert (
        f"written: {tmp_path / 'out'}" in run("convert", "rali", tmp_path, tmp_path / "out").stdout
    )
    assert "written: /default" in run("convert", "rali", tmp_path).stdout
    assert calls == [(tmp_path, tmp_path / "out"), (tmp_path, None)]
    assert "'nano' is not" in run.usage_error("convert", "nano", tmp_path)


def test_doctor(run, monkeypatch):
    monkeypatch.setattr(Brightness, "rendered_prompt", "<|im_start|>How\nwould you", raising=False)
    output = run("doctor").stdout
    assert f"torch {torch.__version__}" in output and "CPU: " in output
    assert "scorer: brightness" in output and "mean pixel; 0 to 1, higher is better" in output
    assert Brightness().card.fingerprint_id in output and '"weights": "stub"' in output
    assert r"prompt: '<|im_start|>How\nwould you'" in output
    assert str(run.home) in output
    line = output.strip().splitlines()[-1]
    assert line == run("doctor").stdout.strip().splitlines()[-1]
    assert line.startswith("self-test: 0.") and line.endswith("ok")


class Company(Brightness):
    """A scorer that breaks the contract: a score depends on the batch."""

    def score_prepared(self, x):
        return super().score_prepared(x) + 1e-3 * len(x)


def test_the_self_test_finds_a_scorer_whose_batch_matters(monkeypatch, tmp_path, capsys):
    assert not self_test(Company())
    assert "WRONG" in capsys.readouterr().out
    run = Cli(monkeypatch, tmp_path, Company)
    assert "WRONG" in run("doctor", code=1).stdout
    assert self_test(Brightness())


def test_the_self_test_finds_a_score_that_is_no_number(capsys):
    broken = Brightness()
    broken.weight.data.fill_(math.nan)
    assert not self_test(broken)


def test_calibrate_on_one_picture_is_refused_before_anything_is_written(run, tmp_path):
    flat_picture(tmp_path / "in" / "one.png", 90)
    out = tmp_path / "r.json"
    error = run.error("calibrate", tmp_path / "in", "--scorer", "nano", "--out", out)
    assert "brightness scored 0.35" in error and "1 pictures" in error
    assert "Give more pictures" in error and not out.exists()
