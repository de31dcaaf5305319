"""Decisions from the contact sheet, taken over into the output folder they are about."""

import json
import os
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import fakes
import pytest
from output import HERE, everything, plant, put_fakes_on_the_path, run, started, statuses
from test_gc import crm
from test_retry import KIND, again
from test_sheet import called

from crm_cli.errors import OutputError, UsageError
from crm_cli.pipeline import Line
from crm_cli.preset import Override, load_preset
from crm_cli.records import Job
from crm_cli.run.batch import convert
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.decisions import SCHEMA, Decision, kept_decisions, read_decisions
from crm_cli.run.events import AssetPlanned
from crm_cli.run.redo import Redo, take_over
from crm_cli.run.report import rewrite_report
from crm_cli.run.status import status
from crm_cli.run.table import read_rows
from crm_cli.run.walk import asset_id

NAMES = ("a.jpg", "b.jpg", "sub/c.jpg", "input_d.jpg")
GLB = "export.formats=glb"


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return plant(tmp_path / "in", *NAMES)


@pytest.fixture
def out(photos: Path, tmp_path: Path) -> Path:
    """Three assets and a failure, made with seed 5, and their sheet."""
    run(photos, tmp_path / "out", "seed=5", GLB, report=True)
    return tmp_path / "out"


def downloaded(out: Path, verbs: Mapping[str, str]) -> bytes:
    """What the sheet hands over, from what it knows of each photo."""
    [index] = called(out / "report" / "entries.js", "entries")
    chosen = [each for each in index if each["photo"] in verbs]
    decisions = [
        {**{key: each[key] for key in ("asset", "id", "photo", "edition")}, "decision": verbs[each["photo"]]}
        for each in chosen
    ]
    return json.dumps({"schema": SCHEMA, "decisions": decisions}).encode()


def take(out: Path, raw: bytes, **changes: Any) -> Redo:
    return take_over(out, read_decisions(raw, source="decisions.json"), **changes)


def record(out: Path, name: str) -> CommitRecord:
    return Records.scan(out).of(asset_id(PurePosixPath(name)))[0]


def test_what_is_to_be_redone_is_made_from_another_seed_and_nothing_else_is_touched(out: Path) -> None:
    before = everything(out)
    planned = take(out, downloaded(out, {"a.jpg": "redo", "b.jpg": "approve", "sub/c.jpg": "reject"})).again
    events = again(planned)
    assert statuses(events) == {"a.jpg": "converted"}
    after = everything(out)
    assert after["a.glb"][1] != before["a.glb"][1]
    assert [after[name] == before[name] for name in ("b.glb", "sub/c.glb")] == [True, True]
    assert (record(out, "a.jpg").seed, record(out, "b.jpg").seed) == (6, 5)
    # As a run with that seed would have made it.
    run(out.parent / "in", out.parent / "other", "seed=6", GLB)
    assert (out.parent / "other" / "a.glb").read_bytes() == after["a.glb"][1]


def test_later_runs_keep_a_redone_asset_and_its_seed(photos: Path, out: Path) -> None:
    again(take(out, downloaded(out, {"a.jpg": "redo"})).again)
    redone = (out / "a.glb").read_bytes()
    events = run(photos, out, "seed=5", GLB)
    assert statuses(events)["a.jpg"] == "cached"
    assert (out / "a.glb").read_bytes() == redone
    # Another setting redoes all of them, each from its own seed.
    run(photos, out, "seed=5", GLB, "texture.size_px=256")
    assert (record(out, "a.jpg").seed, record(out, "b.jpg").seed) == (6, 5)


def test_the_same_file_twice_makes_nothing_twice(out: Path) -> None:
    raw = downloaded(out, {"a.jpg": "redo"})
    again(take(out, raw).again)
    taken = take(out, raw)
    assert (taken.again, taken.outdated) == ((), ("a.jpg",))
    assert kept_decisions(out)[asset_id(PurePosixPath("a.jpg"))].redone == 1


def test_an_interrupted_redo_is_finished_by_the_same_command_or_by_convert(photos: Path, out: Path) -> None:
    raw = downloaded(out, {"a.jpg": "redo", "b.jpg": "redo"})
    take(out, raw)  # and killed before its first photo
    assert [len(one.photos) for one in take(out, raw).again] == [2]
    assert {each.redone for each in kept_decisions(out).values()} == {1}
    planned = run(photos, out, "seed=5", GLB, dry_run=True)
    reasons = {str(e.path): e.reason for e in planned if isinstance(e, AssetPlanned)}
    assert reasons["a.jpg"] == "to be redone, from seed 6 instead of 5"
    assert started(run(photos, out, "seed=5", GLB)) == {"a.jpg", "b.jpg"}
    assert take(out, raw).outdated == ("a.jpg", "b.jpg")


def test_every_redo_takes_the_next_seed(out: Path) -> None:
    made = {(out / "a.glb").read_bytes()}
    for times in (1, 2, 3):
        rewrite_report(out)
        again(take(out, downloaded(out, {"a.jpg": "redo"})).again)
        assert record(out, "a.jpg").seed == 5 + times
        made.add((out / "a.glb").read_bytes())
    assert len(made) == 4


def test_a_redo_tries_as_many_seeds_as_before_and_none_that_was_tried(photos: Path, tmp_path: Path) -> None:
    out, engine = tmp_path / "out", fakes.engine("SeedsLine")
    wanted = ("seed=5", GLB, "checks.best_of=3")
    photos = photos / "a.jpg"
    run(photos, out, *wanted, engine=engine, report=True)
    assert record(out, "a.jpg").seed == 7
    for winner in (10, 13):
        rewrite_report(out)
        assert statuses(again(take(out, downloaded(out, {"a.jpg": "redo"})).again, engine))
        assert record(out, "a.jpg").seed == winner
    # What else changes is told by its name.
    planned = run(photos, out, *wanted, "texture.size_px=256", engine=engine, dry_run=True)
    [reason] = [event.reason for event in planned if isinstance(event, AssetPlanned)]
    assert reason == "texture.size_px 128 → 256"


def test_a_failed_photo_is_tried_again(out: Path) -> None:
    events = again(take(out, downloaded(out, {"input_d.jpg": "redo"})).again)
    assert statuses(events) == {"input_d.jpg": "converted"}
    assert record(out, "input_d.jpg").seed == 6


def test_the_sheet_and_the_status_tell_what_was_decided_of_what_stands(out: Path) -> None:
    verbs = {"a.jpg": "redo", "b.jpg": "approve", "sub/c.jpg": "reject"}
    take(out, downloaded(out, verbs))
    rewrite_report(out)
    [index] = called(out / "report" / "entries.js", "entries")
    assert {each["photo"]: each["decision"] for each in index} == {**verbs, "input_d.jpg": ""}
    assert "Approved" in (out / "report" / "index.html").read_text("utf-8")
    assert status(out).decided == {"approve": 1, "reject": 1, "redo": 1}
    assert [row.decision for row in read_rows(out)] == ["redo", "approve", "", "reject"]
    again(take(out, downloaded(out, {"a.jpg": "redo"})).again)
    # Of the asset that was made now, nothing has been decided.
    assert status(out).decided == {"approve": 1, "reject": 1}
    assert [row.decision for row in read_rows(out)] == ["", "approve", "", "reject"]


def test_an_idle_run_tells_new_decisions_on_its_sheet(photos: Path, out: Path) -> None:
    run(photos, out, "seed=5", GLB, report=True)
    take(out, downloaded(out, {"b.jpg": "approve"}))
    run(photos, out, "seed=5", GLB, report=True)
    [index] = called(out / "report" / "entries.js", "entries")
    assert [each["photo"] for each in index if each["decision"]] == ["b.jpg"]


def test_a_decision_can_be_taken_back(out: Path) -> None:
    take(out, downloaded(out, {"b.jpg": "approve"}))
    taken = take(out, downloaded(out, {"b.jpg": "none"}))
    assert taken.taken == {"none": 1}
    assert status(out).decided == {}


def test_what_the_folder_does_not_hold_is_told_and_hinders_nothing(out: Path) -> None:
    foreign = {"id": "f" * 16, "photo": "x\x1b.jpg", "decision": "redo"}
    raw = json.loads(downloaded(out, {"a.jpg": "redo"}))
    raw["decisions"].append(foreign)
    taken = take(out, json.dumps(raw).encode())
    assert taken.unknown == ("x\\x1b.jpg",)
    assert [len(one.photos) for one in taken.again] == [1]
    assert "f" * 16 not in kept_decisions(out)


def test_a_dry_run_says_what_would_be_redone_and_writes_nothing(out: Path) -> None:
    before = everything(out)
    taken = take(out, downloaded(out, {"a.jpg": "redo"}), dry_run=True)
    [one] = taken.again
    assert one.options.dry_run
    events = convert(one.preset, one.options, engine=KIND, only=one.photos, times=taken.times)
    [planned] = [event for event in events if isinstance(event, AssetPlanned)]
    assert (planned.action, planned.reason) == ("convert", "to be redone, from seed 6 instead of 5")
    assert everything(out) == before


def test_a_name_that_is_not_utf8_finds_its_way_back(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    photos = plant(tmp_path / "in", name)
    run(photos, tmp_path / "out", GLB, report=True)
    events = again(take(tmp_path / "out", downloaded(tmp_path / "out", {name: "redo"})).again)
    assert list(statuses(events).values()) == ["converted"]


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"", "not valid JSON"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b"[]", "it names no schema"),
        (b'{"schema": 1}', "it names no schema"),
        (b'{"schema": "crm.decisions/9", "decisions": []}', "its schema is 'crm.decisions/9'"),
        (b'{"schema": "crm.decisions/1", "decisions": {}}', "no list of decisions"),
        (b'{"schema": "crm.decisions/1", "decisions": [7]}', "decision 1: needs an id"),
        (b'{"schema": "crm.decisions/1", "decisions": [{"id": "0123456789abcdef"}]}', "decision 1: needs"),
    ],
)  # fmt: skip
def test_a_file_of_something_else_is_refused_in_words(raw: bytes, problem: str) -> None:
    with pytest.raises(UsageError, match=rf"mine\.json: not a decisions file: .*{problem}.*E_DECISIONS"):
        read_decisions(raw, source="mine.json")


@pytest.mark.parametrize(
    "changes", [{"decision": "burn"}, {"id": "../../etc"}, {"photo": 7}, {"redone": -1}, {"note": []}]
)
def test_a_damaged_decision_is_refused(changes: dict[str, Any]) -> None:
    one = {"id": "0123456789abcdef", "photo": "a.jpg", "decision": "redo", **changes}
    with pytest.raises(UsageError, match="E_DECISIONS"):
        read_decisions(json.dumps({"schema": SCHEMA, "decisions": [one]}).encode(), source="x")


def test_two_decisions_on_one_asset_are_refused_unless_they_agree() -> None:
    one = {"id": "0123456789abcdef", "photo": "a.jpg", "decision": "redo"}
    other = {**one, "decision": "approve"}
    with pytest.raises(UsageError, match="decided twice"):
        read_decisions(json.dumps({"schema": SCHEMA, "decisions": [one, other]}).encode(), source="x")
    read = read_decisions(json.dumps({"schema": SCHEMA, "decisions": [one, one]}).encode(), source="x")
    assert read == (Decision(id=one["id"], photo=PurePosixPath("a.jpg"), decision="redo"),)


def test_damaged_kept_decisions_end_a_run_rather_than_undo_a_redo(photos: Path, out: Path) -> None:
    take(out, downloaded(out, {"a.jpg": "redo"}))
    file = out / ".crm" / "decisions.json"
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UsageError, match=r"\.crm/decisions\.json: not a decisions file"):
        run(photos, out, "seed=5", GLB)


def test_kept_decisions_that_a_disk_does_not_give_end_a_run_too(photos: Path, out: Path) -> None:
    take(out, downloaded(out, {"a.jpg": "redo"}))
    file = out / ".crm" / "decisions.json"
    file.unlink()
    file.mkdir()  # opens, and cannot be read
    with pytest.raises(OutputError, match="cannot be read: Is a directory"):
        run(photos, out, "seed=5", GLB)


def test_a_dry_run_of_the_command_says_what_would_be_made(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "decisions.json"
    file.write_bytes(downloaded(out, {"a.jpg": "redo", "b.jpg": "approve"}))
    done = crm("redo", file, out, "--dry-run")
    assert done.returncode == 0
    assert "to be redone, from seed 6 instead of 5" in done.stderr
    assert "1 to convert" in done.stderr


def test_the_command_takes_over_tells_and_converts(out: Path, tmp_path: Path) -> None:
    file = tmp_path / "decisions.json"
    file.write_bytes(downloaded(out, {"a.jpg": "redo", "b.jpg": "approve"}))
    done = crm("redo", file, out, "--quiet")
    assert (done.returncode, done.stdout) == (0, "")
    assert "1 approved, 1 to be redone" in done.stderr
    assert record(out, "a.jpg").seed == 6
    [index] = called(out / "report" / "entries.js", "entries")
    assert {each["photo"]: each["decision"] for each in index}["b.jpg"] == "approve"
    told = crm("status", out).stdout
    assert "1 approved" in told.splitlines()
    refused = crm("redo", tmp_path / "missing.json", out)
    assert (refused.returncode, "E_DECISIONS" in refused.stderr) == (2, True)


def test_the_seed_of_one_photo_makes_what_the_same_seed_for_all_makes(tmp_path: Path) -> None:
    def made(name: str, preset_seed: int, job_seed: int | None) -> bytes:
        preset = load_preset("tiny", [Override.from_assignment(f"seed={preset_seed}")]).preset
        job = Job(
            root=HERE / "photos", path=PurePosixPath("toys/bear.jpg"), stem=PurePosixPath("bear"),
            id="0" * 16, scratch=tmp_path / name, max_mpixels=64, seed=job_seed,
        )  # fmt: skip
        job.scratch.mkdir()
        Line.open(preset, device="cpu", threads=1).convert(job, lambda stage: None)
        return (job.scratch / "bear.glb").read_bytes()

    other = made("other", 0, 9)
    assert other == made("whole", 9, None)
    assert other != made("plain", 0, None)
