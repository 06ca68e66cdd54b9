"""Reads the one thing RALI keeps in a pickle, a fitted PCA, without running what the pickle asks for.

`pca.pkl` is a scikit-learn PCA or IncrementalPCA written by joblib or by pickle. The unpickler here
admits a closed list of names and puts stand-ins of this file in the place of each, so no function of
NumPy, scikit-learn or joblib is within a pickle's reach: NumPy's own trust what a pickle says about
memory. Any other name, and anything but plain arrays of numbers, is an error.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import math
import pickle
import re
import zlib
from pathlib import Path
from typing import Any

import numpy as np

MAX_BYTES = 1 << 28  # unpacked; the real file has 3 MB
MAGIC = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
    b"]\x00": lzma.open,
}
NUMBERS = re.compile(r"[<>=|]?(b1|[iu][1248]|f[248])")


class _Pca:
    """Stands in for the fitted estimator: its state is kept, nothing else."""

    __slots__ = ("state",)

    def build(self, state: dict[str, Any]) -> None:
        self.state = dict(state)


class _Dtype:
    """Stands in for numpy.dtype: numbers of a fixed size, in a byte order that may come later."""

    __slots__ = ("dtype",)

    def __init__(self, name: str, align: bool = False, copy: bool = False):
        if not isinstance(name, str) or not NUMBERS.fullmatch(name):
            objects = isinstance(name, str) and "O" in name
            raise ValueError("an array of Python objects" if objects else f"an array of {name!r}")
        self.dtype = np.dtype(name)

    def build(self, state: tuple) -> None:
        # (version, byte order, ...): the rest is for objects and structures, and is not looked at.
        order = state[1]
        if order not in ("<", ">", "=", "|"):
            raise ValueError(f"a byte order {order!r}")
        self.dtype = self.dtype.newbyteorder(order)


class _Array:
    """Stands in for numpy.ndarray: built from its state, it holds the array."""

    __slots__ = ("array",)

    def build(self, state: tuple) -> None:
        _version, shape, dtype, fortran, raw = state
        self.array = _array(raw, dtype, shape, "F" if fortran else "C")


class _JoblibArray:
    """Stands in for joblib's NumpyArrayWrapper: the array's bytes follow it in the file."""

    __slots__ = ("array", "state")

    def build(self, state: dict[str, Any]) -> None:
        self.state = dict(state)

    def read(self, file: io.BufferedIOBase) -> None:
        shape, dtype = self.state["shape"], self.state["dtype"]
        if self.state.get("numpy_array_alignment_bytes"):
            file.read(file.read(1)[0])  # padding, and its length before it
        raw = file.read(_byte_count(dtype, shape))
        self.array = _array(raw, dtype, shape, self.state["order"])


STAND_INS = (_Pca, _Dtype, _Array, _JoblibArray)


def _byte_count(dtype: _Dtype, shape: tuple[int, ...]) -> int:
    if type(dtype) is not _Dtype:
        raise ValueError("an array without a type of numbers")
    if type(shape) is not tuple or not all(type(n) is int and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape!r}")
    count = math.prod(shape) * dtype.dtype.itemsize
    if count > MAX_BYTES:
        raise ValueError(f"an array of shape {shape}")
    return count


def _array(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
    """The array of `shape` whose bytes `raw` are, all of them and no more."""
    if not isinstance(raw, (bytes, bytearray)):
        raise ValueError("an array of Python objects")
    if len(raw) != _byte_count(dtype, shape):
        raise ValueError(f"an array of shape {shape} in {len(raw)} bytes")
    flat = np.frombuffer(bytes(raw), dtype=dtype.dtype)
    return flat.reshape(shape, order="F" if order == "F" else "C")


def _reconstruct(_kind: Any, _shape: Any, _type: Any) -> _Array:
    return _Array()  # empty until its state is built


def _frombuffer(raw: bytes, dtype: _Dtype, shape: tuple[int, ...], order: str) -> _Array:
    found = _Array()
    found.array = _array(raw, dtype, shape, order)
    return found


def _scalar(dtype: _Dtype, raw: bytes) -> float | int | bool:
    return _array(raw, dtype, (), "C").item()


def _encode_latin1(text: str, encoding: str) -> bytes:
    # How protocols before 3 write bytes.
    if encoding != "latin1":
        raise ValueError(f"text in {encoding}")
    return text.encode("latin1")


# (module, name) to what takes its place. Nothing else is ever looked up or imported.
ADMITTED: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,  # before NumPy 2
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy.core.numeric", "_frombuffer"): _frombuffer,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,  # since NumPy 2
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _frombuffer,
    ("joblib.numpy_pickle", "NumpyArrayWrapper"): _JoblibArray,
    ("_codecs", "encode"): _encode_latin1,
    ("sklearn.decomposition._pca", "PCA"): _Pca,
    ("sklearn.decomposition.pca", "PCA"): _Pca,
    ("sklearn.decomposition._incremental_pca", "IncrementalPCA"): _Pca,
    ("sklearn.decomposition.incremental_pca", "IncrementalPCA"): _Pca,
}


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler: joblib's arrays lie between its opcodes, so BUILD is our own."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file, encoding="ASCII")
        self._file = file

    def find_class(self, module: str, name: str) -> Any:
        try:
            return ADMITTED[module, name]
        except KeyError:
            raise ValueError(f"it asks for {module}.{name}") from None

    def load_build(self) -> None:
        # pickle's own would set attributes of anything, of the functions and classes here too.
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) not in STAND_INS:
            raise ValueError(f"a state for {type(target).__name__}")
        target.build(state)
        if type(target) is _JoblibArray:
            target.read(self._file)

    dispatch[pickle.BUILD[0]] = load_build


def read_pca(path: Path) -> dict[str, np.ndarray]:
    """The arrays `mean_`, `components_` and, where the estimator has it, `var_`.

    Raises:
        ValueError: naming the file, when it is damaged, is no fitted PCA, or asks for anything that
            a PCA does not need.
    """
    try:
        fitted = _Unpickler(io.BytesIO(_unpacked(path))).load()
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ValueError(f"not a PCA that may be read: {path} ({reason[:200]})") from None
    if not isinstance(fitted, _Pca):
        raise ValueError(f"not a PCA: {path}")
    state = getattr(fitted, "state", {})
    found = {k: getattr(state.get(k), "array", None) for k in ("mean_", "components_", "var_")}
    arrays = {k: np.array(v, dtype=np.float64) for k, v in found.items() if v is not None}
    for name in ("mean_", "components_"):
        if name not in arrays or not arrays[name].size:
            raise ValueError(f"{path} has no {name}: the PCA was not fitted")
    if not all(np.isfinite(array).all() for array in arrays.values()):
        raise ValueError(f"{path} has values that are not finite")
    return arrays


def _unpacked(path: Path) -> bytes:
    """The file's bytes, decompressed if joblib compressed them; at most `MAX_BYTES`."""
    packed = path.read_bytes()
    opener = next((o for magic, o in MAGIC.items() if packed.startswith(magic)), None)
    if opener:
        data = opener(io.BytesIO(packed)).read(MAX_BYTES + 1)
    elif packed[:1] == b"\x78":  # zlib; a pickle starts with 0x80
        data = zlib.decompressobj().decompress(packed, MAX_BYTES + 1)
    else:
        data = packed
    if len(data) > MAX_BYTES:
        raise ValueError(f"over {MAX_BYTES} bytes when unpacked")
    return data
