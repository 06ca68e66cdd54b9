"""Images to scores."""

from .base import Scorer, ScorerCard, check_images
from .load import NAMES, load_scorer
from .stream import Scored

__all__ = ["NAMES", "Scored", "Scorer", "ScorerCard", "check_images", "load_scorer"]
