"""Checkpoints on disk or on the hub: found, read without executing anything, and identified."""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from .messages import one_line
from .values import read_json

# What a checkpoint may consist of. Pickles (.bin, .pt, .pkl) are never downloaded.
HUB_FILES = ["*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt"]


def fetch(hub_id: str, revision: str | None = None) -> tuple[Path, str]:
    """The local folder of a hub checkpoint and its commit, downloaded if need be (with progress bars).

    Without `revision`, the commit that is already in the cache stays the one in use: a checkpoint
    never changes under a script. A download that was cut off is resumed. Honours HF_HUB_OFFLINE,
    HF_HOME and the standard cache.
    """
    from huggingface_hub import snapshot_download

    def snapshot(**how: Any) -> Path:
        return Path(snapshot_download(hub_id, revision=revision, allow_patterns=HUB_FILES, **how))

    try:
        folder = snapshot(local_files_only=True)
        weight_files(folder)
        return folder, folder.name
    except FileNotFoundError:  # not in the cache, or only the part before a download was cut off
        pass
    try:
        folder = snapshot()
        weight_files(folder)  # without a network the hub's client returns the part as it is
    except Exception as error:
        raise FileNotFoundError(
            f"{hub_id} is neither in the hub cache nor can it be downloaded "
            f"({one_line(error, 300)}); a local folder can be given instead"
        ) from error
    return folder, folder.name


def hub_id_of(folder: Path) -> str | None:
    """The hub id of a folder in the hub's cache (`models--OWNER--NAME/snapshots/COMMIT`), else None."""
    kind, *parts = folder.parent.parent.name.split("--")
    return "/".join(parts) if kind == "models" and len(parts) == 2 else None


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a checkpoint folder."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint: {folder} has no config.json")
    return read_json(path)


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of a folder: the sharded index's, or model.safetensors, or the only one.

    Those that config.json names come first: see `personal_files.write_tuned`.

    Raises:
        FileNotFoundError: when some are missing, as after a download that was cut off.
        ValueError: when the index is damaged, or it is not clear which file is meant.
    """
    if (new := _renamed_last(folder)) is not None:
        return [new]
    index = folder / "model.safetensors.index.json"
    if index.exists():
        names = _indexed(index)
        missing = [name for name in names if not (folder / name).exists()]
        if missing:
            raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}, which its index names")
        return [folder / name for name in names]
    if (folder / "model.safetensors").exists():
        return [folder / "model.safetensors"]
    found = sorted(folder.glob("*.safetensors"))
    if any(re.search(r"-\d{5}-of-\d{5}$", path.stem) for path in found):
        raise FileNotFoundError(f"{folder} holds shards and lacks their index, {index.name}")
    if len(found) == 1:
        return found
    if found:
        raise ValueError(f"which one? {folder} has {len(found)} .safetensors and no index")
    raise FileNotFoundError(f"no .safetensors in {folder}; pickled weights are not loaded")


def _renamed_last(folder: Path) -> Path | None:
    """The weights that config.json names, if they do not have their plain name yet."""
    if not (folder / "config.json").is_file():
        return None
    name = read_config(folder).get("weights")
    named = isinstance(name, str) and re.fullmatch(r"model-[0-9a-f]{16}\.safetensors", name)
    return folder / name if named and (folder / name).is_file() else None


def _indexed(index: Path) -> list[str]:
    """The shards that an index names: plain names, so that no index leads out of its folder."""
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        plain = all(re.fullmatch(r"[^/\\:\0]+\.safetensors", name) for name in names)
    except (ValueError, RecursionError, KeyError, TypeError, AttributeError):
        raise ValueError(f"damaged: {index} is no index of shards") from None
    if not names or not plain:
        raise ValueError(f"damaged: {index} must name .safetensors files of its own folder")
    return sorted(names)


def read_weights(files: list[Path]) -> dict[str, Tensor]:
    """All tensors of safetensors files, on the CPU.

    Raises:
        ValueError: naming the file, when one is cut off or is not safetensors.
    """
    state: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt") as file:
                state |= {name: file.get_tensor(name) for name in file.keys()}
        except (SafetensorError, struct.error) as error:
            raise ValueError(f"damaged or half-written safetensors: {path} ({error})") from None
    return state


def read_pickled_weights(path: Path) -> dict[str, Tensor]:
    """A `.pt` state dict through `weights_only=True`: tensors come back, no code is ever run.

    Raises:
        ValueError: naming the file, when it holds anything else.
        RuntimeError: before torch 2.6, whose `weights_only` can be deceived (CVE-2025-32434).
    """
    if tuple(int(n) for n in re.findall(r"\d+", torch.__version__)[:2]) < (2, 6):
        raise RuntimeError(
            f"torch {torch.__version__} cannot read {path} safely: "
            'pip install "torch>=2.6", or give a .safetensors'
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch did not write
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"not a plain dictionary of tensors: {path} {_refused(error)}") from None
    state = state.get("state_dict", state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"not a plain dictionary of tensors: {path}")
    return state


def _refused(error: Exception) -> str:
    """Why a pickle was not opened. torch's own words would advise to open it all the same."""
    asked = re.search(r"GLOBAL ([\w.]+)", str(error))
    what = f"would run {asked[1]}" if asked else "is damaged, or a pickle of something else"
    return f"{what}; it was not opened: ask for the weights as .safetensors"


def load_exactly(
    module: nn.Module, state: Mapping[str, Tensor], source: str | Path, assign: bool = False
) -> None:
    """`load_state_dict` in which every key must be there, fit, and be known.

    With `assign` the tensors become the module's own, uncopied: for modules made on "meta".

    Raises:
        ValueError: naming the source and the first few missing, unknown or misshapen keys.
    """
    wanted = module.state_dict()
    missing = [k for k in wanted if k not in state]
    unknown = [k for k in state if k not in wanted]
    misshapen = [
        f"{k} {list(state[k].shape)} instead of {list(wanted[k].shape)}"
        for k in wanted
        if k in state and state[k].shape != wanted[k].shape
    ]
    problems = (("missing", missing), ("unknown", unknown), ("misshapen", misshapen))
    found = [f"{len(keys)} {what}: {', '.join(keys[:3])}" for what, keys in problems if keys]
    if found:
        raise ValueError(f"{source} does not fit: {'; '.join(found)}")
    module.load_state_dict(state, assign=assign)


def weights_digest(state: Mapping[str, Tensor]) -> str:
    """16 hex digits that identify weights: every tensor's name, dtype, shape and bytes.

    Every byte goes into a CRC-32 of its tensor, so any change of up to 32 neighbouring bits is
    certain to show and any other misses with odds of 2^-32; SHA-256 is over these checksums and
    64 KiB spread over each tensor. Against accidents, not forgers. About 0.4 s a GB.
    """
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        flat = tensor.cpu().reshape(-1)
        step = max(1, flat.numel() * flat.element_size() // 65536)
        digest.update(_bytes(flat[::step]))
        digest.update(zlib.crc32(_bytes(flat)).to_bytes(4, "little"))
    return digest.hexdigest()[:16]


def _bytes(flat: Tensor) -> memoryview:
    # Through uint8: NumPy has no bfloat16.
    return memoryview(flat.contiguous().view(torch.uint8).numpy())


def write_checkpoint(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """config.json and model.safetensors, each written whole or not at all; the config comes last."""
    folder.mkdir(parents=True, exist_ok=True)
    write_safetensors(folder / "model.safetensors", state)
    write_config(folder, config)


def write_safetensors(
    path: Path, state: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Tensors, wherever they lie and however they are strided, to a file: whole or not at all."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    with replacing(path) as temporary:
        temporary.touch()
        mode = temporary.stat().st_mode  # what the umask says; safetensors makes files for one user
        save_file(tensors, temporary, metadata=dict(metadata or {"format": "pt"}))
        temporary.chmod(mode)


def write_config(folder: Path, config: Mapping[str, Any]) -> None:
    """config.json, whole or not at all."""
    with replacing(folder / "config.json") as temporary:
        temporary.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


class replacing:
    """`with replacing(path) as temporary:` - write `temporary`; on success it becomes `path`, at once.

    On an exception the temporary file is removed and `path` is as it was.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}.tmp")

    def __enter__(self) -> Path:
        return self.temporary

    def __exit__(self, kind, error, traceback) -> None:
        try:
            if kind is None:
                with open(self.temporary, "rb+") as file:
                    os.fsync(file.fileno())
                os.replace(self.temporary, self.path)
        finally:
            self.temporary.unlink(missing_ok=True)
