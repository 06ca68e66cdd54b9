"""Qwen-Image guided through its callback: one argument more in a script that exists. Needs 60 GB."""

import torch
from diffusers import QwenImagePipeline

import tastemaker

pipe = QwenImagePipeline.from_pretrained("Qwen/Qwen-Image", torch_dtype=torch.bfloat16)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")

scorer = tastemaker.load_scorer("joyquality", dtype="bfloat16")
image = pipe(
    prompt="a lighthouse in a storm",
    num_inference_steps=30,
    generator=torch.Generator().manual_seed(0),
    callback_on_step_end=tastemaker.RewardCallback(scorer, scale=0.1, pipe=pipe),
    callback_on_step_end_tensor_inputs=["latents"],
).images[0]
image.save("lighthouse_guided.png")
