"""Q-ReAlign: a vision-language model asked how good a picture is, in five words.

https://huggingface.co/q-future/Q-ReAlign-Lite-4B (Mini-0.8B, Lite-4B, Pro-9B), Apache-2.0. Method:
Q-Align, https://arxiv.org/abs/2312.17090. Backbone: Qwen3.5-VL.

Scores range from 0 (bad) to 1 (excellent), higher is better: the expected weight of the level words
"excellent", "good", "fair", "poor", "bad" as the next word after "The quality of the image is".

The scores are those of the official recipe (the tests run it beside ours) without what scoring does
not need: processor, cache, padding masks, and the output head but for five rows.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .base import Scorer, ScorerCard, check_frames, check_images, working_precision
from .checkpoint import hub_id_of
from .qrealign_files import (
    Weights,
    check_transformers,
    checkpoint_dtype,
    load_weights,
    read_model_config,
    read_tokenizer,
)
from .qrealign_prompt import (
    STYLES,
    TASKS,
    Prompt,
    expected_level,
    level_ids,
    make_prompt,
    prompts_digest,
)
from .qwen_delta import kernels
from .qwen_pixels import Preprocessing, read_preprocessing
from .resize import METHOD, resize
from .video import capped_size, uniform_indices

log = logging.getLogger(__name__)

# Name and batch size by hidden size. Larger batches gain little: weights are read once a batch.
SIZES = {1024: ("q-realign-mini", 8), 2560: ("q-realign-lite", 4), 4096: ("q-realign-pro", 2)}
IMAGE_TASKS = ("quality", "aesthetics")
# How far off forking may be (see `Reader.fork_error`), by bytes a weight: rounding gives a fifth of it.
FORK_TOLERANCE = {2: 0.2, 4: 0.01, 8: 0.01}
LIMITS = (
    "Quality is perceptual and conditioned on the training sets. Scores are calibrated to their "
    "opinion scores and mean most relative to one another; recalibrate before mixing with others."
)
OUT_OF_SCOPE = (
    "safety and content moderation, factual or identity judgements, medical or forensic grading"
)


@dataclass(frozen=True)
class Options:
    """What a user may choose; see `load_qrealign`."""

    task: str
    prompt_style: str
    max_pixels: int | None
    video_frames: int | None
    video_max_side: int | None

    def __post_init__(self):
        for name, known in (("task", TASKS), ("prompt_style", STYLES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}")
        for name in ("max_pixels", "video_frames", "video_max_side"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or value < 1):
                raise ValueError(f"{name} must be a whole number from 1 up, or None, got {value!r}")


def load_qrealign(
    path: Path,
    *,
    revision: str | None,
    task: str,
    device: torch.device,
    dtype: torch.dtype | None,
    prompt_style: str = "card",
    max_pixels: int | None = None,
    video_frames: int | None = 8,
    video_max_side: int | None = 448,
    gradient_checkpointing: bool = False,
) -> QReAlign:
    """Loads a Q-ReAlign checkpoint folder: a published one, or a fine-tune of the same format.

    Args:
        path: folder with config.json, safetensors, tokenizer and preprocessor_config.json.
        revision: the hub commit that the folder is, for the card.
        task: "quality", "aesthetics" or "video": what the call and `score` judge.
        device: where the weights go, straight from the files.
        dtype: of the weights; None for the checkpoint's.
        prompt_style: "card" (the model card literally), "closed_think" or "upstream"; see
            `qrealign_prompt`. Other styles give other scores.
        max_pixels: larger pictures are scaled down to this area; by default the checkpoint's limit
            (16.8 million). Changes the scores of larger pictures.
        video_frames: uniform frames judged of a video; None for all of them.
        video_max_side: longest side of a video's frames in pixels; None for no limit.
        gradient_checkpointing: recompute blocks in the backward pass: less memory, more time.

    Raises:
        ImportError: transformers is older than 5.2.
        FileNotFoundError, ValueError: what is missing from the folder or does not fit, or an option
            that is out of range.
    """
    options = Options(task, prompt_style, max_pixels, video_frames, video_max_side)
    check_transformers()
    pixels = read_preprocessing(path)
    config = read_model_config(path, pixels)
    tokenizer = read_tokenizer(path)
    levels = level_ids(tokenizer)
    pictures = {"video": video_frames or 3}
    prompts = {
        name: make_prompt(
            path, tokenizer, config.image_token_id, name, prompt_style, pictures.get(name, 1)
        )
        for name in TASKS
    }
    words = sorted({word for prompt in prompts.values() for word in prompt.words})
    dtype = dtype or checkpoint_dtype(config)
    weights = load_weights(path, config, pixels, words, levels, device, dtype)
    source = (hub_id_of(path), revision)
    scorer = QReAlign(weights, prompts, pixels.limited(max_pixels), options, source)
    scorer.gradient_checkpointing = gradient_checkpointing
    return scorer.freeze().checked()


class QReAlign(Scorer):
    """Q-ReAlign behind the contract; `load_qrealign` makes one."""

    def __init__(
        self,
        weights: Weights,
        prompts: dict[str, Prompt],
        pixels: Preprocessing,
        options: Options,
        source: tuple[str | None, str | None],
    ):
        super().__init__()
        self.reader = weights.reader
        self.levels = nn.Parameter(weights.levels)  # [5, D] of the output head
        self.task = options.task
        self._forks: bool | None = None  # not known yet
        self._prompts, self._pixels, self._options = prompts, pixels, options
        self._digest, (self._hub_id, self._revision) = weights.digest, source
        self._name, self.default_batch_size = SIZES.get(self.levels.shape[1], ("q-realign", 8))

    def with_task(self, task: str) -> QReAlign:
        other = copy.copy(self)  # shares the modules and the parameters themselves
        other._options = replace(self._options, task=task)
        other.task = task
        return other

    def with_video_frames(self, count: int | None) -> QReAlign:
        if count is not None and count < 1:
            raise ValueError(f"count must be at least 1, or None, got {count}")
        other = copy.copy(self)
        other._options = replace(self._options, video_frames=count)
        return other

    # --- sizes and pixels -------------------------------------------------------------------------

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Multiples of 32, as Qwen's image processor sizes pictures; frames are capped before."""
        return self._pixels.size(*self._capped(height, width))

    def prepare(self, images: Tensor) -> Tensor:
        """Source pixels [B, 3, H, W] to model input in [0, 1]; with task "video", as its frames."""
        return super().prepare(resize(images, self._capped(*images.shape[-2:])))

    def _capped(self, height: int, width: int) -> tuple[int, int]:
        side = self._options.video_max_side if self.task == "video" else None
        return capped_size(height, width, side)

    # --- scores -----------------------------------------------------------------------------------

    def score_prepared(self, x: Tensor) -> Tensor:
        """Model input [B, 3, h, w] in [0, 1] to scores [B]. With task "video", stills of one frame."""
        features, grid = self.reader.see(x)
        texts = self._prompts[self.task].texts(1)
        return self._judged(self.reader.read(features[:, None], grid, texts))

    def score_tasks(self, images: Tensor, tasks: Sequence[str] = IMAGE_TASKS) -> Tensor:
        """Scores each picture for several tasks, seen once: [B, 3, H, W] in [0, 1] -> [B, T] float32.

        The state after the picture is forked for the questions, so a second one costs a few percent;
        where the check at loading found that this is not exact, each question is a full pass.
        Differentiable.
        """
        check_images(images, self.device)
        if not tasks or not set(tasks) <= set(IMAGE_TASKS):
            raise ValueError(f"tasks must be among {IMAGE_TASKS}, got {tasks!r}")
        if not len(images):
            return images.new_zeros(0, len(tasks), dtype=torch.float32)
        return self.score_tasks_prepared(self.prepare(working_precision(images)), tasks)

    def score_tasks_prepared(self, x: Tensor, tasks: Sequence[str] = IMAGE_TASKS) -> Tensor:
        """Model input [B, 3, h, w] in [0, 1] (from `prepare`) to scores [B, T]."""
        features, grid = self.reader.see(x)
        prompts = [self._prompts[task] for task in tasks]
        if self.forks:
            after = [prompt.after for prompt in prompts]
            return self._judged(self.reader.read_forked(features, grid, prompts[0].before, after))
        each = [self.reader.read(features[:, None], grid, prompt.texts(1)) for prompt in prompts]
        return self._judged(torch.stack(each, 1))

    def score_video(self, frames: Tensor) -> Tensor:
        """Scores videos [B, T, 3, H, W] -> [B] float32, each as one sequence of pictures.

        Of T frames, `video_frames` uniform ones are judged, scaled down to `video_max_side` pixels
        (8 and 448, as upstream). It is asked the video question, whatever the scorer's task.
        Differentiable.

        Args:
            frames: uint8, which is resized as Pillow does; or floating point in [0, 1].
        """
        check_frames(frames, self.device)
        if not len(frames):
            return torch.zeros(0, device=frames.device)
        frames = frames[:, uniform_indices(frames.shape[1], self._options.video_frames)]
        count, flat = frames.shape[1], frames.flatten(0, 1)
        flat = flat if flat.dtype == torch.uint8 else working_precision(flat)
        flat = resize(flat, capped_size(*flat.shape[-2:], self._options.video_max_side))
        features, grid = self.reader.see(super().prepare(flat))
        texts = self._prompts["video"].texts(count)
        return self._judged(self.reader.read(features.unflatten(0, (-1, count)), grid, texts))

    def _judged(self, hidden: Tensor) -> Tensor:
        """Hidden states [..., D] to scores [...]: five rows of the head, in float32."""
        return expected_level(F.linear(hidden.float(), self.levels.float()))

    # --- what it is -------------------------------------------------------------------------------

    def checked(self) -> QReAlign:
        """Decides, on random pictures, whether `score_tasks` may read a picture once."""
        prompts = [self._prompts[task] for task in IMAGE_TASKS]
        before, after = prompts[0].before, [prompt.after for prompt in prompts]
        error = self.reader.fork_error(before, after)
        exact = error <= FORK_TOLERANCE[self.dtype.itemsize]
        self._forks = exact and all(prompt.before == before for prompt in prompts)
        if not exact:
            log.warning("score_tasks makes a full pass a question: forking is off by %.2g", error)
        return self

    @property
    def forks(self) -> bool:
        """Whether `score_tasks` reads a picture once; found out at loading, and again after a move."""
        if self._forks is None:
            self.checked()
        return bool(self._forks)

    def _apply(self, fn: Callable, recurse: bool = True) -> QReAlign:
        self._forks = None  # another device or dtype has other kernels
        return super()._apply(fn, recurse)

    @property
    def rendered_prompt(self) -> str:
        """What the model is asked for the scorer's task, one placeholder a picture."""
        return self._prompts[self.task].text

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether blocks are recomputed in the backward pass: less memory, about a third more time."""
        return self.reader.visual.checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.reader.visual.checkpointing = self.reader.language_model.checkpointing = on

    @property
    def _card(self) -> ScorerCard:
        return ScorerCard(
            name=self._name,
            licence="Apache-2.0",
            unit="expected level, 0 bad to 1 excellent",
            range=(0.0, 1.0),
            hub_id=self._hub_id,
            revision=self._revision,
            paper="https://arxiv.org/abs/2312.17090",
            tasks=TASKS,
            task=self.task,
            capabilities=("score_tasks", "score_video", "differentiable"),
            limits=LIMITS,
            out_of_scope=OUT_OF_SCOPE,
            fingerprint=self._fingerprint(),
        )

    def _fingerprint(self) -> dict[str, str]:
        pixels, options = self._pixels, self._options
        return {
            "weights": self._digest,
            "prompt": f"{options.prompt_style} {prompts_digest(self._prompts.values())}",
            "preprocessing": f"{pixels.min_pixels} to {pixels.max_pixels} px, "
            f"mean {pixels.mean}, std {pixels.std}",
            "resize": METHOD,
            "video": f"{options.video_frames} frames, longest side {options.video_max_side}",
            "fork": "yes" if self.forks else "no",
            "kernels": kernels(self.device, self.dtype),
            "head": "float32",
        }
