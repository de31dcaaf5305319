"""What `crm convert` takes as a whole: from the start of its process to its end."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from crm_cli.errors import EnvironmentProblem


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """Seconds of `crm convert` with the embedded networks, and as many workers as it starts by itself."""

    first_s: float
    """One photo, as the machine was found: what the command reads may come from the disk."""
    again_s: float
    """The same right afterwards, when everything it reads has been read before."""
    photos: int
    photos_s: float
    """So many photos, start and end included."""

    @property
    def photos_an_hour(self) -> float:
        """Of a run of so many."""
        return 3600 * self.photos / self.photos_s


def time_command(photos: Sequence[Path], *, device: str) -> Command:
    """Convert the first photo twice, and then all if there are more, each time in a process of its own."""
    first_s, again_s = (_seconds(photos[:1], device) for _ in range(2))
    photos_s = _seconds(photos, device) if len(photos) > 1 else again_s
    return Command(first_s=first_s, again_s=again_s, photos=len(photos), photos_s=photos_s)


def _seconds(photos: Sequence[Path], device: str) -> float:
    with tempfile.TemporaryDirectory(prefix="crm-bench-") as folder:
        words = ["convert", *map(str, photos), "-o", folder, "--weights", "embedded", "--device", device]
        began = time.monotonic()
        done = subprocess.run(
            [sys.executable, "-P", "-m", "crm_cli", *words, "--no-report", "--quiet"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        spent_s = time.monotonic() - began
    if done.returncode:
        raise EnvironmentProblem(
            f"crm convert ends with {done.returncode}: {done.stderr.strip()[-300:]}",
            code="E_BENCH_CONVERT",
            remedy="see `crm doctor`",
        )
    return spent_s
