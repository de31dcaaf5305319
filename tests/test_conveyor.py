import sys
import time
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest
from fakes import PHOTO_S, SLOW_S, job

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.preset import load_preset
from crm_cli.records import Asset, Failed, Job
from crm_cli.run import conveyor as conveyor_module
from crm_cli.run import machine, process
from crm_cli.run import worker as worker_module
from crm_cli.run.conveyor import Conveyor, Spare, deadlines
from crm_cli.run.machine import check_device, default_workers, find_devices, memory_problem, threads_each
from crm_cli.run.reports import Finished, Killed, NotOpened, Opened, Staged
from crm_cli.run.wire import Unframer, frame, from_plain, to_plain
from crm_cli.run.worker import STEP_PAUSE_S, Launch, seldom

PRESET = load_preset("tiny").preset

LIMITS = {**conveyor_module.DEADLINES_S, "unwrap": 1.0}


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


def pool(tmp_path: Path, workers: int = 1, line: str = "FakeLine") -> Conveyor:
    launch = Launch(preset=PRESET, device="cpu", threads=1, line=f"fakes:{line}")
    return Conveyor(launch, devices=["cpu"], workers=workers, deadlines_s=LIMITS, logs=tmp_path)


def until_finished(belt: Conveyor, count: int) -> dict[str, Asset | Failed]:
    outcomes: dict[str, Asset | Failed] = {}
    patience = time.monotonic() + 20
    while len(outcomes) < count:
        assert time.monotonic() < patience
        for report in belt.wait(0.5):
            if isinstance(report, Finished):
                outcomes[str(report.job.path)] = report.outcome
    return outcomes


def test_one_worker_converts_one_photo_after_another_naming_its_stages(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    stages = []
    for name in ("a.jpg", "noisy_b.jpg"):
        assert belt.has_room
        belt.submit(job(tmp_path, name))
        assert not belt.has_room
        while belt.running:
            stages += [report.stage for report in belt.wait(0.5) if isinstance(report, Staged)]
    belt.close()
    assert stages == ["prepare", "imagine", "reconstruct", "unwrap", "bake", "deliver"] * 2
    assert b"stray words" in (tmp_path / "worker-1.log").read_bytes()


def test_a_worker_tells_the_most_memory_that_it_has_held(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    told = []
    for name in ("a.jpg", "raise_b.jpg", "segv_c.jpg"):
        belt.submit(job(tmp_path, name))
        while belt.running:
            told += [report for report in belt.wait(0.5) if isinstance(report, Finished)]
    belt.close()
    assert {one.device for one in told} == {"cpu"}
    # A Python process takes megabytes, and one without torch no gigabyte; who has died tells nothing.
    assert all(5e6 < one.peak_bytes < 1e9 for one in told[:2])
    assert told[2].peak_bytes == 0


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [
        ("segv_a.jpg", "crash", "E_CRASH"),
        ("exit0_a.jpg", "crash", "E_EXIT"),
        ("hang_a.jpg", "timeout", "E_TIMEOUT"),
        ("raise_a.jpg", "internal", "E_INTERNAL"),
        ("input_a.jpg", "input", "E_EMPTY"),
    ],
)
def test_a_photo_that_goes_wrong_costs_itself_alone(tmp_path: Path, name: str, kind: str, code: str) -> None:
    belt = pool(tmp_path, workers=2)
    belt.submit(job(tmp_path, name))
    belt.submit(job(tmp_path, "good.jpg"))
    outcomes = until_finished(belt, 2)
    belt.submit(job(tmp_path, "next.jpg"))
    outcomes |= until_finished(belt, 1)
    belt.close()
    failed = outcomes[name]
    assert isinstance(failed, Failed)
    assert (failed.kind, failed.code, failed.stage) == (kind, code, "unwrap")
    assert isinstance(outcomes["good.jpg"], Asset) and isinstance(outcomes["next.jpg"], Asset)


def test_a_hang_ends_at_its_deadline(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "hang_a.jpg"))
    until_stage = time.monotonic()
    while not any(isinstance(r, Staged) and r.stage == "unwrap" for r in belt.wait(0.5)):
        until_stage = time.monotonic()
    until_finished(belt, 1)
    belt.close()
    assert LIMITS["unwrap"] - 0.6 <= time.monotonic() - until_stage < LIMITS["unwrap"] + 5


def killed_at_work(tmp_path: Path, before: Callable[[], None] = lambda: None) -> object:
    """What is reported of a worker that somebody kills, after something else has happened."""
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "hang_a.jpg"))
    while not any(isinstance(report, Staged) for report in belt.wait(0.5)):
        pass
    [worker] = belt._workers()
    before()
    worker.kill()
    reports: list[object] = []
    while not reports or isinstance(reports[-1], Staged):
        reports += belt.wait(0.5)
    belt.close()
    return reports[-1]


def test_a_worker_killed_from_outside_is_not_the_photos_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: 7)
    report = killed_at_work(tmp_path)
    assert isinstance(report, Killed) and report.job.path == PurePosixPath("hang_a.jpg")


@pytest.mark.parametrize("counts", [(7, 8), (None, None)], ids=["counted", "nobody counts"])
def test_a_kill_that_the_kernel_may_have_done_counts_as_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counts: tuple[int | None, int | None]
) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: counts[0])
    report = killed_at_work(
        tmp_path, before=lambda: monkeypatch.setattr(process, "memory_kills", lambda: counts[1])
    )
    assert isinstance(report, Finished) and isinstance(report.outcome, Failed)
    assert (report.outcome.kind, report.outcome.code) == ("oom", "E_KILLED")


def test_a_hang_leaves_word_of_where_it_hung(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "hang_a.jpg"))
    reports: list[object] = []
    while not any(isinstance(report, Finished) for report in reports):
        reports += belt.wait(0.5)
    belt.close()
    last = reports[-1]
    assert isinstance(last, Finished) and "in _obey" in last.log and "Fatal Python error: Aborted" in last.log


def test_last_words_are_of_this_worker_alone(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    logs = []
    for name in ("noisy_a.jpg", "segv_b.jpg", "segv_c.jpg"):
        belt.submit(job(tmp_path, name))
        while belt.running:
            logs += [report.log for report in belt.wait(0.5) if isinstance(report, Finished)]
    belt.close()
    assert logs[0] == "" and "stray words" in logs[1] and "stray words" not in logs[2]
    assert logs[2].count("Segmentation fault") == 1


def test_where_memory_runs_out_a_pool_of_the_cpu_shrinks_to_one(tmp_path: Path) -> None:
    belt = pool(tmp_path, workers=5)
    for name in ("a", "b", "c"):
        belt.submit(job(tmp_path, f"{name}.jpg"))
    until_finished(belt, 3)
    assert [belt.make_fewer() for _ in range(3)] == ["2 at a time", "1 at a time", None]
    assert len(belt._workers()) == 1
    belt.submit(job(tmp_path, "d.jpg"))
    assert not belt.has_room
    until_finished(belt, 1)
    belt.close()


def test_where_memory_runs_out_workers_of_an_accelerator_become_frugal_once(tmp_path: Path) -> None:
    launch = Launch(preset=PRESET, device="cuda:0", threads=1, line="fakes:FakeLine")
    spare = Spare(threads=3, deadlines_s=LIMITS)
    belt = Conveyor(launch, devices=["cuda:0"], workers=1, deadlines_s=LIMITS, logs=tmp_path, spare=spare)
    assert belt.submit(job(tmp_path, "a.jpg"))
    until_finished(belt, 1)
    assert not belt.submit(job(tmp_path, "b.jpg"))
    until_finished(belt, 1)
    assert belt.economize() == "one network at a time, in smaller pieces" and belt.economize() is None
    # The worker that stands was opened for more: another takes its place.
    assert belt.submit(job(tmp_path, "big_c.jpg"))
    assert isinstance(until_finished(belt, 1)["big_c.jpg"], Asset)
    assert belt.submit(job(tmp_path, "huge_d.jpg"), on_cpu=True)
    assert (belt._workers()[0].launch.device, belt._workers()[0].launch.threads) == ("cpu", 3)
    assert isinstance(until_finished(belt, 1)["huge_d.jpg"], Asset)
    assert belt.submit(job(tmp_path, "e.jpg")) and belt._workers()[0].launch.is_frugal
    until_finished(belt, 1)
    belt.close()


def test_an_idle_worker_under_suspicion_is_replaced(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "a.jpg"))
    until_finished(belt, 1)
    [worker] = belt._workers()
    belt.renew(worker.pid + 1)
    assert belt._workers() == [worker]
    belt.renew(worker.pid)
    assert belt._workers() == []
    belt.close()


def test_the_traceback_of_a_surprise_reaches_the_parent_and_its_worker_is_replaced(tmp_path: Path) -> None:
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "raise_a.jpg"))
    reports = []
    while not any(isinstance(report, Finished) for report in reports):
        reports += belt.wait(0.5)
    assert belt._workers() == []  # its state is unknown after a surprise: the next photo gets another
    belt.close()
    assert "RuntimeError: a surprise" in reports[-1].traceback  # type: ignore[union-attr]


def test_a_line_that_cannot_open_says_so_with_its_remedy(tmp_path: Path) -> None:
    belt = pool(tmp_path, line="ClosedLine")
    belt.submit(job(tmp_path, "a.jpg"))
    with pytest.raises(EnvironmentProblem, match=r"no weights \[E_WEIGHTS_MISSING\]; fetch them"):
        until_finished(belt, 1)
    belt.close()


def test_a_worker_that_dies_while_opening_is_not_the_photos_fault(tmp_path: Path) -> None:
    belt = pool(tmp_path, line="DeadLine")
    belt.submit(job(tmp_path, "a.jpg"))
    reports: list[object] = []
    while not reports:
        reports += belt.wait(0.5)
    belt.close()
    [report] = reports
    assert isinstance(report, NotOpened) and "SIGSEGV" in report.reason
    assert "Segmentation fault" in (tmp_path / "worker-1.log").read_text()


def test_closing_waits_for_nobody(tmp_path: Path) -> None:
    belt = pool(tmp_path, workers=2)
    belt.submit(job(tmp_path, "hang_a.jpg"))
    belt.submit(job(tmp_path, "a.jpg"))
    until_finished(belt, 1)
    processes = [worker._process for worker in belt._workers()]
    began = time.monotonic()
    belt.close()
    assert time.monotonic() - began < 2 + SLOW_S
    assert all(process.returncode is not None for process in processes)


def test_a_folder_with_a_module_of_the_same_name_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "fakes.py").write_text("raise SystemExit('somebody else')")
    (tmp_path / "json.py").write_text("raise SystemExit('somebody else')")
    monkeypatch.chdir(tmp_path)
    belt = pool(tmp_path)
    belt.submit(job(tmp_path, "a.jpg"))
    [asset] = until_finished(belt, 1).values()
    belt.close()
    assert isinstance(asset, Asset)


def test_workers_are_bounded_by_memory_and_never_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    for memory, expected in ((100e9, 8), (6.5e9, 4), (1e8, 1)):
        monkeypatch.setattr(machine, "usable_memory", lambda memory=memory: int(memory))
        assert default_workers(["cpu"]) == expected


def test_accelerators_get_a_worker_for_every_core_and_one_more_and_two_each_at_the_least(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "usable_memory", lambda: int(1e12))
    for cores, expected in ((16, 18), (3, 5), (1, 4)):
        monkeypatch.setattr(machine, "usable_cores", lambda cores=cores: cores)
        assert default_workers(["cuda:0", "cuda:1"]) == expected
    # Workers hold no network there, whatever its size.
    monkeypatch.setattr(machine, "usable_cores", lambda: 16)
    assert default_workers(["cuda:0"], is_small=False) == 17
    monkeypatch.setattr(machine, "usable_memory", lambda: int(6.5e9))
    assert default_workers(["cuda:0"], is_small=False) == 4


def test_large_networks_take_the_cores_of_a_cpu_and_leave_those_beside_a_gpu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 8)
    monkeypatch.setattr(machine, "usable_memory", lambda: int(1e12))
    assert default_workers(["cpu"], is_small=False) == 1
    shares = {jobs: threads_each(["cpu"], is_small=False, jobs=jobs) for jobs in (None, 1, 3, 8, 20)}
    assert shares == {None: 8, 1: 8, 3: 2, 8: 1, 20: 1}
    assert threads_each(["cuda:0"], is_small=False, jobs=None) == 1
    assert threads_each(["cpu"], is_small=True, jobs=1) == 1


def test_memory_is_enough_up_to_what_every_worker_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    def problem(memory: float | None, workers: int) -> str | None:
        monkeypatch.setattr(machine, "usable_memory", lambda: None if memory is None else int(memory))
        return memory_problem(3_500_000_000, workers=workers)

    assert problem(6.5e9, 1) is problem(13e9, 2) is problem(None, 9) is None
    one, two = problem(6.4e9, 1), problem(12.9e9, 2)
    assert one is not None and one.startswith("a worker may need 6.5 GB of memory, and 6.4 GB are free")
    assert "--weights embedded" in one and two is not None and "fewer --jobs" in two


def test_a_worker_that_is_ready_tells_its_forecast_before_any_stage(tmp_path: Path) -> None:
    belt = pool(tmp_path, line="LargeLine")
    belt.submit(job(tmp_path, "a.jpg"))
    reports: list[object] = []
    while belt.running:
        reports += belt.wait(0.5)
    belt.close()
    assert reports[0] == Opened(forecast_s=PHOTO_S)
    assert sum(isinstance(report, Opened) for report in reports) == 1


def test_of_many_steps_the_first_and_then_one_a_second_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(worker_module.time, "monotonic", lambda: now)
    told: list[tuple[int, int]] = []
    hear = seldom(lambda done, of: told.append((done, of)))
    for done in range(1, 41):
        hear(done, 40)
        now += STEP_PAUSE_S / 8
    assert told == [(1, 40), (9, 40), (17, 40), (25, 40), (33, 40)]


def test_a_deadline_can_be_changed_by_its_stage_alone() -> None:
    assert deadlines(["cpu"], {"UNWRAP": 7})["unwrap"] == 7
    assert deadlines(["cuda:0"], {})["imagine"] < deadlines(["cpu"], {})["imagine"]
    with pytest.raises(UsageError, match="--timeout umwrap"):
        deadlines(["cpu"], {"umwrap": 7})


def test_devices_are_named_without_importing_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_may_have_accelerator", lambda: False)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert find_devices("auto") == ("cpu",)
    assert find_devices("cuda:0,3") == ("cuda:0", "cuda:3")
    for name in ("gpu", "cuda:", "cuda:0,", "cpu;rm"):
        with pytest.raises(UsageError, match="--device"):
            check_device(name)
    monkeypatch.setattr(machine, "ask", lambda code: [])
    with pytest.raises(EnvironmentProblem, match="--device cuda"):
        find_devices("cuda")


def test_a_record_survives_the_wire_in_pieces_of_any_size(tmp_path: Path) -> None:
    sent = job(tmp_path, "caf\udce9.jpg")
    data = frame({"job": sent}) + frame({"open": Launch(preset=PRESET, device="cpu", threads=2)})
    unframer = Unframer()
    messages = [message for byte in data for message in unframer.feed(bytes([byte]))]
    assert from_plain(Job, messages[0]["job"]) == sent
    assert from_plain(Launch, messages[1]["open"]).preset == PRESET


@pytest.mark.parametrize(
    "damage", [{"id": 3}, {"path": None}, {"max_mpixels": "many"}, {"scratch": {"b64": 1}}]
)
def test_a_record_of_wrong_types_is_refused(tmp_path: Path, damage: dict[str, object]) -> None:
    plain = to_plain(job(tmp_path, "a.jpg"))
    with pytest.raises(ValueError):
        from_plain(Job, {**plain, **damage})
    with pytest.raises(ValueError):
        from_plain(Job, {key: value for key, value in plain.items() if key not in damage})
