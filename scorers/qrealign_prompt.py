"""What Q-ReAlign is asked: questions and stems per task, rendered by the checkpoint's own template.

Three styles, because the published sources differ:

- "card": the model card literally. The template decides what follows `assistant`; where it opens a
  think block by default, the stem stands inside that block.
- "closed_think": the same with `enable_thinking=False`: the think block is closed, as in training.
- "upstream": as the repository scored its tables: its own wording, the think block closed, and the
  stem tokenised apart, with a space before it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .messages import naming
from .values import TEXT, read_json, value

LEVELS = ("excellent", "good", "fair", "poor", "bad")
WEIGHTS = (1.0, 0.75, 0.5, 0.25, 0.0)

STEMS = {
    "quality": "The quality of the image is",
    "aesthetics": "The aesthetics of the image is",
    "video": "The quality of the video is",
}
TASKS = tuple(STEMS)
CARD_QUESTIONS = {
    "quality": "How would you rate the quality of this image?",
    "aesthetics": "How would you rate the aesthetics of this image?",
    "video": "How would you rate the quality of this video?",
}
UPSTREAM_QUESTIONS = {
    "quality": "Can you rate the quality of this picture?",
    "aesthetics": "How is the aesthetics of this image?",
    "video": "Can you rate the quality of this video?",
}
STYLES = ("card", "closed_think", "upstream")


@dataclass(frozen=True)
class Prompt:
    """Token ids around the pictures: `before`, then the pictures with `between`, then `after`."""

    before: tuple[int, ...]
    between: tuple[int, ...]
    after: tuple[int, ...]
    text: str  # as rendered, one placeholder a picture

    @property
    def words(self) -> set[int]:
        return {*self.before, *self.between, *self.after}

    def texts(self, pictures: int) -> list[tuple[int, ...]]:
        """The texts around so many pictures: one more than there are pictures."""
        return [self.before, *[self.between] * (pictures - 1), self.after]


def make_prompt(
    folder: Path, tokenizer: Any, image_id: int, task: str, style: str, pictures: int = 1
) -> Prompt:
    """The prompt of a task about so many pictures.

    Raises:
        ValueError: when the template does not put in one placeholder a picture, alike.
    """
    template, source = chat_template(folder, tokenizer)
    question = (UPSTREAM_QUESTIONS if style == "upstream" else CARD_QUESTIONS)[task]
    content = [{"type": "image"}] * pictures + [{"type": "text", "text": question}]
    with naming(source):
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=template,
            tokenize=False,
            add_generation_prompt=True,
            **({} if style == "card" else {"enable_thinking": False}),
        )
    if style == "upstream":
        stem = f" {STEMS[task]}"
        ids = tokenizer(text).input_ids + tokenizer(stem, add_special_tokens=False).input_ids
    else:
        stem = STEMS[task]
        ids = tokenizer(text + stem).input_ids
    runs = split(ids, image_id)
    if len(runs) != pictures + 1 or len(set(runs[1:-1])) > 1:
        raise ValueError(
            f"the chat template in {folder} renders {pictures} pictures as {len(runs) - 1} "
            "placeholders, or with unequal texts between them"
        )
    return Prompt(runs[0], runs[1] if pictures > 1 else (), runs[-1], text + stem)


def chat_template(folder: Path, tokenizer: Any) -> tuple[str | None, Path]:
    """The template to give, None for the tokenizer's own; and the file that it is in.

    chat_template.json comes first: a processor prefers it to the tokenizer's.

    Raises:
        ValueError: there is none.
    """
    legacy = folder / "chat_template.json"
    if legacy.exists() and (values := read_json(legacy)).get("chat_template"):
        return value(values, "chat_template", TEXT, legacy), legacy
    if not tokenizer.chat_template:
        raise ValueError(f"no chat template in {folder}")
    own = folder / "chat_template.jinja"
    return None, own if own.exists() else folder / "tokenizer_config.json"


def level_ids(tokenizer: Any) -> list[int]:
    """The token of each level word with a space before it.

    Raises:
        ValueError: when a word is not one token, or two words share theirs.
    """
    ids = [tokenizer(f" {word}", add_special_tokens=False).input_ids for word in LEVELS]
    if any(len(word) != 1 for word in ids) or len({word[0] for word in ids}) < len(LEVELS):
        found = ", ".join(f"{word!r} {tokens}" for word, tokens in zip(LEVELS, ids, strict=True))
        raise ValueError(f"the level words must be one token each, all different, got {found}")
    return [word[0] for word in ids]


def split(ids: Iterable[int], separator: int) -> list[tuple[int, ...]]:
    """The runs of ids around each separator, empty ones included."""
    runs: list[list[int]] = [[]]
    for i in ids:
        if i == separator:
            runs.append([])
        else:
            runs[-1].append(i)
    return [tuple(run) for run in runs]


def expected_level(logits: Tensor) -> Tensor:
    """The mean of the levels' weights under their probabilities: [..., 5] -> [...]."""
    # Python's numbers need no copy to the device.
    return sum(w * p for w, p in zip(WEIGHTS, logits.softmax(-1).unbind(-1), strict=True))


def prompts_digest(prompts: Iterable[Prompt]) -> str:
    """16 hex digits that stand for the token ids of prompts."""
    ids = json.dumps([[p.before, p.between, p.after] for p in prompts])
    return hashlib.sha256(ids.encode()).hexdigest()[:16]
