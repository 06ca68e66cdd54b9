"""Errors in one line: other libraries' too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def one_line(error: BaseException, width: int | None = None) -> str:
    """An error's message on one line, cut between words at `width`; its kind where it has none."""
    text = " ".join(str(error).split()) or type(error).__name__
    if width is None or len(text) <= width:
        return text
    return text[:width].rsplit(" ", 1)[0] + " ..."


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """What another library raises about a file becomes a ValueError of one line that names it.

    A package that is missing, or memory that ran out, is not the file's fault and passes.
    """
    try:
        yield
    except (ImportError, MemoryError):
        raise
    except Exception as error:
        raise ValueError(f"{source}: {one_line(error, 300)}") from error


def needs(what: str, package: str, extra: str) -> ImportError:
    """The error for an optional package that is missing: `raise needs("videos need PyAV", "av", "video")`.

    Names the package itself too: who cloned this project into ComfyUI has not installed it by name.
    """
    return ImportError(f'{what}: pip install -U {package}, or pip install "tastemaker[{extra}]"')
