"""Pipelines of diffusers' own classes with tiny random weights, for tests: `make(name)`, `call(name, B)`.

The configurations are the released models' in all that changes what a latent means: channels, packing,
shifts and statistics of the VAE, prediction type and schedule. Only widths and depths are tiny.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

SD_SCHEDULE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
STEPS = 4


def _vae(channels: int, **config: Any):
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=32,
        **config,
    )


def _sd15():
    from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        norm_num_groups=2,
    )
    return StableDiffusionPipeline(
        unet=unet,
        vae=_vae(4, scaling_factor=0.18215),
        scheduler=DDIMScheduler(**SD_SCHEDULE, clip_sample=False, steps_offset=1),
        **dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor")),
        requires_safety_checker=False,
    )


def _sdxl():
    from diffusers import (
        EulerDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )

    unet = UNet2DConditionModel(
        block_out_channels=(16, 32),
        layers_per_block=1,
        sample_size=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1),
        projection_class_embeddings_input_dim=80,
        cross_attention_dim=32,
        norm_num_groups=2,
    )
    return StableDiffusionXLPipeline(
        unet=unet,
        vae=_vae(4, scaling_factor=0.13025),
        scheduler=EulerDiscreteScheduler(**SD_SCHEDULE, steps_offset=1),
        **dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")),
        add_watermarker=False,
    )


def _sd3():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        SD3Transformer2DModel,
        StableDiffusion3Pipeline,
    )

    transformer = SD3Transformer2DModel(
        sample_size=32,
        patch_size=2,
        in_channels=16,
        out_channels=16,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        caption_projection_dim=32,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        pos_embed_max_size=32,
    )
    vae = _vae(16, scaling_factor=1.5305, shift_factor=0.0609)
    encoders = [f"{kind}{n}" for kind in ("text_encoder", "tokenizer") for n in ("", "_2", "_3")]
    return StableDiffusion3Pipeline(
        transformer=transformer,
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        **dict.fromkeys(encoders),
    )


def _flux():
    from diffusers import FluxPipeline, FluxTransformer2DModel

    transformer = FluxTransformer2DModel(
        patch_size=1,
        in_channels=64,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        pooled_projection_dim=32,
        axes_dims_rope=[4, 4, 8],
        guidance_embeds=True,
    )
    bare = dict(use_quant_conv=False, use_post_quant_conv=False)
    return FluxPipeline(
        transformer=transformer,
        vae=_vae(16, scaling_factor=0.3611, shift_factor=0.1159, **bare),
        scheduler=_dynamic(max_shift=1.15, shift=3.0),
        **dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2")),
    )


def _qwen():
    from diffusers import AutoencoderKLQwenImage, QwenImagePipeline, QwenImageTransformer2DModel

    transformer = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=64,
        out_channels=16,
        num_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=32,
        axes_dims_rope=(4, 4, 8),
    )
    vae = AutoencoderKLQwenImage(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1)
    return QwenImagePipeline(
        transformer=transformer,
        vae=vae,
        scheduler=_dynamic(max_shift=0.9, max_image_seq_len=8192, shift_terminal=0.02),
        text_encoder=None,
        tokenizer=None,
    )


def _zimage():
    from diffusers import (
        FlowMatchEulerDiscreteScheduler,
        ZImagePipeline,
        ZImageTransformer2DModel,
    )

    transformer = ZImageTransformer2DModel(
        in_channels=16,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=32,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    for name, parameter in transformer.named_parameters():
        if "pad_token" in name:  # which older releases leave as memory happens to be
            torch.nn.init.normal_(parameter, std=0.02)
    return ZImagePipeline(
        transformer=transformer,
        vae=_vae(16, scaling_factor=0.3611, shift_factor=0.1159),
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        text_encoder=None,
        tokenizer=None,
    )


def _wan():
    from diffusers import (
        AutoencoderKLWan,
        UniPCMultistepScheduler,
        WanPipeline,
        WanTransformer3DModel,
    )

    transformer = WanTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=12,
        text_dim=32,
        freq_dim=32,
        ffn_dim=32,
        num_layers=1,
        rope_max_seq_len=32,
    )
    return WanPipeline(
        transformer=transformer,
        vae=AutoencoderKLWan(base_dim=4, dim_mult=[1, 1, 1, 1], num_res_blocks=1),
        scheduler=UniPCMultistepScheduler(
            prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
        ),
        text_encoder=None,
        tokenizer=None,
    )


def _dynamic(**config: Any):
    """Flow matching whose shift depends on the number of latents."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, base_shift=0.5, **config)


BUILDERS: dict[str, Callable] = {
    "SD 1.5": _sd15,
    "SDXL": _sdxl,
    "SD3": _sd3,
    "Flux": _flux,
    "Qwen-Image": _qwen,
    "Z-Image": _zimage,
    "Wan": _wan,
}


def make(name: str, scheduler: Any = None):
    """The pipeline, the same weights every time; with its family's scheduler, or the given one."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        pipe = BUILDERS[name]()
    with torch.no_grad():  # random weights give grey: contrast, so that errors in the latents show
        pipe.vae.decoder.conv_out.weight.mul_(2)
    if scheduler is not None:
        pipe.scheduler = scheduler
    pipe.set_progress_bar_config(disable=True)
    return pipe


def call(name: str, prompts: int = 1, size: tuple[int, int] | None = None) -> dict[str, Any]:
    """What to call the pipeline with, for so many prompts: embeddings and generators of their own.

    `size` is (height, width), 32 by 32 unless given. `sample` picks one of the prompts.
    """
    height, width = size or (32, 32)
    named: dict[str, Any] = dict(height=height, width=width, num_inference_steps=STEPS)
    named["generator"] = [torch.Generator().manual_seed(i) for i in range(prompts)]
    text, empty = _text(prompts, 7, 32), torch.zeros(prompts, 7, 32)
    pooled, none = _text(prompts, 32), torch.zeros(prompts, 32)
    if name == "Z-Image":  # lists, since prompts differ in length
        return named | dict(
            prompt_embeds=list(text), negative_prompt_embeds=list(empty), guidance_scale=3.0
        )
    named["prompt_embeds"] = text
    if name == "Flux":
        return named | dict(pooled_prompt_embeds=pooled, guidance_scale=3.0)
    named["negative_prompt_embeds"] = empty
    if name == "Qwen-Image":
        read = torch.ones(prompts, 7, dtype=torch.long)
        masks = dict(prompt_embeds_mask=read, negative_prompt_embeds_mask=read)
        return named | masks | dict(true_cfg_scale=3.0)
    if name in ("SDXL", "SD3"):
        named |= dict(pooled_prompt_embeds=pooled, negative_pooled_prompt_embeds=none)
    if name == "Wan":
        named["num_frames"] = 9  # three of latents
    return named | dict(guidance_scale=3.0)


def sample(named: dict[str, Any], index: int) -> dict[str, Any]:
    """The call for one of several prompts alone."""
    alone = {}
    for key, value in named.items():
        per_prompt = isinstance(value, (Tensor, list))
        alone[key] = value[index : index + 1] if per_prompt else value
    alone["generator"] = [torch.Generator().manual_seed(index)]
    return alone


def output(pipe: Any, named: dict[str, Any], kind: str = "latent") -> Tensor:
    """The pipeline's latents, or with "pt" its pictures [B, 3, H, W] or video [B, T, 3, H, W]."""
    fresh = [torch.Generator().manual_seed(used.initial_seed()) for used in named["generator"]]
    return pipe(**named | dict(generator=fresh), output_type=kind, return_dict=False)[0]


def _text(prompts: int, *shape: int) -> Tensor:
    """Other numbers for each prompt, the same whether it is alone or not."""
    generators = [torch.Generator().manual_seed(100 + i) for i in range(prompts)]
    return torch.stack([torch.randn(shape, generator=generator) for generator in generators])
