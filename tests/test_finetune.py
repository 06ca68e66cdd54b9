"""Whole scorers from comparisons: what is learned, what is kept, and what a kill changes (nothing)."""

import copy
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny_vit
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from stub import Brightness

from tastemaker.preferences.batches import (
    batch_loss,
    batches,
    held_out_loss,
    order,
    scores_of,
)
from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.embeddings import content_of
from tastemaker.preferences.entries import digest
from tastemaker.preferences.finetune import finetune, float32_heads
from tastemaker.preferences.head import bradley_terry
from tastemaker.preferences.trainer import CHECKPOINT
from tastemaker.ranking.calibrated import fit_tau
from tastemaker.scorers import load_scorer, resize
from tastemaker.scorers.personal_files import read_trained_on

module = sys.modules[finetune.__module__]  # its package has the function under that name
ROOT = Path(__file__).resolve().parents[1]
SIZES = ((64, 64), (48, 80), (70, 64))


def taste(picture) -> float:
    """A simulated user, who likes warm pictures, and bright ones a little."""
    r, g, b = np.asarray(picture, np.float64).mean((0, 1)) / 255
    return 12 * (r - b) + 3 * (r + g + b)


def compare(folder: Path, count: int, pairs: int, seed: int) -> Comparisons:
    """Comparisons by that taste among new pictures: probabilities, and a tie in ten."""
    folder.mkdir()
    rng = np.random.default_rng(seed)
    pictures = tiny_vit.pictures([SIZES[i % len(SIZES)] for i in range(count)], seed)
    for i, picture in enumerate(pictures):
        picture.save(folder / f"{i}.png")
    rows = []
    for _ in range(pairs):
        a, b = rng.choice(count, 2, replace=False)
        p = 1 / (1 + np.exp(taste(pictures[b]) - taste(pictures[a])))
        rows.append((folder / f"{a}.png", folder / f"{b}.png", 0.5 if rng.random() < 0.1 else p))
    return Comparisons.of(rows)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASTEMAKER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> tuple[Comparisons, Comparisons]:
    folder = tmp_path_factory.mktemp("data")
    return compare(folder / "train", 60, 120, 0), compare(folder / "test", 24, 60, 1)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("joyquality")
    tiny_vit.make_joyquality().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def joyquality(tiny):
    return load_scorer(tiny, device="cpu")


@pytest.fixture(scope="module")
def nano():
    return load_scorer("nano", device="cpu")


def weights(scorer) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in scorer.parameters()])


quick = partial(finetune, steps=6, batch=4, accumulate=1, rate=1e-3, progress=False)


# --- it learns


def test_joyquality_learns_a_taste(joyquality, data, tmp_path):
    train, test = data
    before = weights(joyquality)
    result = finetune(
        joyquality,
        train,
        test,
        tmp_path,
        steps=60,
        batch=8,
        accumulate=1,
        rate=1e-3,
        progress=False,
    )
    history = dict(result.log.history)
    assert history[0] == pytest.approx(held_out_loss(joyquality, test, 8), abs=1e-6)
    least = F.binary_cross_entropy(test.p, test.p).item()  # of a scorer that knows the taste
    assert history[result.log.best_step] < history[0] - 0.1 and least < history[0] - 0.2
    assert torch.equal(weights(joyquality), before)  # a copy is trained


@pytest.mark.slow
def test_nano_learns_a_taste_at_native_sizes(nano, data, tmp_path):
    train, test = data
    result = finetune(
        nano, train, test, tmp_path, steps=80, batch=8, accumulate=1, rate=2e-3, progress=False
    )
    history = dict(result.log.history)
    assert history[result.log.best_step] < min(history[0] - 0.4, 0.66)


@pytest.mark.parametrize("base", ["nano", "joyquality"])
def test_the_folder_opens_like_any_other(base, data, tmp_path, request):
    train, test = data
    base = request.getfixturevalue(base)
    result = quick(base, train, test, tmp_path, batch=2)
    again = load_scorer(tmp_path, device="cpu")
    kept = {"config.json", "model.safetensors", result.said["trained_on"]}
    assert {p.name for p in tmp_path.iterdir()} == kept
    assert read_trained_on(tmp_path) == {content_of(image) for image in train.images}
    images = list(test.images)
    torch.testing.assert_close(again.score(images), result.scorer.score(images), atol=0, rtol=0)
    assert again.card.fingerprint_id != base.card.fingerprint_id
    loss = held_out_loss(again, test, 8)
    assert loss == pytest.approx(dict(result.log.history)[result.log.best_step], abs=1e-5)
    assert result.said["metrics"]["held_out"]["nll"] == pytest.approx(loss, abs=1e-5)
    assert result.said["metrics"]["base"]["nll"] == pytest.approx(
        result.log.history[0][1], abs=1e-5
    )
    assert not any(p.requires_grad for p in result.scorer.parameters())


def test_a_fine_tune_of_a_fine_tune_remembers_what_both_were_trained_on(joyquality, data, tmp_path):
    before = bytes(16)
    quick(joyquality, data[0], None, tmp_path, learned={before})
    own = {content_of(image) for image in data[0].images}
    assert read_trained_on(tmp_path) == own | {before}


def test_without_held_out_comparisons_the_last_weights_are_kept(joyquality, data, tmp_path):
    train, test = data
    kept = quick(joyquality, train, None, tmp_path / "a")
    assert kept.log.history == [] and kept.log.step == 6
    measured = quick(joyquality, train, test, tmp_path / "b", checkpoint_every=6)
    assert measured.log.best_step in (0, 6)
    if measured.log.best_step == 6:
        torch.testing.assert_close(weights(kept.scorer), weights(measured.scorer), atol=0, rtol=0)


def test_early_stopping_keeps_the_best(joyquality, data, tmp_path, monkeypatch):
    train, test = data
    losses = iter([1.0, 0.9, 0.5, 0.6, 0.7, 0.4])
    seen = []

    def scripted(scorer, test, together):
        seen.append(weights(scorer).clone())
        return next(losses)

    monkeypatch.setattr(module, "held_out_loss", scripted)
    result = quick(joyquality, train, test, tmp_path, steps=20, checkpoint_every=1, patience=2)
    assert (result.log.step, result.log.best_step, len(seen)) == (4, 2, 5)
    images = torch.rand(4, 3, 64, 64)
    torch.testing.assert_close(result.scorer(images), _scores_with(joyquality, seen[2], images))
    assert (result.scorer(images) - _scores_with(joyquality, seen[4], images)).abs().max() > 1e-4


def _scores_with(scorer, flat: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    model = copy.deepcopy(scorer)
    with torch.no_grad():
        for p, values in zip(
            model.parameters(), flat.split([p.numel() for p in model.parameters()]), strict=True
        ):
            p.copy_(values.view_as(p))
    return model(images)


def test_the_card_says_what_it_learned_from_and_how_well(joyquality, data, tmp_path):
    train, test = data
    result = quick(joyquality, train, test, tmp_path / "warm", steps=30, batch=8)
    card = load_scorer(tmp_path / "warm", device="cpu").card
    assert card.name == "warm" and "win_probability" in card.capabilities
    decided = int((test.p != 0.5).sum())
    accuracy = result.said["metrics"]["held_out"]["accuracy"]
    assert (
        f"from 120 comparisons of {len(train.images)} images; right in {accuracy:.1%} of {decided}"
        in (card.limits)
    )
    said = json.loads((tmp_path / "warm" / "config.json").read_text())["personal"]
    assert said == json.loads(json.dumps(result.said))
    assert said["base"] == {"name": "joyquality", "fingerprint": joyquality.card.fingerprint_id}
    assert said["training"]["seed"] == 0 and said["training"]["log"]["history"][0][0] == 0
    scores = result.scorer.score(list(test.images)).double()
    assert said["calibration"]["tau"] == pytest.approx(
        fit_tau(scores, test.pairs, test.p), rel=1e-3
    )


def test_the_hash_is_of_the_comparisons_and_the_contents_of_the_images(nano, data, tmp_path):
    train, _ = data
    hashed = digest(nano, train)
    moved = tmp_path / "moved"
    shutil.copytree(train.images[0].parent, moved)
    images = tuple(moved / path.name for path in train.images)
    assert digest(nano, Comparisons(images, train.pairs, train.p)) == hashed
    assert digest(nano, Comparisons(train.images, train.pairs, 1 - train.p)) != hashed
    images[3].write_bytes(images[4].read_bytes())
    assert digest(nano, Comparisons(images, train.pairs, train.p)) != hashed


def test_a_fine_tuned_scorer_is_a_base_too(nano, data, tmp_path):
    first = quick(nano, *data, tmp_path / "first", steps=3)
    second = quick(first.scorer, *data, tmp_path / "second", steps=3, name="mine")
    assert second.scorer.card.name == "mine" and second.said["base"]["name"] == "first"


# --- the loss


@given(st.floats(-30, 30), st.floats(0, 1))
def test_the_loss_is_the_cross_entropy_of_the_win_probability(difference, p):
    d, p = torch.tensor([difference, -difference]), torch.tensor([p, 1 - p])
    expected = F.binary_cross_entropy_with_logits(d.double(), p.double(), reduction="none")
    loss = bradley_terry(d, p)
    torch.testing.assert_close(loss.double(), expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(loss[0], loss[1], atol=1e-5, rtol=1e-5)  # left and right are alike


def test_a_tie_pulls_scores_together_and_huge_differences_stay_finite():
    d = torch.tensor([2.0, -2.0, 0.0, 1e4, -1e4], requires_grad=True)
    loss = bradley_terry(d, torch.tensor([0.5, 0.5, 0.5, 0.0, 1.0]))
    (gradient,) = torch.autograd.grad(loss.sum(), d)
    assert loss.isfinite().all() and gradient[0] > 0 > gradient[1] and gradient[2] == 0
    assert gradient[3:].tolist() == [1, -1]


def test_pictures_of_any_sizes_score_in_their_order(nano, joyquality, data):
    train, _ = data
    pictures = [
        torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in tiny_vit.pictures(SIZES * 3)
    ]
    for scorer in (nano, joyquality):
        with torch.no_grad():
            scores = scores_of(scorer, pictures)
        assert scores.std() > 0.01
        torch.testing.assert_close(scores, scorer.score(pictures), atol=1e-5, rtol=0)


# --- the data's order


@given(st.integers(1, 40), st.integers(0, 100), st.integers(1, 50), st.integers(0, 9))
def test_every_pass_sees_every_comparison_once_in_an_order_of_its_own(total, first, count, seed):
    whole = order(total, 0, 3 * total, seed)
    for i in range(3):
        assert sorted(whole[i * total : (i + 1) * total]) == list(range(total))
    long = order(total, 0, first + count, seed)
    np.testing.assert_array_equal(order(total, first, count, seed), long[first:])


def test_orders_differ_between_passes_and_seeds():
    a, b, c = order(50, 0, 50, 0), order(50, 50, 50, 0), order(50, 0, 50, 1)
    assert not np.array_equal(a, b) and not np.array_equal(a, c)


def test_batches_from_the_middle_are_those_of_the_whole(nano, data):
    train, _ = data
    whole = list(batches(train, nano, 3, 7, range(10)))
    part = list(batches(train, nano, 3, 7, range(6, 10)))
    assert len(whole) == 10 and len(part) == 4
    for one, other in zip(whole[6:], part, strict=True):
        assert torch.equal(one.pairs, other.pairs) and torch.equal(one.p, other.p)
        assert all(map(torch.equal, one.pictures, other.pictures))


def test_a_batch_holds_the_pictures_that_its_comparisons_name(nano, data):
    from tastemaker.scorers.decode import decode

    train, _ = data
    chosen = order(len(train), 0, 5, 0)
    batch = next(batches(train, nano, 5, 0, range(1)))
    for (left, right), n in zip(batch.pairs.tolist(), chosen, strict=True):
        for place, index in zip((left, right), train.pairs[n].tolist(), strict=True):
            assert torch.equal(batch.pictures[place], decode(train.images[index]))
    torch.testing.assert_close(batch.p.double(), train.p[chosen], atol=1e-7, rtol=0)


# --- how it is computed


def test_accumulated_batches_are_one_large_batch(joyquality, data, tmp_path, monkeypatch):
    train, _ = data
    step, gradients = torch.optim.AdamW.step, []

    def spy(self, *args, **kwargs):
        gradients.append(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]))
        return step(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    images, runs = torch.rand(8, 3, 64, 64), [joyquality]
    for batch, accumulate in ((12, 1), (4, 3), (1, 12)):
        out = tmp_path / str(batch)
        runs.append(quick(joyquality, train, None, out, batch=batch, accumulate=accumulate).scorer)
    # Not the weights: those that no difference of scores depends on (biases of the head and of the
    # keys) have gradients of rounding alone, of which AdamW makes steps like any other.
    before, one, *others = (scores[1:] - scores[0] for scores in (run(images) for run in runs))
    for i, other in enumerate(others, 1):
        torch.testing.assert_close(gradients[6 * i], gradients[0], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(other, one, atol=1e-5, rtol=0)
    assert gradients[0].abs().max() > 1e-2 and (one - before).abs().max() > 1e-3


def a_gradient(scorer, data, checkpointing: bool, precision: str = "no"):
    """Gradient of one batch into every weight, and how often a block ran."""
    model = module._trainable(scorer, checkpointing)
    calls = []
    model.tower.blocks[0].norm1.register_forward_hook(lambda *_: calls.append(1))
    batch = next(batches(data[0], model, 6, 0, range(1)))
    with float32_heads(model), torch.autocast("cpu", torch.bfloat16, precision == "bf16"):
        loss = batch_loss(model, batch)
    loss.backward()
    return torch.cat([p.grad.flatten() for p in model.parameters()]), len(calls), loss


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_gradient_checkpointing_changes_no_gradient(joyquality, data, precision):
    plain, once, _ = a_gradient(joyquality, data, False, precision)
    again, twice, _ = a_gradient(joyquality, data, True, precision)
    assert (once, twice) == (
        1,
        2,
    )  # it does recompute, though scorers are always in evaluation mode
    assert plain.abs().max() > 1e-3
    torch.testing.assert_close(again, plain, atol=1e-7, rtol=1e-5)


def test_every_weight_gets_a_gradient(joyquality, nano, data):
    for scorer in (joyquality, nano):
        model = module._trainable(scorer, False)
        batch = next(batches(data[0], model, 6, 0, range(1)))
        batch_loss(model, batch).backward()
        still = [name for name, p in model.named_parameters() if not p.grad.abs().sum() > 0]
        assert still in ([], ["head.bias"])  # which no difference of scores depends on


def test_in_bfloat16_scores_keep_their_digits_and_weights_stay_float32(joyquality, nano, data):
    pictures = [
        torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in tiny_vit.pictures(SIZES * 8)
    ]
    for scorer in (joyquality, nano):
        with torch.no_grad():
            exact = scores_of(scorer, pictures)
            with float32_heads(scorer), torch.autocast("cpu", torch.bfloat16):
                half = scores_of(scorer, pictures)
            with torch.autocast("cpu", torch.bfloat16):
                coarse = scores_of(scorer, pictures)
        assert half.dtype == torch.float32 and not torch.equal(half, exact)
        assert not torch.equal(half, half.bfloat16().float())
        assert torch.equal(coarse, coarse.bfloat16().float())  # what autocast alone would give
        assert (half - exact).abs().max() < 0.1 * exact.std()
        assert torch.equal(scores_of(scorer, pictures), exact)  # the heads are as they were
    gradient, _, loss = a_gradient(joyquality, data, False, "bf16")
    assert gradient.dtype == loss.dtype == torch.float32


def test_resizing_stays_exact_in_bfloat16(joyquality, monkeypatch):
    """As a GPU resizes, by matrix products, which autocast would round."""
    pictures = [
        torch.from_numpy(np.array(p)).permute(2, 0, 1) for p in tiny_vit.pictures(SIZES * 2)
    ]
    prepared, inside = [], joyquality.score_prepared
    monkeypatch.setattr(joyquality, "score_prepared", lambda x: prepared.append(x) or inside(x))
    for by_products in (False, True):
        if by_products:
            monkeypatch.setattr(resize, "_by_pillow", resize._on_device)
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, by_products):
            scores_of(joyquality, pictures)
    assert torch.equal(*prepared)


def test_training_in_bfloat16_comes_near_float32(joyquality, data, tmp_path):
    train, test = data
    runs = {
        p: quick(joyquality, train, test, tmp_path / p, steps=20, batch=8, precision=p)
        for p in ("no", "bf16")
    }
    images = list(test.images)
    before, exact, half = (
        scorer.score(images) for scorer in (joyquality, runs["no"].scorer, runs["bf16"].scorer)
    )
    assert 0 < (half - exact).norm() < 0.1 * (exact - before).norm()
    state = load_file(tmp_path / "bf16" / "model.safetensors")
    assert {t.dtype for t in state.values()} == {torch.float32}


def test_half_precision_weights_are_trained_in_float32(tiny, data, tmp_path):
    half = load_scorer(tiny, device="cpu", dtype="bfloat16")
    result = quick(half, data[0], None, tmp_path, rate=1e-6)
    assert result.scorer.dtype == torch.float32 and half.dtype == torch.bfloat16
    # Steps of a millionth would be rounded away in bfloat16.
    moved = (weights(result.scorer) - weights(half)).abs()
    assert 0 < moved[moved > 0].median() < 1e-4


# --- interruptions


class Killed(BaseException):
    pass


@pytest.mark.parametrize("at", [0, 3, 5, 9])
def test_a_run_that_was_interrupted_comes_to_the_same_result(
    joyquality, data, tmp_path, monkeypatch, at
):
    train, test = data
    run = partial(quick, joyquality, train, test, batch=3, accumulate=2, checkpoint_every=2)
    expected = run(tmp_path / "whole")
    loss, count = module.batch_loss, []

    def interrupted(scorer, batch):
        count.append(1)
        if len(count) == at + 1:
            raise Killed
        return loss(scorer, batch)

    with monkeypatch.context() as patch:
        patch.setattr(module, "batch_loss", interrupted)
        with pytest.raises(Killed):
            run(tmp_path / "broken")
    assert (tmp_path / "broken" / "training" / CHECKPOINT).exists()
    with pytest.raises(FileNotFoundError, match="no config.json"):  # not taken for a scorer
        load_scorer(tmp_path / "broken")
    again = run(tmp_path / "broken")
    assert torch.equal(weights(again.scorer), weights(expected.scorer))
    assert again.log.history == expected.log.history


def test_a_checkpoint_of_other_data_is_refused_and_can_be_left(
    joyquality, data, tmp_path, monkeypatch
):
    train, test = data
    with monkeypatch.context() as patch:
        patch.setattr(module, "save_scorer", lambda *_: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            quick(joyquality, train, test, tmp_path)
    other = train.take(torch.arange(100))
    with pytest.raises(ValueError, match="another run .train: .* there, .* here"):
        quick(joyquality, other, test, tmp_path)
    with pytest.raises(ValueError, match="another run .*seed: 0 there, 1 here"):
        quick(joyquality, train, test, tmp_path, seed=1)
    quick(joyquality, other, test, tmp_path, resume=False)


CHILD = """
import runpy, sys
root, base, out, pairs = sys.argv[1:]
runpy.run_path(root + "/tests/conftest.py")
from pathlib import Path
from tastemaker.preferences.comparisons import read_comparisons
from tastemaker.preferences.finetune import finetune
from tastemaker.scorers import load_scorer
finetune(load_scorer(base, device="cpu"), read_comparisons(pairs + "/train.csv")[0],
    read_comparisons(pairs + "/test.csv")[0], out, steps=60, batch=4, accumulate=2, rate=1e-3,
    checkpoint_every=4, progress=False)
"""


@pytest.mark.slow
@pytest.mark.parametrize("base", ["nano", "joyquality"])
def test_kill_9_at_random_moments_changes_nothing(base, tiny, data, tmp_path):
    from tastemaker.preferences.comparisons import write_comparisons

    for name, part in zip(("train", "test"), data, strict=True):
        write_comparisons(tmp_path / f"{name}.csv", part)
    seed = int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}")
    rng = random.Random(seed)

    def start(out: Path) -> subprocess.Popen:
        where = ["nano" if base == "nano" else str(tiny), str(out), str(tmp_path)]
        return subprocess.Popen([sys.executable, "-c", CHILD, str(ROOT), *where])

    assert start(tmp_path / "whole").wait() == 0
    broken, kills = tmp_path / "broken", 0
    while kills < 3:
        child, before = start(broken), _changed(broken)
        while child.poll() is None and _changed(broken) == before:
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.5))
        child.send_signal(signal.SIGKILL)
        if child.wait() == 0:
            break
        kills += 1
    assert kills >= 1 and start(broken).wait() == 0
    one, other = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "broken"))
    for name in one:
        torch.testing.assert_close(other[name], one[name], atol=1e-6, rtol=0)
    said = json.loads((broken / "config.json").read_text(encoding="utf-8"))["personal"]
    kept = {"config.json", "model.safetensors", said["trained_on"]}
    assert {p.name for p in broken.iterdir()} == kept


def _changed(folder: Path) -> float | None:
    """When the checkpoint was last written; None before."""
    try:
        return (folder / "training" / CHECKPOINT).stat().st_mtime_ns
    except FileNotFoundError:
        return None


# --- what is refused


def test_other_scorers_are_refused_with_what_to_do_instead(data, tmp_path):
    with pytest.raises(TypeError, match="brightness is not trained whole.*without --full"):
        quick(Brightness(), *data, tmp_path)
    tiny_vit.write_rali_release(tmp_path)
    from tastemaker.scorers.rali_convert import convert_rali

    rali = load_scorer(convert_rali(tmp_path, tmp_path / "rali"), device="cpu")
    with pytest.raises(TypeError, match="rali is not trained whole.*--base"):
        quick(rali, *data, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_compiled_scorer_is_refused(joyquality, data, tmp_path):
    compiled = copy.deepcopy(joyquality)
    compiled.compile()
    with pytest.raises(TypeError, match="load it without compiling"):
        quick(compiled, *data, tmp_path)


def test_missing_and_broken_images_are_named(joyquality, data, tmp_path):
    train, test = data
    gone = Comparisons((*train.images[:-1], tmp_path / "gone.png"), train.pairs, train.p)
    with pytest.raises(FileNotFoundError, match="1 images are missing: .*gone.png"):
        quick(joyquality, gone, test, tmp_path / "out")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG nothing")
    both = [(tmp_path / "broken.png", train.images[0], 1)] * 4
    with pytest.raises(ValueError, match="broken.png"):
        quick(joyquality, Comparisons.of(both), None, tmp_path / "out")


def test_a_base_is_not_overwritten(tiny, joyquality, data):
    with pytest.raises(FileExistsError, match="did not write, which is never overwritten: name"):
        quick(joyquality, *data, tiny, overwrite=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(patience=2), "patience needs"),
        (dict(epochs=2.0), "steps or epochs, not both"),
        (dict(precision="fp16"), "precision must be one of"),
        (dict(rate=0.0), "rate must be positive"),
        (dict(steps=0), "at least 3 steps, got 0"),
        (dict(batch=0), "batch must be at least 1, got 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(joyquality, data, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        quick(joyquality, data[0], None, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_nano_has_nothing_to_recompute(nano, data, tmp_path):
    with pytest.raises(ValueError, match="gradient_checkpointing is JoyQuality's"):
        quick(nano, *data, tmp_path, gradient_checkpointing=True)


def test_no_comparisons_are_refused(nano, data, tmp_path):
    with pytest.raises(ValueError, match="no comparisons to train on"):
        quick(nano, data[0].take(torch.arange(0)), None, tmp_path)


def test_epochs_are_passes_over_the_comparisons(joyquality, data, tmp_path):
    result = quick(joyquality, data[0], None, tmp_path, steps=None, epochs=2, batch=8, accumulate=5)
    assert result.log.step == 6  # 2 x 120 / 40
