"""Hostile photos on the real decoders, in processes of their own."""

import os
import time
from pathlib import Path, PurePosixPath

import corpus
import fuzz
import pytest
from fuzz import Tally, watch

from crm_cli.errors import PhotoError
from crm_cli.models import photo
from crm_cli.models.photo import read_photo

MOST_MB = 1500
"""Beyond what the process holds before it reads: libraries, and the corpus itself."""


def test_the_good_files_that_damage_is_done_to_are_good() -> None:
    tally = watch("good files")
    assert tally.findings == []
    assert tally.outcomes == {"photo": corpus.count("good files")}


def test_a_file_that_ends_anywhere_is_a_photo_or_one_error() -> None:
    tally = watch("cuts")
    assert tally.findings == []
    assert tally.outcomes.total() == corpus.count("cuts") > 500
    # A picture survives the loss of what lies behind it, and nothing else does.
    assert 0 < tally.outcomes["photo"] < 0.2 * corpus.count("cuts")


def test_every_bomb_is_read_or_refused_as_it_should_be_in_little_memory() -> None:
    tally = watch("bombs")
    assert tally.findings == []
    assert tally.outcomes.total() == len(corpus.BOMBS)
    assert tally.peak_mb < MOST_MB, tally.largest


@pytest.mark.slow
def test_bombs_that_go_on_and_on_are_stopped() -> None:
    tally = watch("slow bombs")
    assert tally.findings == []
    assert tally.outcomes.total() == len(corpus.SLOW_BOMBS)
    assert tally.peak_mb < MOST_MB, tally.largest


def test_damage_of_every_kind_gives_a_photo_or_one_error() -> None:
    tally = watch("mutants", last=5000)
    assert tally.findings == []
    assert tally.outcomes.total() == 5000
    assert tally.peak_mb < MOST_MB, tally.largest
    # Neither all refused by their first bytes, nor all hardly touched.
    assert set(tally.outcomes) >= {
        "photo",
        "E_IMG_FORMAT",
        "E_IMG_UNREADABLE",
        "E_IMG_TRUNCATED",
        "E_IMG_TOO_LARGE",
    }
    assert 500 < tally.outcomes["photo"] < 2500


def test_a_photo_that_takes_too_long_is_refused_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo, "CPU_S", 0.3)
    monkeypatch.setattr(photo, "CPU_S_PER_MPIXEL", 0.0)
    (tmp_path / "a").write_bytes(corpus.progressive(4000, 4000, 20_000))
    began = time.process_time()
    with pytest.raises(PhotoError, match="takes longer to decode than any picture of 64 MP") as caught:
        read_photo(tmp_path / "a", path=PurePosixPath("a"), max_mpixels=64)
    assert (caught.value.code, caught.value.kind) == ("E_IMG_SLOW", "input")
    assert time.process_time() - began < 10  # the whole file takes longer


def test_a_photo_that_takes_too_much_memory_is_refused_and_not_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo, "MEMORY_BYTES", 100_000_000)
    monkeypatch.setattr(photo, "MEMORY_BYTES_PER_PIXEL", 0)
    (tmp_path / "a").write_bytes(corpus.small_png(corpus.chunk(b"teSt", b"") * 1_500_000))
    with pytest.raises(PhotoError, match="needs more memory than any picture of 64 MP") as caught:
        read_photo(tmp_path / "a", path=PurePosixPath("a"), max_mpixels=64)
    assert (caught.value.code, caught.value.kind) == ("E_IMG_MEMORY", "input")


def test_a_higher_limit_on_pixels_raises_the_bounds_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(photo, "MEMORY_BYTES", 100_000_000)
    (tmp_path / "a").write_bytes(corpus.png(7000, 7000, depth=16, colour=6))
    with pytest.raises(PhotoError, match="E_IMG_TOO_LARGE"):
        read_photo(tmp_path / "a", path=PurePosixPath("a"), max_mpixels=48)
    assert read_photo(tmp_path / "a", path=PurePosixPath("a"), max_mpixels=49).rgb.shape == (2048, 2048, 3)


def test_what_makes_harmful_files_is_small_where_that_is_the_point() -> None:
    for name in ("a 64 MP PNG of 16-bit RGBA", "a 196 MP PNG", "a 64 MP PNG of 16-bit grey"):
        make, _ = corpus.BOMBS[name]
        assert len(make()) < 600_000


def test_a_mutant_is_the_same_for_the_same_numbers_and_another_for_others() -> None:
    assert [corpus.mutant(1, index) for index in range(50)] == [
        corpus.mutant(1, index) for index in range(50)
    ]
    assert len({corpus.mutant(seed, index) for seed in (1, 2) for index in range(50)}) > 95


def test_the_watch_reports_what_must_not_happen() -> None:
    tally = Tally()
    for outcome in ("photo", "E_IMG_FORMAT", "RAISED: KeyError: 3", "WRONG: oom x"):
        tally.add("a", outcome, "", 1.0, 1.0)
    tally.add("b", "photo", "E_IMG_FORMAT", 2.0, 3.0)
    assert tally.findings == ["a: RAISED: KeyError: 3", "a: WRONG: oom x", "b: photo, not E_IMG_FORMAT"]
    assert (tally.largest, tally.slowest, tally.outcomes["photo"]) == ("b", "b", 2)


@pytest.mark.parametrize(("fate", "status"), [("os._exit(3)", 3), ("time.sleep(600)", -9)])
def test_the_watch_goes_on_after_a_file_that_kills_or_stops_its_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fate: str, status: int
) -> None:
    script = tmp_path / "fuzz.py"
    # A reader that dies of the second file, or never comes back from it.
    script.write_text(
        "import json, os, sys, time\n"
        "_, _, kind, first, last, seed = sys.argv\n"
        "for index in range(int(first), int(last)):\n"
        f"    if index == 1: {fate}\n"
        "    print(json.dumps([f'{kind} {index}', 'photo', '', 1.0, 0.0]), flush=True)\n"
    )
    monkeypatch.setattr(fuzz, "__file__", os.fspath(script))
    monkeypatch.setattr(fuzz, "PATIENCE_S", 2.0)
    tally = watch("mutants", last=4)
    assert tally.outcomes["photo"] == 3
    [finding] = tally.findings
    assert finding.startswith(f"mutants 1: status {status}")
