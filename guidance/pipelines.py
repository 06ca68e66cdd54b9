"""Reward guidance of a diffusers pipeline, as a context and as a callback."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import nn

from .decode import Decoder, checkpointed
from .guide import Guide
from .offload import check_decoder
from .prompts import before, beginning, running_call, texts, watched_prompts
from .record import Record
from .rewards import Scorers, weighted
from .tap import HELD, release, tap
from .through import tap_through

ARMED = "_tastemaker_armed"  # a pipeline's attribute: the callback that it is armed by
# Of `Guide`'s arguments, those that are not the caller's to give.
INNER = {"scorers", "record"}


@contextmanager
def reward_guidance(
    pipe: Any,
    scorer: Scorers,
    scale: float = 0.1,
    *,
    decode: Any = "vae",
    prompts: Sequence[str] | None = None,
    through_model: bool = False,
    **options: Any,
) -> Iterator[Record]:
    """Within the context, whatever the pipeline samples is pushed towards a higher reward.

        with reward_guidance(pipe, scorer, scale=0.1, held_out=other) as run:
            images = pipe(prompt).images
        run.plot()

    Args:
        pipe: a diffusers pipeline; it is itself again afterwards, also after an exception.
        scorer: differentiable: one, several, or several with weights.
        scale: how far x0 is moved (root mean square, in latents' standard deviations) at a step that
            is all noise. Useful from 0.05 to 0.2.
        decode: how latents become pictures for the scorer: "vae", an AutoencoderTiny, "linear", or a
            callable; see `Decoder`. The gradient through a VAE takes the most memory: those of SD, SDXL,
            SD3, Flux and Z-Image compute activations again in the backward (about 3 GiB a picture of
            1024 px and what one block takes, instead of 22), unless they are offloaded or SDXL's
            in float16; those of Qwen-Image and Wan cannot. Where it is too much: an AutoencoderTiny, or "linear".
        prompts: for scorers that read them, one an image, or one for as many in a row; by default
            those that the pipeline gets.
        through_model: experimental. Guides by the gradient of the reward through the denoiser and its
            CFG, which raises it more for the same push and hacks it less. A guided step costs about
            four calls of the denoiser (activations are computed again in the backward) and the memory
            of a backward. Callbacks see latents that require a gradient, and cannot end the run early.
        options: of `Guide`: window, cap, low_pass, target, held_out, stop_on_gap.

    Yields:
        The record of what is done, filled while the pipeline runs.

    Raises:
        NotImplementedError: naming a scheduler or pipeline that is not supported, and what to do; with
            `through_model`, also offloaded or cached weights.
        TypeError: an option that there is not.
    """
    check_options(options, reward_guidance)
    guide = _guide(pipe, scorer, scale, decode, prompts=prompts, **options)
    with _guided(pipe, guide, through_model):
        yield guide.record


def _guide(pipe: Any, scorer: Scorers, scale: float, decode: Any = "vae", **options: Any) -> Guide:
    """A guide for a pipeline that nothing guides any more."""
    if getattr(pipe, "scheduler", None) is None:
        raise TypeError(f"pipe is a diffusers pipeline with a scheduler, got {type(pipe).__name__}")
    _release(pipe)
    return Guide(weighted(scorer), Decoder(pipe, decode), scale=scale, **options)


def _tell(guide: Guide, call: dict[str, Any]) -> None:
    """What a guide would have heard, had it been there when the run began.

    Only packed latents need the size, and it is pixels there (SD 3 goes on with that of latents).
    """
    if None not in (size := (call["height"], call["width"])):
        guide.decode.size = size
    if guide.prompts is None:
        guide.prompts = texts(call["prompt"])


@contextmanager
def _guided(pipe: Any, guide: Guide, through_model: bool = False) -> Iterator[None]:
    """Within the context, the guide is in the pipeline's loop, and knows its runs' size and prompts."""
    how = guide.decode.how
    module = pipe.vae if how == "vae" else how
    with ExitStack() as stack:
        if isinstance(module, nn.Module):
            check_decoder(module)
        if how == "vae":  # a tiny autoencoder keeps little, and time is what it is for
            stack.enter_context(checkpointed(module))
        stack.enter_context(guide.decode.watching())
        if guide.prompts is None:
            stack.enter_context(
                watched_prompts(pipe, lambda found: setattr(guide, "prompts", found))
            )
        tapped = (
            tap_through(pipe, guide) if through_model else tap(pipe.scheduler, guide, guide.start)
        )
        stack.enter_context(tapped)
        yield


def check_options(options: Iterable[str], of: Callable[..., Any]) -> None:
    """Raises TypeError, with the nearest one, for what is no option of `reward_guidance`, or the callback."""
    own = set(inspect.signature(of).parameters) - {"options"}
    known = sorted(own | set(inspect.signature(Guide).parameters) - INNER)
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            there = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            raise TypeError(f"{of.__name__}() has no option {name}: {there}")


def _release(pipe: Any) -> None:
    """Ends the guidance of a run that broke off, also by a scheduler that is another by now."""
    release(pipe.scheduler)
    if ARMED in vars(pipe):
        vars(pipe)[ARMED].disarm()


class RewardCallback:
    """Reward guidance in the form that diffusers' users know.

        pipe(prompt, callback_on_step_end=RewardCallback(scorer, scale=0.1, pipe=pipe),
             callback_on_step_end_tensor_inputs=["latents"])

    It disarms the pipeline after the last step; after a run that broke off, when the next one begins. A
    callback is called for the first time when the first step is over, so that step is guided only in
    the run that it was armed for before, by `pipe`. Height, width and prompts it knows either way.
    Pipelines that share a VAE or a scheduler are guided one after the other.

    Args:
        pipe: arms it for its next run, first step included.
        scorer, scale, options: as `reward_guidance` takes them, but for `through_model`.

    Raises:
        ValueError: `through_model`; or a run of another pipeline than it was armed for.
        RuntimeError: in the next run, which is not guided then, where that one never began; without
            `pipe`, where it is not the pipeline's own call that calls it.
        NotImplementedError, TypeError: as `reward_guidance`.
    """

    def __init__(self, scorer: Scorers, scale: float = 0.1, *, pipe: Any = None, **options: Any):
        if options.pop("through_model", False):
            raise ValueError("through_model=True takes the context: with reward_guidance(...)")
        check_options(options, RewardCallback)
        self._arguments = dict(scorer=scorer, scale=scale, **options)
        self._open: ExitStack | None = None
        self._pipe: Any = None  # that is armed
        self._running = self._called = False
        self.record = Record()
        if pipe is not None:
            self._arm(pipe)

    def __call__(self, pipe: Any, i: int, t: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
        if self._open is not None and pipe is not self._pipe:
            self.disarm()
            raise ValueError(
                f"this callback was armed for another {type(pipe).__name__}: give it the pipe= that runs"
            )
        if i == 0 and self._open is None:
            self._arm(pipe, running_call(pipe))
            self._running = True
        self._called = True
        if i >= pipe.num_timesteps - 1:
            self.disarm()
        return kwargs

    def _arm(self, pipe: Any, call: dict[str, Any] | None = None) -> None:
        """For the next run, or for the rest of one whose call is given."""
        guide = _guide(pipe, **self._arguments)
        with ExitStack() as stack:
            stack.enter_context(_guided(pipe, guide))
            stack.enter_context(before(pipe, beginning(pipe), self._began))
            self._open = stack.pop_all()
        if call is not None:
            _tell(guide, call)
        self.record = guide.record
        self._pipe, self._running, self._called = pipe, False, False
        vars(pipe)[ARMED] = self
        held = getattr(pipe.scheduler, HELD)
        held.release, held.after = self.disarm, self._stepped

    def _began(self) -> None:
        """The first run is the one it was armed for; before a second one, that has broken off."""
        if self._running:
            self.disarm()
        self._running = True

    def _stepped(self, index: int, sample: Any) -> None:
        """Two steps without a call in between: this run is another, begun as if it were the first."""
        if index > 1 and not self._called:
            self.disarm()
            raise RuntimeError(
                "this pipeline was armed for a run that never began: call it again, without guidance, or "
                "with a new RewardCallback"
            )

    def disarm(self) -> None:
        """Makes the pipeline itself again; done by itself at the end of a run."""
        if self._open is not None:
            vars(self._pipe).pop(ARMED, None)
            self._open.close()
            self._open = self._pipe = None
