"""Pictures to what a scorer's head reads, each picture once, kept on disk.

An embedding is kept under a hash of the file's bytes, in one SQLite file for each fingerprint of the
scorer: copies and renamed files are known, whatever was embedded before a kill is kept, and two
processes may share the file. A row whose checksum is wrong is no row: the picture is embedded anew.
"""

from __future__ import annotations

import hashlib
import os
import re
import sqlite3
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm

from ..scorers import Scorer
from ..scorers.home import home
from ..scorers.personal import features_of, require_features, score_features
from ..scorers.sqlite import WAIT, write_ahead
from ..scorers.stream import score_stream

Progress = Callable[[int, int], None]  # how many are done, of how many
FLUSH_SECONDS, FLUSH_ROWS = 1.0, 64  # what a kill can cost
AT_ONCE = 16  # pictures in memory that are made to be embedded

_TABLES = """
CREATE TABLE IF NOT EXISTS embeddings (content BLOB PRIMARY KEY, crc INTEGER, value BLOB);
CREATE TABLE IF NOT EXISTS files (
    path BLOB PRIMARY KEY, size INTEGER, mtime_ns INTEGER, content BLOB
) WITHOUT ROWID;
"""


def embed_images(
    scorer: Scorer,
    paths: Sequence[str | os.PathLike],
    cache: bool | str | os.PathLike = True,
    batch_size: int | None = None,
    progress: bool | Progress = False,
) -> Tensor:
    """Embeds picture files, [N, D] float32 on the CPU, in order.

    Exactly what the scorer's own head reads when it scores those files.

    Args:
        scorer: one with an `embed` (nano, JoyQuality, RALI, or a personal one of these).
        cache: where embeddings are kept: True for the user's own folder, a folder, or False for
            nowhere. A file that was hashed is known again by its path, size and time.
        batch_size: as in `Scorer.score`.
        progress: show a progress bar; or what is called after each picture that was not known.
            Whatever it raises ends the work, and what was embedded is kept.

    Raises:
        ValueError: the scorer has no embedding.
        FileNotFoundError, ValueError: the first picture that cannot be read.
    """
    require_features(scorer)
    if not cache:
        found = _embed(scorer, dict(enumerate(paths)), batch_size, progress)
        return _stacked([value for _, value in found])
    path = cache_path(scorer, None if cache is True else cache)
    return _mended(path, lambda: _embed_cached(scorer, paths, path, batch_size, progress))


def embed_made(
    scorer: Scorer,
    made: Mapping[bytes, Callable[[], Image.Image]],
    cache: bool | str | os.PathLike = True,
    progress: bool | Progress = False,
) -> dict[bytes, Tensor]:
    """Embeds pictures [D] that are made only where they are not known yet.

    Args:
        made: by the keys, 16 bytes each, that their embeddings are kept under.
        cache, progress: as in `embed_images`.
    """
    require_features(scorer)
    if not cache:
        return dict(_embed_parts(scorer, made, progress))
    path = cache_path(scorer, None if cache is True else cache)
    return _mended(path, lambda: _made_cached(scorer, made, path, progress))


def _mended(path: Path, work: Callable[[], Any]) -> Any:
    """The work with a cache; once more, from nothing, where its file is damaged."""
    try:
        return work()
    except sqlite3.OperationalError as error:  # locked, or a full disk
        raise RuntimeError(f"{path}: {error}") from None
    except sqlite3.DatabaseError:
        _remove(path)  # damaged: it held nothing that cannot be computed again
        return work()


def cache_path(scorer: Scorer, folder: str | os.PathLike | None = None) -> Path:
    """The file that keeps a scorer's embeddings: in `folder`, or in the user's own."""
    card = scorer.card
    name = re.sub(r"[^\w.-]+", "-", card.name)
    folder = Path(folder) if folder is not None else home() / "embeddings"
    return folder / f"{name}-{card.fingerprint_id}.sqlite"


def contents_of(
    scorer: Scorer, paths: Sequence[str | os.PathLike], cache: bool | str | os.PathLike = True
) -> list[bytes]:
    """The hash of each file's bytes; those that were embedded by this scorer are not read again."""
    if not cache:
        return [content_of(path) for path in paths]
    file = cache_path(scorer, None if cache is True else cache)

    def known() -> list[bytes]:
        with EmbeddingCache(file) as kept:
            return kept.contents(paths)

    return _mended(file, known)


def base_scores(scorer: Scorer, embeddings: Tensor) -> Tensor:
    """The scorer's own scores [...] float64 on the CPU, of embeddings [..., D]."""
    flat = embeddings.reshape(-1, embeddings.shape[-1])
    with torch.no_grad():
        parts = [score_features(scorer, part.to(scorer.device)) for part in flat.split(4096)]
    return torch.cat(parts).double().cpu().reshape(embeddings.shape[:-1])


def _embed_cached(
    scorer: Scorer, paths: Sequence, path: Path, batch_size: int | None, progress: bool | Progress
) -> Tensor:
    with EmbeddingCache(path) as kept:
        contents = kept.contents(paths, progress is True)
        pictures = dict(zip(contents, paths, strict=True))
        found = kept.filled(pictures, lambda new: _embed(scorer, new, batch_size, progress))
        return _stacked([found[content] for content in contents])


def _made_cached(
    scorer: Scorer, made: Mapping, path: Path, progress: bool | Progress
) -> dict[bytes, Tensor]:
    with EmbeddingCache(path) as kept:
        return kept.filled(made, lambda new: _embed_parts(scorer, new, progress))


def _embed_parts(
    scorer: Scorer, made: Mapping, progress: bool | Progress
) -> Iterator[tuple[bytes, Tensor]]:
    """(key, embedding [D]) of pictures, of which only a few are in memory at a time."""
    shown = progress is True and len(made) > 0
    bar = tqdm(total=len(made), unit="image", desc="embedding copies", disable=not shown)
    waiting, done = iter(made.items()), 0
    with bar:
        while part := {key: make() for key, make in islice(waiting, AT_ONCE)}:
            for key, value in _embed(scorer, part, None, False):
                yield key, value
                bar.update()
                done += 1
                if callable(progress):
                    progress(done, len(made))


class EmbeddingCache:
    """The embeddings of one scorer on disk, by the hash of a file's contents. A context manager.

    Raises:
        sqlite3.DatabaseError: here or later, if the file is damaged.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._pending: list[tuple[bytes, int, bytes]] = []
        self._flushed = time.monotonic()
        self._db = sqlite3.connect(path, timeout=WAIT)
        try:
            write_ahead(self._db)
            self._db.execute("PRAGMA synchronous = NORMAL")
            self._db.executescript(_TABLES)
        except BaseException:
            self._db.close()
            raise

    def __enter__(self) -> EmbeddingCache:
        return self

    def __exit__(self, *_) -> None:
        try:
            self.flush()
        finally:
            self._db.close()

    def contents(self, paths: Iterable[str | os.PathLike], progress: bool = False) -> list[bytes]:
        """The hash of each file's bytes; files that did not change since are not read again."""
        bar = tqdm(paths, unit="file", desc="hashing", disable=not progress, leave=False)
        contents = [self._content(path) for path in bar]
        self._db.commit()
        return contents

    def __contains__(self, content: bytes) -> bool:
        return self.get(content) is not None

    def filled(
        self, wanted: Mapping[bytes, Any], embed: Callable[[dict], Iterable[tuple[bytes, Tensor]]]
    ) -> dict[bytes, Tensor]:
        """All embeddings [D] that are wanted; `embed` is given what is not known yet."""
        for content, value in embed({c: each for c, each in wanted.items() if c not in self}):
            self.add(content, value)
        self.flush()
        return {content: self.get(content) for content in wanted}

    def get(self, content: bytes) -> Tensor | None:
        """The embedding [D] float32 of a file of these contents, None if it is not known or damaged."""
        query = "SELECT crc, value FROM embeddings WHERE content = ?"
        crc, value = self._db.execute(query, (content,)).fetchone() or (None, b"")
        if crc != zlib.crc32(content + value):
            return None
        return torch.frombuffer(bytearray(value), dtype=torch.float32)

    def add(self, content: bytes, value: Tensor) -> None:
        """Keeps an embedding [D]; on disk within a second, or 64 embeddings, or with `flush`."""
        stored = value.detach().cpu().float().contiguous().numpy().tobytes()
        self._pending.append((content, zlib.crc32(content + stored), stored))
        if len(self._pending) >= FLUSH_ROWS or time.monotonic() - self._flushed >= FLUSH_SECONDS:
            self.flush()

    def flush(self) -> None:
        insert = "INSERT OR REPLACE INTO embeddings VALUES (?, ?, ?)"
        self._db.executemany(insert, self._pending)
        self._db.commit()
        self._pending.clear()
        self._flushed = time.monotonic()

    def _content(self, path: str | os.PathLike) -> bytes:
        key = os.fsencode(os.path.abspath(path))
        try:
            status = os.stat(path)
        except FileNotFoundError:
            raise FileNotFoundError(f"no such file: {path}") from None
        state = (status.st_size, status.st_mtime_ns)
        query = "SELECT size, mtime_ns, content FROM files WHERE path = ?"
        known = self._db.execute(query, (key,)).fetchone()
        if known and known[:2] == state:
            return known[2]
        content = content_of(path)
        self._db.execute("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", (key, *state, content))
        return content


def content_of(path: str | os.PathLike) -> bytes:
    """The BLAKE2b hash of a file's bytes, 16 of them."""
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.digest()


class _Embedder:
    """What `score_stream` takes for a scorer, whose scores are the embeddings."""

    def __init__(self, scorer: Scorer):
        self.scorer, self.device = scorer, scorer.device
        self.input_size, self.default_batch_size = scorer.input_size, scorer.default_batch_size

    def score_runs(self, runs: Iterable[Tensor]) -> Tensor:
        x = torch.cat([self.scorer.prepare(run) for run in runs])
        return features_of(self.scorer, x).float()


def _embed(
    scorer: Scorer, pictures: dict, batch_size: int | None, progress: bool | Progress
) -> Iterator[tuple[bytes | int, Tensor]]:
    """(key, embedding [D]) of the files in `pictures` (by key), in order."""
    stream = score_stream(_Embedder(scorer), list(pictures.values()), batch_size, "raise")
    total = len(pictures)
    shown = progress is True and total > 0
    bar = tqdm(stream, total=total, unit="image", desc="embedding", disable=not shown)
    for done, (key, scored) in enumerate(zip(pictures, bar, strict=True), 1):
        yield key, scored.score
        if callable(progress):
            progress(done, total)


def _stacked(values: list[Tensor]) -> Tensor:
    return torch.stack(values) if values else torch.zeros(0, 0)


def _remove(path: Path) -> None:
    for suffix in ("", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
