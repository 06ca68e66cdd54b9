"""An ensemble is a scorer: the contract, the arithmetic by hand, and files through every member."""

import json
import math

import numpy as np
import pytest
import torch
from PIL import Image
from stub import Brightness

from tastemaker.ranking import ReferenceStatistics
from tastemaker.scorers import Ensemble, Scorer, ScorerCard, load_scorer
from tastemaker.scorers.ensemble import statistics_from_reference


class Contrast(Scorer):
    """The deviation of the pixels, as seen in 8x8: another input size than the ensemble's others."""

    default_batch_size = 4

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor([2.0]))
        self._card = ScorerCard(
            name="contrast",
            licence="MIT",
            unit="twice the deviation",
            range=(-math.inf, math.inf),
            capabilities=("differentiable",),
            limits="flat pictures",
        )
        self.freeze()

    def input_size(self, height, width):
        return 8, 8

    def score_prepared(self, x):
        return x.std((1, 2, 3)).float() * self.scale


STATISTICS = [ReferenceStatistics(0.5, 0.1, 10), ReferenceStatistics(0.6, 0.25, 10)]


def ensemble(weights=(3, 1)) -> Ensemble:
    return Ensemble([Brightness(), Contrast()], STATISTICS, weights, "a set")


def by_hand(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return 0.75 * (a - 0.5) / 0.1 + 0.25 * (b - 0.6) / 0.25


def test_weighted_mean_of_standardised_scores():
    images = torch.rand(3, 3, 12, 20)
    expected = by_hand(Brightness()(images), Contrast()(images))
    torch.testing.assert_close(ensemble()(images), expected)


def test_batch_kept_at_one_and_zero():
    assert ensemble()(torch.rand(1, 3, 4, 4)).shape == (1,)
    empty = ensemble()(torch.rand(0, 3, 4, 4))
    assert empty.shape == (0,) and empty.dtype == torch.float32


def test_gradient_is_the_weighted_sum_of_the_members():
    images = torch.rand(2, 3, 12, 10, dtype=torch.float64, requires_grad=True)
    ensemble()(images).sum().backward()
    whole = images.grad.clone()
    parts = torch.zeros_like(whole)
    for member, factor in ((Brightness(), 0.75 / 0.1), (Contrast(), 0.25 / 0.25)):
        images.grad = None
        member(images).sum().backward()
        parts += factor * images.grad
    torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-8)
    assert whole.abs().sum() > 0


def test_files_reach_every_member_as_they_would_alone(tmp_path):
    generator = np.random.default_rng(0)
    paths = []
    for i, (width, height) in enumerate([(30, 20), (20, 30), (30, 20), (9, 9), (64, 40)] * 3):
        smooth = generator.integers(0, 255 - i, (4, 4, 3), dtype=np.uint8)
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(smooth).resize((width, height), Image.BICUBIC).save(paths[-1])
    items = [*paths, torch.rand(3, 20, 30), Image.new("L", (30, 20), 7)]  # 8-bit and float mixed
    expected = by_hand(Brightness().score(items), Contrast().score(items))
    scores = ensemble().score(items, batch_size=7)
    assert expected.std() > 0.1
    torch.testing.assert_close(scores, expected, rtol=0, atol=1e-5)


def test_pictures_of_several_sizes_share_a_batch_when_every_member_allows_it():
    fixed, contrast = Brightness(size=(4, 4)), Contrast()
    Ensemble([fixed, contrast], STATISTICS).score([torch.rand(3, 5 + i, 9) for i in range(4)])
    assert fixed.batches == [(4, 3, 4, 4)]


def test_video_is_combined_from_the_members():
    frames = torch.rand(2, 3, 3, 8, 8)
    expected = by_hand(Brightness().score_video(frames), Contrast().score_video(frames))
    torch.testing.assert_close(ensemble().score_video(frames), expected)
    bytes_ = (frames * 255).byte()
    by_members = by_hand(Brightness().score_video(bytes_), Contrast().score_video(bytes_))
    torch.testing.assert_close(ensemble().score_video(bytes_), by_members)


def test_card_speaks_for_the_members():
    card = ensemble().card
    assert card.name == "ensemble of brightness, contrast"
    assert card.licence == "Apache-2.0 and MIT"
    assert "a set" in card.unit and "flat pictures" in card.limits
    assert card.parameters == 2
    assert card.range == (-math.inf, math.inf)


def test_range_of_bounded_members():
    pair = Ensemble([Brightness(), Brightness()], STATISTICS)
    low, high = 0.5 * -0.5 / 0.1 + 0.5 * -0.6 / 0.25, 0.5 * 0.5 / 0.1 + 0.5 * 0.4 / 0.25
    assert pair.card.range == pytest.approx((low, high))
    values = pair(torch.stack([torch.zeros(3, 4, 4), torch.ones(3, 4, 4)]))
    assert values.tolist() == pytest.approx([low, high])


def test_a_member_without_weight_is_left_out():
    broken = Contrast()
    broken.scale.data.fill_(math.nan)
    scores = Ensemble([Brightness(), broken], STATISTICS, [1, 0])(torch.rand(2, 3, 8, 8))
    assert scores.isfinite().all()


def test_whatever_changes_a_score_changes_the_fingerprint():
    seen = {
        ensemble().card.fingerprint_id,
        ensemble((1, 3)).card.fingerprint_id,
        ensemble().half().card.fingerprint_id,
        Ensemble([Brightness(), Contrast()], STATISTICS[::-1], (3, 1)).card.fingerprint_id,
        Ensemble([Contrast(), Brightness()], STATISTICS, (3, 1)).card.fingerprint_id,
    }
    assert len(seen) == 5
    assert ensemble().card.fingerprint_id == ensemble((6, 2)).card.fingerprint_id


@pytest.mark.parametrize(
    "members, statistics, weights, message",
    [
        ([], [], None, "one or more members"),
        ([Brightness()], STATISTICS, None, "1 members and 2 statistics"),
        ([Brightness()], [ReferenceStatistics(0.5, 0.0, 3)], None, "brightness has no scale"),
        ([Brightness()], [ReferenceStatistics(math.nan, 1.0, 3)], None, "has no scale"),
        ([Brightness()], STATISTICS[:1], [1, 2], "one a member: 1, got 2"),
        ([Brightness()], STATISTICS[:1], [0], "not all 0"),
        ([Brightness()], STATISTICS[:1], [-1], "not negative"),
        ([Brightness()], STATISTICS[:1], [math.inf], "finite"),
    ],
)
def test_bad_ensembles_are_named_in_one_line(members, statistics, weights, message):
    with pytest.raises(ValueError, match=message) as caught:
        Ensemble(members, statistics, weights)
    assert "\n" not in str(caught.value)


def test_members_on_two_devices_are_named_when_they_are_used():
    apart = Ensemble([Brightness(), Brightness().to("meta")], STATISTICS)
    uses = (apart, lambda x: apart.score_runs([x]), lambda x: apart.score_video(x[None]))
    for use in uses:
        with pytest.raises(ValueError, match="on cpu, brightness on meta"):
            use(torch.rand(2, 3, 8, 8))


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """A file as `calibrate` writes it, of two scorers that `load_scorer` knows."""
    scorers = {"brightness": Brightness, "contrast": Contrast}
    own = load_scorer
    monkeypatch.setattr(
        "tastemaker.scorers.load.load_scorer",
        lambda name_or_path, **how: (
            scorers[name_or_path]() if name_or_path in scorers else own(name_or_path, **how)
        ),
    )
    members = [
        {
            "load": {"name_or_path": name, "task": "quality"},
            "name": name,
            "fingerprint": scorers[name]().card.fingerprint,
            **statistics._asdict(),
        }
        for name, statistics in zip(scorers, STATISTICS, strict=True)
    ]
    path = tmp_path / "reference.json"
    contents = {"tastemaker": "reference", "set": {"name": "a set"}, "members": members}
    path.write_text(json.dumps(contents))
    return path


def test_from_reference(reference):
    images = torch.rand(2, 3, 9, 9)
    weights = {"brightness": 3, "contrast": 1}
    torch.testing.assert_close(
        Ensemble.from_reference(reference, weights)(images), ensemble()(images)
    )
    equal = Ensemble.from_reference(reference)
    torch.testing.assert_close(equal(images), ensemble((1, 1))(images))
    assert equal.reference == "a set"


def test_load_scorer_reads_it(reference):
    loaded = load_scorer(reference, device="cpu")
    assert loaded.card.fingerprint == ensemble((1, 1)).card.fingerprint
    with pytest.raises(ValueError, match="tasks and revisions"):
        load_scorer(reference, device="cpu", task="aesthetics")


def test_weights_in_the_file_and_unknown_names(reference):
    contents = json.loads(reference.read_text())
    contents["members"][0]["weight"] = 3
    reference.write_text(json.dumps(contents))
    assert Ensemble.from_reference(reference).weights == (0.75, 0.25)
    with pytest.raises(ValueError, match="no member is called nano: brightness, contrast"):
        Ensemble.from_reference(reference, {"nano": 1})


def test_a_scorer_that_is_not_as_it_was_measured_is_refused(reference):
    contents = json.loads(reference.read_text())
    contents["members"][1]["fingerprint"]["dtype"] = "bfloat16"
    reference.write_text(json.dumps(contents))
    match = r"contrast is not as .* \(dtype: bfloat16 there, float32 here\): calibrate again"
    with pytest.raises(ValueError, match=match):
        Ensemble.from_reference(reference)


@pytest.mark.parametrize(
    "contents, message",
    [
        ("{", "not JSON"),
        ("[]", "not a JSON object: .*x.json"),
        ('{"tastemaker": "nano"}', "not made by tastemaker calibrate"),
        ('{"tastemaker": "reference"}', "lacks the set or the scorers"),
        (
            '{"tastemaker": "reference", "set": {"name": "s"}, "members": [{"load": {}, "mean": 0}]}',
            "x.json: scorer 1 lacks 'fingerprint'",
        ),
    ],
)
def test_other_files_are_refused(tmp_path, contents, message):
    (tmp_path / "x.json").write_text(contents)
    with pytest.raises(ValueError, match=message):
        Ensemble.from_reference(tmp_path / "x.json")
    with pytest.raises(FileNotFoundError, match="no such file"):
        Ensemble.from_reference(tmp_path / "y.json")


def test_statistics_from_a_file(reference):
    cards = [Contrast().card, Brightness().card]
    assert statistics_from_reference(reference, cards) == (STATISTICS[::-1], "a set")
    nano = load_scorer("nano", device="cpu").card
    with pytest.raises(ValueError, match="did not measure nano .it measured brightness, contrast"):
        statistics_from_reference(reference, [nano])
    with pytest.raises(ValueError, match="dtype: float32 there, float16 here.*calibrate again"):
        statistics_from_reference(reference, [Brightness().half().card])


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: c.update(members=3), "members must be a list of objects, got 3"),
        (lambda c: c.update(members=[3]), r"members must be a list of objects, got \[3\]"),
        (lambda c: c.update(set=3), "x.json: set must be an object, got 3"),
        (lambda c: c["set"].update(name=None), "x.json: set: name must be text, got None"),
        (lambda c: c["members"][1].update(mean="x"), "x.json: scorer 2: mean must be .* got 'x'"),
        (lambda c: c["members"][0].update(std=0.0), "x.json: scorer 1: std must be .* got 0.0"),
        (lambda c: c["members"][0].update(n=0), "x.json: scorer 1: n must be .* got 0"),
        (lambda c: c["members"][0].update(weight="big"), "scorer 1: weight must be .* got 'big'"),
        (lambda c: c["members"][0].update(load=3), "scorer 1: load must be an object, got 3"),
        (lambda c: c["members"][0].update(load={}), "scorer 1: load lacks 'name_or_path'"),
        (lambda c: c["members"][0].update(fingerprint=[]), "scorer 1: fingerprint must be"),
        (lambda c: c["members"][0].update(calibration=3), "scorer 1: calibration must be"),
        (lambda c: c["members"][1].pop("mean"), "x.json: scorer 2 lacks 'mean'"),
    ],
)
def test_a_damaged_file_names_itself_scorer_and_key(reference, change, message):
    contents = json.loads(reference.read_text())
    change(contents)
    path = reference.with_name("x.json")
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=message) as caught:
        Ensemble.from_reference(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_an_ensemble_that_holds_itself_is_named(reference):
    contents = json.loads(reference.read_text())
    other = reference.with_name("other.json")
    contents["members"][0]["load"]["name_or_path"] = str(reference)
    other.write_text(json.dumps(contents))
    for named in (reference, other):  # itself, and one that names it
        contents["members"][0]["load"]["name_or_path"] = str(named)
        reference.write_text(json.dumps(contents))
        with pytest.raises(
            ValueError, match="names .*json, an ensemble that it is part of"
        ) as caught:
            load_scorer(reference, device="cpu")
        assert "\n" not in str(caught.value)


def test_an_ensemble_of_an_ensemble_is_a_scorer(reference):
    inner = load_scorer(reference, device="cpu")
    contents = json.loads(reference.read_text())
    entry = {"load": {"name_or_path": str(reference)}, "fingerprint": inner.card.fingerprint}
    contents["members"][0] = {**contents["members"][0], **entry}
    outer = reference.with_name("outer.json")
    outer.write_text(json.dumps(contents))
    assert load_scorer(outer, device="cpu").card.name.startswith("ensemble of ensemble of")
