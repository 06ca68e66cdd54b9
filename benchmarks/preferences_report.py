"""What `preferences.py` measured, as preferences.md: tables, and each bar with its numbers.

A bar is judged on the mean over the tastes, taste by taste where it says so; ± is the 95 % interval
of a mean over users. A difference is of the same user, who answers the same pairs. Where every
taste is asked at every count whether it is worse, the levels are Holm's, 5 % for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tastes
import torch
from measure import machine, table
from scipy.stats import t as student

from tastemaker.preferences.asking import FIRST
from tastemaker.preferences.keeping import PICTURES

OUT = Path(__file__).with_suffix("").with_name("preferences.md")
FEW, CEILING = 200, 20000
MARGIN = 0.01  # what an interval may reach below 0 for "never worse" to be shown


class Curves:
    """Accuracies [users, tastes] by how and count; users of whom all tastes are done."""

    def __init__(self, results: Sequence):
        users = sorted({r.user for r in results if r.taste == 2})
        self.users = len(users)
        self.by = {(r.user, r.taste): r for r in results}
        self.order = users

    def __call__(self, how: str, count: int) -> np.ndarray:
        return np.array(
            [[self.by[u, t].accuracy[how][count] for t in range(3)] for u in self.order]
        )

    def kept(self, how: str, count: int, kind: int) -> np.ndarray:
        return np.array(
            [[self.by[u, t].robustness[how][count][kind] for t in range(3)] for u in self.order]
        )

    def counts(self, how: str) -> list[int]:
        return list(self.by[self.order[0], 0].accuracy[how])


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half its 95 % interval, over users [U]."""
    n = len(values)
    t = student.ppf(0.975, n - 1)
    return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(n))


def write(study, results: Sequence) -> None:
    curves = Curves(results)
    parts = [
        _head(study, curves),
        "## Held-out accuracy, %\n",
        _accuracies(curves),
        "## The bars\n",
        _bars(study, curves),
        "## From the base, less from scratch: percentage points\n",
        _differences(curves, "base", "scratch"),
        "## Suggested, less random pairs: percentage points\n",
        _differences(curves, "suggested", "base"),
        "## Originals above their copies, %\n",
        _robustness(study, curves),
    ]
    OUT.write_text("\n".join(parts), encoding="utf-8")


def _head(study, curves: Curves) -> str:
    n, held = len(study.compared.scores), len(study.held_out.scores)
    return f"""# How few comparisons a personal scorer needs

Made by `python benchmarks/preferences.py`: {machine(torch.device("cpu"))}.

Simulated users with three tastes (`tastes.py`: closed formulas of the pixels, none linear in what nano
sees, written down before anything was measured) compare {n} crops of pictures that nano was trained
on, clean or corrupted; {tastes.FLIPS:.0%} of their answers are slips. Accuracy is measured without slips, on 20,000
pairs of {held} crops of pictures that nano never saw. {curves.users} users of each taste, each with other pairs and
slips; ± is the 95 % interval of their mean. They are users {curves.order[0]} to {curves.order[-1]}; the fit's constants were chosen
on users 100 to 123. But the pictures, those compared and those held out, are the same for all, and no interval says how other
pictures would do. Where it is asked whether any taste is worse at any count, "for sure" is at 5 % for
all those cells together (Holm); by its own interval one cell in 40 is worse by chance.

- *scratch*: a head on nano's features. *base*: the same, and what nano brings: its score, and its prior of
  what tastes weigh its features by, made of random tastes (`training/head_prior.py`), as
  `train(robust=False)` fits it. [What each is worth](preferences_base.md).
- *suggested*: as *base*; from {FIRST} comparisons on three in four are those that `suggest_for` finds.
- *kept*: as *base*; besides, JPEG and low-resolution copies of at most {PICTURES:,} of the compared pictures
  have to stay below them, as in `train` by default.

No one setting meets all bars: *base* keeps no copies below their originals, and *kept* is no better than a
head [from scratch that keeps them too](preferences_kept.md), and at 1,000 comparisons worse. "Never worse"
is shown to within a point: an interval may reach that far below 0.

The prior is not blind to the tastes: what it is made of was chosen on users 100 to 123, and tone, detail and
faults are what the tastes are about. A prior of none of these gives one taste five points and takes up to two
from the others at 25 comparisons. It was made on the pictures that are compared, of which users' own are not.
"""


def _said(mean: float, half: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


def _fine(mean: float, half: float) -> str:
    return f"{100 * mean:+.3f} ± {100 * half:.3f}"


def _accuracies(c: Curves) -> str:
    rows = []
    for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
        for how in ("scratch", "base", "suggested", "kept"):
            row = [name if how == "scratch" else "", how]
            for count in c.counts("base"):
                if count not in c.counts(how):
                    row.append("")
                    continue
                row.append(
                    _said(*mean_and_interval(c(how, count)[:, t].reshape(c.users, -1).mean(1)))
                )
            rows.append(row)
    return table(["taste", "head", *map(str, c.counts("base"))], rows)


def _differences(c: Curves, one: str, other: str) -> str:
    counts = c.counts(one)
    rows = []
    for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
        difference = [c(one, n)[:, t] - c(other, n)[:, t] for n in counts]
        means = [d.reshape(c.users, -1).mean(1) for d in difference]
        rows.append([name, *(_said(*mean_and_interval(d), "+") for d in means)])
    return table(["taste", *map(str, counts)], rows)


def _robustness(study, c: Curves) -> str:
    rows = []
    for kind, name in enumerate(("JPEG", "low resolution")):
        original, copy = list(study.robustness.values())[kind]
        nano = float((original.scores > copy.scores).double().mean())
        prefer = [
            float((original.tastes[:, t] > copy.tastes[:, t]).double().mean()) for t in range(3)
        ]
        for how in ("base", "kept"):
            for t, taste in enumerate(tastes.TASTES):
                shares = [
                    f"{100 * c.kept(how, n, kind)[:, t].mean():.1f}" for n in c.counts("kept")
                ]
                about = [f"{100 * nano:.1f}", f"{100 * prefer[t]:.0f}"]
                rows.append([name, how, taste, *about, *shares])
    header = ["copies", "head", "taste", "nano", "the taste itself"]
    return table([*header, *(f"from {n}" for n in c.counts("kept"))], rows)


def _bars(study, c: Curves) -> str:
    return table(
        ["bar", "found", "met"],
        [
            _never_worse(c, "base", "scratch", "with the base never worse than from scratch"),
            _better_at_few(c),
            _of_the_ceiling(c),
            _never_worse(c, "suggested", "base", "suggested pairs never worse than random ones"),
            _as_good_with_fewer(c),
            _within_a_point(study, c, "base"),
            _within_a_point(study, c, "kept"),
        ],
    )


def _never_worse(c: Curves, one: str, other: str, bar: str) -> list[str]:
    """Worse is where a difference is surely below 0, all cells together; a wide interval shows neither."""
    counts = c.counts(one)
    differences = {n: c(one, n) - c(other, n) for n in counts}  # [users, tastes]
    means = {n: mean_and_interval(d.mean(1)) for n, d in differences.items()}
    lowest = min(means, key=lambda n: means[n][0])
    low = min(mean - half for mean, half in means.values())
    each = {(k, n): d[:, t] for n, d in differences.items() for t, k in enumerate(tastes.TASTES)}
    worse, alone = _surely_below(each), _surely_below(each, together=False)
    below = [f"{n} ({_fine(*means[n])})" for n, (mean, half) in means.items() if mean + half < 0]
    found = f"mean of the tastes: lowest {_said(*means[lowest], '+')} at {lowest}"
    found += f", below 0 with all of its interval at {', '.join(below) or 'none'}"
    found += f"; a taste worse for sure: {_cells(each, worse)}; by its own interval: {_cells(each, alone)}"
    if below:
        return [bar, found, "no"]
    if low < -MARGIN:
        return [bar, found, f"not shown: an interval reaches {100 * low:+.1f}"]
    return [bar, found, "on the mean, not for every taste" if worse else "yes"]


def _surely_below(cells: dict, together: bool = True) -> list:
    """Those whose mean is below 0 at 5 %, two-sided: of all cells together (Holm 1979), or of each."""
    p = {k: 1.0 if d.mean() >= 0 else _p(d) for k, d in cells.items()}
    found = []
    for rank, cell in enumerate(sorted(p, key=p.get)):
        if p[cell] >= 0.05 / (len(p) - rank if together else 1):
            break
        found.append(cell)
    return found


def _p(values: np.ndarray) -> float:
    """Student's two-sided test of a mean of 0."""
    error = values.std(ddof=1) / math.sqrt(len(values))
    return float(2 * student.sf(abs(values.mean()) / error, len(values) - 1)) if error else 0.0


def _cells(cells: dict, which: list) -> str:
    said = [
        f"{name} at {n} ({100 * cells[name, n].mean():+.2f})"
        for name, n in cells
        if (name, n) in which
    ]
    return ", ".join(said) or "none"


def _better_at_few(c: Curves) -> list[str]:
    few = [n for n in c.counts("base") if n <= FEW]
    d = np.mean([c("base", n) - c("scratch", n) for n in few], 0)  # [users, tastes]
    each = "; ".join(
        f"{k} {_said(*mean_and_interval(v), '+')}" for k, v in zip(tastes.TASTES, d.T, strict=True)
    )
    mean, half = mean_and_interval(d.mean(1))
    surely = [m > h for m, h in map(mean_and_interval, d.T)]
    met = "yes" if mean - half > 0 else f"no: for {sum(surely)} of 3 tastes"
    found = f"mean over those counts: {_said(mean, half, '+')} ({each})"
    return ["with the base better at 200 or fewer", found, met]


def _of_the_ceiling(c: Curves) -> list[str]:
    ratio = [c("base", 1000)[:, t].mean() / c("base", CEILING)[:, t].mean() for t in range(3)]
    gain = [
        (c("base", 1000)[:, t].mean() - 0.5) / (c("base", CEILING)[:, t].mean() - 0.5)
        for t in range(3)
    ]
    said = ", ".join(f"{r:.1%}" for r in ratio) + "; of the gain above 50 %: "
    said += ", ".join(f"{g:.0%}" for g in gain)
    met = "yes" if min(ratio) >= 0.95 else "no"
    return ["1,000 comparisons reach 95 % of what 20,000 do", said, met]


def _as_good_with_fewer(c: Curves) -> list[str]:
    said, met = [], True
    for fewer, n in ((150, 200), (375, 500), (750, 1000)):
        mean, half = mean_and_interval((c("suggested", fewer) - c("base", n)).mean(1))
        said.append(f"{fewer} against {n}: {_said(mean, half, '+')}")
        met &= mean >= 0
    return ["goal: the same from 75 % of the comparisons", "; ".join(said), "yes" if met else "no"]


def _within_a_point(study, c: Curves, how: str) -> list[str]:
    said, met = [], True
    for kind, (name, sides) in enumerate(study.robustness.items()):
        nano = float((sides[0].scores > sides[1].scores).double().mean())
        lost = {n: nano - c.kept(how, n, kind).mean(0) for n in c.counts("kept")}
        most, n = max((v.max(), n) for n, v in lost.items())
        mean = np.mean(list(lost.values()))
        said.append(f"{name} {100 * mean:.2f} lost on the mean, at most {100 * most:.2f} (at {n})")
        met &= most <= 0.01
    return [
        f"JPEG and low resolution within 1 point: *{how}*",
        "; ".join(said),
        "yes" if met else "no",
    ]
