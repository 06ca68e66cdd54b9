"""A record as a picture: rewards above, below them what was left of particles or candidates."""

from __future__ import annotations

from itertools import pairwise

from PIL import Image

from ..report.plot import plot
from .record import Record, Row

SEVERAL = "row of the record, several runs one after the other"
LOWER = (900, 260)  # of the lower picture

Points = list[tuple[float, float]]


def picture(record: Record, title: str) -> Image.Image:
    """ValueError if nothing was measured."""
    rows, across = placed(record)
    measured = {
        "guiding": [(x, row.reward) for x, row in rows if row.reward is not None],
        "held out": [(x, row.held_out) for x, row in rows if row.held_out is not None],
    }
    means = {
        name: [(x, float(values.nanmean())) for x, values in curve]
        for name, curve in measured.items()
        if curve
    }
    found = shares(rows)
    if not found:
        return plot(means, title=title, across=across)
    places = [x for curve in (*means.values(), *found.values()) for x, _ in curve]
    low, high = min(places), max(places)
    room = 0.04 * (high - low) or max(abs(low), 1.0) * 0.1  # as the upper one's
    below = plot(found, across=across, bounds=(low - room, high + room, 0.0, 1.1), size=LOWER)
    return stacked(plot(means, title=title), below)


def placed(record: Record) -> tuple[list[tuple[int, Row]], str]:
    """Each row with its index, and what that counts; of several runs, with its number."""
    rows, calls = record.rows, [row.index for row in record.rows]
    if all(a < b for a, b in pairwise(calls)):
        return list(zip(calls, rows, strict=True)), record.across
    return list(enumerate(rows)), SEVERAL


def shares(rows: list[tuple[int, Row]]) -> dict[str, Points]:
    """What is left, as shares in [0, 1]: of particles' weight and initial noises, of candidates."""
    found: dict[str, Points] = {
        "effective sample size": [(x, row.ess) for x, row in rows if row.ess is not None],
        "initial noises left": noises_left(rows),
        "candidates left": [(x, row.left) for x, row in rows if row.left is not None],
    }
    return {name: curve for name, curve in found.items() if curve}


def noises_left(rows: list[tuple[int, Row]]) -> Points:
    """From how many different noises the particles descend, as a share, at each weighing."""
    points, origins, before = [], [], -1
    for x, row in rows:
        if row.ess is None:
            continue
        if row.index <= before or not origins:  # another run begins
            origins = list(range(len(row.reward)))
        if row.ancestors is not None:
            origins = [origins[i] for i in row.ancestors]
        points.append((x, len(set(origins)) / len(origins)))
        before = row.index
    return points


def stacked(upper: Image.Image, lower: Image.Image) -> Image.Image:
    whole = Image.new("RGB", (upper.width, upper.height + lower.height))
    whole.paste(upper, (0, 0))
    whole.paste(lower, (0, upper.height))
    return whole
