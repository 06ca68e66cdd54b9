"""Which images to compare with which: every image in k pairs, some near, some at random.

Pairs of near images teach what matters when the content is the same; random ones how far apart
different contents lie. Fixed k, and the mix, follow JoyQuality
(https://github.com/fpgaminer/joyquality: k = 4, 30 % random), whose author would now take half.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from ..scorers.messages import needs
from .select import BLOCK, Embeddings, rows_of

CELL = 4_096  # images among which neighbours are searched exactly
NEIGHBOURS = 8  # asked for at a time
ROUNDS = 8  # of neighbour search; whoever has found too few near partners then gets random ones


@dataclass(frozen=True)
class Pairing:
    """P pairs, in random order: any first few are a fair part of the whole.

    Attributes:
        pairs: [P, 2] int64: left, right. Every image stands left as often as right, up to one.
        near: [P] bool: chosen as neighbours rather than at random.
    """

    pairs: Tensor
    near: Tensor


def fixed_k_pairs(x: Embeddings, k: int = 4, random: float = 0.3, *, seed: int = 0) -> Pairing:
    """Pairs in which each of N images occurs exactly k times; one image k - 1 times if k N is odd.

    No pair is of one image, and none occurs twice. Near pairs are matched greedily, the nearest
    first; with more than 4,096 images neighbours are searched in the cells of random trees, so that
    memory is bounded and time grows with N log N. A million images of 64 features take 45 s of one
    core; near pairs of 30,000 images are 4 % farther apart than by an exact search, of a million
    in clusters of the same kind 17 % farther than those (benchmarks/pairing.md).

    Args:
        x: [N, D]; distances are Euclidean. Only N matters when `random` is 1.
        k: below N.
        random: share of the pairs that are drawn at random rather than near. When neighbours run
            out, more are: `Pairing.near` says which.

    Raises:
        ValueError: for a k or a share that cannot be, or values that are not finite.
        ImportError: scikit-learn is absent, and near pairs are wanted.
    """
    n = len(x)
    if not 1 <= k < n:
        raise ValueError(f"each of {n} images can be in 1 to {n - 1} pairs, not {k}")
    if not 0 <= random <= 1:
        raise ValueError(f"the random share must be in [0, 1], got {random}")
    rng = np.random.default_rng(seed)
    near = _near_pairs(x, _capacities(n, k, round(n * k // 2 * (1 - random)), rng), k, rng)
    edges = _completed(_with_random(near, n, k, rng), n, k, rng)
    edges = edges[rng.permutation(len(edges))]
    was_near = _within(_code(edges, n), np.sort(_code(near, n)))
    return Pairing(torch.from_numpy(_sides(edges)), torch.from_numpy(was_near))


def _code(edges: np.ndarray, n: int) -> np.ndarray:
    """[P, 2] to one number an unordered pair, [P]."""
    return edges.min(1) * n + edges.max(1)


def _capacities(n: int, k: int, pairs: int, rng: np.random.Generator) -> np.ndarray:
    """In how many of so many pairs each image is to be, [N]: as equal as can be, at most k."""
    each, rest = divmod(2 * pairs, n)
    capacity = np.full(n, each)
    capacity[rng.choice(n, rest, replace=False)] += 1
    return capacity


def _near_pairs(
    x: Embeddings, capacity: np.ndarray, k: int, rng: np.random.Generator
) -> np.ndarray:
    """[P, 2], no image in more than its capacity; changes the capacities."""
    pairs = np.zeros((0, 2), np.int64)
    for _ in range(ROUNDS):
        free = np.flatnonzero(capacity)
        if len(free) < 2:
            break
        known, found = np.sort(_code(pairs, len(capacity))), [pairs]
        for cell in _cells(x, free, rng):
            local = _nearest(rows_of(x, torch.from_numpy(cell)).numpy(), k + NEIGHBOURS)
            local = local[~_within(_code(cell[local], len(capacity)), known)]
            taken = local[greedy(local, capacity[cell])]
            capacity[cell] -= np.bincount(taken.ravel(), minlength=len(cell))
            found.append(cell[taken])
        pairs = np.concatenate(found)
    return pairs


def _cells(x: Embeddings, index: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Splits images into halves along random directions until a part has at most `CELL`.

    A direction is that between two images: it follows what varies. Each round cuts elsewhere, so
    that neighbours which one cut parts are found by the next.
    """
    if len(index) <= CELL:
        yield index
        return
    a, b = rows_of(x, torch.from_numpy(rng.choice(index, 2, replace=False)))
    blocks = torch.from_numpy(index).split(BLOCK)
    along = torch.cat([rows_of(x, block) @ (a - b) for block in blocks]).numpy()
    halves = np.argpartition(along, len(index) // 2)
    for half in (halves[: len(index) // 2], halves[len(index) // 2 :]):
        yield from _cells(x, np.sort(index[half]), rng)  # sorted: read in the order of a file


def _nearest(x: np.ndarray, count: int) -> np.ndarray:
    """[E, 2] pairs of each row and its nearest `count`, each pair once, the nearest pairs first."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise needs("near pairs need scikit-learn", "scikit-learn", "train") from None
    count = min(count, len(x) - 1)
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(x)
    distances, found = search.kneighbors()  # without arguments: of each row, not itself
    order = np.argsort(distances, axis=None, kind="stable")
    pairs = np.stack([order // count, found.ravel()[order]], 1)
    return pairs[np.sort(np.unique(_code(pairs, len(x)), return_index=True)[1])]


def greedy(pairs: np.ndarray, capacity: np.ndarray) -> np.ndarray:
    """[E] bool: the pairs that are taken one after the other while both images have room.

    A pair that comes at both its ends among the first open ones that there is room for is taken
    whatever becomes of the others. So all such pairs are taken at once, until none is open.

    Args:
        pairs: [E, 2] indices of images, each pair once; capacity: [N], in how many each may be.
    """
    room, taken = capacity.copy(), np.zeros(len(pairs), bool)
    still = np.arange(len(pairs))
    while len(still := still[(room[pairs[still]] > 0).all(1)]):
        ends = pairs[still]
        first = (_rank(ends.ravel()).reshape(-1, 2) < room[ends]).all(1)
        taken[still[first]] = True
        room -= np.bincount(ends[first].ravel(), minlength=len(room))
        still = still[~first]
    return taken


def _rank(values: np.ndarray) -> np.ndarray:
    """How many equal ones come before each, [M]."""
    order = np.argsort(values, kind="stable")
    new = np.r_[True, np.diff(values[order]) != 0][: len(values)]
    at = np.arange(len(values))
    rank = np.empty_like(at)
    rank[order] = at - np.maximum.accumulate(np.where(new, at, 0))
    return rank


def _within(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """[M] bool: which are among the sorted `known`; np.isin would sort those for every cell."""
    at = np.searchsorted(known, values)
    return np.append(known, -1)[at] == values


def _with_random(near: np.ndarray, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The near pairs, and random ones until nearly every image is in k."""
    edges = near
    for _ in range(ROUNDS):
        missing = k - np.bincount(edges.ravel(), minlength=n)
        ends = rng.permutation(np.repeat(np.arange(n), missing))
        drawn = ends[: len(ends) // 2 * 2].reshape(-1, 2)
        drawn = drawn[drawn[:, 0] != drawn[:, 1]]
        drawn = drawn[np.unique(_code(drawn, n), return_index=True)[1]]
        drawn = drawn[~_within(_code(drawn, n), np.sort(_code(edges, n)))]
        edges = np.concatenate([edges, drawn])
    return edges


class _Partners(dict[int, set[int]]):
    """The partners of an image, looked up when asked for: a million sets would be slow to make."""

    def __init__(self, edges: np.ndarray, n: int):
        super().__init__()
        self.ends = edges.ravel()
        self.order = np.argsort(self.ends, kind="stable")
        self.starts = np.r_[0, np.bincount(self.ends, minlength=n).cumsum()]

    def __missing__(self, i: int) -> set[int]:
        own = self.order[self.starts[i] : self.starts[i + 1]]
        self[i] = set(self.ends[own ^ 1].tolist())  # 2e and 2e + 1 are the ends of pair e
        return self[i]

    def join(self, a: int, b: int) -> None:
        self[a].add(b)
        self[b].add(a)

    def part(self, a: int, b: int) -> None:
        self[a].remove(b)
        self[b].remove(a)

    def edges(self) -> np.ndarray:
        """[P, 2] of all images, as they now are."""
        touched = np.zeros(len(self.starts) - 1, bool)
        touched[list(self)] = True
        untouched = self.ends.reshape(-1, 2)
        untouched = untouched[~touched[untouched].any(1)]
        own = [(i, j) for i in self for j in self[i] if i < j or j not in self]
        return np.concatenate([untouched, np.array(own, np.int64).reshape(-1, 2)])


def _completed(edges: np.ndarray, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Adds the last pairs, so that every image is in k; at most one in k - 1.

    When all who miss a partner are partners already, a pair (c, d) makes room: (a, c) and (b, d)
    take its place. Such a pair exists as long as two partners are missing: a, who has fewer than k,
    has some complete c that it was never compared with, and not all k partners of c are b or among
    the fewer than k partners of b.
    """
    partners = _Partners(edges, n)
    missing = np.repeat(np.arange(n), k - np.bincount(edges.ravel(), minlength=n)).tolist()
    rng.shuffle(missing)
    while len(missing) > 1:
        a = missing.pop()
        fresh = [b for b in missing if b != a and b not in partners[a]]
        if fresh:
            missing.remove(fresh[0])
            partners.join(a, fresh[0])
            continue
        b = missing.pop()
        c, d = _room(partners, n, a, b, rng)
        partners.part(c, d)
        partners.join(a, c)
        partners.join(b, d)
    return partners.edges()


def _room(partners: _Partners, n: int, a: int, b: int, rng: np.random.Generator) -> tuple[int, int]:
    """A pair (c, d), c no partner of a, and d none of b."""
    start = int(rng.integers(n))
    for step in range(n):
        c = (start + step) % n
        if c != a and c not in partners[a]:
            for d in sorted(partners[c]):
                if d not in (a, b) and d not in partners[b]:
                    return c, d
    raise AssertionError("no pair makes room")  # see the proof in `_completed`


def _sides(edges: np.ndarray) -> np.ndarray:
    """Swaps the two of some pairs, so that everyone stands left as often as right, up to one.

    The pairs of each image are joined two by two (the odd ones out with those of others), which
    makes rings of pairs. Going round a ring, each image is left as often as it is entered (Euler).
    """
    ends = edges.ravel()  # 2e and 2e + 1 are the ends of pair e
    order = np.argsort(ends, kind="stable")
    odd = (_rank(ends)[order] % 2 == 0) & np.r_[np.diff(ends[order]) != 0, True][: len(ends)]
    order = np.concatenate([order[~odd], order[odd]]).reshape(-1, 2)
    joined = np.empty_like(ends)
    joined[order] = order[:, ::-1]
    along = joined[
        np.arange(len(ends)) ^ 1
    ]  # from an end to the other one, and on to the next pair
    least = np.arange(len(ends))  # of a ring's ends in one direction: known in log(length) steps
    while not np.array_equal(further := np.minimum(least, least[along]), least):
        least, along = further, along[along]
    return np.where((least[::2] < least[1::2])[:, None], edges, edges[:, ::-1])
