"""Sidecar files beside pictures. A file that this program did not write is never changed."""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..scorers.checkpoint import replacing
from ..scorers.home import home
from .files import is_media
from .journal import sqlite_key

# Suffixes that captions, features and configurations have; ours must be another.
FOREIGN = (
    *(".txt", ".caption", ".captions", ".cap", ".tag", ".tags", ".json", ".jsonl", ".csv", ".md"),
    *(".yaml", ".yml", ".xml", ".html", ".npz", ".npy", ".pt", ".safetensors"),
)
BATCH = 1000


@dataclass
class Written:
    """What became of the sidecars."""

    fresh: int = 0
    unchanged: int = 0  # have these words already
    foreign: list[Path] = field(default_factory=list)  # exist and are not ours
    ambiguous: list[Path] = field(default_factory=list)  # pictures of one stem and other words


def check_suffix(suffix: str) -> None:
    """Raises ValueError unless a sidecar may end like that."""
    if suffix[:1] != "." or len(suffix) < 2 or os.path.basename(suffix) != suffix:
        raise ValueError(f"a suffix is a dot and a name, e.g. .quality.txt, got {suffix!r}")
    if suffix.lower() in FOREIGN or (is_media(suffix) and suffix.count(".") == 1):
        raise ValueError(f"{suffix} is what captions and pictures end in: choose another")


def write_sidecars(words: Mapping[Path, str], suffix: str) -> Written:
    """Writes each picture's words into a file of its stem and `suffix`.

    A register in the user's data folder knows, by content, what was written: only such a file is
    ever replaced. One that was changed since, or came from elsewhere, stays.
    """
    check_suffix(suffix)
    contents, result = _by_sidecar(words, suffix)
    with _Register() as register:
        batch: list[tuple[Path, bytes]] = []
        for path, content in contents.items():
            state = register.state(path, content)
            if state == "ours":
                batch.append((path, content))
            elif state == "same":
                result.unchanged += 1
            else:
                result.foreign.append(path)
            if len(batch) >= BATCH:
                result.fresh += register.write(batch)
                batch = []
        result.fresh += register.write(batch)
    return result


def _by_sidecar(words: Mapping[Path, str], suffix: str) -> tuple[dict[Path, bytes], Written]:
    """Content by sidecar; pictures that would share one get it only if they agree."""
    contents: dict[Path, bytes] = {}
    result = Written()
    for picture, word in words.items():
        path, content = picture.with_name(picture.stem + suffix), f"{word}\n".encode()
        if contents.setdefault(path, content) != content:
            result.ambiguous.append(picture)
    for picture in result.ambiguous:
        contents.pop(picture.with_name(picture.stem + suffix), None)
    return contents, result


class _Register:
    """Digests of all sidecars ever written, by path."""

    def __enter__(self) -> _Register:
        home().mkdir(parents=True, exist_ok=True)
        self._db = sqlite3.connect(home() / "sidecars.sqlite", timeout=60, isolation_level=None)
        self._db.execute(
            "CREATE TABLE IF NOT EXISTS written (path, digest, PRIMARY KEY (path, digest))"
        )
        return self

    def __exit__(self, *_) -> None:
        self._db.close()

    def state(self, path: Path, content: bytes) -> str:
        """ "ours" where the content may be written, "same" where it is there, else "foreign"."""
        if not os.path.lexists(path):
            return "ours"
        if path.is_symlink() or not path.is_file():
            return "foreign"
        present = path.read_bytes()
        if present == content:
            return "same"
        query = "SELECT count(*) FROM written WHERE path = ? AND digest = ?"
        known = self._db.execute(query, (sqlite_key(path), _digest(present))).fetchone()[0]
        return "ours" if known else "foreign"

    def write(self, batch: Iterable[tuple[Path, bytes]]) -> int:
        """Registers first: after a kill in between, no file of ours looks foreign."""
        rows = [(sqlite_key(path), _digest(content)) for path, content in batch]
        with self._db:
            self._db.execute("BEGIN IMMEDIATE")
            self._db.executemany("INSERT OR IGNORE INTO written VALUES (?, ?)", rows)
        for path, content in batch:
            with replacing(path) as temporary:
                temporary.write_bytes(content)
        return len(rows)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
