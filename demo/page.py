"""The page that shows the loop: each prompt's images side by side, with their scores and their price."""

from __future__ import annotations

from pathlib import Path

from ..report.side_by_side import Made, Way, write_side_by_side
from .generator import GUIDANCE_SCALE
from .loop import STEPS, WAYS, Loop
from .shapes import SIDE

ABOUT = (
    f"A tiny Stable Diffusion pipeline that comes with Tastemaker draws coloured shapes, {SIDE} px. One "
    "reward model, which likes warm, large shapes in the middle, chooses and guides; another, which "
    "learnt the same taste from other pictures, is held out: what only the first one likes is no gain.",
    f"Every image takes {STEPS} steps, with classifier-free guidance at {GUIDANCE_SCALE:g}. "
    "The plain, the guided and the first of the 16 candidates start from the same noise.",
)


def write_page(path: Path, loop: Loop) -> None:
    """Writes the loop's report."""
    ways = [
        Way(name, f"{calls:.0f} denoiser calls")
        for name, calls in zip(WAYS, loop.calls, strict=True)
    ]
    made = rows(loop)
    last = list(made)[-1]
    figures = {f"{name}: {last}": record.plot() for name, record in loop.records.items()}
    write_side_by_side(
        path, ways, made, title="Plain, chosen, guided", about=ABOUT, figures=figures
    )


def rows(loop: Loop) -> dict[str, list[Made]]:
    """What the page shows of each prompt."""
    return {
        prompt: [Made(x.image, {"guiding": x.guiding, "held out": x.held_out}) for x in images]
        for prompt, images in loop.images.items()
    }
