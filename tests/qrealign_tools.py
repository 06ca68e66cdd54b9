"""What the Q-ReAlign tests share: pictures, loading, comparing."""

import numpy as np
import torch
from PIL import Image

from tastemaker.scorers.qrealign import load_qrealign

EXACT = 1e-5  # float32, the same pixels
NO_RESIZE = [(256, 320), (512, 256), (320, 320)]  # (height, width), multiples of 32
RESIZED = [(300, 517), (123, 180), (719, 283), (40, 1000)]


def load(folder, task="quality", device="cpu", dtype=torch.float32, **options):
    device = torch.device(device)
    return load_qrealign(folder, revision=None, task=task, device=device, dtype=dtype, **options)


def pictures(sizes, seed=0, grain=12) -> list[Image.Image]:
    """Pictures between smooth and noisy, dark and bright, of (height, width) sizes."""
    rng = np.random.default_rng(seed)
    made = []
    for i, (height, width) in enumerate(sizes):
        low = rng.integers(0, 256, (2 + 3 * i, 3 + i, 3), dtype=np.uint8)
        smooth = np.array(Image.fromarray(low).resize((width, height), Image.BICUBIC), dtype=float)
        noisy = smooth * (0.4 + 0.2 * (i % 4)) + rng.normal(0, grain * (i % 3), smooth.shape)
        made.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return made


def tensor(picture: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous()


def unit(picture: Image.Image) -> torch.Tensor:
    return tensor(picture).float() / 255


def assert_close(ours, reference, tolerance=EXACT):
    torch.testing.assert_close(ours, torch.as_tensor(reference), atol=tolerance, rtol=0)


def gradient(score, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(score(x).sum(), x)[0]


def relative(a, b):
    return ((a - b).norm() / b.norm()).item()


def card_id(scorer):
    return scorer.card.fingerprint_id
