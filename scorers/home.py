"""Where this program keeps what it makes for itself: journals, logs, converted checkpoints."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def home() -> Path:
    """The user's folder for what this program keeps: $TASTEMAKER_HOME, or the platform's own."""
    if own := os.environ.get("TASTEMAKER_HOME"):
        return Path(own).expanduser()
    if sys.platform == "win32":
        base = Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local")
    elif sys.platform == "darwin":
        base = Path.home() / "Library" / "Application Support"
    else:
        base = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    return base / "tastemaker"
