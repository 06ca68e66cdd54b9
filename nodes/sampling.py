"""Many candidates through one of ComfyUI's samplers, each as KSampler samples it alone.

All go through the sampler together, so that they can be compared at any step; the model is given
only those that are still alive, a few at a time. What a sampler does between two calls of the
model costs next to nothing, so the dead ones need not leave its arrays.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import comfy.extra_samplers.uni_pc
import comfy.k_diffusion.sampling as k_diffusion
import comfy.model_management as mm
import comfy.sample
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.patcher_extension import WrappersMP
from comfy_api.latest import io
from torch import Tensor

from .guided import LIVING
from .pruning import Pruner
from .sockets import SCORER

KEY = "tastemaker_candidates"
SEEDS = 2**64

# Candidates must not know of each other: this one chooses its steps by all of a batch.
COUPLED = ("dpm_adaptive",)
# Those whose own noise is a Brownian tree; on the GPU where the name says so.
BROWNIAN = ("dpmpp_sde", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde")
OWN = (k_diffusion.__name__, comfy.extra_samplers.uni_pc.__name__, comfy.samplers.__name__)

MODELS = [
    io.Model.Input("model", tooltip="The model that samples. It is not changed."),
    io.Conditioning.Input("positive", tooltip="What the images are to show."),
    io.Conditioning.Input("negative", tooltip="What they are not to show."),
    io.Vae.Input("vae", tooltip="Decodes the finished images, which are then scored."),
    SCORER.Input("scorer", tooltip="Who chooses, from Load Scorer or an ensemble."),
    io.Latent.Input(
        "latent_image",
        tooltip="One latent, from which every candidate starts: an empty one says the size.",
    ),
]
HELD_OUT = SCORER.Input(
    "held_out",
    optional=True,
    tooltip="Another scorer, which does not choose, but says whether the images get better or only "
    "the score. None: no such check.",
)
PROMPT = io.String.Input(
    "prompt",
    optional=True,
    force_input=True,
    tooltip="The text of positive, for scorers that read it; those that come with Tastemaker look at "
    "the image only. None: they get no text.",
)


def batch_size_input(what: str) -> io.Int.Input:
    return io.Int.Input(
        "batch_size",
        default=4,
        min=1,
        max=64,
        tooltip=f"Number of {what} that the model is given at a time. It changes the memory needed, "
        "not the images.",
    )


def sampler_inputs() -> list[Any]:
    """KSampler's."""
    samplers = [name for name in comfy.samplers.KSampler.SAMPLERS if name not in COUPLED]
    return [
        io.Int.Input("steps", default=20, min=1, max=10_000, tooltip="Number of sampling steps."),
        io.Float.Input(
            "cfg",
            default=8.0,
            min=0.0,
            max=100.0,
            step=0.1,
            round=0.01,
            tooltip="How strictly the prompt is followed. 1: the negative prompt is switched off.",
        ),
        io.Combo.Input("sampler_name", options=samplers, tooltip="As in KSampler."),
        io.Combo.Input(
            "scheduler", options=comfy.samplers.KSampler.SCHEDULERS, tooltip="As in KSampler."
        ),
        io.Float.Input(
            "denoise",
            default=1.0,
            min=0.01,
            max=1.0,
            step=0.01,
            tooltip="Share of the noise that is put on latent_image. 1: all, so nothing is left of it.",
        ),
    ]


@dataclass(frozen=True)
class Settings:
    """Of KSampler; `latent_image` holds the one latent that all candidates start from."""

    model: Any
    positive: list
    negative: list
    latent_image: dict[str, Any]
    steps: int
    cfg: float
    sampler_name: str
    scheduler: str
    denoise: float

    def start(self) -> Tensor:
        """[1, C, h, w] or [1, C, T, h, w], with the model's number of channels."""
        latent = self.latent_image
        samples = latent["samples"]
        if samples.is_nested or len(samples) != 1:
            count = "several in one" if samples.is_nested else len(samples)
            raise ValueError(f"latent_image must hold one latent, without sound, got {count}")
        names = ("downscale_ratio_spacial", "downscale_ratio_temporal")
        ratios = [latent.get(name) for name in names]
        return comfy.sample.fix_empty_latent_channels(self.model, samples, *ratios)

    def noise(self, seeds: Sequence[int]) -> Tensor:
        """[N, ...]: KSampler's for each seed."""
        start, index = self.start(), self.latent_image.get("batch_index")
        return torch.cat([comfy.sample.prepare_noise(start, seed, index) for seed in seeds])

    def check(self) -> None:
        """ValueError for what would not be the same for all candidates."""
        for name, conds in (("positive", self.positive), ("negative", self.negative)):
            for cond, _ in conds:
                if isinstance(cond, Tensor) and len(cond) > 1:
                    raise ValueError(f"{name} is a batch of {len(cond)} prompts: connect one")

    def latents(self, samples: Tensor) -> dict[str, Any]:
        """Samples [K, ...] as a LATENT."""
        gone = ("downscale_ratio_spacial", "downscale_ratio_temporal", "batch_index")
        kept = {key: value for key, value in self.latent_image.items() if key not in gone}
        return {**kept, "samples": samples}


@dataclass
class Run:
    """One run of N candidates.

    Args:
        noise: [N, ...].
        seeds: of the noise that some samplers add at each step, one a candidate.
        pruner: says after each step which of the living go on. Its models are loaded together with
            the one that samples, so that neither drives out the other.
    """

    settings: Settings
    noise: Tensor
    seeds: Sequence[int]
    batch_size: int
    pruner: Pruner | None = None
    alive: list[int] = field(init=False)
    calls: int = 0  # of the model, times candidates
    all_calls: int = 0  # that it would have taken to finish all

    def __post_init__(self) -> None:
        self.alive = list(range(len(self.noise)))

    def samples(self) -> Tensor:
        """The latents [K, ...] of those alive at the end, in order."""
        how = self.settings
        how.check()
        start, model = how.start(), self._patched()
        kind = dict(sampler=how.sampler_name, scheduler=how.scheduler, denoise=how.denoise)
        options = dict(device=model.load_device, model_options=model.model_options)
        sigmas = comfy.samplers.KSampler(model, steps=how.steps, **kind, **options).sigmas
        samples = comfy.sample.sample_custom(
            *(model, self.noise, how.cfg, independent(how.sampler_name, self.seeds), sigmas),
            *(how.positive, how.negative, start.expand(len(self.noise), *start.shape[1:])),
            noise_mask=how.latent_image.get("noise_mask"),
            callback=self._callback(latent_preview.prepare_callback(model, how.steps)),
            disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
            seed=self.seeds[0],
        )
        return samples[self.alive]

    def _patched(self) -> Any:
        model = self.settings.model.clone()
        if self.pruner:
            model.set_additional_models(KEY, self.pruner.patchers())
        model.set_attachments(LIVING, lambda: self.alive)
        model.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, self._prepare)
        # Here, and not around all of CFG: what other nodes put behind it may keep what it has seen of
        # each row, and some samplers look there for the prediction without the prompt.
        model.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, self._predict)
        return model

    def _prepare(self, executor: Any, model: Any, shape: Sequence[int], *args: Any, **named: Any):
        """Around the loading, where memory is reserved for as many as the model is given."""
        count = min(self.batch_size, shape[0])
        loaded = executor(model, [count, *shape[1:]], *args, **named)
        if self.pruner:
            self.pruner.scorer.loaded()
        return loaded

    def _predict(
        self, executor: Any, model: Any, conds: list, x: Tensor, timestep: Tensor, options: dict
    ) -> list[Tensor]:
        """The model's predictions, one [N, ...] a conditioning; the dead are left as they are."""
        self.calls, self.all_calls = self.calls + len(self.alive), self.all_calls + len(x)
        if len(self.alive) == len(x) <= self.batch_size:
            return executor(model, conds, x, timestep, options)
        found = [x.clone() for _ in conds]
        for first in range(0, len(self.alive), self.batch_size):
            mm.throw_exception_if_processing_interrupted()
            rows = self.alive[first : first + self.batch_size]
            parts = executor(model, conds, x[rows], timestep[rows], options)
            for whole, part in zip(found, parts, strict=True):
                whole[rows] = part
        return found

    def _callback(self, show: Callable) -> Callable:
        """After each step: the progress and the picture of one that is alive, then who goes on."""

        def callback(step: int, x0: Tensor, x: Tensor, total: int) -> None:
            show(step, x0[self.alive[:1]], x, total)
            if self.pruner:
                kept = self.pruner.kept(step, total, x0[self.alive])
                self.alive = [self.alive[i] for i in kept]

        return callback


def independent(name: str, seeds: Sequence[int]) -> comfy.samplers.KSAMPLER:
    """ComfyUI's sampler of that name, which gives each row of a batch the noise it would get alone.

    Args:
        seeds: one a row.

    Raises:
        ValueError: naming a sampler of which that is not known.
    """
    sampler = comfy.samplers.sampler_object(name)
    if len(seeds) == 1:
        return sampler
    function, random_mask = sampler.sampler_function, sampler.inpaint_options.get("random")
    if name in COUPLED or function.__module__ not in OWN:
        raise ValueError(
            f"sampler_name: {name} may let the images of a batch depend on each other: choose one of "
            "ComfyUI's own, such as euler or dpmpp_2m"
        )

    def function_of_each(model: Any, x: Tensor, sigmas: Tensor, **named: Any) -> Tensor:
        if random_mask:
            model.noise = _mask_noise(x, seeds)
        own = _noise_sampler(name, function, x, sigmas, seeds)
        return function(model, x, sigmas, **named, **own)

    return comfy.samplers.KSAMPLER(function_of_each, sampler.extra_options, sampler.inpaint_options)


def _noise_sampler(
    name: str, function: Callable, x: Tensor, sigmas: Tensor, seeds: Sequence[int]
) -> dict[str, Any]:
    """What the sampler gets its noise from, row by row; nothing if it adds none."""
    if name.removesuffix("_gpu") in BROWNIAN:
        ends = sigmas[sigmas > 0].min(), sigmas.max()
        on_cpu = not name.endswith("_gpu")
        tree = k_diffusion.BrownianTreeNoiseSampler(x, *ends, seed=list(seeds), cpu=on_cpu)
        return {"noise_sampler": tree}
    if "noise_sampler" not in inspect.signature(function).parameters:
        return {}
    rows = x.split(1)
    each = [k_diffusion.default_noise_sampler(r, seed=s) for r, s in zip(rows, seeds, strict=True)]
    return {"noise_sampler": lambda *sigmas: torch.cat([one(*sigmas) for one in each])}


def _mask_noise(x: Tensor, seeds: Sequence[int]) -> Tensor:
    """Where latents are kept by a mask, ddim puts noise of its own on them."""
    generators = [torch.Generator().manual_seed((seed + 1) % SEEDS) for seed in seeds]
    return torch.cat([torch.randn(x[:1].shape, generator=g) for g in generators]).to(x)
