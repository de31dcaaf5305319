"""What this machine can do at best: matrix products and copies, measured where the rest is measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch

from crm_cli.bench.clock import now, settle

REPEATS = 7

CPU_SIDE, DEVICE_SIDE = 1024, 8192
"""Of the matrices: large enough that starting a product takes no share of it."""

CPU_COPY_BYTES, DEVICE_COPY_BYTES = 1 << 28, 1 << 30
"""Copied at a time: more than any cache holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Peaks:
    """The fastest that was seen of a device, with the threads that torch has."""

    operations: Mapping[torch.dtype, float]
    """A second in one large matrix product of random numbers, by number format."""
    bytes: float
    """A second in a large copy, read and written."""


@torch.inference_mode()
def measure_peaks(device: str, dtypes: set[torch.dtype]) -> Peaks:
    """Measure a device in the number formats that are asked for.

    Random numbers, because zeros are multiplied faster: they take less power.
    """
    return Peaks(
        operations={dtype: _products(device, dtype) for dtype in sorted(dtypes, key=str)},
        bytes=_copies(device),
    )


def _products(device: str, dtype: torch.dtype) -> float:
    side = CPU_SIDE if device == "cpu" else DEVICE_SIDE
    generator = torch.Generator(device).manual_seed(0)
    a, b = (
        torch.randn(side, side, generator=generator, device=device, dtype=torch.float32).to(dtype)
        for _ in range(2)
    )
    return 2 * side**3 / _best_s(lambda: a @ b, device)


def _copies(device: str) -> float:
    count = (CPU_COPY_BYTES if device == "cpu" else DEVICE_COPY_BYTES) // 4
    source = torch.ones(count, device=device)
    target = torch.zeros_like(source)
    return 2 * 4 * count / _best_s(lambda: target.copy_(source), device)


def _best_s(work: Callable[[], object], device: str) -> float:
    """Seconds of the quickest of a few passes; the first one also sets things up.

    On a CPU they are those of this process, as if its threads had had their cores for themselves.
    """
    best = float("inf")
    for _ in range(REPEATS):
        settle(device)
        began = now()
        work()
        settle(device)
        spent = now().since(began)
        best = min(best, seconds_worked(spent.wall_s, spent.cpu_s, device))
    return best


def seconds_worked(wall_s: float, cpu_s: float, device: str) -> float:
    """How long a device needs by itself: on a CPU, what else the machine does is left out."""
    return min(wall_s, cpu_s / torch.get_num_threads()) if device == "cpu" else wall_s
