import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.errors import UsageError
from crm_cli.run.commits import Records
from crm_cli.run.journal import read_lines
from crm_cli.run.lists import Listed
from crm_cli.run.options import RunOptions
from crm_cli.run.selection import Selection
from crm_cli.run.shards import Shard
from crm_cli.run.status import status
from crm_cli.run.walk import walk
from crm_cli.run.wire import dumps, from_plain, to_plain

HERE = Path(__file__).parent


def plant(root: Path, *names: str) -> Path:
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.fsencode(name))
        os.utime(file, (1_600_000_000, 1_600_000_000))
    return root


def shards_of(count: int) -> list[Shard]:
    return [Shard(number=number, of=count) for number in range(1, count + 1)]


@given(st.binary(max_size=12).map(os.fsdecode), st.integers(1, 40))
def test_every_asset_is_in_just_one_shard(asset: str, count: int) -> None:
    assert sum(shard.holds(asset) for shard in shards_of(count)) == 1


def test_the_shard_is_the_digest_of_the_name_modulo_their_number() -> None:
    for name in ("a.jpg", "shoes/b.jpg", os.fsdecode(b"caf\xe9.jpg")):
        number = int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) % 7 + 1
        assert Shard(number=number, of=7).holds(name)


@pytest.mark.parametrize(("text", "number", "of"), [("1/1", 1, 1), ("3/16", 3, 16), ("016/016", 16, 16)])
def test_a_shard_is_read_as_it_is_written(text: str, number: int, of: int) -> None:
    assert Shard.from_text(text) == Shard(number=number, of=of)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "1",
        "0/4",
        "5/4",
        "-1/4",
        "1/0",
        "/4",
        "1/",
        "1/4/2",
        "a/b",
        "1 /4",
        "1/4\n",
        "١/٤",
        "1.0/4",
        f"1/{'9' * 5000}",
    ],
)
def test_what_is_no_shard_is_a_wrong_call(text: str) -> None:
    with pytest.raises(UsageError, match="--shard"):
        Shard.from_text(text)


def parts_of(root: Path, count: int) -> list[set[str]]:
    selections = [Selection(shard=shard) for shard in shards_of(count)]
    return [{photo.asset for photo in walk([root], root / "out", select=one).photos} for one in selections]


def test_shards_of_a_folder_are_disjoint_and_complete_and_stay_when_photos_are_added(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", *(f"{number % 7}/{number}.jpg" for number in range(200)))
    before = parts_of(root, 5)
    assert Counter(name for part in before for name in part) == {
        f"{number % 7}/{number}.jpg": 1 for number in range(200)
    }
    assert min(map(len, before)) > 20
    plant(root, *(f"more/{number}.png" for number in range(100)))
    after = parts_of(root, 5)
    assert all(
        old == {name for name in new if "more" not in name} for old, new in zip(before, after, strict=True)
    )
    assert sum(map(len, after)) == 300


def test_a_shard_counts_its_own_photos_for_the_limit_and_all_for_collisions(tmp_path: Path) -> None:
    root = plant(tmp_path / "in", *(f"{number:02}.jpg" for number in range(40)))
    select = Selection(shard=Shard(number=2, of=2), limit=3)
    found = walk([root], tmp_path / "out", select=select)
    assert [photo.asset for photo in found.photos] == sorted(parts_of(root, 2)[1])[:3]
    assert found.found == 40
    plant(root, "07.png")
    for shard in shards_of(2):
        with pytest.raises(UsageError, match=r"07\.jpg and 07\.png"):
            walk([root], tmp_path / "out", select=Selection(shard=shard))


def test_what_a_run_was_asked_for_is_read_back_with_its_lists_and_its_shard(tmp_path: Path) -> None:
    options = RunOptions(
        inputs=(tmp_path,),
        out=tmp_path / "out",
        listed=(Listed(folder=tmp_path, path=Path(os.fsdecode(b"caf\xe9\n.jpg")), place="list, line 1"),),
        select=Selection(shard=Shard(number=2, of=3), follow_symlinks=True),
    )
    assert from_plain(RunOptions, json.loads(dumps(options))) == options
    plain = to_plain(options)
    del plain["listed"], plain["select"]["shard"], plain["select"]["follow_symlinks"]
    assert from_plain(RunOptions, plain) == replace(options, listed=(), select=Selection())


def spawn(photos: Path, out: Path, *flags: str) -> "subprocess.Popen[bytes]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CRM_")}
    environment["PYTHONPATH"] = os.pathsep.join([str(HERE), str(HERE.parent)])
    command = [sys.executable, str(HERE / "fakes.py"), "convert", str(photos), "-o", str(out), "-p", "tiny"]
    return subprocess.Popen(
        [*command, "--jobs", "1", "--format", "glb", *flags],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
    )  # fmt: skip


def finish(*processes: "subprocess.Popen[bytes]", codes: frozenset[int] = frozenset({0})) -> list[str]:
    errors = [process.communicate()[1].decode() for process in processes]
    assert {process.returncode for process in processes} <= codes, errors
    assert not any("Traceback" in text for text in errors), errors
    return errors


def glbs(out: Path) -> dict[str, bytes]:
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*.glb")}


def attempts(out: Path) -> Counter[str]:
    return Counter(str(line["asset"]) for line in read_lines(out) if line["ev"] == "attempt_start")


def test_shards_started_together_make_what_one_run_makes_each_asset_once(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", *(f"{number % 3}/{number}.jpg" for number in range(12)))
    finish(spawn(photos, tmp_path / "whole"))
    out = tmp_path / "out"
    finish(*(spawn(photos, out, "--shard", f"{number}/4") for number in range(1, 5)))
    assert glbs(out) == glbs(tmp_path / "whole")
    assert set(attempts(out).values()) == {1} and len(attempts(out)) == 12
    assert status(out).finished == 12 and not status(out).is_running
    assert not list((out / ".crm" / "tmp").iterdir())
    # Another number of shards, or none, finds everything done.
    finish(*(spawn(photos, out, "--shard", f"{number}/3") for number in range(1, 4)))
    finish(spawn(photos, out))
    assert len(attempts(out)) == sum(attempts(out).values()) == 12


def test_a_killed_shard_is_finished_by_the_next_while_the_others_go_on(tmp_path: Path) -> None:
    names = [f"slow_{number}.jpg" for number in range(8)]
    photos, out = plant(tmp_path / "in", *names), tmp_path / "out"
    first, second = (spawn(photos, out, "--shard", f"{number}/2") for number in (1, 2))
    ends = time.monotonic() + 20
    while sum(line["ev"] == "attempt_start" for line in read_lines(out)) < 2:
        assert time.monotonic() < ends
        time.sleep(0.01)
    assert status(out).is_running
    first.send_signal(signal.SIGKILL)
    first.communicate()
    finish(spawn(photos, out, "--shard", "1/2"), second)
    records = Records.scan(out)
    assert sorted(str(record.asset) for record in records.newest()) == names
    assert all(records.intact(record) for record in records.newest())


def test_a_shard_leaves_the_contact_sheet_alone_also_one_that_is_not_ours(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg"), tmp_path / "out"
    finish(spawn(photos, out))
    sheet = out / "report" / "index.html"
    before = sheet.read_bytes()
    plant(photos, "d.jpg", "e.jpg", "f.jpg")
    finish(*(spawn(photos, out, "--shard", f"{number}/2") for number in (1, 2)))
    assert sheet.read_bytes() == before and len(glbs(out)) == 6
    finish(spawn(photos, out))
    assert b"f.jpg" in sheet.read_bytes()
    sheet.write_text("mine")
    finish(spawn(photos, out, "--shard", "1/1"))
    assert sheet.read_text() == "mine"


def test_a_shard_without_a_photo_is_done_but_inputs_without_one_are_not(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg"), tmp_path / "out"
    finish(*(spawn(photos, out, "--shard", f"{number}/3") for number in (1, 2, 3)))
    assert set(glbs(out)) == {"a.glb"}
    (photos / "a.jpg").unlink()
    [error] = finish(spawn(photos, out, "--shard", "1/3"), codes=frozenset({7}))
    assert "no photo found" in error


def test_a_whole_run_and_a_shard_refuse_each_other(tmp_path: Path) -> None:
    # More than any machine converts before a second process has started.
    photos, out = plant(tmp_path / "in", *(f"slow_{number}.jpg" for number in range(60))), tmp_path / "out"
    for first, second in ((("--shard", "1/1"), ()), ((), ("--shard", "1/2"))):
        process = spawn(photos, out, *first)
        ends = time.monotonic() + 20
        while not (out.exists() and (out / ".crm" / "lock").exists() and status(out).is_running):
            assert time.monotonic() < ends
            time.sleep(0.01)
        [error] = finish(spawn(photos, out, *second), codes=frozenset({11}))
        assert f"process {process.pid} on" in error.replace("\n", " ")
        process.kill()
        process.communicate()


@pytest.mark.parametrize("text", ["0/2", "3/2", "/2", ""])
def test_a_wrong_shard_is_refused_in_a_line_before_anything_is_written(tmp_path: Path, text: str) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    [error] = finish(spawn(photos, tmp_path / "out", "--shard", text), codes=frozenset({2}))
    assert "E_SHARD" in error and not (tmp_path / "out").exists()
