"""Stand-ins for torchvision and torchaudio, on the path of the ComfyUI that the tests start.

ComfyUI imports both as it starts, and PyPI has no build of them that fits the CPU build of torch.
Whatever is imported from them is an object that raises when it is called. Whoever only asks whether
the packages are there, as transformers and diffusers do, is told the truth.
"""

import importlib.util
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

find_spec = importlib.util.find_spec
ABSENT = [name for name in ("torchvision", "torchaudio") if not find_spec(name)]


class Nothing:
    def __init__(self, name: str):
        self.__name__ = name

    def __call__(self, *args, **kwargs):
        raise RuntimeError(f"{self.__name__} is not installed: the tests run without it")

    def __getattr__(self, name: str):
        return _nothing(self.__name__, name)


def _nothing(parent: str, name: str) -> Nothing:
    if name.startswith("__"):
        raise AttributeError(name)
    return Nothing(f"{parent}.{name}")


class StandIn(Loader):
    def create_module(self, spec: ModuleSpec) -> ModuleType:
        module = ModuleType(spec.name)
        module.__version__ = "0.0.0"
        module.__getattr__ = lambda name: _nothing(spec.name, name)
        return module

    def exec_module(self, module: ModuleType) -> None:
        pass


class Finder(MetaPathFinder):
    def find_spec(self, name: str, path=None, target=None) -> ModuleSpec | None:
        absent = name.split(".")[0] in ABSENT
        return ModuleSpec(name, StandIn(), is_package=True) if absent else None


def truthful_find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
    return None if name.split(".")[0] in ABSENT else find_spec(name, package)


sys.meta_path.append(Finder())
importlib.util.find_spec = truthful_find_spec
