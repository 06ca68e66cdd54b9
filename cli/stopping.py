"""Being told to stop from outside: `docker stop`, a service manager, a closed terminal."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_NAMES = ("SIGTERM", "SIGHUP", "SIGBREAK")  # not each system has all of them


@contextmanager
def stopped_as_by_ctrl_c() -> Iterator[None]:
    """Within it, whatever ends this process politely raises KeyboardInterrupt, as Ctrl-C does.

    A signal that is ignored (`nohup`), or that the host program answers itself, is left alone.
    """
    signals = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    ours = [each for each in signals if signal.getsignal(each) == signal.SIG_DFL]
    if threading.current_thread() is not threading.main_thread():
        ours = []  # Python sets handlers in the main thread only
    for each in ours:
        signal.signal(each, _interrupt)
    try:
        yield
    finally:
        for each in ours:
            signal.signal(each, signal.SIG_DFL)


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt
