"""What the README repeats is what the tests and benchmarks found."""

import re
from pathlib import Path

import pytest

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


# The README's rows, and those of benchmarks/guidance.md that they are of, from left to right.
METHODS = {
    "plain": ["plain"],
    "guided, `scale=0.1`": ["guidance, as by default"],
    "guided, `scale=0.2`": ["guidance, scale 0.2"],
    "best of n": ["best of 4", "best of 8", "best of 16"],
    "best of 16, pruned to 40 % of the cost": ["best of 16, pruned for 40 %"],
    "n particles": ["particles, 4", "particles, 8", "particles, 16"],
}


def rows_of(text: str, first: str) -> dict[str, list[str]]:
    """The table whose header begins so: each row's cells by its first."""
    lines = text[text.index(first) :].split("\n\n", 1)[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name: rest for name, *rest in (cells[0], *cells[2:])}


def test_the_gains_of_searches_are_those_that_were_measured():
    found = (ROOT / "benchmarks" / "guidance.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    measured = rows_of(found, "| method | calls |")
    said = rows_of(readme, "| denoiser calls an image |")
    calls = said.pop("denoiser calls an image")
    assert said.keys() == METHODS.keys()
    for name, cells in said.items():
        cost = [int(calls[i]) for i, cell in enumerate(cells) if cell]
        held_out = [float(cell) for cell in cells if cell]
        rows = [measured[method] for method in METHODS[name]]
        assert cost == [int(row[0]) for row in rows], name
        found = [float(row[2].split(" ")[0]) for row in rows]
        assert held_out == pytest.approx(found, abs=0.00501), name

    def gain(method: str) -> float:
        return float(measured[method][1].split(" ")[0]) - float(measured["plain"][1].split(" ")[0])

    halved = 'best of 16, prune="halving"'
    kept, cost = gain(halved) / gain("best of 16"), int(measured[halved][0]) / 320
    assert f"keeps {kept:.0%} of the gain of best of 16 for {cost:.1%} of its calls".replace(
        "%", " %"
    ) in " ".join(readme.split())


def test_the_bars_of_searches_are_met():
    found = (ROOT / "benchmarks" / "guidance.md").read_text(encoding="utf-8")
    kept, cost = re.search(r"keeps ([\d.]+)% of best of 16's gain with ([\d.]+)%", found).groups()
    assert float(kept) >= 97 and float(cost) <= 40
    particles = re.findall(r"particles against best of \d+, .*: ([\d.]+) against ([\d.]+)", found)
    assert len(particles) == 3 and all(float(ours) > float(best) for ours, best in particles)
    moved, distance = re.search(r"by ([+-][\d.]+) \(.*, at ([\d.]+) times", found).groups()
    assert float(moved) > 0 and float(distance) <= 1.05
    assert "scale 0 yes, an empty window yes, N = 1 yes" in found
