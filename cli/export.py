"""Tables of scores: CSV, JSONL or Parquet, by suffix. Written row by row, and whole or not at all."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from ..report.rows import Row
from ..scorers.checkpoint import replacing
from .beside import refuse_foreign

COLUMNS = ("path", "score", "error", "scorer", "fingerprint")
SUFFIXES = (".csv", ".jsonl", ".parquet")
_CHUNK = 10_000  # rows of a Parquet row group


def check_output(path: Path) -> None:
    """As `check_suffix`; and raises click.ClickException where another file would be replaced."""
    check_suffix(path)
    refuse_foreign(path, "table of scores", is_table)


def check_suffix(path: Path) -> None:
    """Raises ValueError, or ImportError without pyarrow, unless such a table can be written."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"a table ends in {', '.join(SUFFIXES)}, got {path.name}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def is_table(path: Path) -> bool:
    """Whether a file is a table that `write_table` wrote, by its first row."""
    try:
        row = next(read_table(path), {})
    except (ValueError, OSError):
        return False
    return set(COLUMNS) <= row.keys()


def export_rows(rows: Iterable[Row], name: str, fingerprint_id: str) -> Iterator[tuple]:
    """Rows as `COLUMNS`; no score is None."""
    for row in rows:
        score = None if math.isnan(row.score) else row.score
        yield str(row.path), score, row.error, name, fingerprint_id


def write_table(path: Path, rows: Iterable[tuple], columns: Sequence[str] = COLUMNS) -> None:
    """Writes rows whose second column is a number and whose others are strings; None is empty.

    On an exception the file is as it was.
    """
    check_suffix(path)
    write = {".csv": _write_csv, ".jsonl": _write_jsonl, ".parquet": _write_parquet}
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        write[path.suffix.lower()](temporary, rows, columns)


def read_table(path: Path) -> Iterator[dict[str, Any]]:
    """Rows as dictionaries of strings, with a number or None under "score" and None for no error.

    Raises:
        ValueError: naming the file and the row, where it is no table of scores.
    """
    readers: dict[str, Callable[[Path], Iterator[dict]]] = {
        ".csv": _read_csv,
        ".jsonl": _read_jsonl,
        ".parquet": _read_parquet,
    }
    if path.suffix.lower() not in readers:
        raise ValueError(f"scores are read from {', '.join(SUFFIXES)} or a journal, not {path}")
    rows = readers[path.suffix.lower()](path)
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or not row.get("path") or "score" not in row:
            raise ValueError(f"row {number} of {path} has no path and score")
        try:
            score = None if row["score"] in (None, "") else float(row["score"])
        except (TypeError, ValueError):
            raise ValueError(f"row {number} of {path}: no number: {row['score']!r}") from None
        yield row | {"score": score, "error": row.get("error") or None}


def _write_csv(path: Path, rows: Iterable[tuple], columns: Sequence[str]) -> None:
    # surrogateescape: a file name that is not Unicode comes back as the bytes it was.
    with open(path, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        writer.writerows(rows)


def _write_jsonl(path: Path, rows: Iterable[tuple], columns: Sequence[str]) -> None:
    with open(path, "w", encoding="utf-8", errors="surrogateescape") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(columns, row, strict=True)), ensure_ascii=False) + "\n")


def _write_parquet(path: Path, rows: Iterable[tuple], columns: Sequence[str]) -> None:
    arrow, parquet = _pyarrow()
    kinds = [arrow.float64() if i == 1 else arrow.string() for i in range(len(columns))]
    schema = arrow.schema(zip(columns, kinds, strict=True))
    rows = iter(rows)
    with parquet.ParquetWriter(path, schema) as writer:
        while chunk := list(islice(rows, _CHUNK)):
            values = [[_unicode(value) for value in column] for column in zip(*chunk, strict=True)]
            writer.write_table(arrow.table(values, schema=schema))


def _read_csv(path: Path) -> Iterator[dict]:
    try:
        with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
            yield from csv.DictReader(file)
    except csv.Error as error:
        raise ValueError(f"not CSV: {path} ({error})") from None


def _read_jsonl(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8", errors="surrogateescape") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number} of {path} is not JSON ({error})") from None


def _read_parquet(path: Path) -> Iterator[dict]:
    arrow, parquet = _pyarrow()
    try:
        with parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK):
                yield from batch.to_pylist()
    except arrow.ArrowException as error:
        raise ValueError(f"not Parquet, or damaged: {path} ({error})") from None


def _unicode(value: Any) -> Any:
    """Parquet holds Unicode only: other bytes in a file name show as a replacement character."""
    return os.fsencode(value).decode("utf-8", "replace") if isinstance(value, str) else value


def _pyarrow():
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        from ..scorers.messages import needs

        raise needs("Parquet needs pyarrow", "pyarrow", "parquet") from None
    return pyarrow, pyarrow.parquet
