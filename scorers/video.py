"""Videos as a few uniform frames, as Q-Align judges them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .decode import of_the_system
from .messages import needs, one_line

VIDEO_SUFFIXES = (".mp4", ".mkv", ".mov", ".avi", ".webm", ".flv", ".m4v")


def is_video(path: str | Path) -> bool:
    """Whether the file's suffix is that of a video."""
    return Path(path).suffix.lower() in VIDEO_SUFFIXES


def uniform_indices(total: int, count: int | None) -> list[int]:
    """`count` indices spread over `total` frames, first and last included; all of them for None.

    Fewer frames than `count` repeat. Halves round to the even index, as upstream rounds.
    """
    if count is None:
        return list(range(total))
    return [round(float(i)) for i in np.linspace(0, total - 1, count)]


def capped_size(height: int, width: int, max_side: int | None) -> tuple[int, int]:
    """The size whose longer side is at most `max_side`, sides rounded down, at least one pixel."""
    longer = max(height, width)
    if max_side is None or longer <= max_side:
        return height, width
    scale = max_side / longer
    return max(1, int(height * scale)), max(1, int(width * scale))


def read_video(path: str | Path, frames: int = 8) -> Tensor:
    """`frames` uniform frames of a video file, upright: uint8 [frames, 3, H, W].

    The file is decoded from start to end, one frame at a time, and only the wanted ones are kept.
    Its own count of frames is not trusted: where decoding yields another, it is done again.

    Raises:
        ImportError: without PyAV.
        FileNotFoundError, ValueError: no such file; no video in it, no frames, damaged or cut off.
        OSError, but no FileNotFoundError: the file could not be read just now; it may be whole.
    """
    if frames < 1:
        raise ValueError(f"frames must be at least 1, got {frames}")
    av, path = _av(), Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no such file: {path}")
    try:
        total = _count(av, path)
        kept, found = _decode(av, path, uniform_indices(total, frames))
        if found != total and found:
            kept, found = _decode(av, path, uniform_indices(found, frames))
    except (av.error.FFmpegError, EOFError) as error:
        if of_the_system(error):
            raise OSError(f"cannot be read now: {path} ({one_line(error)})") from None
        raise ValueError(f"damaged video: {path} ({one_line(error)})") from None
    if not found:
        raise ValueError(f"a video without frames: {path}")
    return torch.stack(kept)


def _av():
    try:
        import av
    except ImportError:
        raise needs("videos need PyAV", "av", "video") from None
    if not hasattr(av.VideoFrame, "rotation"):
        raise needs(f"PyAV {av.__version__} is too old", "av", "video")
    return av


def _count(av, path: Path) -> int:
    """Frames in a file, as its packets tell without being decoded."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"no video in it: {path}")
        stream = container.streams.video[0]
        packets, end = 0, 0
        for packet in container.demux(stream):
            packets += packet.size > 0
            end = max(end, (packet.pts or 0) + (packet.duration or 0))
        seconds = float(end * stream.time_base)
        # A file with sound may rightly be longer than its pictures.
        stated = (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0
        if packets < stream.frames or seconds < 0.9 * stated:
            raise ValueError(f"a video that is cut off: {path}")
        return packets


def _decode(av, path: Path, wanted: list[int]) -> tuple[list[Tensor], int]:
    """The wanted frames, which may repeat, as uint8 [3, H, W]; and how many frames there are."""
    kept: dict[int, Tensor] = {}
    found, size = 0, {}
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        for frame in container.decode(stream):
            size = size or {"width": frame.width, "height": frame.height}
            if found in wanted:  # frames that change size are brought to the first one's
                pixels = frame.reformat(format="rgb24", **size).to_ndarray()
                upright = np.rot90(pixels, round(frame.rotation / 90))
                kept[found] = torch.from_numpy(upright.copy()).permute(2, 0, 1)
            found += 1
    return [kept[i] for i in wanted if i in kept], found
