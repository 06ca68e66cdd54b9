"""How many operations a picture costs each scorer, and a second question of it; writes operations.md.

    python benchmarks/operations.py

The published architectures without their weights, counted on "meta": the same on every machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import memory  # noqa: E402

from tastemaker.scorers import Scorer  # noqa: E402
from tastemaker.scorers.working_memory import on_meta  # noqa: E402

SIDES = (512, 1024)
HEADER = ["scorer", "picture", "TFLOP a picture", "a second question"]


def main() -> None:
    rows = [row(name, scorer, side) for name, scorer in memory.scorers() for side in SIDES]
    table = measure.table(HEADER, rows)
    print(table)
    Path(__file__).with_suffix(".md").write_text(
        "# Operations\n\nWritten by `python benchmarks/operations.py`; do not edit. What one picture costs "
        "a scorer of the\npublished size without gradient (matrix products and attention, as "
        "`FlopCounterMode` counts them),\nand what asking for quality and aesthetics costs beyond one of "
        "them.\n\n" + table,
        encoding="utf-8",
    )


def row(name: str, scorer: Scorer, side: int) -> list[str]:
    one, second = operations(scorer, scorer.score_prepared, side), ""
    if hasattr(scorer, "score_tasks_prepared"):
        both = operations(scorer, scorer.score_tasks_prepared, side)
        second = f"{100 * (both / one - 1):.1f} % of the first"
    return [name, f"{side} x {side}", f"{one / 1e12:.3g}", second]


def operations(scorer: Scorer, score: Callable[[Tensor], Tensor], side: int) -> int:
    """Floating-point operations of scoring one picture."""
    with torch.inference_mode(), on_meta(scorer), torch.device("meta"):
        with FlopCounterMode(display=False) as counter:
            score(scorer.prepare(torch.empty(1, 3, side, side)))
    return counter.get_total_flops()


if __name__ == "__main__":
    main()
