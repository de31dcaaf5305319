import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from output import (
    HERE,
    copied,
    everything,
    exit_code,
    plant,
    published,
    put_fakes_on_the_path,
    records,
    run,
    started,
    statuses,
)
from test_keeping import keep

from crm_cli.errors import Locked, NoInput
from crm_cli.run.gc import Swept, sweep
from crm_cli.run.journal import last_failures
from crm_cli.run.store import Store
from crm_cli.run.verify import verify
from crm_cli.run.walk import asset_id

ROOM = 1 << 40


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything done: two finished, one refused; only ever copied."""
    base = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_on_the_path(patch)
        run(plant(base / "in", "a.jpg", "sub/b.png", "input_c.jpg"), base / "out")
        yield base


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return copied(whole / "out", tmp_path / "out")


def named(swept: Swept, out: Path) -> set[tuple[str, str]]:
    return {(one.kind, str(one.path.relative_to(out))) for one in swept.litter}


def litter(out: Path) -> dict[str, str]:
    """Everything that killed runs can leave, by name, with its kind."""
    [run_folder] = (out / ".crm" / "runs").iterdir()
    shelf = records(out)[0].parent
    places = {
        ".crm/tmp/20200101T000000Z-aaaa-1/1/a.glb": ("scratch", ".crm/tmp/20200101T000000Z-aaaa-1"),
        ".crm/.crm-r-1-ab.part": ("scratch", None),
        f"{shelf.relative_to(out)}/.crm-r-1-ab.part": ("scratch", None),
        f"{run_folder.relative_to(out)}/.crm-r-1-ab.part": ("scratch", None),
        "report/.crm-1-index.html.part": ("scratch", None),
        ".crm/cache/aa/.aa1-7.part/views.safetensors": ("scratch", ".crm/cache/aa/.aa1-7.part"),
        "report/thumbs/0123456789abcdef-photo.webp": ("picture", None),
        "report/thumbs/0123456789abcdef-seen.webp": ("picture", None),
        f"{shelf.relative_to(out)}/{shelf.name}23456789abcdef.0123456789ab.intent": ("record", None),
    }
    expected = {}
    for name, (kind, seen_as) in places.items():
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("litter")
        expected[seen_as or name] = kind
    return expected


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_killed_runs_left_goes_and_nothing_else(out: Path) -> None:
    before = everything(out)
    expected = litter(out)
    dirty = everything(out)
    told = sweep(out, cache_bytes=ROOM, dry_run=True)
    assert everything(out) == dirty
    swept = sweep(out, cache_bytes=ROOM)
    assert named(swept, out) == named(told, out) == {(kind, name) for name, kind in expected.items()}
    assert swept.freed_bytes == told.freed_bytes == 6 * len(expected)
    assert everything(out) == before
    assert sweep(out, cache_bytes=ROOM).litter == ()


def test_nothing_of_a_run_at_work_is_touched(out: Path) -> None:
    litter(out)
    store = Store.open(out, run="r")
    litter(out)
    (store.scratch() / "a.glb").write_text("half an asset")
    before = everything(out)
    for dry_run in (True, False):
        with pytest.raises(Locked):
            sweep(out, cache_bytes=0, dry_run=dry_run)
    assert everything(out) == before
    store.close()


def test_superseded_records_go_and_those_that_alone_know_a_file_stay(whole: Path, out: Path) -> None:
    old = {path.name for path in records(out)}
    run(whole / "in", out, "export.formats=glb")
    new = {path.name for path in records(out)} - old
    assert len(new) == 2 and old < {path.name for path in records(out)}
    # Both know obj and usd, which stand and which no newer record names.
    assert sweep(out, cache_bytes=ROOM).litter == ()
    for path in (*out.rglob("*.obj"), *out.rglob("*.usd")):
        path.unlink()
    assert {kind for kind, _ in named(sweep(out, cache_bytes=ROOM), out)} == {"record"}
    assert {path.name for path in records(out)} == new
    assert set(statuses(run(whole / "in", out, "export.formats=glb")).values()) == {"cached", "failed"}


def test_an_intent_that_alone_knows_a_moved_file_stays_until_the_next_run(whole: Path, out: Path) -> None:
    other = out.parent / "other"
    run(whole / "in", other, "seed=3")
    record = next(path for path in records(other) if '"asset":"a.jpg"' in path.read_text())
    shutil.copy2(record, (out / record.relative_to(other)).with_suffix(".intent"))
    shutil.copy2(other / "a.glb", out / "a.glb")
    assert sweep(out, cache_bytes=ROOM).litter == ()
    events = run(whole / "in", out)
    assert statuses(events)["a.jpg"] == "converted"


def test_a_damaged_record_is_left_to_verify(out: Path) -> None:
    path = records(out)[0]
    path.write_bytes(path.read_bytes()[:-1])
    assert sweep(out, cache_bytes=ROOM).litter == ()
    assert [problem.kind for problem in verify(out).problems] == ["damaged"]


def test_pictures_of_failed_photos_and_of_others_stay(out: Path) -> None:
    thumbs = out / "report" / "thumbs"
    thumbs.mkdir(parents=True)
    [failed] = last_failures(out)
    mine = [thumbs / f"{asset_id(failed)}-photo.webp", thumbs / "mine.webp", thumbs / "0123456789abcdef.webp"]
    for path in mine:
        path.write_text("picture")
    linked = thumbs / "0123456789abcdef-turn.webp"
    linked.symlink_to(mine[1])
    assert sweep(out, cache_bytes=ROOM).litter == ()
    assert linked.is_symlink() and all(path.exists() for path in mine)


def test_a_linked_folder_is_not_swept(out: Path, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "thumbs").mkdir(parents=True)
    (elsewhere / "thumbs" / "0123456789abcdef-turn.webp").write_text("somebody's")
    (elsewhere / ".crm-1-index.html.part").write_text("somebody's")
    (out / "report").symlink_to(elsewhere)
    (out / ".crm" / "tmp" / "link").symlink_to(elsewhere)
    assert named(sweep(out, cache_bytes=ROOM), out) == {("scratch", ".crm/tmp/link")}
    assert len([path for path in elsewhere.rglob("*") if path.is_file()]) == 2


def test_logs_of_the_last_runs_stay_and_of_those_that_failures_need(whole: Path, out: Path) -> None:
    runs = out / ".crm" / "runs"
    [first] = listed(runs)
    for _ in range(3):
        run(whole / "in", out)
    names = listed(runs)
    assert names[0] == first
    (runs / "mine").mkdir()
    swept = sweep(out, cache_bytes=ROOM, keep_runs=1)
    assert named(swept, out) == {("run", f".crm/runs/{name}") for name in names[1:-1]}
    assert set(listed(runs)) == {first, names[-1], "mine"}
    assert len(last_failures(out)) == 1


def test_the_cache_is_brought_down_to_a_size(out: Path) -> None:
    old, new = keep(out, "aa1", used=1), keep(out, "bb1", used=2)
    assert sweep(out, cache_bytes=200).cache.removed == ()
    told = sweep(out, cache_bytes=199, dry_run=True)
    assert old.exists() and told.cache.removed_bytes == 100
    assert sweep(out, cache_bytes=199).cache == told.cache
    assert new.exists() and not old.exists()


def test_nothing_is_redone_after_a_sweep(whole: Path, out: Path) -> None:
    before = published(out)
    litter(out)
    sweep(out, cache_bytes=0, keep_runs=1)
    events = run(whole / "in", out)
    assert (started(events), exit_code(events)) == (set(), 3)
    assert published(out) == before


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "report").mkdir()
    with pytest.raises(NoInput):
        sweep(tmp_path, cache_bytes=0)


def crm(*words: str | Path) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, str(HERE / "fakes.py"), *map(str, words)], capture_output=True, text=True
    )
    assert "Traceback" not in done.stderr
    return done


def test_the_command_says_what_goes(out: Path) -> None:
    litter(out)
    keep(out, "aa1")
    told = crm("gc", out, "--dry-run", "--cache-size", "0")
    assert told.returncode == 0
    assert "picture: report/thumbs/0123456789abcdef-photo.webp (6 B)" in told.stdout.splitlines()
    assert "cache: .crm/cache/aa/aa1 (100 B)" in told.stdout.splitlines()
    words = "6 leftovers, 1 old record, 2 pictures, 1 cached photo, 154 B; the cache holds 0 B"
    assert told.stdout.splitlines()[-1] == f"would remove {words}"
    assert crm("gc", out, "--cache-size", "0").stdout == f"removed {words}\n"
    assert crm("gc", out).stdout == "removed nothing, 0 B; the cache holds 0 B\n"
    assert crm("gc", out, "--cache-size", "much").returncode == 2
    assert crm("gc", out.parent).returncode == 7
