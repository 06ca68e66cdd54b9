"""The whole loop on the embedded generator: candidates, pruned and ranked; guided; side by side."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..guidance import best_of_n, reward_guidance
from ..guidance.record import Record
from ..scorers.decode import to_uint8
from .generator import GUIDANCE_SCALE, load_pipeline
from .rewards import load_reward

PROMPTS = ("a red star", "a circle on blue", "a green square", "a triangle")
STEPS, N = 20, 16
WAYS = ("plain", f"best of {N}", f"best of {N}, pruned", "guided", "best, then guided")


@dataclass
class Judged:
    """An image and what both reward models say of it."""

    image: Image.Image
    guiding: float
    held_out: float


@dataclass
class Loop:
    """What the loop made.

    Attributes:
        images: of each prompt, one image a way of `WAYS`.
        calls: of the denoiser, for an image of each way; guidance also asks the reward model.
        records: of the last prompt, to plot: the pruned search, and the guided run.
    """

    images: dict[str, list[Judged]]
    calls: list[float]
    records: dict[str, Record]


def run_loop(seed: int = 0, progress: bool = True) -> Loop:
    """Makes an image of each prompt in each way. The same seed makes the same images.

    Raises:
        ImportError: naming the command that installs diffusers.
    """
    pipe = load_pipeline()
    pipe.set_progress_bar_config(disable=True)
    judges = load_reward("guiding"), load_reward("held-out")
    images, calls, records = {}, torch.zeros(len(WAYS)), {}
    prompts = tqdm(PROMPTS, desc="generate", unit="prompt", disable=not progress)
    for i, prompt in enumerate(prompts):
        made, spent, records = _ways(pipe, judges, prompt, seed + 1000 * i)
        images[prompt] = [_judged(image, judges) for image in made]
        calls += torch.tensor(spent, dtype=torch.float32)
    return Loop(images, (calls / len(PROMPTS)).tolist(), records)


def _ways(pipe: Any, judges: tuple, prompt: str, seed: int):
    """An image of one prompt in each of `WAYS`, the calls of the denoiser, and the records."""
    guiding, held_out = judges
    kwargs = dict(prompt=prompt, num_inference_steps=STEPS, guidance_scale=GUIDANCE_SCALE)
    named = dict(batch_size=N, seeds=seed, held_out=held_out, pipe_kwargs=kwargs, progress=False)
    full = best_of_n(pipe, guiding, N, N, **named)
    pruned = best_of_n(pipe, guiding, N, prune="halving", **named)
    plain = full.images[full.seeds.index(seed)]
    guided, run = _guided(pipe, judges, kwargs, seed)
    both, second = _guided(pipe, judges, kwargs, pruned.seeds[0])
    once, cheap = STEPS, pruned.record.denoiser_calls
    spent = [once, N * STEPS, cheap, run.denoiser_calls, cheap + second.denoiser_calls]
    records = {"pruned best of 16": pruned.record, "guided": run}
    return [plain, full.images[0], pruned.images[0], guided, both], spent, records


def _guided(pipe: Any, judges: tuple, kwargs: dict[str, Any], seed: int):
    """The image of a seed, sampled towards a higher reward, and the record of that."""
    with reward_guidance(pipe, judges[0], held_out=judges[1]) as run:
        made = pipe(**kwargs, generator=torch.Generator().manual_seed(seed))
    return made.images[0], run


@torch.no_grad()
def _judged(image: Image.Image, judges: tuple) -> Judged:
    x = pixels(image)[None]
    return Judged(image, *(float(judge(x)) for judge in judges))


def pixels(image: Image.Image) -> Tensor:
    """[3, H, W] in [0, 1]."""
    return to_uint8(image).float() / 255
