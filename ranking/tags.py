"""Buckets -> the quality words that text-to-image training captions use."""

from __future__ import annotations

from collections.abc import Sequence

import torch

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
