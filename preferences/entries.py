"""What config.json says of training, of a head or of a whole scorer."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from torch import Tensor

from ..ranking import Calibration
from ..scorers.base import Scorer
from .comparisons import Comparisons
from .embeddings import contents_of


def data_entry(scorer: Scorer, train: Comparisons, test: Comparisons | None) -> dict[str, Any]:
    """How many comparisons, and what stands for them and their images; `scorer` is the base."""
    result = {
        "comparisons": len(train),
        "images": len(train.images),
        "hash": digest(scorer, train),
    }
    if test:
        result |= {"held_out": len(test), "held_out_hash": digest(scorer, test)}
    return result


def calibration_entry(scores: Tensor, held: Comparisons) -> dict[str, float] | None:
    """What makes ranks of scores [N] of the images held out; None if the comparisons say nothing
    about it, or never contradict the scores."""
    try:
        return Calibration.fit(scores.float(), held.pairs, held.p).to_dict()
    except ValueError:
        return None


def digest(scorer: Scorer, comparisons: Comparisons) -> str:
    """16 hex digits that stand for comparisons and the contents of their images, wherever they lie."""
    digest = hashlib.sha256(b"".join(contents_of(scorer, comparisons.images)))
    listed = [comparisons.pairs.tolist(), comparisons.p.tolist()]
    digest.update(json.dumps(listed).encode())
    return digest.hexdigest()[:16]
