"""`choose`: pictures and pairs to compare, which the voting page reads as its queue."""

import csv
import json
from collections import Counter

import numpy as np
import pytest
import torch
from cli_tools import Cli, flat_picture
from PIL import Image
from safetensors.torch import save_file

from tastemaker.preferences.asking import read_queue


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"), scorer=None)


@pytest.fixture
def pictures(tmp_path):
    """Twelve pictures of noise of different strengths."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).standard_normal((12, 40, 48, 3))
    for i, field in enumerate(noise):
        pixels = (128 + 8 * (i + 1) * field).clip(0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    return folder


def test_the_pairs_are_a_queue_of_the_voting_page(run, pictures, tmp_path):
    out = tmp_path / "deep" / "pairs.csv"
    said = run("choose", pictures, "--out", out, "--per-image", 3).stdout
    queue = read_queue(out)
    assert len(queue) == 18 and "18 pairs of 12 pictures" in said
    assert set(Counter(path for pair in queue for path in pair).values()) == {3}
    assert {path for pair in queue for path in pair} == set(pictures.iterdir())
    rows = list(csv.DictReader(out.open(newline="")))
    assert list(rows[0]) == ["left", "right", "p"] and {row["p"] for row in rows} == {""}
    before = out.read_bytes()
    run("choose", pictures, "--out", out, "--per-image", 3)
    assert out.read_bytes() == before
    run("choose", pictures, "--out", out, "--per-image", 3, "--seed", 1)
    assert out.read_bytes() != before


def test_pictures_below_the_file_are_relative_to_it(run, pictures):
    run("choose", pictures, "--out", pictures.parent / "pairs.csv", "--per-image", 1)
    first = (pictures.parent / "pairs.csv").read_text().splitlines()[1]
    assert first.startswith("pictures")


@pytest.mark.parametrize("extra", [(), ("--balance",), ("--clusters", 3)])
def test_some_of_the_pictures(run, pictures, tmp_path, extra):
    out = tmp_path / "pairs.csv"
    run("choose", pictures, "--out", out, "--images", 6, "--per-image", 2, *extra)
    queue = read_queue(out)
    assert len(queue) == 6 and len({path for pair in queue for path in pair}) == 6


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_your_own_embeddings_say_what_is_similar(run, pictures, tmp_path, kind):
    files = sorted(pictures.iterdir())
    angle = torch.tensor([0.0, 1, 2, 3, 4, 5]).repeat_interleave(2)  # twins: 0 and 1, 2 and 3...
    length = torch.arange(1, 13.0)  # which says nothing
    x = (torch.stack([angle.cos(), angle.sin()], 1) * length[:, None]).float()
    path = tmp_path / f"x.{kind}"
    if kind == "npy":
        np.save(path, x.numpy())
    else:
        names = json.dumps([f"pictures/{file.name}" for file in reversed(files)])
        save_file({"embeddings": x.flip(0).contiguous()}, path, {"paths": names})
    out = tmp_path / "pairs.csv"
    run("choose", pictures, "--out", out, "--embeddings", path, "--per-image", 1, "--random", 0)
    for pair in read_queue(out):
        left, right = (files.index(p) for p in pair)
        assert left // 2 == right // 2


def test_what_does_not_fit_is_said(run, pictures, tmp_path):
    out = tmp_path / "pairs.csv"
    np.save(tmp_path / "x.npy", np.ones((3, 2)))
    assert "3 rows for 12" in run.error(
        "choose", pictures, "--out", out, "--embeddings", tmp_path / "x.npy"
    )
    save_file({"embeddings": torch.ones(1, 2)}, tmp_path / "x.safetensors", {"paths": '["a.png"]'})
    assert "no row for 12 pictures" in run.error(
        "choose", pictures, "--out", out, "--embeddings", tmp_path / "x.safetensors"
    )
    (tmp_path / "x.txt").write_text("1 2 3")
    assert "is no .npy" in run.error(
        "choose", pictures, "--out", out, "--embeddings", tmp_path / "x.txt"
    )
    assert "got 13" in run.error("choose", pictures, "--out", out, "--images", 13)
    assert "got 3" in run.error("choose", pictures, "--out", out, "--images", 3)
    assert "one of" in run.usage_error(
        "choose", pictures, "--out", out, "--balance", "--clusters", 2
    )
    assert not out.exists()


def test_a_picture_that_cannot_be_read_is_named(run, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"no picture")
    assert "broken.png" in run.error("choose", pictures, "--out", tmp_path / "pairs.csv")


def test_balance_takes_what_is_rare(run, tmp_path):
    for i in range(30):
        flat_picture(tmp_path / f"plain{i}.png", 100 + i, (40, 40))
    noise = np.random.default_rng(0).integers(0, 255, (3, 40, 40, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(pixels).save(tmp_path / f"noise{i}.png")
    out = tmp_path / "pairs.csv"
    run("choose", tmp_path, "--out", out, "--images", 6, "--per-image", 2, "--balance")
    chosen = {path.name for pair in read_queue(out) for path in pair}
    assert sum(name.startswith("noise") for name in chosen) == 3


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (b"", "is no .npy of numbers"),
        (np.array([["a", "b"]] * 12), "it holds <U1"),
        (np.full((12, 2), np.nan), "12 embeddings of"),
        (np.zeros((12, 2)), "zeros only"),
    ],
)
@pytest.mark.parametrize("extra", [(), ("--images", 6), ("--images", 6, "--clusters", 2)])
def test_bad_embeddings_give_one_line(run, pictures, tmp_path, rows, words, extra):
    path = tmp_path / "x.npy"
    path.write_bytes(rows) if isinstance(rows, bytes) else np.save(path, rows)
    out = tmp_path / "pairs.csv"
    args = ("choose", pictures, "--out", out, "--embeddings", path, *extra)
    assert words in run.error(*args) and not out.exists()
