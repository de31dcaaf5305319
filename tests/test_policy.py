import signal
from pathlib import Path

import pytest

from crm_cli.errors import ErrorClass
from crm_cli.run import policy
from crm_cli.run.amounts import Share
from crm_cli.run.options import RunOptions, Stop
from crm_cli.run.policy import FIRST, ROW, SUSPECT_ROW, Breaker, Ending


def ending(stop: Stop | None = None, *, photos: int = 100, **options: object) -> Ending:
    asked = RunOptions(inputs=(), out=Path("out"), **options)  # type: ignore[arg-type]
    return Ending(asked, stop or Stop(), photos=photos, since=policy.time.monotonic())


def share(text: str) -> Share:
    return Share.from_text(text, flag="--x")


def note(breaker: Breaker, *kinds: ErrorClass | None, worker: int | None = None) -> None:
    for number, kind in enumerate(kinds):
        breaker.note(kind, worker=number if worker is None else worker)


def test_ten_failures_in_a_row_trip_the_breaker_and_nine_do_not() -> None:
    breaker = Breaker()
    note(breaker, *["internal", "timeout"] * 4, "internal")
    assert breaker.reason is None
    note(breaker, "crash")
    assert breaker.reason == "10 photos in a row have failed (internal 5, timeout 4, crash 1)"


def test_a_success_in_between_starts_the_row_anew() -> None:
    breaker = Breaker()
    for _ in range(4):
        note(breaker, *["internal"] * 4, None, *["quality"] * 3)
    assert breaker.reason is None


def test_photos_that_are_to_blame_themselves_say_nothing_about_the_machine() -> None:
    breaker = Breaker()
    note(breaker, *["input"] * 50, *["conflict"] * 50)
    assert breaker.reason is None
    # Nor do they excuse it.
    note(breaker, *["internal", "input"] * ROW)
    assert breaker.reason is not None


def test_one_worker_alone_never_trips_the_breaker_but_falls_under_suspicion() -> None:
    breaker = Breaker()
    note(breaker, *["quality"] * (SUSPECT_ROW - 1), worker=7)
    assert not breaker.is_suspect(7)
    note(breaker, "quality", worker=7)
    assert breaker.is_suspect(7) and not breaker.is_suspect(8)
    note(breaker, *["quality"] * ROW, worker=7)
    assert breaker.reason is None
    note(breaker, "quality", worker=8)
    assert breaker.reason is not None and not breaker.is_suspect(8)


def test_the_same_failure_of_nearly_all_of_the_first_photos_trips_it_among_successes() -> None:
    breaker = Breaker()
    kinds: list[ErrorClass | None] = ["oom"] * 9 + [None] + ["oom"] * 9 + [None]
    note(breaker, *kinds[:-1])
    assert breaker.reason is None
    note(breaker, None)
    assert breaker.reason == f"18 of the first {FIRST} photos have failed alike (oom)"


def test_nearly_all_of_the_first_photos_may_succeed_or_fail_differently() -> None:
    for kinds in ([None] * FIRST, (["oom"] * 9 + [None]) * 2, (["oom"] * 8 + [None] + ["io"]) * 2):
        breaker = Breaker()
        note(breaker, *kinds)
        assert (breaker.reason is None) == (kinds.count("oom") < 18)
    late = Breaker()
    note(late, *[None] * FIRST, *(["oom"] * 9 + [None]) * 3)
    assert late.reason is None


@pytest.mark.parametrize(
    ("options", "photos", "stops_at"),
    [
        ({}, 100, None),
        ({"fail_fast": True}, 100, 1),
        ({"max_failures": share("3")}, 100, 3),
        ({"max_failures": share("5%")}, 100, 5),
        ({"max_failures": share("5%")}, 10, 1),
        ({"max_failures": share("0")}, 100, 1),
        ({"max_failures": share("50"), "fail_fast": True}, 100, 1),
    ],
)
def test_so_many_failures_end_a_run(options: dict[str, object], photos: int, stops_at: int | None) -> None:
    run = ending(photos=photos, **options)
    for number in range(1, 60):
        run.note_failure()
        assert (run.why == "failures") == (stops_at is not None and number >= stops_at)
    assert run.exit_code(failed=59, left=1) == (3 if stops_at is None else 4) or stops_at is None


@pytest.mark.parametrize(
    ("allowed", "failed", "code"),
    [(None, 0, 0), (None, 1, 3), ("1", 1, 0), ("1", 2, 3), ("2%", 2, 0), ("2%", 3, 3), ("100%", 100, 0)],
)
def test_failures_that_are_allowed_still_count_as_success(
    allowed: str | None, failed: int, code: int
) -> None:
    run = ending(allow_failures=share(allowed) if allowed else None)
    assert run.exit_code(failed=failed, left=0) == code


def test_a_time_limit_ends_a_run_and_is_told_only_where_work_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 50.0
    monkeypatch.setattr(policy.time, "monotonic", lambda: now)
    run = ending(time_limit_s=10.0)
    now = 59.9
    assert run.why is None and not run.has_grace
    now = 60.0
    assert run.why == "time" and run.has_grace and run.words() == "the time limit is reached"
    assert (run.exit_code(failed=0, left=1), run.exit_code(failed=0, left=0)) == (75, 0)
    assert run.exit_code(failed=3, left=0) == 3


def test_a_signal_says_more_than_anything_else_and_failures_more_than_time() -> None:
    stop = Stop()
    run = ending(stop, time_limit_s=0.0, fail_fast=True)
    run.note_failure()
    assert run.why == "failures" and run.exit_code(failed=1, left=5) == 4
    for number, has_grace in ((signal.SIGINT, False), (signal.SIGTERM, True), (signal.SIGHUP, True)):
        run = ending(stop, time_limit_s=0.0, fail_fast=True)
        run.note_failure()
        stop.signal = number
        assert (run.why, run.has_grace, run.words()) == ("signal", has_grace, number.name)
        assert not run.is_urgent and run.exit_code(failed=1, left=5) == 128 + number


def test_the_first_reason_stays_and_an_interrupt_then_means_at_once() -> None:
    stop = Stop()
    run = ending(stop, time_limit_s=0.0)
    assert run.why == "time" and run.has_grace and not run.is_urgent
    stop.signal = signal.SIGTERM
    assert run.why == "time" and run.has_grace and not run.is_urgent
    stop.signal = signal.SIGINT
    assert run.is_urgent and run.exit_code(failed=0, left=2) == 75
    stop.is_urgent = True
    assert run.is_urgent


def test_after_other_reasons_running_photos_are_waited_for_until_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 0.0
    monkeypatch.setattr(policy.time, "monotonic", lambda: now)
    run = ending(time_limit_s=10.0, fail_fast=True)
    run.note_failure()
    assert run.why == "failures" and not run.has_grace
    now = 10.0
    assert run.why == "failures" and run.has_grace
