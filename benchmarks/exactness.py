"""How far our scores are from the official recipes', measured; writes benchmarks/exactness.md.

    python benchmarks/exactness.py

Tiny random models of the real classes, on the CPU. The spread of the pictures' scores stands beside
each error: an error means something only against it.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import subjects  # noqa: E402
import tiny_qwen  # noqa: E402

CPU = torch.device("cpu")
RESIZED = [(300, 517), (719, 483), (123, 180), (600, 400), (333, 333), (512, 300)]
HEADER = ["scorer", "against", "pictures", "largest error", "spread (std) of the scores"]


def main() -> None:
    rows = []
    for name, make in subjects.SUBJECTS.items():
        with tempfile.TemporaryDirectory() as folder:
            folder = Path(folder)
            torch.manual_seed(0)
            subject = make("tiny", folder / "model", CPU, "float32")
            rows += exactness(subject, folder)
            if name == "q-realign":
                rows += torchvision_backend(subject, folder)
            torch.manual_seed(0)  # the same random weights once more
            half = make("tiny", folder / "half", CPU, "bfloat16")
            rows.append(bfloat16(subject, half))
    text = HEAD.format(machine=measure.machine(CPU), pillow=Image.__version__) + measure.table(
        HEADER, rows
    )
    print(text)
    (ROOT / "benchmarks" / "exactness.md").write_text(text, encoding="utf-8")


HEAD = """# Exactness

Ours in float32 against the official recipes, each on the same tiny random model of the real class;
{machine}, Pillow {pillow}. Made by `python benchmarks/exactness.py`.

Named limits: tensors that need a resize are resized in floating point without rounding, to keep the
gradient, so they differ a little from the same picture read from a file; the official Q-ReAlign
processor resizes with torchvision where that is installed, which differs from Pillow by up to one
level in 255 for a few pixels; bfloat16 rounds.

"""


def exactness(subject, folder: Path) -> list[list[str]]:
    plain = subjects.pictures(12, subject.side)
    resized = [p for i, side in enumerate(RESIZED) for p in subjects.pictures(2, side, seed=i)]
    scorer = subject.scorer
    with torch.no_grad():
        expected, expected_resized = subject.official(plain), subject.official(resized)
        images = subjects.unit_batch(plain, CPU)
        batch = scorer(images)
        alone = torch.cat([scorer(image[None]) for image in images])
        files = scorer.score(subjects.write_files(folder / "files", resized, "png"))
        tensors = torch.cat([scorer(subjects.unit_batch([p], CPU)) for p in resized])
    recipe = "official recipe"
    return [
        line(subject, recipe, "tensors, no resize", batch, expected),
        line(subject, recipe, "files, resized by Pillow", files, expected_resized),
        line(subject, recipe, "tensors, resized in float", tensors, expected_resized),
        line(subject, "the same image alone", "tensors, in a batch of 12", batch, alone),
        gradient(subject, plain[:2]),
    ]


def line(subject, against: str, what: str, ours, theirs) -> list[str]:
    error, spread = (ours - theirs).abs().max().item(), theirs.std().item()
    return [subject.name, against, what, f"{error:.1e}", f"{spread:.2g}"]


def gradient(subject, pictures) -> list[str]:
    """The stock model's gradient against ours, to the pixels that the model sees; a relative norm."""
    x = subject.scorer.prepare(subjects.unit_batch(pictures, CPU)).requires_grad_()
    (ours,) = torch.autograd.grad(subject.scorer.score_prepared(x).sum(), x)
    y = x.detach().clone().requires_grad_()
    (theirs,) = torch.autograd.grad(subject.official_model(subject.as_inputs(y)).sum(), y)
    error = ((ours - theirs).norm() / theirs.norm()).item()
    return [subject.name, "stock model", "gradient to the pixels", f"{error:.1e} (relative)", ""]


def bfloat16(subject, half) -> list[str]:
    images = subjects.unit_batch(subjects.pictures(12, subject.side), CPU)
    with torch.no_grad():
        return line(
            subject,
            "ours in float32",
            "ours in bfloat16",
            half.scorer(images),
            subject.scorer(images),
        )


def torchvision_backend(subject, folder: Path) -> list[list[str]]:
    resized = [p for i, side in enumerate(RESIZED) for p in subjects.pictures(2, side, seed=i)]
    recipe = tiny_qwen.Official.load(folder / "model", resizer="torchvision")
    expected = torch.tensor([recipe.score(p) for p in resized])
    files = subject.scorer.score(subjects.write_files(folder / "files", resized, "png"))
    return [
        line(subject, "official, torchvision's resize", "files, resized by Pillow", files, expected)
    ]


if __name__ == "__main__":
    main()
