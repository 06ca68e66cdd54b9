"""Any number of pictures through a scorer: decoded ahead, grouped by size, batched, in order.

Memory stays bounded: at most `WINDOW_PIXELS` decoded pixels wait to be scored, and about as many
are being decoded ahead.
"""

from __future__ import annotations

import os
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from tqdm.auto import tqdm

from .decode import decode

if TYPE_CHECKING:
    from .base import Scorer

WINDOW_PIXELS = 64_000_000
WINDOW_BATCHES = 4


class Scored(NamedTuple):
    """One result: the item as given, its score (NaN on error), and the error's one line or None."""

    item: Any
    score: float
    error: str | None = None


def score_all(
    scorer: Scorer, images: Iterable, batch_size: int | None, on_error: str, progress: bool
) -> Tensor:
    """[N] float32 on the CPU; see `Scorer.score`."""
    total = len(images) if hasattr(images, "__len__") else None
    stream = score_stream(scorer, images, batch_size, on_error)
    bar = tqdm(stream, total=total, unit="image", desc=scorer.card.name, disable=not progress)
    return torch.tensor([scored.score for scored in bar], dtype=torch.float32)


def score_stream(
    scorer: Scorer, images: Iterable, batch_size: int | None, on_error: str
) -> Iterator[Scored]:
    """Yields `Scored` in the order of `images`; see `Scorer.score_iter`."""
    if on_error not in ("raise", "nan"):
        raise ValueError(f'on_error must be "raise" or "nan", got {on_error!r}')
    if isinstance(images, (str, bytes, os.PathLike)):
        raise TypeError(f"score takes several images, got one path: [{str(images)!r}]")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _stream(scorer, images, batch_size or scorer.default_batch_size, on_error)


def _stream(scorer: Scorer, images: Iterable, batch_size: int, on_error: str) -> Iterator[Scored]:
    batcher = _Batcher(scorer, batch_size, on_error)
    for window in _windows(decode_ahead(images, scorer), WINDOW_BATCHES * batch_size):
        if on_error == "raise":
            for _, decoded in window:
                if isinstance(decoded, Exception):
                    raise decoded
        pictures = [d for _, d in window if not isinstance(d, Exception)]
        scores = iter(batcher.score(pictures))
        for item, decoded in window:
            if isinstance(decoded, Exception):
                yield Scored(item, float("nan"), _one_line(decoded))
            else:
                yield Scored(item, *next(scores))


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _decode_or_error(item: Any, scorer: Scorer) -> Tensor | Exception:
    try:
        picture = decode(item)
        scorer.input_size(*picture.shape[1:])  # refuses shapes that the model cannot take
        return picture
    except Exception as error:  # whatever a broken file makes a decoder raise belongs to that file
        return error


def decode_ahead(items: Iterable, scorer: Scorer) -> Iterator[tuple[Any, Tensor | Exception]]:
    """(item, decoded picture or error) in order, decoded by threads: Pillow releases the GIL."""
    workers = min(16, os.cpu_count() or 1)
    largest = WINDOW_PIXELS // workers  # pixels of the largest recent picture; unknown at first
    waiting: deque[tuple[Any, Future]] = deque()
    with ThreadPoolExecutor(workers, thread_name_prefix="tastemaker-decode") as pool:
        try:
            for item in items:
                waiting.append((item, pool.submit(_decode_or_error, item, scorer)))
                while len(waiting) > max(workers, min(256, WINDOW_PIXELS // largest)):
                    first, future = waiting.popleft()
                    decoded = future.result()
                    if isinstance(decoded, Tensor):
                        largest = max(decoded[0].numel(), largest * 9 // 10, 1)
                    yield first, decoded
            while waiting:
                first, future = waiting.popleft()
                yield first, future.result()
        finally:  # also when the consumer stops early
            pool.shutdown(wait=False, cancel_futures=True)


def _windows(stream: Iterator, count: int) -> Iterator[list]:
    """Lists of at most `count` entries and about `WINDOW_PIXELS` pixels."""
    window, pixels = [], 0
    for item, decoded in stream:
        window.append((item, decoded))
        pixels += decoded[0].numel() if isinstance(decoded, Tensor) else 0
        if len(window) >= count or pixels >= WINDOW_PIXELS:
            yield window
            window, pixels = [], 0
    if window:
        yield window


class _Batcher:
    """Scores pictures of mixed sizes in batches, halving the batch when memory runs out.

    A single picture that does not fit raises, or with `on_error` "nan" is that picture's error.
    """

    def __init__(self, scorer: Scorer, batch_size: int, on_error: str):
        self.scorer, self.batch_size, self.on_error = scorer, batch_size, on_error

    def score(self, pictures: list[Tensor]) -> list[tuple[float, str | None]]:
        """Pictures [3, H, W], uint8 or floating point, to (score, error) in the same order."""
        order: list[int] = []
        errors: dict[int, str] = {}
        values: list[Tensor] = []
        with torch.inference_mode():
            for indices in self._groups(pictures):
                while indices:
                    chunk = indices[: self.batch_size]
                    scores = self._try([pictures[i] for i in chunk])
                    if isinstance(scores, str) and len(chunk) > 1:
                        self.batch_size = len(chunk) // 2
                        continue
                    if isinstance(scores, str):
                        errors[chunk[0]] = scores
                    else:
                        order += chunk
                        values.append(scores)
                    indices = indices[len(chunk) :]
            # One copy to the host for the whole window, so that the device never waits in between.
            flat = torch.cat(values).cpu() if values else torch.zeros(0)
        rows = flat.tolist() if flat.ndim == 1 else flat.unbind()  # of what gives features, [N, D]
        result = dict(zip(order, rows, strict=True))
        return [(result.get(i, float("nan")), errors.get(i)) for i in range(len(pictures))]

    def _groups(self, pictures: list[Tensor]) -> list[list[int]]:
        """Indices of pictures whose model input has one shape, those of one source size adjacent."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, picture in enumerate(pictures):
            groups[self.scorer.input_size(*picture.shape[1:])].append(i)
        for indices in groups.values():
            indices.sort(key=lambda i: (tuple(pictures[i].shape), str(pictures[i].dtype)))
        return list(groups.values())

    def _try(self, pictures: list[Tensor]) -> Tensor | str:
        """Scores of one batch, or what was said when memory ran out."""
        try:
            return self.scorer.score_runs(self._on_device(run) for run in _runs(pictures))
        except (RuntimeError, MemoryError) as error:
            alone = len(pictures) == 1 and self.on_error == "raise"
            if alone or not out_of_memory(error):
                raise
            message = _one_line(error)
        if torch.cuda.is_available():  # outside the handler: the traceback holds the failed batch
            torch.cuda.empty_cache()
        return message

    def _on_device(self, pictures: list[Tensor]) -> Tensor:
        stacked = torch.stack(pictures)
        if self.scorer.device.type == "cuda" and stacked.device.type == "cpu":
            stacked = stacked.pin_memory()
        return stacked.to(self.scorer.device, non_blocking=True)


def _runs(pictures: list[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one shape and dtype, together: they are prepared in one call."""
    runs: list[list[Tensor]] = []
    for picture in pictures:
        last = runs[-1][-1] if runs else None
        if last is not None and (last.shape, last.dtype) == (picture.shape, picture.dtype):
            runs[-1].append(picture)
        else:
            runs.append([picture])
    return runs


def out_of_memory(error: Exception) -> bool:
    """Whether it says that memory ran out, on whatever device."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    # On the CPU, torch raises a plain RuntimeError from its allocator.
    return "not enough memory" in str(error) or "DefaultCPUAllocator" in str(error)
