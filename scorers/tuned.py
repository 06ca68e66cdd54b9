"""The card of a scorer that was fine-tuned whole: its config.json says on what, and how well.

`preferences.finetune` writes a folder of the base's own kind, with one more entry in config.json:

    "personal": {"name", "base", "data", "metrics", "calibration", "training"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import ScorerCard


def tuned_card(card: ScorerCard, config: Mapping[str, Any]) -> ScorerCard:
    """`card`, changed by what config.json says of fine-tuning; unchanged where it says nothing."""
    said = config.get("personal")
    if not isinstance(said, Mapping):
        return card
    return replace(
        card,
        name=str(said.get("name") or card.name),
        licence=f"{card.licence} (the base, {card.name}); what was trained is its owner's",
        unit="latent preference; win probability = sigmoid of a difference",
        limits=summary(said),
        out_of_scope="prompt adherence, safety, factual or identity judgements",
    )


def summary(said: Mapping[str, Any]) -> str:
    """One line on what was learned from, and how often it is right about what it never saw."""
    data, metrics = said.get("data") or {}, said.get("metrics") or {}
    count, images = (data.get(name, "?") for name in ("comparisons", "images"))
    text = f"One taste, from {count} comparisons of {images} images"
    held_out = metrics.get("held_out") or {}
    if isinstance(held_out.get("accuracy"), float):
        text += f"; right in {held_out['accuracy']:.1%} of {held_out['decided']} that it never saw"
    return f"{text}. A number means something only against other scores of the same scorer."
