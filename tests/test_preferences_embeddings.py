"""Embeddings are what the head reads; the cache survives any kill and gives back nothing damaged."""

import os
import shutil
import sqlite3
from pathlib import Path

import pytest
import tiny_vit
import torch
from stub import Brightness

from tastemaker.preferences import embeddings
from tastemaker.preferences.embeddings import EmbeddingCache, cache_path, embed_images
from tastemaker.scorers import load_scorer
from tastemaker.scorers.personal import score_features

SIZES = [(96, 128), (128, 96), (64, 64), (96, 128), (70, 90), (64, 64)]


@pytest.fixture(scope="module")
def nano():
    return load_scorer("nano", device="cpu")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    paths = [folder / f"{i}.png" for i in range(len(SIZES))]
    for path, picture in zip(paths, tiny_vit.pictures(SIZES), strict=True):
        picture.save(path)
    return paths


class Counting:
    """Counts the pictures that go through a scorer."""

    def __init__(self, monkeypatch, fail_after=None):
        self.count, original = 0, embeddings.features_of

        def counting(scorer, x):
            if fail_after is not None and self.count >= fail_after:
                raise KeyboardInterrupt
            self.count += len(x)
            return original(scorer, x)

        monkeypatch.setattr(embeddings, "features_of", counting)


def test_the_head_gives_these_embeddings_the_scores_of_the_files(nano, files):
    found = embed_images(nano, files, cache=False)
    assert found.shape == (6, 128) and found.dtype == torch.float32
    with torch.inference_mode():
        assert torch.allclose(score_features(nano, found), nano.score(files), atol=1e-5)
    pixels = tiny_vit.as_tensor(tiny_vit.pictures(SIZES)[0])[None]
    assert torch.allclose(found[:1], nano.embed(pixels), atol=1e-4)


@pytest.mark.parametrize("kind", ["joyquality", "rali"])
def test_towers_too(kind, files, tmp_path):
    if kind == "joyquality":
        tiny_vit.make_joyquality().save_pretrained(tmp_path / kind)
    else:
        from tastemaker.scorers.rali_convert import convert_rali

        tiny_vit.write_rali_release(tmp_path / "release")
        convert_rali(tmp_path / "release", tmp_path / kind)
    scorer = load_scorer(tmp_path / kind, device="cpu")
    found = embed_images(scorer, files, cache=tmp_path / "cache", batch_size=2)
    assert torch.allclose(score_features(scorer, found), scorer.score(files), atol=1e-5)


def test_what_was_embedded_is_not_embedded_again(nano, files, tmp_path, monkeypatch):
    counted = Counting(monkeypatch)
    first = embed_images(nano, files[:4], cache=tmp_path)
    assert counted.count == 4
    copied = Path(shutil.copy(files[0], tmp_path / "a copy.png"))
    again = embed_images(nano, [*files, copied, files[2]], cache=tmp_path)
    assert counted.count == 6  # copies and repetitions are known by their contents
    assert torch.equal(again[:4], first) and torch.equal(again[6], again[0])
    assert torch.equal(again[7], again[2])
    assert torch.equal(again, embed_images(nano, [*files, copied, files[2]], cache=False))


def test_a_file_that_changed_is_embedded_anew(nano, files, tmp_path):
    path = tmp_path / "x.png"
    shutil.copy(files[0], path)
    before = embed_images(nano, [path], cache=tmp_path)
    shutil.copy(files[1], path)
    os.utime(path, ns=(0, 12345))
    after = embed_images(nano, [path], cache=tmp_path)
    assert not torch.equal(before, after)
    assert torch.equal(after, embed_images(nano, files[1:2], cache=False))


def test_files_that_did_not_change_are_not_read_again(nano, files, tmp_path, monkeypatch):
    embed_images(nano, files, cache=tmp_path)
    monkeypatch.setattr(embeddings, "content_of", None)
    embed_images(nano, files, cache=tmp_path)


def test_each_fingerprint_has_a_file_of_its_own(nano, files, tmp_path):
    half = load_scorer("nano", dtype="bfloat16", device="cpu")
    assert cache_path(half, tmp_path) != cache_path(nano, tmp_path)
    a, b = (embed_images(scorer, files[:1], cache=tmp_path) for scorer in (nano, half))
    assert not torch.equal(a, b) and len(list(tmp_path.glob("*.sqlite"))) == 2


def test_the_users_own_folder(nano, files, tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path))
    embed_images(nano, files[:1])
    assert cache_path(nano).is_relative_to(tmp_path) and cache_path(nano).exists()


def test_a_run_that_was_interrupted_goes_on(nano, files, tmp_path, monkeypatch):
    monkeypatch.setattr("tastemaker.scorers.stream.WINDOW_BATCHES", 1)
    counted = Counting(monkeypatch, fail_after=3)
    with pytest.raises(KeyboardInterrupt):
        embed_images(nano, files, cache=tmp_path, batch_size=1)
    assert counted.count == 3
    monkeypatch.undo()
    counted = Counting(monkeypatch)
    found = embed_images(nano, files, cache=tmp_path)
    assert counted.count == len(files) - 3
    assert torch.equal(found, embed_images(nano, files, cache=False))


def test_killed_at_any_byte_it_is_mended(nano, files, tmp_path):
    """The database and its log as a kill may leave them: the log cut off at any byte."""
    expected = embed_images(nano, files, cache=False)
    live = cache_path(nano, tmp_path / "live")
    left = tmp_path / "left"
    left.mkdir()
    with EmbeddingCache(live) as cache:
        for content, value in zip(cache.contents(files), expected, strict=True):
            cache.add(content, value)
            cache.flush()
        log = live.with_name(live.name + "-wal").read_bytes()
        main = live.read_bytes()
    assert len(log) > 10_000
    kept = set()
    for size in [*range(0, len(log), 611), len(log)]:
        path = left / live.name
        embeddings._remove(path)
        path.write_bytes(main)
        path.with_name(path.name + "-wal").write_bytes(log[:size])
        with EmbeddingCache(path) as cache:
            contents = [embeddings.content_of(file) for file in files]
            found = [cache.get(content) for content in contents]
            kept.add(sum(value is not None for value in found))
            for value, right in zip(found, expected, strict=True):
                assert value is None or torch.equal(value, right)
    assert kept == set(range(7))  # as many as were committed, at every point
    path.with_name(path.name + "-wal").write_bytes(log[: len(log) // 2])
    assert torch.equal(embed_images(nano, files, cache=left), expected)


def test_damage_is_never_used(nano, files, tmp_path):
    """Any bytes of the file overwritten: what comes back is right, or computed anew."""
    expected = embed_images(nano, files, cache=tmp_path)
    path = cache_path(nano, tmp_path)
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    db.close()
    sound = path.read_bytes()
    for start in range(0, len(sound), 997):
        embeddings._remove(path)
        path.write_bytes(sound[:start] + b"\x55" * 40 + sound[start + 40 :])
        assert torch.equal(embed_images(nano, files, cache=tmp_path), expected), start


def test_a_value_of_another_length_is_not_used(nano, files, tmp_path):
    embed_images(nano, files[:1], cache=tmp_path)
    with sqlite3.connect(cache_path(nano, tmp_path)) as db:
        db.execute("UPDATE embeddings SET value = x'00000000'")
    db.close()
    found = embed_images(nano, files[:1], cache=tmp_path)
    assert torch.equal(found, embed_images(nano, files[:1], cache=False))


def test_two_processes_may_share_it(nano, files, tmp_path):
    path = cache_path(nano, tmp_path)
    with EmbeddingCache(path) as one, EmbeddingCache(path) as two:
        for cache, value in ((one, 1.0), (two, 2.0)):
            for content in cache.contents(files):
                cache.add(content, torch.full((3,), value))
            cache.flush()
        assert (one.get(embeddings.content_of(files[0])) == 2).all()


def test_what_cannot_be_embedded_is_named(nano, files, tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file: .*gone.png"):
        embed_images(nano, [*files, tmp_path / "gone.png"], cache=tmp_path)
    with pytest.raises(FileNotFoundError, match="no such file: .*gone.png"):
        embed_images(nano, [tmp_path / "gone.png"], cache=False)
    (tmp_path / "text.png").write_text("no picture")
    with pytest.raises(ValueError, match="text.png"):
        embed_images(nano, [*files, tmp_path / "text.png"], cache=tmp_path)
    with pytest.raises(ValueError, match="brightness has no embedding"):
        embed_images(Brightness(), files, cache=tmp_path)
    assert embed_images(nano, [], cache=tmp_path).shape[0] == 0


def test_a_locked_or_unwritable_cache_is_told_by_name(nano, files, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(OSError):
        embed_images(nano, files, cache=tmp_path / "file" / "below")
    cache_path(nano, tmp_path).mkdir()
    with pytest.raises(RuntimeError, match="unable to open"):
        embed_images(nano, files, cache=tmp_path)
