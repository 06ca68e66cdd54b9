"""Tiny random JoyQuality and RALI models of the real classes, saved in their official formats, and the
official recipes, literally. Works from transformers 4.50 on."""

from __future__ import annotations

import json
from pathlib import Path

import joblib
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from sklearn.decomposition import IncrementalPCA
from torch import Tensor
from transformers import (
    CLIPConfig,
    CLIPModel,
    SiglipConfig,
    SiglipForImageClassification,
    SiglipVisionConfig,
)

CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def lively(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights of a size at which different pictures give different results."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.ndim > 1:
                p.normal_(0, 1.6 / p[0].numel() ** 0.5)
            else:
                p.add_(0.1 * torch.randn_like(p))
    return model.eval().requires_grad_(False)


# --- JoyQuality -----------------------------------------------------------------------------------

SIGLIP = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=64,
    patch_size=16,
)


def make_joyquality(**sizes) -> SiglipForImageClassification:
    vision = SiglipVisionConfig(**{**SIGLIP, **sizes})
    config = SiglipConfig(vision_config=vision.to_dict(), num_labels=1)
    model = lively(SiglipForImageClassification(config))
    with torch.no_grad():  # scores then differ by about 0.3: float32 noise stays well below 1e-5
        model.classifier.weight.mul_(0.15)
    return model


def joyquality_pixels(picture: Image.Image, size: int) -> Tensor:
    """The upstream script's preprocessing: RGB, a square whatever the aspect, bicubic, to [-1, 1]."""
    picture = picture.convert("RGB").resize((size, size), Image.BICUBIC)
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    return (pixels - 0.5) / 0.5


def joyquality_forward(model, pixels: Tensor) -> Tensor:
    """The upstream script's replaced forward: attention-pooled output, then the classifier."""
    tower = getattr(model, "vision_model", None) or model.model.vision_model
    return model.classifier(tower(pixels).pooler_output).squeeze(-1)


# --- RALI -----------------------------------------------------------------------------------------

CLIP = dict(
    hidden_size=48,
    intermediate_size=96,
    num_hidden_layers=3,
    num_attention_heads=4,
    image_size=56,
    patch_size=14,
)
TEXT = dict(
    hidden_size=32,
    intermediate_size=64,
    num_hidden_layers=1,
    num_attention_heads=2,
    vocab_size=99,
    max_position_embeddings=16,
    bos_token_id=0,
    eos_token_id=1,
)


def make_clip(embedding: int = 24, **sizes) -> CLIPModel:
    vision = {**CLIP, **sizes}
    config = CLIPConfig(vision_config=vision, text_config=TEXT, projection_dim=embedding)
    return lively(CLIPModel(config))


def write_rali_release(
    folder: Path, embedding: int = 24, reduced: int = 10, anchors: int = 12, **sizes
):
    """ckpt.pt, pca.pkl, basis.npz and best/, as the release has them. Returns (clip, scorer state)."""
    clip = make_clip(embedding, **sizes)
    size, rng = clip.config.vision_config.image_size, np.random.default_rng(0)
    pictures = torch.from_numpy(rng.normal(size=(4 * reduced, 3, size, size))).float()
    fitted = IncrementalPCA(reduced).fit(clip_features(clip, pictures).numpy())
    clip.save_pretrained(folder / "best")
    preprocessor = {
        "crop_size": {"height": size, "width": size},
        "do_center_crop": True,
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_STD,
        "resample": 3,
        "size": {"shortest_edge": size},
    }
    (folder / "best" / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    joblib.dump(fitted, folder / "pca.pkl")
    scorer = {
        "pca_scale": torch.from_numpy(np.sqrt(fitted.var_)).float() * -1.1,  # trained: any sign
        "pca_components": torch.from_numpy(fitted.components_).float(),
        "prototypes": torch.from_numpy(rng.normal(size=(anchors, reduced))).float(),
        "proto_scores": torch.linspace(1.2, 4.8, anchors),
        "logit_scale": torch.tensor(3.0),  # linear, not a logarithm
    }
    state = {f"clip.{k}": v for k, v in clip.state_dict().items()}
    state |= {f"scorer.{k}": v for k, v in scorer.items()}
    torch.save({"state_dict": state, "epoch": 3}, folder / "ckpt.pt")
    vectors = scorer["prototypes"].numpy()
    np.savez(folder / "basis.npz", vectors=vectors, scores=scorer["proto_scores"].numpy())
    return clip, {**scorer, "pca_mean": torch.from_numpy(fitted.mean_).float()}


def clip_features(clip: CLIPModel, pixels: Tensor) -> Tensor:
    """get_image_features, which newer versions wrap in an output object."""
    features = clip.get_image_features(pixel_values=pixels)
    return features if isinstance(features, Tensor) else features.pooler_output


def clip_pixels(picture: Image.Image, size: int = 56) -> Tensor:
    """CLIPProcessor with Pillow: shortest side, bicubic, central square, mean and deviation."""
    w, h = picture.size
    long = int(size * max(w, h) / min(w, h))
    picture = picture.resize((size, long) if w <= h else (long, size), Image.BICUBIC)
    left, top = (picture.width - size) // 2, (picture.height - size) // 2
    picture = picture.crop((left, top, left + size, top + size))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (pixels - mean) / std


def rali_forward(clip: CLIPModel, scorer: dict[str, Tensor], pixels: Tensor) -> Tensor:
    """The official inference, step by step."""
    e = clip_features(clip, pixels)
    z = ((e - scorer["pca_mean"]) / scorer["pca_scale"].abs()) @ scorer["pca_components"].T
    sim = F.normalize(z, dim=-1) @ F.normalize(scorer["prototypes"], dim=-1).T
    tau = 1 / scorer["logit_scale"].clamp(min=1e-6)
    return (sim / tau).softmax(-1) @ scorer["proto_scores"]


# --- pictures and gradients -----------------------------------------------------------------------


def pictures(sizes: list[tuple[int, int]], seed: int = 0) -> list[Image.Image]:
    """Pictures (height, width) of smooth colour with some grain, each different."""
    rng, result = np.random.default_rng(seed), []
    for h, w in sizes:
        coarse = rng.integers(0, 256, (rng.integers(2, 9), rng.integers(2, 9), 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((w, h), Image.BICUBIC), dtype=np.float64)
        grain = rng.normal(0, rng.uniform(0, 25), (h, w, 3))
        result.append(Image.fromarray((smooth + grain).clip(0, 255).astype(np.uint8)))
    return result


def as_tensor(picture: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255


def spread_over(scores: Tensor, tolerance: float) -> bool:
    """Whether the scores differ so much that agreeing within the tolerance means something."""
    return scores.std().item() >= 100 * tolerance


def directional_error(score, images: Tensor, eps: float) -> float:
    """Relative error of the gradient's norm against central differences along the gradient."""
    images = images.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(score(images).sum(), images)
    step = eps * gradient / gradient.norm()
    with torch.no_grad():
        ahead, behind = (score(images + sign * step).double().sum() for sign in (1, -1))
    return abs(((ahead - behind) / (2 * eps)).item() / gradient.norm().item() - 1)
