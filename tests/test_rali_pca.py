"""Real scikit-learn pickles are read; hostile and damaged ones are refused and never run."""

import io
import os
import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.decomposition import PCA, IncrementalPCA

from tastemaker.scorers.rali_pca import read_pca


@pytest.fixture(scope="module", params=[PCA, IncrementalPCA])
def fitted(request):
    return request.param(5).fit(np.random.default_rng(0).normal(1, 2, (60, 12)).astype(np.float32))


def same(path, fitted):
    read = read_pca(path)
    np.testing.assert_array_equal(read["mean_"], fitted.mean_)
    np.testing.assert_array_equal(read["components_"], fitted.components_)
    assert ("var_" in read) == hasattr(fitted, "var_")
    if "var_" in read:
        np.testing.assert_array_equal(read["var_"], fitted.var_)


@pytest.mark.parametrize("compress", [0, 3, ("zlib", 9), "gzip", "bz2", "lzma", "xz"])
def test_joblib(fitted, compress, tmp_path):
    joblib.dump(fitted, tmp_path / "pca.pkl", compress=compress)
    same(tmp_path / "pca.pkl", fitted)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_pickle_and_joblib_protocols(fitted, protocol, tmp_path):
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(fitted, protocol))
    same(tmp_path / "a.pkl", fitted)
    joblib.dump(fitted, tmp_path / "b.pkl", protocol=protocol)
    same(tmp_path / "b.pkl", fitted)


def test_needs_neither_sklearn_nor_joblib(fitted, tmp_path):
    joblib.dump(fitted, tmp_path / "pca.pkl")
    read_pca(tmp_path / "pca.pkl")
    from tastemaker.scorers import rali_pca

    code = "import runpy, sys, pathlib; m = runpy.run_path(sys.argv[1]);"
    code += "m['read_pca'](pathlib.Path(sys.argv[2]));"
    code += "assert not {'sklearn', 'joblib'} & sys.modules.keys()"
    subprocess.run(
        [sys.executable, "-c", code, rali_pca.__file__, tmp_path / "pca.pkl"], check=True
    )


class Hostile:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


@pytest.mark.parametrize("compress", [0, 3])
def test_a_hostile_pickle_is_refused_and_never_run(compress, fitted, tmp_path):
    marker = tmp_path / "executed"
    attacks = [
        Hostile(os.system, f"touch {marker}"),
        Hostile(eval, f"open({str(marker)!r}, 'w')"),
        Hostile(exec, f"open({str(marker)!r}, 'w')"),
        Hostile(open, str(marker), "w"),
        Hostile(getattr, "text", "upper"),
        Hostile(subprocess.Popen, ["touch", str(marker)]),
        Hostile(joblib.load, str(marker)),
        Hostile(np.load, str(marker)),
    ]
    for i, attack in enumerate(attacks):
        for victim in (attack, {"pca": attack}, _with(fitted, attack)):
            path = tmp_path / f"{i}.pkl"
            joblib.dump(victim, path, compress=compress)
            with pytest.raises(
                ValueError, match=r"not a PCA that may be read: .*\.pkl \(it asks for"
            ):
                read_pca(path)
    assert not marker.exists()


def _with(fitted, attack):
    import copy

    infected = copy.copy(fitted)
    infected.random_state = attack
    return infected


def test_arrays_of_objects_are_refused(fitted, tmp_path):
    joblib.dump(_with(fitted, np.array([print, 1], dtype=object)), tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="Python objects|asks for"):
        read_pca(tmp_path / "a.pkl")


def _text(text: str) -> bytes:
    return b"X" + len(text).to_bytes(4, "little") + text.encode()


# dtype("O8") whose state says that it holds no objects, so that bytes would be taken for pointers.
LYING_DTYPE = b"cnumpy\ndtype\n" + _text("O8") + b"\x89\x88\x87R(K\x03" + _text("|")
LYING_DTYPE += b"NNN" + b"J\xff\xff\xff\xff" * 2 + b"K\x00tb"
POINTERS = b"C\x20" + b"A" * 32
CRASHES = {
    "state": b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
    b"(K\x01K\x04\x85" + LYING_DTYPE + b"\x89" + POINTERS + b"tb",
    "buffer": b"cnumpy.core.numeric\n_frombuffer\n("
    + (POINTERS + LYING_DTYPE + b"K\x04\x85" + _text("C") + b"tR"),
    "scalar": b"cnumpy.core.multiarray\nscalar\n" + LYING_DTYPE + b"C\x08AAAAAAAA\x86R",
}


@pytest.mark.parametrize("how", CRASHES)
def test_objects_disguised_as_numbers_are_refused(how, tmp_path):
    """NumPy's own unpickling follows the made-up pointers and takes the process down."""
    mean, components = (_text(name) + CRASHES[how] for name in ("mean_", "components_"))
    pca = b"\x80\x03csklearn.decomposition._pca\nPCA\n)\x81}(" + mean + components + b"ub."
    (tmp_path / "pca.pkl").write_bytes(pca)
    with pytest.raises(ValueError, match="array of Python objects"):
        read_pca(tmp_path / "pca.pkl")


def _build(target: bytes, state: bytes) -> bytes:
    return b"\x80\x03" + target + state + b"b."


@pytest.mark.parametrize(
    "pickled, reason",
    [
        (_build(b"cnumpy\ndtype\n", b"N}" + _text("dtype") + b"K\x01s\x86"), "a state for type"),
        (_build(b"c_codecs\nencode\n", b"}" + _text("a") + b"K\x01s"), "a state for function"),
        (
            _build(b"cnumpy\ndtype\n" + _text("f8") + b"\x85R", b"K\x03" + _text("x") + b"\x86"),
            "order",
        ),
        (b"\x80\x03cnumpy\ndtype\n" + _text("V9") + b"\x85R.", "an array of 'V9'"),
        (b"\x80\x03cnumpy\ndtype\n" + _text("f8,O") + b"\x85R.", "Python objects"),
    ],
)
def test_states_and_types_that_no_pca_has_are_refused(pickled, reason, tmp_path):
    (tmp_path / "pca.pkl").write_bytes(pickled)
    with pytest.raises(ValueError, match=rf"may be read: .*{reason}"):
        read_pca(tmp_path / "pca.pkl")


@pytest.mark.parametrize("shape", [(3,), (5,), (-4,), (1 << 62, 1 << 62), (2.0, 2), 4])
def test_an_array_that_is_not_its_bytes_is_refused(shape, tmp_path):
    array = np.arange(4.0)
    state = (1, shape, array.dtype, False, array.tobytes())
    hostile = Hostile(array.__reduce__()[0], np.ndarray, (0,), b"b")
    hostile.__class__ = type("H", (Hostile,), {"__reduce__": lambda s: (s.call, s.args, state)})
    (tmp_path / "pca.pkl").write_bytes(pickle.dumps(hostile))
    with pytest.raises(ValueError, match="an array of shape"):
        read_pca(tmp_path / "pca.pkl")


@pytest.mark.parametrize("dtype", ["<f4", ">f8", ">i2", "u1", "?", "<f2"])
@pytest.mark.parametrize("protocol", [2, 5])
def test_numbers_of_every_kind(dtype, protocol, tmp_path):
    pca = PCA(2).fit(np.random.default_rng(0).normal(size=(9, 4)))
    pca.mean_ = np.array([1, 0, 1, 0]).astype(dtype)
    pca.components_ = np.asfortranarray(np.arange(8).reshape(2, 4)).astype(dtype)
    (tmp_path / "pca.pkl").write_bytes(pickle.dumps(pca, protocol))
    same(tmp_path / "pca.pkl", pca)


@pytest.mark.parametrize("keep", [0, 1, 30, 0.5, 0.95])
@pytest.mark.parametrize("compress", [0, 3, "xz"])
def test_truncated(fitted, compress, keep, tmp_path):
    joblib.dump(fitted, tmp_path / "pca.pkl", compress=compress)
    whole = (tmp_path / "pca.pkl").read_bytes()
    (tmp_path / "pca.pkl").write_bytes(
        whole[: keep if isinstance(keep, int) else int(len(whole) * keep)]
    )
    with pytest.raises(ValueError, match=r"pca\.pkl") as caught:
        read_pca(tmp_path / "pca.pkl")
    assert "\n" not in str(caught.value)


def test_other_objects_are_named(tmp_path):
    for value in (PCA(3), {"mean_": np.ones(3)}, [1, 2], np.ones(4)):
        joblib.dump(value, tmp_path / "a.pkl")
        with pytest.raises(ValueError, match=r"a\.pkl"):
            read_pca(tmp_path / "a.pkl")


def test_a_bomb_is_not_unpacked(tmp_path, monkeypatch):
    from tastemaker.scorers import rali_pca

    monkeypatch.setattr(rali_pca, "MAX_BYTES", 1000)
    buffer = io.BytesIO()
    joblib.dump(np.zeros(100_000), buffer, compress=("zlib", 9))
    (tmp_path / "a.pkl").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match="when unpacked"):
        read_pca(tmp_path / "a.pkl")


def test_a_mean_that_is_not_finite_is_loud(tmp_path):
    pca = PCA(2).fit(np.random.default_rng(0).normal(size=(9, 4)))
    pca.mean_[1] = np.nan
    joblib.dump(pca, tmp_path / "a.pkl")
    with pytest.raises(ValueError, match="not finite"):
        read_pca(tmp_path / "a.pkl")
