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

from .select import BLOCK, Embeddings

CELL = 8_192  # images among which neighbours are searched exactly
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
    first; with more than 8,192 images neighbours are searched in the cells of random trees, so that
    memory is bounded and time grows with N log N.

    Args:
        x: [N, D]; distances are Euclidean. Only N matters when `random` is 1.
        k: below N.
        random: share of the pairs that are drawn at random rather than near. When neighbours run
            out, more are: `Pairing.near` says which.

    Raises:
        ValueError: for a k or a share that cannot be.
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
    was_near = np.isin(_code(edges, n), _code(near, n))
    return Pairing(torch.from_numpy(_sides(edges, n)), torch.from_numpy(was_near))


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
    """[P, 2], the nearest first, no image in more than its capacity; changes the capacities."""
    pairs: list[tuple[int, int]] = []
    taken: set[int] = set()
    for _ in range(ROUNDS):
        free = np.flatnonzero(capacity)
        if len(free) < 2:
            break
        for cell in _cells(x, free, rng):
            left = capacity[cell].tolist()
            for a, b in _nearest(_rows(x, cell), k + NEIGHBOURS):
                i, j = int(cell[a]), int(cell[b])
                code = min(i, j) * len(capacity) + max(i, j)
                if left[a] and left[b] and code not in taken:
                    left[a], left[b] = left[a] - 1, left[b] - 1
                    taken.add(code)
                    pairs.append((i, j))
            capacity[cell] = left
    return np.array(pairs, np.int64).reshape(-1, 2)


def _cells(x: Embeddings, index: np.ndarray, rng: np.random.Generator) -> Iterator[np.ndarray]:
    """Splits images into halves along random directions until a part has at most `CELL`.

    A direction is that between two images: it follows what varies. Each round cuts elsewhere, so
    that neighbours which one cut parts are found by the next.
    """
    if len(index) <= CELL:
        yield index
        return
    a, b = _rows(x, rng.choice(index, 2, replace=False))
    along = np.concatenate(
        [_rows(x, index[start : start + BLOCK]) @ (a - b) for start in range(0, len(index), BLOCK)]
    )
    halves = np.argpartition(along, len(index) // 2)
    for half in (halves[: len(index) // 2], halves[len(index) // 2 :]):
        yield from _cells(x, index[half], rng)


def _nearest(x: np.ndarray, count: int) -> Iterator[tuple[int, int]]:
    """Pairs (a, b) of each row and its nearest, the nearest pairs first; most come twice."""
    try:
        from sklearn.neighbors import NearestNeighbors
    except ImportError:
        raise ImportError('near pairs need scikit-learn: pip install "tastemaker[train]"') from None
    count = min(count, len(x) - 1)
    search = NearestNeighbors(n_neighbors=count, algorithm="brute").fit(x)
    distances, found = search.kneighbors()  # without arguments: of each row, not itself
    order = np.argsort(distances, axis=None, kind="stable")
    return zip((order // count).tolist(), found.ravel()[order].tolist(), strict=True)


def _with_random(near: np.ndarray, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """The near pairs, and random ones until nearly every image is in k."""
    edges = near
    for _ in range(ROUNDS):
        missing = k - np.bincount(edges.ravel(), minlength=n)
        ends = rng.permutation(np.repeat(np.arange(n), missing))
        drawn = ends[: len(ends) // 2 * 2].reshape(-1, 2)
        drawn = drawn[drawn[:, 0] != drawn[:, 1]]
        drawn = drawn[np.unique(_code(drawn, n), return_index=True)[1]]
        drawn = drawn[~np.isin(_code(drawn, n), _code(edges, n))]
        edges = np.concatenate([edges, drawn])
    return edges


def _completed(edges: np.ndarray, n: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """Adds the last pairs, so that every image is in k; at most one in k - 1.

    When all who miss a partner are partners already, a pair (c, d) makes room: (a, c) and (b, d)
    take its place. Such a pair exists as long as two partners are missing: a, who has fewer than k,
    has some complete c that it was never compared with, and not all k partners of c are b or among
    the fewer than k partners of b.
    """
    partners: list[set[int]] = [set() for _ in range(n)]
    for i, j in edges.tolist():
        _join(partners, i, j)
    missing = np.repeat(np.arange(n), k - np.bincount(edges.ravel(), minlength=n)).tolist()
    rng.shuffle(missing)
    while len(missing) > 1:
        a = missing.pop()
        fresh = [b for b in missing if b != a and b not in partners[a]]
        if fresh:
            missing.remove(fresh[0])
            _join(partners, a, fresh[0])
            continue
        b = missing.pop()
        c, d = _room(partners, a, b, rng)
        partners[c].remove(d)
        partners[d].remove(c)
        _join(partners, a, c)
        _join(partners, b, d)
    return np.array([(i, j) for i in range(n) for j in partners[i] if i < j], np.int64)


def _join(partners: list[set[int]], a: int, b: int) -> None:
    partners[a].add(b)
    partners[b].add(a)


def _room(partners: list[set[int]], a: int, b: int, rng: np.random.Generator) -> tuple[int, int]:
    """A pair (c, d), c no partner of a, and d none of b."""
    n = len(partners)
    start = int(rng.integers(n))
    for step in range(n):
        c = (start + step) % n
        if c != a and c not in partners[a]:
            for d in sorted(partners[c]):
                if d not in (a, b) and d not in partners[b]:
                    return c, d
    raise AssertionError("no pair makes room")  # see the proof in `_completed`


def _sides(edges: np.ndarray, n: int) -> np.ndarray:
    """Swaps the two of some pairs, so that everyone stands left as often as right, up to one.

    Along a walk that uses every pair once, each image is left as often as it is entered (Euler).
    """
    unused: list[list[int]] = [[] for _ in range(n)]
    ends = edges.tolist()
    for e, (i, j) in enumerate(ends):
        unused[i].append(e)
        unused[j].append(e)
    degrees = [len(own) for own in unused]
    left = [-1] * len(ends)
    # Whoever is in an odd number of pairs begins or ends a walk, so walks begin there first.
    for here in sorted(range(n), key=lambda i: degrees[i] % 2 == 0):
        if degrees[here] % 2 and sum(left[e] < 0 for e in unused[here]) % 2 == 0:
            continue  # a walk ended here; the rest of its pairs are walked through like any other's
        _walk(here, unused, ends, left)
    for here in range(n):
        _walk(here, unused, ends, left)
    return np.array([(i, j) if left[e] == i else (j, i) for e, (i, j) in enumerate(ends)])


def _walk(here: int, unused: list[list[int]], ends: list[list[int]], left: list[int]) -> None:
    """Follows unused pairs until none is left, with the one it comes from on the left."""
    while unused[here]:
        e = unused[here].pop()
        if left[e] < 0:
            left[e] = here
            here = ends[e][1] if ends[e][0] == here else ends[e][0]


def _rows(x: Embeddings, index: np.ndarray) -> np.ndarray:
    """float32 rows of the embeddings."""
    rows = x[torch.from_numpy(index)].float().cpu().numpy() if isinstance(x, Tensor) else x[index]
    return np.asarray(rows, np.float32)
