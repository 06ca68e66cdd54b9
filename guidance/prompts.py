"""The prompts of a pipeline's run, for scorers that read them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")


@contextmanager
def watched_prompts(pipe: Any, tell: Callable[[list[str]], None]) -> Iterator[None]:
    """Within the context, `tell` hears each run's prompts, one an image. None are heard where the
    pipeline is given embeddings.
    """
    own = getattr(pipe, "encode_prompt", None)
    if own is None:
        yield
        return
    signature = inspect.signature(own)

    def encode_prompt(*args: Any, **named: Any):
        given = signature.bind(*args, **named).arguments
        if found := repeated(given.get("prompt"), next(map(given.get, PER_PROMPT), None) or 1):
            tell(found)
        return own(*args, **named)

    pipe.encode_prompt = encode_prompt
    try:
        yield
    finally:
        del pipe.encode_prompt


def repeated(prompt: str | Sequence[str] | None, count: int) -> list[str]:
    """Each prompt `count` times in a row, as pipelines order their images; [] without prompts."""
    prompts = [prompt] if isinstance(prompt, str) else list(prompt or [])
    return [each for each in prompts for _ in range(count)]
