"""Qwen3.5-VL as a reader: pictures and texts in, the hidden state after the last word out.

A text around pictures is a list of runs of token ids, one more than there are pictures. Everything
that depends only on the words or on a picture's size is kept from one call to the next.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from .qwen_text import TextTower
from .qwen_vision import VisionTower

Text = tuple[int, ...]  # token ids
Grid = tuple[int, int]  # rows and columns of a picture's tokens


class Reader(nn.Module):
    """Both towers and the embedding's rows of the words that will be read."""

    def __init__(
        self, visual: VisionTower, language_model: TextTower, words: list[int], embedding: Tensor
    ):
        super().__init__()
        self.visual, self.language_model = visual, language_model
        self.embedding = nn.Parameter(embedding)  # [len(words), D]
        self._row = {word: i for i, word in enumerate(words)}
        self._grids, self._texts = Recent(8), Recent(32)

    def see(self, x: Tensor) -> tuple[Tensor, Grid]:
        """Model input [B, 3, h, w] in [0, 1] to tokens [B, n, D], and their grid."""
        patches = x.shape[2] // self.visual.patch, x.shape[3] // self.visual.patch
        position, rope = self._grids(
            (patches, *self._kind()),
            lambda: (self.visual.position(patches), self.visual.rotary(patches)),
        )
        rows, columns = (side // self.visual.merge for side in patches)
        return self.visual(x, position, rope), (rows, columns)

    def read(self, pictures: Tensor, grid: Grid, texts: list[Text]) -> Tensor:
        """Pictures' tokens [B, P, n, D] and P + 1 texts around them to hidden states [B, D]."""
        batch, count = pictures.shape[:2]
        parts = [self._embedded(texts[0], batch)]
        for i in range(count):
            parts += [pictures[:, i], self._embedded(texts[i + 1], batch)]
        rope = self._rope([len(text) for text in texts], grid)
        return self.language_model(torch.cat(parts, 1), rope)[0]

    def read_forked(self, picture: Tensor, grid: Grid, before: Text, after: list[Text]) -> Tensor:
        """A picture's tokens [B, n, D], a text before and T texts after it to hidden states [B, T, D].

        The picture is read once; the texts, as one batch, go on from copies of the state after it.
        Shorter ones are padded on the right, where causality keeps the padding from being seen.
        """
        batch, count, lengths = len(picture), len(after), [len(text) for text in after]
        cos, sin = self._rope([len(before), max(lengths)], grid)
        seen = len(before) + picture.shape[1]
        prefix = torch.cat([self._embedded(before, batch), picture], 1)
        _, states = self.language_model(prefix, (cos[:seen], sin[:seen]), keep=True)
        past = [tuple(part.repeat_interleave(count, 0) for part in state) for state in states]
        padded = [text + text[:1] * (max(lengths) - len(text)) for text in after]
        x = torch.cat([self._embedded(text, 1) for text in padded]).repeat(batch, 1, 1)
        last = self._texts(
            ("last", *lengths, *self._kind()),
            lambda: torch.tensor(lengths, device=picture.device) - 1,
        )
        hidden, _ = self.language_model(x, (cos[seen:], sin[seen:]), past, last.repeat(batch))
        return hidden.unflatten(0, (batch, count))

    @torch.no_grad()
    def fork_error(self, before: Text, after: list[Text]) -> float:
        """How far `read_forked` is from reading each text in full, in units of what another picture
        would change, on two random pictures.

        Rounding gives under 1e-4 in float32 and some percent in bfloat16. A kernel that drops the
        state it is given raises no error; it shows here as about 1.
        """
        grid = (6, 6)  # with the texts, more tokens than one chunk of the gated delta rule
        shape = (2, 36, self.embedding.shape[1])
        noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
        pictures = noise.to(self.embedding) * self.embedding.std()
        full = [self.read(pictures[:, None], grid, [before, text]) for text in after]
        full = torch.stack(full, 1).float()
        forked = self.read_forked(pictures, grid, before, after).float()
        return ((forked - full).norm() / (full - full.flip(0)).norm()).item()

    def _kind(self) -> tuple[torch.device, torch.dtype]:
        return self.embedding.device, self.embedding.dtype

    def _embedded(self, text: Text, batch: int) -> Tensor:
        """[batch, L, D]"""
        rows = [self._row[word] for word in text]
        words = self._texts((text, *self._kind()), lambda: self.embedding[rows].detach())
        return words.expand(batch, -1, -1)

    def _rope(self, lengths: list[int], grid: Grid) -> tuple[Tensor, Tensor]:
        return self._texts(
            (*lengths, grid, *self._kind()),
            lambda: self.language_model.rotary(positions(lengths, grid), self.embedding.device),
        )

    def _apply(self, fn: Callable, recurse: bool = True) -> Reader:
        self._grids.clear()  # what was kept lies on the old device
        self._texts.clear()
        return super()._apply(fn, recurse)


class Recent(OrderedDict):
    """The last few results by key. They are made as ordinary tensors, which autograd may save even
    when inference mode was on at the first call."""

    def __init__(self, size: int = 8):
        super().__init__()
        self.size = size

    def __call__(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key in self:
            self.move_to_end(key)
            return self[key]
        with torch.inference_mode(False), torch.no_grad():
            made = self[key] = make()
        if len(self) > self.size:
            self.popitem(last=False)
        return made


def positions(lengths: list[int], grid: Grid) -> Tensor:
    """Positions [3, S] (time, row, column) of texts with a picture of one grid between each two.

    Words count on in all three. A picture stands still in time and counts its rows and columns; the
    next word comes after the larger of the two.
    """
    rows, columns = torch.meshgrid(*(torch.arange(n) for n in grid), indexing="ij")
    picture = torch.stack([torch.zeros_like(rows), rows, columns]).flatten(1)
    parts, start = [torch.arange(lengths[0]).expand(3, -1)], lengths[0]
    for length in lengths[1:]:
        parts.append(picture + start)
        start += max(grid)
        parts.append(torch.arange(start, start + length).expand(3, -1))
        start += length
    return torch.cat(parts, 1)
