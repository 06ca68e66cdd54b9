"""Which images to compare at all: few that cover many.

Farthest-point selection (Gonzalez 1985, the greedy k-center): each next image is the one farthest
from all that are chosen. No image is then farther from a chosen one than twice the best possible.
As near duplicates are never both chosen, so are rare things well represented, and odd ones too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..scorers.messages import needs

BLOCK = 16_384  # images a block: bounds the memory that is taken beyond the embeddings
SAMPLE = 100_000  # images that clusters are learned from
SHORTLIST = 2_048  # the farthest images, among which several are chosen for one pass over all

# [N, D] floating point. np.load(mmap_mode="r") is read in blocks, as is any like it (`Directions`).
Embeddings = Tensor | np.ndarray


def farthest_points(
    x: Embeddings, count: int, *, seed: int = 0, groups: Tensor | None = None
) -> Tensor:
    """`count` of N images, far apart from each other, int64 in the order in which they were chosen.

    Any first few of them cover best what so few can (of one group). The first is drawn at random.
    It takes one pass over the embeddings for several images, and 16 bytes an image beside them.

    Args:
        x: [N, D]; distances are Euclidean, so normalise embeddings that are compared by angle.
        count: at most N. Of equal embeddings, one is chosen before any is chosen twice.
        groups: [N] int64, e.g. of `score_groups` or `clusters`: each gives as many as any other,
            as far as it has them. Distances are to the chosen of all groups.

    Raises:
        ValueError: for a wrong shape, more images than there are, or values that are not finite.
    """
    _check(x, count)
    generator = torch.Generator().manual_seed(seed)
    members = _members(groups, len(x))
    sizes = [len(x) if group is None else len(group) for group in members]
    chosen = torch.empty(0, dtype=torch.int64)
    for group, share in zip(members, shares(sizes, count), strict=True):
        if share:
            chosen = torch.cat([chosen, _farthest(x, group, share, chosen, generator)])
    return chosen


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many each group gives so that they sum to `count` and are as equal as the sizes allow.

    Raises:
        ValueError: the groups have fewer than `count`.
    """
    if not 0 <= count <= sum(sizes):
        raise ValueError(f"cannot choose {count} of {sum(sizes)}")
    result = [0] * len(sizes)
    by_size = sorted(range(len(sizes)), key=lambda g: sizes[g])
    for rank, g in enumerate(by_size):  # a small group leaves the rest of its share to the larger
        result[g] = min(sizes[g], (count - sum(result)) // (len(sizes) - rank))
    return result


def score_groups(scores: Tensor, bins: int = 10) -> Tensor:
    """[N] scores to [N] groups of equal width between the 1st and the 99th percentile, int64.

    So the rare best and worst come to be compared as often as the many in between.
    """
    if not torch.isfinite(scores).all():
        raise ValueError("scores must be finite: leave out what has none")
    low, high = np.quantile(scores.double().numpy(), (0.01, 0.99))
    edges = torch.linspace(low, high, bins + 1, dtype=torch.float64)[1:-1]
    return torch.bucketize(scores.double(), edges)


def clusters(x: Embeddings, count: int, *, seed: int = 0) -> Tensor:
    """[N] groups of similar images, int64: mini-batch k-means, of 100,000 of them where there are more.

    Raises:
        ValueError: as in `farthest_points`.
        ImportError: scikit-learn is absent.
    """
    try:
        from sklearn.cluster import MiniBatchKMeans
    except ImportError:
        raise needs("clusters need scikit-learn", "scikit-learn", "train") from None
    _check(x, count)
    some = torch.arange(len(x))
    if len(x) > SAMPLE:
        drawn = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
        some = drawn[:SAMPLE].sort().values
    model = MiniBatchKMeans(count, random_state=seed, n_init=1).fit(rows_of(x, some).numpy())
    blocks = (slice(start, start + BLOCK) for start in range(0, len(x), BLOCK))
    found = np.concatenate([model.predict(rows_of(x, block).numpy()) for block in blocks])
    return torch.from_numpy(found.astype(np.int64))


def _farthest(
    x: Embeddings, group: Tensor | None, count: int, chosen: Tensor, generator: torch.Generator
) -> Tensor:
    """`count` of `group` (None: of all), far from each other and from `chosen`."""
    size = len(x) if group is None else len(group)
    nearest = torch.full((size,), torch.inf)  # squared distance to the nearest chosen
    found = torch.empty(0, dtype=torch.int64)  # positions in the group
    centres = rows_of(x, chosen)
    if not len(chosen):
        found = torch.randint(size, (1,), generator=generator)
        centres = rows_of(x, found if group is None else group[found])
        nearest[found] = -1  # below any distance: not to be chosen again
    while len(found) < count:
        _approach(x, group, centres, nearest)
        candidates = nearest.topk(min(SHORTLIST, size)).indices
        fresh, centres = _greedy(
            rows_of(x, candidates if group is None else group[candidates]),
            nearest[candidates],
            count - len(found),
            whole=len(candidates) == size,
        )
        found = torch.cat([found, candidates[fresh]])
        nearest[candidates[fresh]] = -1
    return found if group is None else group[found]


def _greedy(x: Tensor, nearest: Tensor, count: int, whole: bool) -> tuple[Tensor, Tensor]:
    """Chooses among the farthest, while the choice is what all images would give.

    Args:
        x: [S, D] the shortlist, by falling `nearest` [S].
        whole: there are no other images.

    Returns:
        positions in the shortlist, and their embeddings.
    """
    # Distances only fall as more is chosen: whoever is not listed stays at or below the last listed.
    bound = -torch.inf if whole else nearest[-1].item()
    nearest, found = nearest.clone(), []
    while len(found) < count:
        best = int(nearest.argmax())
        if found and nearest[best] <= bound:
            break
        found.append(best)
        nearest = torch.minimum(nearest, (x - x[best]).square().sum(1))
        nearest[found] = -1
    return torch.tensor(found), x[found]


def _approach(x: Embeddings, group: Tensor | None, centres: Tensor, nearest: Tensor) -> None:
    """Lowers `nearest` to the squared distances to new centres [C, D], block by block, in place."""
    squares = centres.square().sum(1)
    size = len(nearest)
    for start in range(0, size if len(centres) else 0, BLOCK):
        part = slice(start, min(start + BLOCK, size))
        rows = rows_of(x, part if group is None else group[part])
        far = torch.addmm(squares[None], rows, centres.T, alpha=-2).amin(1)  # [block]
        far += rows.square().sum(1)
        taken = nearest[part] < 0
        nearest[part] = torch.minimum(nearest[part], far.clamp_(min=0))
        nearest[part][taken] = -1


def _check(x: Embeddings, count: int) -> None:
    if x.ndim != 2:
        raise ValueError(f"embeddings must be [N, D], got {list(x.shape)}")
    if not 1 <= count <= len(x):
        raise ValueError(f"cannot choose {count} of {len(x)} images")


def rows_of(x: Embeddings, index: Tensor | slice) -> Tensor:
    """float32 rows of the embeddings."""
    if isinstance(x, Tensor):
        rows = x[index].float().cpu()
    else:
        rows = torch.from_numpy(np.array(x[index if isinstance(index, slice) else index.numpy()]))
    if not torch.isfinite(rows).all():
        raise ValueError("embeddings must be finite")
    return rows.float()


def _members(groups: Tensor | None, n: int) -> list[Tensor | None]:
    """The images of each group; [None] stands for all in one."""
    if groups is None:
        return [None]
    if groups.shape != (n,):
        raise ValueError(f"groups must be [{n}], got {list(groups.shape)}")
    return [torch.nonzero(groups == g)[:, 0] for g in groups.unique()]
