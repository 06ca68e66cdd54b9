"""What fixed-k pairing costs, and how near its near pairs are beside an exact search.

    python benchmarks/pairing.py

Embeddings of 64 features are simulated: clusters of 100 images, the spread within one a third of
that between them. CPU time of one core, without what else runs on the machine; memory is what the
process took at most beyond what it had taken with the embeddings made.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from measure import machine, process_peak, table
from torch import Tensor

from tastemaker.preferences import pairing

OUT = Path(__file__).with_suffix(".md")
FEATURES, SPREAD, EACH = 64, 1 / 3, 100
BESIDE_EXACT, SIZES = 30_000, (200_000, 1_000_000)
CELL = pairing.CELL


def main() -> None:
    torch.set_num_threads(1)
    pairing.fixed_k_pairs(embeddings(100))  # imports scikit-learn
    measured = [row(BESIDE_EXACT), *map(row, SIZES), row(BESIDE_EXACT, exact=True)]
    header = ["images", "neighbours", "CPU time of one core", "memory beyond", "near", "random"]
    head = HEAD.format(machine(torch.device("cpu")))
    OUT.write_text(head + table(header, measured), encoding="utf-8")
    print(OUT.read_text())


def embeddings(n: int) -> Tensor:
    """[n, 64], in random order."""
    g = torch.Generator().manual_seed(0)
    x = torch.randn(n, FEATURES, generator=g).mul_(SPREAD)
    centres = torch.randn(-(-n // EACH), FEATURES, generator=g)
    for rows, which in zip(
        x.split(65_536), torch.randint(len(centres), (n,), generator=g).split(65_536), strict=True
    ):
        rows += centres[which]
    return x


def row(n: int, exact: bool = False) -> list[str]:
    pairing.CELL = n if exact else CELL
    x = embeddings(n)
    before, started = process_peak(), time.process_time()
    found = pairing.fixed_k_pairs(x, 4, 0.3)
    seconds, more = time.process_time() - started, process_peak() - before
    a, b = found.pairs.T
    distance = torch.cat(
        [(x[i] - x[j]).norm(dim=1) for i, j in zip(a.split(65_536), b.split(65_536), strict=True)]
    )
    near, drawn = distance[found.near].mean(), distance[~found.near].mean()
    kind = "all images" if exact else f"cells of {CELL:,}"
    memory = "" if exact else f"{more / 1e6:,.0f} MB"
    return [f"{n:,}", kind, f"{seconds:.1f} s", memory, f"{near:.3f}", f"{drawn:.3f}"]


HEAD = f"""# Fixed-k pairing

`python benchmarks/pairing.py`, {{}}: every image in 4 pairs, 30 % of them
random; {FEATURES} features (simulated: see the script). Near and random are the mean distances of the two images
of such a pair.

"""


if __name__ == "__main__":
    main()
