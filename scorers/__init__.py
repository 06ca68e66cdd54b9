"""Images to scores."""

from .base import Scorer, ScorerCard, check_images
from .ensemble import Ensemble
from .load import NAMES, load_scorer
from .stream import Scored

__all__ = ["NAMES", "Ensemble", "Scored", "Scorer", "ScorerCard", "check_images", "load_scorer"]
