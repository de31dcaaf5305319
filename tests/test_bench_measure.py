from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
import torch

from crm_cli.bench import measure as module
from crm_cli.bench.clock import Plan, Plans, Watch
from crm_cli.bench.cost import BASELINE, System, SystemCost
from crm_cli.bench.counts import Work
from crm_cli.bench.measure import Subjects, measure, shortened
from crm_cli.bench.peak import Peaks
from crm_cli.errors import UsageError
from crm_cli.models.sampler import Progress
from crm_cli.models.steps import planned
from crm_cli.preset import load_preset
from crm_cli.records import Job

PEAKS = Peaks(operations={torch.float32: 1e9}, bytes=1e9)
ONCE = Plans(Plan(1, 0), Plan(1, 0))


class Ticking:
    """A wall that moves when somebody works, and a process that works half of that time."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.wall = 0.0
        monkeypatch.setattr(time, "perf_counter", lambda: self.wall)
        monkeypatch.setattr(time, "monotonic", lambda: self.wall)
        monkeypatch.setattr(time, "process_time", lambda: self.wall / 2)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Ticking:
    return Ticking(monkeypatch)


Log = list[tuple[str, str]]


def system(
    name: str,
    clock: Ticking,
    log: Log,
    *,
    seconds: Callable[[int], float],
    ran: Plans = ONCE,
    wanted: Plans = ONCE,
) -> System:
    """Works for some seconds at each of its photos, told by how many it has made: a fifth in `unwrap`."""
    made = 0

    def convert(job: Job, report_stage: Callable[[str], None], report_step: Progress) -> None:
        nonlocal made
        assert not any(job.scratch.iterdir())
        (job.scratch / "file").write_text(name)
        log.append((name, job.path.name))
        whole = seconds(made)
        made += 1
        report_stage("imagine")
        steps = ran.rgb.evaluations + ran.ccm.evaluations
        for number in range(steps):
            clock.wall += 0.8 * whole / steps
            report_step(number + 1, steps)
        report_stage("unwrap")
        clock.wall += 0.2 * whole

    work = {"imagine": Work(operations=2e8, bytes=0, dtype=torch.float32)}
    return System(
        name=name, convert=convert, ran=ran, wanted=wanted, work=work, standing_bytes=lambda: 0, opened_s=1.5
    )


def costs(*systems: System, photos: int, limit_s: float = 1e9) -> dict[str, SystemCost]:
    subjects = Subjects(folder=Path(), names=[PurePosixPath("a.png"), PurePosixPath("b.png")])
    found = measure(
        systems,
        subjects,
        device="cpu",
        photos=photos,
        limit_s=limit_s,
        peaks=PEAKS,
        tell=lambda text: None,
    )
    return {cost.name: cost for cost in found}


def test_systems_take_turns_on_the_same_photos_and_their_first_one_does_not_count(clock: Ticking) -> None:
    log: Log = []
    slow = system(BASELINE, clock, log, seconds=lambda made: (100, 10, 30, 20)[made])
    fast = system("fast", clock, log, seconds=lambda made: (50, 4, 5, 6)[made])
    found = costs(slow, fast, photos=3)
    assert log == [
        (BASELINE, "a.png"), ("fast", "a.png"),
        (BASELINE, "a.png"), ("fast", "a.png"),
        (BASELINE, "b.png"), ("fast", "b.png"),
        (BASELINE, "a.png"), ("fast", "a.png"),
    ]  # fmt: skip
    spread = found["fast"].photo_s
    assert (spread.low, spread.median, spread.high) == pytest.approx((4, 5, 6))
    assert found["fast"].photos_an_hour == pytest.approx(720)
    assert found["fast"].networks_an_hour == pytest.approx(900)
    assert found["fast"].first_s == pytest.approx(50)
    assert found["fast"].over_baseline == pytest.approx(20 / 5)
    assert found["fast"].over_baseline_cpu == pytest.approx(20 / 5)
    assert (found["fast"].photos, found["fast"].opened_s) == (3, 1.5)
    assert found[BASELINE].over_baseline is None
    # Half of the time is work, a fifth of it beside the networks.
    assert found["fast"].cpu_s == pytest.approx(2.5)
    assert found["fast"].cpu_side_s == pytest.approx(0.5)
    assert found["fast"].photos_an_hour_on(16) == pytest.approx(16 * 3600 / 0.5)


def test_a_stage_is_set_against_what_its_operations_take_at_best(
    clock: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    [imagine, unwrap] = costs(system("fast", clock, [], seconds=lambda made: 5), photos=2)["fast"].stages
    assert (imagine.stage, unwrap.stage) == ("imagine", "unwrap")
    assert imagine.wall_s.median == pytest.approx(4)
    assert imagine.floor_s == pytest.approx(0.2)
    # On a CPU by the two seconds that this process has worked.
    assert imagine.over_floor == pytest.approx(2 / 0.2)
    assert (unwrap.operations, unwrap.floor_s, unwrap.over_floor) == (None, None, None)


def test_no_photo_is_begun_that_would_end_after_the_limit(clock: Ticking) -> None:
    log: Log = []
    # The first photo takes 10 s; with two more that is 30.
    assert (
        costs(system("fast", clock, log, seconds=lambda made: 10), photos=9, limit_s=35)["fast"].photos == 2
    )
    assert len(log) == 3


def test_one_photo_is_measured_however_long_it_takes(clock: Ticking) -> None:
    found = costs(system("fast", clock, [], seconds=lambda made: 10), photos=9, limit_s=0)
    assert found["fast"].photos == 1


def test_steps_that_were_not_made_are_reckoned_in_and_said(clock: Ticking) -> None:
    ran, wanted = Plans(Plan(2, 2), Plan(2, 2)), Plans(Plan(50, 50), Plan(20, 20))
    quick = system("exact", clock, [], seconds=lambda made: 5, ran=ran, wanted=wanted)
    found = costs(quick, photos=1)["exact"]
    assert found.steps == {"rgb": (2, 50), "ccm": (2, 20)}
    stages = {stage.stage: stage.wall_s.median for stage in found.stages}
    assert (stages["rgb"], stages["ccm"]) == pytest.approx((50, 20))
    assert found.photo_s.median == pytest.approx(71)


def test_the_share_in_which_an_accelerator_calculates_is_that_of_a_photo_s_own_time(
    clock: Ticking, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Gauge:
        def __init__(self, device: str) -> None:
            self.device = device

        def start(self) -> None:
            """Nothing to forget."""

        def peak(self, standing_bytes: int) -> int:
            return standing_bytes + 7

    seconds = iter([3.0, 0.0])

    def kernels(work: Callable[[], object], device: str) -> float:
        work()
        return next(seconds)

    monkeypatch.setattr(module, "Gauge", Gauge)
    monkeypatch.setattr(module, "kernel_seconds", kernels)
    monkeypatch.setattr(module, "Watch", lambda device: Watch("cpu"))
    found = measure(
        [system(name, clock, [], seconds=lambda made: 4) for name in ("fast", "unseen")],
        Subjects(folder=Path(), names=[PurePosixPath("a.png")]),
        device="cuda",
        photos=2,
        limit_s=1e9,
        peaks=PEAKS,
        tell=lambda text: None,
    )
    assert found[0].busy == pytest.approx(0.75)
    assert found[1].busy is None, "a profiler that sees no kernel does not mean that there was none"
    assert found[0].peak_bytes == 7
    # By the clock on the wall: an accelerator does not work in this process.
    assert found[0].stages[0].over_floor == pytest.approx(3.2 / 0.2)


@pytest.mark.parametrize(
    ("name", "most", "made"),
    [
        ("exact", 50, (50, 50)),
        ("exact", 3, (2, 2)),  # the published sampler makes four steps, or fails, where three are asked for
        ("exact", 11, (10, 10)),
        ("fast", 3, (3, 2)),
        ("turbo", 4, (4, 3)),
        ("turbo", 100, (10, 6)),
    ],
)
def test_a_shortened_preset_makes_so_few_steps_of_both_kinds(
    name: str, most: int, made: tuple[int, int]
) -> None:
    preset = shortened(load_preset(name, architecture="release").preset, most)
    assert planned(preset.rgb) == planned(preset.ccm) == made


def test_nothing_is_shortened_unasked_nor_to_a_single_step() -> None:
    preset = load_preset("exact", architecture="release").preset
    assert shortened(preset, None) is preset
    with pytest.raises(UsageError, match="at least 2"):
        shortened(preset, 1)
