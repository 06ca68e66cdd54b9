"""RALI against the official inference on a tiny release of the real classes, converted as users do."""

import copy
import json
import shutil

import joblib
import numpy as np
import pytest
import tiny_vit
import torch
from hypothesis import given
from hypothesis import strategies as st

from tastemaker.scorers import checkpoint, load_scorer
from tastemaker.scorers.rali import Preprocessing
from tastemaker.scorers.rali_convert import FILES, convert_rali

SIZES = [(56, 56), (90, 120), (200, 64), (64, 333), (48, 40), (301, 299), (128, 128), (57, 56)]


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    folder = tmp_path_factory.mktemp("release")
    return folder, *tiny_vit.write_rali_release(folder)


@pytest.fixture(scope="module")
def converted(release, tmp_path_factory):
    return convert_rali(release[0], tmp_path_factory.mktemp("converted"))


@pytest.fixture(scope="module")
def scorer(converted):
    return load_scorer(converted)


def official_scores(release, pictures):
    _, clip, head = release
    pixels = torch.stack([tiny_vit.clip_pixels(p) for p in pictures])
    return tiny_vit.rali_forward(clip, head, pixels)


def test_scores_equal_the_official_ones_without_a_resize(release, scorer):
    pictures = tiny_vit.pictures([(56, 56)] * 12)
    expected = official_scores(release, pictures)
    assert tiny_vit.spread_over(expected, 1e-5)
    images = torch.stack([tiny_vit.as_tensor(p) for p in pictures])
    torch.testing.assert_close(scorer(images), expected, atol=1e-5, rtol=0)


def test_scores_equal_the_official_ones_from_files(release, scorer, tmp_path):
    pictures = tiny_vit.pictures([*SIZES, (1, 1), (1, 700), (900, 2)])
    paths = []
    for i, picture in enumerate(pictures):
        paths.append(tmp_path / f"{i}.png")
        picture.save(paths[-1])
    expected = official_scores(release, pictures)
    assert tiny_vit.spread_over(expected, 1e-3)
    torch.testing.assert_close(scorer.score(paths), expected, atol=1e-5, rtol=0)


def test_float64_is_the_official_recipe_in_float64(release, converted):
    """Up to the constants that both store in float32."""
    _, clip, head = release
    wide = load_scorer(converted, dtype="float64")
    images = torch.rand(8, 3, 56, 56, dtype=torch.float64)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (tiny_vit.CLIP_MEAN, tiny_vit.CLIP_STD))
    double = {name: tensor.double() for name, tensor in head.items()}
    clip = copy.deepcopy(clip).double()
    expected = tiny_vit.rali_forward(clip, double, (images - mean) / std)
    ours = wide.head(wide.features(images))
    torch.testing.assert_close(ours, expected, atol=1e-6, rtol=0)


def test_the_recipe_above_is_transformers_own_processor(release):
    try:
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as Pil
    except ImportError:
        from transformers import CLIPImageProcessor as Pil
    processor = Pil.from_pretrained(release[0] / "best")
    for picture in tiny_vit.pictures(SIZES):
        theirs = processor(images=picture, return_tensors="pt")["pixel_values"][0]
        torch.testing.assert_close(tiny_vit.clip_pixels(picture), theirs, atol=1e-5, rtol=0)


@given(st.integers(1, 5000), st.integers(1, 5000), st.sampled_from([56, 224, 336]))
def test_the_resized_size_is_transformers(height, width, shortest):
    from transformers.image_transforms import get_resize_output_image_size

    picture = np.broadcast_to(np.zeros((), np.uint8), (height, width, 3))
    theirs = get_resize_output_image_size(
        picture, shortest, default_to_square=False, input_data_format="channels_last"
    )
    ours = Preprocessing(shortest, shortest, (0, 0, 0), (1, 1, 1)).resized(height, width)
    assert ours == theirs


def test_batch_equals_alone(scorer):
    images = torch.rand(5, 3, 70, 100)
    alone = torch.cat([scorer(image[None]) for image in images])
    torch.testing.assert_close(scorer(images), alone, atol=1e-5, rtol=0)


def test_gradient_equals_the_stock_models_and_central_differences(release, scorer):
    _, clip, head = release
    images = torch.rand(2, 3, 56, 56, requires_grad=True)
    (ours,) = torch.autograd.grad(scorer(images).sum(), images)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (tiny_vit.CLIP_MEAN, tiny_vit.CLIP_STD))
    expected = tiny_vit.rali_forward(clip, head, (images - mean) / std).sum()
    (theirs,) = torch.autograd.grad(expected, images)
    assert (ours - theirs).norm() / theirs.norm() < 1e-4
    resized = torch.rand(2, 3, 70, 90) * 0.8 + 0.1
    assert tiny_vit.directional_error(scorer, resized, 3e-3) < 0.01


def test_bfloat16_stays_close(converted, scorer):
    half = load_scorer(converted, dtype="bfloat16")
    images = torch.stack([tiny_vit.as_tensor(p) for p in tiny_vit.pictures([(56, 56)] * 16)])
    exact = scorer(images)
    error = (half(images) - exact).square().mean().sqrt()
    assert 0 < error < 0.05 * exact.std()


def test_range_is_read_off_the_anchors(scorer):
    low, high = scorer.card.range
    assert (low, high) == (pytest.approx(1.2), pytest.approx(4.8))
    scores = scorer(torch.rand(16, 3, 56, 56))
    assert ((scores >= low) & (scores <= high)).all()


def test_anchor_similarity_tells_the_familiar_from_the_strange(release, scorer):
    """One at an anchor itself; lower for embeddings that no anchor is near."""
    head = scorer.head
    inverse = torch.linalg.pinv(head.components)
    at_anchors = (head.prototypes @ inverse.T) * head.scale.abs() + head.mean
    torch.testing.assert_close(
        head.similarities(at_anchors).amax(-1), torch.ones(12), atol=1e-4, rtol=0
    )
    strange = head.similarities(torch.randn(200, 24) + head.mean).amax(-1)
    assert strange.max() < 0.999 and strange.mean() < 0.8
    assert scorer.anchor_similarity(torch.rand(3, 3, 80, 60)).shape == (3,)


def test_embedding_is_what_the_anchors_are_compared_with(release, scorer):
    pictures = tiny_vit.pictures([(56, 56)] * 3)
    images = torch.stack([tiny_vit.as_tensor(p) for p in pictures])
    pixels = torch.stack([tiny_vit.clip_pixels(p) for p in pictures])
    expected = tiny_vit.clip_features(release[1], pixels)
    torch.testing.assert_close(scorer.embed(images), expected, atol=1e-4, rtol=1e-4)


def test_the_text_tower_is_left_behind(converted):
    state = checkpoint.read_weights(checkpoint.weight_files(converted))
    assert not any("text" in key for key in state)
    assert state["anchors.tau"].item() == pytest.approx(1 / 3)


def copy_of(release, tmp_path):
    return shutil.copytree(release[0], tmp_path / "release")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named_and_nothing_is_written(name, release, tmp_path):
    folder = copy_of(release, tmp_path)
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=name.replace(".", r"\.")):
        convert_rali(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["ckpt.pt", "pca.pkl", "basis.npz"])
def test_a_damaged_file_is_named_and_nothing_is_written(name, release, tmp_path):
    folder = copy_of(release, tmp_path)
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=name.replace(".", r"\.")):
        convert_rali(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_hostile_checkpoint_is_refused_and_never_run(release, tmp_path):
    class Hostile:
        def __reduce__(self):
            return open, (str(tmp_path / "executed"), "w")

    folder = copy_of(release, tmp_path)
    torch.save({"state_dict": {"a": Hostile()}}, folder / "ckpt.pt")
    with pytest.raises(ValueError, match="not a plain dictionary of tensors"):
        convert_rali(folder, tmp_path / "out")
    np.savez(folder / "basis.npz", vectors=np.array([Hostile()], dtype=object), scores=np.ones(1))
    shutil.copy(release[0] / "ckpt.pt", folder)
    with pytest.raises(ValueError, match=r"basis\.npz"):
        convert_rali(folder, tmp_path / "out")
    assert not (tmp_path / "executed").exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda s: s.pop("scorer.prototypes"), r"\['prototypes'\] missing"),
        (lambda s: s.update({"scorer.bias": torch.ones(1)}), r"\['bias'\] unknown"),
        (lambda s: s.update({"scorer.pca_scale": torch.zeros(24)}), "pca_scale has values"),
        (lambda s: s["scorer.prototypes"].fill_(torch.nan), "prototypes has values"),
        (lambda s: s.pop("clip.vision_model.encoder.layers.1.mlp.fc1.bias"), "lacks vision_model"),
        (
            lambda s: s.update({"clip.vision_model.encoder.layers.3.mlp.fc1.bias": torch.ones(96)}),
            "unknown keys: vision_model.encoder.layers.3",
        ),
        (
            lambda s: s.update({"clip.vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(9)}),
            r"misshapen: tower.blocks.0.fc1.bias \[9\]",
        ),
        (lambda s: s.pop("clip.visual_projection.weight"), "visual_projection"),
        (lambda s: s.update({"scorer.pca_scale": torch.ones(5)}), r"pca_scale has shape \[5\]"),
        (lambda s: s.update({"scorer.proto_scores": torch.ones(5)}), "prototypes has shape"),
    ],
)
def test_what_does_not_fit_is_named(change, message, release, tmp_path):
    folder = copy_of(release, tmp_path)
    saved = torch.load(folder / "ckpt.pt", weights_only=True)
    change(saved["state_dict"])
    torch.save(saved, folder / "ckpt.pt")
    with pytest.raises(ValueError, match=message):
        convert_rali(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "file, change, message",
    [
        ("preprocessor_config.json", {"resample": 2}, "other steps than CLIP's"),
        ("preprocessor_config.json", {"do_center_crop": False}, "other steps than CLIP's"),
        ("preprocessor_config.json", {"size": {"longest_edge": 56}}, "not CLIP's preprocessing"),
        (
            "preprocessor_config.json",
            {"image_mean": [0.5]},
            "config.json: mean must be three numbers",
        ),
        ("preprocessor_config.json", {"crop_size": 42}, "42 px for a tower of 56 px"),
        ("config.json", {"vision_config": None}, "no vision_config"),
        (
            "config.json",
            {"vision_config": {**tiny_vit.CLIP, "num_hidden_layers": 2}},
            "unknown keys",
        ),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(file, change, message, release, tmp_path):
    folder = copy_of(release, tmp_path)
    path = folder / "best" / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises(ValueError, match=message):
        convert_rali(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_preprocessing_written_by_older_versions(release, scorer, tmp_path):
    folder = copy_of(release, tmp_path)
    path = folder / "best" / "preprocessor_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "size": 56, "crop_size": 56}))
    assert load_scorer(convert_rali(folder, tmp_path / "out")).preprocessing == scorer.preprocessing


def test_a_blank_mean_is_loud(release, tmp_path):
    folder = copy_of(release, tmp_path)
    fitted = joblib.load(folder / "pca.pkl")
    fitted.mean_ = np.zeros_like(fitted.mean_)
    joblib.dump(fitted, folder / "pca.pkl")
    with pytest.raises(ValueError, match="blank mean_"):
        convert_rali(folder, tmp_path / "out")
    fitted.mean_ = np.ones(7)
    joblib.dump(fitted, folder / "pca.pkl")
    with pytest.raises(ValueError, match=r"mean_ has shape \[7\], expected \[24\]"):
        convert_rali(folder, tmp_path / "out")


@pytest.mark.parametrize("step", ["save_file", "os.replace", "json.dumps"])
def test_an_interrupted_conversion_leaves_nothing(step, release, tmp_path, monkeypatch):
    def full_disk(*_, **__):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"tastemaker.scorers.checkpoint.{step}", full_disk)
        with pytest.raises(OSError, match="no space"):
            convert_rali(release[0], tmp_path / "out")
    assert not list(tmp_path.iterdir())
    convert_rali(release[0], tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "config.json",
        "model.safetensors",
    ]


def test_a_conversion_never_mixes_with_what_is_there(converted, release):
    before = {path: path.read_bytes() for path in converted.iterdir()}
    with pytest.raises(FileExistsError, match="already holds something"):
        convert_rali(release[0], converted)
    assert before == {path: path.read_bytes() for path in converted.iterdir()}


def test_the_name_rali_finds_the_converted_folder(release, scorer, tmp_path, monkeypatch):
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="hf download ByteDance/Q-Insight.*convert rali"):
        load_scorer("rali")
    convert_rali(release[0])
    images = torch.rand(2, 3, 56, 56)
    assert torch.equal(load_scorer("rali")(images), scorer(images))


def test_a_folder_of_another_kind_is_named(converted, tmp_path):
    values = json.loads((converted / "config.json").read_text())
    values["preprocessing"]["crop"] = 99
    (tmp_path / "config.json").write_text(json.dumps(values))
    shutil.copy(converted / "model.safetensors", tmp_path)
    with pytest.raises(ValueError, match="no preprocessing"):
        load_scorer(tmp_path)
    with pytest.raises(ValueError, match='"quality" only'):
        load_scorer(converted, task="video")
