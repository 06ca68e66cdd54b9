"""The best 4 of 16 SDXL images, weak candidates dropped early. Needs a GPU with 12 GB."""

import torch
from diffusers import AutoencoderTiny, EulerDiscreteScheduler, StableDiffusionXLPipeline

import tastemaker

MODEL = "stabilityai/stable-diffusion-xl-base-1.0"
pipe = StableDiffusionXLPipeline.from_pretrained(MODEL, torch_dtype=torch.float16, variant="fp16")
pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
previews = AutoencoderTiny.from_pretrained("madebyollin/taesdxl", torch_dtype=torch.float16)
previews.to(pipe.device)

scorer = tastemaker.load_scorer("joyquality", dtype="bfloat16")
result = tastemaker.best_of_n(
    pipe,
    scorer,
    n=16,
    keep=4,
    batch_size=4,
    prune="halving",
    decode=previews,
    pipe_kwargs=dict(prompt="a lighthouse in a storm, oil painting", num_inference_steps=30),
)
for image, seed, score in zip(result.images, result.seeds, result.scores, strict=True):
    image.save(f"lighthouse_{score:.2f}_seed{seed}.png")
print(f"{result.record.denoiser_calls} denoiser calls instead of {16 * 30}")
