import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crm_cli.errors import Locked
from crm_cli.run.commits import Records
from crm_cli.run.lock import is_at_work, is_held, take_lock
from crm_cli.run.shards import Shard
from crm_cli.run.store import Store, locked

HOLDER = """
import sys
from pathlib import Path
from crm_cli.run.shards import Shard
from crm_cli.run.store import Store
shard = Shard.from_text(sys.argv[3]) if sys.argv[3] else None
store = Store.open(Path(sys.argv[1]), run=sys.argv[2], shard=shard)
folder = store.scratch()
(folder / "half.glb").write_text("ha")
print(folder, flush=True)
sys.stdin.readline()
store.close()
"""


@contextmanager
def held(out: Path, shard: str = "", *, run: str = "r1") -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds the folder, and where it writes."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(out), run, shard],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().strip())
        assert folder.is_dir()
        yield process, folder
        if process.poll() is None:
            process.communicate("\n")
            assert process.returncode == 0


def open_and_close(out: Path, shard: str = "", *, wait_lock_s: float = 0.0) -> None:
    wanted = Shard.from_text(shard) if shard else None
    Store.open(out, run="r2", shard=wanted, wait_lock_s=wait_lock_s).close()


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("", ""),
        ("", "1/2"),
        ("1/2", ""),
        ("2/2", "2/2"),
        ("1/2", "1/3"),
        ("3/3", "2/2"),
        ("1/1", "1/11"),
        ("1/11", "1/1"),
    ],
)
def test_what_could_do_the_same_work_is_refused_until_the_first_has_ended(
    tmp_path: Path, first: str, second: str
) -> None:
    out = tmp_path / "out"
    with held(out, first) as (process, _):
        with pytest.raises(Locked, match=f"process {process.pid} on ") as caught:
            open_and_close(out, second)
        assert ("shard" in str(caught.value)) == bool(first)
        if first:
            assert f"(shard {first.replace('/', ' of ')}: process" in str(caught.value)
        assert is_at_work(out / ".crm")
    assert not is_at_work(out / ".crm")
    open_and_close(out, second)


def test_shards_of_one_division_work_side_by_side(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, "1/3", run="r1"), held(out, "2/3", run="r2"):
        open_and_close(out, "3/3")
        with pytest.raises(Locked), locked(out):
            pass


@pytest.mark.parametrize("shard", ["", "1/2"])
def test_a_shard_that_waits_is_let_in_when_the_other_ends(tmp_path: Path, shard: str) -> None:
    out = tmp_path / "out"
    with held(out, shard) as (process, _):
        ender = subprocess.Popen(["/bin/sh", "-c", f"sleep 0.6; kill -9 {process.pid}"])
        open_and_close(out, "1/2", wait_lock_s=20)
        assert ender.wait() == 0
        assert process.wait() == -9


def test_a_killed_shard_keeps_nobody_out_and_the_next_clears_what_it_left(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, "1/3") as (process, left):
        process.kill()
        process.wait()
        part = out / ".crm" / "records" / "aa" / ".crm-r1-1-00.part"
        part.parent.mkdir()
        part.write_text("{")
        assert left.is_dir() and not is_at_work(out / ".crm")
        open_and_close(out, "2/3")
        assert not left.parent.exists() and not part.exists()
    open_and_close(out)


def test_a_shard_spares_what_the_others_are_writing_and_the_contact_sheet(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, "1/3") as (process, theirs):
        (out / ".crm" / "records" / "aa").mkdir()
        part = out / ".crm" / "records" / "aa" / f".crm-r1-{process.pid}-00.part"
        sheet = out / "report" / ".crm-1-index.html.part"
        sheet.parent.mkdir()
        dead = out / ".crm" / "tmp" / "r10-1"
        dead.mkdir()
        for file in (part, sheet):
            file.write_text("half")
        open_and_close(out, "2/3")
        assert (theirs / "half.glb").read_text() == "ha"
        assert part.exists() and sheet.exists() and not dead.exists()
    open_and_close(out)
    assert not part.exists() and not sheet.exists()


def test_a_shard_spares_what_another_machine_has_left_as_its_locks_may_not_be_seen(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with held(out, "1/3") as (process, left):
        process.kill()
        process.wait()
        lock = out / ".crm" / "lock.shard-1-of-3"
        lock.write_text(json.dumps({**json.loads(lock.read_text()), "host": "elsewhere"}))
        open_and_close(out, "2/3")
        assert left.is_dir()
        open_and_close(out, "1/3")
        assert not left.exists()


def test_a_shard_about_to_start_is_not_disturbed_by_one_that_clears_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Locks whose runs have left nothing are not even opened."""
    out = tmp_path / "out"
    open_and_close(out, "1/3")
    (out / ".crm" / "tmp" / "dead-1").mkdir()
    asked: list[str] = []

    def note(path: Path) -> bool:
        asked.append(path.name)
        return is_held(path)

    monkeypatch.setattr("crm_cli.run.lock.is_held", note)
    open_and_close(out, "2/3")
    assert asked == []


def test_of_sixteen_shards_started_at_once_all_work(tmp_path: Path) -> None:
    out = tmp_path / "out"
    Store.open(out, run="r0").close()
    for name in ("dead-1", "dead-2"):
        (out / ".crm" / "tmp" / name).mkdir()
    started = [
        subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(out), f"run{number:02}", f"{number}/16"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for number in range(1, 17)
    ]  # fmt: skip
    folders = []
    for process in started:
        assert process.stdout is not None
        folders.append(Path(process.stdout.readline().strip()))
    assert all((folder / "half.glb").exists() for folder in folders)
    for process in started:
        process.communicate("\n")
        assert process.returncode == 0
    assert list((out / ".crm" / "tmp").iterdir()) == []
    assert Records.scan(out).names == {}


def test_a_child_process_does_not_keep_a_shards_lock(tmp_path: Path) -> None:
    (tmp_path / ".crm").mkdir()
    first = take_lock(tmp_path / ".crm", run="r1", shard=Shard.from_text("1/2"))
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    first.release()
    take_lock(tmp_path / ".crm", run="r2", shard=Shard.from_text("1/2")).release()
    take_lock(tmp_path / ".crm", run="r3").release()
    child.communicate(b"\n")


def test_a_refused_run_keeps_nothing_open(tmp_path: Path) -> None:
    (tmp_path / ".crm").mkdir()
    first = take_lock(tmp_path / ".crm", run="r1", shard=Shard.from_text("1/2"))
    before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    for shard in (None, Shard.from_text("1/2"), Shard.from_text("1/3")):
        with pytest.raises(Locked):
            take_lock(tmp_path / ".crm", run="r2", shard=shard)
    assert len(os.listdir("/proc/self/fd")) == before  # noqa: PTH208
    first.release()


def test_a_lock_that_says_nonsense_is_described_as_silent(tmp_path: Path) -> None:
    (tmp_path / ".crm").mkdir()
    first = take_lock(tmp_path / ".crm", run="r1")
    for text in ("", "[" * 4096, "[1]", '{"pid": "x"}', '{"t": 1e400, "pid": 1, "host": "h"}', "\x1b[2J"):
        (tmp_path / ".crm" / "lock").write_text(text)
        with pytest.raises(Locked, match="has not said who"):
            take_lock(tmp_path / ".crm", run="r2", is_unwanted=lambda: True)
    (tmp_path / ".crm" / "lock").write_text('{"t": 1, "pid": 1, "host": "\\u001b[2J"}')
    with pytest.raises(Locked, match=r"on \\x1b\[2J since"):
        take_lock(tmp_path / ".crm", run="r2", is_unwanted=lambda: True)
    first.release()


def test_an_unwanted_wait_ends(tmp_path: Path) -> None:
    (tmp_path / ".crm").mkdir()
    first = take_lock(tmp_path / ".crm", run="r1")
    asked = []

    def is_unwanted() -> bool:
        asked.append(time.monotonic())
        return len(asked) == 3

    with pytest.raises(Locked):
        take_lock(tmp_path / ".crm", run="r2", wait_s=600, is_unwanted=is_unwanted)
    assert len(asked) == 3
    first.release()
