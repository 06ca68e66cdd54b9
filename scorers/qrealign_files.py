"""Q-ReAlign checkpoints: the configuration checked, the weights streamed to their device.

Only the rows of the embedding and of the output head that scoring reads are loaded: of 248,320 words
in a checkpoint, the prompts' and the five levels' (1.3 GB less for the 4B model).
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from .checkpoint import load_exactly, read_config, weight_files, weights_digest
from .messages import naming
from .qwen_pixels import Preprocessing
from .qwen_reader import Reader
from .qwen_text import TextTower
from .qwen_vision import VisionTower
from .values import COUNT, OBJECT, PART, POSITIVE, THREE_COUNTS, Kind, read_json, value

OLDEST_TRANSFORMERS = (5, 2)
EMBEDDING = "model.language_model.embed_tokens.weight"
HEAD = "lm_head.weight"
UNUSED = "mtp."  # multi-token prediction, which generation may use and scoring does not

# What the towers are built from; transformers checks some of it, and fills in what is left out.
BOTH = {"hidden_size": COUNT, "intermediate_size": COUNT}
TEXT_VALUES = {
    **BOTH,
    "num_hidden_layers": COUNT,
    "head_dim": COUNT,
    "num_attention_heads": COUNT,
    "num_key_value_heads": COUNT,
    "linear_num_key_heads": COUNT,
    "linear_num_value_heads": COUNT,
    "linear_key_head_dim": COUNT,
    "linear_value_head_dim": COUNT,
    "linear_conv_kernel_dim": COUNT,
    "rms_norm_eps": POSITIVE,
    "rope_parameters": OBJECT,
}
VISION_VALUES = {
    **BOTH,
    "depth": COUNT,
    "num_heads": COUNT,
    "in_channels": COUNT,
    "num_position_embeddings": COUNT,
    "out_hidden_size": COUNT,
}
ROPE_VALUES = {
    "rope_theta": POSITIVE,
    "partial_rotary_factor": PART,
    "mrope_section": THREE_COUNTS,
}


class Weights(NamedTuple):
    """What a scorer is built from."""

    reader: Reader
    levels: Tensor  # [5, D] rows of the output head
    digest: str  # identifies all of them


def check_transformers() -> None:
    """Raises ImportError, naming the command, where transformers does not know Qwen3.5."""
    import transformers

    version = transformers.__version__
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST_TRANSFORMERS:
        raise ImportError(
            f'Q-ReAlign needs transformers 5.2 or newer, this is {version}: pip install "transformers>=5.2"'
        )


def read_model_config(folder: Path, pixels: Preprocessing) -> Any:
    """The transformers configuration of a checkpoint, which fills in its defaults.

    Raises:
        ValueError: where it is not a model of this kind, or of a variant not implemented here.
    """
    from transformers import AutoConfig

    path, said = folder / "config.json", read_config(folder)
    if said.get("model_type") != "qwen3_5":
        raise ValueError(f"{folder} is a {said.get('model_type')} model, not Q-ReAlign (qwen3_5)")
    for part in ("text_config", "vision_config"):
        value(said, part, OBJECT, path)
    with naming(path):
        config = AutoConfig.from_pretrained(folder)
    text, vision = config.text_config, config.vision_config
    value(vars(config), "image_token_id", COUNT, path)
    _check(vars(text), TEXT_VALUES, f"{path}: text_config")
    _check(vars(vision), VISION_VALUES, f"{path}: vision_config")
    rope = text.rope_parameters
    _check({"partial_rotary_factor": 1.0, **rope}, ROPE_VALUES, f"{path}: rope_parameters")
    found = {
        "hidden_act": (text.hidden_act, "silu"),
        "vision hidden_act": (vision.hidden_act, "gelu_pytorch_tanh"),
        "rope_type": (rope.get("rope_type", "default"), "default"),
        "mrope_interleaved": (rope.get("mrope_interleaved", True), True),
        "patch_size": (vision.patch_size, pixels.patch),
        "spatial_merge_size": (vision.spatial_merge_size, pixels.merge),
        "temporal_patch_size": (vision.temporal_patch_size, pixels.temporal),
    }
    for name, (given, wanted) in found.items():
        if given != wanted:
            raise ValueError(f"{path}: {name} is {given!r}, expected {wanted!r}")
    return config


def _check(values: dict[str, Any], wanted: dict[str, Kind], source: str) -> None:
    for name, kind in wanted.items():
        value(values, name, kind, source)


def read_tokenizer(folder: Path) -> Any:
    """The tokenizer of a checkpoint.

    Raises:
        FileNotFoundError, ValueError: naming the file that is missing or damaged.
    """
    from transformers import AutoTokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise FileNotFoundError(f"no tokenizer.json in {folder}")
    for each in folder.glob("*tokenizer*.json"):
        read_json(each)  # transformers would not say which one
    with naming(path):
        return AutoTokenizer.from_pretrained(folder)


def checkpoint_dtype(config: Any) -> torch.dtype:
    """The dtype that the checkpoint was saved in."""
    dtype = getattr(config, "dtype", None) or getattr(config.text_config, "dtype", None)
    return dtype if isinstance(dtype, torch.dtype) else torch.bfloat16


def load_weights(
    folder: Path,
    config: Any,
    pixels: Preprocessing,
    words: list[int],
    levels: list[int],
    device: torch.device,
    dtype: torch.dtype,
) -> Weights:
    """Both towers and the rows that scoring reads, on the device, without a second copy in memory.

    Raises:
        FileNotFoundError, ValueError: naming the file or the keys that are missing, unknown,
            misshapen or damaged.
    """
    state = {}
    for path in weight_files(folder):
        state |= _read(path, {EMBEDDING: words + levels, HEAD: levels}, device, dtype)
    digest = weights_digest(state)
    if EMBEDDING not in state:
        raise ValueError(f"{folder} lacks {EMBEDDING}")
    rows = state.pop(EMBEDDING)
    # Where the head is tied to the embedding, a checkpoint may still hold its own copy of it.
    tied = config.tie_word_embeddings or config.text_config.tie_word_embeddings
    head = state.pop(HEAD, rows[len(words) :] if tied else None)
    if head is None:
        raise ValueError(f"{folder} lacks {HEAD}, and its config.json does not tie it")
    with naming(folder / "config.json"), torch.device("meta"):
        towers = nn.ModuleDict(
            {
                "visual": VisionTower(config.vision_config),
                "language_model": TextTower(config.text_config),
            }
        )
    renamed = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    load_exactly(towers, renamed, folder, assign=True)
    towers["visual"].fold_patches(pixels.mean, pixels.std)
    reader = Reader(towers["visual"], towers["language_model"], words, rows[: len(words)].clone())
    return Weights(reader, head.clone(), digest)


def _read(
    path: Path, rows: dict[str, list[int]], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    """The tensors of one file; of those in `rows`, these rows only."""
    state = {}
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():
                if name.startswith(UNUSED):
                    continue
                wanted = rows.get(name)
                tensor = _rows(file, name, wanted, path) if wanted else file.get_tensor(name)
                state[name] = tensor.to(dtype)
    except (SafetensorError, struct.error) as error:
        raise ValueError(f"damaged or half-written safetensors: {path} ({error})") from None
    return state


def _rows(file: Any, name: str, wanted: list[int], path: Path) -> Tensor:
    table = file.get_slice(name)
    size = table.get_shape()[0]
    if max(wanted) >= size:
        raise ValueError(f"the tokenizer of {path.parent} has tokens beyond the {size} of {name}")
    return torch.cat([table[i : i + 1] for i in wanted])
