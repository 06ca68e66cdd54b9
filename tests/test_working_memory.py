"""Working memory measured on "meta" against what a real pass allocates."""

import pytest
import tiny_vit
import torch
from qrealign_tools import load
from tiny_qwen import write_checkpoint

from tastemaker.scorers import Ensemble, load_scorer
from tastemaker.scorers.rali_convert import convert_rali
from tastemaker.scorers.working_memory import _Peak, working_memory


def real(scorer, count, height, width):
    """What a pass on the CPU allocates."""
    pictures = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8)
    with torch.inference_mode(), _Peak() as peak:
        scorer.score_runs([pictures.clone()])
    return peak.bytes


@pytest.fixture(scope="module")
def scorers(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scorers")
    tiny_vit.make_joyquality().save_pretrained(folder / "joyquality")
    (folder / "release").mkdir()
    tiny_vit.write_rali_release(folder / "release")
    convert_rali(folder / "release", folder / "rali")
    return {
        "nano": load_scorer("nano", device="cpu"),
        "joyquality": load_scorer(folder / "joyquality", device="cpu"),
        "rali": load_scorer(folder / "rali", device="cpu"),
        "q-realign": load(write_checkpoint(folder / "q")),
    }


@pytest.mark.parametrize(
    "name, count, side",  # sides that need no resize: on a CPU Pillow resizes outside of torch
    [("nano", 1, 256), ("joyquality", 4, 64), ("rali", 4, 56), ("q-realign", 2, 256)],
)
def test_measures_what_a_real_pass_allocates(scorers, name, count, side):
    measured = working_memory(scorers[name], count, side, side)
    assert measured == pytest.approx(real(scorers[name], count, side, side), rel=0.15)


@pytest.mark.parametrize("name", ["nano", "joyquality", "rali", "q-realign"])
def test_grows_with_the_batch_and_leaves_the_scorer_as_it_was(scorers, name):
    scorer = scorers[name]
    before = {key: (w.data_ptr(), w.device) for key, w in scorer.state_dict().items()}
    one, four = (working_memory(scorer, n, 320, 256) for n in (1, 4))
    assert 2 * one < four < 5 * one
    assert {key: (w.data_ptr(), w.device) for key, w in scorer.state_dict().items()} == before


def test_grows_with_the_picture(scorers):
    small, large = (working_memory(scorers["nano"], 1, s, s) for s in (256, 512))
    assert large == pytest.approx(4 * small, rel=0.05)


def test_an_ensemble_takes_what_its_hungriest_member_takes(scorers):
    from tastemaker.ranking import ReferenceStatistics

    members = [scorers["nano"], scorers["joyquality"]]
    ensemble = Ensemble(members, [ReferenceStatistics(0.0, 1.0, 2)] * 2)
    apart = [working_memory(member, 2, 512, 512) for member in members]
    assert max(apart) <= working_memory(ensemble, 2, 512, 512) < sum(apart)


def test_a_scorer_that_is_a_member_twice_keeps_its_weights(scorers):
    from tastemaker.ranking import ReferenceStatistics

    ensemble = Ensemble([scorers["nano"]] * 2, [ReferenceStatistics(0.0, 1.0, 2)] * 2)
    assert working_memory(ensemble, 1, 64, 64)
    assert {weight.device.type for weight in ensemble.parameters()} == {"cpu"}


def test_extreme_shapes_that_pillow_resizes(scorers):
    assert working_memory(scorers["joyquality"], 1, 20_000, 40) > 20_000 * 40 * 3


def test_no_memory_is_taken(scorers):
    """A batch that no machine could hold is measured all the same."""
    assert working_memory(scorers["nano"], 4096, 8192, 8192) > 10**13
