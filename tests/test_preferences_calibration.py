"""Method A and B of the seed: tau and b recovered, ranks as published, upstream's bugs not repeated."""

import json
import math

import numpy as np
import pytest
import torch
from cli_tools import Cli, flat_picture

from tastemaker.preferences.comparisons import Comparisons, write_comparisons
from tastemaker.preferences.evaluation import evaluate_comparisons
from tastemaker.preferences.votes import Votes
from tastemaker.ranking import (
    Calibration,
    buckets,
    calibrated_rank,
    fit_tau,
    rank_bucket,
    solve_b,
)


def simulated(tau: float, b: float, n: int = 400, count: int = 20_000, seed: int = 0):
    """Scores tau * z + b of latents z, and votes drawn with the odds that the latents give."""
    rng = np.random.default_rng(seed)
    z = rng.normal(size=n) * 2
    pairs = rng.integers(n, size=(count, 2))
    y = rng.random(count) < 1 / (1 + np.exp(z[pairs[:, 1]] - z[pairs[:, 0]]))
    return torch.tensor(z), torch.tensor(tau * z + b), torch.tensor(pairs), torch.tensor(y * 1.0)


@pytest.mark.parametrize(("tau", "b"), [(1.0, 0.0), (0.05, 0.7), (30.0, -400.0)])
def test_tau_and_b_are_recovered_and_the_ranks_are_those_of_the_latents(tau, b):
    z, scores, pairs, y = simulated(tau, b)
    truth = 10 * torch.sigmoid(z)
    fitted = Calibration.fit(scores, pairs, y, target_mean=float(truth.mean()))
    assert fitted.tau == pytest.approx(tau, rel=0.05)
    assert fitted.b == pytest.approx(b, abs=0.05 * tau)
    assert float((fitted.rank(scores) - truth).abs().max()) < 0.25
    # Without noise there is nothing left of the difference.
    exact = torch.sigmoid((scores[pairs[:, 0]] - scores[pairs[:, 1]]) / tau)
    fitted = Calibration.fit(scores, pairs, exact, target_mean=float(truth.mean()))
    torch.testing.assert_close(fitted.rank(scores), truth, atol=1e-4, rtol=0)


def test_the_mean_rank_is_5_of_10_and_not_of_9():
    """Upstream solves b for ranks up to 9, then multiplies by 10: its mean is 5.56."""
    _, scores, pairs, y = simulated(0.7, 3.0)
    tau = fit_tau(scores, pairs, y)
    low, high = scores.min() - 10 * tau, scores.max() + 10 * tau
    for _ in range(100):  # the README's search
        b = (low + high) / 2
        too_high = 9 * torch.sigmoid((scores - b) / tau).mean() > 5
        low, high = (b, high) if too_high else (low, b)
    assert float(calibrated_rank(scores, tau, float(b)).mean()) == pytest.approx(50 / 9, abs=1e-6)
    ours = Calibration(tau, solve_b(scores, tau, 5.0))
    assert float(ours.rank(scores).mean()) == pytest.approx(5, abs=1e-9)


def test_ten_buckets_are_0_to_9_where_the_sigmoid_saturates():
    ranks = calibrated_rank(torch.tensor([-1e4, -1.0, 0.0, 1.0, 1e4]), 1.0, 0.0)
    assert ranks.int().tolist() == [0, 2, 5, 7, 10]  # the README's int(rank): an eleventh bucket
    assert rank_bucket(ranks).tolist() == [0, 2, 5, 7, 9]


def test_method_a_divides_the_range_and_method_b_keeps_the_odds():
    scores = torch.cat([torch.linspace(0, 0.99, 90), torch.linspace(3, 10, 10)])
    by_range = buckets(scores, 10)
    assert by_range[0] == 0 and by_range[-1] == 9
    assert by_range.bincount(minlength=10)[0] == 90  # nine tenths lie in the lowest tenth
    ranks = Calibration(1.0, solve_b(scores, 1.0)).rank(scores)
    logit = (ranks / (10 - ranks)).log()
    torch.testing.assert_close(logit.diff(), scores.diff(), atol=1e-3, rtol=0)


def test_an_evaluation_knows_the_scale_that_was_simulated():
    z, scores, pairs, y = simulated(0.05, 0.7, n=200, count=5000)
    images = [f"/x/{i}.png" for i in range(len(z))]
    votes = Comparisons.of((images[i], images[j], p) for (i, j), p in zip(pairs, y, strict=True)
                           if i != j)  # fmt: skip
    by_image = {image: float(scores[int(image.name[:-4])]) for image in votes.images}
    right = evaluate_comparisons(by_image, votes, tau=0.05, rounds=50).metrics
    bold = evaluate_comparisons(by_image, votes, tau=0.01, rounds=50).metrics
    assert right["ece"].value < 0.02 < bold["ece"].low
    assert right["nll"].high < bold["nll"].low
    assert right["accuracy"] == bold["accuracy"]


# Through the command line


@pytest.fixture
def run(monkeypatch, tmp_path_factory):
    return Cli(monkeypatch, tmp_path_factory.mktemp("home"))


def greys(folder, count=12):
    return [flat_picture(folder / f"{i:02}.png", 20 * i) for i in range(count)]


def calibration(run, folder, pairs, out) -> dict:
    run("calibrate", folder, "--scorer", "nano", "--pairs", pairs, "--out", out)
    (member,) = json.loads(out.read_text())["members"]
    return member["calibration"]


def test_comparisons_of_every_kind_fit_tau_and_b(run, tmp_path):
    """One difference of 40 / 255, won 3 times of 4: tau = 40 / 255 / ln 3."""
    paths = greys(tmp_path / "in")
    bright, dark = paths[6], paths[4]
    tau = 40 / 255 / math.log(3)
    wins = [(bright, dark, 1), (dark, bright, 0), (bright, dark, 1), (dark, bright, 1)]
    other = [(dark, bright, 1)]  # what a scorer was trained on does not count
    write_comparisons(tmp_path / "p.json", Comparisons.of(other), Comparisons.of(wins))
    write_comparisons(tmp_path / "p.csv", Comparisons.of([(bright, dark, 0.75)]))
    (tmp_path / "old.csv").write_text(f"{bright},{dark}\n" * 3 + f"{dark},{bright}\n")
    store = Votes(tmp_path / "v.db", tmp_path / "in")
    for i, answer in enumerate(("left", "left", "left", "right")):  # each pair can be asked once
        store.add("me", paths[i + 2], paths[i], answer)
    for name in ("p.json", "p.csv", "old.csv", "v.db"):
        fitted = calibration(run, tmp_path / "in", tmp_path / name, tmp_path / "r.json")
        assert fitted["tau"] == pytest.approx(tau, rel=1e-5), name
        ranks = calibrated_rank([20 * i / 255 for i in range(12)], **fitted)
        assert float(ranks.mean()) == pytest.approx(5, abs=1e-4)


def test_a_tie_says_that_the_scores_are_not_so_far_apart(run, tmp_path):
    paths = greys(tmp_path / "in")
    bright, dark = paths[6], paths[4]
    rows = [(bright, dark, 1)] * 2 + [(bright, dark, 0.5)] * 2
    write_comparisons(tmp_path / "p.json", Comparisons.of(rows))
    fitted = calibration(run, tmp_path / "in", tmp_path / "p.json", tmp_path / "r.json")
    assert fitted["tau"] == pytest.approx(40 / 255 / math.log(3), rel=1e-5)  # 3 of 4 as well


def test_tags_take_comparisons_too(run, tmp_path):
    paths = greys(tmp_path / "in")
    write_comparisons(tmp_path / "p.csv", Comparisons.of([(paths[6], paths[4], 0.75)]))
    output = run("tag", tmp_path / "in", "--method", "calibrated", "--pairs", tmp_path / "p.csv")
    tau = float(output.stdout.split()[1].rstrip(","))
    assert tau == pytest.approx(40 / 255 / math.log(3), rel=1e-5)
    write_comparisons(tmp_path / "q.csv", Comparisons.of([(paths[6], tmp_path / "x.png", 0.7)]))
    assert "compared, but not among the scored pictures" in run.error(
        "tag", tmp_path / "in", "--method", "calibrated", "--pairs", tmp_path / "q.csv"
    )
