"""A personal scorer: a base scorer, and a linear head of the user's own on what the base's head reads.

    score = gain * base score + weight . (embedding - center) + bias

`preferences.train` fits it to comparisons, so the probability that A is preferred to B is
sigmoid(score(A) - score(B)); 0 is the average of the pictures that were compared. Its folder holds
the head, a few KB, and names the base, whose weights it checks.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .base import Scorer, ScorerCard, differences, working_precision
from .checkpoint import load_exactly, read_config, weights_digest
from .nano import NanoScorer
from .personal_files import read_head
from .tuned import summary
from .values import OBJECT, value

# What of the base must be as it was trained on; precision, kernels and revision may differ.
CHECKED = ("scorer", "task", "weights", "preprocessing")
NO_BASE = (
    "has no embedding to learn a taste on: take nano, joyquality, any SigLIP fine-tune, rali, or a "
    "personal scorer as the base"
)


class PersonalScorer(Scorer):
    """A base scorer with a personal head; `load_scorer` opens one, `preferences.train` makes one.

    Args:
        base: a scorer with an `embed`.
        head: its parameters as made by `head_state`.
        config: what config.json says: `name`, `base`, `data`, `metrics`, `calibration`.
    """

    def __init__(self, base: Scorer, head: Mapping[str, Tensor], config: Mapping[str, Any]):
        super().__init__()
        require_features(base)
        if len(head["weight"]) != feature_size(base):
            sizes = f"{len(head['weight'])} features, {base.card.name} has {feature_size(base)}"
            raise ValueError(f"{config['name']} reads {sizes}")
        self.base, self.config = base, dict(config)
        self.head = PersonalHead(len(head["weight"]))
        load_exactly(self.head, head, self.config["name"])
        self._digest = weights_digest(head)
        self.default_batch_size = base.default_batch_size
        self.to(base.device).freeze()

    @property
    def kernels(self) -> str:
        return self.base.kernels

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        return self.base.input_size(height, width)

    def prepare(self, images: Tensor) -> Tensor:
        return self.base.prepare(images)

    def features(self, x: Tensor) -> Tensor:
        """Model input [B, 3, h, w] in [0, 1] to what the heads read, [B, D]."""
        return features_of(self.base, x)

    def score_features(self, features: Tensor) -> Tensor:
        """The scores [B] float32 of embeddings [B, D]."""
        return self.head(features, score_features(self.base, features)).float()

    def score_prepared(self, x: Tensor) -> Tensor:
        return self.score_features(self.features(x))

    def embed(self, images: Tensor) -> Tensor:
        """The base's embedding, [B, D] float32, of images as the call takes them. Differentiable."""
        return self.base.embed(images)

    @property
    def head_prior(self) -> Tensor | None:
        return self.base.head_prior

    @property
    def gradient_checkpointing(self) -> bool:
        """The base's: less memory in the backward pass, more time. AttributeError if it has none."""
        return self.base.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, on: bool) -> None:
        self.base.gradient_checkpointing = on

    @property
    def _card(self) -> ScorerCard:
        base = self.base.card
        return ScorerCard(
            name=self.config["name"],
            licence=f"{base.licence} (the base, {base.name}); the head is its owner's",
            unit="latent preference; win probability = sigmoid of a difference",
            range=(-math.inf, math.inf),
            hub_id=base.hub_id,
            revision=base.revision,
            paper=base.paper,
            task=base.task,
            tasks=(base.task,),
            capabilities=("embed", "score_video", "differentiable", "win_probability"),
            limits=f"{summary(self.config)} Judges only by what {base.name} sees: {base.limits}",
            out_of_scope=base.out_of_scope,
            fingerprint={
                "weights": self._digest,
                "preprocessing": base.fingerprint.get("preprocessing", ""),
                "base": f"{base.name} {base.fingerprint_id}",
            },
        )


class PersonalHead(nn.Module):
    """What the base's head reads [B, D], and the base's scores [B], to personal scores [B]."""

    def __init__(self, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.center = nn.Parameter(torch.zeros(size))
        self.gain = nn.Parameter(torch.zeros(()))
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, features: Tensor, scores: Tensor) -> Tensor:
        x = working_precision(features) - self.center  # centred first: large means would round
        return self.gain * scores + x @ self.weight.to(x.dtype) + self.bias


def head_state(weight: Tensor, center: Tensor, gain: float, bias: float) -> dict[str, Tensor]:
    """The parameters of a personal head as they are stored, float32."""
    state = {"weight": weight, "center": center, "gain": gain, "bias": bias}
    return {name: torch.as_tensor(value).detach().cpu().float() for name, value in state.items()}


def require_features(scorer: Scorer) -> None:
    """Raises ValueError unless the scorer has a head that reads one feature per picture."""
    if "embed" not in scorer.card.capabilities or not isinstance(
        getattr(scorer, "head", None), nn.Module
    ):
        raise ValueError(f"{scorer.card.name} {NO_BASE}")


def check_base(name_or_path: str | Path) -> None:
    """Raises ValueError for a Q-ReAlign, which is no base, before any of it is fetched or loaded."""
    from .load import KINDS, NAMED

    name, path = str(name_or_path), Path(name_or_path).expanduser()
    kind = next((n.kind for key, n in NAMED.items() if name in (key, n.hub_id)), None)
    if kind is None and (path / "config.json").is_file():
        kind = KINDS.get(str(read_config(path).get("model_type")))
    if kind == "q-realign":
        raise ValueError(f"{name} {NO_BASE}")


def features_of(scorer: Scorer, x: Tensor) -> Tensor:
    """Model input [B, 3, h, w] to what the scorer's head reads, [B, D]."""
    return scorer._embed(x) if isinstance(scorer, NanoScorer) else scorer.features(x)


def feature_size(scorer: Scorer) -> int:
    """D, the length of what the scorer's head reads."""
    return next(scorer.head.parameters()).shape[-1]  # [1, D] of linear heads, [D] of the others


def score_features(scorer: Scorer, features: Tensor) -> Tensor:
    """The scores [B] that a scorer gives to what its head reads, [B, D]."""
    if isinstance(scorer, PersonalScorer):
        return scorer.score_features(features)
    head = scorer.head
    scores = head(features.to(next(head.parameters()).dtype)).flatten()
    return working_precision(scores)


def base_identity(card: ScorerCard) -> dict[str, str]:
    """What of a base's fingerprint a head depends on."""
    return {name: card.fingerprint[name] for name in CHECKED if name in card.fingerprint}


def load_personal(
    path: Path,
    *,
    revision: str | None = None,
    task: str = "quality",
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    **options: Any,
) -> PersonalScorer:
    """Loads the folder that `preferences.train` wrote, and the base that it names.

    Args:
        path: folder with config.json and the head.
        revision: for the card.
        task: that of the base.
        device: where it runs.
        dtype: of the base's weights; None for its checkpoint's. The head is float32.
        base: where the base is now, if not where it was.
        options: the base's own.

    Raises:
        FileNotFoundError, ValueError: what is missing or does not fit; a base that is not the one
            that the head was trained on.
    """
    from .load import load_scorer

    config = read_config(path)
    said = config.get("base")
    if not isinstance(said, dict) or not isinstance(config.get("name"), str):
        raise ValueError(f"{path / 'config.json'} is no personal scorer's: it names no base")
    for part in ("options", "identity"):
        value({part: {}, **said}, part, OBJECT, path / "config.json")
    state = read_head(path, config)
    found = load_scorer(
        base or _find(said, path),
        task=task,
        device=device,
        dtype=dtype or "checkpoint",
        revision=None if base else said.get("revision"),
        **{**(said.get("options") or {}), **options},
    )
    stored, fresh = said.get("identity") or {}, base_identity(found.card)
    if stored != fresh:
        raise ValueError(
            f"{path} was trained on another {said.get('load')} ({differences(stored, fresh)}): "
            "train it again, or give base=, where the one it was trained on is"
        )
    if "weight" not in state or state["weight"].ndim != 1:
        raise ValueError(f"{path} holds no personal head")
    return PersonalScorer(found, state, config)


def base_entry(
    name_or_path: str | Path, card: ScorerCard, options: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """What config.json says of a base: how to load it, and what identifies it."""
    from .load import NAMES

    path = Path(name_or_path).expanduser()
    local = str(name_or_path) not in NAMES and path.exists()
    return {
        "load": os.path.abspath(path) if local else str(name_or_path),
        "revision": None if local else card.revision,
        "options": dict(options or {}),
        "name": card.name,
        "identity": base_identity(card),
    }


def _find(said: Mapping[str, Any], folder: Path) -> str:
    """The base's name, or its folder: where it was, or beside the personal one."""
    name = said.get("load")
    if not isinstance(name, str) or not name:
        raise ValueError(f"{folder / 'config.json'} names no base")
    beside = folder.absolute().parent / Path(name).name
    return (
        str(beside) if os.path.isabs(name) and not Path(name).exists() and beside.exists() else name
    )
