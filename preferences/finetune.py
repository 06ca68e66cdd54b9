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
import hashlib
import json
import shutil
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import tee
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..scorers.base import Scorer
from ..scorers.checkpoint import write_checkpoint
from ..scorers.joyquality import JoyQuality
from ..scorers.joyquality_save import hub_checkpoint
from ..scorers.load import load_scorer
from ..scorers.nano import NanoScorer
from ..scorers.stream import decode_ahead
from .comparisons import Comparisons
from .trainer import Log, Recipe, fit

CHECKPOINTS = "training"  # folder below the result's, gone when training is done
RATES = {NanoScorer: 1e-3, JoyQuality: 2e-5}
EPOCHS = 3


@dataclass(frozen=True)
class Finetuned:
    """What came out: the scorer, loaded from `folder`, and its log (steps, held-out losses)."""

    scorer: Scorer
    folder: Path
    log: Log


class Batch(NamedTuple):
    """Comparisons and the pictures that they compare, each once."""

    pictures: list[Tensor]  # uint8 [3, H, W]
    pairs: Tensor  # int64 [b, 2], indices into `pictures`: left, right
    p: Tensor  # float32 [b]


def finetune(
    scorer: Scorer,
    train: Comparisons,
    test: Comparisons | None,
    out: str | Path,
    *,
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
    seed: int = 0,
    progress: bool = True,
) -> Finetuned:
    """Trains a copy of `scorer` and writes it to `out`, a folder that `load_scorer` opens.

    While it trains, checkpoints lie in `out/training`; a run that was killed goes on from there and
    comes to the same result.

    Args:
        scorer: nano, or a JoyQuality of any size, on the device to train on.
        test: comparisons to hold out. With them, the weights with the lowest held-out loss are kept;
            without, the last ones.
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

    Raises:
        TypeError: a scorer that is not trained whole; the message says what to do instead.
        ValueError: settings that do not fit; no comparisons; a checkpoint of another run.
        FileNotFoundError: images that are missing.
        ImportError: accelerate is not installed.
    """
    _check(scorer, train, test, patience)
    for name, value in (("batch", batch), ("accumulate", accumulate)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    recipe = Recipe(
        steps=_steps(len(train), batch * accumulate, steps, epochs),
        rate=RATES[type(scorer)] if rate is None else rate,
        weight_decay=weight_decay,
        schedule=schedule,
        accumulate=accumulate,
        precision=_precision(precision, scorer.device),
    )
    out = Path(out)
    if not resume:
        shutil.rmtree(out / CHECKPOINTS, ignore_errors=True)
    with torch.inference_mode(False), torch.enable_grad():
        model = _trainable(scorer, gradient_checkpointing)
        with float32_heads(model):
            log = fit(
                model,
                recipe,
                partial(batches, train, model, batch, recipe, seed),
                partial(batch_loss, model),
                folder=out / CHECKPOINTS,
                run=_run(scorer, train, test, batch, seed),
                every=checkpoint_every,
                evaluate=partial(held_out_loss, model, test, 2 * batch) if test else None,
                patience=patience,
                progress=progress,
            )
    save_scorer(model, out)
    shutil.rmtree(out / CHECKPOINTS)
    return Finetuned(load_scorer(out, device=scorer.device, dtype="float32"), out, log)


def comparison_loss(difference: Tensor, p: Tensor) -> Tensor:
    """Bradley-Terry's negative log likelihood of each comparison, in nats.

    Args:
        difference: [P] left score minus right score.
        p: [P] probability that the left one is preferred.
    """
    return p * F.softplus(-difference) + (1 - p) * F.softplus(difference)


def batch_loss(scorer: Scorer, batch: Batch) -> Tensor:
    """The mean loss of a batch's comparisons, float32."""
    left, right = scores_of(scorer, batch.pictures)[batch.pairs.to(scorer.device)].unbind(1)
    return comparison_loss(left - right, batch.p.to(scorer.device)).mean()


def scores_of(scorer: Scorer, pictures: list[Tensor]) -> Tensor:
    """Pictures [3, H, W] of any sizes to scores [N] float32 with gradients into the weights.

    Those of which the model sees one size are scored together.
    """
    groups: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, picture in enumerate(pictures):
        groups[scorer.input_size(*picture.shape[1:])].append(i)
    order, scores = [], []
    for indices in groups.values():
        with torch.autocast(scorer.device.type, enabled=False):  # resizing is exact, in float32
            prepared = [scorer.prepare(pictures[i][None].to(scorer.device)) for i in indices]
        scores.append(scorer.score_prepared(torch.cat(prepared)))
        order += indices
    return torch.cat(scores)[torch.tensor(order).argsort().to(scorer.device)]


def held_out_loss(scorer: Scorer, test: Comparisons, together: int) -> float:
    """The mean loss of the test comparisons; each of their images is scored once."""
    scores = []
    stream = decode_ahead(test.images, scorer)
    for first in range(0, len(test.images), together):
        count = min(together, len(test.images) - first)
        scores.append(scores_of(scorer, [_picture(stream) for _ in range(count)]).cpu())
    left, right = torch.cat(scores).double()[test.pairs].unbind(1)
    return comparison_loss(left - right, test.p).mean().item()


def batches(
    train: Comparisons, scorer: Scorer, batch: int, recipe: Recipe, seed: int, first: int
) -> Iterator[Batch]:
    """The batches of a run from number `first` on, their pictures decoded ahead."""
    numbers = range(first, recipe.steps * recipe.accumulate)
    plans, ahead = tee(_plan(train, batch, seed, number) for number in numbers)
    stream = decode_ahead((path for paths, _, _ in ahead for path in paths), scorer)
    for paths, pairs, p in plans:
        yield Batch([_picture(stream) for _ in paths], pairs, p)


def _plan(
    train: Comparisons, batch: int, seed: int, number: int
) -> tuple[list[Path], Tensor, Tensor]:
    """The images, pairs and p of one batch."""
    chosen = torch.from_numpy(order(len(train), number * batch, batch, seed))
    used, pairs = train.pairs[chosen].unique(return_inverse=True)
    return [train.images[i] for i in used.tolist()], pairs, train.p[chosen].float()


def order(total: int, first: int, count: int, seed: int) -> np.ndarray:
    """Which of `total` comparisons come at positions `first` to `first + count`, int64 [count].

    Every pass over the comparisons is in another order, which depends on the seed and the pass alone.
    """
    positions = np.arange(first, first + count)
    passes, places = np.divmod(positions, total)
    orders = {n: np.random.default_rng([seed, n]).permutation(total) for n in set(passes.tolist())}
    return np.array([orders[n][place] for n, place in zip(passes, places, strict=True)])


def save_scorer(scorer: NanoScorer | JoyQuality, folder: Path) -> None:
    """The folder of a scorer's own kind: config.json and model.safetensors."""
    if isinstance(scorer, JoyQuality):
        write_checkpoint(folder, *hub_checkpoint(scorer))
    else:
        write_checkpoint(folder, scorer.config, scorer.state_dict())


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


def _picture(stream: Iterator[tuple[Any, Tensor | Exception]]) -> Tensor:
    _, picture = next(stream)
    if isinstance(picture, Exception):
        raise picture
    return picture


def _trainable(scorer: Scorer, gradient_checkpointing: bool) -> Scorer:
    """A float32 copy whose weights take gradients."""
    model = copy.deepcopy(scorer).float().requires_grad_(True)
    if isinstance(model, JoyQuality):
        model.gradient_checkpointing = gradient_checkpointing
    elif gradient_checkpointing:
        raise ValueError("nano has no layers to recompute: gradient_checkpointing is JoyQuality's")
    return model


def _check(
    scorer: Scorer, train: Comparisons, test: Comparisons | None, patience: int | None
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
        "train": _digest(train),
        "test": _digest(test) if test else "",
        "batch": str(batch),
        "seed": str(seed),
    }


def _digest(comparisons: Comparisons) -> str:
    """16 hex digits that stand for comparisons and the images' names and sizes in bytes."""
    images = [(str(path), path.stat().st_size) for path in comparisons.images]
    listed = [images, comparisons.pairs.tolist(), comparisons.p.tolist()]
    return hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16]
