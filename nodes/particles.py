"""Particle Sampler: a SAMPLER under which the better images of a batch multiply while they form.

Feynman-Kac steering, https://arxiv.org/abs/2501.06848; see guidance/particles.py.
"""

from __future__ import annotations

import logging
from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_management as mm
import comfy.model_sampling
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor
from tqdm.auto import trange

from ..guidance.particles import AT, ETA
from ..guidance.resample import Weights, effective, renoised
from ..guidance.rewards import rate
from ..guidance.schedulers import Level
from .guided import decoder
from .managed import ManagedScorer
from .sampling import SEEDS
from .sockets import CATEGORY, SCORER

log = logging.getLogger(__name__)

PART = 4  # previews that are decoded and scored at a time


class ParticleSampler(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerParticleSampler",
            display_name="Particle Sampler",
            category=CATEGORY,
            description="A SAMPLER for the custom sampling nodes: at a few steps, the images of the "
            "batch that promise much are copied over those that promise little.",
            search_aliases=["feynman-kac", "FK steering", "SMC", "resample", "particles"],
            inputs=[
                SCORER.Input("scorer", tooltip="Who steers, from Load Scorer or an ensemble."),
                io.Float.Input(
                    "strength",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.5,
                    tooltip="How much more an image counts that scores one standard deviation of the "
                    "batch better: e to this power. 4 to 10 is useful. 0: off, plain Euler.",
                ),
                io.Float.Input(
                    "eta",
                    default=ETA,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Share of a copy's noise that is new, by amplitude, so that copies become "
                    "different images. 0: off, they stay the same.",
                ),
                io.Float.Input(
                    "resample_below",
                    default=0.5,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    tooltip="Copy when fewer than this share of the images carry the weight. 1: at "
                    "every check. 0: never, the images are only sorted.",
                ),
                io.Int.Input(
                    "checks",
                    default=len(AT),
                    min=0,
                    max=100,
                    tooltip="Number of steps at which the previews are scored. 0: off, plain Euler.",
                ),
                io.Float.Input(
                    "first_check",
                    default=AT[0],
                    min=0.01,
                    max=0.99,
                    step=0.05,
                    tooltip="Share of the steps after which the first check comes.",
                ),
                io.Float.Input(
                    "last_check",
                    default=AT[-1],
                    min=0.01,
                    max=0.99,
                    step=0.05,
                    tooltip="Share of the steps after which the last check comes; the others lie "
                    "between. Late copies look alike.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="Decodes the previews: a TAESD (Load VAE lists it), or the model's VAE. "
                    "None: a coarse preview of one pixel a latent, good for colours and composition "
                    "only.",
                ),
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustom and SamplerCustomAdvanced. The images of the latent's "
                    "batch are the particles; they come out best first."
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        scorer: ManagedScorer,
        strength: float,
        eta: float,
        resample_below: float,
        checks: int,
        first_check: float,
        last_check: float,
        vae: Any = None,
    ) -> io.NodeOutput:
        if last_check < first_check:
            raise ValueError(
                f"last_check ({last_check}) must not be below first_check ({first_check})"
            )
        if not strength or not checks:
            return io.NodeOutput(comfy.samplers.sampler_object("euler"))
        at = torch.linspace(first_check, last_check, checks).tolist()
        return io.NodeOutput(Particles(scorer, vae, strength, eta, resample_below, at))


class Particles(comfy.samplers.KSAMPLER):
    """What the SAMPLER wire carries. A run leaves nothing behind in it.

    Args:
        at: shares of the steps after which particles are weighed.
    """

    def __init__(
        self,
        scorer: ManagedScorer,
        vae: Any,
        strength: float,
        eta: float,
        ess: float,
        at: list[float],
    ):
        super().__init__(self._steered)
        self.scorer, self.vae, self.at = scorer, vae, at
        self.strength, self.eta, self.ess = strength, eta, ess

    def sample(
        self,
        model_wrap: Any,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        noise: Tensor,
        latent_image: Tensor | None = None,
        denoise_mask: Tensor | None = None,
        disable_pbar: bool = False,
    ) -> Tensor:
        """[n, ...], best first."""
        if noise.ndim not in (4, 5):
            raise ValueError("Particle Sampler works on images and videos without sound")
        for name, given in (("latents", latent_image), ("masks", denoise_mask)):
            if given is not None and (given != given[:1]).any():
                raise ValueError(
                    f"the {name} of the batch differ, but particles are copied from place to place: "
                    "repeat a single latent with Repeat Latent Batch"
                )
        self._load(model_wrap, noise.shape)
        return super().sample(
            *(model_wrap, sigmas, extra_args, callback, noise),
            *(latent_image, denoise_mask, disable_pbar),
        )

    def _load(self, guider: Any, shape: torch.Size) -> None:
        """The scorer and the decoder, together with what samples: so they do not drive it out."""
        patchers = [part.patcher for part in self.scorer.weights]
        patchers += [self.vae.patcher] if self.vae else []
        model = guider.model_patcher
        wanted, least = comfy.sampler_helpers.estimate_memory(model, shape, guider.conds)
        mm.load_models_gpu(
            [model, *guider.loaded_models, *patchers],
            memory_required=wanted,
            minimum_memory_required=least,
        )
        self.scorer.loaded()

    def _steered(
        self,
        model: Any,
        x: Tensor,
        sigmas: Tensor,
        extra_args: dict[str, Any],
        callback: Any,
        disable: bool,
    ) -> Tensor:
        """Euler's steps, and at some of them a look at who goes on."""
        steps, guider, x0 = len(sigmas) - 1, model.inner_model, x
        steering = Steering(self, guider, (extra_args.get("seed") or 0) + 1)
        due = {max(1, round(share * steps)) - 1 for share in self.at} - {steps - 1}
        for i in trange(steps, disable=disable):

            def seen(info: dict[str, Any], i: int = i) -> None:
                nonlocal x0
                x0 = info["denoised"]
                callback({**info, "i": i})

            ends = sigmas[i : i + 2]
            x = k_diffusion.sample_euler(model, x, ends, extra_args, seen, disable=True)
            if i in due and len(x) > 1:
                x = steering.resampled(x, x0, float(ends[1]), f"step {i + 1} of {steps}")
        return x[steering.order(x0)] if steps > 0 and len(x) > 1 else x


class Steering:
    """One run's weights.

    Args:
        seed: of the resampling and of the copies' noise.
    """

    def __init__(self, how: Particles, guider: Any, seed: int):
        self.how, self.weights = how, Weights(how.strength)
        self.generator = torch.Generator().manual_seed(seed % SEEDS)
        latent_format = guider.model_patcher.get_model_object("latent_format")
        self.decode = decoder(latent_format, how.vae)
        sampling = guider.inner_model.model_sampling
        self.flow = isinstance(sampling, comfy.model_sampling.CONST)

    def resampled(self, x: Tensor, x0: Tensor, sigma: float, where: str) -> Tensor:
        """x [n, ...] at this noise, or copies of the better ones, each with new noise."""
        self.weights.update(self._scores(x0)[None])
        share = float(effective(self.weights.log))
        if share >= self.how.ess:
            log.info("Particle Sampler, %s: %.0f %% carry the weight.", where, 100 * share)
            return x
        index = self.weights.resample(torch.rand(1, generator=self.generator))
        left = len(index.unique())
        log.info("Particle Sampler, %s: %d of %d go on, copied.", where, left, len(x))
        index = index.to(x.device)
        noise = torch.randn(x.shape, generator=self.generator).to(x)
        level = Level(1 - sigma if self.flow else 1.0, sigma)
        return renoised(x[index], x0[index], level, self.how.eta, noise)

    def order(self, x0: Tensor) -> Tensor:
        """Indices [n], best first; those without a score last."""
        scores = self._scores(x0).nan_to_num(-torch.inf)
        return scores.argsort(descending=True, stable=True).to(x0.device)

    def _scores(self, x0: Tensor) -> Tensor:
        scorer = self.how.scorer.scorer
        parts = [rate(scorer, self.decode(part)) for part in x0.float().split(PART)]
        return torch.cat(parts).cpu()
