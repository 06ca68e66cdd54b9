"""The folder of a scorer that was trained: what is in it, and how one is replaced by another.

    config.json                     what it is, and the names of the two others
    head-DIGEST.safetensors         the head; or model.safetensors, of one that was fine-tuned whole
    trained-on-DIGEST.txt           a hash of each picture that it was trained on
    training/                       the checkpoints of a run that is not finished

config.json is written last, at once, and what it does not name any more is removed after that. So
whatever is killed in between leaves the old scorer or the new one.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint import (
    read_config,
    read_weights,
    replacing,
    weight_files,
    weights_digest,
    write_config,
    write_safetensors,
)

OURS = re.compile(r"(head|model)-[0-9a-f]{16}\.safetensors|trained-on-[0-9a-f]{16}\.txt|\..+\.tmp")
WHOLE = "model.safetensors"
TRAINING = "training"
CHECKPOINTS = re.compile(r"checkpoint\.safetensors|best-\d+\.safetensors|\..+\.tmp")
HASH = 16  # bytes of a picture's


def write_personal(
    folder: Path,
    config: Mapping[str, Any],
    head: Mapping[str, Tensor],
    pictures: Iterable[bytes] = (),
) -> dict[str, Any]:
    """Writes a personal scorer to a folder, or replaces what training wrote there; its config.json.

    Args:
        config: all but the names of the files.
        head: as made by `head_state`.
        pictures: the hashes of those that it was trained on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"head-{weights_digest(head)}.safetensors"
    write_safetensors(folder / name, head)
    config = {**config, "head": name, "trained_on": write_trained_on(folder, pictures)}
    write_config(folder, config)
    _clear(folder, {name, config["trained_on"]})
    return config


def write_tuned(folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor]) -> None:
    """The same for a scorer that was fine-tuned whole: a folder of its base's kind.

    Other programs know its weights as model.safetensors. They get that name last: before, they have
    one that the new config.json says, and the old weights go with the old config.json.

    Args:
        config: with "personal", see `tuned`, whose "trained_on" is in the folder already.
    """
    folder.mkdir(parents=True, exist_ok=True)
    name = f"model-{weights_digest(state)}.safetensors"
    write_safetensors(folder / name, state)
    write_config(folder, {**config, "weights": name})
    os.replace(folder / name, folder / WHOLE)
    _clear(folder, {WHOLE, config["personal"]["trained_on"]})


def _clear(folder: Path, named: set[str]) -> None:
    """Removes what config.json does not name any more, and what is left of training."""
    for path in folder.iterdir():
        if (OURS.fullmatch(path.name) or path.name == WHOLE) and path.name not in named:
            path.unlink(missing_ok=True)
    clear_training(folder)


def clear_training(folder: Path) -> None:
    """Removes the checkpoints of an unfinished run."""
    training = folder / TRAINING
    for path in sorted(training.iterdir()) if training.is_dir() else ():
        if CHECKPOINTS.fullmatch(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # it is not there, or holds what is not ours
        training.rmdir()


def read_head(folder: Path, config: Mapping[str, Any]) -> dict[str, Tensor]:
    """The head that config.json names, or the folder's only weights.

    Raises:
        FileNotFoundError, ValueError: naming what is missing or damaged.
    """
    name = config.get("head")
    if name is None:
        return read_weights(weight_files(folder))
    if not isinstance(name, str) or not OURS.fullmatch(name):
        raise ValueError(f"damaged: {folder / 'config.json'} names the head {name!r}")
    if not (folder / name).is_file():
        raise FileNotFoundError(f"{folder} lacks {name}, which its config.json names")
    return read_weights([folder / name])


def is_free(folder: Path) -> bool:
    """Whether a folder is new, or holds nothing but what a killed `write_personal` left."""
    if not folder.exists():
        return True
    return folder.is_dir() and all(OURS.fullmatch(path.name) for path in folder.iterdir())


def is_trained(folder: Path) -> bool:
    """Whether a folder holds a scorer that training wrote. ValueError if its config.json is damaged."""
    if not (folder / "config.json").is_file():
        return False
    config = read_config(folder)
    return config.get("tastemaker") == "personal" or isinstance(config.get("personal"), Mapping)


def is_unfinished(folder: Path) -> bool:
    """Whether a folder holds a run that was killed, alone or beside the scorer that it replaces."""
    training = folder / TRAINING
    if (folder / "config.json").exists() and not is_trained(folder):
        return False
    return training.is_dir() and all(CHECKPOINTS.fullmatch(p.name) for p in training.iterdir())


def write_trained_on(folder: Path, pictures: Iterable[bytes]) -> str:
    """Keeps the hashes of the pictures that a scorer was trained on; the file's name."""
    lines = "".join(f"{picture.hex()}\n" for picture in sorted(set(pictures)))
    name = f"trained-on-{hashlib.sha256(lines.encode()).hexdigest()[:16]}.txt"
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / name) as temporary:
        temporary.write_text(lines, encoding="ascii", newline="\n")
    return name


def read_trained_on(folder: str | Path) -> frozenset[bytes]:
    """The hashes of the pictures that the scorer of a folder was trained on; none if it says nothing.

    Raises:
        ValueError: naming the file, when it is damaged.
    """
    folder = Path(folder).expanduser()
    if not (folder / "config.json").is_file():
        return frozenset()
    config = read_config(folder)
    tuned = config.get("personal")  # of one that was fine-tuned whole
    name = (tuned if isinstance(tuned, Mapping) else config).get("trained_on")
    if not isinstance(name, str) or not OURS.fullmatch(name) or not (folder / name).is_file():
        return frozenset()
    try:
        found = frozenset(map(bytes.fromhex, (folder / name).read_text("ascii").split()))
    except ValueError:
        found = frozenset([b""])
    if any(len(each) != HASH for each in found):
        raise ValueError(f"damaged: {folder / name} is no list of hashes")
    return found
