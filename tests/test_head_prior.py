"""Random tastes, and what they weigh nano's features by."""

from random import Random

import numpy as np
import pytest
import torch

from tastemaker.scorers import load_scorer
from tastemaker.training.head_prior import (
    FAULTS,
    Crops,
    Settings,
    head_prior,
    made,
    normal,
    random_tastes,
    spoiled,
)
from tastemaker.training.pictures import usable_pictures
from tastemaker.training.statistics import SCALES, statistics

FEW = Settings(crops=2, sides=(64, 96), tastes=40)


@pytest.fixture(scope="module")
def crops() -> Crops:
    return made(load_scorer("nano", device="cpu"), usable_pictures()[:20], FEW)


@pytest.mark.parametrize("value", [0, 90, 255])
def test_a_plain_picture_has_statistics(value):
    found = statistics(np.full((64, 80, 3), value, np.uint8))
    assert all(np.isfinite([*family.values()]).all() for family in found.values())
    assert found["mean"]["y"] == pytest.approx(value / 255) and found["centre"]["y"] == 0


def test_statistics_are_of_what_their_names_say():
    ramp = np.linspace(0, 255, 128).astype(np.uint8)
    picture = np.repeat(ramp[None, :, None], 128, 0).repeat(3, 2)  # dark left, light right
    found = statistics(picture)
    assert found["left"]["y"] == pytest.approx(-0.5, abs=0.02) and abs(found["top"]["y"]) < 1e-9
    assert found["quantile"]["y 0.5"] == pytest.approx(0.5, abs=0.01)
    assert found["mean"]["s"] == 0 and found["deviation"]["cb"] == pytest.approx(0)
    grain = np.random.default_rng(0).integers(0, 256, (128, 128, 3)).astype(np.uint8)
    fine, coarse = (statistics(grain)["detail"][f"y {scale}"] for scale in (SCALES[0], SCALES[-1]))
    assert fine > coarse > found["detail"]["y 0.5"]


def test_faults_are_as_strong_as_they_say():
    picture = usable_pictures()[0].image.crop((0, 0, 96, 96))
    rng = Random(0)
    clean, none = spoiled(picture, 0, rng)
    assert (clean == np.array(picture)).all() and none == [0] * len(FAULTS)
    for _ in range(20):
        worse, faults = spoiled(picture, 1, rng)
        assert (worse != clean).any() and sum(fault > 0 for fault in faults) == 1
        assert 0.15 <= max(faults) <= 1.15


def test_random_tastes_are_normal_and_the_same_again(crops):
    tastes = random_tastes(crops.families, FEW)
    assert tastes.shape == (40, FEW.tastes)
    assert np.abs(tastes.mean(0)).max() < 0.1 and (np.abs(tastes.std(0) - 1) < 0.2).all()  # ties
    assert np.linalg.matrix_rank(tastes) > 30  # they differ
    assert (tastes == random_tastes(crops.families, FEW)).all()


def test_ranks_of_equal_values_are_equal():
    assert (np.diff(normal(np.array([3.0, 3, 3])[:, None]), axis=0) == 0).all()


def test_the_prior_is_what_fits_the_tastes(crops):
    """Tastes that are a feature of nano's weigh that feature, and no other."""
    found = head_prior(crops, FEW)
    assert found.shape[0] == 128 and found.isfinite().all()
    feature = crops.embeddings[:, 3:4].numpy()
    own = Crops(crops.embeddings, {"only": feature})
    root = head_prior(own, Settings(terms=1, optimum=0, tastes=10, ridge=1e-9))
    scores = ((crops.embeddings - crops.embeddings.mean(0)) @ root)[:, -1]  # eigenvalues ascend
    assert abs(np.corrcoef(scores, normal(feature)[:, 0])[0, 1]) > 0.95


def test_families_can_be_left_out(crops):
    rest = [name for name in crops.families if name != "mean"]
    alone = Crops(crops.embeddings, {"mean": crops.families["mean"]})
    torch.testing.assert_close(head_prior(crops, FEW, without=rest), head_prior(alone, FEW))
