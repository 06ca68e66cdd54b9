"""The embedded scorer: small, differentiable, blind to size, and right about pictures it never saw."""

import hashlib
import json
import zipfile
from dataclasses import asdict
from math import nan
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import read_weights, write_checkpoint
from tastemaker.scorers.corruptions import CORRUPTIONS, NotCompressible, blur, low_resolution, noise
from tastemaker.scorers.nano import WEIGHTS, NanoScorer
from tastemaker.training.head_prior import Settings as PriorSettings
from tastemaker.training.judging import as_tensor, judge
from tastemaker.training.nano import TRAINED_ON, Settings, coarse_noise, trained_on
from tastemaker.training.pictures import Picture, related, split, unseen, usable_pictures

# Share of pairs in which the original must score higher.
BARS = {"jpeg": 0.98, "low_resolution": 0.99, "noise": 0.99, "blur": 0.99}


@pytest.fixture(scope="module")
def scorer() -> NanoScorer:
    return load_scorer("nano", device="cpu")


@pytest.fixture(scope="module")
def pictures() -> list[Picture]:
    """Pictures of the installed template package, related to none that the weights have seen."""
    return unseen(usable_pictures(), trained_on())


@pytest.fixture(scope="module")
def some(pictures) -> list[Picture]:
    """A sixth of them, none larger than 512 px: for tests that are quick."""
    return [p for p in pictures[::6] if max(p.pixels.shape) <= 512]


@pytest.fixture(scope="module")
def whole(scorer, pictures) -> np.ndarray:
    """Their scores, for tests of what should not change a score."""
    return np.array([score(scorer, p.pixels) for p in pictures])


def images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def score(scorer: NanoScorer, pixels: np.ndarray) -> float:
    with torch.no_grad():
        return scorer(as_tensor(pixels)[None]).item()


# --- what it is


def test_it_is_small(scorer):
    assert sum(p.numel() for p in scorer.parameters()) <= 1_000_000
    assert WEIGHTS.stat().st_size <= 4_000_000


def test_the_card_says_what_it_judges_and_what_not(scorer):
    card = scorer.card
    assert (card.name, card.licence, card.direction) == ("nano", "Apache-2.0", "higher is better")
    assert "embed" in card.capabilities and "Technical quality only" in card.limits
    assert "aesthetics" in card.out_of_scope and len(card.fingerprint["weights"]) == 16


def test_the_weights_name_the_pictures_they_have_seen():
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    assert metadata["pictures"] == hashlib.sha256(TRAINED_ON.read_bytes()).hexdigest()
    assert json.loads(metadata["settings"]) == asdict(Settings())  # the script that made them


def test_what_is_known_of_tastes_lies_beside_the_weights_and_is_of_them(scorer):
    with safe_open(WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    # `training.nano` writes weights without a prior: one that is there was made after them.
    assert json.loads(metadata["head_prior"]) == json.loads(json.dumps(asdict(PriorSettings())))
    prior = scorer.head_prior
    assert len(prior) == 128 and prior.isfinite().all()
    assert load_scorer("nano", device="cpu").card.fingerprint == scorer.card.fingerprint


# --- the contract


@pytest.mark.parametrize("size", [(64, 64), (65, 64), (64, 97), (127, 193), (301, 64), (224, 224)])
def test_any_size_from_64_px_up(scorer, size):
    scores = scorer(images(3, 3, *size))
    assert scores.shape == (3,) and scores.dtype == torch.float32 and scores.isfinite().all()


@pytest.mark.parametrize("size", [(1, 1), (1, 200), (2, 3), (17, 5), (63, 31)])
def test_smaller_pictures_have_a_score_too(scorer, size):
    assert scorer(images(2, 3, *size)).isfinite().all()


@pytest.mark.parametrize("value", [0.0, 0.5, 1.0])
def test_plain_pictures_have_a_score_and_a_gradient(scorer, value):
    plain = torch.full((1, 3, 64, 64), value, requires_grad=True)
    scored = scorer(plain)
    (gradient,) = torch.autograd.grad(scored.sum(), plain)
    assert scored.isfinite().all() and gradient.isfinite().all()


@pytest.mark.parametrize("size", [(64, 64), (97, 131)])
def test_a_batch_scores_as_each_alone(scorer, some, size):
    h, w = size
    batch = torch.stack([as_tensor(p.pixels[:h, :w]) for p in some])
    alone = torch.cat([scorer(image[None]) for image in batch])
    assert alone.std() > 0.1
    torch.testing.assert_close(scorer(batch), alone, rtol=0, atol=5e-6)


def test_nearly_constant_pictures_score_in_a_batch_as_alone(scorer):
    """Their small differences are what the logarithm enlarges most."""
    noise = images(3, 64, 64) - 0.5
    grey = torch.tensor([0, 0.02, 0.1, 0.5, 0.9, 1]).repeat(3).view(-1, 1, 1, 1)
    strength = torch.tensor([0, 1e-4, 1e-2]).repeat_interleave(6).view(-1, 1, 1, 1)
    batch = (grey + strength * noise).clamp(0, 1)
    alone = torch.cat([scorer(image[None]) for image in batch])
    torch.testing.assert_close(scorer(batch), alone, rtol=0, atol=5e-6)


def test_half_precision_pixels_are_computed_in_float32(scorer):
    for dtype in (torch.float16, torch.bfloat16):
        half = images(2, 3, 80, 72).to(dtype)
        torch.testing.assert_close(scorer(half), scorer(half.float()), rtol=0, atol=0)


def test_files_and_tensors_score_alike(scorer, some, tmp_path):
    sources = [p.image for p in some[:4]]
    for i, image in enumerate(sources):
        image.save(tmp_path / f"{i}.png")
    expected = torch.tensor([score(scorer, np.array(image)) for image in sources])
    for given in (sources, sorted(tmp_path.iterdir())):
        torch.testing.assert_close(scorer.score(given), expected, rtol=0, atol=1e-5)


def test_the_head_is_linear_in_the_embedding(scorer, some):
    batch = torch.stack([as_tensor(p.pixels[:128, :128]) for p in some])
    feature = scorer.embed(batch)
    assert feature.shape == (len(some), scorer.head.in_features) and feature.dtype == torch.float32
    torch.testing.assert_close(scorer.head(feature)[:, 0], scorer(batch), rtol=0, atol=1e-6)


def test_bfloat16_weights_score_nearly_the_same(scorer, some):
    half = load_scorer("nano", device="cpu", dtype="bfloat16")
    batch = torch.stack([as_tensor(p.pixels[:128, :128]) for p in some])
    assert half(batch).dtype == torch.float32 and half.card.fingerprint["dtype"] == "bfloat16"
    assert (half(batch) - scorer(batch)).abs().max() < 0.3 < scorer(batch).std()


# --- its gradient


@pytest.mark.parametrize("size", [(64, 64), (75, 98)])
def test_gradient_against_central_differences(size):
    scorer = load_scorer("nano", device="cpu", dtype=torch.float64)
    x = images(1, 3, *size).double().mul(0.6).add(0.2).requires_grad_()
    (gradient,) = torch.autograd.grad(scorer(x).sum(), x)
    assert gradient.ne(0).all()
    step = 1e-4
    for seed in range(4):
        direction = torch.where(images(*x.shape, seed=seed) < 0.6, 1, -1) * gradient.sign()
        with torch.no_grad():
            rise = scorer(x + step * direction) - scorer(x - step * direction)
        expected = (gradient * direction).sum()
        assert rise.item() / (2 * step) == pytest.approx(expected.item(), rel=0.01)


@pytest.mark.parametrize("kind", list(CORRUPTIONS))
def test_the_gradient_of_a_corrupted_copy_points_towards_the_original(scorer, pictures, kind):
    towards = []
    for picture in [p for p in pictures if max(p.pixels.shape) <= 512][:24]:
        original = as_tensor(picture.pixels)[None]
        try:
            copy = CORRUPTIONS[kind](picture.pixels, Random(1))
        except NotCompressible:  # flat graphics, which no JPEG quality brings to a third
            continue
        copy = as_tensor(copy)[None].requires_grad_()
        (gradient,) = torch.autograd.grad(scorer(copy).sum(), copy)
        towards.append((gradient * (original - copy)).sum().item() > 0)
    assert len(towards) >= 18 and np.mean(towards) >= 0.85


# --- blind to size


def test_the_score_is_unrelated_to_the_area(scorer, pictures, whole):
    areas = np.array([p.pixels[..., 0].size for p in pictures])
    crops = np.array([_mean_of_crops(scorer, p.pixels, 224) for p in pictures])
    assert abs(_rank_correlation(areas, whole)) < 0.25
    assert abs(_rank_correlation(areas, whole - crops)) < 0.2


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return np.corrcoef([np.argsort(np.argsort(values)) for values in (a, b)])[0, 1]


@pytest.mark.parametrize(
    ("side", "most"), [(224, 0.2), (160, 0.12), (128, 0.12), (96, 0.25), (64, 0.4)]
)
def test_a_crop_scores_as_the_whole(scorer, pictures, whole, side, most):
    """Crops show other things, so single scores differ; but smaller is neither better nor worse.

    Not quite: nine overlapping crops of 224 px see more of the middle, where more is to see; and
    the smallest have more edge.
    """
    crops = np.array([_mean_of_crops(scorer, p.pixels, side) for p in pictures])
    assert abs((crops - whole).mean()) < most


def _mean_of_crops(scorer, pixels: np.ndarray, side: int) -> float:
    """The mean score of nine crops: corners, middles of the sides, centre."""
    tops, lefts = ([0, (n - side) // 2, n - side] for n in pixels.shape[:2])
    crops = [pixels[t : t + side, left : left + side] for t in tops for left in lefts]
    return float(np.mean([score(scorer, crop) for crop in crops]))


@pytest.mark.parametrize("axis", [0, 1])
def test_a_mirror_image_scores_nearly_the_same(scorer, pictures, whole, axis):
    changes = np.array([score(scorer, np.flip(p.pixels, axis)) for p in pictures]) - whole
    assert np.abs(changes).mean() < 0.22 and abs(changes.mean()) < 0.1


def test_four_times_the_area_scores_the_same(scorer, some):
    """A picture with its mirror images, against the mean of the four alone: only the size differs."""
    rises = []
    for picture in some:
        x = picture.pixels
        four = [x, x[:, ::-1], x[::-1], x[::-1, ::-1]]
        rows = [np.concatenate(four[i : i + 2], 1) for i in (0, 2)]
        together = np.concatenate(rows)
        rises.append(score(scorer, together) - np.mean([score(scorer, part) for part in four]))
    assert abs(np.mean(rises)) < 0.15 and np.median(np.abs(rises)) < 0.15


def test_enlarging_is_no_improvement(scorer, some):
    for picture in some:
        larger = picture.image.resize([2 * side for side in picture.image.size], Image.BICUBIC)
        assert score(scorer, np.array(larger)) < score(scorer, picture.pixels), picture.name


# --- right about pictures it never saw


def test_the_held_out_pictures_are_unseen_and_many(pictures):
    seen = trained_on()
    assert len(seen) > 300 and len(pictures) >= 40
    assert not any(related(p, s) for p in pictures for s in seen)
    assert {p.template for p in pictures}.isdisjoint(s.template for s in seen)


def test_originals_above_corrupted_copies_of_some_pictures(scorer, some):
    judgement = judge(scorer, some, draws=1)
    won = [original > copy for pairs in judgement.pairs.values() for original, copy in pairs]
    assert len(won) >= 3.5 * len(some) and np.mean(won) >= 0.99


@pytest.mark.parametrize("scale", [0.2, 0.5])
def test_noise_that_was_enlarged_is_noise(scorer, some, scale):
    """As a noisy picture's is, once it was upscaled: neighbouring pixels are off alike."""
    for picture in some:
        drops = []
        for sigma in (6, 15):
            args = Random(picture.name), sigma, scale, Image.BICUBIC
            noisy = np.array(coarse_noise(picture.image, *args))
            drops.append(score(scorer, picture.pixels) - score(scorer, noisy))
        assert 0.3 < drops[0] < drops[1], (picture.name, drops)


@pytest.mark.slow
def test_originals_above_corrupted_copies(scorer, pictures):
    judgement = judge(scorer, pictures, draws=4)
    accuracy = {kind: judgement.accuracy(kind) for kind in CORRUPTIONS}
    pairs = {kind: len(judgement.pairs[kind]) for kind in CORRUPTIONS}
    print({kind: f"{accuracy[kind]:.2%} of {pairs[kind]}" for kind in CORRUPTIONS})
    assert pairs["jpeg"] >= 0.9 * len(pictures)
    assert all(pairs[kind] == 4 * len(pictures) for kind in ("low_resolution", "noise", "blur"))
    assert all(accuracy[kind] >= bar for kind, bar in BARS.items()), accuracy


@pytest.mark.parametrize(
    ("corrupt", "name", "strengths"),
    [
        (low_resolution, "scale", (0.9, 0.7, 0.5)),
        (noise, "sigma", (4, 10, 25)),
        (blur, "radius", (0.7, 1.4, 3)),
    ],
)
def test_the_stronger_the_lower(scorer, some, corrupt, name, strengths):
    falling = []
    for picture in some:
        copies = [corrupt(picture.pixels, Random(0), **{name: s}) for s in strengths]
        scores = [score(scorer, copy) for copy in copies]
        falling += [a > b for a, b in zip(scores, scores[1:], strict=False)]
    assert np.mean(falling) >= 0.95


# --- from a folder


def test_a_folder_holds_one_of_its_kind(scorer, tmp_path):
    write_checkpoint(tmp_path, {**scorer.config, "name": "mine"}, scorer.state_dict())
    mine = load_scorer(tmp_path, device="cpu")
    batch = images(2, 3, 70, 70)
    torch.testing.assert_close(mine(batch), scorer(batch), rtol=0, atol=0)
    assert mine.card.name == "mine"
    assert mine.card.fingerprint["weights"] == scorer.card.fingerprint["weights"]
    assert mine.head_prior is None  # weights alone say nothing of tastes


@pytest.mark.parametrize("bad", [torch.zeros(64, 3), torch.zeros(128), torch.full((128, 2), nan)])
def test_a_folder_may_hold_what_is_known_of_tastes(scorer, tmp_path, bad):
    state = read_weights([WEIGHTS])
    write_checkpoint(tmp_path, scorer.config, state)
    mine = load_scorer(tmp_path, device="cpu")
    assert torch.equal(mine.head_prior, scorer.head_prior)
    assert mine.card.fingerprint["weights"] == scorer.card.fingerprint["weights"]
    write_checkpoint(tmp_path, scorer.config, {**state, "head_prior": bad})
    with pytest.raises(ValueError, match="head_prior must be finite and .128, K."):
        load_scorer(tmp_path, device="cpu")


def test_other_weights_have_another_fingerprint(scorer, tmp_path):
    state = read_weights([WEIGHTS])
    state["head.bias"] = state["head.bias"] + 1e-3
    write_checkpoint(tmp_path, scorer.config, state)
    assert load_scorer(tmp_path, device="cpu").card.fingerprint_id != scorer.card.fingerprint_id


def test_a_bad_folder_is_refused_by_name(scorer, tmp_path):
    state = scorer.state_dict()
    del state["head.bias"]
    write_checkpoint(tmp_path, scorer.config, state)
    with pytest.raises(ValueError, match="does not fit: 1 missing: head.bias"):
        load_scorer(tmp_path, device="cpu")
    write_checkpoint(tmp_path, {"tastemaker": "nano"}, state)
    with pytest.raises(ValueError, match="not a nano configuration.*widths"):
        load_scorer(tmp_path, device="cpu")
    write_checkpoint(tmp_path, {**scorer.config, "widths": [8] * 6, "blocks": [0] * 6}, state)
    with pytest.raises(ValueError, match="at most 5 stages"):
        load_scorer(tmp_path, device="cpu")
    file = tmp_path / "model.safetensors"
    write_checkpoint(tmp_path, scorer.config, scorer.state_dict())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="half-written safetensors.*model.safetensors"):
        load_scorer(tmp_path, device="cpu")


def test_it_has_one_task_and_no_options():
    with pytest.raises(ValueError, match='"quality" only'):
        load_scorer("nano", task="aesthetics", device="cpu")
    with pytest.raises(TypeError, match="max_pixels"):
        load_scorer("nano", max_pixels=10, device="cpu")


# --- the pictures' rules


def a_picture(seed: int, size: tuple[int, int] = (300, 300), mode: str = "RGB") -> Image.Image:
    cells = np.random.default_rng(seed).integers(0, 256, (24, 24, 3), np.uint8)
    return Image.fromarray(cells).resize(size, Image.BICUBIC).convert(mode)


@pytest.fixture
def folder(tmp_path):
    """Twelve templates: `t0` to `t9`, `copy` of t3, and `moving`; most with two variants."""
    for i in range(20):
        a_picture(i).save(tmp_path / f"t{i // 2}-{i % 2 + 1}.png")
    a_picture(6).resize((280, 280)).save(tmp_path / "copy-1.webp", quality=60)
    a_picture(30).save(tmp_path / "moving-1.webp", save_all=True, append_images=[a_picture(31)])
    a_picture(32, (255, 400)).save(tmp_path / "small.png")
    Image.new("RGB", (300, 300), "navy").save(tmp_path / "plain.png")
    transparent = a_picture(33, mode="RGBA")
    transparent.putpixel((5, 5), (0, 0, 0, 0))
    transparent.save(tmp_path / "transparent.png")
    a_picture(34, mode="RGBA").save(tmp_path / "opaque.png")
    return tmp_path


def test_usable_pictures_of_a_folder_and_of_a_wheel(folder):
    found = usable_pictures([folder])
    names = {p.name for p in found}
    assert len(found) == 23 and {"copy-1.webp", "moving-1.webp", "opaque.png"} <= names
    files = sorted(folder.iterdir())
    with zipfile.ZipFile(folder / "templates.whl", "w") as wheel:
        for path in files:
            wheel.write(path, f"package/templates/{path.name}")
    zipped = usable_pictures([folder / "templates.whl"])
    for a, b in zip(found, zipped, strict=True):
        assert a.name == b.name and a.hash == b.hash
        np.testing.assert_array_equal(a.pixels, b.pixels)


def test_a_split_keeps_variants_and_near_duplicates_together(folder):
    found = usable_pictures([folder])
    held_out_names = set()
    for seed in range(8):
        rest, held_out = split(found, 0.3, str(seed))
        assert sorted(p.name for p in rest + held_out) == sorted(p.name for p in found)
        assert not any(related(a, b) for a in rest for b in held_out)
        assert split(found, 0.3, str(seed))[1] == held_out
        assert unseen(found, rest) == sorted(held_out, key=lambda p: p.name)
        held_out_names.add(tuple(sorted(p.name for p in held_out)))
    assert len(held_out_names) > 4
    by_name = {p.name: p for p in found}
    assert related(by_name["copy-1.webp"], by_name["t3-1.png"])
    assert not related(by_name["t2-1.png"], by_name["t3-1.png"])


def test_without_pictures_the_error_says_what_to_install(tmp_path):
    with pytest.raises(FileNotFoundError, match="pip install comfyui-workflow-templates"):
        usable_pictures([tmp_path])


@pytest.mark.parametrize("key", ["widths", "blocks", "embedding", "name"])
@pytest.mark.parametrize("bad", [None, -1, "", [], [-1], [16, None], {}])
def test_a_damaged_configuration_names_file_and_key(scorer, tmp_path, key, bad):
    write_checkpoint(tmp_path, {**scorer.config, key: bad}, scorer.state_dict())
    with pytest.raises(ValueError, match=rf"config\.json: {key} must be"):
        load_scorer(tmp_path, device="cpu")
