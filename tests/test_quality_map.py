"""Quality maps: tiles that cover, a blend without seams, masks, and faults that are found."""

import math
from importlib.metadata import files
from random import Random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tastemaker import load_scorer
from tastemaker.report.quality_overlay import colours, draw_overlay
from tastemaker.scorers.corruptions import CORRUPTIONS
from tastemaker.scorers.quality_map import (
    Grid,
    badness,
    below,
    below_median,
    blend,
    detail,
    feather,
    quality_map,
    scale_of,
    spare_flat,
    windows,
    without_specks,
    worst_share,
)

GRIDS = st.builds(
    Grid.of,
    st.integers(1, 90),
    st.integers(1, 90),
    st.integers(1, 40),
    st.sampled_from([0.0, 0.25, 0.5, 0.75, 0.9]),
)


def brightness(tiles: torch.Tensor) -> torch.Tensor:
    return (tiles.float() / 255).mean((1, 2, 3))


@given(GRIDS)
def test_tiles_of_one_size_cover_the_picture_up_to_its_edges(grid):
    covered = torch.zeros(grid.height, grid.width, dtype=torch.bool)
    for box in grid.boxes:
        assert covered[box].shape == grid.tile
        covered[box] = True
    assert covered.all() and len(grid.boxes) == math.prod(grid.shape)
    assert grid.boxes[0][0].start == grid.boxes[0][1].start == 0
    assert (grid.boxes[-1][0].stop, grid.boxes[-1][1].stop) == (grid.height, grid.width)


@given(st.integers(1, 200), st.integers(1, 64), st.floats(0, 0.9))
def test_neighbours_overlap_at_least_as_asked_and_none_is_there_twice(length, tile, overlap):
    tops, (h, _) = (grid := Grid.of(length, 1, tile, overlap)).tops, grid.tile
    steps = [b - a for a, b in zip(tops, tops[1:], strict=False)]
    # Positions are whole pixels: half a pixel of rounding at either end.
    assert all(0 < step <= max(1, h * (1 - overlap)) + 1 for step in steps)


@given(GRIDS)
def test_windows_are_a_partition_of_unity(grid):
    weights = windows(grid.tops, grid.tile[0], grid.height)
    assert (weights >= 0).all()
    torch.testing.assert_close(weights.sum(0), torch.ones(grid.height, dtype=torch.float64))


@given(GRIDS, st.floats(-5, 5, width=32))
def test_constant_scores_give_a_constant_map(grid, score):
    field = blend(torch.full(grid.shape, score), grid)
    assert field.shape == (grid.height, grid.width)
    assert (field == score).all()


@given(GRIDS, st.integers(0, 2**31))
def test_a_map_stays_within_the_scores_and_survives_tiles_without_one(grid, seed):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(grid.shape, generator=generator)
    known = torch.rand(grid.shape, generator=generator) > 0.3
    field = blend(scores.where(known, torch.nan), grid)
    reached = torch.zeros(field.shape, dtype=torch.bool)
    for box, is_known in zip(grid.boxes, known.flatten().tolist(), strict=True):
        reached[box] |= is_known
    assert (torch.isfinite(field) <= reached).all()
    if known.any():
        finite = field[torch.isfinite(field)]
        assert (finite >= scores[known].min()).all() and (finite <= scores[known].max()).all()
    else:
        assert field.isnan().all()


def test_a_map_has_no_seams():
    grid = Grid.of(512, 384, 128, 0.5)
    field = blend(torch.randn(grid.shape, generator=torch.Generator().manual_seed(0)), grid)
    spread = field.max() - field.min()
    for axis in (0, 1):  # a raised cosine over 64 px changes by at most pi / 128 of it a pixel
        assert field.diff(dim=axis).abs().max() < 1.05 * math.pi / 128 * spread


def test_a_tile_without_a_score_is_filled_by_its_neighbours_and_a_lone_one_is_nan():
    grid = Grid.of(64, 64, 32, 0.5)
    scores = torch.full(grid.shape, 2.0)
    scores[1, 1] = torch.nan
    assert (blend(scores, grid) == 2).all()
    assert blend(torch.tensor([[torch.nan]]), Grid.of(8, 8, 32)).isnan().all()


@pytest.mark.parametrize("tile, overlap", [(0, 0.5), (32, 1.0), (32, -0.1), (32, math.nan)])
def test_impossible_tiles_are_refused(tile, overlap):
    with pytest.raises(ValueError, match="a tile needs"):
        Grid.of(64, 64, tile, overlap)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_map_follows_any_scorer(batch_size):
    picture = torch.zeros(3, 96, 160, dtype=torch.uint8)
    picture[:, :, 80:] = 255
    field = quality_map(brightness, picture, tile=32, flat=0, batch_size=batch_size)
    assert field.shape == (96, 160) and field.dtype == torch.float32
    assert (field[:, :64] == 0).all() and (field[:, 96:] == 1).all()
    assert (field.diff(dim=1) >= 0).all()


def test_a_picture_smaller_than_a_tile_is_one_tile():
    picture = torch.full((3, 20, 30), 51, dtype=torch.uint8)
    field = quality_map(brightness, picture, tile=256)
    assert field.shape == (20, 30) and torch.allclose(field, torch.tensor(0.2))
    assert not worst_share(field, 0.5).any(), "nothing is worse than the rest of it"


def test_flat_tiles_are_drawn_to_the_median_and_others_are_left():
    scores = torch.tensor([-4.0, 0.0, 1.0, 2.0, -4.0, torch.nan])
    details = torch.tensor([0.0, 50.0, 50.0, 50.0, 1e6, 0.0])
    spared = spare_flat(scores, details, 10.0)
    assert spared[0] == 0.0 and spared[4] == pytest.approx(-4.0, abs=1e-3)
    assert spared[5].isnan()
    assert torch.equal(spare_flat(scores, details, 0.0)[:5], scores[:5])


def test_detail_is_that_of_a_surface_not_of_a_gradient_or_noise():
    x = torch.linspace(0, 1, 128).expand(3, 128, 128)
    noise = 0.5 + 0.1 * torch.randn(3, 128, 128, generator=torch.Generator().manual_seed(0))
    checks = ((torch.arange(128) // 32)[:, None] + torch.arange(128) // 32).remainder(2)
    checks = checks.expand(3, -1, -1).float()
    gradient, noisy, checked = detail(torch.stack([x, noise, checks])).tolist()
    assert max(gradient, noisy) < 8 and checked > 50
    assert detail((255 * checks[None]).byte()).item() == pytest.approx(checked, rel=1e-5)


@given(st.floats(0, 1), st.integers(0, 2**31))
def test_the_worst_share_is_that_share_and_worse_than_the_rest(share, seed):
    field = torch.randn(24, 30, generator=torch.Generator().manual_seed(seed))
    mask = worst_share(field, share)
    assert mask.sum() == min(math.ceil(share * field.numel()), field.numel())
    if mask.any() and not mask.all():
        assert field[mask].max() < field[~mask].min()


def test_what_has_no_score_is_never_in_a_mask():
    field = torch.tensor([[1.0, torch.nan, 3.0, 9.0]])
    assert worst_share(field, 0.3).tolist() == [[True, False, False, False]]
    assert below(field, 3.0).tolist() == [[True, False, True, False]]
    assert below_median(field, 1.0).tolist() == [[True, False, False, False]]
    nothing = torch.full((2, 2), torch.nan)
    assert not any(f(nothing, 0.5).any() for f in (worst_share, below, below_median))


def test_specks_go_and_regions_stay():
    mask = torch.zeros(60, 60, dtype=torch.bool)
    mask[10:30, 0:20] = True  # at the edge
    region = mask.clone()
    mask[50, 50] = mask[40:43, 40:43] = True
    assert torch.equal(without_specks(mask, 4), region)
    lone = torch.zeros(20, 20, dtype=torch.bool)
    lone[3, 3] = True
    assert torch.equal(without_specks(lone, 4), lone), "what is all there is stays"


@given(st.integers(0, 20), st.integers(0, 2**31))
def test_feather_keeps_to_its_reach(reach, seed):
    mask = torch.rand(17, 23, generator=torch.Generator().manual_seed(seed)) > 0.5
    soft = feather(mask, reach)
    assert soft.shape == mask.shape and soft.min() >= 0 and soft.max() <= 1
    if reach == 0:
        assert torch.equal(soft, mask.float())


def test_feather_is_soft_symmetric_and_local():
    mask = torch.zeros(40, 60, dtype=torch.bool)
    mask[:, 30:] = True
    soft = feather(mask, 8)
    assert (soft[:, :22] == 0).all() and torch.allclose(soft[:, 38:], torch.ones(()))
    assert (soft.diff(dim=1) >= -1e-6).all()
    assert torch.allclose(soft + soft.flip(1), torch.ones(()), atol=1e-6)


def test_an_even_picture_looks_good_everywhere():
    card = load_scorer("nano").card
    even = torch.tensor([[0.30, 0.31]])
    worst, best = scale_of(even, card)
    assert best == pytest.approx(0.31) and worst == pytest.approx(-0.69)
    assert badness(even, (worst, best)).max() < 0.02
    uneven = torch.tensor([[-2.0, torch.nan, 1.0]])
    assert badness(uneven, scale_of(uneven, card)).tolist() == [[1.0, 0.0, 0.0]]


def test_colours_run_from_blue_to_red():
    good, bad = colours(torch.tensor([0.0, 1.0]))
    assert good.argmax() == 2 and bad.argmax() == 0


def test_the_overlay_colours_what_is_lost_and_keeps_the_picture_above_its_legend():
    picture = torch.full((200, 300, 3), 0.5)
    field = torch.ones(200, 300)
    field[:, 200:], field[:, :50] = -2.0, torch.nan
    drawn = np.asarray(draw_overlay(picture, field, field < 0, (-2.0, 1.0), "nano")).astype(int)
    red, green, blue = drawn[100, 290]
    assert red > green + 40 and red > blue + 40
    assert drawn[100, 100, 2] > drawn[100, 100, 0], "good is blue"
    assert len(set(drawn[100, 20])) == 1, "without a score it stays grey"
    assert (drawn[100, 195:200] == 255).all(-1).any(), "the mask's outline"
    assert drawn.shape[1] == 300 and drawn.shape[0] > 200
    assert drawn[200:].max() > 200, "the legend has writing"


@pytest.mark.parametrize("score", [0.0, math.nan])
@pytest.mark.parametrize("size", [(1, 1), (9, 40), (40, 9), (40, 8)])
def test_tiny_pictures_and_pictures_without_a_score_are_drawn(size, score):
    field = torch.full(size, score)
    drawn = draw_overlay(torch.rand(*size, 3), field, field < 0, (score - 1, score))
    assert drawn.width == size[1]


# Faults of known place in real pictures, as a user's picture might have them.
FAULTS = {"blur": {"radius": 4.0}, "jpeg": {"quality": 8}, "noise": {"sigma": 25.0}}


def real_pictures() -> list[Image.Image]:
    """Every picture of 1024 x 1024 in the installed package."""
    found = files("comfyui-workflow-templates-media-image") or []
    paths = sorted(str(f.locate()) for f in found if f.suffix == ".webp")
    opened = (Image.open(path) for path in paths)
    return [picture.convert("RGB") for picture in opened if picture.size == (1024, 1024)]


def spoiled(picture: Image.Image, kind: str, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """uint8 [3, H, W] with a fault in a rectangle, and the rectangle, bool [H, W]."""
    rng, (width, height) = Random(seed), picture.size
    h, w = rng.randint(height // 4, height // 3), rng.randint(width // 4, width // 3)
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    pixels, inside = np.array(picture), np.zeros((height, width), dtype=bool)
    inside[top : top + h, left : left + w] = True
    pixels[inside] = np.array(CORRUPTIONS[kind](picture, rng, **FAULTS[kind]))[inside]
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(inside)


@pytest.mark.slow
def test_the_worst_region_is_where_the_fault_is():
    scorer, pictures = load_scorer("nano"), real_pictures()
    assert len(pictures) >= 8
    hits, shares, before, overlaps = [], [], [], []
    for i, picture in enumerate(pictures[:12]):
        clean = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 255
        mask_before = without_specks(worst_share(quality_map(scorer, clean), 0.05), 16)
        for kind in FAULTS:
            pixels, inside = spoiled(picture, kind, i)
            field = quality_map(scorer, pixels.float() / 255)
            mask = without_specks(worst_share(field, 0.05), 16)
            hits.append(inside.flatten()[field.argmin()].item())
            shares.append((mask & inside).sum().item() / mask.sum().item())
            before.append((mask_before & inside).sum().item() / mask_before.sum().item())
            mask = without_specks(worst_share(field, inside.float().mean().item()), 16)
            overlaps.append(((mask & inside).sum() / (mask | inside).sum()).item())
    hit, share, chance, overlap = (float(np.mean(x)) for x in (hits, shares, before, overlaps))
    print(f"hits {hit:.2f} share {share:.2f} (clean {chance:.2f}) IoU {overlap:.2f}")
    # A rectangle is a twelfth of the picture. Some lie in skies, where blur does nothing, and some
    # pictures are softer elsewhere; that is why it is not 1.
    assert hit > 0.6 and share > 0.45 and share > 5 * chance and overlap > 0.28
