"""A taste that likes soft pictures does not come to like JPEG and lost resolution."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from tastemaker.preferences import keeping
from tastemaker.preferences import taste as tastes
from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.embeddings import embed_images
from tastemaker.preferences.head import Part, Rows, fit_head
from tastemaker.preferences.keeping import kept_copies
from tastemaker.preferences.taste import (
    LOSS,
    MARGINS,
    Kept,
    View,
    fit_keeping,
    fit_taste,
    turned_round,
)
from tastemaker.scorers import load_scorer
from tastemaker.scorers.personal import score_features


@pytest.fixture(scope="module")
def nano(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASTEMAKER_HOME", str(tmp_path_factory.mktemp("home")))
        yield load_scorer("nano", device="cpu")


@pytest.fixture(scope="module")
def soft(tmp_path_factory):
    """24 pictures of coloured shapes, and comparisons of one who likes them soft."""
    folder, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    images, radii = [], []
    for i in range(24):
        small = Image.fromarray(rng.integers(0, 256, (3, 3, 3), np.uint8))
        image = small.resize((512, 512), Image.BICUBIC)
        for _ in range(60):
            x, y, side = rng.integers(0, 480), rng.integers(0, 480), rng.integers(8, 90)
            colour = tuple(rng.integers(0, 256, 3).tolist())
            ImageDraw.Draw(image).ellipse((x, y, x + side, y + 0.7 * side), fill=colour)
        radii.append(float(rng.uniform(0, 1.2)))
        images.append(folder / f"{i}.png")
        image = image.resize((128, 128), Image.LANCZOS)
        image.filter(ImageFilter.GaussianBlur(radii[-1])).save(images[-1])
    pairs = torch.from_numpy(np.stack([rng.choice(24, 2, replace=False) for _ in range(150)]))
    taste = torch.tensor(radii)
    return Comparisons(tuple(images), pairs, (taste[pairs[:, 0]] > taste[pairs[:, 1]]).double())


def test_what_the_base_knows_is_kept(nano, soft):
    x = embed_images(nano, soft.images)
    with torch.no_grad():
        scores = score_features(nano, x).double()
    kept = kept_copies(nano, soft.images)
    assert 20 < len(kept.better) <= 48 and (kept.better_scores > kept.worse_scores).all()

    def right(taste):
        above = taste(kept.better, kept.better_scores) > taste(kept.worse, kept.worse_scores)
        return float(above.double().mean())

    free, held = fit_taste(x, scores, soft), fit_taste(x, scores, soft, kept=kept)
    assert right(free) < 0.7 and right(held) > 0.9
    again = kept_copies(nano, soft.images)
    assert all(torch.equal(a, b) for a, b in zip(kept, again, strict=True))


def test_copies_are_made_and_embedded_once(nano, soft, tmp_path, monkeypatch):
    first = kept_copies(nano, soft.images, cache=tmp_path)
    monkeypatch.setattr(keeping, "CORRUPTIONS", {})  # whoever makes one now fails
    again = kept_copies(nano, soft.images, cache=tmp_path)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_progress_counts_the_copies_and_may_end_it(nano, soft, tmp_path):
    seen = []

    def stop(done, total):
        seen.append((done, total))
        if done == 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        kept_copies(nano, soft.images, cache=tmp_path, progress=stop)
    assert seen == [(i, 48) for i in range(1, 21)]
    kept_copies(nano, soft.images, cache=tmp_path, progress=lambda *each: seen.append(each))
    assert seen[-1][1] <= 48 - 16, "what was embedded before the end is kept"


def test_what_the_base_does_not_know_is_not_kept(nano, soft, monkeypatch):
    monkeypatch.setattr(keeping, "base_scores", lambda scorer, x: x[..., 0] * 0)
    assert len(kept_copies(nano, soft.images).better) == 0


def test_some_of_many_pictures(nano, soft, monkeypatch):
    monkeypatch.setattr(keeping, "PICTURES", 12)
    one, other = (kept_copies(nano, soft.images, seed) for seed in (0, 1))
    assert 0 < len(one.better) <= 24 and not torch.equal(one.better[0], other.better[0])


def test_rows_of_their_own_weight_are_repeated_ones():
    g = torch.Generator().manual_seed(0)
    x, p = torch.randn(30, 6, generator=g).double(), torch.rand(30, generator=g).double()
    w0 = torch.zeros(6)
    twice = Rows(x[:10], p[:10], torch.full((10,), 1 / 30).double(), torch.zeros(10).double())
    # 20 + 10 twice, as a mean of 40, is as 30 rows of 1 / 30 and 10 more: 4 / 3 of it
    found = fit_head(x, p, w0, 0.04, more=twice)
    expected = fit_head(torch.cat([x, x[:10]]), torch.cat([p, p[:10]]), w0, 0.03)
    assert torch.allclose(found, expected, atol=1e-7)


def known(pictures=200, d=12, seed=0):
    """A base, comparisons of one who likes the opposite in part, and copies that the base puts below."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(pictures, d, generator=g).double()
    base = torch.randn(d, generator=g).double()
    worse = x - 0.3 * base / base.norm() + 0.1 * torch.randn(pictures, d, generator=g).double()
    pairs = torch.randint(pictures, (400, 2), generator=g)
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    other = torch.randn(d, generator=g).double() - 0.5 * base
    p = ((x @ other)[pairs[:, 0]] > (x @ other)[pairs[:, 1]]).double()
    right = x @ base > worse @ base
    kept = Kept(
        x[right], worse[right], (x @ base)[right], (worse @ base)[right], right.nonzero()[:, 0]
    )
    return x, x @ base, Comparisons(tuple(range(pictures)), pairs, p), kept


def problem(seed=0, penalty=0.01):
    x, scores, comparisons, kept = known(seed=seed)
    view = View(tastes.Space.of(x), 1 / float(scores.std()))
    features, (left, right) = view(x, scores), comparisons.pairs.T
    part = Part(1.0, penalty, view.starts([0.5])[0])
    return features[left] - features[right], comparisons.p, part, kept, view


def test_a_margin_leaves_a_share_of_what_the_base_says():
    x, p, part, kept, view = problem()
    said = kept.rows(view).x @ view.starts([1.0])[0] / tastes.SHARP
    left = []
    for margin in (0.0, 0.5):
        rows = kept.rows(view, margin)
        w = tastes.fit_mean(x, p, [part], rows)
        left.append(float((kept.rows(view).x @ w / tastes.SHARP / said).median()))
    assert left[0] < 0.3 < left[1]


@pytest.mark.parametrize("seed", range(3))
def test_the_margin_is_the_least_that_holds_for_other_pictures(seed, monkeypatch):
    x, p, part, kept, view = problem(seed)
    margins = (0.0, 0.2, 0.4, 0.8)
    monkeypatch.setattr(tastes, "MARGINS", margins)
    turned = [turned_round(x, p, part, kept, view, margin) for margin in margins]
    assert turned[0] > turned[-1]
    for most in (1.0, turned[1], turned[2], -1.0):
        monkeypatch.setattr(tastes, "LOSS", most)
        enough = [m for m, share in zip(margins[:-1], turned[:-1], strict=True) if share <= most]
        expected = tastes.fit_mean(x, p, [part], kept.rows(view, enough[0] if enough else 0.8))
        assert torch.equal(fit_keeping(x, p, [part], kept, view), expected)


def test_what_is_fitted_tells_nothing_of_other_pictures(monkeypatch):
    """Each pair is judged by a head that saw no pair of its picture."""
    x, p, part, kept, view = problem()
    seen = []
    fit = tastes.fit_mean

    def noted(x, p, parts, more, tolerance):
        seen.append(len(more.x))
        return fit(x, p, parts, more, tolerance)

    monkeypatch.setattr(tastes, "fit_mean", noted)
    twice = kept.take(torch.arange(len(kept.picture)).repeat(2))
    turned_round(x, p, part, twice, view, MARGINS[0])
    assert sum(seen) == len(twice.picture) and all(count % 2 == 0 for count in seen)
    assert 0 < LOSS < 1
