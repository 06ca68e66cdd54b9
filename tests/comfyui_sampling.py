"""Prompts for the tests of samplers: the probe's weightless MODEL, sampled by our nodes and by KSampler."""

import json

from safetensors.torch import load_file

# Of SD 1.5, as ComfyUI has them: what the samples are divided by, and their linear preview.
FACTOR = 0.18215
RGB = [
    [0.3512, 0.2297, 0.3227],
    [0.3250, 0.4974, 0.2350],
    [-0.2829, 0.1762, 0.2721],
    [-0.2120, -0.2616, -0.7177],
]
SETTINGS = dict(steps=6, cfg=3.0, sampler_name="euler", scheduler="normal", denoise=1.0)
CHOICE = dict(n=4, keep=4, batch_size=4, seed=10, pruning="off")


def prompt(**nodes: tuple[str, dict]) -> dict:
    """In the API format; the probe's MODEL, VAE, nano and an empty latent of 64 px are there."""
    common = {
        "model": ("ProbeModel", {"kind": "eps"}),
        "vae": ("ProbeVAE", {}),
        "nano": ("TastemakerLoadScorer", {"scorer": "nano"}),
        "empty": ("EmptyLatentImage", {"width": 64, "height": 64, "batch_size": 1}),
    }
    return {name: node(kind, **inputs) for name, (kind, inputs) in {**common, **nodes}.items()}


def node(kind: str, /, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def wires(**named: object) -> dict:
    """Inputs of a sampling node."""
    joined = dict(model=["model", 0], positive=["model", 1], negative=["model", 1])
    return {**joined, "latent_image": ["empty", 0], **SETTINGS, **named}


def ksampler(**named: object) -> dict:
    """Saves its latents in node "save"."""
    return prompt(sample=("KSampler", wires(**{"seed": 10, **named})), save=save("sample"))


def choosing(node: str, **named: object) -> dict:
    """One of our sampling nodes, "best", whose latents go to "save" and scores to scores.json."""
    inputs = wires(vae=["vae", 0], scorer=["nano", 0], **named)
    return prompt(best=(node, inputs), save=save("best", 1))


def best_of_n(**named: object) -> dict:
    found = choosing("TastemakerBestOfN", **{**CHOICE, **named})
    found["seeds"] = node("ProbeDump", name="seeds", value=["best", 2])
    found["scores"] = node("ProbeDump", name="scores", value=["best", 3])
    return found


def save(node: str, output: int = 0) -> tuple[str, dict]:
    return "SaveLatent", {"samples": [node, output], "filename_prefix": f"sampling_{node}"}


def dumped(comfyui, name: str):
    return json.loads((comfyui.output / f"{name}.json").read_text(encoding="utf-8"))


def latents(comfyui, entry, node: str = "save"):
    (file,) = comfyui.files(entry, node, "latents")
    return load_file(file)["latent_tensor"]


def said(entry, node: str = "best") -> str:
    (text,) = entry["outputs"][node]["text"]
    return text
