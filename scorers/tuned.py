"""What the card of a scorer of one's own says: on what it was trained, and how well.

A personal head has a folder of its own kind (`personal_files`). For a scorer that was fine-tuned
whole, `preferences.finetune` writes one of the base's kind, with one more entry in config.json:

    "personal": {"name", "base", "data", "metrics", "calibration", "training", "trained_on"}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .base import ScorerCard

MEASURED = {"held_out": "{} that it never saw", "cross_validated": "{} in cross-validation"}


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
    data, metrics = _part(said, "data"), _part(said, "metrics")
    count, images = (data.get(name, "?") for name in ("comparisons", "images"))
    text = f"One taste, from {count} comparisons of {images} images"
    for part, of in MEASURED.items():
        found = _part(metrics, part)
        if isinstance(found.get("accuracy"), float):
            text += f"; right in {found['accuracy']:.1%} of {of.format(found.get('decided', '?'))}"
            break
    return f"{text}. A number means something only against other scores of the same scorer."


def _part(values: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """What is only told, not computed with, may be missing or damaged."""
    found = values.get(name)
    return found if isinstance(found, Mapping) else {}
