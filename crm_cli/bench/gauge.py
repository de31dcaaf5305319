"""How much memory a piece of work takes at its most, and how long an accelerator calculates for it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from crm_cli.bench.clock import settle

OWN = Path("/proc/self")


class Gauge:
    """The most memory that is taken since a moment."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._before = 0

    def start(self) -> None:
        """Forget what was taken before."""
        if self.device != "cpu":
            torch.accelerator.reset_peak_memory_stats(self.device)
            self._before = torch.accelerator.memory_allocated(self.device)
            return
        with contextlib.suppress(OSError):
            # 5 sets the peak back to what is taken now (Linux, proc_pid_clear_refs).
            (OWN / "clear_refs").write_text("5", "ascii")

    def peak(self, standing_bytes: int) -> int | None:
        """Bytes since the start; None where the system does not tell.

        standing_bytes: what one system keeps on an accelerator. It is counted instead of all that lies there,
        which others may have put there. On a CPU the peak is that of the whole process.
        """
        if self.device != "cpu":
            most: int = torch.accelerator.max_memory_allocated(self.device)
            return most - self._before + standing_bytes
        with contextlib.suppress(OSError):
            for line in (OWN / "status").read_text("ascii").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        return None


def kernel_seconds(work: Callable[[], object], device: str) -> float:
    """How long an accelerator calculates and copies in a piece of work, as its own profiler tells.

    Being watched slows the work down but not its kernels: set this against the time of work not watched.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as watched:
        work()
        settle(device)
    return (
        covered_us(
            (event.time_range.start, event.time_range.end)
            for event in watched.events() or ()
            # Calls of the driver are events of the CPU.
            if event.device_type.name != "CPU" and not event.is_user_annotation
        )
        / 1e6
    )


def covered_us(spans: Iterable[tuple[float, float]]) -> float:
    """Length that spans from start to end cover together, each moment once: streams work side by side."""
    covered, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered += max(0.0, end - max(start, until))
        until = max(until, end)
    return covered
