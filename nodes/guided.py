"""Reward guidance of a MODEL: what a sampling run of it loads, does at each step, and leaves behind."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import comfy.model_management as mm
import comfy.model_sampling
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..guidance.guide import Guide
from ..guidance.latents import decoded, linear_pixels, noise_ratio
from ..guidance.tap import Step
from .managed import ManagedScorer, make_normal
from .runs import Runs

KEY = "tastemaker_guidance"
# What a MODEL may have attached whose sampler drops candidates: it says which rows are still sampled.
LIVING = "tastemaker_living"

Decode = Callable[[Tensor], Tensor]  # x0 in the model's latent space -> pixels in [0, 1]
Living = Callable[[], Sequence[int]]


class Guided:
    """Guides whatever is sampled with the MODELs that `patch` gives, each run by itself.

    Args:
        scorer: guides.
        vae: ComfyUI's VAE, a TAESD among them; None for the linear preview of the model's latents.
        held_out: only watches.
        prompt: of all images, for scorers that read it; "" where it is not known.
        options: of `Guide`: scale, window, stop_on_gap.
    """

    def __init__(
        self,
        scorer: ManagedScorer,
        vae: Any,
        held_out: ManagedScorer | None,
        prompt: str = "",
        **options: Any,
    ):
        self.scorer, self.vae, self.held_out = scorer, vae, held_out
        self.prompt, self.options = prompt, options
        self.runs = Runs()
        # Of the run in progress:
        self._guide: Guide | None = None
        self._living: Living | None = None
        self._rows: list[int]  # that were guided last

    def patch(self, model: Any) -> Any:
        """A MODEL that is sampled with guidance; the one given stays as it is."""
        model = model.clone()
        # Loaded together with it, so that neither drives out the other.
        others = model.get_additional_models_with_key(KEY)
        model.set_additional_models(KEY, [*others, *self._patchers()])
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, self._sample)
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self._prepare)
        # x0 is all it needs: a model that runs at CFG 1 may go on leaving out the negative prompt.
        model.set_model_sampler_post_cfg_function(self._guided)
        model.set_attachments(KEY, self)
        return model

    def _scorers(self) -> list[ManagedScorer]:
        return [self.scorer] + ([self.held_out] if self.held_out else [])

    def _patchers(self) -> list[Any]:
        patchers = [part.patcher for scorer in self._scorers() for part in scorer.weights]
        return patchers + ([self.vae.patcher] if self.vae else [])

    def _sample(self, executor: Any, noise: Tensor, *args: Any, **named: Any) -> Tensor:
        """Around a run: it has a guide, and so a record, of its own."""
        if noise.ndim not in (4, 5):
            raise ValueError(
                "Reward Guidance works on latents of images and videos, not on these of "
                f"{list(noise.shape)}, such as those with sound: sample with the MODEL before it"
            )
        patcher = executor.class_obj.model_patcher
        decode = decoder(patcher.get_model_object("latent_format"), self.vae)
        held_out = self.held_out and self.held_out.scorer
        scorers = [(self.scorer.scorer, 1.0)]
        how = dict(self.options, prompts=[self.prompt] if self.prompt else None)
        self._guide = guide = Guide(scorers, decode, held_out=held_out, **how)
        self._rows = list(range(len(noise)))
        self._living = patcher.get_attachment(LIVING) or (lambda: range(len(noise)))
        try:
            samples = executor(noise, *args, **named)
        finally:
            self._guide = self._living = None
        self.runs.keep(samples, guide.record)
        return samples

    def _prepare(self, executor: Any, *args: Any, **named: Any) -> Any:
        """Around the loading: autograd cannot use weights that were made or moved under inference mode."""
        loaded = executor(*args, **named)
        with torch.inference_mode(False):
            for patcher in self._patchers():
                make_normal(patcher.model)
        for scorer in self._scorers():
            scorer.loaded()
        return loaded

    def _guided(self, args: dict[str, Any]) -> Tensor:
        """ComfyUI's post-CFG function: x0 in, x0 out."""
        if self._guide is None:
            raise RuntimeError(
                "a node runs this MODEL outside of ComfyUI's sampling, where Reward Guidance cannot "
                "follow: give it the MODEL before Reward Guidance"
            )
        mm.throw_exception_if_processing_interrupted()
        denoised, sigma = args["denoised"], float(args["sigma"].max())
        ratio = noise_ratio_of(args["model"].model_sampling, sigma)
        index, rows = len(self._guide.record.rows), self._left()
        x0 = self._guide(Step(denoised[rows].float(), ratio, sigma, index, args["sigma"]))
        if x0 is None:
            return denoised
        guided = denoised.clone()
        guided[rows] = x0.to(denoised)
        return guided

    def _left(self) -> list[int]:
        """The rows that are still sampled. What the guide knows of the others it forgets."""
        rows = list(self._living())
        if rows != self._rows:
            self._guide.keep([self._rows.index(row) for row in rows])
            self._rows = rows
        return rows


def noise_ratio_of(sampling: Any, sigma: float) -> float:
    """1 is all noise, 0 is clean; of a model's `model_sampling`."""
    flow = isinstance(sampling, comfy.model_sampling.CONST)
    deviation = 1.0 if flow else float(getattr(sampling, "sigma_data", 1.0))
    return noise_ratio(sigma, flow, deviation)


def decoder(latent_format: Any, vae: Any = None) -> Decode:
    """How x0 becomes pixels, differentiable: by a VAE, or by the latents' own linear preview.

    Raises:
        ValueError: without a VAE, where the latents have no such preview.
    """
    if vae is None:
        return _linear(latent_format)
    # Its statistics, too, may have been made under inference mode.
    with torch.inference_mode(False):
        latent_format = copy.deepcopy(latent_format)
    return lambda x0: decoded(latent_format.process_out(x0), lambda z: _by_vae(vae, z)).to(x0)


def _linear(latent_format: Any) -> Decode:
    factors, bias = latent_format.latent_rgb_factors, latent_format.latent_rgb_factors_bias
    if factors is None:
        raise ValueError(
            f"the latents of this model ({type(latent_format).__name__}) have no linear preview: "
            "connect a VAE"
        )
    reshape = latent_format.latent_rgb_factors_reshape or (lambda z: z)
    return lambda x0: decoded(x0, lambda z: linear_pixels(reshape(z), factors, bias))


def _by_vae(vae: Any, z: Tensor) -> Tensor:
    """[N, C, h, w] -> [N, 3, H, W]. `VAE.decode` itself loads models and leaves no gradient."""
    z = z.to(vae.device, vae.vae_dtype)
    pixels = vae.first_stage_model.decode(z.unsqueeze(2) if vae.latent_dim == 3 else z)
    # It works in place, which autograd forbids for what it has saved.
    pixels = vae.process_output(pixels.float().clone())
    return (pixels[:, :, 0] if pixels.ndim == 5 else pixels)[:, :3]
