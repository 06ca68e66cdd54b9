"""Makes every weight in `weights/`, and the table of what they measure.

    pip install "tastemaker[diffusers]"
    python -m tastemaker.demo.train                    # all, about an hour of one CPU core
    python -m tastemaker.demo.train denoiser rewards   # the VAE as it is

Nothing is downloaded: the pictures are drawn (`shapes`). Everything is seeded. `made.json` says with
which settings each part was made, what it measures, and the digest of its weights.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, StableDiffusionPipeline
from transformers import CLIPTokenizer

from ..scorers.checkpoint import replacing, write_safetensors
from . import learn_generator, learn_rewards, recognise, rewards, shapes
from .generator import WEIGHTS as GENERATOR
from .generator import load_pipeline
from .tokenizer import write_tokenizer

PARTS = ("vae", "denoiser", "rewards")
SETTINGS = {
    "vae": learn_generator.VaeSettings(),
    "denoiser": learn_generator.DenoiserSettings(),
    "rewards": learn_rewards.Settings(),
}
MADE = rewards.WEIGHTS / "made.json"
RESULTS = Path(__file__).with_name("results.md")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; all of them by default")
    parts = parser.parse_args().parts or PARTS
    if unknown := set(parts) - set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    for part in PARTS:
        if part in parts:
            make(part)


def make(part: str) -> None:
    """Trains and writes one part, and renews the table."""
    started = time.process_time()
    measured = {"vae": make_vae, "denoiser": make_denoiser, "rewards": make_rewards}[part]()
    made = json.loads(MADE.read_text(encoding="utf-8")) if MADE.exists() else {}
    made[part] = {
        "settings": asdict(SETTINGS[part]),
        "measured": measured,
        "minutes": round((time.process_time() - started) / 60, 1),
        "sha256": {file.relative_to(MADE.parent).as_posix(): digest(file) for file in files(part)},
    }
    write(MADE, json.dumps({name: made[name] for name in PARTS if name in made}, indent=2) + "\n")
    if set(made) == set(PARTS):
        write(RESULTS, results(made))


def make_vae() -> dict[str, float]:
    vae, error = learn_generator.learn_vae(SETTINGS["vae"])
    vae.half().save_pretrained(GENERATOR / "vae")
    return {"copying error": error, "parameters": count(vae)}


def make_denoiser() -> dict[str, Any]:
    write_tokenizer(GENERATOR / "tokenizer", shapes.WORDS)
    tokenizer = CLIPTokenizer.from_pretrained(GENERATOR / "tokenizer")
    vae = AutoencoderKL.from_pretrained(GENERATOR / "vae")
    model, loss = learn_generator.learn_denoiser(vae, tokenizer, SETTINGS["denoiser"])
    pipe = StableDiffusionPipeline(
        vae=vae.half(),
        # In half precision, transformers would load it so, and diffusers the others not.
        text_encoder=model.text,
        tokenizer=tokenizer,
        unet=model.unet.half(),
        scheduler=learn_generator.new_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(GENERATOR)
    # The files that every release of transformers reads, and no others.
    (GENERATOR / "tokenizer" / "tokenizer.json").unlink(missing_ok=True)
    write_tokenizer(GENERATOR / "tokenizer", shapes.WORDS)
    forget_places(GENERATOR)
    counts = {"parameters": count(model.unet), "text encoder": count(model.text)}
    return {"loss": loss, **counts, "recognised": recognise.recognised(load_pipeline())}


def forget_places(folder: Path) -> None:
    """Removes from configurations where on this machine a part was loaded from."""
    for file in folder.rglob("config.json"):
        config = json.loads(file.read_text(encoding="utf-8"))
        if config.pop("_name_or_path", None):
            write(file, json.dumps(config, indent=2) + "\n")


def make_rewards() -> dict[str, Any]:
    measured: dict[str, Any] = {}
    for name in rewards.NAMES:
        scorer = learn_rewards.learn_reward(name, SETTINGS["rewards"])
        write_safetensors(rewards.weights_file(name), scorer.state_dict())
        correlation = learn_rewards.correlation(scorer)
        measured[name] = {"correlation": correlation, "parameters": count(scorer)}
    return measured


def files(part: str) -> list[Path]:
    """The weights that a part consists of."""
    if part == "rewards":
        return [rewards.weights_file(name) for name in rewards.NAMES]
    folders = ["vae"] if part == "vae" else ["text_encoder", "unet"]
    return [file for name in folders for file in sorted((GENERATOR / name).glob("*.safetensors"))]


def digest(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def results(made: dict[str, Any]) -> str:
    """The table, as Markdown."""
    vae, denoiser = made["vae"]["measured"], made["denoiser"]["measured"]
    of = denoiser["recognised"]
    sizes = {part: sum(file.stat().st_size for file in files(part)) / 1e6 for part in PARTS}
    scorers = "\n".join(
        f"| reward model, {name} | {found['parameters']:,} | correlation with the truth, on pictures "
        f"that it never saw: {found['correlation']:.4f} |"
        for name, found in made["rewards"]["measured"].items()
    )
    return f"""# The embedded generator and its reward models

Written by `python -m tastemaker.demo.train`; do not edit.

| part | parameters | measured |
|---|---|---|
| VAE | {vae["parameters"]:,} | root mean square error of copies: {vae["copying error"]:.4f} of 1 |
| text encoder | {denoiser["text encoder"]:,} | |
| denoiser | {denoiser["parameters"]:,} | loss (v-prediction): {denoiser["loss"]:.4f} |
{scorers}

Shapes that a network, which learnt them from drawings alone, recognises: {of["drawn"]:.1%} of drawn ones,
{of["copied"]:.1%} of their copies by the VAE, {of["generated"]:.1%} of those that prompts asked for.
Weights: {sum(sizes.values()):.2f} MB ({", ".join(f"{p} {size:.2f}" for p, size in sizes.items())}).
Time of one CPU core ({platform.machine()}, torch {torch.__version__}), in minutes:
{", ".join(f"{part} {made[part]['minutes']}" for part in PARTS)}.
Settings, digests of the weights: `weights/made.json`.
"""


if __name__ == "__main__":
    main()
