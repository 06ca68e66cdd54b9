"""What the tests of the command line share: small real pictures, and commands run on a stub."""

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result
from PIL import Image
from stub import Brightness

ROOT = Path(__file__).resolve().parents[1]


def flat_picture(path: Path, grey: int, size: tuple[int, int] = (6, 5)) -> Path:
    """A picture of one grey, whose brightness is grey / 255."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey, grey, grey)).save(path, lossless=True)
    return path


def staircase(folder: Path, count: int = 5) -> list[Path]:
    """Pictures 0.png, 1.png... each brighter than the one before."""
    step = 255 // count
    return [flat_picture(folder / f"{i}.png", step * (i + 1)) for i in range(count)]


class Cli:
    """Runs commands in this process, with a stub for every scorer and a data folder of its own.

    With `scorer=None`, scorers are loaded as ever.
    """

    def __init__(self, monkeypatch, home: Path, scorer=Brightness):
        monkeypatch.setenv("TASTEMAKER_HOME", str(home))
        self.home, self.loaded = home, []

        def load_scorer(name_or_path, **how):
            self.loaded.append((name_or_path, how))
            return scorer()

        if scorer:
            monkeypatch.setattr("tastemaker.scorers.load_scorer", load_scorer)

    def __call__(self, *args, code: int = 0, **how) -> Result:
        from tastemaker.cli import main

        result = _runner().invoke(
            main, [os.fspath(a) if isinstance(a, Path) else str(a) for a in args], **how
        )
        if result.exit_code != code or (
            result.exception and not isinstance(result.exception, SystemExit)
        ):
            raise AssertionError(f"exit {result.exit_code}:\n{result.output}") from result.exception
        return result

    def error(self, *args) -> str:
        """The one line of an error, after checking that it is one."""
        result = self(*args, code=1)
        (line,) = result.stderr.splitlines()
        assert line.startswith("Error: ") and "Traceback" not in result.output
        return line.removeprefix("Error: ")

    def usage_error(self, *args) -> str:
        return self(*args, code=2).stderr


def _runner() -> CliRunner:
    """With both streams apart, which older versions of click do on request only."""
    try:
        return CliRunner(mix_stderr=False)
    except TypeError:
        return CliRunner()


SCRIPT = """
import runpy, sys
runpy.run_path(sys.argv[1] + "/tests/conftest.py")
from cli_tools import child
child({setup!r}, sys.argv[2:])
"""


def start(args, home: Path, setup: str = "", **how) -> subprocess.Popen:
    """The command in a process of its own; `setup` is run first and may define `scorer()`."""
    command = [sys.executable, "-c", SCRIPT.format(setup=setup), str(ROOT), *map(str, args)]
    env = {**os.environ, "TASTEMAKER_HOME": str(home), "PYTHONUNBUFFERED": "1"}
    pipe = subprocess.PIPE
    return subprocess.Popen(command, env=env, stdout=pipe, stderr=pipe, text=True, **how)


def child(setup: str, args: list[str]) -> None:
    from tastemaker import scorers
    from tastemaker.cli import main

    names = {"scorer": Brightness}
    exec(setup, names)
    scorers.load_scorer = lambda name_or_path, **how: names["scorer"]()
    main(args)
