"""What a photo took in one system: the records, and how they are made of single measurements."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from crm_cli.bench.clock import CPU_SIDE, Moment, Plans, in_order
from crm_cli.bench.counts import Work
from crm_cli.bench.peak import Peaks, seconds_worked
from crm_cli.models.sampler import Progress
from crm_cli.records import Job

BASELINE = "baseline"


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class System:
    """One way to convert photos."""

    name: str
    convert: Callable[[Job, Callable[[str], None], Progress], object]
    """As `Line.convert`."""
    ran: Plans
    """The evaluations that a conversion makes."""
    wanted: Plans
    """Those that it would make if nobody was in a hurry."""
    work: Mapping[str, Work]
    """What each stage must do at least, with all its steps."""
    standing_bytes: Callable[[], int]
    """What lies on the device between photos: its networks, and what recordings of their steps keep."""
    opened_s: float
    """What opening it took."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """The middle of some measurements, and how far they go."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Describe at least one measurement."""
        return cls(median=statistics.median(values), low=min(values), high=max(values))


@dataclass(frozen=True, slots=True, kw_only=True)
class StageCost:
    """What one stage of a photo took."""

    stage: str
    wall_s: Spread
    cpu_s: float
    """Core-seconds of this process, the median."""
    operations: float | None
    """None where a stage has no network."""
    floor_s: float | None
    over_floor: float | None
    """How many times the floor it took; on a CPU in core-seconds over threads."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemCost:
    """What a photo took in one system."""

    name: str
    photos: int
    """How many were measured."""
    photo_s: Spread
    """From the file to the last file, nothing else at the same time."""
    photos_an_hour: float
    networks_an_hour: float
    """Photos an hour of the stages with networks alone: what can be had once the others run beside them."""
    over_baseline: float | None
    """Times the baseline's photos an hour; None where there is none, or it is this one."""
    cpu_s: float
    over_baseline_cpu: float | None
    """Times fewer core-seconds than the baseline's: what neighbours of this process hardly change."""
    cpu_side_s: float
    """Core-seconds of what an accelerator does not do; see CPU_SIDE."""
    busy: float | None
    """Share of the time in which the accelerator calculated; None on a CPU, or where no kernel was seen."""
    peak_bytes: int | None
    """Of accelerator memory with this system's networks alone; on a CPU of the whole process."""
    opened_s: float
    first_s: float
    """The very first photo, which alone pays for what is set up at first use."""
    steps: Mapping[str, tuple[int, int]]
    """Evaluations of each denoiser that were measured, and those they stand for."""
    operations: float
    """Of all networks for one photo."""
    floor_s: float
    """The least that all networks together need for one photo."""
    stages: tuple[StageCost, ...]

    def photos_an_hour_on(self, cores: int) -> float:
        """How many photos so many cores could prepare, unwrap, bake and deliver, all of them at work."""
        return 3600 * cores / self.cpu_side_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one conversion took."""

    stages: Mapping[str, Moment]
    """With all steps that are wanted; see `lengths`."""
    wall_s: float
    """With those that were made."""
    peak_bytes: int | None


def summed_up(
    system: System, runs: Sequence[Taken], first: Taken, *, device: str, peaks: Peaks
) -> SystemCost:
    """The medians of some conversions. first: the one that set everything up."""
    names = list(in_order(runs[0].stages))
    photo_s = Spread.of([sum(run.stages[name].wall_s for name in names) for run in runs])
    stages = tuple(
        _stage(name, [run.stages[name] for run in runs], system.work.get(name), device=device, peaks=peaks)
        for name in names
    )
    peak_bytes = [run.peak_bytes for run in runs if run.peak_bytes is not None]
    return SystemCost(
        name=system.name,
        photos=len(runs),
        photo_s=photo_s,
        photos_an_hour=3600 / photo_s.median,
        networks_an_hour=3600
        / statistics.median(
            sum(run.stages[name].wall_s for name in names if name not in CPU_SIDE) for run in runs
        ),
        over_baseline=None,
        over_baseline_cpu=None,
        cpu_s=sum(stage.cpu_s for stage in stages),
        cpu_side_s=sum(stage.cpu_s for stage in stages if stage.stage in CPU_SIDE),
        busy=None,
        peak_bytes=max(peak_bytes, default=None),
        opened_s=system.opened_s,
        first_s=first.wall_s,
        steps={
            stage: (ran.evaluations, wanted.evaluations)
            for stage, ran, wanted in zip(Plans._fields, system.ran, system.wanted, strict=True)
        },
        operations=sum(stage.operations or 0.0 for stage in stages),
        floor_s=sum(stage.floor_s or 0.0 for stage in stages),
        stages=stages,
    )


def _stage(
    name: str, lengths: Sequence[Moment], work: Work | None, *, device: str, peaks: Peaks
) -> StageCost:
    wall_s = Spread.of([length.wall_s for length in lengths])
    cpu_s = statistics.median(length.cpu_s for length in lengths)
    floor_s = None if work is None else work.floor_s(peaks)
    worked_s = seconds_worked(wall_s.median, cpu_s, device)
    return StageCost(
        stage=name,
        wall_s=wall_s,
        cpu_s=cpu_s,
        operations=None if work is None else work.operations,
        floor_s=floor_s,
        over_floor=None if floor_s is None else worked_s / floor_s,
    )


def beside_baseline(costs: Sequence[SystemCost]) -> Iterator[SystemCost]:
    """The same with the ratio to the baseline, where there is one."""
    base = next((cost for cost in costs if cost.name == BASELINE), None)
    for cost in costs:
        if base is None or cost is base:
            yield cost
            continue
        yield replace(
            cost,
            over_baseline=base.photo_s.median / cost.photo_s.median,
            over_baseline_cpu=base.cpu_s / cost.cpu_s,
        )
