"""How the embedded generator learns: first its VAE, then its denoiser together with its text encoder.

Every class is diffusers' or transformers' own, with options that ComfyUI's classes have as well:

- VAE: AutoencoderKL, 32 px to 4 x 8 x 8 latents: ch 32, ch_mult (1, 1, 2), one residual block.
  Its latents are brought to the deviation that a scaling factor of 0.18215 (Stable Diffusion's)
  makes 1, so ComfyUI's SD15 latent format is theirs too.
- Denoiser: UNet2DConditionModel, v-prediction on Stable Diffusion's schedule: model_channels 64,
  channel_mult (1, 1), one residual block, a transformer of depth 1 after each, two heads,
  context_dim 64, convolutions as projections.
- Text encoder: CLIPTextModel, 64 wide, two layers; `tokenizer` makes its words, `shapes.WORDS`.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from . import shapes
from .shapes import draw

SCALING = 0.18215
WIDTH = 64  # of the text encoder


@dataclass(frozen=True)
class VaeSettings:
    steps: int = 5000
    batch: int = 16
    rate: float = 2e-3  # peak learning rate
    kl: float = 1e-4  # weight of the mean Kullback-Leibler divergence of a latent
    average: float = 0.998  # the shipped weights are a running mean
    seed: int = 0


@dataclass(frozen=True)
class DenoiserSettings:
    pictures: int = 24_000  # that it sees, again and again
    steps: int = 12_000
    batch: int = 32
    rate: float = 1.5e-3
    no_prompt: float = 0.1  # share of the pictures that come without one
    average: float = 0.999
    seed: int = 0


class Average:
    """A running mean of a module's weights, which starts as a plain mean."""

    def __init__(self, module: nn.Module, decay: float):
        self.module, self.decay, self.count = copy.deepcopy(module), decay, 0
        self.module.eval().requires_grad_(False)

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.count += 1
        decay = min(self.decay, self.count / (self.count + 10))
        for mean, weight in zip(self.module.parameters(), module.parameters(), strict=True):
            mean.lerp_(weight, 1 - decay)


def learning(
    modules: nn.Module, rate: float, steps: int, name: str
) -> Iterator[tuple[int, list[float]]]:
    """Yields (step, losses): after each, the gradients are applied. The caller appends its loss."""
    optimizer = torch.optim.AdamW(modules.parameters(), rate, betas=(0.9, 0.98), weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps, pct_start=0.05)
    losses: list[float] = []
    for step in range(steps):
        optimizer.zero_grad()
        yield step, losses
        nn.utils.clip_grad_norm_(modules.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0:
            recent = sum(losses[-100:]) / 100
            print(f"{name}: step {step + 1} of {steps}, loss {recent:.4f}", flush=True)


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 32, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=32,
        sample_size=shapes.SIDE,
        scaling_factor=SCALING,
    )


def learn_vae(settings: VaeSettings) -> tuple[AutoencoderKL, float]:
    """The VAE, and the root mean square error of its copies of pictures it never saw."""
    torch.manual_seed(settings.seed)
    vae = new_vae().to(memory_format=torch.channels_last)
    mean = Average(vae, settings.average)
    for step, losses in learning(vae, settings.rate, settings.steps, "VAE"):
        x = _signed(draw(settings.batch, seed=step).images)
        posterior = vae.encode(x).latent_dist
        copies = vae.decode(posterior.sample()).sample
        loss = F.l1_loss(copies, x) + F.mse_loss(copies, x) + outlines(copies, x)
        divergence = posterior.kl().mean() / posterior.mean[0].numel()
        (loss + settings.kl * divergence).backward()
        losses.append(loss.item())
        if step:
            mean.update(vae)
    learnt = mean.module.to(memory_format=torch.contiguous_format)
    standardise(learnt, draw(512, seed=settings.steps).images)
    return learnt, copying_error(learnt, draw(256, seed=settings.steps + 1).images)


def outlines(copies: Tensor, x: Tensor) -> Tensor:
    """Mean absolute error of the differences between neighbouring pixels: blurred edges cost."""
    return sum(F.l1_loss(copies.diff(dim=d), x.diff(dim=d)) for d in (2, 3))


@torch.no_grad()
def standardise(vae: AutoencoderKL, images: Tensor) -> None:
    """Gives each channel of these images' scaled latents mean 0 and deviation 1.

    By the 1 x 1 convolutions on both sides of the latents, so the copies stay what they were.
    """
    z = vae.encode(_signed(images)).latent_dist.mean
    mean, deviation = z.mean((0, 2, 3)), z.std((0, 2, 3)) * SCALING
    into, out = vae.quant_conv, vae.post_quant_conv
    into.weight[:4] /= deviation.view(4, 1, 1, 1)
    into.bias[:4] = (into.bias[:4] - mean) / deviation
    into.bias[4:] -= 2 * deviation.log()  # the logarithm of a variance
    out.bias += (out.weight[:, :, 0, 0] * mean).sum(1)
    out.weight *= deviation.view(1, 4, 1, 1)


@torch.no_grad()
def copying_error(vae: AutoencoderKL, images: Tensor) -> float:
    """Root mean square error of decoded encodings, in pixels of [0, 1]."""
    z = vae.encode(_signed(images)).latent_dist.mean
    return (vae.decode(z).sample - _signed(images)).square().mean().sqrt().item() / 2


def _signed(images: Tensor) -> Tensor:
    return (2 * images - 1).contiguous(memory_format=torch.channels_last)


def new_denoiser() -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=shapes.SIDE // 4,
        block_out_channels=(64, 64),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        attention_head_dim=2,  # what diffusers calls so is the number of heads
        cross_attention_dim=WIDTH,
        norm_num_groups=32,
    )


def new_scheduler() -> DDIMScheduler:
    """Stable Diffusion's schedule, sampled from its noisiest step on."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="trailing",
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            projection_dim=WIDTH,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def tokens(tokenizer: CLIPTokenizer, prompts: list[str]) -> Tensor:
    """[B, L], as Stable Diffusion's pipelines make them."""
    length = tokenizer.model_max_length
    return tokenizer(
        prompts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
    ).input_ids


@torch.no_grad()
def encoded(vae: AutoencoderKL, settings: DenoiserSettings) -> tuple[Tensor, Tensor, list[str]]:
    """Scaled latents' means and deviations [N, 4, 8, 8], and captions."""
    means, deviations, captions = [], [], []
    for first in range(0, settings.pictures, 64):
        drawing = draw(64, seed=1_000_000 + first)
        posterior = vae.encode(_signed(drawing.images)).latent_dist
        means.append(posterior.mean * SCALING)
        deviations.append(posterior.std * SCALING)
        captions += drawing.captions
    return torch.cat(means), torch.cat(deviations), captions


class Denoiser(nn.Module):
    """What learns together: the denoiser and the text encoder."""

    def __init__(self, tokenizer: CLIPTokenizer):
        super().__init__()
        self.unet, self.text = new_denoiser(), new_text_encoder(tokenizer)

    def forward(self, x: Tensor, t: Tensor, prompts: Tensor) -> Tensor:
        return self.unet(x, t, self.text(prompts).last_hidden_state).sample


def learn_denoiser(
    vae: AutoencoderKL, tokenizer: CLIPTokenizer, settings: DenoiserSettings
) -> tuple[Denoiser, float]:
    """The denoiser with its text encoder, and the mean loss of the last tenth of the steps."""
    means, deviations, captions = encoded(vae, settings)
    prompts, empty = tokens(tokenizer, captions), tokens(tokenizer, [""])
    schedule = new_scheduler()
    torch.manual_seed(settings.seed)
    model = Denoiser(tokenizer).to(memory_format=torch.channels_last)
    mean = Average(model, settings.average)
    for step, losses in learning(model, settings.rate, settings.steps, "denoiser"):
        these = torch.randint(len(means), (settings.batch,))
        z = means[these] + deviations[these] * torch.randn(means[these].shape)
        dropped = torch.rand(settings.batch, 1) < settings.no_prompt
        said = torch.where(dropped, empty, prompts[these])
        t, noise = _times(schedule, settings.batch), torch.randn_like(z)
        predicted = model(schedule.add_noise(z, noise, t), t, said)
        loss = F.mse_loss(predicted, schedule.get_velocity(z, noise, t))
        loss.backward()
        losses.append(loss.item())
        if step:
            mean.update(model)
    last = losses[-math.ceil(settings.steps / 10) :]
    return mean.module.to(memory_format=torch.contiguous_format), sum(last) / len(last)


def _times(schedule: DDIMScheduler, batch: int) -> Tensor:
    """[B]: one in each of as many equal parts of the schedule, so that batches are alike."""
    count = schedule.config.num_train_timesteps
    return ((torch.arange(batch) + torch.rand(batch)) * count / batch).long()
