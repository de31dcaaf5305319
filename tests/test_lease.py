import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from object_store import ObjectStore

from crm_cli.errors import Locked
from crm_cli.run import lease as leases
from crm_cli.run.lease import FileShelf, Lease, Shelf, holders, lease_name, take_lease, try_lease, us
from crm_cli.run.lock import is_at_work, take_lock
from crm_cli.run.remote import Remote, RemoteShelf
from crm_cli.run.shards import Shard


@pytest.fixture(params=["files", "memory", "s3"])
def shelf(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Shelf]:
    if request.param == "files":
        yield FileShelf(tmp_path)
        return
    if request.param == "memory":
        url = f"memory://leases{tmp_path}"
    else:
        request.getfixturevalue("credentials")
        store: ObjectStore = request.getfixturevalue("store")
        url = f"s3://{store.new_bucket()}/out"
    yield RemoteShelf(Remote.open(url), ".crm")


def held(shelf: Shelf, shard: str = "", *, run: str = "r1") -> Lease:
    got = try_lease(shelf, run=run, shard=Shard.from_text(shard) if shard else None)
    assert isinstance(got, Lease), got
    return got


def elsewhere(**changes: object) -> bytes:
    """A note of a holder of whom this machine knows nothing."""
    return json.dumps({**json.loads(us("r0")), "host": "elsewhere", "pid": 4_000_000, **changes}).encode()


def dead_process() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


@pytest.mark.parametrize(
    ("first", "second"),
    [("", ""), ("", "1/2"), ("1/2", ""), ("2/2", "2/2"), ("1/2", "1/3"), ("1/1", "1/11"), ("1/11", "1/1")],
)
def test_what_could_do_the_same_work_is_refused_until_the_first_has_ended(
    shelf: Shelf, first: str, second: str
) -> None:
    mine = held(shelf, first)
    with pytest.raises(Locked, match=f"^here: another run holds this folder.*process {os.getpid()} on "):
        take_lease(shelf, place="here", run="r2", shard=Shard.from_text(second) if second else None)
    assert shelf.names() == [lease_name(Shard.from_text(first) if first else None)]
    mine.release()
    held(shelf, second).release()
    assert shelf.names() == []


def test_shards_of_one_division_work_side_by_side(shelf: Shelf) -> None:
    all_held = [held(shelf, f"{number}/3", run=f"r{number}") for number in (1, 2, 3)]
    assert sorted(str(holder["run"]) for holder in holders(shelf)) == ["r1", "r2", "r3"]
    assert isinstance(try_lease(shelf, run="r4"), str)
    for lease in all_held:
        lease.release()


def test_of_sixteen_that_start_at_once_one_wins(shelf: Shelf) -> None:
    gate = threading.Barrier(16)

    def race(number: int) -> Lease | str:
        gate.wait()
        return try_lease(shelf, run=f"r{number}")

    with ThreadPoolExecutor(16) as pool:
        got = list(pool.map(race, range(16)))
    [winner] = [one for one in got if isinstance(one, Lease)]
    note = shelf.read("lease")
    assert note is not None and note.holder["run"] == f"r{got.index(winner)}"
    winner.release()


def test_of_sixteen_that_take_a_stale_lease_over_one_wins(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "STALE_S", -10.0)  # everything is stale at once
    shelf.write("lease", elsewhere(), over="")
    gate = threading.Barrier(16)

    def race(number: int) -> Lease | str:
        found = shelf.read("lease")
        gate.wait()
        tag = shelf.write("lease", data := us(f"r{number}"), over=found.tag if found else "")
        gate.wait()
        standing = shelf.read("lease")
        is_mine = tag is not None and standing is not None and standing.data == data
        return Lease(shelf, "lease", run=f"r{number}", tag=tag) if is_mine and tag else "lost"

    with ThreadPoolExecutor(16) as pool:
        winners = [one for one in pool.map(race, range(16)) if isinstance(one, Lease)]
    assert len(winners) == 1
    winners[0].release()


def test_a_lease_that_nobody_renews_is_taken_over_and_a_fresh_one_is_not(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    shelf.write("lease", elsewhere(t=0.0), over="")
    # What it says of the time does not count: clocks of machines differ.
    assert isinstance(try_lease(shelf, run="r2"), str)
    monkeypatch.setattr(leases, "STALE_S", 0.5)
    time.sleep(2.1)  # stores tell times in whole seconds
    mine = held(shelf)
    assert [note.holder["run"] for note in [shelf.read("lease")] if note] == ["r1"]
    mine.release()


def test_whoever_finds_the_lease_of_another_division_stale_removes_it(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleeper = held(shelf, "1/2")
    monkeypatch.setattr(leases, "STALE_S", -10.0)
    whole = held(shelf, run="r2")
    sleeper.beat()
    assert sleeper.is_lost and shelf.names() == ["lease"]
    sleeper.release()
    assert shelf.names() == ["lease"]
    whole.release()


def test_a_holder_that_slept_too_long_goes_on_if_nobody_came(
    shelf: Shelf, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = held(shelf)
    monkeypatch.setattr(leases, "STALE_S", -10.0)
    mine.beat()
    assert not mine.is_lost
    other = held(shelf, run="r2")
    mine.beat()
    assert mine.is_lost
    mine.release()
    assert [note.holder["run"] for note in [shelf.read("lease")] if note] == ["r2"]
    other.release()


def test_a_holder_on_this_machine_that_died_keeps_nobody_out(shelf: Shelf) -> None:
    gone = {**json.loads(us("r0")), "pid": dead_process()}
    shelf.write("lease", json.dumps(gone).encode(), over="")
    held(shelf).release()


@pytest.mark.parametrize("part", ["host", "boot", "space"])
def test_a_process_of_another_machine_boot_or_container_is_not_taken_for_dead(
    tmp_path: Path, part: str
) -> None:
    gone = {**json.loads(us("r0")), "pid": dead_process(), part: "another"}
    (tmp_path / "lease").write_text(json.dumps(gone))
    assert isinstance(try_lease(FileShelf(tmp_path), run="r2"), str)


@pytest.mark.parametrize(
    "text", ["", "[" * 4096, "[1]", '{"pid": "x"}', '{"pid": -1}', '{"t": 1e400}', "\x1b[2J"]
)
def test_a_lease_that_says_nonsense_is_described_as_silent(tmp_path: Path, text: str) -> None:
    (tmp_path / "lease").write_text(text)
    words = try_lease(FileShelf(tmp_path), run="r2")
    assert words == "it has not said who it is"


def test_leases_are_renewed_while_they_are_held(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "HEARTBEAT_S", 0.05)
    mine = held(shelf)
    first = shelf.read("lease")
    patience = time.monotonic() + 30
    while shelf.read("lease") == first and time.monotonic() < patience:
        time.sleep(0.05)
    assert shelf.read("lease") != first and not mine.is_lost
    mine.release()
    assert shelf.names() == []


def test_a_beat_that_does_not_get_through_loses_nothing(tmp_path: Path) -> None:
    mine = held(FileShelf(tmp_path))
    tmp_path.rename(tmp_path.with_name("away"))
    tmp_path.write_text("a file in the way")
    mine.beat()
    tmp_path.unlink()
    tmp_path.with_name("away").rename(tmp_path)
    assert not mine.is_lost
    mine.release()
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(params=[errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def no_locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, kind: int) -> None:
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(fcntl, "flock", refuse)


@pytest.mark.usefixtures("no_locks")
@pytest.mark.parametrize(
    ("first", "second"), [("", ""), ("1/2", ""), ("", "1/2"), ("1/2", "1/3"), ("1/2", "1/2")]
)
def test_a_disk_without_locks_is_locked_by_leases(tmp_path: Path, first: str, second: str) -> None:
    shards = [Shard.from_text(text) if text else None for text in (first, second)]
    mine = take_lock(tmp_path, run="r1", shard=shards[0])
    assert is_at_work(tmp_path)
    with pytest.raises(Locked, match=f"process {os.getpid()} on"):
        take_lock(tmp_path, run="r2", shard=shards[1])
    mine.release()
    assert not is_at_work(tmp_path)
    take_lock(tmp_path, run="r2", shard=shards[1]).release()


@pytest.mark.usefixtures("no_locks")
def test_shards_work_side_by_side_on_a_disk_without_locks(tmp_path: Path) -> None:
    one = take_lock(tmp_path, run="r1", shard=Shard.from_text("1/2"))
    take_lock(tmp_path, run="r2", shard=Shard.from_text("2/2")).release()
    one.release()


def test_a_machine_whose_locks_work_heeds_one_whose_locks_do_not(tmp_path: Path) -> None:
    other = held(FileShelf(tmp_path))
    with pytest.raises(Locked):
        take_lock(tmp_path, run="r2")
    other.release()
    take_lock(tmp_path, run="r2").release()
