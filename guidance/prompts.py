"""Where a pipeline's run begins, and its prompts, for scorers that read them."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from .initial import replaced


@contextmanager
def before(pipe: Any, name: str, function: Callable[[], None]) -> Iterator[None]:
    """Within the context, `function` is called before a method of this pipeline is."""
    own = getattr(pipe, name)

    @functools.wraps(own)
    def method(*args: Any, **named: Any) -> Any:
        function()
        return own(*args, **named)

    with replaced(pipe, name, method):
        yield


def beginning(pipe: Any) -> str:
    """The method that a run calls first, if it has one; otherwise one that every run calls."""
    return "check_inputs" if hasattr(pipe, "check_inputs") else "prepare_latents"


@contextmanager
def watched_prompts(pipe: Any, tell: Callable[[list[str]], None]) -> Iterator[None]:
    """Within the context, `tell` hears each run's prompts; [] where the run is given embeddings.

    Those that are encoded first: some pipelines encode the negative ones by the same method afterwards.
    """
    if not (hasattr(pipe, "encode_prompt") and hasattr(pipe, "prepare_latents")):
        yield
        return
    own, heard = pipe.encode_prompt, []
    signature = inspect.signature(own)

    @functools.wraps(own)
    def encode_prompt(*args: Any, **named: Any) -> Any:
        encoded = own(*args, **named)
        heard.append(texts(signature.bind(*args, **named).arguments.get("prompt")))
        return encoded

    def encoded() -> None:
        tell(heard[0] if heard else [])
        heard.clear()

    with ExitStack() as stack:
        stack.enter_context(replaced(pipe, "encode_prompt", encode_prompt))
        stack.enter_context(before(pipe, "prepare_latents", encoded))
        if hasattr(pipe, "check_inputs"):  # what a run that broke off has encoded is forgotten
            stack.enter_context(before(pipe, "check_inputs", heard.clear))
        yield


def running_call(pipe: Any) -> dict[str, Any]:
    """The prompt, height and width of the call of this pipeline that is under way; None for no such.

    As the pipeline has completed them: neither it nor what it hands to a callback keeps them, and the
    number of packed latents does not tell a wide picture from a high one. So they are read where they
    are, in the frame of its `__call__`.

    Raises:
        RuntimeError: this was not called from within a call of the pipeline.
    """
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "__call__" and frame.f_locals.get("self") is pipe:
            return {name: frame.f_locals.get(name) for name in ("prompt", "height", "width")}
        frame = frame.f_back
    raise RuntimeError(
        f"the call of {type(pipe).__name__} that this step is of is not found, so its prompts and size "
        "are not known: give RewardCallback(..., pipe=pipe)"
    )


def texts(prompt: str | Sequence[str] | None) -> list[str]:
    return [prompt] if isinstance(prompt, str) else list(prompt or [])
