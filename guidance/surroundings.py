"""What torch keeps for each thread by itself, so that another thread computes as the caller's would."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch

AUTOCAST = ("cpu", "cuda", "mps", "xpu")  # kinds of devices that may have it


class Surroundings:
    """Autocast and the default device, as they are in the thread that makes this."""

    def __init__(self) -> None:
        kinds = [kind for kind in AUTOCAST if torch.amp.is_autocast_available(kind)]
        enabled = [kind for kind in kinds if torch.is_autocast_enabled(kind)]
        self.dtypes = {kind: torch.get_autocast_dtype(kind) for kind in enabled}
        self.cached = torch.is_autocast_cache_enabled()
        self.device = torch.get_default_device()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Within the context, the same in the thread that enters it."""
        with ExitStack() as stack:
            if self.device != torch.get_default_device():
                stack.enter_context(self.device)
            for kind, dtype in self.dtypes.items():
                stack.enter_context(torch.autocast(kind, dtype, cache_enabled=self.cached))
            yield
