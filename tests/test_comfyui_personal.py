"""A personal scorer's folder in models/tastemaker is a scorer like any other in a server."""

import json

import pytest
import tiny_vit
import torch

from tastemaker.scorers import load_scorer
from tastemaker.scorers.checkpoint import write_checkpoint
from tastemaker.scorers.personal import base_entry, feature_size, head_state

pytestmark = pytest.mark.comfyui

SIZES = [(96, 128), (128, 96), (64, 64)]


@pytest.fixture(scope="module")
def files(comfyui, tmp_path_factory):
    folder = tmp_path_factory.mktemp("personal")
    paths = [folder / f"personal_{i}.png" for i in range(len(SIZES))]
    for path, picture in zip(paths, tiny_vit.pictures(SIZES), strict=True):
        picture.save(path)
    comfyui.put(*paths)
    return paths


@pytest.fixture(scope="module")
def folders(comfyui):
    """One on nano, and one on another folder of models/tastemaker."""
    root = comfyui.base / "models" / "tastemaker"
    root.mkdir(parents=True, exist_ok=True)
    tiny_vit.make_joyquality().save_pretrained(root / "a-base")
    for name, base in {"taste-on-nano": "nano", "taste-on-siglip": root / "a-base"}.items():
        scorer = load_scorer(base, device="cpu")
        g = torch.Generator().manual_seed(0)
        weight, center = torch.randn(2, feature_size(scorer), generator=g)
        config = {"tastemaker": "personal", "name": name, "base": base_entry(base, scorer.card)}
        write_checkpoint(root / name, config, head_state(weight / 10, center, 0.5, 0.0))
    return root


@pytest.mark.parametrize("name", ["taste-on-nano", "taste-on-siglip"])
def test_it_is_in_the_menu_and_scores_as_its_files_do(comfyui, files, folders, name):
    own = f"models/tastemaker/{name}"
    listed = comfyui.object_info("TastemakerLoadScorer")["TastemakerLoadScorer"]["input"]
    assert own in [option["key"] for option in listed["required"]["scorer"][1]["options"]]
    spec = json.dumps([{"files": [path.name]} for path in files])
    load = {"scorer": own, "scorer.dtype": "float32"}
    score = {"scorer": ["load", 0], "images": ["images", 0], "preview": False}
    comfyui.run(
        {
            "images": {"class_type": "ProbeImages", "inputs": {"spec": spec}},
            "load": {"class_type": "TastemakerLoadScorer", "inputs": load},
            "score": {"class_type": "TastemakerScoreImages", "inputs": score},
            "dump": {"class_type": "ProbeDump", "inputs": {"name": "mine", "value": ["score", 2]}},
        }
    )
    found = torch.tensor(json.loads((comfyui.output / "mine.json").read_text()))
    expected = load_scorer(folders / name, device="cpu").score(files)
    assert torch.allclose(found, expected, atol=1e-6) and expected.std() > 0.01
