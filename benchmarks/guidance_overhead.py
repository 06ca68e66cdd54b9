"""What a guided step takes, next to a plain one, for each way to decode.

    python benchmarks/guidance_overhead.py                  # a few minutes on a CPU, at reduced size
    python benchmarks/guidance_overhead.py --model sd15 sdxl --size 512 1024   # the default on a GPU

The architectures of Stable Diffusion 1.5 and SDXL with random weights, which take as long as trained
ones: runs of one step, CFG included, one picture, nano as the scorer. All kinds of steps are taken in
turns, so that a busy machine slows all of them; medians, on a CPU of the processor's time. `--write`
puts the tables into guidance_overhead.md under the machine's name.

On Linux, give it MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=4294967296: otherwise the C
library hands memory back and fetches it again within a step, which takes as long as its arithmetic in
some calls and no time in others.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("tastemaker") is None:
    sys.exit('tastemaker is not installed: run `pip install -e ".[test]"` in the checkout')
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
from diffusers import (  # noqa: E402
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    EulerDiscreteScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

import tastemaker  # noqa: E402
from tastemaker.guidance import Decoder, Step, tap  # noqa: E402
from tastemaker.guidance.rewards import rate  # noqa: E402

RESULTS = Path(__file__).with_suffix(".md")
MALLOC = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")  # of the C library, see above
STEPS = 20  # of the whole run that the last column is about
WINDOW = 0.5  # the default: steps below this noise ratio are not guided
SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
# Trailing, so that a run of one step begins at noise.
SCHEDULE |= dict(steps_offset=1, timestep_spacing="trailing")
KINDS = ("previewed", "guided", "guided, held-out scorer too", "through the model")
PLAIN, ARMED = "plain", "armed"
Call = Callable[[], Any]


def main() -> None:
    args = arguments()
    device = torch.device(args.device)
    found = []
    for model, size in zip(args.model, args.size, strict=True):
        bench = Bench(model, device, size)
        found.append(bench.measured(args.seconds))
        del bench
    found[0] = allocation() + found[0]
    text = f"## {measure.machine(device)}\n\n" + "\n".join(found)
    sys.stdout.write(text)
    if args.write:
        write(text)


def allocation() -> str:
    """The C library's settings with which this was run; nothing where they were left alone."""
    given = [f"`{name}={os.environ[name]}`" for name in MALLOC if os.environ.get(name)]
    return f"Run with {' '.join(given)}.\n\n" if given else ""


def arguments() -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda" if gpu else "cpu")
    parser.add_argument("--model", nargs="+", choices=list(MODELS))
    parser.add_argument("--size", nargs="+", type=int, help="sides in pixels, one a model")
    parser.add_argument("--seconds", type=float, help="for each model; three rounds at least")
    parser.add_argument("--write", action="store_true", help="into guidance_overhead.md")
    args = parser.parse_args()
    on_gpu = args.device.startswith("cuda")
    args.model = args.model or (["sd15", "sdxl"] if on_gpu else ["sd15"])
    args.size = args.size or [MODELS[model][2] if on_gpu else 128 for model in args.model]
    args.seconds = args.seconds or (30.0 if on_gpu else 300.0)
    return args


# --- the pipelines -----------------------------------------------------------------------------------


def sd15() -> StableDiffusionPipeline:
    denoiser = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280, 1280), cross_attention_dim=768, attention_head_dim=8
    )
    return StableDiffusionPipeline(
        unet=denoiser,
        vae=vae(0.18215),
        scheduler=DDIMScheduler(**SCHEDULE, clip_sample=False),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )


def sdxl() -> StableDiffusionXLPipeline:
    denoiser = UNet2DConditionModel(
        block_out_channels=(320, 640, 1280),
        cross_attention_dim=2048,
        attention_head_dim=(5, 10, 20),
        transformer_layers_per_block=(1, 2, 10),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=256,
        projection_class_embeddings_input_dim=2816,
    )
    return StableDiffusionXLPipeline(
        unet=denoiser,
        vae=vae(0.13025),
        scheduler=EulerDiscreteScheduler(**SCHEDULE),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        add_watermarker=False,
    )


def vae(scaling_factor: float) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        scaling_factor=scaling_factor,
    )


MODELS: dict[str, tuple[str, Callable[[], Any], int]] = {
    "sd15": ("Stable Diffusion 1.5", sd15, 512),
    "sdxl": ("SDXL", sdxl, 1024),
}


# --- the steps ---------------------------------------------------------------------------------------


class Bench:
    """One model's steps: plain, and of every kind with every decoder."""

    def __init__(self, model: str, device: torch.device, size: int):
        torch.manual_seed(0)
        self.name, make, _ = MODELS[model]
        self.device, self.size = device, size
        self.dtype = torch.float16 if device.type == "cuda" else torch.float32
        self.pipe = make().to(device, self.dtype)
        self.pipe.set_progress_bar_config(disable=True)
        self.scorer = tastemaker.load_scorer("nano", device=str(device))
        self.decoders: dict[str, Any] = {
            "linear": Decoder(
                self.pipe, "linear"
            ),  # fitted once, in the round that is not measured
            "AutoencoderTiny": AutoencoderTiny().to(device, self.dtype),
            "VAE": "vae",
        }
        self.call = self.arguments()

    def arguments(self) -> dict[str, Any]:
        width = self.pipe.unet.config.cross_attention_dim
        text = torch.randn(2, 1, 77, width).to(self.device, self.dtype)
        named = dict(prompt_embeds=text[0], negative_prompt_embeds=text[1])
        if isinstance(self.pipe, StableDiffusionXLPipeline):
            pooled = torch.randn(2, 1, 1280).to(self.device, self.dtype)
            named |= dict(pooled_prompt_embeds=pooled[0], negative_pooled_prompt_embeds=pooled[1])
        return named | dict(height=self.size, width=self.size, output_type="latent")

    def step(self, how: AbstractContextManager | None = None) -> Any:
        with how or nullcontext() as record:
            self.pipe(**self.call, num_inference_steps=1)
        return record

    def guided(self, pushed: bool = True, **options: Any) -> Call:
        def call() -> None:
            record = self.step(tastemaker.reward_guidance(self.pipe, self.scorer, **options))
            if (record.rows[0].push is not None) != pushed:
                raise RuntimeError(
                    f"guided where it should not be, or not where it should: {options}"
                )

        return call

    def previewed(self, how: Any) -> Call:
        """As candidates and particles are judged: decoded and scored, without a gradient."""
        decode = how if isinstance(how, Decoder) else Decoder(self.pipe, how)

        @torch.no_grad()
        def look(step: Step) -> None:
            rate(self.scorer, decode(step.x0))

        return lambda: self.step(tap(self.pipe.scheduler, look))

    def steps(self) -> dict[Any, Call]:
        calls: dict[Any, Call] = {
            PLAIN: self.step,
            ARMED: self.guided(pushed=False, window=(0.0, 0.0)),
        }
        for name, how in self.decoders.items():
            calls[name, "previewed"] = self.previewed(how)
            calls[name, "guided"] = self.guided(decode=how)
            calls[name, "guided, held-out scorer too"] = self.guided(
                decode=how, held_out=self.scorer
            )
            calls[name, "through the model"] = self.guided(decode=how, through_model=True)
        return calls

    def measured(self, seconds: float) -> str:
        calls = self.steps()
        clock = time.perf_counter if self.device.type == "cuda" else time.process_time
        taken = measure.interleaved(calls, self.device, seconds, clock)
        share, plain = guided_share(self.pipe), taken[PLAIN]
        rows = []
        for name in self.decoders:
            ratios = [taken[name, kind] / plain for kind in KINDS]
            whole = 1 + share * (ratios[KINDS.index("guided")] - 1)
            rows.append([name, *(f"{ratio:.2f}" for ratio in (*ratios, whole))])
        kind = str(self.dtype).removeprefix("torch.")
        text = (
            f"{self.name}'s architecture in {kind}, a picture of {self.size} x {self.size}. A plain step "
            f"takes {plain:.3g} s, armed but outside its window {taken[ARMED] / plain:.2f} times as long; "
            f"the others:\n\n"
        )
        header = ["decoder", *KINDS, f"a whole guided run of {STEPS}"]
        return text + measure.table(header, rows) + self.memory(calls)

    def memory(self, calls: dict[Any, Call]) -> str:
        """Where it can be measured, what a step takes beside the weights."""
        peaks = {key: measure.peak_memory(call, self.device) for key, call in calls.items()}
        if peaks[PLAIN] is None:
            return ""
        gib = {key: f"{peak / 2**30:.2f}" for key, peak in peaks.items()}
        rows = [[name, *(gib[name, kind] for kind in KINDS)] for name in self.decoders]
        text = f"\nPeak memory beside the weights, GiB; of a plain step {gib[PLAIN]}:\n\n"
        return text + measure.table(["decoder", *KINDS], rows)


def guided_share(pipe: Any) -> float:
    """Of a whole run's steps, those within the default window."""
    scheduler, seen = pipe.scheduler, []
    scheduler.set_timesteps(STEPS)
    x = torch.zeros(1, 4, 1, 1)
    with tap(scheduler, seen.append):
        for t in scheduler.timesteps:
            scheduler.step(x, t, x)
    return sum(step.noise_ratio >= WINDOW for step in seen) / len(seen)


HEAD = f"""\
# What a guided step takes

Written by `python benchmarks/guidance_overhead.py --write`. Random weights, which take as long as
trained ones; runs of one step with CFG, one picture, nano as the scorer. Medians of steps taken in turns,
on a CPU of the processor's time, so the ratios hold where a machine was shared.

- armed: within `reward_guidance`, but the step is not in its window.
- previewed: x0 is decoded and scored, without a gradient, as pruning and particles do.
- guided: with the gradient through scorer and decoder; with a held-out scorer, the pushed x0 is decoded
  and scored again.
- through the model: with the gradient through the denoiser too (`through_model=True`).
- a whole guided run of {STEPS}: only the steps in the default window are guided, the others are plain.

The linear decoder is fitted in a run's first guided step, which decodes one picture by the VAE; that is
not counted here. Settings of the C library's malloc are named where a run had any: without them it may
hand memory back and fetch it again within a step, which then takes longer than its arithmetic.
"""


def write(text: str) -> None:
    """Puts the tables in place of this machine's earlier ones."""
    old = RESULTS.read_text(encoding="utf-8") if RESULTS.exists() else ""
    kept = [s for s in old.split("\n## ")[1:] if s.splitlines()[0] != text.splitlines()[0][3:]]
    parts = [HEAD.strip(), *(f"## {s.strip()}" for s in kept), text.strip()]
    RESULTS.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
