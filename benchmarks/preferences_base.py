"""What a base brings, by how much it knows of a taste; writes preferences_base.md.

    pip install -e ".[train]" comfyui-workflow-templates-media-image \
        comfyui-workflow-templates-media-other comfyui-workflow-templates-media-assets-01
    python benchmarks/preferences_base.py

The pictures, tastes and users of `preferences.py`, where nano is the base of all three tastes and
knows little of two. Here a base that was taught other tastes stands beside it: a head on nano's
features, from comparisons of the two tastes that the user does not have.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import tastes  # noqa: E402
from measure import machine, table  # noqa: E402
from preferences_report import mean_and_interval  # noqa: E402

from preferences import (  # noqa: E402
    HELD_OUT_VERSIONS,
    VERSIONS,
    Images,
    fit,
    held_out_accuracy,
    images,
    random_pairs,
    split,
    versions,
    votes,
)

OUT = Path(__file__).with_suffix(".md")
COUNTS = (25, 50, 100, 150, 200, 1000)
FIRST_USER = 2000  # nothing was chosen on these
TAUGHT, TEACHER = 2500, 77  # comparisons of each of the two other tastes; their seed


class Pictures(NamedTuple):
    compared: Images
    held_out: Images


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("sources", nargs="*", type=Path, help="wheels or folders of pictures")
    parser.add_argument("--users", type=int, default=24, help="of each taste")
    options = parser.parse_args()
    torch.set_num_threads(1)
    users = range(FIRST_USER, FIRST_USER + options.users)
    made = pictures(options.sources)
    rows = [row(name, based, taste, users) for taste, name, based in bases(made)]
    head = HEAD.format(machine(torch.device("cpu")), len(users), users[0], users[-1], TAUGHT)
    header = ["taste", "base", "it alone, %", *map(str, COUNTS)]
    OUT.write_text(head + table(header, rows), encoding="utf-8")
    print(OUT.read_text(encoding="utf-8"))


def pictures(sources: list[Path]) -> Pictures:
    """As `preferences.build_study` makes them."""
    made = zip(split(sources), (VERSIONS, HELD_OUT_VERSIONS), strict=True)
    return Pictures(*(images(versions(each, count)) for each, count in made))


def bases(made: Pictures) -> Iterator[tuple[int, str, Pictures]]:
    for taste in range(len(tastes.TASTES)):
        yield taste, "nano", made
        yield taste, "the other two tastes", taught(made, taste)


def taught(made: Pictures, taste: int) -> Pictures:
    """The same pictures, with the scores of a head that learned the other tastes."""
    rng, compared = np.random.default_rng(TEACHER), made.compared
    others = [other for other in range(len(tastes.TASTES)) if other != taste]
    pairs = [random_pairs(len(compared.scores), TAUGHT, rng) for _ in others]
    said = [votes(compared.tastes[:, t], p, rng) for t, p in zip(others, pairs, strict=True)]
    head = fit(compared, torch.cat(pairs), torch.cat(said))
    return Pictures(*(e._replace(scores=head(e.embeddings, e.scores)) for e in made))


def row(base: str, made: Pictures, taste: int, users: range) -> list[str]:
    name = list(tastes.TASTES)[taste]
    gained = np.array([gains(made, taste, user) for user in tqdm(users, desc=f"{name}, {base}")])
    cells = [mean_and_interval(each) for each in gained.T]
    alone = 100 * held_out_accuracy(None, made.held_out, taste)
    return [name, base, f"{alone:.1f}", *(f"{100 * m:+.1f} ± {100 * h:.1f}" for m, h in cells)]


def gains(made: Pictures, taste: int, user: int) -> list[float]:
    """What the base adds to the held-out accuracy of a head from scratch, by count."""
    compared, rng = made.compared, np.random.default_rng(user)
    pairs = random_pairs(len(compared.scores), max(COUNTS), rng)
    p = votes(compared.tastes[:, taste], pairs, rng)
    found = []
    for count in COUNTS:
        accuracy = [
            held_out_accuracy(
                fit(compared, pairs[:count], p[:count], base), made.held_out, taste, base
            )
            for base in (True, False)
        ]
        found.append(accuracy[0] - accuracy[1])
    return found


HEAD = """# What a base brings

Made by `python benchmarks/preferences_base.py`: {}.

The pictures and tastes of [preferences.md](preferences.md); {} users of each taste, {} to {}, on whom nothing
was chosen. Percentage points of held-out accuracy that starting from the base adds to a head from
scratch, by the number of comparisons; ± is the 95 % interval of the mean over users. *The other two
tastes*: a head on nano's features that was taught {} comparisons of each. *It alone*: how much of
the taste that base orders right before any comparison; 50 is chance.

"""

if __name__ == "__main__":
    main()
