"""Load this checkout as `tastemaker`, whatever its folder is called, the way ComfyUI loads it."""

import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from hypothesis import settings

# One thread for tiny models: two threads on two busy cores can be 90 times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

ROOT = Path(__file__).resolve().parents[1]

# `python -m pytest` puts the root on the path, where our own folders would hide other packages.
sys.path[:] = [p for p in sys.path if Path(p).resolve() != ROOT]
# Builders that several tests share (tests/tiny_*.py) are imported by their plain names.
sys.path.append(str(ROOT / "tests"))
pytest_plugins = ["comfyui_fixtures"]

spec = spec_from_file_location("tastemaker", ROOT / "__init__.py")
sys.modules["tastemaker"] = module_from_spec(spec)
spec.loader.exec_module(sys.modules["tastemaker"])

# Tests judge behaviour, not time: a busy machine must not fail them.
settings.register_profile("tastemaker", deadline=None)
settings.load_profile("tastemaker")
