"""Tastemaker: score, filter, rerank and steer generated images.

import tastemaker

scorer = tastemaker.load_scorer("nano")
scorer(images)            # Tensor[B, 3, H, W] in [0, 1] -> Tensor[B] float32, higher is better
scorer.score(["a.png"])   # any iterable of path | PIL image | Tensor[3, H, W] -> Tensor[N]
"""

__version__ = "0.1.0"

# Where each public name lives. Nothing is imported before it is asked for: ComfyUI and pytest import
# this file by path, under names of their own, and must not pay for (or fail on) what they do not use.
_PUBLIC = {
    "load_scorer": ".scorers",
    "Scorer": ".scorers",
    "ScorerCard": ".scorers",
    "Ensemble": ".scorers",
    "ranking": ".ranking",
    "preferences": ".preferences",
    "reward_guidance": ".guidance",
    "RewardCallback": ".guidance",
    "best_of_n": ".guidance",
    "calibrate_pruning": ".guidance",
    "steer_particles": ".guidance",
    "search_noise": ".guidance",
    "optimize_noise": ".guidance",
    "SearchResult": ".guidance",
}
__all__ = sorted(_PUBLIC)


def __getattr__(name: str):
    from importlib import import_module

    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = import_module(_PUBLIC[name], __name__)
    return module if _PUBLIC[name] == f".{name}" else getattr(module, name)


def __dir__():
    return sorted([*globals(), *_PUBLIC])


# Where ComfyUI finds the help pages, docs/<node id>.md.
WEB_DIRECTORY = "./web"


async def comfy_entrypoint():
    """Called by ComfyUI, which alone needs the nodes."""
    from .nodes import Extension

    return Extension()
