"""A taste that likes soft pictures does not come to like JPEG and lost resolution."""

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw, ImageFilter

from tastemaker.preferences import keeping
from tastemaker.preferences import taste as tastes
from tastemaker.preferences.comparisons import Comparisons
from tastemaker.preferences.embeddings import embed_images
from tastemaker.preferences.head import Rows, fit_head
from tastemaker.preferences.keeping import kept_copies
from tastemaker.preferences.taste import Kept, View, fit_taste
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
    kept = Kept(x[right], worse[right], (x @ base)[right], (worse @ base)[right])
    return x, x @ base, Comparisons(tuple(range(pictures)), pairs, p), kept


def falls(taste, kept):
    """By how much each copy is below its original."""
    better, worse = taste(kept.better, kept.better_scores), taste(kept.worse, kept.worse_scores)
    return better - worse


@pytest.mark.parametrize("seed", range(3))
def test_a_margin_makes_the_order_hold_for_other_pictures(seed, monkeypatch):
    x, scores, comparisons, kept = known(seed=seed)
    half = len(kept.better) // 2
    seen, others = Kept(*(v[:half] for v in kept)), Kept(*(v[half:] for v in kept))
    wrong = []
    for margin in (0.0, tastes.MARGIN, 0.5):
        monkeypatch.setattr(tastes, "MARGIN", margin)
        found = falls(fit_taste(x, scores, comparisons, kept=seen), others)
        wrong.append(float((found <= 0).double().mean()))
    free = falls(fit_taste(x, scores, comparisons), others)
    free = float((free <= 0).double().mean())
    assert free > wrong[0] > wrong[1] >= wrong[2], "no copies, no margin, ours, a large one"
    assert wrong[1] < free / 2 and wrong[2] < 0.05


@pytest.mark.parametrize("based", [True, False])
def test_a_copy_falls_in_proportion_to_what_the_base_makes_of_it(based, monkeypatch):
    """Whatever the unit of the base's scores, and for a head that starts from nothing, too."""
    x, scores, comparisons, kept = known()
    for scale in (1.0, 100.0):
        given = kept._replace(
            better_scores=scale * kept.better_scores, worse_scores=scale * kept.worse_scores
        )
        view = View(tastes.Space.of(x), 1 / (scale * float(scores.std())) if based else None)
        rows, base = given.rows(view), kept.better_scores - kept.worse_scores
        least = -rows.ahead / tastes.SHARP
        assert torch.allclose(least, tastes.MARGIN * base / base.mean())
    monkeypatch.setattr(tastes, "STRENGTH", 1e3)  # nothing else counts
    rows, (left, right) = given.rows(view), comparisons.pairs.T
    seen = view(x, scale * scores)
    w = fit_head(seen[left] - seen[right], comparisons.p, view.starts()[0], 1e-4, rows)
    assert (rows.x @ w / tastes.SHARP > least - 2 / tastes.SHARP).all()
