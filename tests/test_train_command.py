"""`tastemaker train`: what its options do, what it replaces, and what it says of its numbers."""

import json
import os
import sys

import numpy as np
import pytest
from cli_tools import Cli
from PIL import Image

from tastemaker.preferences import Comparisons, finetune, write_comparisons
from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import read_config

QUICK = ("--full", "--batch-size", 2, "--accumulate", 1, "--epochs", 0.1)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(24):
        pixels = np.kron(rng.integers(0, 256, (8, 8, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return sorted(folder.glob("*.png"))


def compared(pictures, count=60, seed=0, p=None):
    """Comparisons of one who likes the later ones; or all of them with that p."""
    rng = np.random.default_rng(seed)
    pairs = [rng.choice(len(pictures), 2, replace=False) for _ in range(count)]
    return Comparisons.of(
        (pictures[a], pictures[b], float(a > b) if p is None else p) for a, b in pairs
    )


@pytest.fixture(scope="module")
def pairs(pictures):
    path = pictures[0].parent / "pairs.json"
    write_comparisons(path, compared(pictures[:16]), compared(pictures[16:], 12))
    return path


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"), None)


def said(folder):
    return read_config(folder)["personal"]


# --full


def test_the_recipe_is_what_the_options_say(run, pairs, tmp_path):
    options = dict(rate=1e-4, schedule="cosine", precision="bf16", accumulate=2, batch=3)
    named = [(f"--{name}", value) for name, value in options.items() if name != "batch"]
    more = ("--weight-decay", 0.2, "--epochs", 0.5, "--checkpoint-every", 2, "--batch-size", 3)
    run("train", pairs, "--full", "--out", tmp_path, *(x for pair in named for x in pair), *more)
    found = said(tmp_path)["training"]
    assert {name: found[name] for name in options} == options
    assert found["weight_decay"] == 0.2 and found["steps"] == 5  # 0.5 x 60 / 6
    assert [step for step, _ in found["log"]["history"]] == [0, 2, 4, 5]


def test_what_is_not_given_is_as_finetune_has_it(run, pairs, tmp_path):
    run("train", pairs, "--full", "--out", tmp_path)
    found = said(tmp_path)["training"]
    assert (found["rate"], found["schedule"], found["precision"]) == (1e-3, "one-cycle", "no")
    assert (found["batch"], found["accumulate"], found["steps"]) == (8, 8, 3)  # 3 x 60 / 64


def test_it_says_that_its_state_was_chosen_by_what_is_held_out(run, pairs, pictures, tmp_path):
    note = "its best state was chosen by the held-out loss: what is held out flatters it"
    assert note in run("train", pairs, *QUICK, "--out", tmp_path / "a").stdout
    write_comparisons(tmp_path / "p.csv", compared(pictures))
    how = ("--test-fraction", 0, "--out", tmp_path / "b")
    assert note not in run("train", tmp_path / "p.csv", *QUICK, *how).stdout


def test_patience_stops_early(run, pairs, tmp_path, monkeypatch):
    losses = iter([0.9, 0.5, 0.6, 0.7, 0.8])
    monkeypatch.setattr(sys.modules[finetune.__module__], "held_out_loss", lambda *_: next(losses))
    how = ("--full", "--batch-size", 2, "--accumulate", 1, "--checkpoint-every", 1)
    run("train", pairs, "--out", tmp_path, *how, "--patience", 2)
    log = said(tmp_path)["training"]["log"]
    assert log["step"] == 3 and len(log["history"]) == 4


def test_patience_needs_something_held_out(run, pictures, tmp_path):
    write_comparisons(tmp_path / "p.csv", compared(pictures))
    how = ("--out", tmp_path / "taste", "--test-fraction", 0, "--patience", 1)
    assert "patience needs" in run.error("train", tmp_path / "p.csv", *QUICK, *how)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--rate", "0.1"), "--rate goes only with --full"),
        (("--patience", 3), "--patience goes only with --full"),
        (("--gradient-checkpointing",), "--gradient-checkpointing goes only with --full"),
        (("--batch-size", 8), "--batch-size goes only with --full"),
        (("--full", "--no-robust"), "--robust and --no-robust go only without --full"),
        (("--full", "--robust"), "--robust and --no-robust go only without --full"),
    ],
)
def test_options_of_the_other_way_are_refused(run, pairs, tmp_path, options, message):
    assert message in run.usage_error("train", pairs, "--out", tmp_path / "taste", *options)
    assert not (tmp_path / "taste").exists()


def test_nano_has_nothing_to_recompute(run, pairs, tmp_path):
    error = run.error("train", pairs, "--out", tmp_path, *QUICK, "--gradient-checkpointing")
    assert "gradient_checkpointing is JoyQuality's" in error


def test_the_help_lists_the_options_of_full_apart(run):
    head, full = run("train", "--help").stdout.split("\nWith --full:\n")
    assert "--robust / --no-robust" in head and "--full " in head and "--rate" not in head
    for name in ("rate", "schedule", "epochs", "batch-size", "accumulate", "precision",
                 "gradient-checkpointing", "patience", "weight-decay"):  # fmt: skip
        assert f"--{name} " in full


# --overwrite


def test_whatever_training_wrote_is_replaced(run, pairs, tmp_path):
    out = tmp_path / "taste"
    head, whole = ("train", pairs, "--out", out), ("train", pairs, "--out", out, *QUICK)
    run(*head)
    for command, other in ((whole, head), (head, whole), (whole, whole)):
        before = {path.name: path.read_bytes() for path in out.iterdir()}
        for refused in (command, other):
            assert "holds something already: name another folder, or" in run.error(*refused)
        assert {path.name: path.read_bytes() for path in out.iterdir()} == before
        run(*command, "--overwrite")
        assert ("model.safetensors" in os.listdir(out)) == (command is whole)
        assert len(list(out.iterdir())) == 3 and load_scorer(out).card.name == "taste"


def unfinished(out, run, pairs, *more):
    """What a run leaves that is killed when it is nearly done."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[finetune.__module__], "save_scorer", lambda *_: os.fspath(None))
        with pytest.raises(AssertionError, match="exit 1"):
            run("train", pairs, "--out", out, *QUICK, *more)
    assert (out / "training" / "checkpoint.safetensors").exists()


def test_a_killed_run_goes_on_or_is_replaced(run, pairs, tmp_path):
    out = tmp_path / "taste"
    unfinished(out, run, pairs)
    error = run.error("train", pairs, "--out", out, *QUICK, "--seed", 1)
    assert "another run (seed: 0 there, 1 here): give the same settings, overwrite it" in error
    assert "holds something already" in run.error("train", pairs, "--out", out)
    log = run("train", pairs, "--out", out, *QUICK, "--seed", 1, "--overwrite")
    assert said(out)["training"]["seed"] == 1 and "written to" in log.stdout
    unfinished(out, run, pairs, "--overwrite")
    assert said(out)["training"]["seed"] == 1 and load_scorer(out), "the old one is there yet"
    run("train", pairs, "--out", out, *QUICK)  # goes on
    assert said(out)["training"]["seed"] == 0 and not (out / "training").exists()
    unfinished(out, run, pairs, "--overwrite", "--seed", 2)
    run("train", pairs, "--out", out, "--overwrite")
    assert read_config(out)["tastemaker"] == "personal" and not (out / "training").exists()


@pytest.mark.parametrize("full", [(), QUICK])
def test_nothing_else_is_replaced(run, pairs, tmp_path, full):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"tastemaker": "rali"}')
    (tmp_path / "album").mkdir()
    (tmp_path / "album" / "cat.jpg").write_text("meow")
    for name in ("base", "album"):
        before = sorted((tmp_path / name).iterdir())
        for more in ((), ("--overwrite",)):
            error = run.error("train", pairs, "--out", tmp_path / name, *full, *more)
            assert "holds something that training did not write" in error
        assert sorted((tmp_path / name).iterdir()) == before


def test_a_fine_tune_never_replaces_its_base(run, pairs, tmp_path):
    run("train", pairs, "--out", tmp_path / "a", *QUICK)
    how = ("--base", tmp_path / "a", "--out", tmp_path / "a", "--overwrite")
    for full in ((), QUICK):
        assert "a is what the base rests on" in run.error("train", pairs, *how, *full)


# what it says


def test_intervals_stand_beside_what_was_measured_either_way(run, pictures, tmp_path):
    write_comparisons(tmp_path / "p.csv", compared(pictures))
    how = ("--no-robust", "--out")
    found = run("train", tmp_path / "p.csv", "--test-fraction", 0, *how, tmp_path / "a").stdout
    judged = json.loads((tmp_path / "a" / "config.json").read_text())["metrics"]["cross_validated"]
    assert 20 <= judged["decided"] == judged["comparisons"] < 60  # the others lie between two folds
    assert f"nothing was held out; cross-validation of {judged['decided']} comparisons:" in found
    assert "base   yours   95 % interval\n" in found
    found = run("train", tmp_path / "p.csv", "--test-fraction", 0.5, *how, tmp_path / "b").stdout
    assert "base   yours   95 % interval\n" in found


@pytest.mark.parametrize("full", [("--no-robust",), QUICK])
def test_held_out_ties_are_said_to_be_ties(run, pictures, tmp_path, full):
    test = compared(pictures[16:], 12, p=0.5)
    write_comparisons(tmp_path / "p.json", compared(pictures[:16]), test)
    found = run("train", tmp_path / "p.json", "--out", tmp_path / "taste", *full).stdout
    assert "the 12 comparisons held out are all ties, so no accuracy was measured" in found
    assert "nothing was held out" not in found


def test_ties_are_counted_apart(run, pictures, tmp_path):
    some = Comparisons.of(
        [*compared(pictures).rows(), *compared(pictures, 6, p=0.5, seed=1).rows()]
    )
    write_comparisons(tmp_path / "p.csv", some)
    how = ("--no-robust", "--test-fraction", 0, "--out", tmp_path / "taste")
    found = run("train", tmp_path / "p.csv", *how).stdout
    config = json.loads((tmp_path / "taste" / "config.json").read_text())
    judged = config["metrics"]["cross_validated"]
    decided, ties = judged["decided"], judged["comparisons"] - judged["decided"]
    assert 20 <= decided <= 60 and 1 <= ties <= 6
    assert f"cross-validation of {decided} comparisons and {ties} ties:" in found


@pytest.mark.parametrize("fraction", [0, 0.1])
def test_nothing_but_ties(run, pictures, tmp_path, fraction):
    write_comparisons(tmp_path / "p.json", compared(pictures, 40, p=0.5))
    how = ("--no-robust", "--test-fraction", fraction, "--out", tmp_path / "taste")
    found = run("train", tmp_path / "p.json", *how).stdout
    assert "all ties, so no accuracy was measured" in found
    assert "nothing was held out" not in found


@pytest.mark.parametrize("full", [("--no-robust",), QUICK])
def test_a_test_part_of_trained_images_is_said_to_be_that(run, pictures, tmp_path, full):
    write_comparisons(tmp_path / "p.json", compared(pictures), compared(pictures, 12, seed=1))
    found = run("train", tmp_path / "p.json", "--out", tmp_path / "taste", *full).stdout
    why = "all that was held out shares images with what was trained on"
    after = "; cross-validation of" if full != QUICK else ", so nothing was measured"
    assert why + after in found and "nothing was held out" not in found


def test_the_folders_files_are_for_whom_the_umask_says(run, pairs, tmp_path):
    before = os.umask(0o022)
    try:
        for name, full in (("head", ()), ("whole", QUICK)):
            run("train", pairs, "--out", tmp_path / name, *full)
            modes = {p.name: p.stat().st_mode & 0o777 for p in (tmp_path / name).iterdir()}
            assert set(modes.values()) == {0o644}, json.dumps(modes)
    finally:
        os.umask(before)
