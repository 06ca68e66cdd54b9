"""One picture from anywhere: path | PIL image | Tensor[3, H, W] -> Tensor[3, H, W] on the CPU, checked.

Files and PIL images become uint8 RGB, as the official recipes see them (`convert("RGB")`: alpha is
dropped, grey and palette are expanded, CMYK is converted), with three additions: EXIF orientation is
applied, 16-bit pictures are scaled rather than clipped, and the first frame stands for an animation.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from .messages import one_line

# Twice the size at which Pillow warns of a decompression bomb; Pillow itself refuses it too.
MAX_PIXELS = 178_956_970
# What Pillow's decoders, and its reading of EXIF, raise on truncated and damaged files.
DAMAGE = (
    OSError,
    ValueError,
    TypeError,
    AttributeError,
    ArithmeticError,  # OverflowError, ZeroDivisionError
    LookupError,  # IndexError, KeyError
    SyntaxError,
    EOFError,
    struct.error,
)
# What the system says of a position that a damaged file names, as in a seek before its begin.
_NONSENSE = (errno.EINVAL, errno.EOVERFLOW, errno.ERANGE, errno.EDOM)
_SPECIAL = {
    stat.S_IFIFO: "named pipe",
    stat.S_IFSOCK: "socket",
    stat.S_IFCHR: "device",
    stat.S_IFBLK: "device",
}


class Unsupported(ValueError):
    """A whole picture of a kind that is not read."""


def decode(item: Any) -> Tensor:
    """The picture as uint8 [3, H, W], or a floating-point tensor as it is.

    Raises:
        FileNotFoundError, ValueError, TypeError: in one line that names the file or the value.
        OSError, but no FileNotFoundError: the file could not be read just now; it may be whole.
    """
    if isinstance(item, Tensor):
        return check_tensor(item)
    if isinstance(item, Image.Image):
        return to_uint8(item)
    if isinstance(item, (str, os.PathLike)):
        return read_picture(Path(item))
    raise TypeError(f"an image is a path, a PIL image or a Tensor[3, H, W], not {_kind(item)}")


def read_picture(path: Path) -> Tensor:
    """The first frame of a picture file as uint8 [3, H, W], upright."""
    try:
        if kind := special(path):  # to open it could wait for ever
            raise Unsupported(f"a {kind}")
        with Image.open(path) as picture:
            return to_uint8(picture)
    except FileNotFoundError:
        raise FileNotFoundError(f"no such file: {path}") from None
    except IsADirectoryError:
        raise ValueError(f"a folder, not a picture: {path}") from None
    except UnidentifiedImageError:
        raise ValueError(f"not a picture: {path}") from None
    except Image.DecompressionBombError as error:
        raise ValueError(f"too large to open safely: {path} ({error})") from None
    except PermissionError:
        raise PermissionError(f"may not be read: {path}") from None
    except Unsupported as error:
        raise ValueError(f"unsupported picture: {path} ({error})") from None
    except DAMAGE as error:
        if of_the_system(error):
            raise OSError(f"cannot be read now: {path} ({error.strerror})") from None
        raise ValueError(f"damaged picture: {path} ({one_line(error)})") from None


def special(path: str | os.PathLike) -> str | None:
    """What a file is that is no regular one and no folder: "named pipe", "socket" or "device".

    Raises OSError where there is no file.
    """
    return _SPECIAL.get(stat.S_IFMT(os.stat(path).st_mode))


def of_the_system(error: BaseException) -> bool:
    """Whether it is the disk's, the network's or the system's, not that of the file's contents."""
    number = getattr(error, "errno", None)
    known = number in errno.errorcode and number not in _NONSENSE
    # PyAV's MemoryError has a number too.
    return known and isinstance(error, (OSError, MemoryError))


def to_uint8(picture: Image.Image) -> Tensor:
    """A PIL image as uint8 [3, H, W]."""
    if 0 in picture.size:
        raise ValueError(f"a picture without pixels: {picture.size[0]}x{picture.size[1]}")
    if picture.size[0] * picture.size[1] > MAX_PIXELS:
        raise Unsupported(
            f"a picture of {picture.size[0]}x{picture.size[1]} is over {MAX_PIXELS} px"
        )
    rgb = as_rgb(ImageOps.exif_transpose(picture))
    return torch.from_numpy(np.array(rgb)).permute(2, 0, 1).contiguous()


def as_rgb(picture: Image.Image) -> Image.Image:
    """RGB, 8 bits a channel. 16-bit grey is scaled by 1/257: Pillow's own conversion clips it."""
    if picture.mode.startswith("I"):
        wide = np.asarray(picture).astype(np.int64)
        if wide.min() < 0 or wide.max() > 65535:
            raise Unsupported(f"pixels outside 16 bits: {wide.min()} to {wide.max()}")
        picture = Image.fromarray(((wide + 128) // 257).astype(np.uint8))
    elif picture.mode == "F":
        raise Unsupported(
            "a floating-point picture has no defined white: convert it to 8 or 16 bits"
        )
    return picture.convert("RGB")


def check_tensor(image: Tensor) -> Tensor:
    """A uint8 or floating-point [3, H, W] tensor with values in [0, 1], as it is."""
    if image.ndim != 3 or image.shape[0] != 3:
        raise ValueError(f"an image tensor must be [3, H, W], got {list(image.shape)}")
    if 0 in image.shape:
        raise ValueError(f"an image without pixels: {list(image.shape)}")
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise TypeError(f"an image tensor must be uint8 or floating point, got {image.dtype}")
    low, high = image.detach().aminmax()
    if not (torch.isfinite(low) and torch.isfinite(high)):
        raise ValueError("an image tensor has NaN or infinite pixels")
    if low < 0 or high > 1:
        hint = ": divide by 255" if high > 2 else ": clamp(0, 1)"
        raise ValueError(f"pixels must be in [0, 1], got {low:.4g} to {high:.4g}{hint}")
    # Half-precision pixels are preprocessed in float32, in `score` as in the call.
    return image if image.dtype == torch.float64 else image.float()


def _kind(item: Any) -> str:
    return f"{type(item).__module__}.{type(item).__qualname__}".removeprefix("builtins.")
