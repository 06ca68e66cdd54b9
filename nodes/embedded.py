"""Embedded Generator: the tiny Stable Diffusion of `demo/` in ComfyUI's own classes, without diffusers."""

from __future__ import annotations

from pathlib import Path

import comfy.diffusers_convert
import comfy.latent_formats
import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.sd
import comfy.supported_models
import comfy.utils
import torch
from comfy_api.latest import io
from torch import Tensor

from ..demo.generator import GUIDANCE_SCALE, WEIGHTS
from ..demo.rewards import load_reward
from ..demo.shapes import COLOURS, SHAPES
from ..scorers.checkpoint import load_exactly, read_weights
from .managed import ManagedScorer, shared
from .sockets import CATEGORY, SCORER

SHRINK = 4  # pixels a latent


class EmbeddedGenerator(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="TastemakerEmbeddedGenerator",
            display_name="Embedded Generator",
            category=CATEGORY,
            description="A tiny model that draws one coloured shape, 32 x 32 pixels, and two scorers "
            "with a taste: to try the sampling nodes in seconds, with nothing to download.",
            search_aliases=["demo", "toy model", "test model", "example checkpoint", "shapes"],
            inputs=[
                io.String.Input(
                    "prompt",
                    default="a star",
                    tooltip="Such as: a large red star on blue. Leave out what may be anything: 'a "
                    "shape' leaves the shape open. It "
                    f"knows small and large, {', '.join(SHAPES)}, and {', '.join(COLOURS)}.",
                ),
                io.String.Input(
                    "negative_prompt",
                    default="",
                    tooltip="What the image is not to show. Empty: nothing in particular.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    tooltip=f"For any sampler, at a cfg of about {GUIDANCE_SCALE:g}, from an Empty "
                    "Latent Image of 32 x 32."
                ),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt."),
                io.Vae.Output(
                    tooltip="Decodes the images; small enough for previews and guidance."
                ),
                SCORER.Output(
                    display_name="scorer",
                    tooltip="Likes a warm, large shape in the middle: to choose and to guide by.",
                ),
                SCORER.Output(
                    display_name="held_out",
                    tooltip="Another one with the same taste, learnt apart: to see whether the images "
                    "get better or only the first one's score.",
                ),
            ],
        )

    @classmethod
    def execute(cls, prompt: str, negative_prompt: str) -> io.NodeOutput:
        positive, negative = conditionings([prompt, negative_prompt])
        scorers = [reward(name) for name in ("guiding", "held-out")]
        return io.NodeOutput(load_model(), positive, negative, load_vae(), *scorers)


class Latents(comfy.latent_formats.SD15):
    """Scaled as Stable Diffusion's, but made by another VAE, so its previews do not fit them."""

    spacial_downscale_ratio = SHRINK

    def __init__(self):
        super().__init__()
        self.latent_rgb_factors = self.taesd_decoder_name = None


class Architecture(comfy.supported_models.SD15):
    """Small, and with v-prediction."""

    unet_extra_config = {"num_heads": 2, "num_head_channels": -1}
    latent_format = Latents

    def model_type(self, state_dict: dict, prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.V_PREDICTION


UNET = {
    **comfy.supported_models.SD15.unet_config,
    **dict(image_size=8, in_channels=4, out_channels=4, model_channels=64, context_dim=64),
    **dict(num_res_blocks=[1, 1], channel_mult=[1, 1], use_spatial_transformer=True, legacy=False),
    **dict(transformer_depth=[1, 1], transformer_depth_middle=1),
    "transformer_depth_output": [1, 1, 1, 1],
}
VAE = {
    **dict(double_z=True, z_channels=4, resolution=32, in_channels=3, out_ch=3),
    **dict(ch=32, ch_mult=[1, 1, 2], num_res_blocks=1, attn_resolutions=[], dropout=0.0),
}


def load_model() -> comfy.model_patcher.ModelPatcher:
    """The MODEL."""
    file, weights = read("unet")
    config = Architecture(UNET)
    config.set_inference_dtype(torch.float32, None)
    names = comfy.utils.unet_to_diffusers(config.unet_config)
    model = config.get_model({})
    load_exactly(model.diffusion_model, {names.get(k, k): w for k, w in weights.items()}, file)
    places = dict(load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    # Looked up at call time: ComfyUI replaces the class when it manages memory dynamically.
    return comfy.model_patcher.CoreModelPatcher(model, **places)


def load_vae() -> comfy.sd.VAE:
    file, weights = read("vae")
    weights = comfy.diffusers_convert.convert_vae_state_dict(weights)
    # It counts the decoder's levels down from four; here are three.
    for level in range(1, 4):
        old, new = f"decoder.up.{level}.", f"decoder.up.{level - 1}."
        weights = {name.replace(old, new): weight for name, weight in weights.items()}
    vae = comfy.sd.VAE(
        sd=weights,
        config={"params": {"embed_dim": 4, "ddconfig": VAE}},
        dtype=torch.float32,
    )
    load_exactly(vae.first_stage_model, weights, file)
    vae.downscale_ratio = vae.upscale_ratio = SHRINK
    return vae


def conditionings(prompts: list[str]) -> list[list]:
    """A CONDITIONING each. The text encoder is transformers' own, gone again after it."""
    from transformers import CLIPTextModel, CLIPTokenizer

    tokenizer = CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", local_files_only=True)
    encoder = CLIPTextModel.from_pretrained(
        WEIGHTS / "text_encoder", local_files_only=True, dtype=torch.float32
    )
    tokens = tokenizer(prompts, padding="max_length", truncation=True, return_tensors="pt")
    found = encoder.eval()(tokens.input_ids)
    states, pooled = found.last_hidden_state.split(1), found.pooler_output.split(1)
    return [[[s, {"pooled_output": p}]] for s, p in zip(states, pooled, strict=True)]


def reward(name: str) -> ManagedScorer:
    """One of the two scorers, its weights shared by all nodes that give it."""
    weights = shared(
        ("embedded", name), lambda: load_reward(name, mm.text_encoder_offload_device())
    )
    return ManagedScorer(weights.scorer, [weights])


def read(part: str) -> tuple[Path, dict[str, Tensor]]:
    """The file of a part in diffusers' format, and its weights, which are kept in half precision."""
    file = WEIGHTS / part / "diffusion_pytorch_model.safetensors"
    return file, {name: weight.float() for name, weight in read_weights([file]).items()}
