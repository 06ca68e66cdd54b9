"""Measures what people's tastes weigh nano's features by, before any of them is asked.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python -m tastemaker.training.head_prior

A personal head has as many weights as nano has features, and a first session fifty votes. What makes
up for it is a prior: the covariance of the heads of others. There are no others here, so they are made
up: thousands of random tastes, each a sum of a few terms, which are random statistics of the pixels
(`statistics`), wanted high, low, or near an optimum, and dislikes of faults, as JPEG, noise or blur
were put in. Each is fitted with nano's features on crops of the pictures that nano was trained on; the
second moment of the weights is the prior.

Run after `training/nano.py`, which writes weights without a prior. It is written beside them, in
`scorers/weights/nano.safetensors`: `Scorer.head_prior`, which `preferences.train` rests on.
`benchmarks/preferences_base.py` measures what it is worth.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from scipy.stats import norm, rankdata
from torch import Tensor
from tqdm import tqdm

from ..scorers.checkpoint import write_safetensors
from ..scorers.corruptions import CORRUPTIONS
from ..scorers.nano import WEIGHTS, NanoScorer, load_nano
from .judging import as_tensor
from .nano import trained_on
from .pictures import Picture, usable_pictures
from .statistics import statistics

# Strongest and mildest of each fault; drawn evenly on a logarithmic scale.
FAULTS = {
    "jpeg": ("quality", 8, 85),
    "low_resolution": ("scale", 0.4, 0.9),
    "noise": ("sigma", 25, 3),
    "blur": ("radius", 3, 0.6),
}


@dataclass(frozen=True)
class Settings:
    crops: int = 6  # of each picture
    sides: tuple[int, int] = (160, 448)  # px, of crops that are reduced where they are larger
    spoiled: float = 0.6  # share of the crops that have a fault
    tastes: int = 2000
    terms: int = 3  # of a taste, at most
    faults: float = 1 / 3  # share of the terms that are about faults
    optimum: float = 0.5  # share of the others that want neither much nor little
    ridge: float = 1e-3  # of features of variance 1
    seed: int = 0


class Crops(NamedTuple):
    """N crops: what nano makes of them, and what can be said of them by families of numbers."""

    embeddings: Tensor  # [N, D] float64
    families: dict[str, np.ndarray]  # of "faults" [N, 4], and of each family of statistics [N, F]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, help="wheels or folders (default: the installed packages)"
    )
    options = parser.parse_args()
    names = {picture.name for picture in trained_on()}
    seen = [p for p in usable_pictures(options.sources) if p.name in names]
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    settings = Settings()
    prior = head_prior(made(load_nano(), seen, settings), settings).float()
    metadata["head_prior"] = json.dumps(asdict(settings))
    write_safetensors(WEIGHTS, load_file(WEIGHTS) | {"head_prior": prior}, metadata)


@torch.no_grad()
def made(scorer: NanoScorer, pictures: Sequence[Picture], settings: Settings) -> Crops:
    """Crops of the pictures, clean or with one fault."""
    embeddings, faults, said = [], [], []
    for picture in tqdm(pictures, unit="picture"):
        for i in range(settings.crops):
            rng = Random(f"head prior:{settings.seed}:{picture.name}:{i}")
            pixels, fault = spoiled(crop(picture, settings.sides, rng), settings.spoiled, rng)
            embeddings.append(scorer.embed(as_tensor(pixels)[None]).double())
            faults.append(fault)
            said.append(statistics(pixels))
    families = {family: np.array([[*each[family].values()] for each in said]) for family in said[0]}
    return Crops(torch.cat(embeddings), {"faults": np.array(faults), **families})


def crop(picture: Picture, sides: tuple[int, int], rng: Random) -> Image.Image:
    """A square of half to all of the shorter side, reduced to a random side if it is larger."""
    w, h = picture.image.size
    side, most = round(min(w, h) * rng.uniform(0.5, 1)), rng.randint(*sides)
    left, top = rng.randint(0, w - side), rng.randint(0, h - side)
    cut = picture.image.crop((left, top, left + side, top + side))
    return cut if side <= most else cut.resize((most, most), Image.LANCZOS)


def spoiled(picture: Image.Image, share: float, rng: Random) -> tuple[np.ndarray, list[float]]:
    """uint8 [H, W, 3], and how strong each of `FAULTS` is in it: 0 for none, then 0.15 to 1.15."""
    strengths = dict.fromkeys(FAULTS, 0.0)
    if rng.random() < share:
        kind, mildness = rng.choice(list(FAULTS)), rng.random()
        name, strong, mild = FAULTS[kind]
        strength = strong * (mild / strong) ** mildness
        strength = round(strength) if kind == "jpeg" else strength
        picture = CORRUPTIONS[kind](picture, rng, **{name: strength})
        strengths[kind] = 1.15 - mildness
    return np.array(picture), [*strengths.values()]


def head_prior(crops: Crops, settings: Settings, without: Collection[str] = ()) -> Tensor:
    """[D, R] float64, a root of the second moment of the weights that fit random tastes.

    Args:
        without: families that no taste may be about.
    """
    families = {name: values for name, values in crops.families.items() if name not in without}
    tastes = torch.from_numpy(random_tastes(families, settings))  # [N, T]
    center, std = crops.embeddings.mean(0), crops.embeddings.std(0, correction=0)
    scale = torch.where(std > 1e-6, 1 / std, 0.0)
    x = (crops.embeddings - center) * scale
    covariance = x.T @ x / len(x)
    ridge = settings.ridge * torch.eye(len(covariance), dtype=torch.float64)
    weights = torch.linalg.solve(covariance + ridge, x.T @ tastes / len(x)) * scale[:, None]
    moment = weights @ weights.T / weights.shape[1]
    variance, axes = torch.linalg.eigh(moment)
    kept = variance > 1e-9 * variance[-1]
    return axes[:, kept] * variance[kept].sqrt()


def random_tastes(families: dict[str, np.ndarray], settings: Settings) -> np.ndarray:
    """[N, T] float64, each a taste of the crops, normally distributed."""
    rng = np.random.default_rng(settings.seed)
    families = {
        name: standard(values) if name == "faults" else normal(values)
        for name, values in families.items()
    }
    tastes = [taste(families, settings, rng) for _ in range(settings.tastes)]
    return normal(np.stack(tastes, 1))


def taste(
    families: dict[str, np.ndarray], settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """[N]: a few terms, of which one may matter far more than another."""
    terms = [
        rng.exponential() * standard(term(families, settings, rng))
        for _ in range(rng.integers(1, settings.terms + 1))
    ]
    return np.sum(terms, 0)


def term(
    families: dict[str, np.ndarray], settings: Settings, rng: np.random.Generator
) -> np.ndarray:
    """[N]: a dislike of faults, each with a weight of its own, or a statistic that ought to be so."""
    if "faults" in families and rng.random() < settings.faults:
        return -families["faults"] @ rng.exponential(size=families["faults"].shape[1])
    values = families[rng.choice([name for name in families if name != "faults"])]
    z = values[:, rng.integers(values.shape[1])]
    if rng.random() < settings.optimum:
        return -np.square(z - rng.normal())
    return rng.choice([-1, 1]) * z


def normal(values: np.ndarray) -> np.ndarray:
    """[N, F] by rank: each column normally distributed, equal values alike."""
    return norm.ppf((rankdata(values, axis=0) - 0.5) / len(values))


def standard(values: np.ndarray) -> np.ndarray:
    """[N, ...] with mean 0 and deviation 1."""
    return (values - values.mean(0)) / (values.std(0) + 1e-9)


if __name__ == "__main__":
    main()
