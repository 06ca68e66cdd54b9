"""Pipelines whose weights are elsewhere until they are needed: what is sampled is the same.

Without a GPU, as far as that shows it: accelerate's hooks bring each layer's weights from a map and leave
meta tensors behind, or are called for a whole model at a time.
"""

import pytest
import tiny_pipes
import torch
from accelerate import cpu_offload
from accelerate.hooks import CpuOffload
from stub import Brightness

from tastemaker.guidance import (
    best_of_n,
    calibrate_pruning,
    optimize_noise,
    reward_guidance,
    search_noise,
    steer_particles,
)
from tastemaker.guidance.decode import Decoder
from tastemaker.guidance.offload import LAYERS, MODEL, hooks_of, modules_of, still


def red(images):
    return (images[:, 0] - images[:, 1:].mean(1)).mean((1, 2))


def sequential(pipe):
    """As `enable_sequential_cpu_offload`, whose "cpu:0" is one device too many for accelerate."""
    for module in modules_of(pipe):
        cpu_offload(module, torch.device("cpu"), offload_buffers=len(module._parameters) > 0)
    return pipe


def model(pipe):
    pipe.enable_model_cpu_offload(device="cpu")
    return pipe


def make(name, offload):
    return offload(tiny_pipes.make(name))


def given(name):
    named = {key: value for key, value in tiny_pipes.call(name).items() if key != "generator"}
    return dict(pipe_kwargs=named, progress=False)


def guided(pipe, name):
    with reward_guidance(pipe, red, window=(0, 1), held_out=Brightness()):
        return tiny_pipes.output(pipe, tiny_pipes.call(name, 2))


def calibrated(pipe, name):
    return torch.tensor(calibrate_pruning(pipe, red, 4, n=4, **given(name)).correlation)


METHODS = {
    "best": lambda pipe, name: best_of_n(pipe, red, n=4, keep=4, **given(name)).latents,
    "pruned": lambda pipe, name: (
        best_of_n(pipe, red, n=4, batch_size=2, prune="halving", **given(name)).latents
    ),
    "guided": guided,
    "particles": lambda pipe, name: steer_particles(pipe, red, n=4, keep=4, **given(name)).latents,
    "noise": lambda pipe, name: search_noise(pipe, red, rounds=2, n=2, **given(name)).latents,
    "climb": lambda pipe, name: optimize_noise(pipe, red, iterations=1, **given(name)).latents,
    "calibrated": calibrated,
}
CELLS = [("SD 1.5", method) for method in METHODS]
CELLS += [
    (name, method)
    for name in ("SDXL", "Flux", "Qwen-Image", "Wan")
    for method in ("pruned", "guided", "particles")
]
CELLS += [("Z-Image", "guided"), ("SD3", "guided")]


@pytest.mark.parametrize("cell", CELLS, ids=" ".join)
def test_layers_that_come_one_by_one_change_nothing(cell):
    name, method = cell
    pipe = make(name, sequential)
    found = METHODS[method](pipe, name)
    assert torch.equal(found, METHODS[method](tiny_pipes.make(name), name))
    weights = [p for module in modules_of(pipe) for p in module.parameters()]
    assert all(p.is_meta and p.requires_grad for p in weights)  # gone again, and as they were


@pytest.mark.parametrize("cell", [c for c in CELLS if c[1] != "climb"], ids=" ".join)
def test_models_that_come_one_by_one_change_nothing(cell):
    name, method = cell
    found = METHODS[method](make(name, model), name)
    assert torch.equal(found, METHODS[method](tiny_pipes.make(name), name))


@pytest.fixture
def fetched(monkeypatch):
    """The models that are fetched, in order."""
    own, seen = CpuOffload.pre_forward, []

    def pre_forward(self, module, *args, **named):
        seen.append(type(module).__name__)
        return own(self, module, *args, **named)

    monkeypatch.setattr(CpuOffload, "pre_forward", pre_forward)
    return seen


def test_the_vae_is_fetched_for_each_guided_step(fetched):
    pipe = make("SD 1.5", model)
    with reward_guidance(pipe, red, window=(0.5, 1)) as record:
        tiny_pipes.output(pipe, tiny_pipes.call("SD 1.5"))
    expected = []
    for row in record.rows:
        expected += ["UNet2DConditionModel"] + ["AutoencoderKL"] * (row.push is not None)
    assert fetched == expected


def upcast(offload=lambda pipe: pipe):
    pipe = tiny_pipes.make("SDXL").to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    return offload(pipe)


@pytest.mark.parametrize("offload", [model, sequential])
def test_a_float16_vae_that_computes_in_float32_is_fetched_before_it_is_converted(offload, fetched):
    def decoded(pipe):
        z = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
        pixels = Decoder(pipe)(z)
        return pixels.detach(), torch.autograd.grad(red(pixels).sum(), z)[0]

    pipe = upcast(offload)
    for found, wanted in zip(decoded(pipe), decoded(upcast()), strict=True):
        assert torch.equal(found, wanted)
    assert pipe.vae.dtype == torch.float16
    assert fetched[:1] == (["AutoencoderKL"] if offload is model else [])


@pytest.mark.parametrize("offload", [model, sequential])
def test_hooks_are_known_by_name(offload):
    pipe = make("SD 1.5", offload)
    assert hooks_of(pipe.unet) <= ({MODEL} if offload is model else set(LAYERS))
    assert hooks_of(pipe.unet)
    pipe.remove_all_hooks()
    assert not hooks_of(pipe.unet)


def test_what_needs_the_whole_graph_is_refused_where_models_are_moved_away():
    pipe = make("SD 1.5", model)
    with pytest.raises(
        NotImplementedError, match="optimize_noise .*CpuOffload.*sequential_cpu_off"
    ):
        optimize_noise(pipe, red, **given("SD 1.5"))
    for offload in (model, sequential):
        with pytest.raises(
            NotImplementedError, match="through_model=True .* has hooks .*remove_all"
        ):
            with reward_guidance(make("SD 1.5", offload), red, through_model=True):
                pass


def test_a_decoder_whose_weights_are_moved_by_groups_is_refused():
    pipe = tiny_pipes.make("SD 1.5")
    pipe.vae.enable_group_offload(onload_device=torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(NotImplementedError, match="AutoencoderKL has hooks .group_offloading"):
        with reward_guidance(pipe, red):
            pass
    with reward_guidance(pipe, red, decode=lambda x0: x0[:, :3].sigmoid(), window=(0, 1)):
        tiny_pipes.output(pipe, tiny_pipes.call("SD 1.5"))
    best_of_n(pipe, red, n=2, prune=[(0.5, 0.5)], **given("SD 1.5"))  # needs no gradient


def test_weights_are_still_also_where_they_are_replaced_meanwhile():
    layer = torch.nn.Linear(2, 2)
    layer.bias.requires_grad_(False)
    with pytest.raises(KeyError), still(layer):
        assert not layer.weight.requires_grad
        layer.weight = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
        raise KeyError
    assert layer.weight.requires_grad and not layer.bias.requires_grad
