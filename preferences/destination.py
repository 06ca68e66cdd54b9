"""The folder that training writes to: what may be there already.

Training writes to a folder that is new or empty, and where it is asked to, in the place of what it
wrote itself: a personal head, a scorer that was fine-tuned whole, an unfinished run. The old scorer
stays until the new one is whole (`scorers.personal_files`), and nothing else is ever replaced.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from ..scorers.personal_files import is_free, is_trained, is_unfinished


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuses a folder that is not to be written to.

    Raises:
        ValueError: it would be taken for something else, or nothing can be written there.
        FileExistsError: it holds something that is not to be overwritten.
    """
    if folder.suffix == ".json":
        raise ValueError(f"{folder}: a folder called .json would be taken for an ensemble")
    if not is_free(folder):
        if not (is_trained(folder) or is_unfinished(folder)):
            raise FileExistsError(
                f"{folder} holds something that training did not write, which is never overwritten: "
                "name another folder"
            )
        if not overwrite:
            raise FileExistsError(
                f"{folder} holds something already: name another folder, or overwrite it (--overwrite)"
            )
    _check_writable(folder)


def _check_writable(folder: Path) -> None:
    """Tries it, since permissions do not tell: training takes long, and writes at the end."""
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        with tempfile.TemporaryDirectory(dir=there, prefix=".tastemaker-", suffix=".tmp"):
            pass
    except OSError as error:
        raise ValueError(f"cannot write to {folder}: {there}: {error.strerror}") from None
