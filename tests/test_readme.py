"""What the README repeats is what the tests and benchmarks found."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_pipelines_and_schedulers_is_the_one_that_was_found():
    found = (ROOT / "benchmarks" / "guidance_matrix.md").read_text(encoding="utf-8")
    table = [line for line in found.splitlines() if line.startswith("|")]
    assert len(table) > 8
    assert "\n".join(table) in (ROOT / "README.md").read_text(encoding="utf-8")


def test_nano_says_of_itself_what_was_measured():
    from tastemaker.scorers import nano

    results = (ROOT / "training" / "nano_results.md").read_text(encoding="utf-8")
    mean, deviation = re.search(
        r"Originals: mean ([\d.]+), standard deviation ([\d.]+)\.\n", results
    ).groups()
    pictures = re.search(r"(\d+) pictures at native resolution", results)[1]
    said = " ".join(nano.__doc__.split())
    assert f"those it never saw {mean}, with {deviation}" in said
    assert f"the {pictures} pictures of `training/nano_results.md`" in said
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert f"of {pictures} clean pictures that it never saw" in readme


def test_no_column_of_the_tables_of_speed_is_empty():
    lines = (ROOT / "benchmarks" / "speed.md").read_text(encoding="utf-8").splitlines()
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    rows = [[row.strip("|").split("|") for row in t.split("\n") if row] for t in tables]
    found = [table for table in rows if len(table) > 2]
    assert found
    for _header, _line, *body in found:
        assert all(any(cell.strip() for cell in column) for column in zip(*body, strict=True))
