"""What a base brings to a head that keeps copies below originals, as `train` does; writes preferences_kept.md.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python benchmarks/preferences_kept.py

The pictures, tastes and users of `preferences.py`. Its heads from scratch keep nothing. Here both keep the
same copies below their originals: one starts from nano, one from nothing.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tastes  # noqa: E402
from measure import machine, table  # noqa: E402
from preferences_report import mean_and_interval  # noqa: E402

from preferences import (  # noqa: E402
    FIRST_USER,
    KINDS,
    Study,
    cached,
    fit,
    held_out_accuracy,
    random_pairs,
    still,
    votes,
)

OUT = Path(__file__).with_suffix(".md")
COUNTS = (25, 50, 100, 200, 1000)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="wheels or folders of pictures")
    parser.add_argument("--users", type=int, default=24, help="of each taste")
    parser.add_argument("--cache", type=Path, help="keep the embedded pictures here")
    options = parser.parse_args()
    torch.set_num_threads(1)
    study = cached(options.sources, options.cache)
    users = range(FIRST_USER, FIRST_USER + options.users)
    found = [
        [measured(study, t, u) for u in tqdm(users, desc=n)] for t, n in enumerate(tastes.TASTES)
    ]
    values = 100 * np.array(found)  # [tastes, users, counts, scratch or base, accuracy and 2 kinds]
    head = HEAD.format(machine(torch.device("cpu")), len(users), users[0], users[-1])
    header = ["taste", "head", *map(str, COUNTS), "JPEG, low resolution"]
    OUT.write_text(head + table(header, rows(values)), encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def measured(study: Study, taste: int, user: int) -> list[list[list[float]]]:
    """By count: of the head from scratch, and of nano's, its accuracy and what it keeps of each kind."""
    compared, rng = study.compared, np.random.default_rng(user)
    pairs = random_pairs(len(compared.scores), max(COUNTS), rng)
    p = votes(compared.tastes[:, taste], pairs, rng)
    found = []
    for count in COUNTS:
        asked = compared, pairs[:count], p[:count]
        each = []
        for base, prior in ((False, None), (True, study.prior)):
            own = fit(*asked, prior, base, study.copies)
            kept = [still(own, *study.robustness[kind], base) for kind in KINDS]
            each.append([held_out_accuracy(own, study.held_out, taste, base), *kept])
        found.append(each)
    return found


def rows(values: np.ndarray) -> list[list[str]]:
    lines = []
    for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
        part = values[t] if isinstance(t, int) else values.mean(0)  # [users, counts, 2, 3]
        for i, how in enumerate(("scratch", "nano")):
            kept = ", ".join(f"{v:.1f}" for v in part[..., i, 1:].mean((0, 1)))
            means = (said(a) for a in part[..., i, 0].T)
            lines.append(["" if i else name, how, *means, kept])
        lines.append(
            ["", "difference", *(said(d, "+") for d in (part[..., 1, 0] - part[..., 0, 0]).T), ""]
        )
    return lines


def said(values: np.ndarray, sign: str = "") -> str:
    mean, half = mean_and_interval(values)
    return f"{mean:{sign}.1f} ± {half:.1f}"


HEAD = """# What a base brings to a head that keeps copies below originals

Made by `python benchmarks/preferences_kept.py`: {}.

The pictures, tastes and users of [preferences.md](preferences.md): {} of each taste, {} to {}. Held-out
accuracy in percent, by the number of comparisons, of two heads which both have to keep the JPEG and
low-resolution copies of the compared pictures below them, as `train` does by default: one that starts from
nothing, and one that starts from nano. Last, the share of held-out originals above their JPEG and
low-resolution copies. ± is the 95 % interval of the mean over users.

"""

if __name__ == "__main__":
    main()
