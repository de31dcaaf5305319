"""What becomes of photos that fail, and of runs in which many do."""

import errno
import hashlib
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import fakes
import pytest
from output import exit_code, plant, published, statuses
from runs import PATHS, reasons, run, start, started, warned

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.run import batch, policy, process, quarantine, work
from crm_cli.run.amounts import Share
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.events import (
    AssetFinished,
    AssetPlanned,
    AssetStarted,
    AttemptFailed,
    Event,
    Plan,
    RunFinished,
    StageStarted,
)
from crm_cli.run.files import hash_file
from crm_cli.run.journal import Journal, last_failures, read_lines, unfinished_attempts
from crm_cli.run.options import Stop
from crm_cli.run.policy import MAX_INTERRUPTIONS, MAX_KILLS, ROW
from crm_cli.run.retry import plan_retry
from crm_cli.run.status import status
from crm_cli.run.store import LocalPlace


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)


def kinds(out: Path) -> Counter[str]:
    return Counter(line["ev"] for line in read_lines(out))


def test_a_photo_that_crashes_three_workers_is_set_aside_with_the_evidence(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "segv_a.jpg", "b.jpg")
    out = tmp_path / "out"
    events = run(photos)
    assert statuses(events) == {"segv_a.jpg": "quarantined", "b.jpg": "converted"}
    assert started(events).count("segv_a.jpg") == 3 and exit_code(events) == 3
    [failed] = [e for e in events if isinstance(e, AssetFinished) and e.status == "quarantined"]
    assert (failed.kind, failed.code) == ("crash", "E_CRASH")
    [folder] = (out / ".crm" / "quarantine").iterdir()
    logs = [(folder / f"attempt-{number}.log").read_text() for number in (1, 2, 3)]
    assert all("Segmentation fault" in log and "in _obey" in log for log in logs)
    assert (folder / "photo.jpg").read_bytes() == b"segv_a.jpg"
    about = json.loads((folder / "evidence.json").read_bytes())
    assert about["failure"]["stage"] == "unwrap" and about["preset"]["mesh"] and about["weights"]
    [line] = [line for line in read_lines(out) if line["ev"] == "quarantined"]
    assert (out / line["evidence"]) == folder and line["error"]["class"] == "crash"


def test_a_photo_in_quarantine_waits_for_a_word_for_other_bytes_or_for_other_settings(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "segv_a.jpg")
    run(photos)
    again = run(photos)
    assert started(again) == [] and statuses(again) == {"segv_a.jpg": "quarantined"} and exit_code(again) == 3
    plan = next(event for event in again if isinstance(event, Plan))
    assert (plan.quarantined_before, plan.failed_before, plan.to_convert) == (1, 0, 0)
    [standing] = status(tmp_path / "out").failures
    assert standing.is_quarantined
    assert len(started(run(photos, "mesh.faces=200"))) == 3
    assert len(started(run(photos, retry_failed=True))) == 3
    (photos / "segv_a.jpg").write_text("other bytes")
    assert len(started(run(photos))) == 3


def test_the_evidence_goes_when_the_photo_becomes_an_asset_after_all(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "segv_a.jpg")
    run(photos)
    events = run(photos, retry_failed=True, engine=fakes.engine("KindLine"))
    assert statuses(events) == {"segv_a.jpg": "converted"}
    assert not list((tmp_path / "out" / ".crm" / "quarantine").iterdir())
    assert last_failures(tmp_path / "out") == {}


def test_evidence_holds_the_views_where_there_are_any_and_stands_without_the_photo(tmp_path: Path) -> None:
    (tmp_path / ".crm").mkdir()
    views = tmp_path / "views"
    views.mkdir()
    (views / "ok.json").write_text("kept")
    folder = quarantine.keep(
        tmp_path, "0" * 16, run="r", about={}, logs=["x"], photo=tmp_path / "gone.jpg", views=views
    )
    assert (folder / "views" / "ok.json").read_text() == "kept"
    assert sorted(path.name for path in folder.iterdir()) == ["attempt-1.log", "evidence.json", "views"]
    quarantine.keep(tmp_path, "0" * 16, run="r", about={}, logs=[], photo=tmp_path / "gone.jpg", views=None)
    assert [path.name for path in folder.iterdir()] == ["evidence.json"]


def test_the_last_words_of_a_worker_that_hung_are_kept_with_the_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg")
    events = run(photos, deadlines_s={"unwrap": 0.5})
    assert started(events) == ["hang_a.jpg"] * 2 and statuses(events) == {"hang_a.jpg": "failed"}
    words = [path.read_text() for path in (tmp_path / "out").glob(".crm/runs/*/errors/*.txt")]
    assert len(words) == 2 and all("in _obey" in text for text in words)
    assert not (tmp_path / "out" / ".crm" / "quarantine").exists()


def test_what_may_pass_is_tried_again(tmp_path: Path) -> None:
    events = run(plant(tmp_path / "in", "flaky_a.jpg"))
    assert statuses(events) == {"flaky_a.jpg": "converted"} and exit_code(events) == 0


def test_a_photo_that_changed_under_its_worker_is_made_of_the_new_bytes(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg")
    events: list[Event] = []
    for event in start(photos):
        is_first = not any(isinstance(e, AttemptFailed) for e in events)
        if isinstance(event, StageStarted) and event.stage == "unwrap" and is_first:
            (photos / "slow_a.jpg").write_bytes(b"changed meanwhile")
        events.append(event)
    assert statuses(events) == {"slow_a.jpg": "converted"} and len(started(events)) == 2
    [record] = Records.scan(tmp_path / "out").newest()
    assert record.input.sha256 == hashlib.sha256(b"changed meanwhile").hexdigest()
    assert record.input.sha256 == hash_file(photos / "slow_a.jpg").sha256 and record.attempt == 2


def test_a_worker_killed_from_outside_costs_its_photo_no_attempt(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "onekill_a.jpg")
    events = run(photos)
    assert statuses(events) == {"onekill_a.jpg": "converted"} and exit_code(events) == 0
    [again] = [event.reason for event in events if isinstance(event, AttemptFailed)]
    assert again == "the worker was killed in unwrap, from outside"
    assert kinds(tmp_path / "out")["asset_failed"] == 0


def test_whoever_is_killed_time_and_again_fails_in_the_end_but_is_not_set_aside(tmp_path: Path) -> None:
    events = run(plant(tmp_path / "in", "killed_a.jpg", "b.jpg"))
    assert statuses(events) == {"killed_a.jpg": "failed", "b.jpg": "converted"}
    assert started(events).count("killed_a.jpg") == MAX_KILLS + 1
    [failed] = [e for e in events if isinstance(e, AssetFinished) and e.status == "failed"]
    assert (failed.kind, failed.code) == ("crash", "E_KILLED")
    assert failed.reason == "the worker was killed in unwrap, from outside; so it went 6 times"


def test_workers_that_somebody_kills_before_their_first_stage_end_the_run_at_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "MAX_KILLED_UNOPENED", 3)
    photos = plant(tmp_path / "in", *(f"{number}.jpg" for number in range(4)))
    with pytest.raises(EnvironmentProblem, match="somebody kills them"):
        run(photos, engine=fakes.engine("KilledLine"))
    assert kinds(tmp_path / "out")["asset_failed"] == 0


def test_out_of_memory_on_a_cpu_fewer_photos_are_made_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = plant(tmp_path / "in", "oom_a.jpg", "b.jpg", "c.jpg", "d.jpg")
    events = run(photos, jobs=4)
    assert statuses(events)["oom_a.jpg"] == "failed" and exit_code(events) == 3
    assert started(events).count("oom_a.jpg") == 3
    # Once for a photo: what one alone cannot have must not make the run slow for ever.
    assert [m for m in warned(events) if "memory" in m] == ["out of memory: going on with 2 at a time"]
    assert Counter(statuses(events).values()) == {"converted": 3, "failed": 1}


def test_out_of_memory_on_an_accelerator_steps_down_to_frugal_workers_and_then_to_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "find_devices", lambda wanted: ("cuda:0",))
    photos = plant(tmp_path / "in", "big_a.jpg", "big_b.jpg", "huge_c.jpg", "z.jpg")
    events = run(photos, device="cuda", jobs=1, engine=fakes.engine("LaneLine"))
    assert set(statuses(events).values()) == {"converted"} and exit_code(events) == 0
    # The first photo finds out; the second is spared, and the third goes on to the CPU at once.
    assert Counter(started(events)) == {"big_a.jpg": 2, "big_b.jpg": 1, "huge_c.jpg": 2, "z.jpg": 1}
    assert warned(events) == [
        "out of memory: going on with one network at a time, in smaller pieces",
        "huge_c.jpg: out of memory again; trying on the CPU",
    ]


def test_photos_beside_one_that_runs_out_of_memory_on_an_accelerator_begin_again_at_no_cost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "find_devices", lambda wanted: ("cuda:0",))
    # Both begin together; the lane of their device goes when the first has failed.
    photos = plant(tmp_path / "in", "oom_a.jpg", "steps_p.jpg")
    events = run(photos, device="cuda", jobs=2, engine=fakes.engine("LaneLine"), deadlines_s={})
    assert statuses(events) == {"oom_a.jpg": "failed", "steps_p.jpg": "converted"}
    attempts: dict[str, list[int]] = {}
    for event in events:
        if isinstance(event, AssetStarted):
            attempts.setdefault(str(event.path), []).append(event.attempt)
    assert attempts.pop("oom_a.jpg") == [1, 2, 3]
    [beside] = attempts.values()
    assert set(beside) == {1} and kinds(tmp_path / "out")["interrupted"] == len(beside) - 1 > 0


def test_where_a_worker_beside_an_accelerator_runs_out_of_memory_fewer_photos_are_made_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "find_devices", lambda wanted: ("cuda:0",))
    photos = plant(tmp_path / "in", "oom_a.jpg", "b.jpg", "c.jpg")
    events = run(photos, device="cuda", jobs=2)
    assert statuses(events) == {"oom_a.jpg": "failed", "b.jpg": "converted", "c.jpg": "converted"}
    # It is the machine's memory: the networks keep theirs, and no try on the CPU would need less.
    assert warned(events) == ["out of memory: going on with 1 at a time"]


def test_a_photo_whose_networks_crash_their_lane_is_set_aside_and_the_others_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "find_devices", lambda wanted: ("cuda:0",))
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg", "segv_c.jpg", "d.jpg", "e.jpg")
    events = run(photos, device="cuda", jobs=3, engine=fakes.engine("LaneLine"))
    outcomes = statuses(events)
    assert outcomes.pop("segv_c.jpg") == "quarantined"
    assert outcomes == dict.fromkeys(("a.jpg", "b.jpg", "d.jpg", "e.jpg"), "converted")
    [last] = [e for e in events if isinstance(e, AssetFinished) and e.path == PurePosixPath("segv_c.jpg")]
    assert "the lane of cuda:0 died with SIGSEGV in imagine" in last.reason
    assert started(events).count("segv_c.jpg") == 3


def test_ten_failures_in_a_row_trip_the_breaker_and_the_rest_is_left(tmp_path: Path) -> None:
    names = [f"raise_{number:02}.jpg" for number in range(15)]
    photos = plant(tmp_path / "in", *names)
    events = run(photos)
    assert exit_code(events) == 4 and len(statuses(events)) == ROW
    assert isinstance(events[-1], RunFinished) and events[-1].left == 5
    [message] = warned(events)
    assert message.startswith("10 photos in a row have failed (internal 10): something is wrong with more")
    # Nothing stops the next run from trying them all again.
    assert len(statuses(run(photos, engine=fakes.engine("KindLine")))) == 15


def test_photos_that_are_refused_do_not_trip_the_breaker(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", *(f"input_{number:02}.jpg" for number in range(25)), "z.jpg")
    events = run(photos)
    assert exit_code(events) == 3 and Counter(statuses(events).values()) == {"failed": 25, "converted": 1}


@pytest.mark.parametrize(("most", "failed"), [("2", 2), ("50%", 3)])
def test_so_many_failures_end_the_run(tmp_path: Path, most: str, failed: int) -> None:
    names = ["b.jpg", "input_a.jpg", "input_c.jpg", "input_d.jpg", "input_e.jpg", "z.jpg"]
    events = run(plant(tmp_path / "in", *names), max_failures=Share.from_text(most, flag="--max-failures"))
    assert exit_code(events) == 4
    assert Counter(statuses(events).values()) == {"failed": failed, "converted": 1}
    assert f"{failed} failed, and no more are allowed" in warned(events)[0]


@pytest.mark.parametrize(("allowed", "code"), [("1", 3), ("2", 0), ("50%", 0), ("49%", 3)])
def test_failures_that_are_allowed_are_no_failure_of_the_run(tmp_path: Path, allowed: str, code: int) -> None:
    photos = plant(tmp_path / "in", "input_a.jpg", "b.jpg", "raise_c.jpg", "d.jpg")
    share = Share.from_text(allowed, flag="--allow-failures")
    assert exit_code(run(photos, allow_failures=share)) == code
    assert exit_code(run(photos, allow_failures=share)) == code


def test_at_its_time_limit_a_run_ends_what_is_running_and_leaves_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "slow_b.jpg", "slow_c.jpg")
    ahead_s, events = 0.0, []
    monkeypatch.setattr(policy, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + ahead_s))
    for event in start(photos, time_limit_s=3600.0):
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "unwrap":
            ahead_s = 3600.0
    assert statuses(events) == {"slow_a.jpg": "converted"} and exit_code(events) == 75
    assert isinstance(events[-1], RunFinished) and events[-1].left == 2
    [message] = warned(events)
    assert message.startswith("the time limit is reached: finishing what is running (1 photo, 20 s at most)")
    assert statuses(run(photos)) == {
        "slow_a.jpg": "cached", "slow_b.jpg": "converted", "slow_c.jpg": "converted"
    }  # fmt: skip


def test_a_time_limit_that_is_not_reached_changes_nothing(tmp_path: Path) -> None:
    assert exit_code(run(plant(tmp_path / "in", "a.jpg"), time_limit_s=600.0)) == 0


def test_after_the_grace_running_photos_are_left_to_the_next_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg")
    stop, events = Stop(), []
    for event in start(photos, stop=stop, grace_s=0.3, deadlines_s={"unwrap": 60}):
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "unwrap":
            stop.signal = signal.SIGTERM
    assert exit_code(events) == 143 and statuses(events) == {}
    assert kinds(tmp_path / "out")["interrupted"] == 1 and kinds(tmp_path / "out")["asset_failed"] == 0
    assert "0 s at most" in warned(events)[0]


def die_over(out: Path, asset: str, *, times: int) -> None:
    """Leave behind what runs leave that died with a photo at work."""
    for _ in range(times):
        with Journal(out, batch.new_run()) as journal:
            journal.write("attempt_start", asset=PurePosixPath(asset), key="k", attempt=1)


def test_a_photo_that_many_runs_died_over_runs_last_and_alone(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "slow_b.jpg", "slow_c.jpg")
    out = tmp_path / "out"
    (out / ".crm" / "journal").mkdir(parents=True)
    die_over(out, "slow_a.jpg", times=MAX_INTERRUPTIONS)
    die_over(out, "slow_b.jpg", times=MAX_INTERRUPTIONS - 1)
    assert unfinished_attempts(out) == {
        PurePosixPath("slow_a.jpg"): MAX_INTERRUPTIONS, PurePosixPath("slow_b.jpg"): MAX_INTERRUPTIONS - 1
    }  # fmt: skip
    events = run(photos, jobs=3)
    told = [
        (e.type, str(e.path)) for e in events if isinstance(e, AssetFinished) or e.type == "asset_started"
    ]
    assert told[-2:] == [("asset_started", "slow_a.jpg"), ("asset_finished", "slow_a.jpg")]
    assert unfinished_attempts(out) == {}


def test_a_run_that_says_it_was_interrupted_does_not_count_against_its_photos(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / ".crm" / "journal").mkdir(parents=True)
    asset = PurePosixPath("a.jpg")
    with Journal(out, batch.new_run()) as journal:
        journal.write("attempt_start", asset=asset, key="k", attempt=1)
        journal.write("interrupted", asset=asset, attempt=1)
    assert unfinished_attempts(out) == {}
    die_over(out, "a.jpg", times=2)
    with Journal(out, batch.new_run()) as journal:
        journal.write("attempt_start", asset=asset, key="k", attempt=1)
        journal.write("asset_done", asset=asset, key="k", attempt=1)
    assert unfinished_attempts(out) == {}


def test_a_file_of_somebody_else_is_skipped_where_that_is_asked_for(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    out = tmp_path / "out"
    out.mkdir()
    (out / "a.obj").write_text("mine")
    events = run(photos, skip_existing=True)
    assert statuses(events) == {"a.jpg": "skipped", "b.jpg": "converted", "c.jpg": "converted"}
    assert exit_code(events) == 0 and (out / "a.obj").read_text() == "mine" and not (out / "a.glb").exists()
    (out / "b.glb").write_text("improved")
    again = run(photos, "seed=5", skip_existing=True)
    assert statuses(again) == {"a.jpg": "skipped", "b.jpg": "skipped", "c.jpg": "converted"}
    assert (out / "b.glb").read_text() == "improved"


def test_a_file_in_the_way_is_noticed_before_any_work_is_done(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.glb").write_text("mine")
    events = run(photos)
    assert started(events) == [] and statuses(events) == {"a.jpg": "conflict"}
    [failed] = [event for event in events if isinstance(event, AssetFinished)]
    assert failed.reason == "a.glb is in the way: crm did not write it; move it, or use --overwrite"
    assert statuses(run(photos, overwrite=True)) == {"a.jpg": "converted"}


def test_stale_assets_are_kept_where_that_is_asked_for_and_others_are_not(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    run(photos)
    before = published(tmp_path / "out")
    (photos / "b.jpg").write_text("another photo")
    (tmp_path / "out" / "c.glb").unlink()
    events = run(photos, "seed=5", keep_stale=True)
    assert statuses(events) == {"a.jpg": "cached", "b.jpg": "converted", "c.jpg": "converted"}
    after = published(tmp_path / "out")
    assert after["a.glb"] == before["a.glb"] and after["b.glb"] != before["b.glb"]
    assert statuses(run(photos, "seed=5")) == {"a.jpg": "converted", "b.jpg": "cached", "c.jpg": "cached"}


def test_a_stage_can_be_forced_and_only_the_early_ones_make_views_anew(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    engine = fakes.engine("KeepingLine")
    first = run(photos, engine=engine)
    again = run(photos, engine=engine, force_stage="bake")
    anew = run(photos, engine=engine, force_stage="imagine")
    staged = [[e.stage for e in events if isinstance(e, StageStarted)] for events in (first, again, anew)]
    assert staged == [list(fakes.STAGES), [s for s in fakes.STAGES if s != "imagine"], list(fakes.STAGES)]
    assert reasons(again) == {"forced, from bake on": 1}
    with pytest.raises(UsageError, match=r"--force-stage lunch: no such stage.*prepare, imagine"):
        run(photos, force_stage="lunch")


def test_a_dry_run_says_which_stage_comes_first(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    engine = fakes.engine("KeepingLine")

    def first_stages(*assignments: str) -> list[str]:
        events: list[Event] = run(photos, *assignments, engine=engine, dry_run=True)
        return [event.stage for event in events if isinstance(event, AssetPlanned)]

    assert first_stages() == ["prepare"]
    run(photos, engine=engine)
    assert first_stages() == [""]
    assert first_stages("texture.size_px=512") == ["reconstruct"]
    assert first_stages("seed=5") == ["prepare"]


def test_an_input_folder_that_goes_away_trips_the_breaker(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", *(f"{number:02}.jpg" for number in range(40)))
    events: list[Event] = []
    for event in start(photos):
        events.append(event)
        if isinstance(event, AssetFinished) and event.path.name == "03.jpg":
            photos.rename(tmp_path / "away")
    assert exit_code(events) == 4 and Counter(statuses(events).values()) == {"converted": 4, "failed": ROW}
    (tmp_path / "away").rename(photos)
    assert Counter(statuses(run(photos)).values()) == {"cached": 4, "converted": 36}


def test_a_photo_is_set_aside_for_crashes_alone(tmp_path: Path) -> None:
    events = run(plant(tmp_path / "in", "oomcrash_a.jpg"))
    assert started(events) == ["oomcrash_a.jpg"] * 3 and statuses(events) == {"oomcrash_a.jpg": "failed"}


def test_where_the_run_ends_a_photo_that_may_be_tried_again_is_left(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "raise_a.jpg")
    stop, events = Stop(), []
    for event in start(photos, stop=stop):
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "unwrap":
            stop.signal = signal.SIGINT
    assert exit_code(events) == 130 and statuses(events) == {}
    assert isinstance(events[-1], RunFinished) and events[-1].left == 1
    assert len(started(run(photos))) == 2


def test_workers_killed_for_memory_while_they_open_make_room_and_not_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(10**6))
    monkeypatch.setattr(process, "memory_kills", lambda: next(kills))
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    monkeypatch.setenv(fakes.FIRST_OPEN, str(tmp_path / "mark"))
    events = run(photos, jobs=4, engine=fakes.engine("OnceKilledLine"))
    assert set(statuses(events).values()) == {"converted"} and exit_code(events) == 0
    assert "out of memory: going on with 1 at a time" in warned(events)


def test_workers_that_never_open_do_not_make_their_photos_suspects(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    for _ in range(MAX_INTERRUPTIONS):
        with pytest.raises(EnvironmentProblem):
            run(photos, engine=fakes.engine("DeadLine"))
    assert unfinished_attempts(tmp_path / "out") == {}


def test_a_lane_that_never_opens_ends_the_run_and_no_photo_is_a_suspect(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batch, "find_devices", lambda wanted: ("cuda:0",))
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg")
    with pytest.raises(EnvironmentProblem, match="the lane of cuda:0 died with SIGSEGV"):
        run(photos, device="cuda", jobs=2, engine=fakes.engine("LaneLine", desk="DeadDesk"))
    assert unfinished_attempts(tmp_path / "out") == {} and kinds(tmp_path / "out")["asset_failed"] == 0


def test_a_try_that_failed_after_its_files_were_moved_finds_them_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit, calls = LocalPlace.commit, []

    def fail_once(place: LocalPlace, record: CommitRecord, intent: Path, final: Path) -> None:
        calls.append(record.asset)
        if len(calls) == 1:
            raise OSError(errno.EINTR, os.strerror(errno.EINTR))
        commit(place, record, intent, final)

    monkeypatch.setattr(LocalPlace, "commit", fail_once)
    events = run(plant(tmp_path / "in", "a.jpg"))
    assert statuses(events) == {"a.jpg": "converted"} and len(calls) == 2


def test_a_copied_output_folder_is_still_finished(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg")
    run(photos)
    shutil.copytree(tmp_path / "out", tmp_path / "copy", copy_function=shutil.copyfile)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "copy").glob("*.glb")}
    dry = run(photos, out=tmp_path / "copy", dry_run=True)
    assert [e.action for e in dry if isinstance(e, AssetPlanned)] == ["cached", "cached"]
    assert before == {path: path.stat().st_mtime_ns for path in before}
    assert set(statuses(run(photos, out=tmp_path / "copy")).values()) == {"cached"}
    assert status(tmp_path / "copy").finished == 2
    # Another version of a copied asset replaces it; one that was edited stays.
    shutil.copytree(tmp_path / "out", tmp_path / "other", copy_function=shutil.copyfile)
    edited = tmp_path / "other" / "b.glb"
    edited.write_bytes(bytes(edited.stat().st_size))  # as long as it was: the bytes decide
    assert statuses(run(photos, out=tmp_path / "other")) == {"a.jpg": "cached", "b.jpg": "conflict"}
    events = run(photos, "seed=5", out=tmp_path / "other")
    assert statuses(events) == {"a.jpg": "converted", "b.jpg": "conflict"}


def test_an_asset_whose_record_is_damaged_is_made_again_over_its_own_files(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg")
    run(photos)
    for record in (tmp_path / "out").glob(".crm/records/*/*.json"):
        record.write_bytes(record.read_bytes()[:100])
    (tmp_path / "out" / "b.glb").write_text("edited")
    events = run(photos)
    assert statuses(events) == {"a.jpg": "converted", "b.jpg": "conflict"}
    assert (tmp_path / "out" / "b.glb").read_text() == "edited"
    assert statuses(run(photos))["a.jpg"] == "cached"


def test_what_is_overwritten_is_told_before(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.glb").write_text("mine")
    [planned] = [e for e in run(photos, overwrite=True, dry_run=True) if isinstance(e, AssetPlanned)]
    assert planned.reason == "new; replaces a.glb"


def test_a_forced_try_that_fails_leaves_the_asset_that_stands_finished(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "input_a.jpg")
    run(photos, engine=fakes.engine("KindLine"))
    assert statuses(run(photos, force_stage="bake")) == {"input_a.jpg": "failed"}
    assert status(tmp_path / "out").failures != ()
    assert statuses(run(photos)) == {"input_a.jpg": "cached"}
    assert status(tmp_path / "out").failures == ()


def test_a_retry_asks_for_photos_and_not_for_the_limits_of_the_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "raise_a.jpg", "raise_b.jpg", "c.jpg")
    run(
        photos, time_limit_s=3600.0, junit=tmp_path / "j.xml", force_stage="bake",
        max_failures=Share.from_text("90%", flag="--x"),
    )  # fmt: skip
    [again] = plan_retry(tmp_path / "out")
    options = again.options
    assert (options.max_failures, options.time_limit_s, options.junit, options.force_stage) == (None,) * 4
    assert options.retry_failed and not options.fail_fast and len(again.photos) == 2
