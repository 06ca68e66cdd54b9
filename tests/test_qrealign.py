"""Q-ReAlign beside the official recipe, on a tiny random model of the real class."""

import logging
import sys

import pytest
import torch
from PIL import Image
from qrealign_tools import (
    EXACT,
    NO_RESIZE,
    RESIZED,
    assert_close,
    card_id,
    gradient,
    load,
    pictures,
    relative,
    unit,
)
from tiny_qwen import CARD, WEIGHTS, Official, write_checkpoint

from tastemaker.scorers import load_scorer, qwen_text


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("tiny") / "checkpoint")


@pytest.fixture(scope="module")
def half_folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("half") / "checkpoint", torch.bfloat16)


@pytest.fixture(scope="module")
def official(folder):
    return Official.load(folder)


@pytest.fixture(scope="module")
def scorer(folder):
    return load(folder)


# --- scores -------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", ["quality", "aesthetics"])
def test_equals_the_card_where_nothing_is_resized(folder, official, task):
    scorer = load(folder, task)
    for picture in pictures(NO_RESIZE):
        assert_close(scorer(unit(picture)[None]), [official.score(picture, task)])


def test_equals_the_card_from_files(scorer, official, tmp_path):
    made = pictures(NO_RESIZE + RESIZED)
    paths = [tmp_path / f"{i}.{'jpg' if i % 2 else 'png'}" for i in range(len(made))]
    for picture, path in zip(made, paths, strict=True):
        picture.save(path, quality=95)
    scores = scorer.score(paths, batch_size=2)
    reference = [official.score(Image.open(path).convert("RGB")) for path in paths]
    assert max(reference) - min(reference) > 100 * 1e-3
    assert_close(scores, reference)


def test_the_torchvision_backend_is_within_a_hundredth_of_the_spread(scorer, folder):
    """The named limit of exactness: torchvision rounds otherwise than Pillow when it resizes."""
    official = Official.load(folder, resizer="torchvision")
    made = pictures(RESIZED * 2, grain=2)
    reference = [official.score(picture) for picture in made]
    assert_close(scorer.score(made), reference, (max(reference) - min(reference)) / 100)
    same = [official.score(picture) for picture in pictures(NO_RESIZE)]
    assert_close(scorer.score(pictures(NO_RESIZE)), same)


def test_a_batch_scores_as_each_alone(scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 5)])
    alone = torch.cat([scorer(x[i : i + 1]) for i in range(5)])
    assert alone.max() - alone.min() > 0.1
    assert_close(scorer(x), alone)


def test_mixed_sizes_come_back_in_order(scorer):
    made = pictures([*NO_RESIZE, *RESIZED[:2], *NO_RESIZE])
    alone = torch.cat([scorer.score([picture]) for picture in made])
    assert_close(scorer.score(made, batch_size=3), alone)
    backwards = scorer.score(made[::-1], batch_size=3).flip(0)
    assert_close(backwards, alone)


def test_half_precision_pixels_are_computed_in_float32(scorer):
    x = unit(pictures([(256, 320)])[0])[None].half()
    assert_close(scorer(x), scorer(x.float()), 0)


def test_an_empty_batch(scorer):
    assert scorer(torch.zeros(0, 3, 64, 64)).shape == (0,)
    assert scorer.score_tasks(torch.zeros(0, 3, 64, 64)).shape == (0, 2)


def test_one_pixel_is_scored_and_a_strip_is_refused(scorer):
    assert scorer.score([Image.new("RGB", (1, 1), "red")]).isfinite().all()
    with pytest.raises(ValueError, match="over 200 times the other: 201x1 px"):
        scorer(torch.rand(1, 3, 1, 201))
    results = list(scorer.score_iter([Image.new("RGB", (1, 201)), Image.new("RGB", (9, 9))]))
    assert "over 200 times" in results[0].error and results[1].error is None


def test_neither_torchvision_nor_a_processor_is_needed(folder, monkeypatch):
    import transformers

    monkeypatch.setitem(sys.modules, "torchvision", None)
    for name in ("AutoProcessor", "AutoImageProcessor"):
        monkeypatch.setattr(transformers, name, None)
    assert load(folder)(torch.rand(1, 3, 256, 256)).isfinite().all()


# --- gradients ----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(256, 320), (200, 310)])
def test_gradient_is_the_slope(scorer, size):
    x = torch.stack([unit(picture) for picture in pictures([size] * 2)]) * 0.8 + 0.1
    g = gradient(scorer, x)
    assert (g != 0).float().mean() > 0.9
    step = 1e-2 * g / g.norm()
    with torch.no_grad():
        slope = (scorer(x + step) - scorer(x - step)).double().sum() / (2 * step.norm())
    assert slope.item() == pytest.approx(g.norm().item(), rel=0.01)


def official_gradient(official, x):
    """Through the stock model's own forward, from pixels normalised and cut into patches here."""
    question, stem = CARD["quality"]
    rows, columns = x.shape[2] // 16, x.shape[3] // 16
    cut = ((x - 0.5) / 0.5).reshape(-1, 3, rows // 2, 2, 16, columns // 2, 2, 16)
    cut = cut.permute(0, 2, 5, 3, 6, 1, 4, 7)[..., None, :, :].expand(*[-1] * 6, 2, -1, -1)
    total = 0
    for patches in cut.reshape(len(x), rows * columns, -1):
        pixels = {"pixel_values": patches, "image_grid_thw": torch.tensor([[1, rows, columns]])}
        logits = official.logits(pixels, official.prompt(question) + stem)
        total = total + (logits.softmax(-1) * WEIGHTS).sum()
    return total


def test_gradient_is_the_stock_models(scorer, official):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 2)])
    ours, stock = gradient(scorer, x), gradient(lambda x: official_gradient(official, x), x)
    assert relative(ours, stock) < 1e-4


def test_gradient_after_scoring_without_one(folder):
    """What the first call keeps for later ones must serve autograd too."""
    scorer = load(folder)
    x = torch.rand(1, 3, 256, 256)
    with torch.inference_mode():
        scorer(x), scorer.score_tasks(x)
    assert gradient(scorer, x).norm() > 0
    assert gradient(scorer.score_tasks, x).norm() > 0


def test_weights_are_frozen(scorer):
    x = torch.rand(1, 3, 256, 256, requires_grad=True)
    scorer(x).sum().backward()
    assert x.grad is not None
    assert all(p.grad is None and not p.requires_grad for p in scorer.parameters())


def test_checkpointing_recomputes_and_changes_nothing(folder, scorer):
    slim = load(folder, gradient_checkpointing=True)
    assert slim.gradient_checkpointing and not slim.training and not scorer.gradient_checkpointing
    runs = {"text": 0, "vision": 0}

    def count(name):
        return lambda *_: runs.__setitem__(name, runs[name] + 1)

    slim.reader.language_model.layers[0].mlp.register_forward_pre_hook(count("text"))
    slim.reader.visual.blocks[0].mlp.register_forward_pre_hook(count("vision"))
    x = torch.rand(2, 3, 256, 256)
    slim(x)
    assert runs == {"text": 1, "vision": 1}
    assert relative(gradient(slim, x), gradient(scorer, x)) < EXACT
    assert runs == {"text": 3, "vision": 3}  # the second run's forward, and its recomputation
    assert card_id(slim) == card_id(scorer)


# --- several questions --------------------------------------------------------------------------


def test_score_tasks_equals_one_scorer_a_task(folder, scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 3)])
    each = torch.stack([scorer(x), load(folder, "aesthetics")(x)], 1)
    assert scorer.forks and scorer.card.fingerprint["fork"] == "yes"
    assert (each[:, 0] - each[:, 1]).abs().max() > 0.01
    assert_close(scorer.score_tasks(x), each, 2e-5)
    assert_close(scorer.score_tasks(x, ("aesthetics",)), each[:, 1:], 2e-5)
    assert_close(scorer.score_tasks(x, ("aesthetics", "quality")), each.flip(1), 2e-5)


def test_the_gradient_of_score_tasks_is_that_of_full_passes(folder, scorer):
    x = torch.stack([unit(picture) for picture in pictures([(256, 320)] * 2)])
    other = load(folder, "aesthetics")
    forked = gradient(lambda x: scorer.score_tasks(x) @ torch.tensor([1.0, 0.5]), x)
    full = gradient(lambda x: scorer(x) + 0.5 * other(x), x)
    assert relative(forked, full) < 1e-4


def test_the_picture_is_read_once(scorer):
    seen = []
    handle = scorer.reader.visual.register_forward_hook(lambda *_: seen.append(1))
    scorer.score_tasks(torch.rand(2, 3, 256, 256))
    handle.remove()
    assert seen == [1]


def test_a_kernel_that_drops_its_state_is_noticed(folder, scorer, monkeypatch, caplog):
    real = qwen_text.gated_delta_rule
    dropping = lambda q, k, v, g, beta, memory=None: real(q, k, v, g, beta)  # noqa: E731
    monkeypatch.setattr(qwen_text, "gated_delta_rule", dropping)
    with caplog.at_level(logging.WARNING):
        careful = load(folder)
    assert not careful.forks and careful.card.fingerprint["fork"] == "no"
    assert len(caplog.records) == 1 and "full pass" in caplog.text
    assert card_id(careful) != card_id(scorer)
    x = torch.rand(2, 3, 256, 256)
    assert_close(careful.score_tasks(x)[:, 0], scorer(x), 0)
    monkeypatch.undo()
    assert_close(careful.score_tasks(x), scorer.score_tasks(x), 2e-5)


def test_a_move_is_followed_by_another_check(folder, monkeypatch):
    moved = load(folder)
    assert moved.forks
    real = qwen_text.gated_delta_rule
    dropping = lambda q, k, v, g, beta, memory=None: real(q, k, v, g, beta)  # noqa: E731
    monkeypatch.setattr(qwen_text, "gated_delta_rule", dropping)
    assert not moved.to("cpu").forks


def test_unknown_tasks_are_refused(scorer, folder):
    for tasks in (("video",), ("beauty",), ()):
        with pytest.raises(ValueError, match="tasks must be among"):
            scorer.score_tasks(torch.rand(1, 3, 64, 64), tasks)
    with pytest.raises(ValueError, match="task must be one of"):
        load(folder, "beauty")


# --- precision ----------------------------------------------------------------------------------


def test_bfloat16_is_as_near_the_truth_as_the_stock_model(half_folder):
    made = pictures(NO_RESIZE + RESIZED)
    truth = load(half_folder).score(made)
    ours = load(half_folder, dtype=torch.bfloat16).score(made)
    official = Official.load(half_folder)
    stock = torch.tensor([official.score(picture) for picture in made])
    assert (ours - truth).abs().mean() <= 1.2 * (stock - truth).abs().mean()
    assert_close(ours, truth, 0.05)


def test_the_head_is_float32_in_any_dtype(half_folder):
    scorer = load(half_folder, dtype=torch.bfloat16)
    hidden = torch.randn(64, scorer.levels.shape[1]).bfloat16()
    exact = (hidden.double() @ scorer.levels.double().T).softmax(-1) @ WEIGHTS.double()
    scores = scorer._judged(hidden)
    assert scores.dtype == torch.float32
    assert_close(scores.double(), exact, 1e-6)


def test_casting_the_scorer_is_loading_it_so(half_folder):
    """Rotary angles stay float32: a blanket `.to(dtype)` has no buffers to corrupt."""
    x = torch.rand(2, 3, 256, 320)
    cast = load(half_folder)
    cast(x), cast.score_tasks(x)
    loaded = load(half_folder, dtype=torch.bfloat16)
    assert_close(cast.to(torch.bfloat16)(x), loaded(x), 0)
    assert not list(loaded.buffers())
    assert cast.card.fingerprint["dtype"] == "bfloat16"


def test_dtype_auto_is_float32_on_the_cpu(half_folder):
    scorer = load_scorer(half_folder, device="cpu")
    assert {p.dtype for p in scorer.parameters()} == {torch.float32}


def test_with_task_shares_the_weights(folder, scorer):
    other = scorer.with_task("aesthetics")
    x = unit(pictures([(256, 256)])[0])[None]
    assert_close(other(x), load(folder, task="aesthetics")(x))
    assert (other.card.task, scorer.card.task) == ("aesthetics", "quality")
    assert card_id(other) == card_id(load(folder, task="aesthetics"))
    assert all(a is b for a, b in zip(other.parameters(), scorer.parameters(), strict=True))
    scorer.levels = torch.nn.Parameter(scorer.levels.detach().clone(), requires_grad=False)
    assert (
        other.levels is scorer.levels
    )  # who replaces a weight, as a move does, replaces it in both
    with pytest.raises(ValueError, match="task"):
        scorer.with_task("beauty")
