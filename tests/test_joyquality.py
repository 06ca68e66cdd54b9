"""JoyQuality against the upstream script on a tiny model of the real class."""

import copy
import json
import shutil

import pytest
import tiny_vit
import torch
from safetensors.torch import load_file, save_file

from tastemaker.scorers import load_scorer

SIZES = [(64, 64), (90, 120), (200, 64), (64, 333), (48, 40), (301, 299), (128, 128), (77, 30)]


@pytest.fixture(scope="module")
def official():
    return tiny_vit.make_joyquality()


@pytest.fixture(scope="module")
def folder(official, tmp_path_factory):
    folder = tmp_path_factory.mktemp("joyquality")
    official.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def scorer(folder):
    return load_scorer(folder)


def official_scores(official, pictures, size=64):
    pixels = torch.stack([tiny_vit.joyquality_pixels(p, size) for p in pictures])
    return tiny_vit.joyquality_forward(official, pixels)


def test_scores_equal_upstream_without_a_resize(official, scorer):
    pictures = tiny_vit.pictures([(64, 64)] * 12)
    expected = official_scores(official, pictures)
    assert tiny_vit.spread_over(expected, 1e-5)
    images = torch.stack([tiny_vit.as_tensor(p) for p in pictures])
    torch.testing.assert_close(scorer(images), expected, atol=1e-5, rtol=0)


def test_scores_equal_upstream_from_files(official, scorer, tmp_path):
    pictures = tiny_vit.pictures(SIZES)
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    expected = official_scores(official, pictures)
    assert tiny_vit.spread_over(expected, 1e-3)
    # Pillow resizes on both sides, so the bar without a resize holds here too.
    torch.testing.assert_close(scorer.score(paths), expected, atol=1e-5, rtol=0)


def test_float64_is_upstream_in_float64(official, folder):
    """No tolerance for rounding hides a difference in the maths."""
    wide = load_scorer(folder, dtype="float64")
    images = torch.rand(8, 3, 64, 64, dtype=torch.float64)
    expected = tiny_vit.joyquality_forward(copy.deepcopy(official).double(), (images - 0.5) / 0.5)
    ours = wide.head(wide.features(images)).squeeze(-1)
    assert tiny_vit.spread_over(expected, 1e-12)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)


def test_batch_equals_alone(scorer):
    images = torch.rand(5, 3, 70, 50)
    alone = torch.cat([scorer(image[None]) for image in images])
    torch.testing.assert_close(scorer(images), alone, atol=1e-5, rtol=0)


def test_gradient_equals_upstream_and_central_differences(official, scorer):
    images = torch.rand(2, 3, 64, 64, requires_grad=True)
    (ours,) = torch.autograd.grad(scorer(images).sum(), images)
    expected = tiny_vit.joyquality_forward(official, (images - 0.5) / 0.5).sum()
    (theirs,) = torch.autograd.grad(expected, images)
    assert (ours - theirs).norm() / theirs.norm() < 1e-4
    resized = torch.rand(2, 3, 100, 90) * 0.8 + 0.1
    assert tiny_vit.directional_error(scorer, resized, 3e-3) < 0.01


def test_bfloat16_is_as_close_to_float32_as_upstreams_autocast(official, folder, scorer):
    half = load_scorer(folder, dtype="bfloat16")
    assert half.card.fingerprint["dtype"] == "bfloat16"
    assert half.tower.post_norm.weight.dtype == torch.float32
    pictures = tiny_vit.pictures([(64, 64)] * 24)
    images = torch.stack([tiny_vit.as_tensor(p) for p in pictures])
    exact = scorer(images)
    with torch.autocast("cpu", torch.bfloat16):
        upstream = official_scores(official, pictures).float()
    ours = (half(images) - exact).square().mean().sqrt()
    theirs = (upstream - exact).square().mean().sqrt()
    assert 0 < ours < 1.5 * theirs
    assert ours < 0.05 * exact.std()


def test_embedding_is_what_the_head_reads(scorer):
    images = torch.rand(3, 3, 64, 64)
    embedding = scorer.embed(images)
    assert embedding.shape == (3, 48) and "embed" in scorer.card.capabilities
    torch.testing.assert_close(scorer.head(embedding).squeeze(-1), scorer(images))


def training_state(folder, prefix=""):
    names = {"vision_model.": "clip_model.", "classifier.": "head.1."}
    state = {}
    for key, tensor in load_file(folder / "model.safetensors").items():
        old = next(old for old in names if key.startswith(old))
        state[prefix + names[old] + key.removeprefix(old)] = tensor
    return state


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_training_format(suffix, prefix, folder, scorer, tmp_path):
    path = tmp_path / f"latest.{suffix}"
    state = training_state(folder, prefix)
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    trained = load_scorer(path, heads=4)
    assert trained.card.hub_id is None
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(trained(images), scorer(images), atol=1e-6, rtol=0)


@pytest.mark.parametrize("sizes", [dict(image_size=96, patch_size=32), dict(hidden_size=64)])
def test_other_siglip_sizes(sizes, tmp_path):
    official = tiny_vit.make_joyquality(**sizes)
    official.save_pretrained(tmp_path)
    size = sizes.get("image_size", 64)
    pictures = tiny_vit.pictures([(120, 80), (size, size)])
    expected = official_scores(official, pictures, size)
    torch.testing.assert_close(load_scorer(tmp_path).score(pictures), expected, atol=1e-5, rtol=0)


def test_patches_that_do_not_divide_the_picture(tmp_path):
    """As in so400m at 384 pixels in patches of 14: the last pixels are resized, then dropped."""
    sizes = dict(image_size=64, patch_size=14)
    official = tiny_vit.make_joyquality(**sizes)
    official.save_pretrained(tmp_path)
    pictures = tiny_vit.pictures([(120, 80), (64, 64)])
    expected = official_scores(official, pictures)
    torch.testing.assert_close(load_scorer(tmp_path).score(pictures), expected, atol=1e-5, rtol=0)
    save_file(training_state(tmp_path), tmp_path / "trained.safetensors")
    trained = load_scorer(tmp_path / "trained.safetensors", heads=4, image_size=64)
    torch.testing.assert_close(trained.score(pictures), expected, atol=1e-5, rtol=0)
    assert load_scorer(tmp_path / "trained.safetensors", heads=4).size == 56


def test_heads_of_siglips_sizes():
    """google/siglip: base 768 / 12, large 1024 / 16, so400m 1152 / 16, giant 1536 / 16."""
    from tastemaker.scorers.joyquality import heads_of

    assert [heads_of(width) for width in (768, 1024, 1152, 1536)] == [12, 16, 16, 16]


def test_a_folder_in_the_hubs_cache_knows_its_id(folder, tmp_path):
    cached = tmp_path / "models--someone--their-fine-tune" / "snapshots" / "0123abc"
    shutil.copytree(folder, cached)
    assert load_scorer(cached).card.hub_id == "someone/their-fine-tune"
    assert load_scorer(folder).card.hub_id is None


def test_the_resize_is_part_of_the_fingerprint(scorer):
    assert "Pillow" in scorer.card.fingerprint["preprocessing"]


def altered(folder, tmp_path, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    return tmp_path


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("classifier.bias"), "lacks classifier.bias"),
        (lambda s: s.pop("vision_model.head.probe"), "lacks vision_model.head.probe"),
        (lambda s: s.update({"text_model.x": torch.ones(1)}), "unknown keys: text_model.x"),
        (lambda s: s.update({"classifier.weight": torch.ones(2, 48)}), "has 2 labels"),
        (lambda s: s.update({"classifier.bias": torch.ones(2)}), "misshapen: head.bias"),
    ],
)
def test_missing_unknown_and_misshapen_keys(change, message, folder, tmp_path):
    with pytest.raises(ValueError, match=message):
        load_scorer(altered(folder, tmp_path, change))


def test_bad_options(folder, tmp_path):
    with pytest.raises(TypeError, match="max_pixels"):
        load_scorer(folder, max_pixels=5)
    with pytest.raises(ValueError, match='"quality" only'):
        load_scorer(folder, task="aesthetics")
    (tmp_path / "weights.bin").touch()
    with pytest.raises(ValueError, match=r"not a checkpoint: .*weights\.bin"):
        load_scorer(tmp_path / "weights.bin")
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "swish2"
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_file(load_file(folder / "model.safetensors"), tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="unknown activation 'swish2'"):
        load_scorer(tmp_path)
    with pytest.raises(ValueError, match="5 heads do not divide 48"):
        load_scorer(folder, heads=5)


def test_a_damaged_configuration_names_file_and_key(folder, tmp_path):
    whole = shutil.copytree(folder, tmp_path / "copy")
    config = json.loads((whole / "config.json").read_text())
    for key in ("num_attention_heads", "image_size", "hidden_size", "patch_size"):
        for bad in (None, 0, -1, "x", [], 1.5):
            changed = {**config, "vision_config": {**config["vision_config"], key: bad}}
            (whole / "config.json").write_text(json.dumps(changed))
            with pytest.raises(
                ValueError, match=rf"config\.json: .*{key} must be .*whole"
            ) as caught:
                load_scorer(whole, device="cpu")
            assert "\n" not in str(caught.value)


def test_heads_and_image_size_are_whole_numbers(folder):
    for option in ("heads", "image_size"):
        for bad in (0, -1, "x", 1.5):
            with pytest.raises(ValueError, match="must be a whole number from 1 up"):
                load_scorer(folder, device="cpu", **{option: bad})
