"""SHA256SUMS: as coreutils reads it, of everything that stands, and never over somebody else's file."""

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
from object_store import ObjectStore
from output import begin, copied, exit_code, plant, put_fakes_on_the_path, run
from output import records as record_files
from typer.testing import CliRunner

from crm_cli.cli.app import app
from crm_cli.errors import EnvironmentProblem
from crm_cli.run import sums
from crm_cli.run.commits import Records
from crm_cli.run.events import Event, Warned
from crm_cli.run.files import hash_file
from crm_cli.run.report import rewrite_report
from crm_cli.run.selection import Selection
from crm_cli.run.shards import Shard
from crm_cli.run.sums import HEAD, SUMS, write_sums

NAMES = (
    "a b.jpg",
    "new\nline.png",
    "back\\slash.png",
    "re\rturn.png",
    "trailing\n.png",
    "#.jpg",
    " .jpg",
    "-c.jpg",
    "*.jpg",
    "sub/皮鞋.webp",
    "sub/caf\udce9.jpg",
)


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


def check(out: Path, *more: str) -> "subprocess.CompletedProcess[bytes]":
    """What coreutils make of the list."""
    command = ["sha256sum", "--check", "--strict", *more, SUMS]
    return subprocess.run(command, cwd=out, capture_output=True, check=False)


def listed(out: Path) -> int:
    """How many files coreutils find named, all of them right."""
    done = check(out)
    assert done.returncode == 0, done.stderr
    return done.stdout.count(b": OK\n")


def warned(events: list[Event]) -> list[str]:
    return [event.message for event in events if isinstance(event, Warned)]


def test_coreutils_find_every_file_of_every_name_as_it_was_written(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plant(tmp_path / "in", *NAMES), out)
    named = {
        os.fsencode(path.relative_to(out))
        for path in out.rglob("*")
        if path.is_file() and ".crm" not in path.parts and path.name != SUMS
    }
    assert len(named) == 3 * len(NAMES)
    assert listed(out) == len(named)
    theirs = subprocess.run(["sha256sum", "--", *sorted(named)], cwd=out, capture_output=True, check=True)
    assert (out / SUMS).read_bytes() == HEAD + theirs.stdout


def test_a_changed_file_is_found_and_a_lost_one_too(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plant(tmp_path / "in", "a.jpg", "b.jpg"), out)
    (out / "a.glb").write_bytes(b"edited")
    (out / "b.obj").unlink()
    done = check(out)
    assert done.returncode == 1
    assert b"a.glb: FAILED\n" in done.stdout and b"b.obj: FAILED open or read\n" in done.stdout
    write_sums(out, run="r")
    assert check(out).returncode != 0, "nothing that is whole is left, and no list of nothing is kept"
    assert not (out / SUMS).exists()


def test_it_names_what_earlier_runs_finished_and_follows_what_is_made_anew(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg", "b.jpg", "raise_c.jpg"), tmp_path / "out"
    run(photos, out, select=Selection(include=("a.jpg",)))
    assert listed(out) == 3
    run(photos, out, select=Selection(exclude=("a.jpg",)))
    assert listed(out) == 6, "what failed has no files"
    run(photos, out, "seed=7")
    assert listed(out) == 6
    run(photos, out, "seed=7", "export.formats=glb")
    assert listed(out) == 2


def test_a_run_that_breaks_off_lists_what_it_has_made_anew(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg", "b.jpg"), tmp_path / "out"
    run(photos, out)
    plant(photos, "lacking_c.jpg")
    with pytest.raises(EnvironmentProblem):
        run(photos, out, "texture.size_px=256")
    assert listed(out) == 6


def test_a_run_with_nothing_to_do_leaves_it_alone_and_brings_it_back(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg"), tmp_path / "out"
    run(photos, out)
    before = (out / SUMS).stat()
    run(photos, out)
    after = (out / SUMS).stat()
    assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    (out / SUMS).unlink()
    run(photos, out)
    assert listed(out) == 3
    [record] = record_files(out)
    record.rename(record.with_suffix(".gone"))
    os.utime(record.parent, ns=(before.st_mtime_ns + 10**10,) * 2)
    assert write_sums(out, run="r", is_idle=True) is None
    assert not (out / SUMS).exists()


@pytest.mark.parametrize("kind", ["text", "folder", "link"])
def test_somebody_elses_list_is_left_alone_and_said_to_be_in_the_way(tmp_path: Path, kind: str) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg"), tmp_path / "out"
    out.mkdir()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(HEAD)
    theirs = out / SUMS
    if kind == "text":
        theirs.write_bytes(b"d41d8cd98f00b204e9800998ecf8427e  a.glb\n")
    elif kind == "folder":
        theirs.mkdir()
    else:
        theirs.symlink_to(elsewhere)
    before = (theirs.lstat().st_ino, theirs.lstat().st_mtime_ns)
    events = run(photos, out)
    assert exit_code(events) == 0
    [said] = warned(events)
    assert said.startswith(f"{SUMS}: not written by crm")
    told = CliRunner().invoke(app, ["report", str(out)])
    assert told.exit_code == 0 and "not written by crm" in " ".join(told.stderr.split())
    assert (theirs.lstat().st_ino, theirs.lstat().st_mtime_ns) == before and elsewhere.read_bytes() == HEAD


def test_report_writes_it_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(plant(tmp_path / "in", "a.jpg", "b.jpg"), out)
    (out / SUMS).write_bytes(HEAD + b"nonsense\n")
    assert rewrite_report(out).problem is None
    assert listed(out) == 6


def test_every_shard_names_what_the_others_finished(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", *(f"{name}.jpg" for name in "abcdefgh")), tmp_path / "out"
    for index in (1, 2, 3):
        run(photos, out, select=Selection(shard=Shard(number=index, of=3)))
    assert listed(out) == 24


def test_shards_at_work_at_the_same_time_lose_none_of_each_others(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", *(f"{name}.jpg" for name in "abcdefgh")), tmp_path / "out"
    one, two = (begin(photos, out, select=Selection(shard=Shard(number=index, of=2))) for index in (1, 2))
    for runs in zip(one, two, strict=False):
        del runs
    list(one), list(two)
    assert listed(out) == 24


def test_what_is_committed_while_the_list_is_written_is_on_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg", "b.jpg"), tmp_path / "out"
    run(photos, out)
    late = copied(out, tmp_path / "late")
    [_, record] = record_files(out)
    record.unlink()
    written = []

    def write(target: Path, data: bytes, *, run: str, beside: Path) -> None:
        target.write_bytes(data)
        if not written:
            copied(late / ".crm" / "records", out / ".crm" / "records")
        written.append(len(data.splitlines()))

    monkeypatch.setattr(sums, "write_atomically", write)
    write_sums(out, run="r")
    assert written == [1 + 3, 1 + 6]


def test_digests_come_from_records_so_that_no_file_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    run(plant(tmp_path / "in", "a.jpg"), out)
    digest = hash_file(out / "a.glb").sha256
    (out / "a.glb").chmod(0)
    monkeypatch.setattr(Records, "is_copy", None)
    assert write_sums(out, run="r") is None
    assert digest.encode("ascii") + b"  a.glb\n" in (out / SUMS).read_bytes()


@pytest.fixture
def bucket(store: ObjectStore, credentials: None) -> str:
    name = store.new_bucket()
    for photo in ("a.jpg", "sub/皮鞋.png"):
        store.put(name, f"in/{photo}", photo.encode())
    return name


def convert_there(bucket: str, **changes: Any) -> list[Event]:
    """Convert a bucket's photos within it."""
    urls, place = (f"s3://{bucket}/in",), f"s3://{bucket}/out"
    return run((), Path(), urls=urls, place=place, **changes)


def test_in_an_object_store_it_stands_beside_the_assets(
    store: ObjectStore, bucket: str, tmp_path: Path
) -> None:
    convert_there(bucket, select=Selection(include=("a.jpg",)))
    convert_there(bucket)
    for name, data in store.objects(bucket, "out/").items():
        file = tmp_path / "copy" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
    assert listed(tmp_path / "copy") == 6
    store.requests()
    convert_there(bucket)
    assert ("PUT", f"/{bucket}/out/{SUMS}") not in store.requests()
    assert CliRunner().invoke(app, ["verify", "--deep", f"s3://{bucket}/out"]).exit_code == 0
    assert CliRunner().invoke(app, ["gc", f"s3://{bucket}/out"]).exit_code == 0
    assert SUMS in store.objects(bucket, "out/")


def test_in_an_object_store_shards_leave_it_to_the_report_and_strangers_are_left_alone(
    store: ObjectStore, bucket: str
) -> None:
    for index in (1, 2):
        convert_there(bucket, select=Selection(shard=Shard(number=index, of=2)))
    assert SUMS not in store.objects(bucket, "out/")
    assert CliRunner().invoke(app, ["report", f"s3://{bucket}/out"]).exit_code == 0
    data = store.objects(bucket, "out/")[SUMS]
    assert data.startswith(HEAD) and len(data.splitlines()) == 1 + 6
    store.put(bucket, f"out/{SUMS}", b"somebody else's")
    [said] = warned(convert_there(bucket, force_stage="bake"))
    assert said.startswith(f"{SUMS}: not written by crm")
    assert store.objects(bucket, "out/")[SUMS] == b"somebody else's"
