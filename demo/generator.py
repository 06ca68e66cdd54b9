"""The embedded generator: a Stable Diffusion pipeline of diffusers' own class, with tiny weights.

    pipe = load_pipeline()
    images = pipe("a large red star on blue", guidance_scale=GUIDANCE_SCALE).images

It draws one coloured shape, 32 px; `shapes.WORDS` are the words it knows. An empty prompt leaves
all open. `StableDiffusionPipeline.from_pretrained(WEIGHTS)` opens it too, without any code of ours.
Its architecture is told in `learn_generator`. Licence Apache-2.0, like the code.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from ..scorers.messages import needs

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

WEIGHTS = Path(__file__).with_name("weights") / "generator"
GUIDANCE_SCALE = 3.0  # of classifier-free guidance: prompts are obeyed, and pictures still differ


def load_pipeline(
    device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> StableDiffusionPipeline:
    """The pipeline with a DDIM scheduler; others go with it as with any Stable Diffusion.

    Raises:
        ImportError: naming the command that installs diffusers.
    """
    check_installed()
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(WEIGHTS, local_files_only=True)  # in float32
    return pipe.to(device) if dtype == torch.float32 else pipe.to(device, dtype)


def check_installed() -> None:
    """Raises ImportError, naming the command that installs diffusers, where it is absent."""
    try:
        import diffusers  # noqa: F401
    except ImportError:
        what = "the embedded generator needs diffusers"
        raise needs(what, "diffusers accelerate", "diffusers") from None
