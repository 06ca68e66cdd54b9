"""The promises of the layout: what is packaged, what is imported, what is installed."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def project() -> dict:
    try:
        import tomllib
    except ModuleNotFoundError:  # Python 3.10
        import tomli as tomllib
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_every_subpackage_is_listed():
    folders = {p.parent.name for p in ROOT.glob("*/__init__.py")}
    listed = set(project()["tool"]["setuptools"]["packages"])
    assert listed == {"tastemaker", *(f"tastemaker.{name}" for name in folders)}


def test_requirements_equal_dependencies():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").split()
    assert lines == [d.replace(" ", "") for d in project()["project"]["dependencies"]]


def test_dependencies_are_floors():
    for dependency in project()["project"]["dependencies"]:
        assert not any(mark in dependency for mark in ("==", "<", "~=", "!=")), dependency


BLOCKED = """
import sys
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"comfy", "comfy_api", "folder_paths", "diffusers", "torchvision"}:
            raise ImportError(f"{name} must not be imported here")
sys.meta_path.insert(0, Blocker())
sys.path.insert(0, sys.argv[1])
import runpy
runpy.run_path(sys.argv[1] + "/tests/conftest.py")
import importlib, traceback
for name in sys.argv[2:]:
    try:
        importlib.import_module("tastemaker." + name)
    except BaseException:
        print(name, traceback.format_exc().splitlines()[-1])
"""

SCORERS = [f"scorers.{p.stem}" for p in sorted((ROOT / "scorers").glob("[!_]*.py"))]
GUIDANCE = [f"guidance.{p.stem}" for p in sorted((ROOT / "guidance").glob("[!_]*.py"))]
MODULES = ["scorers", *SCORERS, "ranking", "guidance", *GUIDANCE]


@pytest.fixture(scope="module")
def refused() -> dict[str, str]:
    """Module to error; all in one process, since torch takes seconds to import."""
    run = subprocess.run(
        [sys.executable, "-c", BLOCKED, str(ROOT), *MODULES],
        check=True,
        capture_output=True,
        text=True,
    )
    return dict(line.split(" ", 1) for line in run.stdout.splitlines())


@pytest.mark.parametrize("module", MODULES)
def test_imports_neither_comfy_nor_diffusers_nor_torchvision(module, refused):
    assert module not in refused, refused[module]


def test_the_root_imports_nothing():
    code = BLOCKED.split("import importlib,")[0] + "assert 'torch' not in sys.modules\n"
    subprocess.run([sys.executable, "-c", code, str(ROOT), ""], check=True)
