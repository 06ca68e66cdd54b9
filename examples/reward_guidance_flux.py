"""Flux pushed towards a higher reward, with a second scorer to see that it is no cheat.

For a GPU with 48 GB. An estimate, computed and not measured: about 38 GB, of which 34 are Flux's
weights in bfloat16, 1 is the scorer and 3 are activations at 1024 px, half of them TAESD's for the
gradient.
"""

import torch
from diffusers import AutoencoderTiny, FluxPipeline

import tastemaker

pipe = FluxPipeline.from_pretrained("black-forest-labs/FLUX.1-dev", torch_dtype=torch.bfloat16)
pipe.to("cuda" if torch.cuda.is_available() else "cpu")
tiny = AutoencoderTiny.from_pretrained("madebyollin/taef1", torch_dtype=torch.bfloat16)
tiny.to(pipe.device)

scorer = tastemaker.load_scorer("joyquality", dtype="bfloat16")
other = tastemaker.load_scorer("nano")
kwargs = dict(prompt="a lighthouse in a storm", num_inference_steps=28)
with tastemaker.reward_guidance(pipe, scorer, scale=0.1, decode=tiny, held_out=other) as run:
    image = pipe(**kwargs, generator=torch.Generator().manual_seed(0)).images[0]
image.save("lighthouse_guided.png")
run.plot("reward while sampling").save("lighthouse_guided_reward.png")
print("reward hacking" if run.gap else "both scorers agree")
