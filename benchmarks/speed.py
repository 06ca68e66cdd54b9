"""Images a second: each scorer beside its official recipe, in one run, on the same pictures.

    python benchmarks/speed.py                        # on a CPU, at reduced size, in a few minutes
    python benchmarks/speed.py --size full            # on a CUDA GPU, the published architectures
    python benchmarks/speed.py --only joyquality --size tiny
    python benchmarks/speed.py --size full --only q-realign:mini --measure forward   # on a CPU, 10 min

Three measurements, both sides taken in turns, medians: from model input to scores; the same with the
gradient back to the pixels; and from picture files to scores. Prints a table; with --write it goes
into benchmarks/speed.md too, under the machine's name, in place of that machine's earlier one.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[1]
if importlib.util.find_spec("tastemaker") is None:
    sys.exit('tastemaker is not installed: run `pip install -e ".[test]"` in the checkout')
sys.path.insert(0, str(ROOT / "benchmarks"))

import measure  # noqa: E402
import subjects  # noqa: E402

FULL = ["joyquality:full", "rali:full", "q-realign:mini", "q-realign:lite", "q-realign:pro"]
MEASURED = ("forward", "forward + backward", "from files")
HEADER = [
    "scorer",
    "batch",
    "measured",
    "official, img/s",
    "ours, img/s",
    "ratio",
    "of the device's peak",
    "memory, official / ours",
]


def main() -> None:
    args = arguments()
    device = torch.device(args.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    dtype = args.dtype or ("bfloat16" if device.type == "cuda" else "float32")
    size = args.size or ("full" if device.type == "cuda" else "reduced")
    plan = FULL if size == "full" else [f"{name}:{size}" for name in subjects.SUBJECTS]
    plan = [e for e in plan if not args.only or {e, e.split(":")[0]} & {*args.only}]
    peak = measure.bf16_matmul_peak(device)
    rows, notes = [], []
    for entry in plan:
        name, size_of = entry.split(":")
        with tempfile.TemporaryDirectory() as folder:
            subject = subjects.SUBJECTS[name](size_of, Path(folder) / "model", device, dtype)
            rows += rows_of(subject, Path(folder), device, args.seconds, peak, args.measure)
            notes += second_question(subject, device, args.seconds)
        del subject
        if device.type == "cuda":
            torch.cuda.empty_cache()
    text = report(device, dtype, size, peak, rows, notes)
    print(text)
    if args.write:
        write(text, measure.machine(device), size, dtype)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=["tiny", "reduced", "full"])
    parser.add_argument("--device")
    parser.add_argument("--dtype", help="of our scorers: bfloat16 on a GPU, float32 on a CPU")
    parser.add_argument("--only", nargs="*", choices=[*subjects.SUBJECTS, *FULL])
    parser.add_argument("--measure", nargs="*", choices=MEASURED, default=MEASURED)
    parser.add_argument("--seconds", type=float, default=10.0, help="for each measurement")
    parser.add_argument("--write", action="store_true", help="put the table into speed.md")
    return parser.parse_args()


def rows_of(
    subject,
    folder: Path,
    device: torch.device,
    seconds: float,
    peak: float,
    wanted: Sequence[str] = MEASURED,
) -> list:
    found = subjects.pictures(subject.batch, subject.side)
    paths = subjects.write_files(folder / "files", found)
    theirs = subject.official_inputs(found)
    ours = subject.scorer.prepare(subjects.unit_batch(found, device))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        subject.scorer.score_prepared(ours)
    measured = {
        "forward": (
            forward(subject.official_model, theirs),
            forward(subject.scorer.score_prepared, ours),
        ),
        "forward + backward": (
            backward(subject.official_model, theirs),
            backward(subject.scorer.score_prepared, ours),
        ),
        "from files": (
            lambda: subject.official([subjects.Image.open(p).convert("RGB") for p in paths]),
            lambda: subject.scorer.score(paths, batch_size=subject.batch),
        ),
    }
    rows = []
    for name, (official, scorer) in ((name, measured[name]) for name in wanted):
        taken = measure.interleaved({"official": official, "ours": scorer}, device, seconds)
        rate = {who: subject.batch / seconds_a_call for who, seconds_a_call in taken.items()}
        share = counter.get_total_flops() / taken["ours"] / peak if name == "forward" else None
        memory = [measure.peak_memory(call, device) for call in (official, scorer)]
        rows.append(row(subject, name, rate, share, memory))
    return rows


def row(subject, name: str, rate: dict[str, float], share: float | None, memory: list) -> list[str]:
    sizes = "" if memory[0] is None else " / ".join(f"{m / 2**30:.2f} GiB" for m in memory)
    return [
        f"{subject.name} {subject.side[1]}x{subject.side[0]}",
        str(subject.batch),
        name,
        f"{rate['official']:.2f}",
        f"{rate['ours']:.2f}",
        f"{rate['ours'] / rate['official']:.2f}x",
        "" if share is None else f"{100 * share:.0f} %",
        sizes,
    ]


def forward(model, inputs):
    def call():
        with torch.no_grad():
            return model(inputs)

    return call


def backward(model, inputs):
    """The gradient of the scores' sum to the pixels; the official processors' outputs may be a list."""
    if isinstance(inputs, list):
        pixels = [entry["pixel_values"].clone().requires_grad_() for entry in inputs]
        inputs = [{**entry, "pixel_values": p} for entry, p in zip(inputs, pixels, strict=True)]
    else:
        inputs = inputs.detach().clone().requires_grad_()
        pixels = [inputs]
    return lambda: torch.autograd.grad(model(inputs).sum(), pixels)


def second_question(subject, device: torch.device, seconds: float) -> list[str]:
    """What asking for aesthetics too costs, where a scorer takes several questions."""
    if "score_tasks" not in subject.scorer.card.capabilities:
        return []
    x = subject.scorer.prepare(
        subjects.unit_batch(subjects.pictures(subject.batch, subject.side), device)
    )
    calls = {
        "one": forward(subject.scorer.score_prepared, x),
        "two": forward(subject.scorer.score_tasks_prepared, x),
    }
    taken = measure.interleaved(calls, device, seconds)
    extra = 100 * (taken["two"] / taken["one"] - 1)
    name = f"{subject.name} {subject.side[1]}x{subject.side[0]}"
    return [f"{name}: a second question costs {extra:.1f} % of the first."]


def report(device, dtype: str, size: str, peak: float, rows: list, notes: list[str]) -> str:
    kind = "bf16" if device.type == "cuda" else "float32"
    lines = [
        f"## {measure.machine(device)}",
        "",
        f"Size {size}, ours in {dtype}; the device's own {kind} matrix product: "
        f"{peak / 1e12:.2f} TFLOP/s.",
        "",
        measure.table(*_told(HEADER, rows)),
        *notes,
        ""
        if device.type == "cuda"
        else f"Peak of the process: {measure.process_peak() / 2**30:.2f} GiB.",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _told(header: list[str], rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Without the columns in which no row says anything: memory is measured on a GPU only."""
    kept = [i for i in range(len(header)) if any(row[i] for row in rows)]
    return [header[i] for i in kept], [[row[i] for i in kept] for row in rows]


def write(text: str, machine: str, size: str, dtype: str) -> None:
    """Puts the table into speed.md in place of this machine's earlier one of the same size and dtype."""
    path = ROOT / "benchmarks" / "speed.md"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Speed\n"
    head, *sections = old.split("\n## ")
    same = (f"{machine}\n", f"Size {size}, ours in {dtype};")
    kept = [s for s in sections if not (s.startswith(same[0]) and same[1] in s)]
    parts = [head.rstrip(), *(f"## {s.strip()}" for s in kept), text.strip()]
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
