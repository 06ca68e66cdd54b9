"""Names of saved files: templates as ComfyUI fills them, kept inside one folder, never taken twice."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import count
from pathlib import Path, PureWindowsPath
from typing import Any

FIELD = re.compile(r"%([^%]+)%")
# Of a date, as ComfyUI's page knows them: yyyy or yy, M, d, h (0 to 23), m, s; doubled: two digits.
DATE = re.compile(r"d{1,2}|M{1,2}|h{1,2}|m{1,2}|s{1,2}|yyyy|yy")
# What some system does not allow in a name, or takes for something else.
FORBIDDEN = re.compile(r'[<>:"|?*\\\x00-\x1f\x7f]')
RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)\s*(\..*)?", re.IGNORECASE)  # Windows' devices
LONGEST = 200  # bytes of a name, so that a counter and an ending fit within any system's 255


def fill(
    template: str,
    values: Mapping[str, Any],
    now: datetime | None = None,
    inputs: Mapping[str, Mapping[str, Any]] | None = None,
) -> str:
    """Replaces each %field% of a template.

    Args:
        values: of the fields; None is empty. Their characters that no file name may hold become "_".
        now: for %date:yyyy-MM-dd%, %year%, %month%, %day%, %hour%, %minute%, %second%.
        inputs: a node's name or type -> its widgets, for %KSampler.steps%.

    Raises:
        ValueError: naming the field that is not known, and those that are.
    """
    now, inputs = now or datetime.now(), inputs or {}
    known = {**_clock(now), **values}

    def value(match: re.Match) -> str:
        field = match.group(1)
        if field.startswith("date:"):
            return _clean(format_date(field[5:], now))
        if field in known:
            return _clean(known[field])
        node, _, widget = field.rpartition(".")
        if widget in inputs.get(node, {}):
            return _clean(inputs[node][widget])
        fields = ", ".join(f"%{name}%" for name in (*values, "date:yyyy-MM-dd", "KSampler.steps"))
        raise ValueError(f"%{field}% is not known: {fields}")

    return FIELD.sub(value, template)


def format_date(pattern: str, when: datetime) -> str:
    """yyyy-MM-dd hh:mm:ss and parts of it, as ComfyUI's page writes them."""
    parts = {"d": when.day, "M": when.month, "h": when.hour, "m": when.minute, "s": when.second}

    def part(match: re.Match) -> str:
        text = match.group()
        if text[0] == "y":
            return str(when.year)[-len(text) :]
        return str(parts[text[0]]).zfill(len(text))

    return DATE.sub(part, pattern)


def score_text(score: float, bounds: tuple[float, float]) -> str:
    """Three decimals, zero-padded to the width of the scorer's range (2 digits where it has none).

    So names sort as scores of one sign do; "unscored" for NaN.
    """
    if math.isnan(score):
        return "unscored"
    if math.isinf(score):
        return "inf" if score > 0 else "-inf"
    most = max(abs(bound) for bound in bounds)
    digits = len(str(int(most))) if math.isfinite(most) else 2
    return f"{'-' if score < 0 else ''}{abs(score):0{digits + 4}.3f}"


def inside(folder: str | os.PathLike, name: str) -> Path:
    """The path of `name`, which may have subfolders, in a folder; nothing is created.

    Raises:
        ValueError: it would lie elsewhere (an absolute path, "..", a backslash, a link that leads
            out), or no file can be called that.
    """
    parts = name.split("/")
    if "\\" in name or name.startswith("/") or ".." in parts or PureWindowsPath(name).drive:
        raise ValueError(f"only names inside the output folder are allowed, got {name!r}")
    if bad := FORBIDDEN.search(name):
        raise ValueError(f"a file name may not hold {bad.group()!r}: {name!r}")
    if not parts[-1].strip(". "):
        raise ValueError(f"a file name is missing at the end of {name!r}")
    # Windows would open a device, or drop a folder's last dots and blanks.
    trailing = (part for part in parts[:-1] if part not in ("", ".") and part[-1] in ". ")
    if bad := next((part for part in parts if RESERVED.fullmatch(part)), next(trailing, None)):
        raise ValueError(f"Windows allows no file or folder to be called {bad!r}: {name!r}")
    if any(len(part.encode()) > LONGEST for part in parts):
        raise ValueError(f"a name is longer than {LONGEST} bytes: {name!r}")
    root, path = os.path.realpath(folder), os.path.realpath(os.path.join(folder, name))
    if os.path.commonpath((root, path)) != root:
        raise ValueError(f"{name!r} leads out of the output folder, by a link")
    return Path(folder, *filter(None, parts))


def numbered(path: Path, suffix: str) -> Iterator[Path]:
    """path_00001_.png, path_00002_.png ..., from the first number above those in use."""
    pattern = re.compile(re.escape(path.name) + r"_(\d+)_(\..*)?$")
    names = os.listdir(path.parent) if path.parent.is_dir() else []
    used = (int(found.group(1)) for found in map(pattern.match, names) if found)
    for number in count(max(used, default=0) + 1):
        yield path.with_name(f"{path.name}_{number:05}_{suffix}")


def publish(temporary: Path, names: Iterable[Path]) -> Path:
    """Gives a finished file the first name that is free. Never replaces a file."""
    for path in names:
        try:
            os.link(temporary, path)  # fails where the name is taken, unlike a rename
        except FileExistsError:
            continue
        except OSError:  # some drives have no links: the name is taken first, and then filled
            try:
                path.open("xb").close()
            except FileExistsError:
                continue
            os.replace(temporary, path)
        return path
    raise FileExistsError(f"no name is free for {temporary}")


def new_folder(names: Iterable[Path]) -> Path:
    """Makes a folder of the first name that is free."""
    for path in names:
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            continue
        return path
    raise FileExistsError("no name is free")


def _clock(now: datetime) -> dict[str, str]:
    """The fields that ComfyUI's server fills."""
    return {
        "year": f"{now.year}",
        "month": f"{now.month:02}",
        "day": f"{now.day:02}",
        "hour": f"{now.hour:02}",
        "minute": f"{now.minute:02}",
        "second": f"{now.second:02}",
    }


def _clean(value: Any) -> str:
    """A value as part of one name: it cannot open a subfolder."""
    return "" if value is None else FORBIDDEN.sub("_", str(value)).replace("/", "_")
