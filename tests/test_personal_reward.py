"""A personal scorer, trained from comparisons, does what scorers are for: ranks, chooses and guides."""

import diffusers
import numpy as np
import pytest
import tiny_pipes
import torch
from click.testing import CliRunner
from PIL import Image, ImageFilter

import tastemaker
from tastemaker.cli import main
from tastemaker.preferences import Comparisons, train
from tastemaker.scorers import load_scorer

SIZE = (64, 64)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """40 pictures of random blocks, more or less soft, and how soft."""
    folder = tmp_path_factory.mktemp("pictures")
    rng, radii = np.random.default_rng(0), np.linspace(0, 3, 40).tolist()
    for i, radius in enumerate(radii):
        pixels = np.kron(rng.integers(0, 256, (24, 24, 3), np.uint8), np.ones((4, 4, 1), np.uint8))
        Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(radius)).save(
            folder / f"{i:02}.png"
        )
    return sorted(folder.iterdir()), radii


@pytest.fixture(scope="module")
def folder(pictures, tmp_path_factory):
    """That of one who likes them sharp, whatever nano says of blocks."""
    images, radii = pictures
    rng, home = np.random.default_rng(1), tmp_path_factory.mktemp("home")
    pairs = [rng.choice(len(images), 2, replace=False) for _ in range(200)]
    votes = Comparisons.of((images[a], images[b], float(radii[a] < radii[b])) for a, b in pairs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TASTEMAKER_HOME", str(home))
        train(votes, out=home / "my-taste", test_fraction=0, progress=False)
    return home / "my-taste"


@pytest.fixture(scope="module")
def mine(folder):
    return load_scorer(folder, device="cpu")


def test_it_ranks_by_name(pictures, folder, monkeypatch, tmp_path):
    images, _ = pictures
    monkeypatch.setenv("TASTEMAKER_HOME", str(tmp_path / "home"))
    where = ["--scorer", str(folder), "--out", str(tmp_path / "out"), "--top", "40"]
    result = CliRunner().invoke(main, ["rank", str(images[0].parent), *where])
    assert result.exit_code == 0, result.output
    rows = [line.split() for line in result.stdout.splitlines()[1:]]
    names = [row[-1][-6:] for row in rows if row and row[0].isdigit()]
    expected = load_scorer(folder).score(images)
    order = expected.argsort(descending=True).tolist()
    assert names == [images[i].name for i in order[:5]]
    assert set(names) < {image.name for image in images[:10]}, "the sharp ones are the best"


def call():
    named = tiny_pipes.call("SD 1.5", size=SIZE)
    return {key: value for key, value in named.items() if key != "generator"}


def test_it_chooses_the_best_of_n(mine):
    pipe = tiny_pipes.make("SD 1.5")
    how = dict(pipe_kwargs=call(), progress=False, held_out=load_scorer("nano"))
    result = tastemaker.best_of_n(pipe, mine, n=4, keep=2, seeds=3, **how)
    order = result.all_scores.argsort(descending=True)[:2]
    assert result.seeds == [3 + int(i) for i in order]
    assert torch.allclose(mine.score(result.images), result.scores, atol=0.05), "but for rounding"
    assert result.all_scores.std() > 0


@pytest.mark.parametrize("through_model", [False, True])
def test_its_gradient_guides(mine, through_model):
    pipe = tiny_pipes.make("SD 1.5", diffusers.EulerDiscreteScheduler(**tiny_pipes.SD_SCHEDULE))
    plain = mine(made(pipe)).mean()
    options = dict(scale=0.2, window=(0, 1), through_model=through_model)
    with tastemaker.reward_guidance(pipe, mine, **options) as run:
        guided = mine(made(pipe)).mean()
    assert guided > plain + 0.01
    rewards = [row.reward for row in run.rows if row.reward is not None]
    assert len(rewards) == tiny_pipes.STEPS and all(r.isfinite().all() for r in rewards)


def made(pipe):
    """Pixels [2, 3, H, W] of two seeds."""
    return tiny_pipes.output(pipe, tiny_pipes.call("SD 1.5", 2, SIZE), "pt")


def test_the_gradient_is_that_of_what_was_learned(mine):
    """A step along it raises the score by what it says, for the head's part as for nano's."""
    x = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
    score = mine(x)
    (gradient,) = torch.autograd.grad(score.sum(), x)
    nano = load_scorer("nano")
    (own,) = torch.autograd.grad(nano(x).sum(), x)
    alike = torch.nn.functional.cosine_similarity(gradient.flatten(), own.flatten(), dim=0)
    assert alike.abs() < 0.9, "not the base's gradient"
    step = 1e-3 * gradient / gradient.norm()
    with torch.no_grad():
        rise = (mine(x + step) - mine(x - step)) / 2
    assert float(rise) == pytest.approx(1e-3 * float(gradient.norm()), rel=0.05)
