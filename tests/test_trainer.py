"""The loop that fits weights: torch's own arithmetic, and checkpoints that change no result."""

import math
import os
import sys

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from tastemaker.preferences import trainer
from tastemaker.preferences.trainer import CHECKPOINT, Log, Recipe, fit, make_schedule


def a_model(seed: int = 0) -> torch.nn.Module:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.SiLU(), torch.nn.Linear(8, 1))


def batches(first: int):
    """Endless batches [5, 7], inputs and target, each of its own number."""
    while True:
        yield torch.randn(5, 7, generator=torch.Generator().manual_seed(first))
        first += 1


def error(model):
    """Mean squared error, with noise from torch's own generator, as dropout would draw."""

    def loss(batch):
        noise = 0.1 * torch.rand(len(batch), 1)
        return (model(batch[:, :6]) - batch[:, 6:] - noise).square().mean()

    return loss


def state(model) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def fitted(recipe: Recipe, **options) -> tuple[torch.Tensor, Log]:
    model = a_model()
    log = fit(model, recipe, batches, error(model), progress=False, **options)
    return state(model), log


def plain_loop(recipe: Recipe) -> torch.Tensor:
    """What `fit` stands for, in torch alone."""
    model = a_model()
    loss = error(model)
    optimizer = torch.optim.AdamW(model.parameters(), recipe.rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, recipe.rate, recipe.steps, pct_start=recipe.rise
    )
    for _, batch in zip(range(recipe.steps), batches(0), strict=False):
        optimizer.zero_grad()
        loss(batch).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return state(model)


# --- the arithmetic


@pytest.mark.parametrize("rise", [0.1, 0.3])
def test_it_is_torchs_own_loop_to_the_last_bit(rise):
    recipe = Recipe(steps=40, rate=0.05, rise=rise)
    expected = plain_loop(recipe)
    assert torch.equal(fitted(recipe)[0], expected)
    assert not torch.equal(expected, state(a_model()))


def test_batches_accumulate_to_the_mean_of_their_gradients():
    def fitted_with(recipe, size):
        model = a_model()

        def parts(first):
            whole = batches(first * size // 4)
            while True:  # [4, 7] in parts of `size`
                yield from next(whole)[:4].split(size)

        def loss(batch):
            return (model(batch[:, :6]) - batch[:, 6:]).square().mean()

        fit(model, recipe, parts, loss, progress=False)
        return state(model)

    together = fitted_with(Recipe(steps=12, rate=0.02), 4)
    for size in (1, 2):
        recipe = Recipe(steps=12, rate=0.02, accumulate=4 // size)
        torch.testing.assert_close(fitted_with(recipe, size), together, atol=1e-5, rtol=0)


def test_the_gradient_is_clipped_before_the_step():
    model = a_model()
    seen = []
    step = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        grads = [p.grad for group in self.param_groups for p in group["params"]]
        seen.append(torch.cat([g.flatten() for g in grads]).norm().item())
        return step(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", spy)
        fit(model, Recipe(3, 1e-3), batches, lambda b: 1e4 * model(b[:, :6]).mean())
    assert seen == pytest.approx([1.0] * 3, rel=1e-4)


@given(st.integers(3, 300), st.floats(0.01, 0.9), st.sampled_from(trainer.SCHEDULES))
def test_every_schedule_rises_to_the_rate_and_falls(steps, rise, schedule):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], 0.5)
    scheduler = make_schedule(optimizer, Recipe(steps, 0.5, schedule=schedule, rise=rise))
    rates = []
    for _ in range(steps):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    assert min(rates) >= 0 and rates[0] > 0 and max(rates) <= 0.5 * (1 + 1e-9)
    assert max(rates) > 0.35  # few steps may straddle the top


# --- checkpoints


class Killed(BaseException):
    pass


def killed_at(number: int):
    def stream(first):
        for i, batch in enumerate(batches(first), first):
            if i == number:
                raise Killed
            yield batch

    return stream


@pytest.mark.parametrize("schedule", trainer.SCHEDULES)
@pytest.mark.parametrize("stops", [(0,), (1,), (7,), (3, 11, 12), (17,)])
def test_a_broken_run_goes_on_to_the_same_result(tmp_path, schedule, stops):
    recipe = Recipe(steps=9, rate=0.05, schedule=schedule, accumulate=2)
    expected, log = fitted(recipe, folder=tmp_path / "unbroken", every=2)
    for stop in stops:
        model = a_model(seed=1)  # a new process: other weights until the checkpoint is read
        if not (tmp_path / "broken" / CHECKPOINT).exists():
            model = a_model()
        with pytest.raises(Killed):
            options = dict(folder=tmp_path / "broken", every=2, progress=False)
            fit(model, recipe, killed_at(stop), error(model), **options)
    torch.manual_seed(5)
    model = a_model(seed=1) if stops[-1] >= 4 else a_model()
    again = fit(
        model, recipe, batches, error(model), folder=tmp_path / "broken", every=2, progress=False
    )
    assert torch.equal(state(model), expected)
    assert (again.step, again.loss) == (log.step, log.loss)


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    recipe = Recipe(steps=10, rate=0.05)
    expected, _ = fitted(recipe)
    replace, writes = os.replace, []

    def full(source, target):
        writes.append(target)
        if len(writes) == 3:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        fitted(recipe, folder=tmp_path, every=2)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    resumed, log = fitted(recipe, folder=tmp_path, every=2)
    assert torch.equal(resumed, expected) and log.step == 10


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    recipe = Recipe(steps=4, rate=0.05)
    fitted(recipe, folder=tmp_path)
    (tmp_path / f".{CHECKPOINT}.123.tmp").write_bytes(b"half")
    fitted(recipe, folder=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]


def test_a_checkpoint_holds_tensors_and_json_only(tmp_path):
    fitted(Recipe(steps=4, rate=0.05), folder=tmp_path, run={"data": "a"})
    with safe_open(tmp_path / CHECKPOINT, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert {"model.0.weight", "optimizer.0.exp_avg", "optimizer.3.step", "random.cpu"} <= names
    assert set(metadata) == {"run", "log", "groups", "schedule"}
    assert all(text[0] == "{" or text[0] == "[" for text in metadata.values())


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    recipe = Recipe(steps=4, rate=0.05)
    fitted(recipe, folder=tmp_path, run={"data": "a"})
    with pytest.raises(ValueError, match="another run .data: a there, b here"):
        fitted(recipe, folder=tmp_path, run={"data": "b"})
    with pytest.raises(ValueError, match="another run .rate: 0.05 there, 0.04 here"):
        fitted(Recipe(steps=4, rate=0.04), folder=tmp_path, run={"data": "a"})
    fitted(Recipe(steps=4, rate=0.04), folder=tmp_path, run={"data": "b"}, resume=False)


@pytest.mark.parametrize("damage", ["cut", "other"])
def test_a_damaged_checkpoint_is_named(tmp_path, damage):
    fitted(Recipe(steps=4, rate=0.05), folder=tmp_path)
    file = tmp_path / CHECKPOINT
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-50])
    else:
        from safetensors.torch import save_file

        save_file({"a": torch.zeros(1)}, file)
    with pytest.raises(ValueError, match=CHECKPOINT):
        fitted(Recipe(steps=4, rate=0.05), folder=tmp_path)


# --- held-out losses


def scripted(losses: list[float]):
    remaining = iter(losses)
    return lambda: next(remaining)


def test_the_weights_of_the_lowest_held_out_loss_are_kept(tmp_path):
    recipe = Recipe(steps=8, rate=0.05)
    kept, log = fitted(
        recipe, folder=tmp_path, every=1, evaluate=scripted([9, 8, 5, 3, 4, 3, 6, 7, 8])
    )
    assert log.best_step == 3 and log.step == 8 and log.history[0] == (0, 9)
    model = a_model()  # the same, stopped at step 3
    with pytest.raises(Killed):
        fit(model, recipe, killed_at(3), error(model), progress=False)
    assert torch.equal(kept, state(model))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best-3.safetensors", CHECKPOINT]


def test_training_that_only_harms_leaves_the_base(tmp_path):
    kept, log = fitted(
        Recipe(steps=4, rate=0.05), folder=tmp_path, every=1, evaluate=scripted([1, 2, 3, 4, 5])
    )
    assert log.best_step == 0 and torch.equal(kept, state(a_model()))


def test_patience_stops_early_and_a_resumed_run_stops_there_too(tmp_path):
    recipe = Recipe(steps=20, rate=0.05)
    losses = [9, 8, 7, 7.5, 7.2, 7.1, 1, 1, 1, 1]
    kept, log = fitted(recipe, folder=tmp_path, every=2, evaluate=scripted(losses), patience=3)
    assert (log.step, log.best_step) == (10, 4)
    again, log = fitted(recipe, folder=tmp_path, every=2, evaluate=scripted([]), patience=3)
    assert torch.equal(again, kept) and log.step == 10


def test_best_weights_survive_a_kill_between_their_write_and_the_checkpoints(tmp_path, monkeypatch):
    recipe, losses = Recipe(steps=6, rate=0.05), [9, 5, 8, 4, 7, 7, 7]
    options = dict(folder=tmp_path, every=1)
    expected, _ = fitted(recipe, folder=tmp_path / "whole", every=1, evaluate=scripted(losses))
    replace = os.replace

    def killed(source, target):
        if "best-3" in str(target) or (replaced and target.name == CHECKPOINT):
            replaced.append(target)
            if len(replaced) == 2:
                raise Killed
        replace(source, target)

    replaced: list = []
    monkeypatch.setattr(os, "replace", killed)
    with pytest.raises(Killed):
        fitted(recipe, evaluate=scripted(losses), **options)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"best-1.safetensors", "best-3.safetensors", CHECKPOINT} <= names
    resumed, log = fitted(recipe, evaluate=scripted(losses[3:]), **options)
    assert torch.equal(resumed, expected) and log.best_step == 3


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path):
    model = a_model()
    with pytest.raises(RuntimeError, match="loss is nan at step 1: try a lower learning rate"):
        fit(
            model,
            Recipe(steps=4, rate=0.05),
            batches,
            lambda batch: model(batch[:, :6]).mean() * math.nan,
            folder=tmp_path,
            every=1,
            progress=False,
        )
    assert not list(tmp_path.iterdir())


# --- what surrounds it


def test_without_accelerate_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(ImportError, match=r'pip install "tastemaker\[train\]"'):
        fitted(Recipe(steps=4, rate=0.05))


def test_one_process_may_train_in_several_precisions_one_after_the_other():
    from accelerate.state import is_initialized

    results = {p: fitted(Recipe(steps=4, rate=0.05, precision=p))[0] for p in ("no", "bf16", "no")}
    assert not is_initialized()
    assert 0 < (results["no"] - results["bf16"]).abs().max() < 0.05
    assert results["bf16"].dtype == torch.float32


def test_a_state_of_accelerate_that_was_there_before_stays():
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, is_initialized

    Accelerator(cpu=True)
    try:
        fitted(Recipe(steps=4, rate=0.05))
        assert is_initialized()
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(steps=2), "at least 3 steps, got 2"),
        (dict(steps=0, schedule="cosine"), "at least 1 steps, got 0"),
        (dict(schedule="linear"), "schedule must be one of"),
        (dict(precision="fp16"), "precision must be one of"),
        (dict(accumulate=0), "accumulate must be at least 1"),
        (dict(rate=0.0), "rate must be positive"),
        (dict(rate=math.inf), "rate must be positive"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**{"steps": 5, "rate": 1.0, **settings})


def test_batches_that_end_too_early_are_an_error():
    model = a_model()
    with pytest.raises(ValueError, match="ended before the last step"):
        fit(model, Recipe(4, 0.1), lambda _: (b for b in [torch.ones(5, 7)] * 3), error(model))
