import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import fakes
import pytest
from output import (
    HERE,
    everything,
    exit_code,
    plant,
    published,
    put_fakes_on_the_path,
    run,
    started,
    statuses,
)

from crm_cli.errors import NoInput, UsageError
from crm_cli.preset import load_preset
from crm_cli.run.batch import convert
from crm_cli.run.events import AssetPlanned, Event, Warned
from crm_cli.run.journal import last_failures
from crm_cli.run.options import Engine
from crm_cli.run.retry import Again, plan_retry, read_names
from crm_cli.run.selection import Selection
from crm_cli.run.shards import Shard
from crm_cli.run.walk import asset_id

NAMES = ("a.jpg", "input_b.jpg", "raise_c.jpg", "sub/hang_d.png", "sub/e.webp", "segv_f.jpg")
FAILED = {"input_b.jpg", "raise_c.jpg", "sub/hang_d.png", "segv_f.jpg"}
QUICK: dict[str, Any] = {"deadlines_s": {"unwrap": 0.5}}
KIND = fakes.engine("KindLine")
"""What failed does not fail any more."""


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return plant(tmp_path / "in", *NAMES)


@pytest.fixture
def out(photos: Path, tmp_path: Path) -> Path:
    """A folder in which four of six photos failed, each in a way of its own."""
    run(photos, tmp_path / "out", "seed=5", "export.formats=glb", **QUICK)
    return tmp_path / "out"


def again(planned: Sequence[Again], engine: Engine = KIND) -> list[Event]:
    events: list[Event] = []
    for one in planned:
        events += convert(one.preset, one.options, engine=engine, only=one.photos)
    return events


def names(planned: Sequence[Again]) -> list[set[str]]:
    return [{str(photo) for photo in one.photos} for one in planned]


def test_exactly_the_failed_photos_are_tried_again_and_as_before(photos: Path, out: Path) -> None:
    before = everything(out)
    events = again(plan_retry(out))
    assert started(events) == FAILED
    assert statuses(events) == dict.fromkeys(FAILED, "converted")
    after = everything(out)
    assert all(after[name] == kept for name, kept in before.items() if name.endswith(".glb"))
    # As if nothing had ever failed.
    run(photos, out.parent / "other", "seed=5", "export.formats=glb", engine=KIND)
    assert published(out) == published(out.parent / "other")
    assert plan_retry(out) == ()


def test_the_same_inputs_preset_and_options_are_used(photos: Path, out: Path) -> None:
    [one] = plan_retry(out)
    preset = load_preset("tiny").preset
    assert one.preset == replace(
        preset, weights="fakes", seed=5, export=replace(preset.export, formats=("glb",))
    )
    assert (one.options.inputs, one.options.out, one.options.jobs) == ((photos,), out, 1)
    assert one.options.deadlines_s == {"unwrap": 0.5}
    assert one.options.retry_failed and not one.options.dry_run


def test_what_fails_again_is_tried_again_as_often_as_one_likes(out: Path) -> None:
    for _ in range(2):
        events = again(plan_retry(out), engine=fakes.engine())
        assert (started(events), exit_code(events)) == (FAILED, 3)
    assert names(plan_retry(out)) == [FAILED]


@pytest.mark.parametrize(
    ("classes", "chosen"),
    [
        (["timeout"], {"sub/hang_d.png"}),
        (["crash", "internal"], {"segv_f.jpg", "raise_c.jpg"}),
        (["input"], {"input_b.jpg"}),
    ],
)
def test_one_class_of_failures_leaves_the_others_for_later(out: Path, classes, chosen) -> None:
    events = again(plan_retry(out, classes=classes))
    assert started(events) == chosen
    assert names(plan_retry(out)) == [FAILED - chosen] or len(plan_retry(out)) > 1
    assert set().union(*names(plan_retry(out))) == FAILED - chosen
    assert plan_retry(out, classes=["oom"]) == ()


def test_photos_are_chosen_by_path_or_id_and_finished_ones_are_no_mistake(out: Path) -> None:
    listed = [
        "raise_c.jpg",
        asset_id(PurePosixPath("input_b.jpg")),
        "a.jpg",
        asset_id(PurePosixPath("sub/e.webp")),
    ]
    assert names(plan_retry(out, names=listed)) == [{"raise_c.jpg", "input_b.jpg"}]
    assert names(plan_retry(out, names=listed, classes=["input"])) == [{"input_b.jpg"}]
    assert plan_retry(out, names=[]) == () == plan_retry(out, names=["a.jpg"])


def test_what_nobody_knows_is_refused_before_anything_starts(out: Path, tmp_path: Path) -> None:
    before = everything(out)
    for wrong in ("c.jpg", "raise_c", "*", "../raise_c.jpg", "0" * 16):
        with pytest.raises(UsageError, match="no photo of this name has failed"):
            plan_retry(out, names=["raise_c.jpg", wrong])
    with pytest.raises(UsageError, match="one of input, internal, oom"):
        plan_retry(out, classes=["timeout", "bad"])
    with pytest.raises(NoInput):
        plan_retry(tmp_path / "in")
    assert everything(out) == before


def test_a_dry_run_tells_and_writes_nothing(out: Path) -> None:
    before = everything(out)
    events = again(plan_retry(out, dry_run=True))
    planned = {str(event.path): event.action for event in events if isinstance(event, AssetPlanned)}
    assert planned == dict.fromkeys(FAILED, "convert")
    assert everything(out) == before


def test_photos_of_several_runs_are_asked_for_as_each_was(tmp_path: Path) -> None:
    one, two = plant(tmp_path / "one", "raise_a.jpg"), plant(tmp_path / "two", "raise_b.jpg", "input_c.jpg")
    out = tmp_path / "out"
    run(one, out, "seed=1")
    run(two, out, "seed=2", select=Selection(limit=1))
    run(two, out, "seed=2")
    run(two, out, "seed=3", select=Selection(include=("nothing",)), allow_empty=True)
    planned = plan_retry(out)
    assert [(one.options.inputs[0].name, one.preset.seed) for one in planned] == [("one", 1), ("two", 2)]
    assert names(planned) == [{"raise_a.jpg"}, {"raise_b.jpg", "input_c.jpg"}]
    assert statuses(again(planned)) == dict.fromkeys(
        ("raise_a.jpg", "raise_b.jpg", "input_c.jpg"), "converted"
    )


def test_a_limit_counts_no_more_as_the_photos_are_known(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "raise_m.jpg", "z.jpg")
    run(photos, tmp_path / "out", select=Selection(limit=1))
    plant(photos, "a.jpg", "b.jpg")
    assert started(again(plan_retry(tmp_path / "out"))) == {"raise_m.jpg"}


def test_failures_of_all_shards_are_tried_again_together(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for number in (1, 2):
        run(photos, out, select=Selection(shard=Shard(number=number, of=2)), **QUICK)
    assert len({failure.run for failure in last_failures(out).values()}) == 2
    planned = plan_retry(out)
    assert names(planned) == [FAILED]
    assert statuses(again(planned)) == dict.fromkeys(FAILED, "converted")


def test_photos_that_are_gone_are_told_and_the_others_tried(photos: Path, out: Path) -> None:
    (photos / "raise_c.jpg").unlink()
    events = again(plan_retry(out))
    assert started(events) == FAILED - {"raise_c.jpg"}
    warned = [event.message for event in events if isinstance(event, Warned)]
    assert "raise_c.jpg: is not among the photos any more" in warned
    with pytest.raises(NoInput):
        again(plan_retry(out, classes=["internal"]))


def test_a_run_whose_word_is_lost_is_asked_for_as_the_latest_was(photos: Path, out: Path) -> None:
    [lost] = (out / ".crm" / "runs").glob("*/run.json")
    lost.write_bytes(lost.read_bytes()[:-9])
    with pytest.raises(UsageError, match="--retry-failed"):
        plan_retry(out)
    run(photos, out, "seed=6", select=Selection(include=("a.jpg",)))
    [one] = plan_retry(out)
    assert one.preset.seed == 6


def test_a_photo_that_was_finished_although_the_journal_does_not_say_so_is_left_alone(
    photos: Path, out: Path
) -> None:
    again(plan_retry(out, classes=["internal"]))
    for path in (out / ".crm" / "journal").iterdir():
        kept = [line for line in path.read_text().splitlines(True) if '"ev":"asset_done"' not in line]
        path.write_text("".join(kept))
    assert set().union(*names(plan_retry(out))) == FAILED - {"raise_c.jpg"}


def test_the_contact_sheet_is_of_the_whole_folder(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out, report=True, **QUICK)
    again(plan_retry(out, classes=["input", "crash"]))
    text = (out / "report" / "index.html").read_text()
    assert re.findall(r'<article class="card (\w+)"', text).count("failed") == 2
    assert len(re.findall("<article", text)) == len(NAMES)


def test_lists_hold_any_name_a_line() -> None:
    assert read_names(b"a.jpg\r\n\n caf\xe9 .jpg\nlast") == ("a.jpg", os.fsdecode(b" caf\xe9 .jpg"), "last")


def crm(*words: str | Path, cwd: Path, **more: Any) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "fakes.py"), *map(str, words)],
        capture_output=True, text=True, cwd=cwd, **more,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    return done


def test_the_command_finds_the_inputs_from_any_folder(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    plant(tmp_path / "work" / "in", "a.jpg", "input_b.jpg", "input_c.jpg")
    (tmp_path / "work" / "list").write_text("input_c.jpg\n")
    asked = ("in", "-o", "out", "-p", "tiny", "--no-report", "--jobs", "1")
    assert crm("convert", *asked, cwd=tmp_path / "work").returncode == 3
    out = tmp_path / "work" / "out"
    done = crm("retry", out, "--id-file", "-", "--dry-run", cwd=tmp_path, input="input_b.jpg\n")
    assert done.returncode == 0 and "convert  input_b.jpg" in done.stderr
    done = crm("retry", "out", "--id-file", "list", "--json", cwd=tmp_path / "work")
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["path"] for event in events if event["type"] == "asset_finished"] == ["input_c.jpg"]
    assert done.returncode == 3
    assert crm("retry", out, "--class", "oom", cwd=tmp_path).stderr == "nothing to try again\n"
    (tmp_path / "work" / "in").rename(tmp_path / "elsewhere")
    gone = crm("retry", out, cwd=tmp_path)
    assert gone.returncode == 7 and "No such file" in gone.stderr
