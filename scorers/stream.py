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
from .messages import one_line

if TYPE_CHECKING:
    from .base import Scorer

WINDOW_PIXELS = 64_000_000
WINDOW_BATCHES = 4


class Scored(NamedTuple):
    """One result: the item as given, its score (NaN on error), and the error's one line or None.

    `passing`: the error is none of the picture's: memory ran out, a disk did not answer.
    """

    item: Any
    score: float
    error: str | None = None
    passing: bool = False


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
    return _in_order(_checked_batches(scorer, images, batch_size, on_error))


def score_batches(
    scorer: Scorer, images: Iterable, batch_size: int | None, on_error: str
) -> Iterator[list[Scored]]:
    """What `score_stream` yields, as soon as it is known: a batch at a time, in no order."""
    batches = _checked_batches(scorer, images, batch_size, on_error)
    return ([scored for _, scored in batch] for batch in batches)


def _checked_batches(
    scorer: Scorer, images: Iterable, batch_size: int | None, on_error: str
) -> Iterator[list[tuple[int, Scored]]]:
    if on_error not in ("raise", "nan"):
        raise ValueError(f'on_error must be "raise" or "nan", got {on_error!r}')
    if isinstance(images, (str, bytes, os.PathLike)):
        raise TypeError(f"score takes several images, got one path: [{str(images)!r}]")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return _batches(scorer, images, batch_size or scorer.default_batch_size, on_error)


def _batches(
    scorer: Scorer, images: Iterable, batch_size: int, on_error: str
) -> Iterator[list[tuple[int, Scored]]]:
    """Results with their positions in `images`: what cannot be read, then batch by batch."""
    batcher = _Batcher(scorer, batch_size, on_error)
    begin = 0
    for window in _windows(decode_ahead(images, scorer), WINDOW_BATCHES * batch_size):
        items = [item for item, _ in window]
        broken = {i: d for i, (_, d) in enumerate(window) if isinstance(d, Exception)}
        if broken and on_error == "raise":
            raise next(iter(broken.values()))
        if broken:
            yield [(begin + i, _unread(items[i], error)) for i, error in broken.items()]
        pictures = {i: d for i, (_, d) in enumerate(window) if i not in broken}
        for batch in batcher.score(pictures):
            yield [(begin + i, Scored(items[i], *result)) for i, *result in batch]
        begin += len(window)


def _in_order(batches: Iterable[list[tuple[int, Scored]]]) -> Iterator[Scored]:
    """Each result when it is its turn."""
    early: dict[int, Scored] = {}
    turn = 0
    for batch in batches:
        early.update(batch)
        while turn in early:
            yield early.pop(turn)
            turn += 1


def _unread(item: Any, error: Exception) -> Scored:
    """A missing file is no passing failure: when it comes, it is another file."""
    passing = isinstance(error, (OSError, MemoryError))
    passing = passing and not isinstance(error, FileNotFoundError)
    return Scored(item, float("nan"), one_line(error), passing)


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
    """Scores pictures of mixed sizes in batches, halving them where memory runs out.

    What did not fit is remembered by size: so many pictures of that size or larger are not tried
    again, smaller ones go on with the full batch. A single picture that does not fit raises, or with
    `on_error` "nan" is that picture's error.
    """

    def __init__(self, scorer: Scorer, batch_size: int, on_error: str):
        self.scorer, self.batch_size, self.on_error = scorer, batch_size, on_error
        self.limits: dict[int, int] = {}  # pixels of a picture -> how many such at most

    def score(self, pictures: dict[int, Tensor]) -> Iterator[list[tuple]]:
        """Pictures [3, H, W], uint8 or floating point, by index.

        Yields, batch by batch, (index, score, error, whether the error may pass).
        """
        started = self._started(pictures)
        if self.scorer.device.type == "cuda":
            started = _one_behind(started)  # so that the device never waits for the host
        for indices, scores, event in started:
            if isinstance(scores, str):
                yield [(i, float("nan"), scores, True) for i in indices]
                continue
            if event:
                event.synchronize()
            # Of what gives features, [N, D], one row each.
            rows = scores.tolist() if scores.ndim == 1 else scores.unbind()
            yield [(i, row, None, False) for i, row in zip(indices, rows, strict=True)]

    def _started(self, pictures: dict[int, Tensor]) -> Iterator[tuple[list[int], Any, Any]]:
        """Indices; their scores on their way to the host, or what was said; the event of arrival."""
        pixels = {i: self._pixels(picture) for i, picture in pictures.items()}
        for indices in self._groups(pictures, pixels):
            while indices:
                chunk = indices[: self._fitting([pixels[i] for i in indices])]
                scores = self._try([pictures[i] for i in chunk])
                if isinstance(scores, str) and len(chunk) > 1:
                    self._limit(pixels[chunk[-1]], len(chunk) // 2)
                    continue
                indices = indices[len(chunk) :]
                yield chunk, *((scores, None) if isinstance(scores, str) else _to_host(scores))

    def _pixels(self, picture: Tensor) -> int:
        """What its memory goes by: the pixels that it has, and those that the model sees."""
        return picture[0].numel() + _area(self.scorer.input_size(*picture.shape[1:]))

    def _fitting(self, pixels: list[int]) -> int:
        """How many of the first pictures, smallest first, go into one batch."""
        most = self.batch_size
        for n, size in enumerate(pixels):
            most = min([most, *(count for least, count in self.limits.items() if least <= size)])
            if n >= most:
                return n
        return len(pixels)

    def _limit(self, pixels: int, count: int) -> None:
        """Remembers a limit, and forgets those that it implies: there are never many."""
        rest = {p: n for p, n in self.limits.items() if p < pixels or n < count}
        self.limits = rest | {pixels: count}

    def _groups(self, pictures: dict[int, Tensor], pixels: dict[int, int]) -> list[list[int]]:
        """Indices of pictures whose model input has one shape, smallest first, equals adjacent."""
        groups: dict[Any, list[int]] = defaultdict(list)
        for i, picture in pictures.items():
            groups[self.scorer.input_size(*picture.shape[1:])].append(i)
        for indices in groups.values():
            indices.sort(
                key=lambda i: (pixels[i], tuple(pictures[i].shape), str(pictures[i].dtype))
            )
        return list(groups.values())

    def _try(self, pictures: list[Tensor]) -> Tensor | str:
        """Scores of one batch, or what was said when memory ran out."""
        try:
            with torch.inference_mode():
                return self.scorer.score_runs(self._on_device(run) for run in _runs(pictures))
        except (RuntimeError, MemoryError) as error:
            alone = len(pictures) == 1 and self.on_error == "raise"
            if alone or not out_of_memory(error):
                raise
            message = one_line(error)
        if torch.cuda.is_available():  # outside the handler: the traceback holds the failed batch
            torch.cuda.empty_cache()
        return message

    def _on_device(self, pictures: list[Tensor]) -> Tensor:
        stacked = torch.stack(pictures)
        if self.scorer.device.type == "cuda" and stacked.device.type == "cpu":
            stacked = stacked.pin_memory()
        return stacked.to(self.scorer.device, non_blocking=True)


def _area(size: tuple) -> int:
    """Of (h, w); of the sizes that the members of an ensemble see, all together."""
    return sum(map(_area, size)) if isinstance(size[0], tuple) else size[0] * size[1]


def _to_host(scores: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy on the host, and on a GPU the event after which it is there."""
    on_gpu = scores.device.type == "cuda"
    host = scores.to("cpu", non_blocking=on_gpu, copy=True)
    if not on_gpu:
        return host, None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(scores.device))
    return host, event


def _one_behind(items: Iterable) -> Iterator:
    """The same, each given when the next one is there."""
    waiting: deque = deque()
    for item in items:
        waiting.append(item)
        if len(waiting) > 1:
            yield waiting.popleft()
    yield from waiting


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
