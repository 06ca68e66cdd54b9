"""What the README repeats is what the tests and benchmarks found."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def test_the_table_of_pipelines_and_schedulers_is_the_one_that_was_found():
    found = (ROOT / "benchmarks" / "guidance_matrix.md").read_text(encoding="utf-8")
    table = [line for line in found.splitlines() if line.startswith("|")]
    assert len(table) > 8
    assert "\n".join(table) in (ROOT / "README.md").read_text(encoding="utf-8")
