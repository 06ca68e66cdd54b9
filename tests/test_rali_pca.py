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
