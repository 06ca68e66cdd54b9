"""Particle Sampler: a SAMPLER under which the better images of a batch multiply while they form.

Feynman-Kac steering, https://arxiv.org/abs/2501.06848; see guidance/particles.py.
"""

from __future__ import annotations

from typing import Any

import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_management as mm
import comfy.sampler_helpers
import comfy.samplers
import torch
from comfy_api.latest import io
from torch import Tensor
from tqdm.auto import trange

from ..guidance.particles import AT, ETA
from ..guidance.record import Record
from .managed import ManagedScorer
from .runs import Runs
from .sampling import PROMPT
from .sockets import CATEGORY, SCORER
from .steering import Options, Steering


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
                SCORER.Input(
                    "held_out",
                    optional=True,
                    tooltip="Another scorer, which does not steer, but says whether the images get "
                    "better or only the score; see Guidance Report. None: no such check.",
                ),
                PROMPT,
            ],
            outputs=[
                io.Sampler.Output(
                    tooltip="For SamplerCustom and SamplerCustomAdvanced. The images of the latent's "
                    "batch are the particles; they come out best first. And for Guidance Report."
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
        held_out: ManagedScorer | None = None,
        prompt: str = "",
    ) -> io.NodeOutput:
        if last_check < first_check:
            raise ValueError(
                f"last_check ({last_check}) must not be below first_check ({first_check})"
            )
        if not strength or not checks:
            return io.NodeOutput(comfy.samplers.sampler_object("euler"))
        at = torch.linspace(first_check, last_check, checks).tolist()
        how = strength, eta, resample_below, at
        return io.NodeOutput(Particles(Options(scorer, vae, held_out, prompt, *how)))


class Particles(comfy.samplers.KSAMPLER):
    """What the SAMPLER wire carries; of its last runs, `runs` knows what they did."""

    def __init__(self, options: Options):
        super().__init__(self._steered)
        self.options, self.runs = options, Runs()
        self._record: Record | None = None  # of the run in progress

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
        samples = super().sample(
            *(model_wrap, sigmas, extra_args, callback, noise),
            *(latent_image, denoise_mask, disable_pbar),
        )
        made = model_wrap.inner_model.process_latent_out(samples.to(torch.float32))
        self.runs.keep(made, self._record)
        return samples

    def _load(self, guider: Any, shape: torch.Size) -> None:
        """The scorers and the decoder, together with what samples: so they do not drive it out."""
        scorers = [each for each in (self.options.scorer, self.options.held_out) if each]
        patchers = [part.patcher for scorer in scorers for part in scorer.weights]
        patchers += [self.options.vae.patcher] if self.options.vae else []
        model = guider.model_patcher
        wanted, least = comfy.sampler_helpers.estimate_memory(model, shape, guider.conds)
        mm.load_models_gpu(
            [model, *guider.loaded_models, *patchers],
            memory_required=wanted,
            minimum_memory_required=least,
        )
        for scorer in scorers:
            scorer.loaded()

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
        steps, x0 = len(sigmas) - 1, x
        seed = (extra_args.get("seed") or 0) + 1
        steering = Steering(self.options, model.inner_model, seed)
        self._record = steering.record
        due = {max(1, round(share * steps)) - 1 for share in self.options.at} - {steps - 1}
        for i in trange(steps, disable=disable):

            def seen(info: dict[str, Any], i: int = i) -> None:
                nonlocal x0
                x0 = info["denoised"]
                callback({**info, "i": i})

            ends = sigmas[i : i + 2]
            x = k_diffusion.sample_euler(model, x, ends, extra_args, seen, disable=True)
            row = steering.add(x, float(ends[0]))
            if i in due and len(x) > 1:
                x = steering.resampled(x, x0, float(ends[1]), row)
        return x[steering.order(x0, row)] if steps > 0 and len(x) > 1 else x
