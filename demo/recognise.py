"""Are the generated shapes the ones that were asked for? A network that learnt them from drawings says.

It is trained in a minute where it is needed, and not shipped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .generator import GUIDANCE_SCALE
from .learn_rewards import learn
from .shapes import COLOURS, SHAPES, SIDE, draw

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline

FIRST_SEED, TEST_SEED = 7_000_000, 7_900_000  # no other model has learnt from these


def learn_shapes(steps: int = 800, batch: int = 96, rate: float = 3e-3) -> nn.Module:
    """[B, 3, 32, 32] in [0, 1] -> [B, 5], logits of `SHAPES`."""
    torch.manual_seed(FIRST_SEED)
    network = nn.Sequential(
        *(nn.Conv2d(3, 32, 3, 1, 1), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 3, 1, 1), nn.GELU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(64, 64, 3, 1, 1), nn.GELU()),
        *(nn.Flatten(), nn.Linear(64 * (SIDE // 4) ** 2, 64), nn.GELU(), nn.Linear(64, 5)),
    )

    def loss(step: int) -> Tensor:
        drawing = draw(batch, FIRST_SEED + step)
        return F.cross_entropy(network(drawing.images), drawing.attributes.shape)

    learn(network, loss, steps, rate, "shapes")
    return network.eval().requires_grad_(False)


def share(network: nn.Module, images: Tensor, shapes: Tensor) -> float:
    """Of images [N, 3, 32, 32] that show what `shapes` [N] says, 0 to 1."""
    return (network(images).argmax(1) == shapes).float().mean().item()


@torch.no_grad()
def copies(pipe: StableDiffusionPipeline, images: Tensor) -> Tensor:
    """What the VAE makes of images [N, 3, 32, 32] in [0, 1]."""
    vae = pipe.vae
    z = [vae.encode(2 * part - 1).latent_dist.mean for part in images.split(100)]
    return torch.cat([vae.decode(part).sample for part in z]).div(2).add(0.5).clamp(0, 1)


def recognised(pipe: StableDiffusionPipeline, each: int = 40) -> dict[str, float]:
    """The share of shapes that are recognised: drawn ones, their copies by the VAE, and generated ones.

    Args:
        each: how many of each shape are generated.
    """
    network, drawing = learn_shapes(), draw(1000, TEST_SEED)
    found = {
        name: share(network, images, drawing.attributes.shape)
        for name, images in (("drawn", drawing.images), ("copied", copies(pipe, drawing.images)))
    }
    asked = torch.arange(each * len(SHAPES)) % len(SHAPES)
    names = list(COLOURS)
    prompts = [
        f"a {names[i % 8]} {SHAPES[shape]} on {names[(i + 1 + i // 8 % 7) % 8]}"
        for i, shape in enumerate(asked.tolist())
    ]
    images = pipe(
        prompts,
        num_inference_steps=20,
        guidance_scale=GUIDANCE_SCALE,
        generator=[torch.Generator().manual_seed(TEST_SEED + i) for i in range(len(prompts))],
        output_type="pt",
    ).images
    return found | {"generated": share(network, images, asked)}
