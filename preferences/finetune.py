"""Fine-tunes a whole scorer on comparisons: every weight of nano or JoyQuality, not the head alone.

For thousands of comparisons; a head on frozen features (`train` without `full`) learns more from few.
The loss is Bradley-Terry's with soft labels, -p log q - (1 - p) log (1 - q), q the sigmoid of the
left score minus the right one; a tie is p = 1/2. The recipe is that of JoyQuality's own base run
(https://github.com/fpgaminer/joyquality) unless told otherwise.

Nano sees every picture whole at its own size, pictures of one size together; JoyQuality sees its
square. Which comparisons a step sees depends on the seed and the step alone.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..scorers.base import Scorer
from ..scorers.joyquality import JoyQuality
from ..scorers.joyquality_save import hub_checkpoint
from ..scorers.load import load_scorer
from ..scorers.nano import NanoScorer
from ..scorers.personal_files import (
    TRAINING,
    clear_training,
    is_unfinished,
    write_trained_on,
    write_tuned,
)
from .batches import batch_loss, batches, held_out_loss, scores_of_files
from .comparisons import Comparisons
from .destination import check_free
from .embeddings import contents_of
from .entries import calibration_entry, data_entry, digest
from .evaluation import card_metrics
from .trainer import Log, Recipe, fit

RATES = {NanoScorer: 1e-3, JoyQuality: 2e-5}
EPOCHS = 3


@dataclass(frozen=True)
class Finetuned:
    """What came out: the scorer, loaded from `folder`; its log (steps, held-out losses); its card's
    `base`, `data`, `metrics`, `calibration` and `training`, as they are in config.json."""

    scorer: Scorer
    folder: Path
    log: Log
    said: Mapping[str, Any]


def finetune(
    scorer: Scorer,
    train: Comparisons,
    test: Comparisons | None,
    out: str | Path,
    *,
    name: str | None = None,
    steps: int | None = None,
    epochs: float | None = None,
    rate: float | None = None,
    weight_decay: float = 0.01,
    batch: int = 8,
    accumulate: int = 8,
    schedule: str = "one-cycle",
    precision: str = "auto",
    gradient_checkpointing: bool = False,
    patience: int | None = None,
    checkpoint_every: int | None = None,
    resume: bool = True,
    overwrite: bool = False,
    seed: int = 0,
    learned: Collection[bytes] = (),
    progress: bool = True,
) -> Finetuned:
    """Trains a copy of `scorer` and writes it to `out`, a folder that `load_scorer` opens.

    While it trains, checkpoints lie in `out/training`; a run that was killed goes on from there and
    comes to the same result. A scorer that it replaces stays until the new one is whole.

    Args:
        scorer: nano, or a JoyQuality of any size, on the device to train on.
        test: comparisons to hold out. With them, the weights with the lowest held-out loss are kept;
            without, the last ones.
        name: what the card calls it; by default the folder's name.
        steps: steps of the optimiser, each on `batch * accumulate` comparisons; or `epochs`, how
            often each comparison is seen (by default 3).
        rate: the highest learning rate; by default 2e-5 for JoyQuality, 1e-3 for nano.
        batch: comparisons in memory at a time.
        accumulate: such batches a step.
        schedule: "one-cycle" or "cosine".
        precision: "bf16" (matrix products in bfloat16; weights and losses stay float32), "no" for
            float32, or "auto": bf16 on a GPU.
        gradient_checkpointing: recompute the tower's layers in the backward pass (JoyQuality): far
            less memory, about a third more time.
        patience: stop after so many held-out losses without a new lowest.
        checkpoint_every: steps between checkpoints and held-out losses; by default a tenth of all.
        resume: go on from what a killed run left in `out`; False starts anew.
        overwrite: replace the scorer that training wrote to `out` before, or a killed run with other
            settings; one with the same goes on.
        learned: the hashes of what `scorer` itself was trained on: `read_trained_on(folder)`.

    Raises:
        TypeError: a scorer that is not trained whole; the message says what to do instead.
        ValueError: settings that do not fit; no comparisons; a checkpoint of another run.
        FileNotFoundError: images that are missing.
        FileExistsError: `out` holds something already.
        ImportError: accelerate is not installed.
    """
    out = Path(out)
    _check(scorer, train, test, batch, accumulate, patience)
    check_free(out, overwrite or is_unfinished(out))
    recipe = Recipe(
        steps=_steps(len(train), batch * accumulate, steps, epochs),
        rate=RATES[type(scorer)] if rate is None else rate,
        weight_decay=weight_decay,
        schedule=schedule,
        accumulate=accumulate,
        precision=_precision(precision, scorer.device),
    )
    if not resume:
        clear_training(out)
    total = recipe.steps * recipe.accumulate
    with torch.inference_mode(False), torch.enable_grad():
        model = _trainable(scorer, gradient_checkpointing)
        with float32_heads(model):
            log = fit(
                model,
                recipe,
                lambda first: batches(train, model, batch, seed, range(first, total)),
                partial(batch_loss, model),
                folder=out / TRAINING,
                run=_run(scorer, train, test, batch, seed),
                every=checkpoint_every,
                evaluate=partial(held_out_loss, model, test, 2 * batch) if test else None,
                patience=patience,
                overwrite=overwrite,
                progress=progress,
            )
        said = {
            "name": name or out.absolute().name,
            "base": {"name": scorer.card.name, "fingerprint": scorer.card.fingerprint_id},
            "data": data_entry(scorer, train, test),
            **({} if test is None else _measured(scorer, model, test, 2 * batch)),
            "training": {**asdict(recipe), "batch": batch, "seed": seed, "log": asdict(log)},
            "trained_on": write_trained_on(out, {*learned, *contents_of(scorer, train.images)}),
        }
    save_scorer(model, out, said)
    return Finetuned(load_scorer(out, device=scorer.device, dtype="float32"), out, log, said)


def save_scorer(scorer: NanoScorer | JoyQuality, folder: Path, said: Mapping[str, Any]) -> None:
    """The folder of a scorer's own kind; `said` is what `scorers.tuned` makes its card of. What is left
    of training is removed."""
    if isinstance(scorer, JoyQuality):
        config, state = hub_checkpoint(scorer)
    else:
        config, state = scorer.config, scorer.state_dict()
    write_tuned(folder, {**config, "personal": dict(said)}, state)


def _measured(base: Scorer, model: Scorer, test: Comparisons, together: int) -> dict[str, Any]:
    """Metrics of the held-out comparisons, of the base too, and the calibration for ranks."""
    scores = [scores_of_files(scorer, test.images, together) for scorer in (base, model)]
    before, after = (_metrics(each, test) for each in scores)
    metrics = {"held_out": after, "base": before}
    return {"metrics": metrics, "calibration": calibration_entry(scores[1], test)}


def _metrics(scores: Tensor, test: Comparisons) -> dict[str, Any]:
    left, right = scores[test.pairs].unbind(1)
    return card_metrics((left - right).numpy(), test.p.numpy(), test.pairs.numpy())


@contextmanager
def float32_heads(scorer: Scorer) -> Iterator[None]:
    """What makes the scores out of the features computes in float32 under autocast too.

    bfloat16 scores would have three digits, and near ties no difference.
    """
    modules = [getattr(scorer, name) for name in ("pool", "neck", "head") if hasattr(scorer, name)]
    for module in modules:
        module.forward = _outside_autocast(module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward  # the class's own shows again


def _outside_autocast(forward: Any) -> Any:
    def wide(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return wide


def _trainable(scorer: Scorer, gradient_checkpointing: bool) -> Scorer:
    """A float32 copy whose weights take gradients."""
    model = copy.deepcopy(scorer).float().requires_grad_(True)
    if isinstance(model, JoyQuality):
        model.gradient_checkpointing = gradient_checkpointing
    elif gradient_checkpointing:
        raise ValueError("nano has no layers to recompute: gradient_checkpointing is JoyQuality's")
    return model


def _check(
    scorer: Scorer,
    train: Comparisons,
    test: Comparisons | None,
    batch: int,
    accumulate: int,
    patience: int | None,
) -> None:
    if type(scorer) not in RATES:
        raise TypeError(
            f"{scorer.card.name} is not trained whole (nano and JoyQuality are): train a head on it, "
            "`tastemaker train PAIRS --base ...` without --full"
        )
    if scorer.kernels != "torch":
        raise TypeError("a compiled scorer is not trained: load it without compiling it")
    if not len(train):
        raise ValueError("no comparisons to train on")
    if patience is not None and not test:
        raise ValueError("patience needs comparisons to hold out")
    for name, value in (("batch", batch), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    images = [*train.images, *(test.images if test else ())]
    missing = [str(path) for path in images if not path.exists()]
    if missing:
        raise FileNotFoundError(f"{len(missing)} images are missing: {', '.join(missing[:3])}")


def _steps(total: int, a_step: int, steps: int | None, epochs: float | None) -> int:
    if steps is not None and epochs is not None:
        raise ValueError("give steps or epochs, not both")
    if steps is not None:
        return steps
    return max(3, round((EPOCHS if epochs is None else epochs) * total / a_step))


def _precision(precision: str, device: torch.device) -> str:
    if precision != "auto":
        return precision
    return "bf16" if device.type in ("cuda", "xpu") else "no"


def _run(
    scorer: Scorer, train: Comparisons, test: Comparisons | None, batch: int, seed: int
) -> dict[str, str]:
    """What decides the result beside the recipe; a checkpoint of another run is refused."""
    return {
        "base": scorer.card.fingerprint_id,
        "train": digest(scorer, train),
        "test": digest(scorer, test) if test else "",
        "batch": str(batch),
        "seed": str(seed),
    }
