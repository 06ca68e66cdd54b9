"""JoyQuality saved in the hub's format: the same scores, here and in the official class."""

import pytest
import tiny_vit
import torch
from transformers import SiglipForImageClassification

from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import write_checkpoint
from tastemaker.scorers.joyquality_save import hub_checkpoint


def changed(scorer, seed: int):
    """The scorer with every one of its weights changed, as training would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in scorer.parameters():
            p.add_(0.1 * p.std(correction=0) * torch.randn(p.shape, generator=generator))
    return scorer


@pytest.fixture(scope="module", params=["gelu_pytorch_tanh", "quick_gelu"])
def saved(request, tmp_path_factory):
    """(a changed scorer, the folder it was loaded from, the folder it was saved to)"""
    base, out = (tmp_path_factory.mktemp(name) for name in ("base", "out"))
    tiny_vit.make_joyquality(hidden_act=request.param).save_pretrained(base)
    scorer = changed(load_scorer(base, device="cpu"), 1)
    write_checkpoint(out, *hub_checkpoint(scorer))
    return scorer, base, out


def some_images() -> torch.Tensor:
    return torch.stack([tiny_vit.as_tensor(p) for p in tiny_vit.pictures([(64, 64)] * 8)])


def test_what_is_loaded_again_scores_the_same(saved):
    scorer, base, out = saved
    images, again = some_images(), load_scorer(out, device="cpu")
    assert tiny_vit.spread_over(scorer(images), 1e-5)
    # Float32 rounds: folding the same numbers again moves the last digit of some. See below for float64.
    torch.testing.assert_close(again(images), scorer(images), atol=5e-6, rtol=0)
    assert (load_scorer(base, device="cpu")(images) - scorer(images)).abs().max() > 1e-2
    for (name, one), other in zip(
        scorer.state_dict().items(), again.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(other, one, atol=1e-6, rtol=1e-6, msg=name)


def test_the_official_class_reads_it(saved):
    scorer, _, out = saved
    official, told = SiglipForImageClassification.from_pretrained(out, output_loading_info=True)
    assert not told["missing_keys"] and not told["unexpected_keys"]
    images = some_images()
    theirs = tiny_vit.joyquality_forward(official.eval(), (images - 0.5) / 0.5)
    torch.testing.assert_close(theirs, scorer(images), atol=1e-5, rtol=0)


def test_no_tolerance_hides_a_difference_in_the_maths(tmp_path):
    base, out = tmp_path / "base", tmp_path / "out"
    tiny_vit.make_joyquality().save_pretrained(base)
    scorer = changed(load_scorer(base, device="cpu", dtype="float64"), 2)
    write_checkpoint(out, *hub_checkpoint(scorer))
    again = load_scorer(out, device="cpu", dtype="float64")
    x = torch.rand(4, 3, 64, 64, dtype=torch.float64)
    ours, expected = again.head(again.features(x)), scorer.head(scorer.features(x))
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_saving_changes_nothing(saved):
    scorer, _, out = saved
    before = {name: tensor.clone() for name, tensor in scorer.state_dict().items()}
    hub_checkpoint(scorer)
    assert all(torch.equal(tensor, before[name]) for name, tensor in scorer.state_dict().items())
