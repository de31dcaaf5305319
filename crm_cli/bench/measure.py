"""One run of the benchmark: every system converts the same photos in turn, while its parts are timed."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath

from crm_cli.bench.clock import Watch, lengths
from crm_cli.bench.cost import System, SystemCost, Taken, beside_baseline, summed_up
from crm_cli.bench.gauge import Gauge, kernel_seconds
from crm_cli.bench.peak import Peaks
from crm_cli.errors import UsageError
from crm_cli.models.steps import planned, timesteps
from crm_cli.preset import Preset, Sampling
from crm_cli.records import Job

MAX_MPIXELS = 64.0

LEAST_STEPS = 2
"""Of a shortened diffusion: the first evaluation cannot be timed by itself."""


def shortened(preset: Preset, steps: int | None) -> Preset:
    """The preset with at most so many evaluations of each denoiser, both kinds of them where it has both."""
    if steps is None:
        return preset
    if steps < LEAST_STEPS:
        raise UsageError(
            f"--steps {steps}: too few to be timed", code="E_BENCH_STEPS", remedy=f"at least {LEAST_STEPS}"
        )
    return replace(preset, rgb=_fewer(preset.rgb, steps), ccm=_fewer(preset.ccm, steps))


def _fewer(sampling: Sampling, most: int) -> Sampling:
    evaluations, guided = planned(sampling)
    if evaluations <= most:
        return sampling
    steps = next(count for count in range(most, 0, -1) if _makes_exactly(sampling.solver, count))
    share = 1.0 if guided == evaluations else (steps - 1) / steps if guided else 0.0
    return replace(sampling, steps=steps, guided=share)


def _makes_exactly(solver: str, steps: int) -> bool:
    """Whether a solver makes so many evaluations where so many are asked for."""
    try:
        return len(timesteps(solver, steps)) == steps
    except UsageError:
        return False


Told = Callable[[str], None]
"""Hears what is going on."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Subjects:
    """Photos to convert, in their turn."""

    folder: Path
    names: Sequence[PurePosixPath]

    def job(self, number: int, scratch: Path) -> Job:
        """Convert one photo; its files go to the scratch folder."""
        path = self.names[number % len(self.names)]
        return Job(
            root=self.folder,
            path=path,
            stem=PurePosixPath(path.stem),
            id=f"{number:016x}",
            scratch=scratch,
            max_mpixels=MAX_MPIXELS,
        )


def measure(
    systems: Sequence[System],
    subjects: Subjects,
    *,
    device: str,
    photos: int,
    limit_s: float,
    peaks: Peaks,
    tell: Told,
) -> tuple[SystemCost, ...]:
    """Convert photos with all systems in turn, and sum up.

    Each system first converts one photo that does not count but as its first. Then every photo is converted
    by all of them before the next one, so that what else the machine does falls on all alike. Once the next
    photo would end after the limit, no more are begun; one is always measured.

    limit_s: for all of it.
    """
    deadline = time.monotonic() + limit_s
    gauge = Gauge(device)
    taken: dict[str, list[Taken]] = {system.name: [] for system in systems}
    first: dict[str, Taken] = {}
    for system in systems:
        tell(f"{system.name}: first photo")
        first[system.name] = _convert(system, subjects, 0, gauge)
    for number in range(photos):
        began_s = time.monotonic()
        for system in systems:
            tell(f"{system.name}: photo {number + 1} of {photos}")
            taken[system.name].append(_convert(system, subjects, number, gauge))
        if 2 * time.monotonic() - began_s > deadline:
            break
    costs = []
    for system in systems:
        runs = taken[system.name]
        cost = summed_up(system, runs, first[system.name], device=device, peaks=peaks)
        if device != "cpu":
            tell(f"{system.name}: share of the time in which {device} calculates")
            busy_s = kernel_seconds(partial(_convert, system, subjects, 0, gauge), device)
            if busy_s > 0:
                cost = replace(cost, busy=busy_s / statistics.median(run.wall_s for run in runs))
        costs.append(cost)
    return tuple(beside_baseline(costs))


def _convert(system: System, subjects: Subjects, number: int, gauge: Gauge) -> Taken:
    """Convert one photo and throw its files away."""
    with tempfile.TemporaryDirectory(prefix="crm-bench-") as scratch:
        job = subjects.job(number, Path(scratch))
        gauge.start()
        watch = Watch(gauge.device)
        system.convert(job, watch.stage, watch.step)
        timeline = watch.stop()
        peak_bytes = gauge.peak(system.standing_bytes())
    wall_s = timeline.end.since(timeline.stages[0][1]).wall_s
    stages = lengths(timeline, ran=system.ran, wanted=system.wanted)
    return Taken(stages=stages, wall_s=wall_s, peak_bytes=peak_bytes)
