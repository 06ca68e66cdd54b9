"""Nodes for the tests alone, put beside the pack by comfyui_server.py: they make values and show them.

ProbeImages {"spec": [...]}  -> a list of IMAGE batches, one a part of the spec (JSON or a list
    in {"__value__": [...]}). A part is {"files": [names in the input folder]}, all of one size,
    or {"count", "height", "width", "channels", "seed", "nan": [indices]} with defaults.
ProbeLatent {"spec": [...]}  -> a list of LATENTs. A part is {"count", "height", "width",
    "frames": 5-D where above 0, "nested": with sound beside it, "mask": masks in noise_mask,
    "batch_index": [...], "extra": {...}}.
ProbeMasks  {"spec": [...]}  -> a list of MASKs, a part {"count", "height", "width"}.
ProbeList   {"spec": [...]}  -> the list's values, of any type.
ProbeDump   {"name": "x", "value": link} -> output/x.json: what came along the wire, a list of
    `summary`s. A value that was blocked leaves no file.

dump = json.loads((comfyui.output / "x.json").read_text())
"""

import dataclasses
import hashlib
import json
import os

import comfy.nested_tensor
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
    ):
        shape = (count, 4, frames, height, width) if frames else (count, 4, height, width)
        latent = {"samples": noise(*shape, seed=1)}
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


NODE_CLASS_MAPPINGS = {
    node.__name__: node for node in (ProbeImages, ProbeLatent, ProbeMasks, ProbeList, ProbeDump)
}
