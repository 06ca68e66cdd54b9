"""Order, grouping, errors and memory of `score` and `score_iter`."""

import gc
import threading
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from stub import Brightness

from tastemaker.scorers import stream


def flat(value: float, height: int = 4, width: int = 4) -> torch.Tensor:
    return torch.full((3, height, width), value)


@given(
    st.lists(st.tuples(st.floats(0, 1), st.integers(1, 5), st.integers(1, 5)), max_size=40),
    st.integers(1, 7),
)
@settings(max_examples=40, deadline=None)
def test_mixed_sizes_come_back_in_order(pictures, batch_size):
    scorer = Brightness()
    scores = scorer.score([flat(*picture) for picture in pictures], batch_size=batch_size)
    expected = torch.tensor([value for value, _, _ in pictures], dtype=torch.float32)
    torch.testing.assert_close(scores, expected, atol=1e-6, rtol=0)
    assert all(batch[0] <= batch_size for batch in scorer.batches)


def test_equal_model_inputs_share_a_batch_whatever_their_source_size():
    scorer = Brightness(size=(8, 8))
    scorer.score([flat(0.5, 4 + i, 9) for i in range(6)], batch_size=6)
    assert scorer.batches == [(6, 3, 8, 8)]


def test_empty():
    scores = Brightness().score([])
    assert scores.shape == (0,) and scores.dtype == torch.float32


def test_paths_pil_and_tensors_agree(tmp_path):
    picture = Image.effect_noise((20, 12), 80).convert("RGB")
    picture.save(tmp_path / "a.png")
    tensor = torch.tensor(list(picture.tobytes()), dtype=torch.uint8).reshape(12, 20, 3)
    tensor = tensor.permute(2, 0, 1)
    items = [tmp_path / "a.png", str(tmp_path / "a.png"), picture, tensor, tensor / 255]
    scores = Brightness().score(items)
    torch.testing.assert_close(scores, scores[:1].expand(5), atol=1e-6, rtol=0)


def test_errors_raise_or_become_nan(tmp_path):
    (tmp_path / "bad.png").write_text("no picture")
    items = [flat(0.1), tmp_path / "bad.png", flat(0.3)]
    with pytest.raises(ValueError, match=r"bad\.png"):
        Brightness().score(items)
    scores = Brightness().score(items, on_error="nan")
    assert torch.isnan(scores).tolist() == [False, True, False]
    errors = [scored.error for scored in Brightness().score_iter(items)]
    assert errors[0] is None and "bad.png" in errors[1] and errors[2] is None


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda s: s.score("picture.png"), TypeError, "one path"),
        (lambda s: s.score([], on_error="ignore"), ValueError, "on_error"),
        (lambda s: s.score([], batch_size=0), ValueError, "batch_size"),
    ],
)
def test_bad_arguments(call, error, message):
    with pytest.raises(error, match=message):
        call(Brightness())


class OutOfMemory(Brightness):
    """Raises what torch raises, for batches over `fits`."""

    def __init__(self, fits: int, error: Exception):
        super().__init__()
        self.fits, self.error = fits, error

    def score_prepared(self, x):
        if len(x) > self.fits:
            raise self.error
        return super().score_prepared(x)


CPU_MESSAGE = "[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error", [torch.cuda.OutOfMemoryError("CUDA out of memory"), RuntimeError(CPU_MESSAGE)]
)
def test_too_little_memory_halves_the_batch_and_goes_on(error):
    scorer = OutOfMemory(3, error)
    values = [i / 20 for i in range(20)]
    scores = scorer.score([flat(v) for v in values], batch_size=16)
    torch.testing.assert_close(scores, torch.tensor(values), atol=1e-6, rtol=0)
    assert {batch[0] for batch in scorer.batches} == {2}  # 16, 8 and 4 failed; 2 is kept


def test_memory_too_small_for_one_image_is_an_error():
    scorer = OutOfMemory(0, torch.cuda.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(torch.cuda.OutOfMemoryError):
        scorer.score([flat(0.5)])


class LargeFails(Brightness):
    """Pictures of over 30 pixels run out of memory, alone or with others."""

    def score_prepared(self, x):
        if x[0, 0].numel() > 30:
            raise RuntimeError(CPU_MESSAGE)
        return super().score_prepared(x)


def test_a_picture_too_large_for_the_memory_is_its_own_error_and_the_rest_goes_on():
    pictures = [flat(0.1), flat(0.2, 6, 6), flat(0.3), flat(0.4, 6, 6), flat(0.5, 5, 5)]
    results = list(LargeFails().score_iter(pictures, batch_size=2))
    assert [result.error for result in results] == [None, CPU_MESSAGE, None, CPU_MESSAGE, None]
    scores = LargeFails().score(pictures, on_error="nan")
    expected = torch.tensor([0.1, float("nan"), 0.3, float("nan"), 0.5])
    torch.testing.assert_close(scores, expected, equal_nan=True)
    with pytest.raises(RuntimeError, match="DefaultCPUAllocator"):
        LargeFails().score(pictures)


def test_all_too_large_for_the_memory():
    results = list(LargeFails().score_iter([flat(0.2, 6, 6)] * 3))
    assert [result.error for result in results] == [CPU_MESSAGE] * 3


class LittleMemory(Brightness):
    """Holds so many source pixels at a time; notes (pictures, pixels of the largest, whether it fit)."""

    def __init__(self, pixels: int, size: tuple[int, int] | None):
        super().__init__(size)
        self.pixels, self.tried = pixels, []

    def score_runs(self, runs):
        runs = list(runs)
        largest = max(run[0, 0].numel() for run in runs)
        fits = sum(run[:, 0].numel() for run in runs) <= self.pixels
        self.tried.append((sum(map(len, runs)), largest, fits))
        if not fits:
            raise RuntimeError(CPU_MESSAGE)
        return super().score_runs(runs)


sides = st.lists(st.sampled_from([2, 3, 4, 9, 12, 20]), min_size=1, max_size=60)
inputs = st.sampled_from([None, (5, 5)])  # native size, or one that all are brought to


@given(sides, st.integers(1, 16), inputs)
@settings(max_examples=100, deadline=None)
def test_large_pictures_never_shrink_the_batches_of_small_ones(sides, batch_size, size):
    """The memory holds a full batch of those of side 4, one picture of side 9 or 12, none of side 20."""
    scorer = LittleMemory(max(16 * batch_size, 144), size)
    batcher = stream._Batcher(scorer, batch_size, "nan")
    results = [
        r for b in batcher.score({i: flat(0.5, s, s) for i, s in enumerate(sides)}) for r in b
    ]
    assert sorted(i for i, *_ in results) == list(range(len(sides)))
    for i, score, error, passing in results:
        assert (error is not None) == passing == (sides[i] == 20)
        assert (score == pytest.approx(0.5)) != passing
    scorer.tried.clear()
    list(batcher.score({i: flat(0.5) for i in range(3 * batch_size)}))
    assert scorer.tried == [(batch_size, 16, True)] * 3


@given(st.lists(st.integers(1, 20), min_size=1, max_size=60), st.integers(2, 16), inputs)
@settings(max_examples=100, deadline=None)
def test_what_did_not_fit_is_not_tried_again(sides, batch_size, size):
    scorer = LittleMemory(400, size)
    batcher = stream._Batcher(scorer, batch_size, "nan")
    for _ in range(2):
        list(batcher.score({i: flat(0.5, s, s) for i, s in enumerate(sides)}))
    for n, (count, largest, fits) in enumerate(scorer.tried):
        if not fits:  # sides up to 20 fit alone
            later = scorer.tried[n + 1 :]
            assert all(c <= count // 2 for c, pixels, _ in later if pixels >= largest)
    assert len(batcher.limits) < batch_size


def test_ensembles_of_ensembles_have_sizes_too():
    assert stream._area((3, 4)) == 12
    assert stream._area(((3, 4), ((5, 6), (1, 1)))) == 43


@pytest.mark.parametrize("on_error", ["raise", "nan"])
def test_other_errors_are_not_taken_for_memory(on_error):
    with pytest.raises(RuntimeError, match="shape"):
        scorer = OutOfMemory(0, RuntimeError("shape mismatch"))
        scorer.score([flat(0.5)] * 4, on_error=on_error)


def test_each_batch_is_given_before_the_next_one_is_scored():
    """Whatever sizes lie in between."""
    scorer = Brightness()
    pictures = [flat(i / 20, 4 + i % 3, 4) for i in range(20)]
    for batches, given_now in enumerate(stream.score_batches(scorer, pictures, 4, "nan"), 1):
        assert len(scorer.batches) == batches and len(given_now) == scorer.batches[-1][0]
    assert batches > 4
    scorer = Brightness()
    for n, _ in enumerate(scorer.score_iter([flat(0.5)] * 20, batch_size=4)):
        assert len(scorer.batches) == n // 4 + 1


def test_one_behind():
    begun = []
    items = stream._one_behind(begun.append(i) or i for i in range(4))
    assert [(next(items), len(begun)) for _ in range(4)] == [(0, 2), (1, 3), (2, 4), (3, 4)]
    assert list(stream._one_behind([])) == []


def test_what_may_pass_is_told_from_what_stays(tmp_path, monkeypatch):
    def decode(item):
        raise item

    monkeypatch.setattr(stream, "decode", decode)
    kinds = {
        OSError("cannot be read now: a.png"): True,
        MemoryError(): True,
        FileNotFoundError("no such file: a.png"): False,
        ValueError("damaged picture: a.png"): False,
    }
    assert {r.item: r.passing for r in Brightness().score_iter(kinds)} == kinds


def test_stream_is_lazy_and_holds_few_pictures():
    """A million entries: only what is ahead of the scorer is alive."""
    alive: weakref.WeakSet = weakref.WeakSet()

    def endless():
        while True:
            picture = flat(0.5, 100, 100)
            alive.add(picture)
            yield picture

    results = Brightness().score_iter(endless(), batch_size=4)
    for _ in range(2000):
        assert next(results).score == pytest.approx(0.5)
    gc.collect()
    assert len(alive) < 600
    results.close()


def test_stopping_early_leaves_no_decoding_behind():
    results = Brightness().score_iter((flat(0.5) for _ in range(10**9)), batch_size=2)
    next(results)
    results.close()
    for thread in threading.enumerate():
        if thread.name.startswith("tastemaker-decode"):
            thread.join(timeout=5)
            assert not thread.is_alive()


def test_large_pictures_shrink_the_window(monkeypatch):
    monkeypatch.setattr(stream, "WINDOW_PIXELS", 100)
    windows = list(stream._windows(((i, flat(0.5, 6, 6)) for i in range(7)), 64))
    assert [len(window) for window in windows] == [3, 3, 1]
