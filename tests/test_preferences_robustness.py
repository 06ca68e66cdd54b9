"""Originals against their spoiled copies, with scorers whose answers are known."""

from pathlib import Path
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from stub import Brightness

from tastemaker.preferences.bootstrap import wilson
from tastemaker.preferences.robustness import robustness
from tastemaker.scorers.corruptions import low_resolution


class Detail(Brightness):
    """The mean step between neighbours: blur and JPEG lower it, noise raises it."""

    sign = 1.0

    def score_prepared(self, x):
        self.batches.append(tuple(x.shape))
        steps = x.diff(dim=2).abs().mean((1, 2, 3)) + x.diff(dim=3).abs().mean((1, 2, 3))
        return (self.sign * steps * self.weight).float()


class Blunt(Detail):
    sign = -1.0


class Blind(Brightness):
    def score_prepared(self, x):
        return torch.zeros(len(x)) * self.weight


def noisy(folder: Path, count: int = 4, size=(160, 120)) -> list[Path]:
    """Pictures of noise over a ramp: full of detail."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        ramp = np.linspace(60, 190, size[0])[None, :, None]
        pixels = (ramp + rng.normal(0, 25, (size[1], size[0], 3))).clip(0, 255)
        paths.append(folder / f"{i}.png")
        Image.fromarray(pixels.astype(np.uint8)).save(paths[-1])
    return paths


@pytest.mark.parametrize(("scorer", "expected"), [(Detail, 1.0), (Blunt, 0.0), (Blind, 0.0)])
def test_who_sees_detail_is_robust(tmp_path, scorer, expected):
    found = robustness(scorer(), noisy(tmp_path))
    assert list(found) == ["jpeg", "low_resolution"]
    for task in found.values():
        assert (task.accuracy, task.n, task.skipped) == (expected, 4, 0)
        assert task.interval == wilson(expected, 4)
        assert np.sign(task.drop) == {1.0: 1, 0.0: -1}[expected] * (scorer is not Blind)


def test_a_copy_is_that_of_the_one_module_and_seeded(tmp_path):
    (path,) = noisy(tmp_path, 1)
    scorer, picture = Detail(), Image.open(path)
    expected = scorer.score([picture, low_resolution(picture, Random("3:0.png"))])
    (task,) = robustness(scorer, [path], ["low_resolution"], seed=3).values()
    assert task.drop == pytest.approx(float(expected[0] - expected[1]), abs=1e-7)
    (other,) = robustness(scorer, [path], ["low_resolution"], seed=4).values()
    assert other.drop != task.drop


def test_large_pictures_are_reduced_for_low_resolution_only(tmp_path):
    (path,) = noisy(tmp_path, 1, (1500, 300))
    scorer = Detail()
    robustness(scorer, [path])
    sizes = sorted(batch[2:] for batch in scorer.batches for _ in range(batch[0]))
    assert sizes == [(204, 1024)] * 2 + [(300, 1500)] * 2


def test_small_pictures_are_scored_once_for_both(tmp_path):
    scorer = Detail()
    robustness(scorer, noisy(tmp_path, 2))
    assert sum(batch[0] for batch in scorer.batches) == 2 * 3


def test_what_cannot_be_judged_is_counted(tmp_path):
    paths = noisy(tmp_path, 2)
    Image.new("RGB", (8, 8)).save(tmp_path / "tiny.png")  # no JPEG of it is a third of another
    (tmp_path / "broken.png").write_bytes(b"x")
    paths += [tmp_path / "tiny.png", tmp_path / "broken.png", tmp_path / "missing.png"]
    found = robustness(Detail(), paths)
    assert (found["jpeg"].n, found["jpeg"].skipped) == (2, 3)
    assert (found["low_resolution"].n, found["low_resolution"].skipped) == (3, 2)
    nothing = robustness(Detail(), paths[-1:])["jpeg"]
    assert nothing.n == 0 and np.isnan(nothing.accuracy)
    with pytest.raises(ValueError, match="no such corruption: fog"):
        robustness(Detail(), paths, ["fog"])
