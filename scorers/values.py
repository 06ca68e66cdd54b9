"""Values in files that others wrote, checked where they are read: what is wrong is named in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple


class Kind(NamedTuple):
    """What a value must be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_whole(x: Any) -> bool:
    return type(x) is int  # a bool is none


def _is_number(x: Any) -> bool:
    return type(x) in (int, float) and math.isfinite(x)


def _all(holds: Callable[[Any], bool], x: Any) -> bool:
    return isinstance(x, (list, tuple)) and len(x) > 0 and all(map(holds, x))


COUNT = Kind("a whole number from 1 up", lambda x: _is_whole(x) and x > 0)
COUNTS = Kind("a list of whole numbers from 1 up", lambda x: _all(COUNT.holds, x))
WHOLES = Kind("a list of whole numbers from 0 up", lambda x: _all(_is_whole, x) and min(x) >= 0)
NUMBER = Kind("a number", _is_number)
WEIGHT = Kind("a number from 0 up", lambda x: _is_number(x) and x >= 0)
POSITIVE = Kind("a number above 0", lambda x: _is_number(x) and x > 0)
THREE_COUNTS = Kind("three whole numbers from 1 up", lambda x: COUNTS.holds(x) and len(x) == 3)
COLOUR = Kind("three numbers", lambda x: _all(_is_number, x) and len(x) == 3)
SCALE = Kind("three numbers above 0", lambda x: _all(POSITIVE.holds, x) and len(x) == 3)
PART = Kind("a number above 0, at most 1", lambda x: _is_number(x) and 0 < x <= 1)
TEXT = Kind("text", lambda x: isinstance(x, str) and x != "")
OBJECT = Kind("an object", lambda x: isinstance(x, Mapping))


def value(values: Any, key: str, kind: Kind, source: str | Path) -> Any:
    """`values[key]`, which is of this kind.

    Raises:
        ValueError: naming the source, the key, and the value that it holds instead.
    """
    if not isinstance(values, Mapping) or key not in values:
        raise ValueError(f"{source} lacks {key!r}")
    if not kind.holds(values[key]):
        raise ValueError(f"{source}: {key} must be {kind.words}, got {_shown(values[key])}")
    return values[key]


def _shown(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 60 else f"{text[:60]}..."


def read_json(path: Path) -> dict[str, Any]:
    """A file that holds one JSON object.

    Raises:
        FileNotFoundError, ValueError: naming the file.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except (ValueError, RecursionError) as error:  # also what is not UTF-8
        raise ValueError(f"not JSON: {path} ({error})") from None
    if not isinstance(values, dict):
        raise ValueError(f"not a JSON object: {path}")
    return values
