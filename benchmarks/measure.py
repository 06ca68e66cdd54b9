"""What every benchmark needs: time, memory, the device's own peak, and a table to commit."""

from __future__ import annotations

import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path

import torch


def sync(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def interleaved(
    calls: dict[str, Callable[[], object]],
    device: torch.device,
    seconds: float,
    clock: Callable[[], float] = time.perf_counter,
):
    """Median seconds a call of each, taken in turns: a machine that slows down slows all of them.

    Every call runs once unmeasured; then rounds follow until `seconds` are over, at least three.
    `time.process_time` as the clock leaves out what others take of the processor.
    """
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            sync(device)
            start = clock()
            call()
            sync(device)
            times[name].append(clock() - start)
    return {name: sorted(taken)[len(taken) // 2] for name, taken in times.items()}


def peak_memory(call: Callable[[], object], device: torch.device) -> int | None:
    """Bytes at the peak of one call beyond what was allocated before it; None on the CPU."""
    if device.type != "cuda":
        return None  # resident size counts whatever ran before: no honest number for one call
    sync(device)
    before = torch.cuda.memory_allocated(device)
    torch.cuda.reset_peak_memory_stats(device)
    call()
    sync(device)
    return torch.cuda.max_memory_allocated(device) - before


def process_peak() -> int:
    """Bytes of resident memory that this process took at most."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def bf16_matmul_peak(device: torch.device, n: int = 8192) -> float:
    """FLOP/s of the device's own bf16 matrix product (float32 on a CPU), measured."""
    n, dtype = (n, torch.bfloat16) if device.type == "cuda" else (1024, torch.float32)
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    taken = interleaved({"matmul": lambda: a @ b}, device, 1.0)["matmul"]
    return 2 * n**3 / taken


def machine(device: torch.device) -> str:
    """The machine's name, as it goes above a table."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:
        name = f"{_cpu_name()}, {torch.get_num_threads()} threads"
    return f"{name}, torch {torch.__version__}, Python {platform.python_version()}"


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
