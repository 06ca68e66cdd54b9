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
CLEAN = 0.25  # below this noise ratio nothing is carried over: it would be seen in the pixels


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
        low_pass: side, in latent pixels, of a box that the gradient is averaged over; 0 for none.
        target: samples whose (weighted) reward reaches it are left alone.
        held_out: a scorer that does not guide; it says whether the pushes please only the guiding one.
        stop_on_gap: no more guidance once the held-out reward falls while the guiding one rises.
        prompts: for scorers that read them, one a sample, or one for as many samples in a row.
        extrapolated: the host's solver extrapolates from the x0 it was given, as DPM++ 2M does, and
            would take the last push back (`tap` sees to that itself). Each push is then spread over
            this step and the next ones, also a few that are no longer guided.
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
    extrapolated: bool = False
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
        self._usual: dict[int, Tensor] = {}  # of each scorer's gradients
        self._gains = torch.zeros(2)  # of the guiding and the held-out reward, by the pushes so far
        self._carried: Tensor | None = None  # the last push, of which the solver takes a part back
        self._warned = False  # that samples have no finite reward

    def start(self) -> None:
        """Forgets the run before: for `tap`'s `on_start`."""
        self._usual, self._gains, self._carried = {}, torch.zeros(2), None
        self._warned = False
        self.record.stopped = False

    def keep(self, rows: Sequence[int]) -> None:
        """Of the batch [B, ...] only these rows come from now on, in this order."""
        self._usual = {number: usual[list(rows)] for number, usual in self._usual.items()}

    def wants(self, noise_ratio: float) -> bool:
        """Whether a step from so much noise is guided."""
        low, high = self.window
        return self.scale > 0 and low <= noise_ratio <= high and not self.record.stopped

    def __call__(self, step: Step) -> Tensor | None:
        row = self.record.add(step)
        push = self._guided(step, row) if self.wants(step.noise_ratio) else None
        if self.extrapolated:
            push = self._spread(step, push)
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
        self._warn_of_nan(row)
        if self.held_out is not None:
            self._watch(row, pixels, step.x0 + push.to(step.x0), total, prompts)
        return push

    def push(self, direction: Tensor, noise_ratio: float) -> Tensor:
        """The displacement of x0 along a direction [B, ...] of norm at most 1, in float32."""
        direction = direction.float()
        g = low_passed(direction, self.low_pass)
        size = min(self.scale * noise_ratio, self.cap) * g[0].numel() ** 0.5
        return size * norms(direction) * unit(g)

    def _spread(self, step: Step, push: Tensor | None) -> Tensor | None:
        """q of which an extrapolating step makes the push: (3 q - q before) / 2 = push."""
        if push is None:
            if self._carried is None or step.noise_ratio < CLEAN:
                self._carried = None
                return None
            push = torch.zeros_like(self._carried)
        if step.index > 0:  # the first step has nothing to extrapolate from
            before = 0 if self._carried is None else self._carried
            push = (2 * push + before) / 3
        self._carried = push
        return push

    def _strength(self, number: int, norm: Tensor) -> Tensor:
        """How much a scorer pushes each sample, [B] in [0, 1]: less where its gradient has faded."""
        usual = self._usual.get(number)
        known = usual is not None and usual.shape == norm.shape
        usual = USUAL * usual + (1 - USUAL) * norm if known else norm
        self._usual[number] = usual
        return (norm / (FLOOR * usual).clamp_min(1e-30)).clamp(max=1)

    def _warn_of_nan(self, row: Row) -> None:
        lost = int((~row.reward.isfinite()).sum())
        if lost and not self._warned:
            log.warning(
                "%d of %d samples have no finite reward at step %d: those are not guided",
                *(lost, len(row.reward), row.index),
            )
            self._warned = True

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
        self._gains += torch.stack([(guiding - before).mean(), (held[1] - held[0]).mean()]).cpu()
        gain, held_gain = self._gains.tolist()
        row.gain, row.held_out_gain = gain, held_gain
        if gain > 0 > held_gain and not self.record.gap:
            self.record.gap = True
            log.warning(
                "reward hacking: the pushes raised the guiding reward by %.3g and lowered the "
                "held-out one by %.3g; a smaller scale or an earlier window helps",
                *(gain, -held_gain),
            )
        self.record.stopped = self.record.gap and self.stop_on_gap


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
