"""Reward guidance: a push of x0 along the gradient of the reward. Shared by every host.

    x0' = x0 + scale * r * sqrt(d) * f * g / |g|

for each sample by itself: g is the gradient, d the number of its elements, r the noise ratio, and f is 1
until the scorer's gradient has faded to a share of its usual norm, from where on it fades too. Latents
have about unit variance, so `scale` is a root mean square displacement, the same for every model,
resolution, scheduler, number of steps and unit of the reward.
Early steps (high r) change what the picture shows; late ones change pixels to please the scorer.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from .record import Record, Row
from .rewards import Scorer, along, ascent, check_scorer, norms, one_an_image, rate, unit
from .tap import Step

log = logging.getLogger(__name__)

USUAL = 0.9  # how much of the gradients' usual norm stays from one step to the next
FLOOR = 0.3  # below this share of it, the push shrinks with the gradient: the reward is saturated


@dataclass
class Guide:
    """A function for `tap` that raises a reward, and records what it did.

    Args:
        scorers: differentiable, with weights that add up to 1 (see `rewards.weighted`).
        decode: x0 in the model's latent space to [B, 3, H, W] in [0, 1]; differentiable.
        scale: root mean square of the push at r = 1. Useful from 0.05 to 0.2; 0 does nothing.
        window: noise ratios (lowest, highest) that are guided. By default only the noisier part,
            where the reward is hacked least.
        cap: largest root mean square of a push.
        low_pass: side, in latent pixels, of a box that the gradient is averaged over; 0 for none. Of
            packed latents (Flux, Qwen-Image) it takes a `Decoder`, which knows where each one lies.
        target: samples whose (weighted) reward reaches it are left alone.
        held_out: a scorer that does not guide; it says whether the pushes please only the guiding one.
        stop_on_gap: no more guidance in a run once the held-out reward falls while the guiding one
            rises, by the means over its samples.
        prompts: for scorers that read them, one a sample, or one for as many samples in a row.
    """

    scorers: Sequence[tuple[Scorer, float]]
    decode: Callable[[Tensor], Tensor]
    scale: float = 0.1
    window: tuple[float, float] = (0.5, 1.0)
    cap: float = 0.25
    low_pass: int = 0
    target: float | None = None
    held_out: Scorer | None = None
    stop_on_gap: bool = False
    prompts: Sequence[str] | None = None
    record: Record = field(default_factory=Record)

    def __post_init__(self):
        low, high = self.window
        if not 0 <= low <= high <= 1:
            raise ValueError(f"window must be noise ratios (lowest, highest), got {self.window}")
        for name in ("scale", "cap", "low_pass"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if self.held_out is not None:
            check_scorer(self.held_out)
        self.start()

    def start(self) -> None:
        """Forgets the run before: for `tap`'s `on_start`. The record goes on."""
        self._usual: dict[int, Tensor] = {}  # of each scorer's gradients
        self._gains = torch.zeros(2)  # of the guiding and the held-out reward, by the pushes so far
        self._gap = False  # the first rose and the second fell
        self._told: set[str] = set()  # what was warned of

    def keep(self, rows: Sequence[int]) -> None:
        """Of the batch [B, ...] only these rows come from now on, in this order."""
        self._usual = {number: usual[list(rows)] for number, usual in self._usual.items()}

    def wants(self, noise_ratio: float) -> bool:
        """Whether a step from so much noise is guided."""
        low, high = self.window
        return self.scale > 0 and low <= noise_ratio <= high and not self._stopped

    @property
    def _stopped(self) -> bool:
        return self._gap and self.stop_on_gap

    def __call__(self, step: Step) -> Tensor | None:
        row = self.record.add(step)
        push = self._guided(step, row) if self.wants(step.noise_ratio) else None
        return None if push is None else step.x0 + push.to(step.x0)

    def _guided(self, step: Step, row: Row) -> Tensor:
        """The push of x0, [B, ...]; what there is to know of it goes into the row."""
        prompts = one_an_image(self.prompts, len(step.x0))
        rewards, direction, pixels = ascent(
            self.scorers, step.x0, self.decode, prompts, self._strength
        )
        if step.pullback is not None:
            direction = norms(direction) * unit(step.pullback(direction))
        weights = rewards.new_tensor([weight for _, weight in self.scorers])
        total = weights @ rewards  # [B]
        self.record.scorer_calls += len(self.scorers)
        push = self.push(direction, step.noise_ratio)
        if self.target is not None:
            push = push * along(total < self.target, push)
        row.reward, row.push = total.cpu(), rms(push).cpu()
        self._warn_of_nan(row.index, row.reward, "reward at step %d: those are not guided")
        if self.held_out is not None:
            self._watch(row, pixels, step.x0 + push.to(step.x0), total, prompts)
        return push

    def push(self, direction: Tensor, noise_ratio: float) -> Tensor:
        """The displacement of x0 along a direction [B, ...] of norm at most 1, in float32."""
        direction = direction.float()
        g = self._low_passed(direction)
        size = min(self.scale * noise_ratio, self.cap) * g[0].numel() ** 0.5
        return size * norms(direction) * unit(g)

    def _low_passed(self, g: Tensor) -> Tensor:
        if self.low_pass < 2:
            return g
        unpack = getattr(self.decode, "unpack", lambda x0: x0)
        return rearranged(unpack, lambda z: low_passed(z, self.low_pass), g)

    def _strength(self, number: int, norm: Tensor) -> Tensor:
        """How much a scorer pushes each sample, [B] in [0, 1]: less where its gradient has faded."""
        usual = self._usual.get(number)
        known = usual is not None and usual.shape == norm.shape
        usual = USUAL * usual + (1 - USUAL) * norm if known else norm
        self._usual[number] = usual
        return (norm / (FLOOR * usual).clamp_min(1e-30)).clamp(max=1)

    def _warn_of_nan(self, index: int, rewards: Tensor, what: str) -> None:
        lost = int((~rewards.isfinite()).sum())
        if lost:
            self._warn(f"%d of %d samples have no finite {what}", lost, len(rewards), index)

    def _warn(self, text: str, *values: float) -> None:
        """Once a run."""
        if text not in self._told:
            log.warning(text, *values)
            self._told.add(text)

    @torch.no_grad()
    def _watch(
        self, row: Row, pixels: Tensor, x0: Tensor, before: Tensor, prompts: list[str] | None
    ) -> None:
        """Records what the push does to both rewards, measured on the pictures before and after."""
        after = self.decode(x0)
        guiding = sum(weight * rate(s, after, prompts) for s, weight in self.scorers)
        held = [rate(self.held_out, each, prompts) for each in (pixels, after)]
        self.record.scorer_calls += len(self.scorers) + 2
        row.held_out = held[0].cpu()
        self._warn_of_nan(
            row.index, row.held_out, "held-out reward at step %d: those are not watched"
        )
        gains = torch.stack([guiding - before, held[1] - held[0]]).cpu()  # [2, B]
        known = gains.isfinite().all(0)  # one that has no number says nothing, as in `ascent`
        if not known.any():
            return
        self._gains += gains[:, known].mean(1)
        row.gain, row.held_out_gain = self._gains.tolist()
        if row.gain > 0 > row.held_out_gain:
            self._hacked(row.gain, -row.held_out_gain)

    def _hacked(self, gain: float, loss: float) -> None:
        self._gap = self.record.gap = True
        self.record.stopped |= self._stopped
        self._warn(
            "reward hacking: the pushes raised the guiding reward by %.3g and lowered the "
            "held-out one by %.3g; a smaller scale or an earlier window helps",
            *(gain, loss),
        )


def rms(x: Tensor) -> Tensor:
    """Root mean square a sample: [B, ...] -> [B]."""
    return x.float().flatten(1).square().mean(1).sqrt()


def low_passed(x: Tensor, side: int) -> Tensor:
    """[..., h, w] averaged over boxes of about `side` (odd); itself below 2. Other shapes: ValueError."""
    if side < 2:
        return x
    if x.ndim < 4:
        raise ValueError(f"low_pass needs latents [B, C, h, w], this pipeline has {list(x.shape)}")
    side += 1 - side % 2
    flat = x.flatten(0, -4) if x.ndim > 4 else x
    padded = F.pad(flat, [side // 2] * 4, mode="replicate")
    return F.avg_pool2d(padded, side, 1).reshape(x.shape)


def rearranged(
    unpack: Callable[[Tensor], Tensor], function: Callable[[Tensor], Tensor], x: Tensor
) -> Tensor:
    """`function` of x as `unpack` arranges it, arranged as x is: back goes the transpose, the inverse."""
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        z = unpack(x)
        return torch.autograd.grad(z, x, function(z.detach()))[0]
