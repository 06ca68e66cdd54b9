"""What each scorer takes of a GPU: its weights, and what a pass takes beside them; writes memory.md.

    python benchmarks/memory.py

The published architectures without their weights: `working_memory` runs them on "meta", so it needs
neither a GPU nor the checkpoints. On a CUDA machine the last column is measured on the device, with
weights of zeros.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import subjects  # noqa: E402
import tiny_qwen  # noqa: E402
import tiny_vit  # noqa: E402

from tastemaker.scorers import Scorer, load_scorer  # noqa: E402
from tastemaker.scorers.joyquality import JoyQuality  # noqa: E402
from tastemaker.scorers.qrealign import SIZES  # noqa: E402
from tastemaker.scorers.qwen_text import TextTower  # noqa: E402
from tastemaker.scorers.qwen_vision import VisionTower  # noqa: E402
from tastemaker.scorers.rali import CLIP_DEFAULTS, AnchorHead, Preprocessing, Rali  # noqa: E402
from tastemaker.scorers.vit import VitConfig  # noqa: E402
from tastemaker.scorers.working_memory import working_memory  # noqa: E402

SIDES = (512, 1024, 2048)
HEADER = [
    "scorer",
    "precision",
    "weights",
    "picture",
    "1 picture",
    "a batch",
    "of",
    "on the device",
]


def main() -> None:
    rows = []
    for name, scorer in scorers():
        weights = sum(w.numel() * w.element_size() for w in scorer.state_dict().values())
        for side in SIDES:
            batch = scorer.default_batch_size
            one, many = (working_memory(scorer, n, side, side) for n in (1, batch))
            precision = str(scorer.dtype).removeprefix("torch.")
            found = [name, precision, mib(weights), f"{side} x {side}", mib(one), mib(many), batch]
            rows.append([*map(str, found), on_device(scorer, side)])
    print(measure.table(HEADER, rows))
    Path(__file__).with_suffix(".md").write_text(
        "# Memory\n\nWritten by `python benchmarks/memory.py`; do not edit. MiB. Weights, then what a "
        "pass without\ngradient takes beside them, for 8-bit pictures, by `working_memory`: the peak of "
        "what the\noperations allocate, attention fused. What an allocator rounds up is not in it.\n\n"
        + measure.table(HEADER, rows),
        encoding="utf-8",
    )


def scorers() -> list[tuple[str, Scorer]]:
    """The published sizes, on "meta"; nano as it is."""
    with torch.device("meta"):
        config = VitConfig(**subjects.JOYQUALITY["full"])
        joyquality = JoyQuality(config, torch.bfloat16, "")
        sizes = dict(subjects.RALI["full"])
        head = AnchorHead(*(sizes.pop(part) for part in ("embedding", "reduced", "anchors")))
        config = VitConfig(**{**CLIP_DEFAULTS, **sizes, "patch_size": 14})
        crop = config.image_size
        pixels = Preprocessing(crop, crop, tiny_vit.CLIP_MEAN, tiny_vit.CLIP_STD)
        rali = Rali(config, head, pixels, torch.float32, "", None)
    return [
        ("nano", load_scorer("nano", device="cpu")),
        ("JoyQuality", joyquality.freeze()),
        ("RALI", rali.freeze()),
        *((f"Q-ReAlign {size}", qrealign(size)) for size in ("mini", "lite", "pro")),
    ]


def qrealign(size: str) -> Scorer:
    """A tiny checkpoint's scorer whose towers were replaced by those of the published size."""
    sizes = subjects.QWEN[size]
    with tempfile.TemporaryDirectory() as folder:
        scorer = load_scorer(tiny_qwen.write_checkpoint(Path(folder) / "q"), device="cpu")
    tokenizer = tiny_qwen.make_tokenizer()
    with torch.device("meta"):
        config = tiny_qwen.make_config(tokenizer, text=sizes["text"], vision=sizes["vision"])
        visual, text = VisionTower(config.vision_config), TextTower(config.text_config)
        reader, width = scorer.reader, sizes["text"]["hidden_size"]
        reader.visual, reader.language_model = visual.bfloat16(), text.bfloat16()
        reader.visual.fold_patches(scorer._pixels.mean, scorer._pixels.std)
        reader.embedding = nn.Parameter(torch.empty(len(reader.embedding), width).bfloat16())
        scorer.levels = nn.Parameter(torch.empty(5, width).bfloat16())
    scorer.default_batch_size = {name.rsplit("-")[-1]: n for name, n in SIZES.values()}[size]
    return scorer.freeze()


def on_device(scorer: Scorer, side: int) -> str:
    """The peak of a batch beside the weights, in MiB, measured where there is a GPU."""
    if not torch.cuda.is_available():
        return "not measured"
    device = torch.device("cuda")
    scorer = scorer.to_empty(device=device)
    pictures = torch.zeros(scorer.default_batch_size, 3, side, side, dtype=torch.uint8)
    with torch.inference_mode():
        scorer.score_runs([pictures.to(device)])  # what libraries keep for themselves comes first
        return mib(measure.peak_memory(lambda: scorer.score_runs([pictures.to(device)]), device))


def mib(size: int) -> str:
    return f"{size / 2**20:,.0f}"


if __name__ == "__main__":
    main()
