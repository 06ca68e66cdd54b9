"""The examples, run as printed, on tiny weights of the same classes."""

import inspect
import runpy
from pathlib import Path

import diffusers
import pytest
import tiny_pipes
import torch
from PIL import Image

import tastemaker

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PIPES = {
    "best_of_n_sdxl.py": ("SDXL", 4),
    "reward_guidance_flux.py": ("Flux", 1),
    "callback_qwen_image.py": ("Qwen-Image", 1),
}


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


@pytest.mark.parametrize("example", sorted(path.name for path in EXAMPLES.glob("*.py")))
def test_it_runs_as_printed(example, monkeypatch, tmp_path, capsys):
    name, images = PIPES[example]
    pipe = tiny(name)
    kind = getattr(diffusers, type(pipe).__name__)
    monkeypatch.setattr(kind, "from_pretrained", lambda *a, **k: pipe)
    channels = pipe.vae.config.get("latent_channels", 16)
    small = diffusers.AutoencoderTiny(
        latent_channels=channels,
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
        upsampling_scaling_factor=2,
    )
    monkeypatch.setattr(diffusers.AutoencoderTiny, "from_pretrained", lambda *a, **k: small)
    nano = tastemaker.load_scorer("nano", device="cpu")
    asked = []
    monkeypatch.setattr(tastemaker, "load_scorer", lambda n, **k: asked.append(n) or nano, False)
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(EXAMPLES / example))
    pictures = [p for p in tmp_path.glob("*.png") if "reward" not in p.name]
    assert len(pictures) == images
    assert all(Image.open(p).size == (32, 32) for p in pictures)
    assert asked[0] == "joyquality"
