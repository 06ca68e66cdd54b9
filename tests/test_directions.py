"""Embeddings of one's own: read from the file as they are needed, and what is no embedding."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from tastemaker.preferences import directions
from tastemaker.preferences.directions import read_directions
from tastemaker.preferences.pairing import fixed_k_pairs
from tastemaker.preferences.select import clusters, farthest_points


def names(folder: Path, count: int) -> list[Path]:
    return [folder / f"{i}.png" for i in range(count)]


def saved(folder: Path, x: torch.Tensor, kind: str) -> Path:
    """The rows in a .npy; or the last first in a .safetensors that names them."""
    path = folder / f"x.{kind}"
    if kind == "npy":
        np.save(path, x.numpy())
    else:
        paths = json.dumps([str(name) for name in reversed(names(folder, len(x)))])
        save_file({"embeddings": x.flip(0).contiguous()}, path, {"paths": paths})
    return path


@given(st.integers(1, 30), st.sampled_from(["npy", "safetensors"]), st.integers(0, 9), st.data())
def test_rows_are_those_of_the_pictures_and_of_length_one(tmp_path_factory, n, kind, seed, data):
    folder = tmp_path_factory.mktemp("x")
    dtype = data.draw(st.sampled_from([torch.float16, torch.float32, torch.float64]))
    scale = 10.0 ** data.draw(st.integers(-3, 3))
    x = (scale * torch.randn(n, 5, generator=torch.Generator().manual_seed(seed))).to(dtype)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(directions, "BLOCK", 7)
        found = read_directions(saved(folder, x, kind), names(folder, n))
    expected = F.normalize(x.double(), dim=1).float().numpy()
    assert found.shape == (n, 5) and len(found) == n
    np.testing.assert_allclose(found[:], expected, rtol=1e-6)
    which = data.draw(st.lists(st.integers(0, n - 1), max_size=n))
    some = found.take(which)
    assert len(some) == len(which)
    np.testing.assert_array_equal(some[0 : len(which)], found[np.array(which, np.int64)])


@pytest.mark.parametrize("kind", ["npy", "safetensors"])
def test_everything_takes_them_as_it_takes_a_tensor(tmp_path, kind):
    x = torch.randn(60, 8, generator=torch.Generator().manual_seed(0))
    found = read_directions(saved(tmp_path, x, kind), names(tmp_path, 60))
    unit = torch.from_numpy(found[:])
    assert torch.equal(farthest_points(found, 9), farthest_points(unit, 9))
    assert torch.equal(clusters(found, 3), clusters(unit, 3))
    assert torch.equal(fixed_k_pairs(found, 3).pairs, fixed_k_pairs(unit, 3).pairs)


def test_the_file_is_mapped(tmp_path):
    path = saved(tmp_path, torch.ones(4, 2), "npy")
    found = read_directions(path, names(tmp_path, 4))
    assert isinstance(found.source, np.memmap) and found.take([1]).source is found.source


BAD = {
    "empty": (b"", "is no .npy of numbers"),
    "no npy": (b"\x00" * 300, "is no .npy of numbers"),
    "strings": (np.array([["a", "b"]] * 3), "is no .npy of numbers: it holds <U1"),
    "objects": (np.array([[{}, 1]] * 3, object), "is no .npy of numbers"),
    "flat": (np.ones(3), r"must be \[N, D\], got \[3\]"),
    "few": (np.ones((2, 2)), "has 2 rows for 3 pictures"),
    "nan": (np.array([[1, 1], [1, np.nan], [np.inf, 1]]), "2 embeddings .* not finite.*row 2 .*1.png"),
    "zeros": (np.array([[1, 1], [1, 0], [0, 0]]), "1 embeddings .* zeros only.*row 3 .*2.png"),
    "no columns": (np.ones((3, 0)), "no .npy|zeros only"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_embedding_is_said(tmp_path, kind):
    what, words = BAD[kind]
    path = tmp_path / "x.npy"
    if isinstance(what, bytes):
        path.write_bytes(what)
    else:
        np.save(path, what, allow_pickle=True)
    with pytest.raises(ValueError, match=words) as raised:
        read_directions(path, names(tmp_path, 3))
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)


def test_a_file_that_is_cut_off_is_said(tmp_path):
    path = saved(tmp_path, torch.ones(100, 10), "npy")
    path.write_bytes(path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="is no .npy of numbers"):
        read_directions(path, names(tmp_path, 100))


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ("{", "no JSON"),
        ("3", "JSON list"),
        ("[1]", "JSON list"),
        ('["0.png"]', "2 rows and 1 paths"),
    ],
)
def test_paths_that_are_none_are_said(tmp_path, paths, words):
    save_file({"embeddings": torch.ones(2, 2)}, tmp_path / "x.safetensors", {"paths": paths})
    with pytest.raises(ValueError, match=words):
        read_directions(tmp_path / "x.safetensors", names(tmp_path, 2))
