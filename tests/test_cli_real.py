"""The command line from end to end on scorers that are loaded from checkpoints: nothing is a stub."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_tools import Cli
from PIL import Image

from tastemaker.cli.export import read_table
from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import write_checkpoint
from tastemaker.scorers.nano import NanoScorer

FORMATS = (".png", ".jpg", ".webp")


@pytest.fixture
def run(monkeypatch, tmp_path) -> Cli:
    return Cli(monkeypatch, tmp_path / "home", scorer=None)


@pytest.fixture
def scorers(tmp_path) -> list[Path]:
    """Two checkpoints of nano's kind, with random weights."""
    folders = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        scorer = NanoScorer((8, 8), (0, 1), 16, name=f"random{seed}")
        torch.nn.init.normal_(scorer.head.weight, std=3)
        folders.append(tmp_path / "scorers" / str(seed))
        write_checkpoint(folders[-1], scorer.config, scorer.state_dict())
    return folders


@pytest.fixture
def pictures(tmp_path) -> list[Path]:
    """Pictures of several sizes and formats, from smooth to noisy."""
    generator = np.random.default_rng(0)
    paths = []
    for i in range(12):
        size = (64 + 8 * (i % 3), 72)
        smooth = Image.fromarray(generator.integers(0, 255, (4, 4, 3), dtype=np.uint8)).resize(size)
        noise = generator.normal(0, 4 * i, np.asarray(smooth).shape)
        paths.append(tmp_path / "in" / f"{i:02}{FORMATS[i % 3]}")
        paths[-1].parent.mkdir(exist_ok=True)
        noisy = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(paths[-1])
    return paths


def scores_in(table: Path) -> torch.Tensor:
    return torch.tensor([row["score"] for row in read_table(table)])


def test_from_pictures_to_an_ensemble_and_its_selection(run, scorers, pictures, tmp_path):
    folder, reference, table = tmp_path / "in", tmp_path / "reference.json", tmp_path / "s.csv"
    alone = [load_scorer(path, device="cpu").score(pictures) for path in scorers]
    assert min(scores.std() for scores in alone) > 1e-2

    run("score", folder, "--scorer", scorers[0], "--device", "cpu", "--export", table)
    torch.testing.assert_close(scores_in(table), alone[0], rtol=0, atol=1e-5)

    both = [option for path in scorers for option in ("--scorer", path)]
    run("calibrate", folder, *both, "--device", "cpu", "--out", reference)
    ensemble = ["--scorer", reference, "--device", "cpu"]
    run("score", folder, *ensemble, "--export", table)
    expected = sum((s - s.mean()) / s.std(correction=0) for s in alone) / 2
    torch.testing.assert_close(scores_in(table), expected, rtol=0, atol=1e-4)

    best = run("filter", folder, *ensemble, "--top-k", 3).stdout.split()
    assert best == [str(pictures[i]) for i in expected.argsort(descending=True)[:3].tolist()]
    words = run("tag", folder, *ensemble, "--method", "quantile").stdout
    assert "2  best quality" in words and "0  no score" in words
    assert f"{expected[0]:12.6f}"[:8] in run("compare", *pictures[:2], *ensemble).stdout
    assert "ensemble of random0, random1" in run("doctor", *ensemble).stdout


def test_a_scorer_that_changed_since_it_was_measured_is_refused(run, scorers, pictures, tmp_path):
    reference = tmp_path / "reference.json"
    run("calibrate", tmp_path / "in", "--scorer", scorers[0], "--device", "cpu", "--out", reference)
    how = ["score", tmp_path / "in", "--scorer", reference, "--device", "cpu"]
    error = run.error(*how, "--dtype", "bfloat16")
    assert "dtype: float32 there, bfloat16 here" in error and "calibrate again" in error
    config = json.loads((scorers[0] / "config.json").read_text())
    scorer = NanoScorer(config["widths"], config["blocks"], config["embedding"], config["name"])
    write_checkpoint(scorers[0], config, scorer.state_dict())  # trained on, say
    assert "weights: " in run.error(*how)


def test_a_journal_of_other_weights_is_refused(run, scorers, pictures, tmp_path):
    command = ["score", tmp_path / "in", "--device", "cpu", "--journal", tmp_path / "x.sqlite"]
    run(*command, "--scorer", scorers[0])
    error = run.error(*command, "--scorer", scorers[1])
    assert "holds scores of another fingerprint" in error
    assert "scorer: random0 there, random1 here" in error


def test_options_and_folders_that_do_not_fit(run, scorers, pictures, tmp_path):
    score = ["score", tmp_path / "in", "--device", "cpu", "--scorer"]
    assert "max_pixels" in run.error(*score, scorers[0], "--max-pixels", 99)
    assert "no config.json" in run.error(*score, tmp_path / "in")
    assert "no such scorer" in run.error(*score, "nanoo")
    (scorers[0] / "model.safetensors").write_bytes(b"cut off")
    assert "damaged or half-written" in run.error(*score, scorers[0])
