import base64
import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import fakes
import pytest
from output import HERE, exit_code, plant, published, statuses
from runs import PATHS, reasons, run, start, started

from crm_cli.errors import EnvironmentProblem, Locked, NoInput, OutputError, UsageError
from crm_cli.preset import load_preset
from crm_cli.run import journal as journal_module
from crm_cli.run import machine
from crm_cli.run.attempt import Attempt
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.events import (
    AssetFinished,
    AssetPlanned,
    AssetStarted,
    Event,
    Forecast,
    Plan,
    RunFinished,
    RunStarted,
    StageProgress,
    StageStarted,
    Warned,
    WeightsLoading,
)
from crm_cli.run.journal import Journal, read_lines
from crm_cli.run.options import Stop
from crm_cli.run.selection import Selection
from crm_cli.run.status import status as read_status
from crm_cli.run.store import Store
from crm_cli.run.sums import SUMS
from crm_cli.run.wire import dumps, to_plain


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return plant(tmp_path / "in", "a.jpg", "sub/b.png", "sub/c.webp")


def test_every_photo_becomes_an_asset_in_the_mirrored_folder(photos: Path) -> None:
    events = run(photos)
    assert exit_code(events) == 0
    assert statuses(events) == {"a.jpg": "converted", "sub/b.png": "converted", "sub/c.webp": "converted"}
    names = {f"{stem}.{suffix}" for stem in ("a", "sub/b", "sub/c") for suffix in ("glb", "obj", "usd")}
    assert set(published(photos.parent / "out")) == {*names, SUMS}


def test_bad_photos_are_classified_and_cost_nobody_else(tmp_path: Path) -> None:
    fates = {
        "raise_": ("failed", "internal", 2),
        "input_": ("failed", "input", 1),
        "segv_": ("quarantined", "crash", 3),
        "exit0_": ("quarantined", "crash", 3),
        "liar_": ("failed", "io", 2),
        "nan_": ("failed", "internal", 2),
        "once_": ("converted", None, 2),
        "noisy_": ("converted", None, 1),
        "good_": ("converted", None, 1),
    }
    photos = plant(tmp_path / "in", *(f"{fate}x.jpg" for fate in fates))
    events = run(photos, jobs=2)
    finished = {event.path.name: event for event in events if isinstance(event, AssetFinished)}
    attempts = Counter(started(events))
    for fate, (status, kind, tries) in fates.items():
        event = finished[f"{fate}x.jpg"]
        assert (event.status, event.kind, attempts[f"{fate}x.jpg"]) == (status, kind, tries)
    assert exit_code(events) == 3
    out = tmp_path / "out"
    assert {Path(name).stem for name in published(out) if name != SUMS} == {"once_x", "noisy_x", "good_x"}
    evidence = [path.read_text() for path in out.glob(".crm/runs/*/errors/*.txt")]
    assert sum("RuntimeError: a surprise" in text for text in evidence) == 2


def test_a_hanging_photo_ends_at_its_deadline_and_the_others_go_on(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "hang_b.jpg", "z.jpg")
    events = run(photos, deadlines_s={"unwrap": 0.5})
    assert statuses(events) == {"a.jpg": "converted", "hang_b.jpg": "failed", "z.jpg": "converted"}
    [failed] = [event for event in events if isinstance(event, AssetFinished) and event.status == "failed"]
    assert failed.kind == "timeout" and "unwrap" in failed.reason


def test_the_journal_knows_an_attempt_before_the_worker_does(photos: Path) -> None:
    out = photos.parent / "out"
    for event in start(photos):
        if isinstance(event, AssetStarted):
            lines = [line["asset"] for line in read_lines(out) if line["ev"] == "attempt_start"]
            assert lines[-1] == str(event.path)
    kinds = [line["ev"] for line in read_lines(out)]
    assert kinds[0] == "run_start" and kinds[-1] == "run_end"
    assert Counter(kinds)["asset_done"] == 3


def test_neither_the_number_of_workers_nor_what_is_left_to_do_changes_an_asset(photos: Path) -> None:
    base = photos.parent
    run(photos, out=base / "one", jobs=1)
    run(photos, out=base / "three", jobs=3)
    run(photos, out=base / "later", jobs=3, select=Selection(limit=1))
    run(photos, out=base / "later", jobs=3)
    assert published(base / "one") == published(base / "three") == published(base / "later")


def test_a_second_run_does_nothing_at_all(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".crm" not in path.parts}
    events = run(photos)
    assert exit_code(events) == 0
    assert set(statuses(events).values()) == {"cached"}
    assert started(events) == []
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*") if ".crm" not in path.parts}


def test_only_what_changed_is_done_again_and_the_reason_is_told(photos: Path) -> None:
    run(photos)
    (photos / "a.jpg").write_text("another picture")
    os.utime(photos / "sub" / "b.png")
    (photos.parent / "out" / "sub" / "c.obj").unlink()
    events = run(photos)
    assert statuses(events) == {"a.jpg": "converted", "sub/b.png": "cached", "sub/c.webp": "converted"}
    assert reasons(events) == {"photo changed": 1, "output missing": 1}


def test_a_change_within_the_clocks_doubt_is_seen_although_the_time_stamp_stayed(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    now = time.time()
    os.utime(photos / "a.jpg", (now, now))
    run(photos)
    (photos / "a.jpg").write_bytes(b"A.JPG")
    os.utime(photos / "a.jpg", (now, now))
    assert reasons(run(photos)) == {"photo changed": 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("export.formats=glb", "export.formats glb+obj+usd → glb"),
        ("mesh.faces=200", "mesh.faces 2000 → 200"),
        ("seed=5", "seed 0 → 5"),
        ("matting.method=none", "matting.method auto → none"),
    ],
)
def test_another_preset_redoes_every_asset(photos: Path, change: str, reason: str) -> None:
    run(photos)
    events = run(photos, change)
    assert reasons(events) == {reason: 3}
    assert set(statuses(events).values()) == {"converted"}
    assert set(statuses(run(photos, change)).values()) == {"cached"}


def test_of_many_changed_settings_a_few_are_named_and_without_a_run_to_ask_the_stage_is(photos: Path) -> None:
    run(photos)
    many = ("seed=5", "mesh.faces=200", "mesh.smooth=2", "texture.size_px=512", "unwrap.padding_px=3")
    [reason] = reasons(run(photos, *many, dry_run=True))
    assert reason == "seed 0 → 5, mesh.faces 2000 → 200, mesh.smooth 3 → 2, 2 more"
    weights = fakes.engine(weights="w2")
    assert reasons(run(photos, engine=weights, dry_run=True)) == {"other weights": 3}
    assert reasons(run(photos, "seed=5", engine=weights, dry_run=True)) == {"seed 0 → 5, other weights": 3}
    shutil.rmtree(photos.parent / "out" / ".crm" / "runs")
    assert reasons(run(photos, "seed=5", dry_run=True)) == {
        "settings, weights or crm itself changed, from the views on": 3
    }


def test_other_weights_redo_and_another_device_or_worker_count_does_not(photos: Path) -> None:
    run(photos)
    assert set(statuses(run(photos, jobs=3)).values()) == {"cached"}
    assert set(statuses(run(photos, engine=fakes.engine(weights="w2"))).values()) == {"converted"}


def test_going_back_to_an_earlier_preset_is_never_taken_for_done(photos: Path) -> None:
    run(photos)
    first = published(photos.parent / "out")
    run(photos, "seed=5")
    assert published(photos.parent / "out") != first
    assert set(statuses(run(photos)).values()) == {"converted"}
    assert published(photos.parent / "out") == first


def test_a_refused_photo_waits_for_other_bytes_other_limits_or_a_word(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "input_a.jpg")
    assert started(run(photos)) == ["input_a.jpg"]
    again = run(photos)
    assert started(again) == [] and exit_code(again) == 3
    assert started(run(photos, retry_failed=True)) == ["input_a.jpg"]
    assert started(run(photos, max_mpixels=99.0)) == ["input_a.jpg"]
    (photos / "input_a.jpg").write_text("other bytes")
    assert started(run(photos)) == ["input_a.jpg"]


def test_a_photo_that_failed_by_surprise_is_tried_again_by_the_next_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "raise_a.jpg")
    run(photos)
    assert started(run(photos)) == ["raise_a.jpg", "raise_a.jpg"]


def test_an_edited_asset_is_a_conflict_before_any_work_is_done(photos: Path) -> None:
    run(photos)
    edited = photos.parent / "out" / "a.glb"
    edited.write_text("improved by hand")
    events = run(photos)
    assert statuses(events)["a.jpg"] == "conflict" and exit_code(events) == 3
    assert started(events) == []
    assert edited.read_text() == "improved by hand"
    assert statuses(run(photos, overwrite=True))["a.jpg"] == "converted"


def die_after(moves: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the run end like a kill after so many files of an asset were moved into place."""
    replace_file, moved = Path.replace, 0

    def replace_or_die(file: Path, target: Path) -> Path:
        nonlocal moved
        if ".crm/tmp/" in file.as_posix():
            moved += 1
            if moved > moves:
                raise Killed
        return replace_file(file, target)

    monkeypatch.setattr(Path, "replace", replace_or_die)


class Killed(BaseException):
    """Nothing in the package catches it, as nothing survives a kill."""


def test_a_kill_between_two_moves_of_a_new_version_is_no_conflict_for_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    run(photos)
    first = published(tmp_path / "out")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        die_after(1, patch)
        run(photos, "seed=5")
    torn = published(tmp_path / "out")
    assert sum(torn[name] != data for name, data in first.items()) == 1
    events = run(photos, "seed=5")
    assert statuses(events) == {"a.jpg": "converted"} and exit_code(events) == 0


def test_an_asset_committed_right_before_a_kill_is_finished_although_it_had_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = plant(tmp_path / "in", "input_a.jpg")
    run(photos)
    with monkeypatch.context() as patch, pytest.raises(Killed):
        write = Journal.write

        def write_or_die(journal: Journal, event: Any, /, **details: Any) -> None:
            if event == "asset_done":
                raise Killed
            write(journal, event, **details)

        patch.setattr(Journal, "write", write_or_die)
        run(photos, retry_failed=True, engine=fakes.engine("KindLine"))
    events = run(photos)
    assert statuses(events) == {"input_a.jpg": "cached"} and exit_code(events) == 0
    standing = read_status(tmp_path / "out")
    assert (standing.finished, standing.failures) == (1, ())


def test_a_foreign_file_in_the_way_is_a_conflict(photos: Path) -> None:
    out = photos.parent / "out"
    out.mkdir()
    (out / "a.obj").write_text("foreign")
    events = run(photos)
    assert statuses(events) == {"a.jpg": "conflict", "sub/b.png": "converted", "sub/c.webp": "converted"}
    assert (out / "a.obj").read_text() == "foreign" and not (out / "a.glb").exists()


@pytest.mark.parametrize(("texture", "in_the_way"), [("png", "a.png"), ("jpeg", "a.jpg"), ("webp", "a.jpg")])
def test_a_foreign_picture_is_in_the_way_where_the_texture_would_be(
    photos: Path, texture, in_the_way
) -> None:
    out = photos.parent / "out"
    out.mkdir()
    for name in ("a.png", "a.jpg"):
        (out / name).write_text("foreign")
        planned = [
            e for e in run(photos, f"export.texture={texture}", dry_run=True) if isinstance(e, AssetPlanned)
        ]
        assert planned[0].action == ("conflict" if name == in_the_way else "convert")
        (out / name).unlink()


def test_a_photo_that_changes_under_the_worker_is_not_committed(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg")
    events = []
    for event in start(photos):
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "unwrap":
            (photos / "slow_a.jpg").write_text("changed meanwhile")
    [failed] = [event for event in events if isinstance(event, AssetFinished)]
    assert (failed.status, failed.kind, failed.code) == ("failed", "io", "E_CHANGED")
    assert published(tmp_path / "out") == {}
    assert statuses(run(photos)) == {"slow_a.jpg": "converted"}


def test_a_photo_that_cannot_be_read_fails_alone(photos: Path) -> None:
    for event in start(photos):
        if isinstance(event, AssetStarted):
            (photos / "sub" / "c.webp").unlink(missing_ok=True)
        if isinstance(event, RunFinished):
            assert (event.counts, event.failures) == ({"converted": 2, "failed": 1}, {"io": 1})


def test_fail_fast_stops_after_the_first_failure(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "input_b.jpg", "z.jpg")
    events = run(photos, fail_fast=True)
    assert statuses(events) == {"a.jpg": "converted", "input_b.jpg": "failed"}
    assert exit_code(events) == 4


def test_fail_fast_does_not_stop_at_a_failure_of_an_earlier_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "input_b.jpg")
    run(photos)
    plant(photos, "z.jpg")
    events = run(photos, fail_fast=True)
    assert statuses(events) == {"input_b.jpg": "failed", "z.jpg": "converted"}
    assert exit_code(events) == 3


def test_a_machine_that_lacks_something_ends_the_run_and_blames_no_photo(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "lacking_b.jpg", "z.jpg")
    with pytest.raises(EnvironmentProblem, match="no unwrapper works here") as caught:
        run(photos)
    assert (caught.value.code, caught.value.remedy) == ("E_TOOL", "see `crm doctor`")
    lines = list(read_lines(tmp_path / "out"))
    kinds = Counter(line["ev"] for line in lines)
    assert (kinds["attempt_start"], kinds["asset_done"], kinds["asset_failed"]) == (2, 1, 0)


def test_a_worker_that_cannot_be_started_is_not_the_output_folders_fault(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))

    monkeypatch.setattr(subprocess, "Popen", refuse)
    with pytest.raises(EnvironmentProblem, match=r"no worker can be started: Resource temporarily"):
        run(photos)


def test_an_output_folder_that_vanishes_is_named(photos: Path) -> None:
    out = photos.parent / "out"
    with pytest.raises(OutputError, match=re.escape(str(out))):
        for event in start(photos):
            if isinstance(event, AssetStarted):
                shutil.rmtree(out)


def test_a_full_disk_ends_the_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "space_b.jpg", "z.jpg")
    with pytest.raises(OutputError, match="No space left"):
        run(photos)
    assert set(published(tmp_path / "out")) == {"a.glb", "a.obj", "a.usd", SUMS}
    Store.open(tmp_path / "out", run="r").close()


def test_a_run_that_cannot_go_on_says_so_in_its_folder_and_blames_no_photo(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "space_b.jpg", "z.jpg")
    with pytest.raises(OutputError):
        run(photos)
    lines = list(read_lines(tmp_path / "out"))
    told = [(line["ev"], line.get("asset")) for line in lines if "attempt" in line or line["ev"] == "run_end"]
    assert told == [
        ("attempt_start", "a.jpg"), ("asset_done", "a.jpg"), ("attempt_start", "space_b.jpg"),
        ("interrupted", "space_b.jpg"), ("run_end", None),
    ]  # fmt: skip
    assert lines[-1]["exit_code"] == 5 and lines[-1]["error"]["code"] == "E_NO_SPACE"
    last = read_status(tmp_path / "out").last_run
    assert (last["exit_code"], last["counts"], last["left"]) == (5, {"converted": 1}, 2)


def test_the_last_words_of_a_run_find_the_space_that_was_set_aside(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reserve = photos.parent / "out" / ".crm" / "reserve"
    write = journal_module.append_line

    def append_where_there_is_room(descriptor: int, line: bytes) -> None:
        if reserve.exists() and b"asset_done" in line:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(descriptor, line)

    monkeypatch.setattr(journal_module, "append_line", append_where_there_is_room)
    with pytest.raises(OutputError, match="No space left"):
        run(photos)
    lines = list(read_lines(photos.parent / "out"))
    assert lines[-1]["ev"] == "run_end" and lines[-1]["exit_code"] == 5
    # Its record stands: the photo is finished, whatever the journal could not say.
    assert [line["ev"] for line in lines if line.get("asset")][-1] == "stage_done"
    monkeypatch.undo()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(HERE), str(HERE.parent)]))
    assert sorted(statuses(run(photos)).values()) == ["cached", "converted", "converted"]


def test_an_event_that_does_not_fit_the_disk_ends_the_run_and_leaves_no_half_line(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write

    def write_half(descriptor: int, data: bytes) -> int:
        is_event = b"crm.events/1" in data and b"asset_finished" in data
        return write(descriptor, data[: len(data) // 2] if is_event else data)

    monkeypatch.setattr(os, "write", write_half)
    with pytest.raises(OutputError, match="No space left"):
        run(photos)
    [path] = (photos.parent / "out").glob(".crm/runs/*/events.ndjson")
    assert json.loads(path.read_text().splitlines()[-1])["type"] == "stage_finished"


def test_an_output_folder_that_vanishes_during_a_long_stage_is_missed_at_once(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg")
    with pytest.raises(OutputError, match="No such file"):
        for event in start(photos, deadlines_s={"unwrap": 50}):
            if isinstance(event, StageStarted) and event.stage == "unwrap":
                shutil.rmtree(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_worker_does_not_make_a_vanished_output_folder_again(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "sub/deep/slow_a.jpg")
    with pytest.raises(OutputError):
        for event in start(photos):
            if isinstance(event, StageStarted) and event.stage == "unwrap":
                shutil.rmtree(tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_output_folder_that_becomes_read_only_during_a_long_stage_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg")
    touch = os.utime

    def refuse(path: Path, *times: object, **more: object) -> None:
        if not path.is_relative_to(tmp_path / "out"):
            return touch(path, *times, **more)  # type: ignore[call-overload]
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    with pytest.raises(OutputError, match="Read-only"):
        for event in start(photos, deadlines_s={"unwrap": 50}):
            if isinstance(event, StageStarted) and event.stage == "unwrap":
                monkeypatch.setattr(os, "utime", refuse)


@pytest.mark.parametrize(
    ("line", "words"), [("ClosedLine", "no weights"), ("DeadLine", "before their first")]
)
def test_a_machine_that_cannot_convert_says_so_once_and_blames_no_photo(
    photos: Path, line: str, words: str
) -> None:
    with pytest.raises(EnvironmentProblem, match=words):
        run(photos, engine=fakes.engine(line))
    assert not [line for line in read_lines(photos.parent / "out") if line["ev"] == "asset_failed"]


def test_a_dry_run_says_what_and_why_and_writes_nothing(photos: Path) -> None:
    run(photos)
    (photos / "a.jpg").write_text("another picture")
    plant(photos, "new.jpg")
    out = photos.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    planned = [event for event in run(photos, dry_run=True) if isinstance(event, AssetPlanned)]
    assert {str(event.path): (event.action, event.reason) for event in planned} == {
        "a.jpg": ("convert", "photo changed"),
        "new.jpg": ("convert", "new"),
        "sub/b.png": ("cached", "up to date"),
        "sub/c.webp": ("cached", "up to date"),
    }
    assert before == {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    run(photos, dry_run=True, out=photos.parent / "never")
    assert not (photos.parent / "never").exists()


def test_nothing_is_written_where_nothing_can_start(photos: Path, tmp_path: Path) -> None:
    plant(photos, "a.png")
    with pytest.raises(UsageError):
        run(photos)
    with pytest.raises(NoInput):
        run(photos, select=Selection(include=("*.bmp",)))
    assert not (tmp_path / "out").exists()
    assert exit_code(run(photos, select=Selection(include=("*.bmp",)), allow_empty=True)) == 0


def test_the_contact_sheet_shows_the_photos_of_the_latest_run_also_where_all_were_cached(
    tmp_path: Path,
) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "c.jpg", "input_b.jpg")
    events = run(photos, report=True)
    sheet = tmp_path / "out" / "report" / "index.html"
    assert isinstance(events[-1], RunFinished) and events[-1].report == sheet
    assert "a.glb" in sheet.read_text() and "nothing in the picture" in sheet.read_text()
    (photos / "input_b.jpg").unlink()
    run(photos, report=True)
    assert "c.glb" in sheet.read_text() and "input_b" not in sheet.read_text()
    run(photos, report=True, select=Selection(limit=1))
    assert "a.glb" in sheet.read_text() and "c.glb" not in sheet.read_text()


def test_the_contact_sheet_is_left_alone_where_it_shows_just_what_the_run_found(photos: Path) -> None:
    run(photos, report=True)
    sheet = photos.parent / "out" / "report" / "index.html"
    before = sheet.stat().st_mtime_ns
    events = run(photos, report=True)
    assert isinstance(events[-1], RunFinished) and events[-1].report == sheet
    assert sheet.stat().st_mtime_ns == before
    sheet.unlink()
    run(photos, report=True)
    assert "a.glb" in sheet.read_text()


def test_a_page_of_somebody_else_is_refused_before_any_work_is_done(photos: Path) -> None:
    page = photos.parent / "out" / "report" / "index.html"
    page.parent.mkdir(parents=True)
    page.write_text("mine")
    with pytest.raises(OutputError, match=r"index\.html.*--no-report"):
        run(photos, report=True)
    assert page.read_text() == "mine" and not (photos.parent / "out" / ".crm").exists()
    assert exit_code(run(photos)) == 0 and page.read_text() == "mine"


def test_an_interrupt_ends_the_wait_for_the_lock(photos: Path) -> None:
    out = photos.parent / "out"
    store = Store.open(out, run="other")
    [finished] = run(photos, wait_lock_s=60.0, stop=Stop(signal=signal.SIGINT))
    store.close()
    assert isinstance(finished, RunFinished) and finished.exit_code == 130


def test_what_is_passed_over_is_told(photos: Path) -> None:
    os.mkfifo(photos / "pipe.jpg")
    warnings = [event.message for event in run(photos) if isinstance(event, Warned)]
    assert warnings == ["pipe.jpg: passed over: not a regular file"]


def test_after_an_interrupt_running_photos_are_finished_and_no_new_one_starts(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "slow_b.jpg", "slow_c.jpg")
    stop, events = Stop(), []
    for event in start(photos, stop=stop):
        events.append(event)
        if isinstance(event, StageStarted) and event.stage == "unwrap":
            stop.signal = signal.SIGINT
    assert statuses(events) == {"slow_a.jpg": "converted"} and exit_code(events) == 130
    assert isinstance(events[-1], RunFinished) and events[-1].left == 2
    assert statuses(run(photos)) == {
        "slow_a.jpg": "cached", "slow_b.jpg": "converted", "slow_c.jpg": "converted"
    }  # fmt: skip


@pytest.mark.parametrize(("wanted", "left"), [(Plan, 1), (StageStarted, 0)])
def test_an_interrupted_run_knows_what_is_left(tmp_path: Path, wanted: type[Event], left: int) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg")
    stop = Stop()
    for event in start(photos, stop=stop):
        if isinstance(event, wanted):
            stop.signal = signal.SIGINT
    assert isinstance(event, RunFinished) and (event.exit_code, event.left) == (130, left)


def test_photos_that_a_signal_left_unplanned_are_left(photos: Path) -> None:
    stop = Stop(signal=signal.SIGINT)
    finished = run(photos, stop=stop)[-1]
    assert isinstance(finished, RunFinished) and finished.left == 3


def interrupted(out: Path) -> list[tuple[str, int]]:
    return [(line["asset"], line["attempt"]) for line in read_lines(out) if line["ev"] == "interrupted"]


def test_an_interrupt_ends_at_once_a_worker_that_still_opens_and_finishes_what_has_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(fakes.FIRST_OPEN, str(tmp_path / "mark"))
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg")
    stop, events = Stop(), []
    for event in start(photos, stop=stop, jobs=2, engine=fakes.engine("LateLine")):
        events.append(event)
        if isinstance(event, StageStarted):
            stop.signal = signal.SIGINT
    [done] = statuses(events)
    assert statuses(events) == {done: "converted"} and exit_code(events) == 130
    [(late, attempt)] = interrupted(tmp_path / "out")
    assert {done, late} == {"a.jpg", "b.jpg"} and attempt == 1
    assert not list((tmp_path / "out" / ".crm" / "tmp").iterdir())
    [again] = [e for e in run(photos) if isinstance(e, AssetStarted) and str(e.path) == late]
    assert again.attempt == 1


def test_an_interrupt_before_any_stage_leaves_nothing_to_wait_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mark").touch()
    monkeypatch.setenv(fakes.FIRST_OPEN, str(tmp_path / "mark"))
    photos = plant(tmp_path / "in", "a.jpg")
    stop, events = Stop(), []
    for event in start(photos, stop=stop, engine=fakes.engine("LateLine"), deadlines_s={"opening": 50}):
        events.append(event)
        if isinstance(event, AssetStarted):
            stop.signal = signal.SIGINT
    assert not statuses(events) and exit_code(events) == 130
    assert interrupted(tmp_path / "out") == [("a.jpg", 1)]
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert warned == ["SIGINT: stopping; no photo is at work"]


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGINT, r"about \d+ s"), (signal.SIGTERM, "20 s at most"), (signal.SIGHUP, "20 s at most")],
)
def test_whoever_interrupts_is_told_how_long_running_photos_take(
    tmp_path: Path, number: signal.Signals, words: str
) -> None:
    photos = plant(tmp_path / "in", "steps_a.jpg")
    stop, warned = Stop(), []
    for event in start(photos, stop=stop, deadlines_s={"unwrap": 10.0}):
        if isinstance(event, StageProgress):
            stop.signal = stop.signal or number
        if isinstance(event, Warned):
            warned.append(event.message)
    [message] = warned
    expected = rf"{number.name}: finishing what is running \(1 photo, {words}\); once more stops at once"
    assert re.fullmatch(expected, message)


def test_a_second_interrupt_gives_running_photos_up_without_blaming_them(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg", "b.jpg")
    stop = Stop()
    for event in start(photos, stop=stop, deadlines_s={"unwrap": 60}, jobs=2):
        if isinstance(event, StageStarted) and event.path.name == "hang_a.jpg" and event.stage == "unwrap":
            stop.signal, stop.is_urgent = signal.SIGINT, True
            since = time.monotonic()
    assert time.monotonic() - since < 2
    assert isinstance(event, RunFinished) and event.exit_code == 130
    kinds = Counter(line["ev"] for line in read_lines(tmp_path / "out"))
    assert kinds["interrupted"] >= 1 and kinds["asset_failed"] == 0


def spawn(photos: Path, out: Path, *flags: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, str(HERE / "fakes.py"), "convert", str(photos), "-o", str(out), "-p", "tiny"]
    return subprocess.Popen(
        [*command, "--no-report", "--jobs", "2", *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def workers_of(parent: int) -> list[int]:
    """Processes of the pool that a parent has started, also where it has died since."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"-P" in words and words[-2:-1] == [str(parent).encode()]:
            found.append(int(folder.name))
    return found


def wait_until(claim: Callable[[], object], patience_s: float = 20.0) -> None:
    ends = time.monotonic() + patience_s
    while not claim():
        assert time.monotonic() < ends
        time.sleep(0.01)


def test_killed_at_any_moment_the_next_run_ends_like_an_uninterrupted_one(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", *(f"slow_{index}.jpg" for index in range(4)), "sub/quick.jpg")
    whole = tmp_path / "whole"
    spawn(photos, whole).communicate()
    out, dice = tmp_path / "out", random.Random(7)
    for _ in range(4):
        process = spawn(photos, out)
        wait_until(lambda: workers_of(process.pid))  # noqa: B023
        time.sleep(dice.uniform(0.0, 0.6))
        process.kill()
        process.communicate()
        wait_until(lambda: not workers_of(process.pid), 5.0)  # noqa: B023
        for name, data in published(out).items():
            assert data == published(whole)[name]
    last = spawn(photos, out)
    last.communicate()
    assert last.returncode == 0
    assert published(out) == published(whole)
    assert not list((out / ".crm" / "tmp").iterdir())
    done = Counter(line["asset"] for line in read_lines(out) if line["ev"] == "asset_done")
    # A kill between the record and the journal's line loses the line, never the asset.
    assert max(done.values()) == 1
    records = Records.scan(out)
    assert sum(records.intact(record) for record in records.newest()) == 5


def test_workers_die_with_their_parent_even_in_the_middle_of_a_photo(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg", "hang_b.jpg")
    process = spawn(photos, tmp_path / "out", "--timeout", "unwrap=60")
    journal = tmp_path / "out" / ".crm" / "journal"
    wait_until(lambda: sum(path.read_bytes().count(b"reconstruct") for path in journal.glob("*")) == 2)
    assert len(workers_of(process.pid)) == 2
    process.kill()
    process.communicate()
    wait_until(lambda: not workers_of(process.pid), 2.0)


def test_of_runs_started_together_one_wins_and_the_others_name_it(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg", "slow_b.jpg", "slow_c.jpg", "slow_d.jpg")
    runs = [spawn(photos, tmp_path / "out", "--jobs", "1") for _ in range(3)]
    answers = [process.communicate() for process in runs]
    assert sorted(process.returncode for process in runs) == [0, 11, 11]
    for process, (_, errors) in zip(runs, answers, strict=True):
        assert (b"another run holds this folder" in errors) == (process.returncode == 11)
    starts = Counter(line["asset"] for line in read_lines(tmp_path / "out") if line["ev"] == "attempt_start")
    assert set(starts.values()) == {1}


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_run_between_photos_with_its_own_code(
    tmp_path: Path, number: signal.Signals, code: int
) -> None:
    photos = plant(tmp_path / "in", *(f"slow_{index}.jpg" for index in range(6)))
    process = spawn(photos, tmp_path / "out")
    journal = tmp_path / "out" / ".crm" / "journal"
    wait_until(lambda: any(b"stage_done" in path.read_bytes() for path in journal.glob("*")))
    process.send_signal(number)
    _, errors = process.communicate()
    assert process.returncode == code
    assert b"Traceback" not in errors
    lines = list(read_lines(tmp_path / "out"))
    kinds = Counter(line["ev"] for line in lines)
    assert kinds["attempt_start"] == kinds["asset_done"] + kinds["interrupted"] < 6
    assert kinds["asset_done"] > 0
    assert lines[-1]["ev"] == "run_end" and lines[-1]["exit_code"] == code


def test_interrupted_twice_a_run_is_gone_within_two_seconds(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg", "hang_b.jpg")
    process = spawn(photos, tmp_path / "out", "--timeout", "unwrap=60")
    journal = tmp_path / "out" / ".crm" / "journal"
    wait_until(lambda: any(b"stage_done" in path.read_bytes() for path in journal.glob("*")))
    process.send_signal(signal.SIGINT)
    time.sleep(0.7)
    since = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode == 130 and time.monotonic() - since < 2
    assert workers_of(process.pid) == []


def test_of_two_runs_that_wait_for_each_other_the_second_does_nothing_twice(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "slow_a.jpg")
    runs = [spawn(photos, tmp_path / "out", "--wait-lock", "20") for _ in range(2)]
    for process in runs:
        process.communicate()
        assert process.returncode == 0
    starts = [line for line in read_lines(tmp_path / "out") if line["ev"] == "attempt_start"]
    assert len(starts) == 1


def test_the_weights_that_auto_became_are_named_everywhere_by_name_and_digest(photos: Path) -> None:
    engine = fakes.engine(name="published", architecture="miniature")
    digest = engine.weights(load_preset("tiny").preset).digest
    label = f"published ({digest[:12]})"
    out = photos.parent / "out"
    events = run(photos, "weights=auto", engine=engine, report=True)
    told = [event for event in events if isinstance(event, RunStarted | Plan | RunFinished)]
    assert [event.type for event in told] == ["run_started", "plan", "run_finished"]
    assert {(event.weights, event.weights_digest) for event in told} == {("published", digest)}
    assert isinstance(told[0], RunStarted) and told[0].architecture == "miniature"
    records = list(Records.scan(out).newest())
    assert {(r.weights_name, r.weights_digest) for r in records} == {("published", digest)}
    [kept] = out.glob(".crm/runs/*/run.json")
    plain = json.loads(kept.read_text())
    assert (plain["weights"]["name"], plain["weights"]["digest"]) == ("published", digest)
    assert plain["preset"]["weights"] == "published"
    assert label in (out / "report" / "index.html").read_text()
    assert read_status(out).weights == {label: 3}
    assert read_status(out).last_run["weights_digest"] == digest


def test_a_dry_run_names_the_weights_it_would_use(photos: Path) -> None:
    [plan] = [event for event in run(photos, dry_run=True) if isinstance(event, Plan)]
    assert plan.weights == "fakes" and len(plan.weights_digest) == 64


def test_workers_open_the_weights_that_were_planned_with_and_a_folder_by_its_path(photos: Path) -> None:
    run(photos, "weights=auto", engine=fakes.engine("ToldLine", name="embedded"))
    assert (photos.parent / "out" / "a.glb").read_text().split()[0] == "embedded"
    run(photos, "weights=/some/folder", engine=fakes.engine("ToldLine", "w2", name="folder"))
    assert (photos.parent / "out" / "a.glb").read_text().split()[0] == "/some/folder"


def test_assets_of_the_first_version_count_without_telling_their_weights(photos: Path) -> None:
    run(photos)
    out = photos.parent / "out"
    [first, *_] = Records.scan(out).newest()
    path = out / ".crm" / "records" / first.id[:2] / f"{first.file_name}.json"
    path.write_bytes(without(first, "weights_name", "weights_digest"))
    standing = read_status(out)
    assert (standing.finished, sum(standing.weights.values())) == (3, 2)


def without(record: CommitRecord, *names: str) -> bytes:
    """A record as a version wrote it that did not know of some fields."""
    plain = {name: value for name, value in to_plain(record).items() if name not in names}
    body = dumps(plain)[:-1].encode("ascii")
    return body + b',"crc":"%08x"}\n' % zlib.crc32(body)


def told(out: Path) -> set[tuple[str, ...]]:
    """Threads, precision and sharers of the device with which the assets were made."""
    return {tuple(path.read_text().split()[1:]) for path in out.rglob("*.glb")}


@pytest.mark.parametrize(
    ("architecture", "jobs", "workers", "threads"),
    [
        ("small", None, 3, "1"),
        ("small", 2, 2, "1"),
        ("release", None, 1, "5"),
        ("release", 2, 2, "2"),
        ("release", 9, 3, "1"),
    ],
)
def test_large_networks_get_one_worker_with_all_cores_unless_jobs_are_asked_for(
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    architecture: str,
    jobs: int | None,
    workers: int,
    threads: str,
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 5)
    monkeypatch.setattr(machine, "usable_memory", lambda: int(1e12))
    engine = fakes.engine("ToldLine", architecture=architecture)
    events = run(photos, engine=engine, jobs=jobs, precision="bfloat16")
    assert next(event for event in events if isinstance(event, Plan)).workers == workers
    assert told(photos.parent / "out") == {(threads, "bfloat16", str(workers))}


def test_what_is_left_to_do_does_not_change_the_threads_of_large_networks(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_cores", lambda: 6)
    engine = fakes.engine("ToldLine", architecture="release")
    run(photos, engine=engine, jobs=2, select=Selection(limit=1))
    run(photos, engine=engine, jobs=2)
    assert told(photos.parent / "out") == {("3", "auto", "1"), ("3", "auto", "2")}


def test_an_unknown_precision_is_refused_before_anything_is_written(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"--precision int8: no such precision \[E_PRECISION\]; one of auto"):
        run(photos, precision="int8")
    assert not (photos.parent / "out").exists()


def test_steps_that_a_solver_cannot_make_are_refused_before_anything_is_written(photos: Path) -> None:
    with pytest.raises(UsageError, match=r"^9 sampling steps: .* \[E_STEPS\]; use 10, 20"):
        run(photos, "ccm.solver=ddim", "ccm.steps=9")
    assert not (photos.parent / "out").exists()


def test_another_precision_redoes_nothing(photos: Path) -> None:
    run(photos)
    assert set(statuses(run(photos, precision="bfloat16")).values()) == {"cached"}


def test_too_little_memory_for_large_networks_is_told_before_the_run(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "usable_memory", lambda: int(7e9))
    large = fakes.engine(architecture="release")
    warned = [event.message for event in run(photos, engine=large, jobs=2) if isinstance(event, Warned)]
    assert warned == ["2 workers may need 14.0 GB of memory, and 7.0 GB are free: use fewer --jobs"]
    out = photos.parent / "elsewhere"
    assert not [event for event in run(photos, engine=large, out=out) if isinstance(event, Warned)]
    monkeypatch.setattr(machine, "usable_memory", lambda: int(10e9))
    half = run(photos, engine=large, out=photos.parent / "half", jobs=2, precision="bfloat16")
    assert not [event for event in half if isinstance(event, Warned)]
    small = fakes.engine(weights="w2")
    assert not [event for event in run(photos, engine=small, jobs=4) if isinstance(event, Warned)]


def test_the_time_that_large_networks_need_is_told_once_before_the_first_stage(photos: Path) -> None:
    engine = fakes.engine("LargeLine", name="published", architecture="release")
    kinds = [event.type for event in run(photos, engine=engine, jobs=2)]
    assert kinds.count("forecast") == 1
    assert kinds.index("forecast") < kinds.index("stage_started")
    again = run(photos, engine=engine, jobs=2)
    assert not [event for event in again if isinstance(event, Forecast)]


def test_each_worker_that_loads_large_networks_says_so_before_its_first_stage(photos: Path) -> None:
    large = fakes.engine(name="published", architecture="release")
    events = run(photos, engine=large, jobs=1)
    assert [(str(e.path), e.weights) for e in events if isinstance(e, WeightsLoading)] == [
        ("a.jpg", "published")
    ]
    kinds = [event.type for event in events]
    assert kinds.index("asset_started") < kinds.index("weights_loading") < kinds.index("stage_started")
    assert not [e for e in run(photos, engine=large) if isinstance(e, WeightsLoading)]
    small = run(photos, engine=fakes.engine(weights="w2"))
    assert not [event for event in small if isinstance(event, WeightsLoading)]
    once = plant(photos.parent / "crashes" / "in", "once_a.jpg", "b.jpg")
    again = run(once, engine=large)
    assert len([event for event in again if isinstance(event, WeightsLoading)]) == 2


def test_the_forecast_counts_the_photos_that_are_left_and_the_workers(photos: Path) -> None:
    run(photos, select=Selection(limit=1), engine=fakes.engine("LargeLine"))
    plant(photos, "d.jpg", "e.jpg", "f.jpg")
    [told] = [e for e in run(photos, engine=fakes.engine("LargeLine"), jobs=2) if isinstance(e, Forecast)]
    # Five photos are left: two workers need three turns.
    assert (told.photo_s, told.run_s) == (fakes.PHOTO_S, 3 * fakes.PHOTO_S)
    assert "25 min a photo" in told.message and "75 min for 5 photos" in told.message


def test_a_forecast_of_seconds_is_not_worth_a_word(photos: Path) -> None:
    assert not [e for e in run(photos, engine=fakes.engine("QuickLine")) if isinstance(e, Forecast)]


def test_a_long_stage_that_tells_its_steps_outlives_its_deadline(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "steps_a.jpg")
    limit_s = 3.0
    assert 1.5 * limit_s < fakes.STEPS * fakes.SLOW_S
    events = run(photos, deadlines_s={"unwrap": limit_s})
    assert statuses(events) == {"steps_a.jpg": "converted"}
    steps = [event for event in events if isinstance(event, StageProgress)]
    assert {(str(event.path), event.stage, event.of) for event in steps} == {
        ("steps_a.jpg", "unwrap", fakes.STEPS)
    }
    done = [event.done for event in steps]
    assert done == sorted(set(done)) and done[0] == 1
    # At most one a second, of steps that come three times as often.
    assert 2 <= len(done) <= fakes.STEPS // 2
    assert all((event.eta_s is None) == (event.done == fakes.STEPS) for event in steps)


def test_the_time_left_follows_the_latest_steps_and_ends_with_the_last() -> None:
    attempt = Attempt(turn=None, job=None, key="")  # type: ignore[arg-type]
    attempt.enter("imagine", now=40.0)
    # What comes before the first step is no step.
    assert attempt.step(0, 10, now=100.0) is None
    # A step takes 10 s, and from the fifth on 1 s: soon only these count.
    left = [attempt.step(done, 10, now=100.0 + 10 * done) for done in range(1, 5)]
    assert left == [90.0, 80.0, 70.0, 60.0]
    left = [attempt.step(done, 10, now=140.0 + done - 4) for done in range(5, 11)]
    assert left[-3:] == [2.0, 1.0, None] and attempt.ends is None
    attempt.enter("reconstruct", now=200.0)
    assert attempt.step(1, 3, now=205.0) == 10.0 and attempt.ends == 215.0


def test_a_stage_that_stops_telling_steps_is_a_hang(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "stall_a.jpg")
    events = run(photos, deadlines_s={"unwrap": 0.5})
    [failed] = [event for event in events if isinstance(event, AssetFinished)]
    assert (failed.kind, failed.code) == ("timeout", "E_TIMEOUT")
    assert failed.reason == "no sign of life for 0.5 s in unwrap"
    assert [event.done for event in events if isinstance(event, StageProgress)] == [1, 1]


def test_steps_that_are_no_numbers_are_an_unreadable_answer(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    [failed] = [e for e in run(photos, engine=fakes.engine("RamblingLine")) if isinstance(e, AssetFinished)]
    assert (failed.kind, failed.code) == ("crash", "E_PROTOCOL")


def test_events_are_kept_beside_the_run(photos: Path) -> None:
    events = run(photos)
    [path] = (photos.parent / "out").glob(".crm/runs/*/events.ndjson")
    kept = [json.loads(line)["type"] for line in path.read_text().splitlines()]
    assert kept == [event.type for event in events if not isinstance(event, Warned)]
    [summary] = (photos.parent / "out").glob(".crm/runs/*/summary.json")
    assert json.loads(summary.read_text())["exit_code"] == 0


def test_names_that_are_not_utf8_are_exact_in_the_events(tmp_path: Path) -> None:
    event = AssetStarted(path=PurePosixPath(os.fsdecode(b"caf\xe9.jpg")), attempt=1)
    plain = json.loads(event.as_json())
    assert plain["path"] == "caf\ufffd.jpg" and plain["path_b64"] == "Y2Fm6S5qcGc="


def test_a_photo_whose_name_is_not_utf8_is_finished_once_and_its_files_are_told_exactly(
    tmp_path: Path,
) -> None:
    photos = plant(tmp_path / "in", os.fsdecode(b"caf\xe9.jpg"))
    told = []
    for end in ("converted", "cached"):
        [event] = [event for event in run(photos, "export.formats=[glb]") if isinstance(event, AssetFinished)]
        assert event.status == end
        told.append(json.loads(event.as_json()))
    assert told[0]["outputs_b64"] == [base64.b64encode(b"caf\xe9.glb").decode()]
    assert [plain["outputs"] for plain in told] == [["caf\ufffd.glb"]] * 2
    assert told[1]["outputs_b64"] == told[0]["outputs_b64"]


def test_the_lock_is_free_after_a_run_that_was_not_read_to_its_end(photos: Path) -> None:
    events = start(photos)
    next(events)
    with pytest.raises(Locked):
        Store.open(photos.parent / "out", run="r")
    events.close()  # type: ignore[attr-defined]
    Store.open(photos.parent / "out", run="r").close()


def test_an_asset_that_gets_another_name_is_made_under_it(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    run(photos, "export.formats=[glb]")
    events = run(photos, "export.formats=[glb]", keep_ext=True)
    assert statuses(events) == {"a.jpg": "converted"} and reasons(events) == {"output renamed": 1}
    assert (tmp_path / "out" / "a.jpg.glb").exists()
    assert statuses(run(photos, "export.formats=[glb]", keep_ext=True)) == {"a.jpg": "cached"}
