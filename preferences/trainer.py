"""The loop that fits weights: AdamW under a schedule, with checkpoints that survive a kill.

Built on accelerate (`pip install "tastemaker[train]"`): precision, accumulation and clipping are its.
accelerate's own checkpoints are pickles, so a checkpoint here is one safetensors file: weights,
optimiser and random state as tensors, the rest as JSON. `finetune` and the script that made the
embedded nano run on this loop.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, OneCycleLR
from tqdm.auto import tqdm

from ..scorers.base import differences
from ..scorers.checkpoint import load_exactly, read_weights, write_safetensors
from ..scorers.messages import needs

CHECKPOINT = "checkpoint.safetensors"
SCHEDULES = ("one-cycle", "cosine")
PRECISIONS = ("no", "bf16")


@dataclass(frozen=True)
class Recipe:
    """How weights are fitted.

    Attributes:
        steps: steps of the optimiser.
        rate: the highest learning rate.
        schedule: "one-cycle" (torch's, which moves the first beta against the rate) or "cosine".
        rise: the share of the steps in which the rate rises.
        accumulate: batches whose gradients are averaged for one step.
        precision: "no" for float32, "bf16" for bfloat16 matrix products by autocast.
        clip: the largest norm of a step's gradient.
    """

    steps: int
    rate: float
    weight_decay: float = 0.01
    schedule: str = "one-cycle"
    rise: float = 0.3
    accumulate: int = 1
    precision: str = "no"
    clip: float = 1.0

    def __post_init__(self):
        for name, known in (("schedule", SCHEDULES), ("precision", PRECISIONS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        least = 3 if self.schedule == "one-cycle" else 1  # a rise and a fall
        if self.steps < least:
            raise ValueError(f"{self.schedule} needs at least {least} steps, got {self.steps}")
        if self.accumulate < 1:
            raise ValueError(f"accumulate must be at least 1, got {self.accumulate}")
        if not (self.rate > 0 and math.isfinite(self.rate)):
            raise ValueError(f"the learning rate must be positive, got {self.rate}")


@dataclass
class Log:
    """What has happened so far.

    Attributes:
        step: steps done.
        loss: a running mean of the training loss.
        seconds: how long these steps took, evaluations included.
        history: (step, held-out loss) of every evaluation; the first is before the first step.
    """

    step: int = 0
    loss: float = math.nan
    seconds: float = 0.0
    history: list[tuple[int, float]] = field(default_factory=list)

    @property
    def best_step(self) -> int | None:
        """The step with the lowest held-out loss, the first of equals; None without evaluations."""
        finite = [(loss, step) for step, loss in self.history if math.isfinite(loss)]
        return min(finite)[1] if finite else None

    def out_of(self, patience: int | None) -> bool:
        """Whether the last `patience` evaluations were all no better than one before them."""
        if patience is None or len(self.history) <= patience:
            return False
        return self.best_step not in [step for step, _ in self.history[-patience:]]


def fit(
    model: nn.Module,
    recipe: Recipe,
    batches: Callable[[int], Generator[Any, None, None]],
    loss: Callable[[Any], Tensor],
    *,
    folder: Path | None = None,
    run: Mapping[str, str] | None = None,
    every: int | None = None,
    evaluate: Callable[[], float] | None = None,
    patience: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    progress: bool = True,
) -> Log:
    """Fits the weights of `model` that require a gradient, in place.

    Args:
        batches: `batches(first)` generates batches from number `first` on; a batch must depend on
            its number alone, or a resumed run is another run.
        loss: a batch to its mean loss, a scalar with a gradient; runs under autocast.
        folder: where checkpoints go; None writes none.
        run: what else decides the result (data, base, seed); a checkpoint of another run is refused.
        every: steps between checkpoints, at which `evaluate` is called; by default a tenth of all.
        evaluate: the held-out loss. With it, the weights of the lowest one are what is left in
            `model`, and `folder` is needed.
        patience: stops after so many evaluations without a new lowest.
        resume: go on from the checkpoint in `folder`, if there is one.
        overwrite: start anew where that one is damaged or of another run.

    Raises:
        ImportError: accelerate is not installed; the message says how.
        ValueError: the checkpoint is damaged or of another run, and is not to be overwritten.
        RuntimeError: the loss is not finite any more.
    """
    if evaluate and not folder:
        raise ValueError("evaluate needs a folder, where the best weights are kept")
    device = next(model.parameters()).device
    every = every or max(1, recipe.steps // 10)
    with _accelerator(device, recipe) as accelerator:
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, recipe.rate, weight_decay=recipe.weight_decay)
        schedule = make_schedule(optimizer, recipe)
        checkpoints = Checkpoints(model, optimizer, schedule, recipe, run or {}, folder)
        log = checkpoints.restore(overwrite) if resume else Log()
        step = _stepper(accelerator, model, optimizer, schedule, recipe, loss)
        started = time.monotonic() - log.seconds

        def checkpoint() -> None:
            if evaluate:
                with torch.no_grad(), accelerator.autocast():
                    log.history.append((log.step, evaluate()))
            log.seconds = time.monotonic() - started
            checkpoints.save(log)

        if evaluate and not log.history:
            checkpoint()
        bar = tqdm(total=recipe.steps, initial=log.step, unit="step", disable=not progress)
        with bar, closing(batches(log.step * recipe.accumulate)) as stream:
            while log.step < recipe.steps and not log.out_of(patience):
                _note(log, step(stream), bar)
                if log.step % every == 0 or log.step == recipe.steps:
                    checkpoint()
    if evaluate:
        checkpoints.restore_best(log)
    return log


def _stepper(
    accelerator: Any,
    model: nn.Module,
    optimizer: Optimizer,
    schedule: LRScheduler,
    recipe: Recipe,
    loss: Callable[[Any], Tensor],
) -> Callable[[Iterator[Any]], float]:
    """A function that takes one step on the next batches of a stream and returns their mean loss."""
    optimizer, schedule = accelerator.prepare(optimizer, schedule)

    def step(stream: Iterator[Any]) -> float:
        values = []
        for batch in islice(stream, recipe.accumulate):
            with accelerator.accumulate(model):
                with accelerator.autocast():
                    value = loss(batch)
                accelerator.backward(value)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), recipe.clip)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            values.append(value.detach())
        if len(values) < recipe.accumulate:
            raise ValueError("the batches ended before the last step")
        return torch.stack(values).mean().item()

    return step


def _note(log: Log, value: float, bar: tqdm) -> None:
    """Counts a step of this loss."""
    log.step += 1
    if not math.isfinite(value):
        raise RuntimeError(f"the loss is {value} at step {log.step}: try a lower learning rate")
    log.loss = value if math.isnan(log.loss) else 0.98 * log.loss + 0.02 * value
    held_out = f", held out {log.history[-1][1]:.4f}" if log.history else ""
    bar.set_postfix_str(f"loss {log.loss:.4f}{held_out}", refresh=False)
    bar.update()


def make_schedule(optimizer: Optimizer, recipe: Recipe) -> LRScheduler:
    """The learning rate of every step, rising to `recipe.rate` and falling to (nearly) 0."""
    steps, rise = recipe.steps, recipe.rise
    if recipe.schedule == "one-cycle":
        # torch divides by the length of each phase less one.
        rise = min(max(rise, 2 / steps), 1 - 1 / steps)
        return OneCycleLR(optimizer, recipe.rate, steps, pct_start=rise)
    warm = max(1, round(rise * steps))

    def factor(step: int) -> float:
        if step < warm:
            return (step + 1) / warm
        return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))

    return LambdaLR(optimizer, factor)


@contextmanager
def _accelerator(device: torch.device, recipe: Recipe) -> Iterator[Any]:
    """accelerate for this run. Its state is the process's own: one that we made is taken down again."""
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState, is_initialized
    except ImportError:
        raise needs("training needs accelerate", "accelerate", "train") from None
    ours = not is_initialized()
    try:
        accelerator = Accelerator(
            mixed_precision=recipe.precision,
            gradient_accumulation_steps=recipe.accumulate,
            device_placement=False,  # the model lies where its loader put it
            cpu=device.type == "cpu",
        )
        if accelerator.num_processes > 1:
            raise ValueError(f"one process trains, {accelerator.num_processes} were launched")
        yield accelerator
    finally:
        if ours:
            AcceleratorState._reset_state(reset_partial_state=True)


class Checkpoints:
    """The state of a run on disk: `checkpoint.safetensors`, and beside it the best weights so far.

    The best weights are a file of their own, named by their step, which is written before and removed
    after the checkpoint that speaks of them: at whatever moment the process is killed, the checkpoint
    in the folder and the best weights that it means are whole.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        schedule: LRScheduler,
        recipe: Recipe,
        run: Mapping[str, str],
        folder: Path | None,
    ):
        self.model, self.optimizer, self.schedule = model, optimizer, schedule
        self.folder = folder
        self.run = {**{name: str(value) for name, value in asdict(recipe).items()}, **run}

    def save(self, log: Log) -> None:
        """Writes the checkpoint, whole or not at all; and the weights, if none were better so far."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        if log.best_step == log.step:
            _write(self._best(log.step), self.model.state_dict(), {})
        state = self.optimizer.state_dict()
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        for index, values in state["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        values = {
            "run": self.run,
            "log": asdict(log),
            "groups": state["param_groups"],
            "schedule": self.schedule.state_dict(),
        }
        _write(self.folder / CHECKPOINT, tensors | _random_state(), values)
        for old in self.folder.glob("best-*.safetensors"):
            if old != self._best(log.best_step):
                old.unlink()

    def restore(self, overwrite: bool = False) -> Log:
        """The state of the checkpoint in the folder, put back; a fresh log when there is none, or one
        to be overwritten that is not of this run."""
        if self.folder is None or not (self.folder / CHECKPOINT).exists():
            return Log()
        for cut_off in self.folder.glob(".*.tmp"):  # what a killed process was writing
            cut_off.unlink()
        try:
            tensors, values = self._own()
        except ValueError:
            if overwrite:
                return Log()
            raise
        model = {k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")}
        load_exactly(self.model, model, self.folder / CHECKPOINT)
        state: dict[int, dict[str, Tensor]] = {}
        for name in tensors:
            if name.startswith("optimizer."):
                _, index, part = name.split(".")
                state.setdefault(int(index), {})[part] = tensors[name]
        self.optimizer.load_state_dict({"state": state, "param_groups": values["groups"]})
        self.schedule.load_state_dict(values["schedule"])
        _set_random_state(tensors)
        log = values["log"]
        return Log(**{**log, "history": [(step, loss) for step, loss in log["history"]]})

    def _own(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What the checkpoint holds; ValueError if it is damaged or of another run."""
        tensors, values = _read(self.folder / CHECKPOINT)
        if different := differences(values["run"], self.run):
            raise ValueError(
                f"{self.folder} holds a checkpoint of another run ({different}): give the same "
                "settings, overwrite it, or name another folder"
            )
        return tensors, values

    def restore_best(self, log: Log) -> None:
        """Puts back the weights with the lowest held-out loss."""
        if log.best_step is None:
            raise RuntimeError("no held-out loss was finite: try a lower learning rate")
        if log.best_step != log.step:
            best = self._best(log.best_step)
            load_exactly(self.model, read_weights([best]), best)

    def _best(self, step: int | None) -> Path:
        return self.folder / f"best-{step}.safetensors"


def _write(path: Path, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
    write_safetensors(path, tensors, {name: json.dumps(value) for name, value in values.items()})


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = read_weights([path])
    try:
        with safe_open(path, framework="pt") as file:
            values = {name: json.loads(text) for name, text in (file.metadata() or {}).items()}
        return tensors, {name: values[name] for name in ("run", "log", "groups", "schedule")}
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"not a checkpoint of a training run: {path} ({error!r})") from None


def _random_state() -> dict[str, Tensor]:
    cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
    state = {"random.cpu": torch.get_rng_state()}
    return state | ({"random.cuda": torch.cuda.get_rng_state()} if cuda else {})


def _set_random_state(tensors: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
