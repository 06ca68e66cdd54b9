"""Files linked, copied or moved into a folder. Nothing is overwritten, nothing is lost on the way."""

from __future__ import annotations

import errno
import filecmp
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from .files import is_media

Action = Literal["link", "hardlink", "copy", "move"]
ACTIONS = ("link", "hardlink", "copy", "move")


class Step(NamedTuple):
    """One file on its way."""

    source: Path
    target: Path


class Failure(NamedTuple):
    """A file that stayed where it is, and why, on one line."""

    source: Path
    reason: str


def plan(groups: Iterable[Sequence[Path]], folder: Path, action: Action) -> tuple[list[Step], int]:
    """Where each file goes in `folder`, under its own name or, where that is taken, with `-2`, `-3`...

    Args:
        groups: a picture and the files that go with it; they keep one name.

    Returns:
        The steps to do, and how many are done already: repeating a link or a copy adds nothing.
    """
    steps, done = [], 0
    taken: set[str] = set()  # without case: the folder may be on a disk that ignores it
    first_free: dict[str, int] = {}
    for group in groups:
        name = group[0].name
        # What was moved is no longer among the sources, so an existing file is always another one.
        number = first_free.get(name, 1) if action == "move" else 1
        while not _fits(renamed := _numbered(group, folder, number), taken, action):
            number += 1
        first_free[name] = number + 1
        taken |= {str(step.target).casefold() for step in renamed}
        fresh = [step for step in renamed if not os.path.lexists(step.target)]
        steps += fresh
        done += len(renamed) - len(fresh)
    return steps, done


def perform(steps: Iterable[Step], act: Callable[[Path, Path], None]) -> Iterator[Failure | None]:
    """Does the steps one by one. A file that fails is told of, a full disk ends it all."""
    for source, target in steps:
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            act(source, target)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            yield Failure(source, f"{error.strerror or error}: {target}")
        else:
            yield None


def link(source: Path, target: Path) -> None:
    """A symbolic link."""
    os.symlink(os.path.abspath(source), target)


def hardlink(source: Path, target: Path) -> None:
    """A second name of the same file; on the same disk only."""
    os.link(os.path.realpath(source), target)


def copy(source: Path, target: Path) -> None:
    """A copy with its times, on the disk before it appears under its name."""
    # A name that a repeated run finds again, and that fits however long the target's is.
    name = hashlib.sha256(os.fsencode(target.name)).hexdigest()[:16]
    temporary = target.with_name(f".{name}.tmp")
    try:
        shutil.copy2(source, temporary)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        _place(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def move(source: Path, target: Path) -> None:
    """Moves a file, to another disk too; it exists at every moment. Finishes what was interrupted.

    Raises:
        FileExistsError: the target is another file.
        FileNotFoundError: there is neither.
    """
    if os.path.lexists(target):
        if not os.path.lexists(source):
            return  # done before
        if not _equal(source, target):
            raise FileExistsError(errno.EEXIST, "another file is there", str(target))
    elif source.is_symlink():
        os.symlink(os.path.realpath(source), target)
    else:
        try:
            os.link(source, target)  # unlike a rename, never replaces anything
        except (FileNotFoundError, FileExistsError):
            raise
        except OSError:  # another disk, or one without hard links
            copy(source, target)
            _sync_folder(target.parent)
    os.unlink(source)


ACTS: dict[str, Callable[[Path, Path], None]] = {
    "link": link,
    "hardlink": hardlink,
    "copy": copy,
    "move": move,
}


def with_sidecars(pictures: Iterable[Path]) -> tuple[list[list[Path]], int]:
    """Each picture with the files of its stem: captions, tags, embeddings.

    A file that several pictures of a folder share stays where it is; how many is returned too.
    """
    pictures = list(pictures)
    folders = {picture.parent: _sidecars(picture.parent) for picture in pictures}
    groups = [[p, *folders[p.parent][0].get(p.stem, [])] for p in pictures]
    return groups, sum(shared for _, shared in folders.values())


def _sidecars(folder: Path) -> tuple[dict[str, list[Path]], int]:
    """Files by the stem of the one picture that they belong to, and the number of shared ones."""
    names = sorted(os.listdir(folder))
    stems: dict[str, int] = {}
    for name in filter(is_media, names):
        stems[Path(name).stem] = stems.get(Path(name).stem, 0) + 1
    owned: dict[str, list[Path]] = {}
    shared = 0
    for name in names:
        owner = None if is_media(name) else _owner(name, stems)
        if owner and stems[owner] > 1:
            shared += 1
        elif owner:
            owned.setdefault(owner, []).append(folder / name)
    return owned, shared


def _owner(name: str, stems: dict[str, int]) -> str | None:
    """The longest picture's stem that the name begins with: a.b.txt belongs to a.b.png, not a.png."""
    parts = name.split(".")
    prefixes = (".".join(parts[:n]) for n in range(len(parts) - 1, 0, -1))
    return next((prefix for prefix in prefixes if prefix in stems), None)


def _numbered(group: Sequence[Path], folder: Path, number: int) -> list[Step]:
    stem = group[0].stem
    suffix = "" if number == 1 else f"-{number}"
    return [Step(path, folder / f"{stem}{suffix}{path.name[len(stem) :]}") for path in group]


def _fits(steps: list[Step], taken: set[str], action: Action) -> bool:
    """Whether every target is free, or is what the step would make."""
    if any(str(target).casefold() in taken for _, target in steps):
        return False
    return all(not os.path.lexists(step.target) or _made(step, action) for step in steps)


def _made(step: Step, action: Action) -> bool:
    source, target = step
    if action == "move" or not os.path.exists(target):
        return False
    if action == "copy":
        return not target.is_symlink() and filecmp.cmp(source, target)
    return target.is_symlink() == (action == "link") and os.path.samefile(source, target)


def _equal(source: Path, target: Path) -> bool:
    return os.path.samefile(source, target) or filecmp.cmp(source, target, shallow=False)


def _place(temporary: Path, target: Path) -> None:
    """Gives a finished file its name, unless that exists."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise
    except OSError:  # a disk without hard links
        if os.path.lexists(target):
            raise FileExistsError(errno.EEXIST, "another file is there", str(target)) from None
        os.rename(temporary, target)


def _sync_folder(folder: Path) -> None:
    """Makes a new name durable before the old one goes; Windows has no such call."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
