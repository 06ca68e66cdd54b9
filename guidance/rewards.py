"""Scorers as rewards: called with what they take, where they are, several at once."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

# One of ours, an ensemble, or any callable: [B, 3, H, W] in [0, 1] -> [B], higher is better.
Scorer = Callable[..., Tensor]
# A scorer, several that count alike, or several with weights.
Scorers = Scorer | Sequence[Scorer] | Sequence[tuple[Scorer, float]]


def weighted(scorers: Scorers) -> list[tuple[Scorer, float]]:
    """Pairs of scorer and weight, the weights adding up to 1.

    Raises:
        TypeError: something that cannot be called.
        ValueError: no scorer, or weights that are negative or all 0.
    """
    several = list(scorers) if isinstance(scorers, Sequence) else [scorers]
    pairs = [pair if isinstance(pair, tuple) else (pair, 1.0) for pair in several]
    for scorer, _ in pairs:
        check_scorer(scorer)
    total = sum(weight for _, weight in pairs)
    if not total > 0 or any(weight < 0 for _, weight in pairs):
        raise ValueError(f"weights must be positive, got {[weight for _, weight in pairs]}")
    return [(scorer, weight / total) for scorer, weight in pairs]


def check_scorer(scorer: Any) -> None:
    """Raises TypeError, naming what is no scorer."""
    if not callable(scorer):
        raise TypeError(f"a scorer is a callable, got {type(scorer).__name__}")


def rate(scorer: Scorer, images: Tensor, prompts: Sequence[str] | None = None) -> Tensor:
    """The scores [B] float32 of images [B, 3, H, W] in [0, 1], on the images' device. Differentiable.

    Of videos [B, T, 3, H, W], what the scorer says of a video; of a callable that knows pictures only,
    the mean over the frames. Prompts, one an image, go to scorers that take an argument `prompts`.

    Raises:
        TypeError, ValueError: the scorer gave something else than one number an image.
    """
    if images.ndim == 5:
        return _rate_videos(scorer, images, prompts)
    device = getattr(scorer, "device", images.device)
    named: dict[str, Any] = {"prompts": list(prompts)} if prompts and reads_prompts(scorer) else {}
    scores = scorer(images.to(device), **named)
    if not isinstance(scores, Tensor) or scores.shape != (len(images),):
        found = list(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"{name_of(scorer)} must give a Tensor[{len(images)}], got {found}")
    return scores.float().to(images.device)


def one_an_image(prompts: Sequence[str] | None, count: int) -> list[str] | None:
    """Prompts for `count` images, each for as many in a row as pipelines make of it; None without.

    Raises:
        ValueError: they do not divide up.
    """
    if not prompts:
        return None
    if count % len(prompts):
        raise ValueError(f"{len(prompts)} prompts for {count} images: give one an image")
    return [prompt for prompt in prompts for _ in range(count // len(prompts))]


def _rate_videos(scorer: Scorer, videos: Tensor, prompts: Sequence[str] | None) -> Tensor:
    if hasattr(scorer, "score_video"):
        return scorer.score_video(videos.to(scorer.device)).to(videos.device)
    count = videos.shape[1]
    each = [prompt for prompt in prompts for _ in range(count)] if prompts else None
    return rate(scorer, videos.flatten(0, 1), each).reshape(-1, count).mean(1)


def reads_prompts(scorer: Scorer) -> bool:
    call = getattr(scorer, "forward", scorer)  # a module's __call__ takes anything
    try:
        return "prompts" in inspect.signature(call).parameters
    except (TypeError, ValueError):  # built-in callables have no signature
        return False


def name_of(scorer: Scorer) -> str:
    card = getattr(scorer, "card", None)
    return card.name if card else getattr(scorer, "__name__", type(scorer).__name__)


def ascent(
    scorers: Sequence[tuple[Scorer, float]],
    latents: Tensor,
    decode: Callable[[Tensor], Tensor],
    prompts: Sequence[str] | None = None,
    strength: Callable[[int, Tensor], Tensor] = lambda number, norm: torch.ones_like(norm),
) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards of latents, and the direction in which they rise.

    Each scorer's gradient is brought to unit norm a sample in pixel space, so that units do not
    matter, and their weighted sum goes back through the decoder once.

    Args:
        latents: [B, ...]; inference tensors too.
        decode: differentiable, to [B, 3, H, W] in [0, 1].
        strength: (number of the scorer, norms [B] of its gradients in pixel space) to how much it
            counts, [B] in [0, 1].

    Returns:
        Rewards [S, B], the direction [B, ...] (its norm is the scorers' mean strength; 0 where a
        gradient is not finite), and the decoded pixels [B, 3, H, W].
    """
    with torch.inference_mode(False), torch.enable_grad():
        z = latents.detach().clone().requires_grad_()
        pixels = decode(z)
        seen = pixels.detach().clone().requires_grad_()
        rewards, total, mean = [], torch.zeros_like(seen), seen.new_zeros(len(seen))
        for number, (scorer, weight) in enumerate(scorers):
            reward = rate(scorer, seen, prompts)
            if not reward.requires_grad:
                raise TypeError(
                    f"{name_of(scorer)} gives no gradient: use best_of_n or steer_particles, "
                    "which need none"
                )
            (gradient,) = torch.autograd.grad(reward.sum(), seen)
            part = weight * strength(number, norms(finite(gradient)).flatten())
            total += along(part, seen) * unit(gradient)
            mean += part
            rewards.append(reward.detach())
        (direction,) = torch.autograd.grad(pixels, z, total)
    return torch.stack(rewards), along(mean, z) * unit(direction), pixels.detach()


def unit(gradient: Tensor) -> Tensor:
    """[B, ...] of norm 1 a sample; 0 stays 0, and what is not finite becomes 0."""
    gradient = finite(gradient)
    # By the largest first: squares vanish or overflow where a scorer's unit is tiny or huge.
    largest = along(gradient.flatten(1).abs().amax(1), gradient).clamp_min(1e-30)
    gradient = gradient / largest
    return gradient / norms(gradient).clamp_min(1e-30)


def norms(x: Tensor) -> Tensor:
    """Euclidean norm a sample, [B, 1, ...], to divide by."""
    return along(x.flatten(1).norm(dim=1), x)


def along(values: Tensor, x: Tensor) -> Tensor:
    """[B] as [B, 1, ...], to multiply `x` [B, ...] by."""
    return values.reshape(-1, *[1] * (x.ndim - 1))


def finite(gradient: Tensor) -> Tensor:
    """[B, ...] with 0 for every sample that has a number that is not finite."""
    good = gradient.flatten(1).isfinite().all(1)
    return torch.where(along(good, gradient), gradient, torch.zeros_like(gradient))
