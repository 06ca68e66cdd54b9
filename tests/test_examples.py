"""The examples, run as printed, on tiny weights of the same classes."""

import inspect
import re
import runpy
from pathlib import Path
from typing import NamedTuple

import diffusers
import numpy as np
import pytest
import tiny_pipes
import torch
from PIL import Image

import tastemaker
from tastemaker.guidance.guide import Guide

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PIPES = {
    "best_of_n_sdxl.py": ("SDXL", 4),
    "reward_guidance_flux.py": ("Flux", 1),
    "callback_qwen_image.py": ("Qwen-Image", 1),
}
GUIDED = ["callback_qwen_image.py", "reward_guidance_flux.py"]


def tiny(name):
    """A tiny pipeline that takes a prompt: its embeddings stand for every text."""
    pipe = tiny_pipes.make(name)
    own = type(pipe).__call__
    known = {k: v for k, v in tiny_pipes.call(name).items() if k not in ("generator",)}
    steps = known.pop("num_inference_steps")

    class Tiny(type(pipe)):
        def __call__(self, prompt=None, **named):
            assert isinstance(prompt, str)
            count = named.pop("num_images_per_prompt", 1)
            embedded = {
                k: v.repeat_interleave(count, 0) if isinstance(v, torch.Tensor) else v
                for k, v in known.items()
            }
            return own(self, **{**embedded, **named, "num_inference_steps": steps})

    Tiny.__name__ = type(pipe).__name__
    Tiny.__call__.__signature__ = inspect.signature(own)
    pipe.__class__ = Tiny
    return pipe


class Ran(NamedTuple):
    """An example that was run: what it left."""

    names: dict  # its variables
    pictures: dict[str, Image.Image]  # by their files' names
    asked: list[str]  # scorers
    decoded: list[
        tuple[int, bool]
    ]  # by the full VAE: pictures at a time, and whether for a gradient


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Runs an example on tiny weights, as printed."""

    def run(example: str) -> Ran:
        pipe = tiny(PIPES[example][0])
        asked, decoded = [], []

        def watch(module, arguments):
            (z, *_) = arguments
            decoded.append((len(z), z.requires_grad))

        pipe.vae.decoder.register_forward_pre_hook(watch)
        kind = getattr(diffusers, type(pipe).__name__)
        monkeypatch.setattr(kind, "from_pretrained", lambda *a, **k: pipe)
        small = tiny_decoder(pipe.vae.config.get("latent_channels", 16))
        monkeypatch.setattr(diffusers.AutoencoderTiny, "from_pretrained", lambda *a, **k: small)
        nano = tastemaker.load_scorer("nano", device="cpu")
        with monkeypatch.context() as patched:
            patched.setattr(tastemaker, "load_scorer", lambda n, **k: asked.append(n) or nano)
            patched.chdir(tmp_path)
            names = runpy.run_path(str(EXAMPLES / example))
        files = sorted(path for path in tmp_path.glob("*.png") if "reward" not in path.name)
        return Ran(names, {path.name: Image.open(path) for path in files}, asked, decoded)

    return run


def tiny_decoder(channels):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return diffusers.AutoencoderTiny(
            latent_channels=channels,
            encoder_block_out_channels=(8, 8),
            decoder_block_out_channels=(8, 8),
            num_encoder_blocks=(1, 1),
            num_decoder_blocks=(1, 1),
            upsampling_scaling_factor=2,
        )


def plain(pipe, seed):
    """The picture that the pipeline makes without us."""
    generator = torch.Generator().manual_seed(seed)
    return pipe(prompt="a lighthouse", generator=generator).images[0]


def apart(picture, other):
    """The greatest difference of two pictures, of 255."""
    a, b = (np.asarray(image.convert("RGB"), dtype=int) for image in (picture, other))
    return np.abs(a - b).max()


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_it_runs_as_printed(example, run):
    ran = run(example)
    assert len(ran.pictures) == PIPES[example][1]
    assert all(picture.size == (32, 32) for picture in ran.pictures.values())
    assert ran.asked[0] == "joyquality"


@pytest.mark.parametrize("example", sorted(PIPES))
def test_it_takes_the_memory_that_it_says(example, run):
    """Its estimate is one of weights, and of a full VAE that decodes one picture, without a gradient."""
    ran = run(example)
    assert ran.decoded and set(ran.decoded) == {(1, False)}
    assert "An estimate" in ran.names["__doc__"] and "weights in" in ran.names["__doc__"]


@pytest.mark.parametrize("example", GUIDED)
def test_guidance_makes_another_picture(example, run, monkeypatch):
    """Than the plain pipeline does of the seed; without a push it is that one."""
    (guided,) = run(example).pictures.values()
    guided.load()
    monkeypatch.setattr(Guide, "push", lambda self, g, ratio: torch.zeros_like(g))
    left_alone = run(example)
    (unguided,) = left_alone.pictures.values()
    own = plain(left_alone.names["pipe"], seed=0)
    assert apart(unguided, own) == 0
    assert apart(guided, own) > 2


def test_the_best_of_those_made_are_kept(run):
    """At each cut by their previews, at the end by their pictures, each of which is its seed's."""
    ran = run("best_of_n_sdxl.py")
    result, pipe = ran.names["result"], ran.names["pipe"]
    alive = list(range(16))
    *cuts, end = result.record.rows
    assert len(cuts) == len(result.record.survivors) > 0
    for row, survivors in zip(cuts, result.record.survivors, strict=True):
        judged = dict(zip(alive, row.reward.tolist(), strict=True))
        dropped = set(alive) - set(survivors)
        assert min(judged[i] for i in survivors) >= max(judged[i] for i in dropped)
        alive = survivors
    nano = ran.names["scorer"]
    finished = {i: plain(pipe, i) for i in alive}
    scores = {i: nano.score([picture])[0].item() for i, picture in finished.items()}
    assert result.seeds == sorted(alive, key=scores.get, reverse=True)[:4]
    for name, picture in ran.pictures.items():
        score, seed = re.fullmatch(r"lighthouse_(.+)_seed(\d+)\.png", name).groups()
        assert apart(picture, finished[int(seed)]) <= 1
        assert float(score) == pytest.approx(scores[int(seed)], abs=0.1)
