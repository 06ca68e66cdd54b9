"""What is measured: each scorer beside its official recipe, on the same random weights.

Speed does not depend on the values of the weights. Checkpoints are written in the official formats
and loaded by both sides as users load them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT / "tests"))  # the official recipes, as the parity tests run them

import tiny_qwen  # noqa: E402
import tiny_vit  # noqa: E402

# "reduced" keeps the proportions and fits a CPU's minutes; "full" is the published architecture.
JOYQUALITY = {
    "tiny": {},
    "reduced": dict(
        hidden_size=288,
        intermediate_size=1076,
        num_hidden_layers=7,
        num_attention_heads=4,
        image_size=256,
    ),
    "full": dict(
        hidden_size=1152,
        intermediate_size=4304,
        num_hidden_layers=27,
        num_attention_heads=16,
        image_size=512,
    ),
}
RALI = {
    "tiny": {},
    "reduced": dict(
        embedding=192,
        reduced=128,
        anchors=250,
        hidden_size=256,
        intermediate_size=1024,
        num_hidden_layers=6,
        num_attention_heads=4,
        image_size=168,
    ),
    "full": dict(
        embedding=768,
        reduced=512,
        anchors=250,
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
    ),
}


def qwen_sizes(width, mlp, layers, heads, groups, values, head, vocabulary, vision):
    """Sizes of a Qwen3.5-VL; `values` counts the value heads of its delta networks.

    The vision tower's depth, width, MLP and heads come last. The vocabulary counts: the card's recipe
    computes every token's logits.
    """
    depth, vision_width, vision_mlp, vision_heads = vision
    text = dict(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=mlp,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=groups,
        head_dim=head,
        linear_key_head_dim=head // 2,
        linear_value_head_dim=head // 2,
        linear_num_key_heads=min(16, values),
        linear_num_value_heads=values,
        initializer_range=0.02,
    )
    seen = dict(
        depth=depth,
        hidden_size=vision_width,
        intermediate_size=vision_mlp,
        num_heads=vision_heads,
        out_hidden_size=width,
        num_position_embeddings=2304,
        initializer_range=0.02,
    )
    return dict(text=text, vision=seen)


QWEN = {
    "tiny": {},
    "reduced": qwen_sizes(256, 896, 8, 4, 1, 4, 64, 24832, (6, 192, 768, 3)),
    "mini": qwen_sizes(1024, 3584, 24, 8, 2, 16, 256, 248320, (12, 768, 3072, 12)),
    "lite": qwen_sizes(2560, 9216, 32, 16, 4, 32, 256, 248320, (24, 1024, 4096, 16)),
    "pro": qwen_sizes(4096, 12288, 32, 16, 4, 32, 256, 248320, (27, 1152, 4304, 16)),
}


@dataclass
class Subject:
    """One scorer beside its official recipe.

    official: PIL pictures -> scores, the whole recipe.
    official_model: what the recipe's processor made of them -> scores; differentiable.
    official_inputs: PIL pictures -> what `official_model` takes, on the device.
    as_inputs: model input [B, 3, h, w] in [0, 1] -> what `official_model` takes; differentiable.
    """

    name: str
    scorer: torch.nn.Module
    side: tuple[int, int]  # height and width of the pictures
    batch: int
    official: Callable[[list[Image.Image]], Tensor]
    official_model: Callable[[Tensor], Tensor]
    official_inputs: Callable[[list[Image.Image]], Tensor]
    as_inputs: Callable[[Tensor], Tensor]


def joyquality(size: str, folder: Path, device: torch.device, dtype: str) -> Subject:
    """The upstream script: batches, float32 weights, bf16 autocast on a GPU."""
    import tastemaker

    model = tiny_vit.make_joyquality(**JOYQUALITY[size])
    model.save_pretrained(folder)
    scorer = tastemaker.load_scorer(folder, device=device, dtype=dtype)
    model.to(device)

    def inputs(pictures):
        return torch.stack([tiny_vit.joyquality_pixels(p, scorer.size) for p in pictures]).to(
            device
        )

    def forward(pixels):
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            return tiny_vit.joyquality_forward(model, pixels).float()

    return Subject(
        name="JoyQuality",
        scorer=scorer,
        side=(scorer.size, scorer.size),
        batch=64 if device.type == "cuda" else 4,
        official=lambda pictures: forward(inputs(pictures)),
        official_model=forward,
        official_inputs=inputs,
        as_inputs=lambda x: (x - 0.5) / 0.5,
    )


def rali(size: str, folder: Path, device: torch.device, dtype: str) -> Subject:
    """The official evaluation: batches, float32."""
    import tastemaker
    from tastemaker.scorers.rali_convert import convert_rali

    (folder / "release").mkdir(parents=True)
    clip, head = tiny_vit.write_rali_release(folder / "release", **RALI[size])
    converted = convert_rali(folder / "release", folder / "converted")
    scorer = tastemaker.load_scorer(converted, device=device, dtype=dtype)
    clip.to(device)
    head = {k: v.to(device) for k, v in head.items()}
    crop = scorer.preprocessing.crop

    def inputs(pictures):
        return torch.stack([tiny_vit.clip_pixels(p, crop) for p in pictures]).to(device)

    def forward(pixels):
        return tiny_vit.rali_forward(clip, head, pixels)

    mean, std = (
        torch.tensor(v, device=device).reshape(3, 1, 1)
        for v in (tiny_vit.CLIP_MEAN, tiny_vit.CLIP_STD)
    )
    return Subject(
        name="RALI",
        scorer=scorer,
        side=(crop, crop),
        batch=64 if device.type == "cuda" else 4,
        official=lambda pictures: forward(inputs(pictures)),
        official_model=forward,
        official_inputs=inputs,
        as_inputs=lambda x: (x - mean) / std,
    )


def qrealign(size: str, folder: Path, device: torch.device, dtype: str) -> Subject:
    """The model card: one picture a call, processor on the CPU, logits of every token."""
    import tastemaker

    stored = torch.float32 if device.type == "cpu" else torch.bfloat16
    tiny_qwen.write_checkpoint(folder, dtype=stored, device=device, **QWEN[size])
    scorer = tastemaker.load_scorer(folder, device=device, dtype=dtype)
    recipe = tiny_qwen.Official.load(folder)
    recipe.model.to(device)
    text = recipe.prompt(tiny_qwen.CARD["quality"][0]) + tiny_qwen.CARD["quality"][1]

    def inputs(pictures):
        return [{k: v.to(device) for k, v in recipe.pixels([p]).items()} for p in pictures]

    def forward(pixels):
        with torch.set_grad_enabled(any(p["pixel_values"].requires_grad for p in pixels)):
            logits = torch.stack([recipe.logits(p, text) for p in pixels])
        return (logits.float().softmax(-1) * tiny_qwen.WEIGHTS.to(device)).sum(-1)

    def as_inputs(x):
        return [qwen_inputs((picture - 0.5) / 0.5) for picture in x]

    published = size in ("mini", "lite", "pro")
    side = 1024 if published or device.type == "cuda" else 256 if size == "tiny" else 512
    return Subject(
        name=f"Q-ReAlign {size}" if published else "Q-ReAlign",
        scorer=scorer,
        side=(side, side),
        batch=scorer.default_batch_size if device.type == "cuda" else 1 if published else 2,
        official=lambda pictures: forward(inputs(pictures)),
        official_model=forward,
        official_inputs=inputs,
        as_inputs=as_inputs,
    )


def qwen_inputs(x: Tensor, patch: int = 16, merge: int = 2) -> dict[str, Tensor]:
    """A normalised picture [3, h, w] as Qwen's processor hands it over: patches in 2x2 blocks, twice."""
    _, h, w = x.shape
    side = patch * merge
    x = x.reshape(3, h // side, merge, patch, w // side, merge, patch).permute(1, 4, 2, 5, 0, 3, 6)
    x = x.reshape(-1, 3, 1, patch, patch).expand(-1, -1, 2, -1, -1)  # the still repeated in time
    grid = torch.tensor([[1, h // patch, w // patch]], device=x.device)
    return {"pixel_values": x.reshape(len(x), -1), "image_grid_thw": grid}


SUBJECTS = {"joyquality": joyquality, "rali": rali, "q-realign": qrealign}


def pictures(count: int, side: tuple[int, int], seed: int = 0) -> list[Image.Image]:
    """Smooth colour with grain: files compress as photographs do."""
    return tiny_vit.pictures([side] * count, seed)


def write_files(folder: Path, found: list[Image.Image], suffix: str = "jpg") -> list[Path]:
    """The pictures as files; JPEG of quality 95 unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{i:03}.{suffix}" for i in range(len(found))]
    for path, picture in zip(paths, found, strict=True):
        picture.save(path, **({"quality": 95} if suffix == "jpg" else {}))
    return paths


def unit_batch(found: list[Image.Image], device: torch.device) -> Tensor:
    """[B, 3, H, W] float32 in [0, 1] on the device."""
    arrays = np.stack([np.array(picture) for picture in found])
    return (torch.from_numpy(arrays).permute(0, 3, 1, 2).float() / 255).to(device)
