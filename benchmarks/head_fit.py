"""The head fit beside JoyQuality's own procedure, on the same embeddings; writes head_fit.md.

    python benchmarks/head_fit.py

Upstream (https://github.com/fpgaminer/joyquality) fine-tunes the head with AdamW, a one-cycle rate of
at most 0.008, 20,000 samples in batches of 256, gradients clipped to 1; with the images encoded anew
for every sample, which is left out here. Embeddings of 1,152 features, the base and the taste are
simulated: the features' variances fall as those of image towers do, the base knows half of the taste.
"""

from __future__ import annotations

import time
from pathlib import Path

import torch
from measure import machine, table
from torch import Tensor

from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.head import bradley_terry
from tastemaker.preferences.taste import Kept, fit_taste

OUT = Path(__file__).with_name("head_fit.md")
IMAGES, FEATURES, PAIRS, TESTED = 3000, 1152, 6000, 20000
SAMPLES, BATCH, RATE = 20000, 256, 0.008
FLIPS = 0.1
COPIED = 1024  # images, as `train(robust=True)` copies at most


def main() -> None:
    torch.set_num_threads(1)
    x, base, taste = simulated()
    seen, unseen = x[:IMAGES], x[IMAGES:]
    pairs, p = votes(seen @ taste, PAIRS, seed=1)
    names = tuple(Path(str(i)) for i in range(IMAGES))
    comparisons = Comparisons(names, pairs, p)
    ours, seconds = [], []
    for _ in range(2):
        started = time.process_time()
        ours.append(fit_taste(seen, seen @ base, comparisons))
        seconds.append(time.process_time() - started)
    started = time.process_time()
    robust = fit_taste(seen, seen @ base, comparisons, kept=copies(seen, base))
    longer = time.process_time() - started
    started = time.process_time()
    theirs = upstream(seen.float(), base.float(), pairs, p.float()).double()
    taken = time.process_time() - started
    again = upstream(seen.float(), base.float(), pairs, p.float(), seed=1).double()
    same = max(
        float((each(unseen, unseen @ base) - ours[0](unseen, unseen @ base)).abs().max())
        for each in ours
    )
    other = float((unseen @ (again - theirs)).std() / (unseen @ theirs).std())
    rows = [
        ["the base", "", f"{accuracy(unseen @ base, unseen @ taste):.1%}", ""],
        [
            "here: penalties cross-validated over images, convex fits",
            f"{min(seconds):.1f} s",
            f"{accuracy(ours[0](unseen, unseen @ base), unseen @ taste):.1%}",
            f"{same:.0e} at most",
        ],
        [
            f"the same, and {2 * COPIED:,} copies of {COPIED:,} images kept below them",
            f"{longer:.1f} s",
            f"{accuracy(robust(unseen, unseen @ base), unseen @ taste):.1%}",
            "",
        ],
        [
            f"upstream: AdamW, {SAMPLES // BATCH} steps of {BATCH}",
            f"{taken:.1f} s",
            f"{accuracy(unseen @ theirs, unseen @ taste):.1%}",
            f"{other:.0%} of the scores' deviation with another seed",
        ],
    ]
    header = [
        "head",
        "CPU time of one core",
        "held-out accuracy",
        "difference of the scores from run to run",
    ]
    OUT.write_text(
        HEAD.format(machine(torch.device("cpu"))) + table(header, rows), encoding="utf-8"
    )
    print(OUT.read_text())


def simulated() -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings of seen and unseen images, the base's head [D] and the taste [D]."""
    g = torch.Generator().manual_seed(0)
    deviation = torch.arange(1, FEATURES + 1).double() ** -0.5
    axes = torch.linalg.qr(torch.randn(FEATURES, FEATURES, generator=g).double()).Q
    x = (torch.randn(2 * IMAGES, FEATURES, generator=g).double() * deviation) @ axes.T
    base, own = (axes @ torch.randn(FEATURES, generator=g).double() for _ in range(2))
    base, own = base / (x @ base).std(), own / (x @ own).std()
    return x, base, 2 * (base + own)


def copies(x: Tensor, base: Tensor) -> Kept:
    """Two spoiled copies of some images, off in two directions by a deviation of the base's score."""
    g = torch.Generator().manual_seed(3)
    better, scores = x[:COPIED].repeat(2, 1), (x[:COPIED] @ base).repeat(2)
    ways = torch.randn(2, FEATURES, generator=g).double()
    ways = ways - (ways @ base - 1)[:, None] * base / base.square().sum()  # the base falls by 1
    strength = torch.rand(len(better), 1, generator=g).double() + 0.5
    worse = better - strength * ways.repeat_interleave(COPIED, 0)
    return Kept(better, worse, scores, worse @ base)


def votes(scores: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Random pairs [P, 2] and who was preferred, with slips [P]."""
    g = torch.Generator().manual_seed(seed)
    pairs = torch.stack([torch.randperm(len(scores), generator=g)[:2] for _ in range(count)])
    slip = torch.rand(count, generator=g) < FLIPS
    return pairs, ((scores[pairs[:, 0]] > scores[pairs[:, 1]]) ^ slip).double()


def upstream(x: Tensor, base: Tensor, pairs: Tensor, p: Tensor, seed: int = 0) -> Tensor:
    """The head [D] after upstream's steps, from the base's."""
    g = torch.Generator().manual_seed(seed)
    w = base.clone().requires_grad_()
    steps = SAMPLES // BATCH
    optimizer = torch.optim.AdamW([w], lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    order = torch.cat([torch.randperm(len(p), generator=g) for _ in range(-(-SAMPLES // len(p)))])
    for chosen in order[: steps * BATCH].split(BATCH):
        left, right = pairs[chosen].T
        optimizer.zero_grad()
        bradley_terry((x[left] - x[right]) @ w, p[chosen]).mean().backward()
        torch.nn.utils.clip_grad_norm_([w], 1.0)
        optimizer.step()
        schedule.step()
    return w.detach()


def accuracy(scores: Tensor, taste: Tensor) -> float:
    pairs = torch.randint(len(taste), (TESTED, 2), generator=torch.Generator().manual_seed(2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    ours, theirs = (s[pairs[:, 0]] > s[pairs[:, 1]] for s in (scores, taste))
    return float((ours == theirs).double().mean())


HEAD = f"""# The head fit

`python benchmarks/head_fit.py`, {{}}: {PAIRS:,} comparisons of {IMAGES:,} images, {FEATURES:,} features
(simulated: see the script). The images are encoded already. Here each is encoded once, {IMAGES:,} in all;
upstream encodes both images of each of its {SAMPLES:,} samples, {2 * SAMPLES:,} in all: at the 204 images per
second that its author states for an H100, {IMAGES / 204:.0f} s against {2 * SAMPLES / 204:.0f} s; and again for every further training,
where here the embeddings are kept on disk.

"""


if __name__ == "__main__":
    main()
