"""A diffusers pipeline as a function from seeds to pictures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import index
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from .seeded import seeded

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")
# What a search decides for itself.
OWN = ("generator", "latents", "output_type", "return_dict", *PER_PROMPT)


class Samples(NamedTuple):
    pixels: Tensor  # [B, 3, H, W] in [0, 1], or [B, T, 3, H, W] of videos
    latents: Tensor | None  # [B, ...] as the pipeline decoded them; None where it does not tell
    steps: int  # calls of the denoiser, each for the whole batch


def sample(
    pipe: Any,
    seeds: Sequence[int],
    pipe_kwargs: Mapping[str, Any],
    on_step: Callable[[Any, int, Tensor], Tensor] | None = None,
    on_start: Callable[[list[torch.Generator]], None] | None = None,
    *,
    gradient: bool = False,
) -> Samples:
    """One run of the pipeline for one prompt, an image a seed.

    A seed is that of a generator on the CPU, so it gives the same noise on any device. Image i is what
    `pipe(..., generator=torch.Generator().manual_seed(seeds[i]))` gives alone, up to rounding; where the
    pipeline does not hand its generator to a scheduler that adds noise, what a run of this one seed gives.

    Args:
        on_step: (pipeline, index, latents) after each step to the latents to go on with.
        on_start: gets the list of generators, one a seed, that the run uses.
        gradient: the pixels have a graph, back to whatever in `pipe_kwargs` requires a gradient.
    """
    names = inspect.signature(type(pipe).__call__).parameters
    kwargs = dict(pipe_kwargs)
    kwargs["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    kwargs["output_type"] = "pt"
    if kwargs.get("prompt_embeds") is not None:
        kwargs |= repeated_embeddings(
            kwargs, len(seeds)
        )  # not every pipeline repeats what is given
    elif len(seeds) > 1:
        kwargs[_per_prompt(pipe, names)] = len(seeds)
    if on_start is not None:
        on_start(kwargs["generator"])
    watch = _Watch(kwargs.get("callback_on_step_end"), on_step)
    if "callback_on_step_end" in names:
        wanted = list(kwargs.get("callback_on_step_end_tensor_inputs") or [])
        kwargs["callback_on_step_end"] = watch
        kwargs["callback_on_step_end_tensor_inputs"] = [*dict.fromkeys([*wanted, "latents"])]
    with seeded(pipe, kwargs["generator"]):
        output = differentiable(pipe)(**kwargs) if gradient else pipe(**kwargs)
    pixels = getattr(output, "frames", getattr(output, "images", None))
    if pixels is None:
        raise NotImplementedError(f"{type(pipe).__name__} makes neither images nor videos")
    return Samples(torch.as_tensor(pixels).float(), watch.latents, watch.steps)


def differentiable(pipe: Any) -> Callable[..., Any]:
    """The pipeline's call without its `torch.no_grad`, which is a decorator.

    Raises:
        NotImplementedError: naming a pipeline that has none to take off.
    """
    undecorated = getattr(type(pipe).__call__, "__wrapped__", None)
    if undecorated is None:
        raise NotImplementedError(f"{type(pipe).__name__} gives no gradient of its pictures")
    return functools.partial(undecorated, pipe)


def repeated_embeddings(kwargs: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The embeddings, pooled ones and masks of one prompt, as those of `count` prompts."""
    found = {}
    for name, value in kwargs.items():
        if name.endswith(("_embeds", "_embeds_mask", "_embeds_2")) and value is not None:
            alike = value * count if isinstance(value, list) else value.repeat_interleave(count, 0)
            found[name] = alike
    return found


class _Watch:
    """The callback of a run: counts, keeps the latents, and calls the user's own."""

    def __init__(self, own: Callable | None, on_step: Callable[[Any, int, Tensor], Tensor] | None):
        self.own, self.on_step = own, on_step
        self.steps, self.latents = 0, None

    def __call__(self, pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self.own is not None:
            kwargs = self.own(pipe, i, t, kwargs)
        if self.on_step is not None:
            kwargs["latents"] = self.on_step(pipe, i, kwargs["latents"])
        self.steps, self.latents = self.steps + 1, kwargs["latents"]
        return kwargs


def _per_prompt(pipe: Any, names: Mapping[str, Any]) -> str:
    for name in PER_PROMPT:
        if name in names:
            return name
    raise NotImplementedError(f"{type(pipe).__name__} makes one image a prompt: give batch_size=1")


def one_prompt_each(pipe_kwargs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The arguments of a list of prompts as those of each; lists of as many other prompts (negative
    ones, those for a second encoder) go with them.

    Raises:
        TypeError: an argument that a search decides for itself; no dict; a RewardCallback.
        ValueError: embeddings of several prompts; no prompt in a list.
    """
    if not isinstance(pipe_kwargs, Mapping):
        raise TypeError(
            f"pipe_kwargs are the pipeline's arguments, dict(prompt=...), got {pipe_kwargs!r}"
        )
    if taken := [name for name in OWN if pipe_kwargs.get(name) is not None]:
        raise TypeError(f"pipe_kwargs must leave {', '.join(taken)} to the search (seeds=, n=)")
    if type(pipe_kwargs.get("callback_on_step_end")).__name__ == "RewardCallback":
        raise TypeError(
            "a RewardCallback is for a call of the pipeline: best_of_n without prune, and search_noise, "
            "are guided by `with reward_guidance(...)` around them"
        )
    embedded = pipe_kwargs.get("prompt_embeds")
    if embedded is not None and len(embedded) > 1:
        raise ValueError("give the embeddings of one prompt at a time")
    prompt = pipe_kwargs.get("prompt")
    if not isinstance(prompt, (list, tuple)):
        return [dict(pipe_kwargs)]
    if not prompt:
        raise ValueError("pipe_kwargs has an empty list of prompts")
    count = len(prompt)

    def of(i: int, name: str, value: Any) -> Any:
        texts = isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value)
        return value[i] if "prompt" in name and texts and len(value) == count else value

    return [{name: of(i, name, value) for name, value in pipe_kwargs.items()} for i in range(count)]


def searches(
    pipe_kwargs: Mapping[str, Any], prompts: str | Sequence[str] | None
) -> list[tuple[dict[str, Any], str | None]]:
    """Of each prompt's search the pipeline's arguments, and what scorers read; raises as both parts."""
    runs = one_prompt_each(pipe_kwargs)
    return list(zip(runs, prompts_of(runs, prompts), strict=True))


def prompts_of(
    runs: Sequence[Mapping[str, Any]], prompts: str | Sequence[str] | None
) -> list[str | None]:
    """What each run's pictures are to show: its own prompt, unless others are given, one a run.

    Raises:
        TypeError, ValueError: they are no texts; their number is another.
    """
    if prompts is None:
        own = (kwargs.get("prompt") for kwargs in runs)
        return [prompt if isinstance(prompt, str) else None for prompt in own]
    texts = [prompts] if isinstance(prompts, str) else prompts
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise TypeError(f"prompts are texts, one for each of the pipeline's, got {prompts!r}")
    if len(texts) != len(runs):
        raise ValueError(
            f"{len(texts)} prompts for {len(runs)}: give one for each of the pipeline's"
        )
    return list(texts)


def check_pipeline(pipe: Any, *, scheduler: bool = True) -> None:
    """Raises TypeError for what is no pipeline, or has no scheduler where one is needed."""
    if not callable(pipe) or (scheduler and not hasattr(pipe, "scheduler")):
        raise TypeError(f"pipe is a diffusers pipeline, got {type(pipe).__name__}")


def numbered(seeds: int | Sequence[int], n: int) -> list[int]:
    """The seeds: n in a row from a first one, or those given.

    Raises:
        TypeError: something else than whole numbers.
    """
    try:
        if isinstance(seeds, Iterable):
            return [index(seed) for seed in seeds]
        return [index(seeds) + i for i in range(index(n))]
    except TypeError:
        raise TypeError(
            f"seeds are a whole number or a list of them: seeds={seeds!r}, of {n!r}"
        ) from None


def check_batch_size(batch_size: int) -> None:
    """Raises ValueError unless it is a number of samples."""
    if not isinstance(batch_size, int) or batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, a whole number, got {batch_size!r}")


def to_pil(pixels: Tensor) -> list[Any]:
    """[B, 3, H, W] to pictures, as diffusers rounds; [B, T, 3, H, W] to lists of frames."""
    if pixels.ndim == 5:
        return [to_pil(frames) for frames in pixels]
    eight_bit = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu()
    return [Image.fromarray(picture.contiguous().numpy()) for picture in eight_bit]
