"""Qwen-Image guided through its callback: one argument more in a script that exists.

For a GPU with 80 GB. An estimate, computed and not measured: about 63 GB, of which 58 are
Qwen-Image's weights in bfloat16, 1 is the scorer and 4 are the VAE, which decodes one picture of
1024 px. The scorer sees a linear picture of one pixel a latent, enough for composition and colours:
the gradient through the VAE (decode="vae") takes up to 18 GB more.
"""

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
    callback_on_step_end=tastemaker.RewardCallback(scorer, scale=0.1, pipe=pipe, decode="linear"),
).images[0]
image.save("lighthouse_guided.png")
