"""`tastemaker train`: from a file of comparisons to a scorer that ranks as they do."""

import json
import math
import shutil
import sys

import numpy as np
import pytest
import tiny_vit
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter

from tastemaker.cli import main
from tastemaker.preferences import Comparisons, train, write_comparisons
from tastemaker.preferences.embeddings import content_of, embed_images
from tastemaker.preferences.train import prepared
from tastemaker.preferences.votes import Votes
from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import write_checkpoint
from tastemaker.scorers.personal_files import read_trained_on
from tastemaker.scorers.rali_convert import convert_rali


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """48 pictures of random blocks, more or less soft; 240 comparisons of one who likes them sharp."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, radii, images = np.random.default_rng(0), [], []
    for i in range(48):
        pixels = np.kron(rng.integers(0, 256, (24, 24, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        radii.append(float(rng.uniform(0, 3)))
        image = Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radii[-1]))
        images.append(folder / f"{i}.png")
        image.save(images[-1])
    pairs = torch.from_numpy(np.stack([rng.choice(48, 2, replace=False) for _ in range(240)]))
    taste = -torch.tensor(radii)
    p = (taste[pairs[:, 0]] > taste[pairs[:, 1]]).double()
    return Comparisons(tuple(images), pairs, p), taste


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASTEMAKER_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def test_it_learns_what_its_owner_likes(compared, tmp_path):
    comparisons, taste = compared
    made = train(comparisons, out=tmp_path / "taste", progress=False)
    after, before = made.metrics["held_out"], made.metrics["base"]
    assert after["decided"] > 5 and made.dropped > 0
    assert after["accuracy"] > 0.9 > 0.5 > before["accuracy"], "nano takes blocks for damage"
    scores = load_scorer(tmp_path / "taste").score(comparisons.images)
    assert torch.corrcoef(torch.stack([scores, taste]))[0, 1] > 0.9
    assert torch.equal(scores, made.scorer.score(comparisons.images))
    assert load_scorer(tmp_path / "taste").card == made.scorer.card
    low, high = after["intervals"]["accuracy"]
    assert low < after["accuracy"] <= high <= 1


def test_the_same_comparisons_make_the_same_scorer(compared, tmp_path):
    comparisons, _ = compared
    one, other = (train(comparisons, out=tmp_path / n, progress=False) for n in "ab")
    assert one.metrics == other.metrics
    left, right = (made.scorer.score(comparisons.images) for made in (one, other))
    torch.testing.assert_close(left, right, atol=1e-6, rtol=0)


def test_a_test_of_ones_own_loses_what_was_trained_on(compared, tmp_path):
    comparisons, _ = compared
    made = train(comparisons, out=tmp_path / "taste", test=comparisons, progress=False)
    assert "held_out" not in made.metrics and made.dropped == len(comparisons)
    assert any("trained on as well" in note for note in made.notes)


def test_the_command(compared, tmp_path):
    comparisons, _ = compared
    pairs, out = tmp_path / "pairs.json", tmp_path / "taste"
    write_comparisons(pairs, comparisons)
    result = CliRunner().invoke(main, ["train", str(pairs), "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert "held-out comparisons of images that were not trained on" in result.stdout
    said = json.loads((out / "config.json").read_text(encoding="utf-8"))
    assert said["tastemaker"] == "personal" and said["base"]["load"] == "nano"
    assert math.isfinite(said["metrics"]["held_out"]["nll"])
    again = CliRunner().invoke(main, ["train", str(pairs), "--out", str(out)])
    assert again.exit_code == 1 and "holds something already" in again.stderr
    again = CliRunner().invoke(main, ["train", str(pairs), "--out", str(out), "--overwrite"])
    assert again.exit_code == 0, again.output


def test_a_copy_of_a_picture_that_was_trained_on_tests_nothing(compared, tmp_path):
    comparisons, _ = compared
    copies = [tmp_path / image.name for image in comparisons.images]
    for image, copy in zip(comparisons.images, copies, strict=True):
        shutil.copy(image, copy)
    test = Comparisons(tuple(copies), comparisons.pairs, comparisons.p)
    made = train(comparisons, out=tmp_path / "taste", test=test, progress=False)
    assert "held_out" not in made.metrics and made.dropped == len(test)
    assert any("48 copies of others" in note for note in made.notes)


def test_only_what_training_wrote_is_overwritten(compared, tmp_path):
    comparisons, _ = compared
    config = {"tastemaker": "rali"}
    write_checkpoint(tmp_path / "rali", config, {"weight": torch.ones(1)})
    before = (tmp_path / "rali" / "model.safetensors").read_bytes()
    with pytest.raises(FileExistsError, match="training did not write, which is never overwritten"):
        train(comparisons, out=tmp_path / "rali", overwrite=True)
    assert (tmp_path / "rali" / "model.safetensors").read_bytes() == before
    with pytest.raises(FileExistsError, match="training did not write"):
        train(comparisons, out=comparisons.images[0].parent, overwrite=True)


@pytest.mark.parametrize("kind", ["joyquality", "rali"])
def test_it_learns_on_the_features_of_towers(compared, tmp_path, kind):
    comparisons, _ = compared
    if kind == "joyquality":
        tiny_vit.make_joyquality().save_pretrained(tmp_path / kind)
    else:
        tiny_vit.write_rali_release(tmp_path / "release")
        convert_rali(tmp_path / "release", tmp_path / kind)
    x = embed_images(load_scorer(tmp_path / kind), comparisons.images)
    taste = (x - x.mean(0)) / x.std(0) @ torch.randn(x.shape[1], generator=torch.Generator())
    left, right = comparisons.pairs.T
    liked = Comparisons(
        comparisons.images, comparisons.pairs, (taste[left] > taste[right]).double()
    )
    made = train(liked, tmp_path / kind, tmp_path / "taste", test_fraction=0, progress=False)
    scores = load_scorer(tmp_path / "taste").score(comparisons.images)
    assert torch.corrcoef(torch.stack([scores, taste]))[0, 1] > 0.8
    assert made.scorer.card.name == "taste"
    assert made.metrics["cross_validated"]["accuracy"] > made.metrics["base"]["accuracy"]


def test_a_missing_picture_is_named_and_nothing_is_written(compared, tmp_path):
    comparisons, _ = compared
    gone = (tmp_path / "gone.png", *comparisons.images[1:])
    with pytest.raises(ValueError, match=r"no such file \(1\): .*gone.png$"):
        train(Comparisons(gone, comparisons.pairs, comparisons.p), out=tmp_path / "taste")
    assert not (tmp_path / "taste").exists()


def test_where_nothing_can_be_written_is_said_first(compared, tmp_path, monkeypatch):
    training = sys.modules["tastemaker.preferences.train"]
    monkeypatch.setattr(training, "load_scorer", None)  # it would be called
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "taste"
    with pytest.raises(ValueError, match=f"cannot write to {out}: .*file: Not a directory"):
        train(compared[0], out=out, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_an_image_compared_with_itself_says_nothing(compared, tmp_path):
    comparisons, _ = compared
    first = comparisons.images[0]
    copy = tmp_path / "copy.png"
    shutil.copy(first, copy)
    odd = Comparisons.of([*comparisons.rows(), (first, first, 1.0), (first, copy, 0.0)])
    found, _, _, notes = prepared(odd, None, 0, 0)
    assert len(found) == len(comparisons)
    assert "left out: 2 comparisons of an image with itself" in notes
    found, held, dropped, _ = prepared(comparisons, Comparisons.of([(first, copy, 1.0)]), 0, 0)
    assert len(found) == len(comparisons) and held is None and not dropped
    with pytest.raises(ValueError, match="no comparison of two different images"):
        prepared(Comparisons.of([(first, copy, 1.0)]), None, 0.1, 0)


def test_files_that_are_no_pictures_are_all_named_before_any_is_embedded(
    compared, tmp_path, monkeypatch
):
    comparisons, _ = compared
    broken = [tmp_path / f"broken{i}.png" for i in range(5)]
    for path in broken:
        path.write_text("no picture")
    images = (*broken, tmp_path / "gone.png", *comparisons.images[6:])
    training = sys.modules["tastemaker.preferences.train"]
    monkeypatch.setattr(training, "embed_images", None)  # it would be called to embed
    named = r"no such file \(1\): .*gone.png; no picture \(5\): .*broken0.png; .*broken\d.png; .* and 2 more$"
    with pytest.raises(ValueError, match=named):
        train(Comparisons(images, comparisons.pairs, comparisons.p), out=tmp_path / "taste")
    assert not (tmp_path / "taste").exists()


def test_with_nothing_held_out_cross_validation_measures(compared, tmp_path):
    comparisons, _ = compared
    made = train(comparisons, out=tmp_path / "taste", test_fraction=0, progress=False)
    found = made.metrics["cross_validated"]
    judged = found["decided"]  # the others lie between two folds
    assert found["accuracy"] > 0.9 and 0.5 * len(comparisons) < judged <= len(comparisons)
    assert made.metrics["base"]["decided"] == judged
    low, high = found["intervals"]["accuracy"]
    assert low <= found["accuracy"] <= high < low + 0.2
    assert f"(95 %: {low:.1%} to {high:.1%}) of {judged} comparisons, by cross" in made.lines()[1]
    limits = load_scorer(tmp_path / "taste").card.limits
    assert f"right in {found['accuracy']:.1%} of {judged} in cross-validation" in limits
    assert any("by cross-validation, since nothing was held out" in line for line in made.lines())
    write_comparisons(tmp_path / "pairs.csv", comparisons)
    arguments = ["train", str(tmp_path / "pairs.csv"), "--out", str(tmp_path / "b")]
    result = CliRunner().invoke(main, [*arguments, "--test-fraction", "0"])
    said = json.loads((tmp_path / "b" / "config.json").read_text(encoding="utf-8"))["metrics"]
    judged = said["cross_validated"]["decided"]  # images are in another order: folds are others
    assert f"nothing was held out; cross-validation of {judged} comparisons:" in result.stdout
    low, high = said["cross_validated"]["intervals"]["accuracy"]
    assert f"{said['cross_validated']['accuracy']:8.3f}   {low:.3f} to {high:.3f}" in result.stdout


def test_nothing_is_measured_on_what_the_base_was_trained_on(compared, tmp_path):
    comparisons, _ = compared
    least, most = comparisons.pairs.amin(1), comparisons.pairs.amax(1)
    some, rest, test = (
        comparisons.take(which.nonzero()[:, 0].tolist())
        for which in (most < 24, most < 16, least >= 16)
    )
    base = tmp_path / "first"
    train(some, out=base, test_fraction=0, progress=False)
    learned = read_trained_on(base)
    _, held, _, notes = prepared(rest, test, 0.1, 0, learned=learned)
    assert 0 < len(held) < len(test)
    assert not learned & {content_of(image) for image in held.images}
    count = len(test) - len(held)
    assert f"left out: {count} held-out comparisons of images that the base was trained on" in notes
    again = train(comparisons, base, tmp_path / "again", test_fraction=0, progress=False)
    flatters = "the base was trained on images of"
    assert sum(flatters in note and "of 240 comparisons" in note for note in again.notes) == 1
    fresh = train(comparisons, "nano", tmp_path / "fresh", progress=False)
    assert not any("the base was" in note for note in fresh.notes)


def test_too_few_to_hold_out_says_what_to_do(compared, tmp_path):
    comparisons, _ = compared
    one = comparisons.take(torch.tensor([0]))
    with pytest.raises(ValueError, match=r"cannot be divided .* \(--test-fraction 0\)"):
        train(one, out=tmp_path / "taste", progress=False)
    made = train(one, out=tmp_path / "taste", test_fraction=0, progress=False)
    assert made.metrics == {} and made.plot() is None and "too few" in made.lines()[1]


def test_what_was_made_of_the_same_is_made_again_and_nothing_else(compared, tmp_path):
    comparisons, _ = compared
    how = dict(out=tmp_path / "taste", overwrite="same", progress=False)
    first, again = (train(comparisons, **how) for _ in range(2))
    assert again.metrics == first.metrics
    others = Comparisons(comparisons.images, comparisons.pairs, 1 - comparisons.p)
    with pytest.raises(FileExistsError, match="of other comparisons, another base or"):
        train(others, **how)
    with pytest.raises(FileExistsError, match="another choice of robust"):
        train(comparisons, **how, robust=False)
    assert load_scorer(tmp_path / "taste").card == first.scorer.card


def test_a_scorer_never_becomes_its_own_base(compared, tmp_path):
    comparisons, _ = compared
    how = dict(overwrite=True, test_fraction=0, progress=False)
    train(comparisons, "nano", tmp_path / "first", **how)
    second = train(comparisons, tmp_path / "first", tmp_path / "second", **how)
    for base in ("first", "second"):
        with pytest.raises(ValueError, match="first is what the base rests on"):
            train(comparisons, tmp_path / base, tmp_path / "first", **how)
    assert load_scorer(tmp_path / "second").card == second.scorer.card
    assert read_trained_on(tmp_path / "second") == read_trained_on(tmp_path / "first")


def test_qrealign_is_refused_before_it_is_loaded(compared, tmp_path):
    comparisons, _ = compared
    (tmp_path / "judge").mkdir()
    (tmp_path / "judge" / "config.json").write_text('{"model_type": "qwen3_5"}')
    for base in ("q-realign-lite", "q-future/Q-ReAlign-Pro-9B", tmp_path / "judge"):
        with pytest.raises(ValueError, match="has no embedding to learn a taste on: take nano"):
            train(comparisons, base, tmp_path / "taste")
    write_comparisons(tmp_path / "pairs.csv", comparisons)
    arguments = ["train", str(tmp_path / "pairs.csv"), "--base", "q-realign-mini"]
    for more in ([], ["--full"]):
        result = CliRunner().invoke(main, [*arguments, "--out", str(tmp_path / "x"), *more])
        assert result.exit_code == 1 and "q-realign-mini has no embedding" in result.stderr
    assert not (tmp_path / "taste").exists() and not (tmp_path / "x").exists()


def test_a_finished_fine_tune_is_not_replaced_unasked(compared, tmp_path):
    comparisons, _ = compared
    write_comparisons(tmp_path / "pairs.csv", comparisons)
    out = tmp_path / "tuned"
    config = {"tastemaker": "nano", "personal": {"name": "tuned"}}
    write_checkpoint(out, config, {"weight": torch.ones(1)})
    before = (out / "config.json").read_bytes()
    arguments = ["train", str(tmp_path / "pairs.csv"), "--out", str(out)]
    for more in (["--full"], []):
        result = CliRunner().invoke(main, [*arguments, *more])
        assert result.exit_code == 1 and "holds" in result.stderr
        assert (out / "config.json").read_bytes() == before


def test_votes_about_pictures_that_are_gone_are_told(compared, tmp_path):
    comparisons, _ = compared
    copies = [shutil.copy(image, tmp_path) for image in comparisons.images[:9]]
    store = Votes(tmp_path / "votes.sqlite", tmp_path)
    for i in range(8):
        store.add(
            "me", tmp_path / f"{i}.png", tmp_path / f"{i + 1}.png", "left" if i % 3 else "tie"
        )
    (tmp_path / "8.png").unlink()
    made = train(store.path, out=tmp_path / "taste", test_fraction=0, progress=False)
    assert made.scorer.config["data"]["comparisons"] == len(copies) - 2 == 7
    assert any("1 of 9 voted pictures are not in" in line for line in made.lines())


def test_what_progress_raises_ends_it_and_nothing_is_lost(compared, tmp_path):
    comparisons, _ = compared
    new = [tmp_path / image.name for image in comparisons.images]
    for i, (image, path) in enumerate(zip(comparisons.images, new, strict=True)):
        Image.open(image).rotate(90 * (1 + i % 3)).save(path)  # not embedded yet
    comparisons = Comparisons(tuple(new), comparisons.pairs, comparisons.p)

    def stop(done, total):
        if done == 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(comparisons, out=tmp_path / "taste", progress=stop)
    assert not (tmp_path / "taste").exists()
    seen = []
    train(comparisons, out=tmp_path / "taste", progress=lambda *each: seen.append(each))
    pictures, copies = seen[:38], seen[38:]
    assert pictures == [(i, 38) for i in range(1, 39)]
    assert copies == [(i, len(copies)) for i in range(1, len(copies) + 1)] and copies


def test_evaluate_tells_what_it_was_trained_on(compared, tmp_path):
    comparisons, _ = compared
    write_comparisons(tmp_path / "pairs.csv", comparisons)
    made = train(tmp_path / "pairs.csv", out=tmp_path / "taste", progress=False)
    held, kept = made.metrics["held_out"], made.scorer.config["data"]["comparisons"]

    def evaluate(*more):
        arguments = ["evaluate", str(tmp_path / "taste"), str(tmp_path / "pairs.csv"), "--json"]
        result = CliRunner().invoke(main, [*arguments, "--rounds", "10", *more])
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout), result.stderr

    found, said = evaluate()
    assert found["trained_on"] == kept + made.dropped
    assert f"Warning: {kept + made.dropped} of 240 comparisons are of images that" in said
    found, said = evaluate("--unseen")
    assert "Warning" not in said and found["comparisons"] == held["comparisons"]
    assert found["metrics"]["accuracy"]["value"] == pytest.approx(held["accuracy"])
    assert found["metrics"]["nll"]["value"] == pytest.approx(held["nll"], abs=1e-6)
    with open(tmp_path / "ratings.csv", "w") as file:
        file.write("image,mos\n")
        file.writelines(f"{image},{i}\n" for i, image in enumerate(comparisons.images))
    arguments = ["evaluate", str(tmp_path / "taste"), str(tmp_path / "ratings.csv")]
    result = CliRunner().invoke(main, [*arguments, "--rounds", "10"])
    images = made.scorer.config["data"]["images"]
    assert f"Warning: {images} of 48 images are those that" in result.stderr
