"""Nodes for the tests alone, put beside the pack by comfyui_server.py: they make values and show them.

ProbeImages {"spec": [...]}  -> a list of IMAGE batches, one a part of the spec (JSON or a list
    in {"__value__": [...]}). A part is {"files": [names in the input folder]}, all of one size,
    or {"count", "height", "width", "channels", "seed", "nan": [indices]} with defaults.
ProbeLatent {"spec": [...]}  -> a list of LATENTs. A part is {"count", "height", "width",
    "frames": 5-D where above 0, "nested": with sound beside it, "mask": masks in noise_mask,
    "batch_index": [...], "extra": {...}, "empty": all 0}.
ProbeMasks  {"spec": [...]}  -> a list of MASKs, a part {"count", "height", "width"}.
ProbeList   {"spec": [...]}  -> the list's values, of any type.
ProbeModel  {"kind": "eps" or "flow"} -> MODEL, CONDITIONING: SD 1.5 with a convolution for its UNet,
    that any sampler can sample. {"naked": true}: its latents have no linear preview. {"video": true}:
    its latents are videos, [N, 4, T, h, w].
ProbeVAE    {}               -> VAE: a TAESD with random weights, made under inference mode. {"video":
    true}: it decodes videos, frame by frame.
ProbeScorer {}               -> SCORER that reads prompts: how red images are to "red", else how blue.
ProbeLoaded {"after": link} -> a list: the classes of the models that lie on the device by then.
ProbeBatches {"model": link} -> MODEL that remembers the batches that it is called with; ProbeSeen
    {"model": link, "after": link} -> a list of them: images at a time, CFG's second half not counted.
ProbeImported {"name": "x", "after": link} -> whether the server has imported the module x by then.
ProbeDump   {"name": "x", "value": link} -> output/x.json: what came along the wire, a list of
    `summary`s. A value that was blocked leaves no file.

dump = json.loads((comfyui.output / "x.json").read_text())
"""

import dataclasses
import hashlib
import json
import os
import sys

import comfy.model_base
import comfy.model_management as mm
import comfy.model_patcher
import comfy.nested_tensor
import comfy.sd
import comfy.supported_models
import comfy.taesd.taesd
import folder_paths
import numpy as np
import torch
from PIL import Image


class Any(str):
    """A type that every wire matches."""

    def __ne__(self, other):
        return False


ANY = Any("*")
SPEC = {"required": {"spec": ("STRING", {"multiline": True})}}


def parsed(spec):
    return json.loads(spec) if isinstance(spec, str) else spec


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


class Maker:
    INPUT_TYPES = classmethod(lambda cls: SPEC)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, spec):
        return ([self.part(**part) for part in parsed(spec)],)


class ProbeImages(Maker):
    RETURN_TYPES = ("IMAGE",)

    def part(self, files=(), count=1, height=48, width=48, channels=3, seed=0, nan=()):
        if files:
            return torch.cat([read(name) for name in files])
        images = noise(count, height, width, channels, seed=seed)
        images[list(nan)] = torch.nan
        return images


class ProbeLatent(Maker):
    RETURN_TYPES = ("LATENT",)

    def part(
        self,
        count=1,
        height=6,
        width=6,
        frames=0,
        nested=False,
        mask=0,
        batch_index=None,
        extra=None,
        empty=False,
    ):
        shape = (count, 4, frames, height, width) if frames else (count, 4, height, width)
        latent = {"samples": torch.zeros(shape) if empty else noise(*shape, seed=1)}
        if nested:
            sound = noise(count, 8, 20, seed=4)
            latent["samples"] = comfy.nested_tensor.NestedTensor((latent["samples"], sound))
        if mask:
            latent["noise_mask"] = noise(mask, 1, height * 8, width * 8, seed=2)
        if batch_index is not None:
            latent["batch_index"] = batch_index
        return {**latent, **(extra or {})}


class ProbeMasks(Maker):
    RETURN_TYPES = ("MASK",)

    def part(self, count=1, height=48, width=48, seed=3):
        return noise(count, height, width, seed=seed)


class ProbeList(Maker):
    RETURN_TYPES = (ANY,)

    def make(self, spec):
        return (parsed(spec),)


class Denoiser(torch.nn.Module):
    """Hardly looks at its input, so what it predicts has the size of latents at every noise."""

    def __init__(self):
        super().__init__()
        self.dtype = torch.float32
        self.conv = torch.nn.Conv2d(4, 4, 3, padding=1).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for weight in self.conv.parameters():
            weight.copy_(0.05 * torch.randn(weight.shape, generator=generator))

    def forward(self, x, timesteps=None, context=None, **named):
        if x.ndim == 5:
            return each_frame(x, self.forward)
        return 0.95 * x + self.conv(x)


def each_frame(x, function):
    """[N, C, T, h, w] through a function for pictures."""
    frames = function(x.movedim(2, 1).flatten(0, 1))
    return frames.unflatten(0, (len(x), -1)).movedim(1, 2)


class ProbeModel:
    INPUT_TYPES = classmethod(
        lambda cls: {
            "required": {"kind": (["eps", "flow"],)},
            "optional": {"naked": ("BOOLEAN", {}), "video": ("BOOLEAN", {})},
        }
    )
    RETURN_TYPES = ("MODEL", "CONDITIONING")
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, kind, naked=False, video=False):
        shape = {"context_dim": 768, "model_channels": 8, "in_channels": 4}
        config = comfy.supported_models.SD15({**shape, "disable_unet_model_creation": True})
        config.set_inference_dtype(torch.float32, None)
        model_type = comfy.model_base.ModelType[kind.upper()]
        model = comfy.model_base.BaseModel(config, model_type=model_type, device="cpu")
        model.diffusion_model = Denoiser()
        if naked:
            model.latent_format.latent_rgb_factors = None
        if video:
            model.latent_format.latent_dimensions = 3
        places = dict(load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
        patcher = comfy.model_patcher.CoreModelPatcher(model, **places)
        return patcher, [[torch.zeros(1, 77, 768), {}]]


class Frames(torch.nn.Module):
    """A VAE for pictures, as one for videos."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def decode(self, z):
        return each_frame(z, self.inner.decode)


class ProbeVAE:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}, "optional": {"video": ("BOOLEAN", {})}})
    RETURN_TYPES = ("VAE",)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, video=False):
        weights = comfy.taesd.taesd.TAESD().state_dict()
        generator = torch.Generator().manual_seed(0)
        for name, weight in weights.items():
            if weight.ndim == 4:
                size = (2 / weight[0].numel()) ** 0.5
                weights[name] = size * torch.randn(weight.shape, generator=generator)
            elif weight.ndim == 1:
                weights[name] = torch.zeros_like(weight)
        weights["vae_scale"], weights["vae_shift"] = torch.tensor(0.18215), torch.tensor(0.0)
        vae = comfy.sd.VAE(sd=weights)
        if video:
            vae.latent_dim, vae.first_stage_model = 3, Frames(vae.first_stage_model)
            places = dict(load_device=vae.device, offload_device=mm.vae_offload_device())
            vae.patcher = comfy.model_patcher.CoreModelPatcher(vae.first_stage_model, **places)
        return (vae,)


class ProbeScorer:
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = ("SCORER",)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self):
        (managed,) = [m for name, m in sys.modules.items() if name.endswith(".nodes.managed")]
        (base,) = [m for name, m in sys.modules.items() if "v1.scorers.base" in name]

        class Reader(base.Scorer):
            _card = base.ScorerCard("reader", "none", "redness", (-1.0, 1.0))

            def __init__(self):
                super().__init__()
                self.one = torch.nn.Parameter(torch.ones(()), requires_grad=False)

            def forward(self, images, prompts=None):
                red, _, blue = images.mean((2, 3)).unbind(1)
                says = prompts if prompts else [""] * len(images)
                sign = torch.tensor([1.0 if text == "red" else -1.0 for text in says])
                return (sign * (red - blue) * self.one).float()

            def score_prepared(self, x):
                return self(x)

        with torch.inference_mode(False):
            weights = managed.Weights(Reader())
        return (managed.ManagedScorer(weights.scorer, [weights]),)


class ProbeLoaded:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"after": (ANY, {})}})
    IS_CHANGED = classmethod(lambda cls, after: float("nan"))
    RETURN_TYPES = (ANY,)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, after):
        return ([type(loaded.model.model).__name__ for loaded in mm.current_loaded_models],)


class ProbeBatches:
    INPUT_TYPES = classmethod(lambda cls: {"required": {"model": ("MODEL", {})}})
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, model):
        model, seen = model.clone(), []

        def count(apply, args):
            seen.append(len(args["input"]) // len(args["cond_or_uncond"]))
            return apply(args["input"], args["timestep"], **args["c"])

        model.set_model_unet_function_wrapper(count)
        model.set_attachments("probe_batches", seen)
        return (model,)


class ProbeSeen:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"after": (ANY, {}), "model": ("MODEL", {})}}
    )
    RETURN_TYPES = (ANY,)
    OUTPUT_IS_LIST = (True,)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, after, model):
        return (list(model.get_attachment("probe_batches")),)


class ProbeImported:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"name": ("STRING", {}), "after": (ANY, {})}}
    )
    IS_CHANGED = classmethod(lambda cls, name, after: float("nan"))
    RETURN_TYPES = (ANY,)
    FUNCTION = "make"
    CATEGORY = "probe"

    def make(self, name, after):
        return (name in sys.modules,)


class ProbeDump:
    INPUT_TYPES = classmethod(
        lambda cls: {"required": {"name": ("STRING", {}), "value": (ANY, {})}}
    )
    RETURN_TYPES = ()
    INPUT_IS_LIST = True
    OUTPUT_NODE = True
    FUNCTION = "dump"
    CATEGORY = "probe"

    def dump(self, name, value):
        path = os.path.join(folder_paths.get_output_directory(), name[0] + ".json")
        with open(path, "w", encoding="utf-8") as file:
            json.dump([summary(part) for part in value], file)
        return {}


def summary(value):
    """JSON that tells values apart: a tensor by its shape and a digest for each of its first
    dimension, and by its numbers where they are few."""
    if isinstance(value, torch.Tensor):
        found = {"shape": list(value.shape), "dtype": str(value.dtype)}
        if value.ndim:
            found["digests"] = [digest(row) for row in value]
        return {**found, "values": value.tolist()} if value.numel() <= 512 else found
    if getattr(value, "is_nested", False) and not isinstance(value, torch.Tensor):
        return [summary(part) for part in value.tensors]
    if dataclasses.is_dataclass(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return {"class": type(value).__name__, **summary(fields)}
    if isinstance(value, dict):
        return {str(key): summary(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [summary(part) for part in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return {"class": type(value).__name__}


def digest(tensor):
    return hashlib.sha256(tensor.contiguous().cpu().numpy().tobytes()).hexdigest()[:16]


def read(name):
    with Image.open(folder_paths.get_annotated_filepath(name)) as picture:
        return torch.from_numpy(np.array(picture.convert("RGB"), dtype=np.float32) / 255)[None]


PROBES = (
    *(ProbeImages, ProbeLatent, ProbeMasks, ProbeList),
    *(ProbeModel, ProbeVAE, ProbeLoaded, ProbeBatches, ProbeSeen),
    *(ProbeScorer, ProbeImported, ProbeDump),
)
NODE_CLASS_MAPPINGS = {node.__name__: node for node in PROBES}
WEB_DIRECTORY = "./web"  # the page opens on a blank graph
