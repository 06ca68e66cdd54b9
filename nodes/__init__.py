"""The ComfyUI nodes. The only place that imports ComfyUI; the work is done in the other packages."""

from __future__ import annotations

from comfy_api.latest import ComfyExtension, io

from .best_of_n import BestOfN
from .cascade import CascadeSelect
from .compare import CompareImages
from .embedded import EmbeddedGenerator
from .ensemble import EnsembleScorers
from .folders import register_folder
from .gate import ScoreGate, register_routes
from .guidance import GuidanceReport, RewardGuidance
from .load import LoadScorer
from .particles import ParticleSampler
from .quality_map import QualityMap
from .report import ScoreReport
from .save import SaveScoredImage
from .score import ScoreImages
from .search_noise import SearchNoise
from .select import SelectImages
from .tag import QualityTag
from .train import TrainPersonalScorer
from .video import ScoreVideo
from .workflows import serve_workflows

# The order in which the menu shows them.
NODES: list[type[io.ComfyNode]] = [
    LoadScorer,
    EnsembleScorers,
    TrainPersonalScorer,
    ScoreImages,
    SelectImages,
    CascadeSelect,
    ScoreGate,
    SaveScoredImage,
    ScoreReport,
    QualityTag,
    QualityMap,
    CompareImages,
    ScoreVideo,
    RewardGuidance,
    GuidanceReport,
    BestOfN,
    SearchNoise,
    ParticleSampler,
    EmbeddedGenerator,
]


class Extension(ComfyExtension):
    async def on_load(self) -> None:
        register_folder()
        register_routes()
        serve_workflows()

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES
