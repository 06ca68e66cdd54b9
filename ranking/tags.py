"""Buckets -> the quality words that text-to-image training captions use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

import torch

Position = Literal["before", "after"]

QUALITY_NAMES = (
    "worst quality",
    "low quality",
    "average quality",
    "high quality",
    "best quality",
)


def quality_tags(
    labels: torch.Tensor | Sequence[int], names: Sequence[str] = QUALITY_NAMES
) -> list[str | None]:
    """`names[label]` for each bucket label, None for -1 (not scored).

    Labels come from `buckets(scores, len(names))` or `rank_bucket(rank, len(names))`. TypeError if
    they are not whole numbers, ValueError if one is below -1 or has no name.
    """
    if isinstance(names, str) or not names:
        raise ValueError(f"names must be a list of at least one tag, got {names!r}")
    # One pass over Python objects is the result itself; the checks read the few distinct labels.
    labels = labels.tolist() if isinstance(labels, torch.Tensor) else list(labels)
    words = dict(enumerate(names)) | {-1: None}
    for label in set(labels):
        if isinstance(label, float):
            raise TypeError(f"labels must be whole numbers, got {label}")
        if label not in words:
            raise ValueError(f"label {label} has no name: there are {len(names)} names, from 0")
    return [words[label] for label in labels]


def read_names(words: Iterable[str]) -> list[str]:
    """Names that a user wrote, without the spaces around them.

    ValueError if there is none, one is empty, or two are the same.
    """
    names = [word.strip() for word in words]
    if not names or not all(names) or len(set(names)) < len(names):
        raise ValueError(f"tags are different words, worst first, got {names}")
    return names


def tag_caption(
    caption: str, tag: str | None, position: Position = "before", separator: str = ", "
) -> str:
    """The caption, unchanged, with a tag before or after it; no tag, or no caption, adds nothing."""
    if position not in ("before", "after"):
        raise ValueError(f'position must be "before" or "after", got {position!r}')
    parts = [tag, caption] if position == "before" else [caption, tag]
    return separator.join(parts) if tag and caption else tag or caption
