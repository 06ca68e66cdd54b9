"""Weights that are elsewhere until they are needed, and what goes with a gradient.

`enable_sequential_cpu_offload` brings a layer's weights as new tensors, so a graph keeps those it used.
`enable_model_cpu_offload` and group offload move the very tensors away that a graph still needs, when
another model's turn comes; a decoder alone does not notice the former, since its backward comes first.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

LAYERS = ("AlignDevicesHook", "SequentialHook")  # sequential offload
MODEL = "CpuOffload"


def hooks_of(module: nn.Module) -> set[str]:
    """Kinds of hooks that offload its weights or reuse its outputs."""
    found = set()
    for part in module.modules():
        if hasattr(part, "_hf_hook"):
            found.add(type(part._hf_hook).__name__)
        found.update(getattr(getattr(part, "_diffusers_hook", None), "hooks", ()))
    return found


def check_hooks(pipe: Any, what: str, allowed: tuple[str, ...] = ()) -> None:
    """Raises NotImplementedError, with what to do, unless all hooks of the pipeline are allowed ones."""
    for module in modules_of(pipe):
        if found := hooks_of(module) - set(allowed):
            instead = ", or use enable_sequential_cpu_offload()" if LAYERS[0] in allowed else ""
            raise NotImplementedError(
                f"{what} needs weights that stay where they are and a denoiser that runs at every step, "
                f"but the {type(module).__name__} of this {type(pipe).__name__} has hooks "
                f"({', '.join(sorted(found))}): take offload and caches away first "
                f"(pipe.remove_all_hooks(), pipe.transformer.disable_cache()){instead}"
            )


def check_decoder(decoder: nn.Module) -> None:
    """Raises NotImplementedError for one whose weights are moved away before its backward."""
    if found := hooks_of(decoder) - {*LAYERS, MODEL}:
        raise NotImplementedError(
            f"the {type(decoder).__name__} has hooks ({', '.join(sorted(found))}), through which no gradient "
            "goes: leave it out (enable_group_offload(exclude_modules='vae')), or give decode= an "
            "AutoencoderTiny"
        )


def modules_of(pipe: Any) -> list[nn.Module]:
    return [each for each in pipe.components.values() if isinstance(each, nn.Module)]


@contextmanager
def still(module: nn.Module) -> Iterator[None]:
    """Within the context its weights do not learn; by name, since offload replaces them by others."""
    learning = [name for name, weight in module.named_parameters() if weight.requires_grad]
    _learn(module, learning, False)
    try:
        yield
    finally:
        _learn(module, learning, True)


def _learn(module: nn.Module, names: list[str], learns: bool) -> None:
    weights = dict(module.named_parameters())
    for name in names:
        weights[name].requires_grad_(learns)
