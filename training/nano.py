"""Trains the embedded nano scorer on corrupted copies of real AI-generated pictures.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python -m tastemaker.training.nano

Pictures: see `pictures`. A quarter of the groups of related pictures is held out and never trained
on; `--develop` holds a fifth of the rest out too and reports on that instead, and writes nothing.
Settings were chosen by it, except `nano.FLOOR` and `KINDS`: those by where the gradient of JPEG
copies leads, by what enlarging does, and by how crops score, on pictures held out.

Each training example is a crop of a picture, a mild and a strong corruption of it, of one kind:
original > mild > strong, and every original of the batch > every strong copy of the batch. The loss
is Bradley-Terry's, -log sigmoid(s_winner - s_loser). Crops are cut out after the corruption, so
that the JPEG grid lies anywhere.

Writes the weights, the list of the pictures that they have seen, and a table of results. What people's
tastes weigh the new features by is measured after that, by `head_prior`.
"""

from __future__ import annotations

import argparse
import json
import math
import platform
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from random import Random

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ..preferences.trainer import Log, Recipe, fit
from ..scorers import corruptions
from ..scorers.checkpoint import replacing, write_safetensors
from ..scorers.corruptions import CORRUPTIONS, NotCompressible
from ..scorers.nano import WEIGHTS, NanoScorer
from .judging import Judgement, judge
from .pictures import Picture, split, usable_pictures

HERE = Path(__file__).parent
TRAINED_ON = HERE / "nano_trained_on.json"
RESULTS = HERE / "nano_results.md"

# How often each comes: JPEG and blur more often, as the hardest.
KINDS = {
    "jpeg": 3.2,
    "low_resolution": 1.8,
    "enlarged": 0.6,
    "noise": 1.8,
    "coarse_noise": 0.6,
    "blur": 2.6,
}


@dataclass(frozen=True)
class Settings:
    steps: int = 2500
    batch: int = 16  # pictures a step; each is three crops
    crop: int = 128  # px
    rate: float = 2e-3  # peak learning rate
    across: float = 0.5  # weight of the comparisons across pictures
    held_out: float = 0.25  # share of the groups of related pictures
    draws: int = 4  # random corruptions of each kind and held-out picture
    seed: int = 0
    threads: int = 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "sources", nargs="*", type=Path, help="wheels or folders (default: the installed packages)"
    )
    parser.add_argument("--steps", type=int, default=Settings.steps)
    parser.add_argument("--seed", type=int, default=Settings.seed)
    parser.add_argument("--threads", type=int, default=Settings.threads)
    parser.add_argument(
        "--develop", action="store_true", help="report on a part of the training set"
    )
    parser.add_argument(
        "--checkpoints", type=Path, help="folder for them: a run that was killed goes on from there"
    )
    options = parser.parse_args()
    settings = Settings(steps=options.steps, seed=options.seed, threads=options.threads)
    train_set, test_set = split(usable_pictures(options.sources), settings.held_out, "nano")
    if options.develop:
        train_set, test_set = split(train_set, 0.2, "nano-development")
    scorer, log = train(train_set, settings, options.checkpoints)
    standardise(scorer, train_set)
    torch.set_num_threads(1)  # one picture at a time: more threads only wait
    judgement = judge(scorer, test_set, settings.draws)
    report = results(judgement, scorer, settings, len(train_set), len(test_set), log.seconds / 60)
    print(report)
    if not options.develop:
        write(scorer, train_set, settings, report)


def train(
    pictures: Sequence[Picture], settings: Settings, checkpoints: Path | None = None
) -> tuple[NanoScorer, Log]:
    """A scorer trained on the pictures; it depends on the settings alone, up to rounding.

    With a folder for checkpoints, a run that was killed goes on from the last one in it.
    """
    torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    scorer = NanoScorer().to(memory_format=torch.channels_last)
    log = fit(
        scorer,
        Recipe(settings.steps, settings.rate, rise=0.1),
        partial(batches, pictures, settings),
        lambda batch: comparison_loss(scores_of(scorer, batch), settings.across),
        folder=checkpoints,
        run={
            "settings": json.dumps(asdict(settings)),
            "pictures": sha256(_listed(pictures)).hexdigest(),
        },
    )
    return scorer.to(memory_format=torch.contiguous_format).freeze(), log


def scores_of(scorer: NanoScorer, batch: Tensor) -> Tensor:
    """uint8 [B, 3 copies, 3, H, W] to scores [B, 3]."""
    images = batch.flatten(0, 1).float().div(255).contiguous(memory_format=torch.channels_last)
    return scorer(images).view(batch.shape[:2])


def comparison_loss(scores: Tensor, across: float) -> Tensor:
    """Bradley-Terry over original > mild > strong, and over original > any picture's strong copy.

    Args:
        scores: [B, 3]: original, mildly and strongly corrupted.
        across: weight of the comparisons across pictures.
    """
    original, mild, strong = scores.unbind(1)
    own = F.softplus(mild - original) + F.softplus(strong - mild) + F.softplus(strong - original)
    return own.mean() + across * F.softplus(strong[None, :] - original[:, None]).mean()


def batches(pictures: Sequence[Picture], settings: Settings, first: int) -> Iterator[Tensor]:
    """uint8 [B, 3, 3, crop, crop] of the steps from `first` on; the next is made meanwhile."""

    def make(step: int) -> Tensor:
        numbers = range(step * settings.batch, (step + 1) * settings.batch)
        made = [example(pictures, settings, number) for number in numbers]
        return torch.from_numpy(np.stack(made)).permute(0, 1, 4, 2, 3)

    with ThreadPoolExecutor(1) as pool:
        upcoming = pool.submit(make, first)
        for step in range(first, settings.steps):
            batch = upcoming.result()
            upcoming = pool.submit(make, step + 1)
            yield batch


def example(pictures: Sequence[Picture], settings: Settings, index: int) -> np.ndarray:
    """Original, mild and strong copy of one crop, uint8 [3, crop, crop, 3]."""
    rng = Random(f"{settings.seed}:{index}")
    margin = 16
    while True:
        window = random_window(rng.choice(pictures).pixels, settings.crop + margin, rng)
        try:
            copies = ladder(window, rng)
        except NotCompressible:  # as are plain windows
            continue
        top, left = rng.randint(0, margin), rng.randint(0, margin)
        area = (left, top, left + settings.crop, top + settings.crop)
        return np.stack([np.asarray(copy.crop(area)) for copy in copies])


def random_window(pixels: np.ndarray, side: int, rng: Random) -> Image.Image:
    """A square cut out anywhere, mirrored along each axis half of the time."""
    top, left = (rng.randint(0, length - side) for length in pixels.shape[:2])
    window = pixels[top : top + side, left : left + side]
    window = window[:: rng.choice((1, -1)), :: rng.choice((1, -1))]
    return Image.fromarray(np.ascontiguousarray(window))


def ladder(original: Image.Image, rng: Random) -> list[Image.Image]:
    """[original, mildly corrupted, strongly corrupted], all of one kind.

    The strengths reach a little beyond the ranges that are tested, and are drawn evenly on a
    logarithmic scale: the mild ones are the hard ones.
    """
    kind = rng.choices(list(KINDS), KINDS.values())[0]
    upscale = rng.choice(corruptions.UPSCALES)
    if kind == "jpeg":
        third = corruptions.third_size_quality(original)
        mild, strong = sorted((third, rng.randint(5, 85)), reverse=True)
        strengths = [{"quality": mild}, {"quality": strong}]
    elif kind == "low_resolution":
        mild, strong = sorted((rng.uniform(0.45, 0.95), rng.uniform(0.45, 0.95)), reverse=True)
        strengths = [{"scale": scale, "upscale": upscale} for scale in (mild, strong)]
    elif kind == "enlarged":
        mild, strong = sorted((rng.uniform(1.1, 2.2), rng.uniform(1.1, 2.2)))
        return [original, enlarged(original, mild, upscale), enlarged(original, strong, upscale)]
    elif kind == "coarse_noise":
        scale, seed = rng.uniform(0.25, 0.8), rng.getrandbits(64)
        draws = sorted(math.exp(rng.uniform(math.log(3), math.log(28))) for _ in range(2))
        return [original, *(coarse_noise(original, Random(seed), s, scale, upscale) for s in draws)]
    else:
        name, low, high = {"noise": ("sigma", 3, 28), "blur": ("radius", 0.55, 5)}[kind]
        draws = sorted(math.exp(rng.uniform(math.log(low), math.log(high))) for _ in range(2))
        strengths = [{name: strength} for strength in draws]
    seed = rng.getrandbits(64)  # the same noise in both copies
    corrupt = CORRUPTIONS[kind]
    return [original, *(corrupt(original, Random(seed), **strength) for strength in strengths)]


def enlarged(picture: Image.Image, factor: float, upscale: int) -> Image.Image:
    """The middle of a picture at its size: larger, and with more plain cells, but no better."""
    w, h = picture.size
    left, top = (0.5 * side * (1 - 1 / factor) for side in (w, h))
    return picture.resize((w, h), upscale, box=(left, top, w - left, h - top))


def coarse_noise(
    picture: Image.Image, rng: Random, sigma: float, scale: float, upscale: int
) -> Image.Image:
    """Noise as of a noisy picture that was enlarged by 1 / scale, in a picture of full detail."""
    w, h = (max(1, round(side * scale)) for side in picture.size)
    field = np.random.default_rng(rng.getrandbits(64)).standard_normal((h, w, 3), dtype=np.float32)
    channels = np.moveaxis(field, -1, 0)
    grown = [np.asarray(Image.fromarray(c).resize(picture.size, upscale)) for c in channels]
    field = np.stack(grown, -1)
    noisy = np.asarray(picture, np.float32) + field * (sigma / field.std())
    return Image.fromarray(noisy.round().clip(0, 255).astype(np.uint8))


def standardise(scorer: NanoScorer, pictures: Sequence[Picture]) -> None:
    """Scales the head so that these pictures' scores have mean 0 and standard deviation 1."""
    scores = torch.tensor(judge(scorer, pictures, draws=0, kinds=()).originals)
    scorer.head.bias.sub_(scores.mean()).div_(scores.std())
    scorer.head.weight.div_(scores.std())


def results(
    judgement: Judgement,
    scorer: NanoScorer,
    settings: Settings,
    trained: int,
    tested: int,
    minutes: float,
) -> str:
    """The table of results, as Markdown."""
    rows = "\n".join(
        f"| {kind} | {len(judgement.pairs[kind])} | {judgement.accuracy(kind):.2%} "
        f"| {judgement.drop(kind):.2f} | {judgement.across(kind):.2%} |"
        for kind in CORRUPTIONS
    )
    originals = np.array(judgement.originals)
    return f"""# Nano: results on pictures it never saw

Written by `python -m tastemaker.training.nano`; do not edit. {tested} pictures at native resolution,
of templates of which no picture was trained on; {trained} pictures were trained on.

| corruption | pairs | original judged better | median drop | original above any picture's copy |
|---|---|---|---|---|
{rows}

Ranges: JPEG at the first quality, from 90 in steps of 5, at which the file is at most a third of
that at 90 (pictures without one make no pair); low resolution at 0.5 to 0.9 of the size and back
with bilinear, bicubic or Lanczos; Gaussian noise of sigma 4 to 25 of 255; Gaussian blur of radius
0.7 to 3. Each but JPEG is drawn {settings.draws} times for each picture. The drop is in units of the
standard deviation of clean pictures' scores. The last column compares originals with copies of
other pictures too.

Originals: mean {originals.mean():.2f}, standard deviation {originals.std():.2f}.
Parameters: {sum(p.numel() for p in scorer.parameters()):,}.
Training: {settings.steps} steps, {minutes:.0f} minutes on {settings.threads} CPU threads
({platform.machine()}, torch {torch.__version__}), seed {settings.seed}.
"""


def write(scorer: NanoScorer, pictures: Sequence[Picture], settings: Settings, report: str) -> None:
    """The weights, the list of pictures seen, and the table."""
    listed = _listed(pictures)
    metadata = {
        "format": "pt",
        "config": json.dumps(scorer.config),
        "settings": json.dumps(asdict(settings)),
        "pictures": sha256(listed).hexdigest(),
        "results": report,
    }
    WEIGHTS.parent.mkdir(exist_ok=True)
    write_safetensors(WEIGHTS, scorer.state_dict(), metadata)
    for path, content in ((TRAINED_ON, listed), (RESULTS, report.encode())):
        with replacing(path) as temporary:
            temporary.write_bytes(content)


def _listed(pictures: Sequence[Picture]) -> bytes:
    """The pictures' names and hashes as JSON, one a line."""
    seen = {picture.name: f"{picture.hash:060x}" for picture in pictures}
    return (json.dumps(seen, indent=0) + "\n").encode()


def trained_on() -> list[Picture]:
    """The pictures that the embedded weights have seen, without their pixels."""
    seen = json.loads(TRAINED_ON.read_text(encoding="utf-8"))
    return [
        Picture(name, np.empty((0, 0, 3), np.uint8), int(bits, 16)) for name, bits in seen.items()
    ]


if __name__ == "__main__":
    main()
