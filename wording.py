"""How things are said."""

from __future__ import annotations


def counted(n: int, thing: str) -> str:
    """As in "1 image" and "2 images"."""
    return f"{n} {thing}" if n == 1 else f"{n} {thing}s"
