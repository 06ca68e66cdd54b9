"""What `preferences.py` measured, as preferences.md: tables, and each bar with its numbers.

A bar is judged on the mean over the tastes, taste by taste where it says so; ± is the 95 % interval
of a mean over users. A difference is of the same user, who answers the same pairs. Where every
taste is asked at every count whether it is worse, the levels are Holm's, 5 % for all of them together.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import tastes
import torch
from measure import machine, table
from scipy.stats import t as student
from simulated import FREE, KINDS, ROBUST, TESTED, Study, still

from tastemaker.preferences.asking import FIRST
from tastemaker.preferences.keeping import PICTURES

OUT = Path(__file__).with_suffix("").with_name("preferences.md")
FEW, CEILING = 200, 20000
MARGIN = 0.01  # what an interval may reach below 0 for "never worse" to be shown


class Curves(NamedTuple):
    """What was measured in one setting: arrays [users, tastes] by head and count."""

    found: dict[tuple[int, int], dict]  # by user and taste, `preferences.Result.found`
    users: list[int]
    setting: str

    @classmethod
    def of(cls, results: Sequence, setting: str) -> Curves:
        found = {(r.user, r.taste): r.found for r in results}
        return cls(found, sorted({r.user for r in results}), setting)

    def __call__(self, head: str, count: int) -> np.ndarray:
        return self._each(lambda found: found[self.setting, head, count].accuracy)

    def still(self, head: str, count: int, kind: int) -> np.ndarray:
        return self._each(lambda found: found[self.setting, head, count].still[kind])

    def _each(self, value: Callable[[dict], float]) -> np.ndarray:
        return np.array([[value(self.found[u, t]) for t in range(3)] for u in self.users])

    def counts(self, head: str) -> list[int]:
        return [n for s, h, n in self.found[self.users[0], 0] if (s, h) == (self.setting, head)]


def mean_and_interval(values: np.ndarray) -> tuple[float, float]:
    """Mean and half its 95 % interval, over users [U]."""
    n = len(values)
    t = student.ppf(0.975, n - 1)
    return float(values.mean()), float(t * values.std(ddof=1) / math.sqrt(n))


def write(study: Study, results: Sequence) -> None:
    settings = {setting: Curves.of(results, setting) for setting in (ROBUST, FREE)}
    parts = [_head(study, settings[ROBUST])]
    for setting, curves in settings.items():
        parts += [
            f"## The bars: {setting}\n",
            table(["bar", "found", "met"], _bars(study, curves)),
        ]
    parts += ["## What keeping the copies costs, percentage points\n", _costs(*settings.values())]
    for setting, curves in settings.items():
        parts += [
            f"## Held-out accuracy, %: {setting}\n",
            _accuracies(curves),
            f"## From the base, less from scratch, percentage points: {setting}\n",
            _differences(curves, "base", "scratch"),
            f"## Suggested, less random pairs, percentage points: {setting}\n",
            _differences(curves, "suggested", "base"),
            f"## Originals above their copies, %: {setting}\n",
            _robustness(study, curves),
        ]
    OUT.write_text("\n".join(parts), encoding="utf-8")


def _head(study: Study, curves: Curves) -> str:
    n, held, users = len(study.compared.scores), len(study.held_out.scores), curves.users
    return f"""# How few comparisons a personal scorer needs

Made by `python benchmarks/preferences.py`: {machine(torch.device("cpu"))}.

Simulated users with three tastes (`tastes.py`: closed formulas of the pixels, none linear in what nano
sees, written down before anything was measured) compare {n} crops of pictures that nano was trained
on, clean or corrupted; {tastes.FLIPS:.0%} of their answers are slips. Accuracy is measured without slips, on {TESTED:,}
pairs of {held} crops of pictures that nano never saw. {len(users)} users of each taste, each with other pairs and
slips; ± is the 95 % interval of their mean. They are users {users[0]} to {users[-1]}; the fit's constants were chosen
on users 100 to 123. But the pictures, those compared and those held out, are the same for all, and no
interval says how other pictures would do. Where it is asked whether any taste is worse at any count, "for
sure" is at 5 % for all those cells together (Holm); by its own interval one cell in 40 is worse by chance.

- *default*: as `train` fits it. JPEG and low-resolution copies of at most {PICTURES:,} of the compared pictures
  have to stay below them, whatever the comparisons say. *--no-robust*: the comparisons alone.
- *scratch*: a head on nano's features that starts from nothing; by default it has to keep the same copies
  below, by the same margin. *base*: the same, and what nano brings: its score, and its prior of what tastes weigh
  its features by, made of random tastes (`training/head_prior.py`). [What each is worth](preferences_base.md).
- *suggested*: as *base*; from {FIRST} comparisons on three in four are those that `suggest_for` finds.
  That it draws from random pairs was chosen on users 100 to 115, after the users below had shown the need.

Keeping the copies has a price, which is stated below: by default the head is less accurate than one that
keeps none, even one from scratch from 50 comparisons on. That one puts many copies above their originals.
"Never worse" is shown to within a point: an interval may reach that far below 0.

The prior is not blind to the tastes: what it is made of was chosen on users 100 to 123, and tone, detail and
faults are what the tastes are about. A prior of none of these gives two tastes five and two points, and takes two
from the third at 25 comparisons (*--no-robust*). It was made on the pictures that are compared, of which users' own are not.
"""


def _said(mean: float, half: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} ± {100 * half:.1f}"


def _fine(mean: float, half: float) -> str:
    return f"{100 * mean:+.3f} ± {100 * half:.3f}"


def _accuracies(c: Curves) -> str:
    rows = []
    for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
        for how in ("scratch", "base", "suggested"):
            row = [name if how == "scratch" else "", how]
            for n in c.counts("base"):
                measured = n in c.counts(how)
                row.append(_said(*mean_and_interval(_of(c(how, n), t))) if measured else "")
            rows.append(row)
    return table(["taste", "head", *map(str, c.counts("base"))], rows)


def _differences(c: Curves, one: str, other: str) -> str:
    counts = c.counts(one)
    rows = []
    for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
        means = [mean_and_interval(_of(c(one, n) - c(other, n), t)) for n in counts]
        rows.append([name, *(_said(*each, "+") for each in means)])
    return table(["taste", *map(str, counts)], rows)


def _costs(robust: Curves, free: Curves) -> str:
    """Of the heads from the base: *--no-robust* less *default*; and that from scratch that keeps none."""
    counts, rows = robust.counts("base"), []
    for head in ("base", "scratch"):
        for t, name in [*enumerate(tastes.TASTES), (slice(None), "mean of the three")]:
            lost = [_of(free(head, n) - robust("base", n), t) for n in counts]
            said = [_said(*mean_and_interval(each), "+") for each in lost]
            rows.append([f"{head}, {FREE}", name, *said])
    return table(["less base, default", "taste", *map(str, counts)], rows)


def _of(values: np.ndarray, taste: int | slice) -> np.ndarray:
    """Of [users, tastes] one taste's, or the mean of the tastes: [users]."""
    return values[:, taste].reshape(len(values), -1).mean(1)


def _robustness(study: Study, c: Curves) -> str:
    rows = []
    for kind, (name, (original, copy)) in enumerate(study.robustness.items()):
        nano = still(None, original, copy)
        liked = (original.tastes > copy.tastes).double().mean(0)
        for t, taste in enumerate(tastes.TASTES):
            about = [f"{100 * nano:.1f}", f"{100 * liked[t]:.0f}"]
            for how in ("scratch", "base"):
                shares = [c.still(how, n, kind)[:, t].mean() for n in c.counts(how)]
                rows.append([name, taste, *about, how, *(f"{100 * v:.1f}" for v in shares)])
    header = ["copies", "taste", "nano", "the taste itself", "head"]
    return table([*header, *map(str, c.counts("base"))], rows)


def _bars(study: Study, c: Curves) -> list[list[str]]:
    """Of one setting: bar, found, met."""
    return [
        _never_worse(c, "base", "scratch", "with the base never worse than from scratch"),
        _better_at_few(c),
        _of_the_ceiling(c),
        _never_worse(c, "suggested", "base", "suggested pairs never worse than random ones"),
        _as_good_with_fewer(c),
        *(_within_a_point(study, c, kind) for kind in range(len(KINDS))),
    ]


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


def _within_a_point(study: Study, c: Curves, kind: int) -> list[str]:
    """Of every taste at every count."""
    name, sides = list(study.robustness.items())[kind]
    nano = still(None, *sides)
    lost = {n: nano - c.still("base", n, kind).mean(0) for n in c.counts("base")}  # [tastes]
    most, n = max((float(each.max()), n) for n, each in lost.items())
    mean = np.mean(list(lost.values()))
    found = f"{100 * mean:.2f} lost on the mean, at most {100 * most:.2f} ({list(tastes.TASTES)[lost[n].argmax()]} at {n})"
    met = "yes" if most <= 0.01 else "no"
    return [f"the base's accuracy on {name} copies kept within 1 point", found, met]
