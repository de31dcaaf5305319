import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.errors import UsageError
from crm_cli.run.keeping import read_size, size_words, trim, would_trim

MARK_BYTES = 10


def keep(out: Path, key: str, *, size: int = 90, used: int = 0, marked: bool = True) -> Path:
    """A folder of the cache, last used so many seconds after another."""
    folder = out / ".crm" / "cache" / key[:2] / key
    folder.mkdir(parents=True)
    (folder / "views.safetensors").write_bytes(bytes(size))
    if marked:
        (folder / "ok.json").write_bytes(bytes(MARK_BYTES))
        os.utime(folder / "ok.json", (1_600_000_000 + used,) * 2)
    return folder


def standing(out: Path) -> set[str]:
    return {path.name for path in (out / ".crm" / "cache").glob("*/*")}


def test_what_was_unused_longest_goes_first(tmp_path: Path) -> None:
    for key, used in (("aa1", 3), ("aa2", 1), ("bb1", 4), ("bb2", 2)):
        keep(tmp_path, key, used=used)
    trimmed = trim(tmp_path, limit_bytes=250)
    assert standing(tmp_path) == {"aa1", "bb1"}
    assert [one.folder.name for one in trimmed.removed] == ["aa2", "bb2"]
    assert (trimmed.kept, trimmed.kept_bytes, trimmed.removed_bytes) == (2, 200, 200)


@given(
    sizes=st.lists(st.integers(0, 50), max_size=8, unique=False),
    limit=st.integers(0, 300),
    order=st.randoms(use_true_random=False),
)
def test_as_many_of_the_newest_stay_as_fit_together(tmp_path_factory, sizes, limit, order) -> None:
    out = tmp_path_factory.mktemp("out")
    used = list(range(len(sizes)))
    order.shuffle(used)
    for index, (size, when) in enumerate(zip(sizes, used, strict=True)):
        keep(out, f"aa{index}", size=size, used=when)
    planned = would_trim(out, limit_bytes=limit)
    assert len(standing(out)) == len(sizes)
    assert trim(out, limit_bytes=limit) == planned
    by_age = sorted(range(len(sizes)), key=lambda index: -used[index])
    fitting = 0
    while fitting < len(sizes) and sum(sizes[i] + MARK_BYTES for i in by_age[: fitting + 1]) <= limit:
        fitting += 1
    assert standing(out) == {f"aa{index}" for index in by_age[:fitting]}


def test_what_is_not_whole_serves_nobody_and_goes_whatever_the_room(tmp_path: Path) -> None:
    keep(tmp_path, "aa1")
    keep(tmp_path, "aa2", marked=False)
    trim(tmp_path, limit_bytes=10**9)
    assert standing(tmp_path) == {"aa1"}


def test_what_a_worker_is_writing_stays(tmp_path: Path) -> None:
    part = keep(tmp_path, "aa1").rename(tmp_path / ".crm" / "cache" / "aa" / ".aa1-7.part")
    assert trim(tmp_path, limit_bytes=0).removed == ()
    assert part.is_dir()


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = keep(tmp_path / "elsewhere", "aa1")
    (tmp_path / "out" / ".crm" / "cache" / "aa").mkdir(parents=True)
    (tmp_path / "out" / ".crm" / "cache" / "bb").symlink_to(elsewhere.parent)
    (tmp_path / "out" / ".crm" / "cache" / "aa" / "aa1").symlink_to(elsewhere)
    assert trim(tmp_path / "out", limit_bytes=0).removed == ()
    assert (elsewhere / "ok.json").exists()


def test_what_cannot_be_removed_counts_as_kept_and_its_mark_is_gone(tmp_path, monkeypatch) -> None:
    folder = keep(tmp_path, "aa1")
    monkeypatch.setattr("shutil.rmtree", lambda *_, **__: None)
    trimmed = trim(tmp_path, limit_bytes=0)
    assert (trimmed.kept, trimmed.removed) == (1, ())
    assert not (folder / "ok.json").exists()


def test_no_cache_is_nothing_to_do(tmp_path: Path) -> None:
    assert trim(tmp_path, limit_bytes=0).kept == 0


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0), ("17", 17), ("1K", 1024), ("512M", 512 << 20), ("20G", 20 << 30), ("20g", 20 << 30),
        ("1.5T", 3 << 39), ("2 GiB", 2 << 30), ("9007199254740993", 9007199254740993),
    ],
)  # fmt: skip
def test_sizes_are_read(text: str, size: int) -> None:
    assert read_size(text) == size


@pytest.mark.parametrize("text", ["", "G", "-1G", "1e9", "nan", "inf", "20X", "1,5G", "٣", "9" * 400, "1GG"])
def test_what_is_no_size_is_refused_in_a_line(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_size(text)
    assert caught.value.code == "E_SIZE"


@pytest.mark.parametrize(
    ("size", "words"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (3 << 29, "1.5 GB"), (5 << 50, "5.0 PB")],
)
def test_sizes_are_written_in_the_units_they_are_read_in(size: int, words: str) -> None:
    assert size_words(size) == words


def test_what_a_dead_worker_began_long_ago_goes(tmp_path: Path) -> None:
    young, old = (tmp_path / ".crm" / "cache" / "aa" / f".{name}-7.part" for name in ("young", "old"))
    for folder in (young, old):
        folder.mkdir(parents=True)
        (folder / "views").write_bytes(b"half")
    os.utime(old, (1, 1))
    trim(tmp_path, limit_bytes=1 << 30)
    assert young.exists() and not old.exists()
