"""The contract every scorer obeys, and the card that describes one.

    scorer(images)        # Tensor[B, 3, H, W] float in [0, 1] -> Tensor[B] float32, higher is better
    scorer.score(items)   # paths, PIL images, tensors of mixed sizes -> Tensor[N] float32 on the CPU
    scorer.card           # ScorerCard

A subclass writes `input_size` (which size the model sees) and `score_prepared` (model input to
scores); everything else is here, in `resize` and in `stream`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from .resize import resize
from .stream import Scored, score_all, score_stream

# Part of every fingerprint: raise it when any scorer's results change for the same weights.
SCORES_VERSION = "1"


@dataclass(frozen=True)
class ScorerCard:
    """What a scorer is, what its numbers mean, and what they were made with.

    `fingerprint` holds whatever can change a score; it goes with every stored score, and scores of
    different fingerprints are never mixed.
    """

    name: str
    licence: str
    unit: str  # what a score is, e.g. "expected level, 0 worst to 1 best"
    range: tuple[float, float]  # bounds of a score; infinite where it has none
    hub_id: str | None = None
    revision: str | None = None
    paper: str | None = None
    direction: str = "higher is better"
    tasks: tuple[str, ...] = ("quality",)
    task: str = "quality"
    # Of "embed", "score_tasks", "score_video", "differentiable" and "win_probability": the sigmoid of
    # a difference is the probability that the first is preferred.
    capabilities: tuple[str, ...] = ()
    parameters: int = 0
    memory: int = 0  # bytes that the weights take as loaded
    limits: str = ""
    out_of_scope: str = ""
    fingerprint: Mapping[str, str] = field(default_factory=dict)

    @property
    def fingerprint_id(self) -> str:
        """16 hex digits that stand for the fingerprint."""
        return fingerprint_id(self.fingerprint)


def fingerprint_id(fingerprint: Mapping[str, str]) -> str:
    """16 hex digits that stand for a fingerprint."""
    canonical = json.dumps(dict(fingerprint), sort_keys=True)
    return hashlib.sha256(canonical.encode()).hexdigest()[:16]


def differences(stored: Mapping[str, str], fresh: Mapping[str, str]) -> str:
    """What differs between two fingerprints: "dtype: float32 there, bfloat16 here"."""
    names = [n for n in sorted({*stored, *fresh}) if stored.get(n) != fresh.get(n)]
    return "; ".join(
        f"{n}: {stored.get(n) or 'none'} there, {fresh.get(n) or 'none'} here" for n in names
    )


def check_images(images: Tensor, device: torch.device | None = None) -> None:
    """Raises TypeError or ValueError unless `images` is Tensor[B, 3, H, W], floating point, on `device`.

    Values are not looked at: that would make the device wait. `Scorer.score` checks them.
    """
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a Tensor[B, 3, H, W], got {type(images).__name__}")
    shape = list(images.shape)
    if images.ndim != 4 or shape[1] != 3:
        hint = ""
        if images.ndim == 4 and shape[-1] == 3:
            hint = "; channels come second: images.permute(0, 3, 1, 2)"
        elif images.ndim == 3 and shape[0] == 3:
            hint = "; one image is a batch of one: images[None]"
        raise ValueError(f"images must be [B, 3, H, W], got {shape}{hint}")
    if 0 in shape[2:]:
        raise ValueError(f"images have no pixels: {shape}")
    if not images.is_floating_point():
        kind = str(images.dtype).removeprefix("torch.")
        raise TypeError(f"images must be floating point in [0, 1], got {kind}: use images / 255")
    if device is not None and images.device != device:
        raise ValueError(f"images are on {images.device}, the scorer on {device}: move one of them")


def check_frames(frames: Tensor, device: torch.device) -> None:
    """Raises TypeError or ValueError unless `frames` is [B, T, 3, H, W], uint8 or floating, on `device`."""
    if frames.ndim != 5 or frames.shape[2] != 3 or 0 in frames.shape[1:]:
        raise ValueError(f"frames must be [B, T, 3, H, W], got {list(frames.shape)}")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise TypeError(f"frames must be uint8 or floating point, got {frames.dtype}")
    if frames.device != device:
        raise ValueError(f"frames are on {frames.device}, the scorer on {device}: move one of them")


def working_precision(images: Tensor) -> Tensor:
    """Half-precision pixels as float32: preprocessing never runs below it. float64 stays float64."""
    return images if images.dtype == torch.float64 else images.float()


def unit_range(images: Tensor) -> Tensor:
    """8-bit pixels as float32 in [0, 1]; floating point as it is."""
    return images.float() / 255 if images.dtype == torch.uint8 else images


class Scorer(nn.Module):
    """Base of all scorers. Weights are frozen; gradients flow from scores to pixels.

    Subclasses set `self._card` (without dtype, parameters and memory, which are read off the
    weights) and implement `score_prepared`, and `input_size` where the model wants a size.
    """

    default_batch_size = 16
    kernels = (
        "torch"  # what computes the scores, where that can change them: part of the fingerprint
    )
    # [D, K], a root of the covariance of what people's tastes weigh the embedding by, in any unit: what
    # `preferences.train` knows of a taste before the first comparison. None where nobody measured it.
    head_prior: Tensor | None = None
    _card: ScorerCard

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """(h, w) that the model sees of a picture of this size. By default: the picture's own."""
        return height, width

    def prepare(self, images: Tensor) -> Tensor:
        """Source pixels [B, 3, H, W] to model input [B, 3, h, w], floating point in [0, 1].

        uint8 is resized bit-equal to Pillow; floating point differentiably.
        """
        return unit_range(resize(images, self.input_size(*images.shape[-2:])))

    def score_prepared(self, x: Tensor) -> Tensor:
        """Model input [B, 3, h, w] in [0, 1] (from `prepare`) to scores [B] float32."""
        raise NotImplementedError

    def score_runs(self, runs: Iterable[Tensor]) -> Tensor:
        """Source pictures of one input size, as batches [b, 3, H, W] of one size each, to scores [B].

        What `score` calls. A scorer of scorers gives its members the source pixels here.
        """
        return self.score_prepared(torch.cat([self.prepare(run) for run in runs]))

    def forward(self, images: Tensor, prompts: list[str] | None = None) -> Tensor:
        """Scores a batch where it lies. Differentiable; no value is checked, nothing is copied to the host.

        Args:
            images: [B, 3, H, W] floating point in [0, 1] on the scorer's device. Half precision is
                preprocessed in float32.
            prompts: accepted for scorers that read them; the embedded ones do not.

        Returns:
            [B] float32, higher is better.
        """
        check_images(images, self.device)
        if not len(images):
            return images.new_zeros(0, dtype=torch.float32)
        return self.score_prepared(self.prepare(working_precision(images)))

    def score_video(self, frames: Tensor) -> Tensor:
        """Scores videos [B, T, 3, H, W] -> [B] float32: the mean of the frames' scores.

        Args:
            frames: uint8, prepared exactly as files are; or floating point in [0, 1], differentiable.

        Raises:
            ValueError, TypeError: as a call; a video without frames is a ValueError too.
        """
        check_frames(frames, self.device)
        if not len(frames):
            return torch.zeros(0, device=frames.device)
        flat = frames.flatten(0, 1)
        eight_bit = flat.dtype == torch.uint8
        scores = self.score_prepared(self.prepare(flat)) if eight_bit else self(flat)
        return scores.reshape(frames.shape[:2]).mean(1)

    def score(
        self,
        images: Iterable,
        batch_size: int | None = None,
        on_error: str = "raise",
        progress: bool = False,
    ) -> Tensor:
        """Scores any iterable of path | PIL image | Tensor[3, H, W], sizes mixed, in order.

        Args:
            images: files and PIL images are 8-bit pictures and are resized exactly as Pillow does;
                tensors are uint8, or floating point in [0, 1].
            batch_size: images a forward pass; halved, for images of that size and larger, when
                memory runs out.
            on_error: "raise" stops at the first unreadable image; "nan" scores it NaN and goes on.
            progress: show a progress bar.

        Returns:
            [N] float32 on the CPU.
        """
        return score_all(self, images, batch_size, on_error, progress)

    def score_iter(
        self, images: Iterable, batch_size: int | None = None, on_error: str = "nan"
    ) -> Iterator[Scored]:
        """Streams `Scored` (item, score, error, passing) in order, with bounded memory, for millions."""
        return score_stream(self, images, batch_size, on_error)

    def with_task(self, task: str) -> Scorer:
        """The same weights, not a copy of them, judging another task. ValueError for an unknown one."""
        if task != self._card.task:
            raise ValueError(f"{self._card.name} judges {self._card.task!r} only, not {task!r}")
        return self

    def with_video_frames(self, count: int | None) -> Scorer:
        """The same weights, judging `count` uniform frames of a video; None for all of them.

        Changes nothing where each frame is judged alone: there, whoever gives the frames decides.
        """
        return self

    @property
    def judges_frames_alone(self) -> bool:
        """Whether a video's score is the mean of its frames' scores."""
        return type(self).score_video is Scorer.score_video

    @property
    def card(self) -> ScorerCard:
        weights = list(self.parameters()) + list(self.buffers())
        fingerprint = {
            "kernels": self.kernels,
            **self._card.fingerprint,
            "scorer": self._card.name,
            "task": self._card.task,
            "revision": self._card.revision or "",
            "dtype": str(self.dtype).removeprefix("torch."),
            "version": SCORES_VERSION,
        }
        return replace(
            self._card,
            parameters=sum(p.numel() for p in self.parameters()),
            memory=sum(w.numel() * w.element_size() for w in weights),
            fingerprint=fingerprint,
        )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of most of the weights."""
        return max(self.parameters(), key=Tensor.numel).dtype

    def train(self, mode: bool = True) -> Scorer:
        """Scorers judge, they do not learn: always in evaluation mode (`preferences` trains heads)."""
        return super().train(False)

    def freeze(self) -> Scorer:
        """Evaluation mode, and no gradient into the weights. Called by every loader."""
        return self.eval().requires_grad_(False)
