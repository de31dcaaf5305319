import errno
import os
from pathlib import Path
from typing import NamedTuple

import pytest

from crm_cli.errors import OutputError
from crm_cli.run import space
from crm_cli.run.shards import Shard
from crm_cli.run.space import RESERVE_BYTES, check_free_space
from crm_cli.run.store import Store
from crm_cli.run.worker import NO_SPACE, _classify


class Disk(NamedTuple):
    f_bavail: int
    f_frsize: int = 4096


def refuse(number: int, patch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    patch.setattr(os, "posix_fallocate", fail)


def test_a_run_sets_space_aside_and_gives_it_back(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "out", run="r")
    reserve = tmp_path / "out" / ".crm" / "reserve"
    assert not reserve.exists(), "a run that has nothing to do writes nothing"
    store.scratch()
    assert reserve.stat().st_size == RESERVE_BYTES
    assert reserve.stat().st_blocks * 512 >= RESERVE_BYTES
    store.close()
    assert not reserve.exists()


def test_every_shard_has_a_reserve_of_its_own(tmp_path: Path) -> None:
    stores = [Store.open(tmp_path / "out", run=f"r{n}", shard=Shard.from_text(f"{n}/2")) for n in (1, 2)]
    for store in stores:
        store.scratch()
    assert len(list((tmp_path / "out" / ".crm").glob("reserve*"))) == 2
    stores[0].close()
    assert [path.name for path in (tmp_path / "out" / ".crm").glob("reserve*")] == ["reserve.shard-2-of-2"]
    stores[1].close()


def test_the_reserve_of_a_dead_shard_goes_with_the_next_whole_run(tmp_path: Path) -> None:
    Store.open(tmp_path / "out", run="r").close()
    left = tmp_path / "out" / ".crm" / "reserve.shard-1-of-2"
    left.write_bytes(bytes(10))
    Store.open(tmp_path / "out", run="s").close()
    assert not left.exists()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_for_the_reserve_begins_no_photo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = Store.open(tmp_path / "out", run="r")
    with monkeypatch.context() as patch:
        refuse(number, patch)
        with pytest.raises(OutputError, match=os.strerror(number)):
            store.scratch()
    store.close()
    assert not list((tmp_path / "out" / ".crm").glob("reserve*"))


@pytest.mark.parametrize("number", [errno.EOPNOTSUPP, errno.EFBIG, errno.EINVAL])
def test_a_disk_that_cannot_set_space_aside_goes_without(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    refuse(number, monkeypatch)
    store = Store.open(tmp_path / "out", run="r")
    store.scratch()
    assert not list((tmp_path / "out" / ".crm").glob("reserve*"))
    store.close()


def test_too_little_free_space_is_told_with_both_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space.os, "statvfs", lambda path: Disk(f_bavail=256 * 1024))
    check_free_space(tmp_path, 1 << 30, photos=1)
    with pytest.raises(OutputError, match=r"1\.0 GB free, 2\.0 GB asked for \[E_MIN_FREE\].*--min") as caught:
        check_free_space(tmp_path, 2 << 30, photos=1)
    assert caught.value.exit_code == 5


def test_a_folder_that_is_not_there_yet_is_measured_where_it_would_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    monkeypatch.setattr(space.os, "statvfs", lambda path: asked.append(path) or Disk(f_bavail=1))
    check_free_space(tmp_path / "not" / "there", 4096, photos=1)
    assert asked == [tmp_path] and not (tmp_path / "not").exists()


def test_without_a_word_a_disk_must_have_room_for_the_photos_that_are_left_and_no_more_than_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(space.os, "statvfs", lambda path: Disk(f_bavail=1000))
    check_free_space(tmp_path, None, photos=4)
    check_free_space(tmp_path, None, photos=0)
    check_free_space(tmp_path, 1 << 30, photos=0)
    with pytest.raises(OutputError, match=r"3\.9 MB free, 4\.8 MB asked for"):
        check_free_space(tmp_path, None, photos=5)
    with pytest.raises(OutputError, match=r"2\.0 GB asked for"):
        check_free_space(tmp_path, None, photos=10**9)
    check_free_space(tmp_path, 0, photos=10**9)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG])
def test_a_worker_that_may_write_no_more_blames_no_photo(number: int) -> None:
    assert _classify(OSError(number, os.strerror(number))) == ("io", NO_SPACE)
