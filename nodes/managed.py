"""Scorers as citizens of ComfyUI's memory: loaded beside the other models, evicted with them.

The weights lie where ComfyUI puts what is not in use, and are moved by its own memory manager, which
is told how much a pass takes. Nothing is ever unloaded by force.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch
from comfy.patcher_extension import CallbacksMP
from torch import Tensor, nn

from ..guidance.rewards import rate, reads_prompts
from ..scorers import Scorer, ScorerCard, load_scorer
from ..scorers.base import unit_range
from ..scorers.ensemble import Ensemble
from ..scorers.working_memory import working_memory
from .images import singles, to_pixels
from .sockets import Scores

log = logging.getLogger(__name__)

# Part of the device that a batch may take beside the weights.
SHARE = 0.8


class Module(nn.Module):
    """A plain module around a scorer: the memory manager writes attributes that a scorer computes."""

    def __init__(self, scorer: Scorer):
        super().__init__()
        self.scorer = scorer

    @classmethod
    def around(cls, scorer: Scorer) -> Module:
        # Under the scorer's name: that of the class is what ComfyUI's log calls it.
        return type(scorer.card.name, (cls,), {})(scorer)


class Weights:
    """One checkpoint, held once however often it is asked for.

    It lives as long as a node's output refers to it, or ComfyUI keeps it on the device.
    """

    def __init__(self, scorer: Scorer):
        self.scorer = scorer
        self.until_collected: Weights | None = None
        # Looked up at call time: ComfyUI replaces the class when it manages memory dynamically.
        self.patcher = comfy.model_patcher.CoreModelPatcher(
            Module.around(scorer),
            load_device=mm.get_torch_device(),
            offload_device=mm.text_encoder_offload_device(),
        )
        this = weakref.ref(self)
        self.patcher.add_callback(CallbacksMP.ON_DETACH, lambda *_: Weights._detached(this()))

    def keep(self) -> None:
        """To be called when it has been loaded."""
        self.until_collected = None
        _on_device.add(self)

    def _detached(self: Weights | None) -> None:
        if self is not None and self in _on_device:
            # It must not vanish here: ComfyUI is going through its list of models, from which freed
            # ones are struck. In a cycle, it waits for the collector, which ComfyUI calls afterwards.
            self.until_collected = self
            _on_device.discard(self)


_known: weakref.WeakValueDictionary[tuple, Weights] = weakref.WeakValueDictionary()
_on_device: set[Weights] = set()
_lock = threading.Lock()


class ManagedScorer:
    """What a SCORER wire carries. `scorer` may be used on the device between `load` and the next node.

    Args:
        scorer: a scorer, or an ensemble of several.
        weights: all that it consists of.
    """

    def __init__(self, scorer: Scorer, weights: Sequence[Weights]):
        self.scorer = scorer
        self.weights = tuple(weights)

    @property
    def card(self) -> ScorerCard:
        return self.scorer.card

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self.weights[0].patcher.load_device

    def load(self, memory: int = 0) -> Scorer:
        """The scorer on its device, `memory` bytes free beside it; its weights can give a gradient."""
        # Weights that are made or moved under inference mode can never again take part in autograd.
        with torch.inference_mode(False):
            for part in self.weights:
                make_normal(part.patcher.model)
            patchers = [part.patcher for part in self.weights]
            # In full: of modules that are not its own, ComfyUI would leave behind what does not fit.
            mm.load_models_gpu(patchers, memory_required=memory, force_full_load=True)
            for part in self.weights:
                make_normal(part.patcher.model)
        for part in self.weights:
            part.keep()
        return self.scorer

    def loaded(self) -> None:
        """To be called when others have loaded it beside their own models, before it is used.

        RuntimeError where ComfyUI left behind what does not fit: it cannot run on two devices.
        """
        for part in self.weights:
            found = {weight.device.type for weight in part.patcher.model.parameters()}
            if found != {self.device.type}:
                raise RuntimeError(
                    f"{self.card.name} does not fit on the {self.device.type} device beside the "
                    "model that samples: use a smaller scorer, such as nano"
                )
        for part in self.weights:
            part.keep()

    def score(self, images: Sequence[Tensor], prompt: str = "") -> Scores:
        """IMAGE batches [b, H, W, C], sizes mixed, to the scores of all their pictures in order.

        A prompt is what all of them were to show, for scorers that read it; then, they are of one
        size.

        A picture that is not finite, or that cannot be scored, gets NaN. Shows progress; stops within
        a batch when it is interrupted.
        """
        pictures = singles(images)
        values = torch.full((len(pictures),), torch.nan)
        if not pictures:
            return Scores(values, self.card)
        largest = max((p.shape[0] * p.shape[1], tuple(p.shape[:2])) for p in pictures)[1]
        batch, memory = self.plan(min(len(pictures), self.scorer.default_batch_size), *largest)
        scorer = self.load(memory)
        errors: dict[int, str] = {}
        for indices in _steps(len(pictures), batch):
            pixels = {i: to_pixels(pictures[i]) for i in indices}
            errors |= {i: "it has pixels that are not finite" for i in indices if pixels[i] is None}
            usable = [i for i in indices if pixels[i] is not None]
            scored = _scored(scorer, [pixels[i] for i in usable], batch, prompt)
            for i, (score, error) in zip(usable, scored, strict=True):
                values[i] = score
                errors |= {i: error} if error else {}
        if errors:
            log.warning(_complaint(errors, len(pictures)))
        return Scores(values, self.card)

    def score_video(self, frames: Tensor) -> Scores:
        """IMAGE frames [T, H, W, C] of one video to its one score, NaN if a frame is not finite."""
        pixels = [to_pixels(frame) for frame in singles([frames])]
        if not pixels or any(frame is None for frame in pixels):
            log.warning("the video has no score: a frame is not finite, or there is none")
            return Scores(torch.tensor([torch.nan]), self.card)
        mm.throw_exception_if_processing_interrupted()
        height, width = pixels[0].shape[1:]
        scorer = self.load(working_memory(self.scorer, len(pixels), height, width))
        video = torch.stack(pixels)[None].to(self.device)
        with torch.inference_mode():
            return Scores(scorer.score_video(video).cpu(), self.card)

    def plan(self, batch: int, height: int, width: int) -> tuple[int, int]:
        """The largest batch up to `batch` that the device can hold, and the bytes that it takes."""
        weights = sum(part.patcher.model_size() for part in self.weights)
        budget = SHARE * (mm.get_total_memory(self.device) - weights)
        while (memory := working_memory(self.scorer, batch, height, width)) > budget and batch > 1:
            batch = (batch + 1) // 2
        return batch, memory


def managed(
    name: str | Path, signature: tuple, *, task: str, dtype: str, **options: Any
) -> ManagedScorer:
    """The scorer of a name or path, its weights shared with whoever asked for the same before.

    Args:
        signature: changes when the files do.
        task, dtype, options: as `load_scorer` takes them; the task does not need weights of its own.
    """
    if dtype == "auto":
        dtype = "float32" if mm.is_device_cpu(mm.get_torch_device()) else "checkpoint"
    key = (str(name), signature, dtype, *sorted(options.items()))
    offload = mm.text_encoder_offload_device()
    weights = shared(key, lambda: load_scorer(name, device=offload, dtype=dtype, **options))
    return ManagedScorer(weights.scorer.with_task(task), [weights])


def shared(key: tuple, load: Callable[[], Scorer]) -> Weights:
    """The weights that are known under this key; loaded where they are not."""
    with _lock:
        weights = _known.get(key)
        if weights is None:
            with torch.inference_mode(False):
                weights = _known[key] = Weights(load())
    return weights


def make_normal(module: nn.Module) -> None:
    """Replaces weights that were made under inference mode by copies that autograd can use."""
    for part in module.modules():
        for name, weight in part._parameters.items():
            if weight is not None and weight.is_inference():
                part._parameters[name] = nn.Parameter(weight.clone(), requires_grad=False)
        for name, buffer in part._buffers.items():
            if buffer is not None and buffer.is_inference():
                part._buffers[name] = buffer.clone()


def heeds_prompts(scorer: Scorer) -> bool:
    """Whether its score depends on a prompt. That of ours does not, though all take one."""
    if isinstance(scorer, Ensemble):
        return any(heeds_prompts(member) for member in scorer.members)
    return type(scorer).forward is not Scorer.forward and reads_prompts(scorer)


def _scored(
    scorer: Scorer, pixels: list[Tensor], batch: int, prompt: str
) -> Iterator[tuple[float, str | None]]:
    """8-bit pictures [3, H, W] to scores, and why one has none."""
    if not (prompt and pixels and heeds_prompts(scorer)):
        for _, score, error, _ in scorer.score_iter(pixels, batch_size=batch):
            yield score, error
        return
    images = unit_range(torch.stack(pixels).to(scorer.device))
    for score in rate(scorer, images, [prompt] * len(images)).tolist():
        yield score, None


def _steps(count: int, batch: int) -> Iterator[range]:
    """Ranges of at most `batch`; progress is shown after each, an interrupt is heard before."""
    bar = comfy.utils.ProgressBar(count)
    for start in range(0, count, batch):
        mm.throw_exception_if_processing_interrupted()
        indices = range(start, min(start + batch, count))
        yield indices
        bar.update(len(indices))


def _complaint(errors: dict[int, str], count: int) -> str:
    first, reason = min(errors.items())
    return f"{len(errors)} of {count} images have no score; image {first}: {reason}"
