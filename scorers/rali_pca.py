"""Reads the one thing RALI keeps in a pickle, a fitted PCA, without running what the pickle asks for.

`pca.pkl` is a scikit-learn PCA or IncrementalPCA written by joblib or by pickle. The unpickler here
admits a closed list of names: for scikit-learn and joblib classes it puts stand-ins that only collect
attributes, so neither package is needed; of NumPy it lets through what rebuilds plain arrays. Any
other name, and any array of Python objects, is an error.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import pickle
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


class _Pca:
    """Stands in for the fitted estimator: whatever was stored becomes an attribute, nothing else."""


class _JoblibArray:
    """Stands in for joblib's NumpyArrayWrapper: the array's bytes follow it in the file."""

    def read(self, file: io.BufferedIOBase) -> np.ndarray:
        dtype = np.dtype(self.dtype)
        if dtype.hasobject:
            raise ValueError("an array of Python objects")
        if getattr(self, "numpy_array_alignment_bytes", None):
            file.read(file.read(1)[0])  # padding, and its length before it
        count = int(np.prod(self.shape, dtype=np.int64))
        if not 0 <= count * dtype.itemsize <= MAX_BYTES:
            raise ValueError(f"an array of shape {self.shape}")
        raw = file.read(count * dtype.itemsize)
        array = np.frombuffer(raw, dtype=dtype, count=count)
        if self.order == "F":
            return array.reshape(tuple(self.shape)[::-1]).transpose()
        return array.reshape(self.shape)


def _admitted() -> dict[tuple[str, str], Any]:
    """(module, name) to what takes its place. Nothing else is ever looked up or imported."""
    core = getattr(np, "_core", None) or np.core
    names: dict[tuple[str, str], Any] = {
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
        ("joblib.numpy_pickle", "NumpyArrayWrapper"): _JoblibArray,
        ("_codecs", "encode"): _encode_latin1,
    }
    for module in ("numpy.core", "numpy._core"):  # before and since NumPy 2
        names[f"{module}.multiarray", "_reconstruct"] = core.multiarray._reconstruct
        names[f"{module}.multiarray", "scalar"] = core.multiarray.scalar
        names[f"{module}.numeric", "_frombuffer"] = core.numeric._frombuffer
    for module, name in (
        ("sklearn.decomposition._pca", "PCA"),
        ("sklearn.decomposition.pca", "PCA"),
        ("sklearn.decomposition._incremental_pca", "IncrementalPCA"),
        ("sklearn.decomposition.incremental_pca", "IncrementalPCA"),
    ):
        names[module, name] = _Pca
    return names


def _encode_latin1(text: str, encoding: str) -> bytes:
    # How protocols before 3 write bytes.
    if encoding != "latin1":
        raise ValueError(f"text in {encoding}")
    return text.encode("latin1")


class _Unpickler(pickle._Unpickler):
    """The pure-Python unpickler: joblib's arrays lie between its opcodes, so `load_build` is hooked."""

    dispatch = dict(pickle._Unpickler.dispatch)

    def __init__(self, file: io.BufferedIOBase):
        super().__init__(file, encoding="ASCII")
        self._file, self._names = file, _admitted()

    def find_class(self, module: str, name: str) -> Any:
        try:
            return self._names[module, name]
        except KeyError:
            raise ValueError(f"it asks for {module}.{name}") from None

    def load_build(self) -> None:
        super().load_build()
        if isinstance(self.stack[-1], _JoblibArray):
            self.stack[-1] = self.stack[-1].read(self._file)

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
    state = vars(fitted)
    for name in ("mean_", "components_"):
        if not isinstance(state.get(name), np.ndarray) or not state[name].size:
            raise ValueError(f"{path} has no {name}: the PCA was not fitted")
    wanted = ("mean_", "components_", "var_")
    arrays = {k: np.asarray(state[k], dtype=np.float64) for k in wanted if k in state}
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
