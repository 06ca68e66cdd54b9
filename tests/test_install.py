"""Installing the pack disturbs nothing: what satisfies the floors stays as it is."""

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FLOORS = {"torch": "2.4.0", "transformers": "4.50.3"}


def pretend(site: Path, name: str, version: str) -> None:
    """An installed distribution, as far as an installer looks at one."""
    folder = site / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "INSTALLER").write_text("pip\n")
    (folder / "RECORD").write_text("")


@pytest.mark.slow
@pytest.mark.parametrize("what", [[str(ROOT)], ["-r", str(ROOT / "requirements.txt")]])
def test_an_older_torch_and_transformers_are_left_alone(what, tmp_path):
    venv.create(tmp_path, with_pip=True)
    site = next((tmp_path / "lib").glob("python*/site-packages"))
    for name, version in FLOORS.items():
        pretend(site, name, version)
    environment = {k: v for k, v in os.environ.items() if k not in ("PIP_CONSTRAINT", "PYTHONPATH")}
    python = tmp_path / "bin" / Path(sys.executable).name
    python = python if python.exists() else tmp_path / "bin" / "python"
    command = [python, "-m", "pip", "install", "--dry-run", "--quiet", "--report", "-", *what]
    run = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    wanted = {entry["metadata"]["name"].lower() for entry in json.loads(run.stdout)["install"]}
    assert {"click", "pillow"} <= wanted  # the installer was at work
    assert not wanted & FLOORS.keys()
