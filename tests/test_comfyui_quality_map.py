"""Quality Map in the server: a fault in a real picture is masked, and odd input is survived."""

import json
from importlib.metadata import files
from random import Random

import numpy as np
import pytest
import torch
from PIL import Image

from tastemaker import load_scorer
from tastemaker.scorers.corruptions import noise
from tastemaker.scorers.quality_map import (
    Grid,
    detail,
    quality_map,
    spare_flat,
    without_specks,
    worst_share,
)

pytestmark = pytest.mark.comfyui

FAULT = (slice(224, 480), slice(160, 416))  # rows and columns


def graph(parts: list, region: dict | None = None, **inputs) -> dict:
    region = region or {"region": "worst share", "region.share": 0.1}
    widgets = {"tile": 128, "overlap": 0.5, "flat": 10.0, "feather": 0, **region, **inputs}
    nodes = {
        "1": {"class_type": "ProbeImages", "inputs": {"spec": json.dumps(parts)}},
        "2": {"class_type": "TastemakerLoadScorer", "inputs": {"scorer": "nano"}},
        "3": {
            "class_type": "TastemakerQualityMap",
            "inputs": {"scorer": ["2", 0], "images": ["1", 0], **widgets},
        },
    }
    for i, name in enumerate(["overlay", "mask", "map", "worst_tile", "worst_score"]):
        nodes[f"dump_{name}"] = {
            "class_type": "ProbeDump",
            "inputs": {"name": f"map_{name}", "value": ["3", i]},
        }
    return nodes


def dumped(comfyui, name: str) -> list:
    return json.loads((comfyui.output / f"map_{name}.json").read_text())


def shapes(comfyui, name: str) -> list[list[int]]:
    return [part["shape"] for part in dumped(comfyui, name)]


def saved_mask(comfyui, prompt: dict, output: int) -> torch.Tensor:
    """What Save Image makes of a mask output, [H, W] in [0, 1]."""
    prompt["to_image"] = {"class_type": "MaskToImage", "inputs": {"mask": ["3", output]}}
    prompt["save"] = {
        "class_type": "SaveImage",
        "inputs": {"images": ["to_image", 0], "filename_prefix": "quality_map"},
    }
    (path,) = comfyui.files(comfyui.run(prompt), "save")
    with Image.open(path) as picture:
        return torch.from_numpy(np.array(picture.convert("L"), dtype=np.float32) / 255)


@pytest.fixture(scope="module")
def picture(comfyui, tmp_path_factory) -> Image.Image:
    """A real picture, noise in a square of it, in ComfyUI's input folder."""
    found = files("comfyui-workflow-templates-media-image") or []
    (path,) = [f.locate() for f in found if f.name == "sd3.5_large_depth-1.webp"]
    with Image.open(path) as file:
        clean = file.convert("RGB").crop((192, 96, 832, 736))
    pixels = np.array(clean)
    pixels[FAULT] = noise(pixels, Random(0), sigma=25.0)[FAULT]
    spoiled = Image.fromarray(pixels)
    name = tmp_path_factory.mktemp("map") / "map_spoiled.png"
    spoiled.save(name)
    comfyui.put(name)
    return spoiled


def test_the_mask_lies_on_the_spoiled_region_of_a_real_picture(comfyui, picture):
    mask = saved_mask(comfyui, graph([{"files": ["map_spoiled.png"]}]), 1)
    assert mask.shape == (640, 640) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0.06 < mask.mean() < 0.13
    assert mask[FAULT].sum() / mask.sum() > 0.75
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    field = quality_map(lambda tiles: load_scorer("nano").score(list(tiles)), pixels)
    expected = without_specks(worst_share(field, 0.1), 16)
    assert (expected != mask.bool()).float().mean() < 1e-3


def test_the_continuous_map_is_bad_at_one_and_feather_softens_the_mask(comfyui, picture):
    parts = [{"files": ["map_spoiled.png"]}]
    field = saved_mask(comfyui, graph(parts), 2)
    assert field.min() == 0 and field.max() == 1
    elsewhere = (field.sum() - field[FAULT].sum()) / (field.numel() - 256 * 256)
    assert field[FAULT].mean() > elsewhere + 0.2
    soft = saved_mask(comfyui, graph(parts, feather=16), 1)
    assert ((soft > 0.1) & (soft < 0.9)).any()


def test_the_worst_tile_is_the_one_that_the_pure_functions_name(comfyui, picture):
    entry = comfyui.run(graph([{"files": ["map_spoiled.png"]}]))
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)
    tiles = torch.stack([pixels[:, y, x] for y, x in Grid.of(640, 640).boxes])
    scores = load_scorer("nano").score(list(tiles))
    worst = spare_flat(scores, detail(tiles), 10.0).argmin()
    assert dumped(comfyui, "worst_score") == [pytest.approx(scores[worst].item(), abs=1e-4)]
    assert shapes(comfyui, "worst_tile") == [[1, 128, 128, 3]]
    (shown,) = comfyui.files(entry, "3")
    with Image.open(shown) as overlay:
        assert overlay.width == 640 and 640 < overlay.height < 740


def test_a_list_of_sizes_and_batches_comes_back_as_it_came(comfyui):
    parts = [
        {"count": 2, "height": 200, "width": 150},
        {"count": 1, "height": 96, "width": 300, "channels": 1},
        {"count": 1, "height": 160, "width": 160, "channels": 4},
    ]
    entry = comfyui.run(graph(parts))
    sizes = [[2, 200, 150], [1, 96, 300], [1, 160, 160]]
    assert shapes(comfyui, "mask") == shapes(comfyui, "map") == sizes
    overlays = shapes(comfyui, "overlay")
    assert [[o[0], o[2], o[3]] for o in overlays] == [[2, 150, 3], [1, 300, 3], [1, 160, 3]]
    assert len(dumped(comfyui, "worst_score")) == len(comfyui.files(entry, "3")) == 4


def test_a_picture_smaller_than_a_tile_has_a_score_and_no_worst_part(comfyui):
    mask = saved_mask(comfyui, graph([{"height": 40, "width": 56}]), 1)
    assert mask.shape == (40, 56) and not mask.any()
    assert shapes(comfyui, "worst_tile") == [[1, 40, 56, 3]]
    assert all(np.isfinite(dumped(comfyui, "worst_score")))


def test_a_picture_that_is_not_finite_has_no_mask_and_the_others_keep_theirs(comfyui):
    parts = [{"count": 2, "height": 256, "width": 256, "nan": [0]}]
    mark = comfyui.mark()
    comfyui.run(graph(parts))
    assert "not finite" in comfyui.log(mark)
    lost, fine = dumped(comfyui, "worst_score")
    assert np.isnan(lost) and np.isfinite(fine)
    (masks,) = dumped(comfyui, "mask")
    assert masks["shape"] == [2, 256, 256] and masks["digests"][0] != masks["digests"][1]


@pytest.mark.parametrize(
    "region, everything",
    [
        ({"region": "below score", "region.score": 1000.0}, 1.0),
        ({"region": "below score", "region.score": -1000.0}, 0.0),
        ({"region": "below median", "region.margin": 1000.0}, 0.0),
        ({"region": "worst share", "region.share": 0.0}, 0.0),
    ],
)
def test_every_region_does_what_its_name_says(comfyui, region, everything):
    mask = saved_mask(comfyui, graph([{"height": 200, "width": 200}], region), 1)
    assert (mask == everything).all()


def test_below_median_masks_what_is_worse_than_the_middle(comfyui, picture):
    region = {"region": "below median", "region.margin": 0.5}
    mask = saved_mask(comfyui, graph([{"files": ["map_spoiled.png"]}], region), 1)
    assert 0 < mask.mean() < 0.5


def test_no_image_blocks_what_follows(comfyui):
    (comfyui.output / "map_mask.json").unlink(missing_ok=True)
    comfyui.run(graph([{"count": 0}]))
    assert not (comfyui.output / "map_mask.json").exists()
