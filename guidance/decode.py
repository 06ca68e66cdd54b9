"""From the x0 that a pipeline's scheduler sees to pixels for a scorer, differentiable.

A pipeline hands its scheduler latents in a layout and a scale of its own, and undoes both in a few
lines before its VAE. `FAMILIES` is the table of those lines. Nothing of diffusers is imported.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .initial import replaced
from .offload import hooks_of, still

Size = tuple[int, int]  # (height, width) in pixels
FLAGS = ("gradient_checkpointing", "_gradient_checkpointing_func")  # whether, and by which function


def _as_it_is(x0: Tensor, size: Size | None, pipe: Any) -> Tensor:
    return x0


def _unpack(x0: Tensor, size: Size | None, pipe: Any) -> Tensor:
    """Patches of 2 x 2 latents [B, h/2 * w/2, C*4] -> [B, C, h, w]."""
    if size is None:
        raise RuntimeError(
            "these latents are packed, and neither height nor width is known: run the pipeline "
            "within `with decoder.watching():`, or set decoder.size = (height, width)"
        )
    h, w = (side // (2 * pipe.vae_scale_factor) for side in size)
    patches = x0.unflatten(1, (h, w)).unflatten(3, (-1, 2, 2))  # [B, h/2, w/2, C, 2, 2]
    return patches.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)


def _unpack_frame(x0: Tensor, size: Size | None, pipe: Any) -> Tensor:
    """The same as a clip of one frame, [B, C, 1, h, w]: the VAE is one for video."""
    return _unpack(x0, size, pipe).unsqueeze(2)


def _by_factor(z: Tensor, config: Any) -> Tensor:
    return z / config.scaling_factor


def _by_shift(z: Tensor, config: Any) -> Tensor:
    return z / config.scaling_factor + (config.shift_factor or 0)


def _by_statistics(z: Tensor, config: Any) -> Tensor:
    """Channels [B, C, ...] with a mean and a deviation each."""
    shape = (1, -1, *[1] * (z.ndim - 2))
    mean, std = (z.new_tensor(v).view(shape) for v in (config.latents_mean, config.latents_std))
    return z * std / (getattr(config, "scaling_factor", None) or 1) + mean


def _by_factor_or_statistics(z: Tensor, config: Any) -> Tensor:
    """Some fine-tunes of SDXL come with statistics; SDXL does not."""
    found = [getattr(config, name, None) is not None for name in ("latents_mean", "latents_std")]
    return (_by_statistics if all(found) else _by_factor)(z, config)


class Family(NamedTuple):
    """What a pipeline does with its latents before its VAE."""

    unpack: Callable[[Tensor, Size | None, Any], Tensor]  # to [B, C, h, w] or [B, C, F, h, w]
    unscale: Callable[[Tensor, Any], Tensor]
    video: bool = False
    upcasts: bool = False  # a float16 VAE that overflows computes in float32


# By the exact class: one that is not here may pack the same shapes in another order.
FAMILIES: dict[str, Family] = {
    "StableDiffusionPipeline": Family(_as_it_is, _by_factor),
    "StableDiffusionXLPipeline": Family(_as_it_is, _by_factor_or_statistics, upcasts=True),
    "StableDiffusion3Pipeline": Family(_as_it_is, _by_shift),
    "FluxPipeline": Family(_unpack, _by_shift),
    "QwenImagePipeline": Family(_unpack_frame, _by_statistics),
    "ZImagePipeline": Family(_as_it_is, _by_shift),
    "WanPipeline": Family(_as_it_is, _by_statistics, video=True),
}


def family_of(pipe: Any) -> Family:
    """Raises NotImplementedError, naming a pipeline that is not in the table and what to do."""
    name = type(pipe).__name__
    if name not in FAMILIES:
        raise NotImplementedError(
            f"the latents of {name} are not known (those of {', '.join(FAMILIES)} are): give a "
            "callable that takes x0 to pixels [B, 3, H, W] in [0, 1]"
        )
    if getattr(pipe, "vae", None) is None:
        raise ValueError(f"this {name} has no VAE")
    return FAMILIES[name]


class Decoder:
    """x0 as `Step.x0` has it -> pixels [B, 3, H, W] in [0, 1], in x0's dtype and on its device.

    Of a video, [B, T, 3, H, W]: `frames` of the latent frames, evenly spread, the first always among
    them. Each is decoded by itself, as the VAE decodes the first one of a clip: exact for that one, an
    approximation for the others. With `frames=None` the whole clip, exactly as the pipeline decodes it.

    The weights are neither changed nor given gradients.

    Args:
        pipe: a diffusers pipeline.
        how: "vae", the pipeline's own, whose gradient takes much memory (about 22 GiB a picture of 1024
            px in float32, 3 and what one block takes if it is `checkpointed`); an `AutoencoderTiny`
            (TAESD), about 20 times faster with a tenth of the memory; "linear", small pictures of one
            pixel a latent, for colours and smoke tests, by a matrix fitted to the VAE's pictures of
            the first batch that comes; or any callable, which gets x0 as it is.
        frames: latent frames of a video to decode; None for all.

    Raises:
        NotImplementedError: naming a pipeline whose latents are not known.
    """

    def __init__(
        self, pipe: Any, how: str | Callable[[Tensor], Tensor] = "vae", frames: int | None = 3
    ):
        if frames is not None and frames < 1:
            raise ValueError(f"frames must be at least 1, or None for all, got {frames}")
        check_decode(how)
        self.pipe, self.how, self.frames = pipe, how, frames
        self.size: Size | None = None  # (height, width) of the run in pixels
        self._rgb: Tensor | None = None
        self._pictures = self._way()
        self.family = family_of(pipe) if self._pictures else None

    def _way(self) -> Callable[[Tensor], Tensor] | None:
        """From latents to pictures [N, 3, H, W]; None where a callable does it all."""
        if type(self.how).__name__ == "AutoencoderTiny":
            return self._tiny
        if isinstance(self.how, str):
            return self._full if self.how == "vae" else self._linear
        return None

    def __call__(self, x0: Tensor) -> Tensor:
        if self.family is None:
            return self.how(x0)
        z = self.unpack(x0)
        if z.ndim == 5 and self.frames is not None:
            z = spread(z, self.frames)  # [B*T, C, 1, h, w]
        pixels = self._pictures(z).clamp(0, 1).to(x0)  # [B*T, 3, H, W]
        return pixels.unflatten(0, (len(x0), -1)) if self.family.video else pixels

    def unpack(self, x0: Tensor) -> Tensor:
        """[B, C, h, w] or [B, C, F, h, w], where it is known how the pipeline packs them; or x0."""
        return x0 if self.family is None else self.family.unpack(x0, self.size, self.pipe)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Within the context, runs of the pipeline tell the decoder their height and width."""
        if self.family is None:  # a callable, which may go with any pipeline, gets x0 alone
            yield
            return
        own = self.pipe.prepare_latents
        signature = inspect.signature(own)

        @functools.wraps(own)
        def prepare_latents(*args: Any, **named: Any) -> Any:
            given = signature.bind(*args, **named).arguments
            self.size = given["height"], given["width"]
            return own(*args, **named)

        with replaced(self.pipe, "prepare_latents", prepare_latents):
            yield

    def _full(self, z: Tensor) -> Tensor:
        vae = self.pipe.vae
        z = self.family.unscale(z, vae.config)
        upcast = self.family.upcasts and vae.dtype == torch.float16 and vae.config.force_upcast
        pixels = (_decoded_in_float32 if upcast else _decoded)(vae, z) / 2 + 0.5
        return _frames(pixels)

    def _tiny(self, z: Tensor) -> Tensor:
        z, channels = _frames(z), self.how.config.latent_channels
        if z.shape[1] != channels:
            raise ValueError(f"this AutoencoderTiny is for {channels} channels, not {z.shape[1]}")
        return _decoded(self.how, _by_shift(z, self.how.config)) / 2 + 0.5

    def _linear(self, z: Tensor) -> Tensor:
        if self._rgb is None:
            with torch.inference_mode(False), torch.no_grad():
                seen = z.detach().clone()
                self._rgb = fit_rgb(_frames(seen), self._full(seen).clamp(0, 1))
        rgb = self._rgb.to(_frames(z))
        return torch.einsum("nchw,cd->ndhw", _frames(z), rgb[:-1]) + rgb[-1].view(3, 1, 1)


def check_decode(how: Any) -> None:
    """Raises ValueError for a way to decode that there is not."""
    if how not in ("vae", "linear") if isinstance(how, str) else not callable(how):
        raise ValueError(
            f'decode is "vae", "linear", an AutoencoderTiny or a callable, got {how!r}'
        )


def spread(z: Tensor, frames: int) -> Tensor:
    """[B, C, F, h, w] -> T <= `frames` evenly spread ones, each a clip of one: [B*T, C, 1, h, w]."""
    count = z.shape[2]
    picks = torch.linspace(0, count - 1, min(frames, count)).round().long()
    return z[:, :, picks.to(z.device)].movedim(2, 1).flatten(0, 1).unsqueeze(2)


def fit_rgb(z: Tensor, pixels: Tensor) -> Tensor:
    """The matrix [C + 1, 3] that takes latents [N, C, h, w] and 1 to pixels [N, 3, H, W], best.

    By least squares; what the latents leave open is kept small.
    """
    small = F.adaptive_avg_pool2d(pixels, z.shape[-2:])
    a, y = (x.movedim(1, -1).flatten(0, -2).double().cpu() for x in (z, small))
    a = torch.cat([a, torch.ones_like(a[:, :1])], 1)
    ridge = 1e-4 * len(a) * torch.eye(a.shape[1], dtype=a.dtype)
    return torch.linalg.solve(a.T @ a + ridge, a.T @ y)


def _frames(x: Tensor) -> Tensor:
    """[B, C, F, h, w] -> [B*F, C, h, w]; [B, C, h, w] as it is."""
    return x.movedim(2, 1).flatten(0, 1) if x.ndim == 5 else x


@contextmanager
def checkpointed(decoder: nn.Module) -> Iterator[None]:
    """Within the context, its backward computes activations again, a block at a time.

    For the same gradient it keeps about a seventh of the memory. The weights do not learn meanwhile:
    what is computed again must be what was computed. A decoder that does not know how, or whose
    weights hooks bring and take away, is as it was.
    """
    if not getattr(decoder, "_supports_gradient_checkpointing", False) or hooks_of(decoder):
        yield
        return
    with still(decoder), _flags_kept(decoder):
        decoder.enable_gradient_checkpointing()
        yield


@contextmanager
def _flags_kept(decoder: nn.Module) -> Iterator[list[nn.Module]]:
    """After the context, its parts that can be checkpointed are as they were before."""
    parts = [part for part in decoder.modules() if hasattr(part, FLAGS[0])]
    kept = [{name: vars(part)[name] for name in FLAGS if name in vars(part)} for part in parts]
    try:
        yield parts
    finally:
        for part, values in zip(parts, kept, strict=True):
            for name in FLAGS:
                vars(part).pop(name, None)
            vars(part).update(values)


def _decoded(vae: Any, z: Tensor) -> Tensor:
    """Differentiable in z only."""
    with still(vae):
        return vae.decode(z.to(_device(vae), vae.dtype), return_dict=False)[0]


class _Decode(nn.Module):
    def __init__(self, vae: Any):
        super().__init__()
        self.vae = vae

    def forward(self, z: Tensor) -> Tensor:
        return self.vae.decode(z, return_dict=False)[0]


def _decoded_in_float32(vae: Any, z: Tensor) -> Tensor:
    """With a copy of the weights: converting them there and back would leave none for backward."""
    if any(p.is_meta for p in vae.parameters()):
        return _converted(vae, z)
    if hasattr(vae, "_hf_hook"):  # brings the weights before they are copied
        vae._hf_hook.pre_forward(vae)
    call = _Decode(vae)
    weights = {name: p.detach().float() for name, p in call.named_parameters()}
    # Computed again in the backward, it would be with the weights it has.
    with _flags_kept(vae) as parts:
        for part in parts:
            part.gradient_checkpointing = False
        return torch.func.functional_call(call, weights, (z.to(_device(vae), torch.float32),))


def _converted(vae: Any, z: Tensor) -> Tensor:
    """Where each layer's weights come as copies, of the type that is asked for, nothing is lost."""
    vae.to(torch.float32)
    try:
        return _decoded(vae, z)
    finally:
        vae.to(torch.float16)


def _device(vae: Any) -> torch.device:
    """Where it computes. Offloaded weights are elsewhere until a hook fetches them."""
    hooks = (getattr(module, "_hf_hook", None) for module in vae.modules())
    devices = [d for d in (getattr(hook, "execution_device", None) for hook in hooks) if d]
    return torch.device(devices[0]) if devices else vae.device
