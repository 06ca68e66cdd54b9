"""A personal scorer is a scorer: it obeys the contract, says what it is, and knows its base."""

import json
import math

import pytest
import tiny_vit
import torch

from tastemaker.ranking import win_probability
from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import write_checkpoint
from tastemaker.scorers.personal import PersonalScorer, base_entry, head_state, score_features
from tastemaker.scorers.rali_convert import convert_rali
from tastemaker.scorers.tuned import summary
from tastemaker.scorers.working_memory import working_memory

SIZES = [(96, 128), (128, 96), (64, 64), (200, 72)]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("bases")
    tiny_vit.make_joyquality().save_pretrained(root / "joyquality")
    (root / "release").mkdir()
    tiny_vit.write_rali_release(root / "release")
    convert_rali(root / "release", root / "rali")
    return {"nano": "nano", "joyquality": root / "joyquality", "rali": root / "rali"}


@pytest.fixture(scope="module")
def pictures():
    return tiny_vit.pictures(SIZES)


def make_head(base, seed=0, gain=0.7):
    size = base.embed(torch.rand(1, 3, 64, 64, dtype=torch.float32)).shape[1]
    g = torch.Generator().manual_seed(seed)
    weight, center = torch.randn(2, size, generator=g)
    return head_state(weight / size**0.5, center, gain, 0.25)


def write_personal(folder, of, seed=0, **changes):
    scorer = load_scorer(of)
    config = {
        "tastemaker": "personal",
        "name": "my-taste",
        "base": base_entry(of, scorer.card),
        "data": {"comparisons": 12, "images": 9},
        "metrics": {"held_out": {"accuracy": 0.75, "decided": 8}},
    }
    write_checkpoint(folder, {**config, **changes}, make_head(scorer, seed))
    return folder


@pytest.fixture(scope="module", params=["nano", "joyquality", "rali"])
def personal(request, bases, tmp_path_factory):
    base = bases[request.param]
    folder = write_personal(tmp_path_factory.mktemp("personal") / "taste", base)
    return load_scorer(base), load_scorer(folder), folder


def test_the_score_is_the_formula(personal, pictures):
    base, scorer, _ = personal
    head = make_head(base)
    for picture in map(tiny_vit.as_tensor, pictures):
        own = (base.embed(picture[None]) - head["center"]) @ head["weight"] + 0.25
        expected = 0.7 * base(picture[None]) + own
        assert torch.allclose(scorer(picture[None]), expected, atol=1e-5)
    assert torch.equal(scorer.embed(picture[None]), base.embed(picture[None]))


def test_a_picture_scores_the_same_alone_and_in_company(personal, pictures):
    _, scorer, _ = personal
    together = scorer.score(pictures)
    alone = torch.cat([scorer.score([picture]) for picture in pictures])
    assert torch.allclose(together, alone, atol=1e-5) and together.std() > 0.01
    batch = torch.stack([tiny_vit.as_tensor(p.resize((96, 96))) for p in pictures])
    one_by_one = torch.cat([scorer(x[None]) for x in batch])
    assert torch.allclose(scorer(batch), one_by_one, atol=1e-5)


def test_it_is_differentiable(personal):
    base, _, folder = personal
    double = load_scorer(folder, dtype=torch.float64)
    images = torch.rand(2, 3, 64, 64, dtype=torch.float64)

    def score(x):
        features = double.features(double.prepare(x))
        return double.head(features, score_features(double.base, features))

    assert tiny_vit.directional_error(score, images, 1e-5) < 1e-4
    x = torch.rand(1, 3, 64, 64, requires_grad=True)
    load_scorer(folder)(x).sum().backward()
    assert x.grad.abs().sum() > 0


def test_videos_and_memory(personal):
    _, scorer, _ = personal
    frames = torch.rand(2, 3, 3, 64, 64)
    expected = scorer(frames.flatten(0, 1)).reshape(2, 3).mean(1)
    assert torch.allclose(scorer.score_video(frames), expected, atol=1e-5)
    assert working_memory(scorer, 2, 64, 64) > 0


def test_the_card_says_what_it_is(personal):
    base, scorer, _ = personal
    card = scorer.card
    assert card.name == "my-taste" and base.card.name in card.licence
    assert {"embed", "win_probability", "differentiable", "score_video"} == set(card.capabilities)
    assert "12 comparisons of 9 images" in card.limits and "75.0% of 8" in card.limits
    assert base.card.limits in card.limits and card.range == (-math.inf, math.inf)
    assert card.parameters == base.card.parameters + 2 * len(make_head(base)["weight"]) + 2
    assert card.task == "quality" and scorer.dtype == base.dtype


def test_the_fingerprint_includes_the_head_and_the_base(personal, bases, tmp_path):
    base, scorer, folder = personal
    card = scorer.card
    assert load_scorer(folder).card.fingerprint_id == card.fingerprint_id
    where = json.loads((folder / "config.json").read_text())["base"]["load"]
    other = load_scorer(write_personal(tmp_path / "other", where, seed=1)).card
    assert other.fingerprint_id != card.fingerprint_id != base.card.fingerprint_id
    half = load_scorer(folder, dtype="float64").card.fingerprint
    assert (
        half["base"] != card.fingerprint["base"] and half["weights"] == card.fingerprint["weights"]
    )


def test_scores_are_in_units_of_win_probability(personal, pictures):
    _, scorer, _ = personal
    from tastemaker.scorers.calibration import own_tau

    a, b = scorer.score(pictures[:2])
    assert own_tau(scorer.card) == 1
    assert win_probability(a, b) == torch.sigmoid(a - b)


def test_a_base_that_moved_is_found_beside_or_where_it_is_said_to_be(bases, tmp_path):
    old = tmp_path / "old" / "base"
    tiny_vit.make_joyquality().save_pretrained(old)
    folder = write_personal(tmp_path / "old" / "taste", old)
    card = load_scorer(folder).card
    old.parent.rename(tmp_path / "new")  # both
    assert load_scorer(tmp_path / "new" / "taste").card.fingerprint_id == card.fingerprint_id
    (tmp_path / "new" / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match="base"):
        load_scorer(tmp_path / "new" / "taste")
    found = load_scorer(tmp_path / "new" / "taste", base=tmp_path / "elsewhere")
    assert found.card.fingerprint_id == card.fingerprint_id


def test_another_base_is_refused(bases, tmp_path):
    folder = write_personal(tmp_path / "taste", bases["joyquality"])
    with pytest.raises(ValueError, match=r"trained on another .*weights: .* there, .* here"):
        load_scorer(folder, base=_other_joyquality(tmp_path / "other"))
    with pytest.raises(
        ValueError, match=r"trained on another .*scorer: joyquality there, nano here"
    ):
        load_scorer(folder, base="nano")


def _other_joyquality(folder):
    model = tiny_vit.make_joyquality()
    with torch.no_grad():
        model.classifier.bias.add_(1)
    model.save_pretrained(folder)
    return folder


def test_a_personal_scorer_can_be_a_base(bases, tmp_path, pictures):
    first = write_personal(tmp_path / "first", "nano")
    second = load_scorer(write_personal(tmp_path / "second", first, seed=1))
    base, head = load_scorer(first), make_head(load_scorer("nano"), 1)
    picture = tiny_vit.as_tensor(pictures[0])[None]
    own = (base.embed(picture) - head["center"]) @ head["weight"] + 0.25
    assert torch.allclose(second(picture), 0.7 * base(picture) + own, atol=1e-5)


def test_a_scorer_without_an_embedding_is_no_base():
    from stub import Brightness

    with pytest.raises(ValueError, match="brightness has no embedding"):
        PersonalScorer(Brightness(), head_state(torch.ones(3), torch.zeros(3), 1, 0), {"name": "x"})


@pytest.mark.parametrize(
    "config, message",
    [
        ({"base": None}, "names no base"),
        ({"base": {"load": ""}}, "names no base"),
        ({"name": 3}, "no personal scorer's"),
    ],
)
def test_a_damaged_configuration_is_named(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        load_scorer(write_personal(tmp_path / "taste", "nano", **config))


def test_a_head_of_another_size_or_of_other_tensors_is_refused(tmp_path):
    folder = write_personal(tmp_path / "taste", "nano")
    config = json.loads((folder / "config.json").read_text())
    write_checkpoint(folder, config, {"weight": torch.ones(128)})
    with pytest.raises(ValueError, match="does not fit: 3 missing"):
        load_scorer(folder)
    write_checkpoint(folder, config, head_state(torch.ones(3), torch.zeros(3), 1, 0))
    with pytest.raises(ValueError, match="reads 3 features, nano has 128"):
        load_scorer(folder)
    write_checkpoint(folder, config, {"classifier.weight": torch.ones(3)})
    with pytest.raises(ValueError, match="no personal head"):
        load_scorer(folder)


def test_it_rests_on_gradient_checkpointing_where_the_base_has_it(personal):
    base, scorer, _ = personal
    assert hasattr(scorer, "gradient_checkpointing") == hasattr(base, "gradient_checkpointing")
    if hasattr(scorer, "gradient_checkpointing"):
        scorer.gradient_checkpointing = True
        assert scorer.base.gradient_checkpointing
        scorer.gradient_checkpointing = False


def test_menus_know_the_kind():
    from tastemaker.scorers.load import KINDS

    assert KINDS["personal"] == "personal"  # nodes/folders.py lists folders of these kinds


@pytest.mark.parametrize("bad", [None, 3, "x", [], {}, {"accuracy": 0.5}])
def test_what_is_only_told_may_be_damaged(bad):
    said = {"data": bad, "metrics": {"held_out": bad, "cross_validated": bad}}
    for each in (said, {"data": bad, "metrics": bad}):
        assert summary(each).startswith("One taste, from ? comparisons of ? images")


@pytest.mark.parametrize("part", ["options", "identity"])
def test_a_damaged_base_names_file_and_key(part, tmp_path):
    said = {"load": "nano", "identity": {}, part: 3}
    config = {"tastemaker": "personal", "name": "mine", "base": said}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=rf"config\.json: {part} must be an object, got 3"):
        load_scorer(tmp_path, device="cpu")
