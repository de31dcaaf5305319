import json
import os
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import pytest

from crm_cli.errors import OutputError
from crm_cli.records import Failed
from crm_cli.run import journal as journals
from crm_cli.run.journal import Journal, last_failures, read_lines, unfinished_attempts


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / ".crm" / "journal").mkdir(parents=True)
    return tmp_path


def failure(name: str, kind: str = "input") -> Failed:
    path = PurePosixPath(name)
    return Failed(path=path, kind=kind, code="E_X", message="why", stage="prepare")  # type: ignore[arg-type]


def file_of(out: Path, run: str) -> Path:
    return out / ".crm" / "journal" / f"{run}.ndjson"


def test_lines_are_numbered_and_say_what_the_contract_names(out: Path) -> None:
    with Journal(out, "r1") as journal:
        journal.write("attempt_start", asset=PurePosixPath("a.jpg"), key="k", attempt=1)
        journal.failed(failure("a.jpg", "crash"), key="k", signal=11)
    first, second = (json.loads(line) for line in file_of(out, "r1").read_text().splitlines())
    assert [first["seq"], second["seq"]] == [1, 2]
    assert (first["v"], first["run"], first["ev"], first["asset"]) == (1, "r1", "attempt_start", "a.jpg")
    assert second["error"] == {"class": "crash", "code": "E_X", "msg": "why", "signal": 11, "retryable": True}


def test_a_line_is_on_disk_when_write_returns(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def noting(name: str, original: Callable[..., object]) -> Callable[..., object]:
        return lambda *arguments: (order.append(name), original(*arguments))[1]

    with Journal(out, "r1") as journal:
        monkeypatch.setattr(os, "write", noting("write", os.write))
        monkeypatch.setattr(os, "fdatasync", noting("sync", os.fdatasync))
        journal.write("run_start")
        assert order == ["write", "sync"]


def test_a_success_answers_a_failure_and_a_later_failure_counts_again(out: Path) -> None:
    with Journal(out, "r1") as journal:
        journal.failed(failure("a.jpg"), key="k1")
        journal.failed(failure("b.jpg"), key="k1")
        journal.write("asset_done", asset=PurePosixPath("a.jpg"), key="k1", attempt=2)
    assert set(last_failures(out)) == {PurePosixPath("b.jpg")}
    with Journal(out, "r2") as journal:
        journal.failed(failure("a.jpg", "timeout"), key="k2")
    again = last_failures(out)[PurePosixPath("a.jpg")]
    assert (again.key, again.kind, again.stage) == ("k2", "timeout", "prepare")


def test_a_name_that_reads_like_a_line_is_a_name(out: Path) -> None:
    name = 'x","ev":"asset_failed","y.jpg'
    with Journal(out, "r1") as journal:
        journal.write("attempt_start", asset=PurePosixPath(name), key="k", attempt=1)
        journal.write("stage_done", asset=PurePosixPath(name), stage="prepare", s=0.0)
    assert last_failures(out) == {}
    assert unfinished_attempts(out) == {PurePosixPath(name): 1}


def test_attempts_at_names_that_are_not_utf8_are_told_apart(out: Path) -> None:
    first, second = (PurePosixPath(os.fsdecode(raw)) for raw in (b"caf\xe9.jpg", b"caf\xe8.jpg"))
    for run in ("r1", "r2"):
        with Journal(out, run) as journal:
            journal.write("attempt_start", asset=first, key="k", attempt=1)
    with Journal(out, "r3") as journal:
        journal.write("attempt_start", asset=second, key="k", attempt=1)
    assert unfinished_attempts(out) == {first: 2, second: 1}


def test_a_run_that_came_to_its_end_is_read_for_the_runs_before_it_alone(out: Path) -> None:
    first, second = PurePosixPath("a.jpg"), PurePosixPath("b.jpg")
    for run, name in (("r1", first), ("r3", second)):
        with Journal(out, run) as journal:
            journal.write("attempt_start", asset=name, key="k", attempt=1)
            if run == "r1":
                journal.write("asset_done", asset=name, key="k", attempt=1)
                journal.write("run_end", exit_code=0, counts={})
    assert unfinished_attempts(out) == {second: 1}
    whole = file_of(out, "r1").read_bytes()
    # Nobody reads what is before the end of the first run, unless the end itself is torn.
    damaged = whole.replace(b'"ev":"asset_done"', b'"ev":"asset_dome"')
    file_of(out, "r1").write_bytes(damaged)
    assert unfinished_attempts(out) == {second: 1}
    file_of(out, "r1").write_bytes(damaged[:-1])
    assert unfinished_attempts(out) == {first: 1, second: 1}
    # It answers what a run before it has left open, and counts what died with one.
    file_of(out, "r1").write_bytes(whole)
    with Journal(out, "r0") as journal:
        journal.write("attempt_start", asset=first, key="k", attempt=1)
        journal.write("attempt_start", asset=second, key="k", attempt=1)
    assert unfinished_attempts(out) == {second: 2}


def test_of_successes_that_answer_no_failure_not_one_is_parsed(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(out, "r1") as journal:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            journal.write("asset_done", asset=PurePosixPath(name), key="k", attempt=1)
        journal.failed(failure("d.jpg"), key="k")
        journal.write("asset_done", asset=PurePosixPath("d.jpg"), key="k", attempt=2)
        journal.write("asset_done", asset=PurePosixPath("e.jpg"), key="k", attempt=1)
    parsed: list[str] = []
    loads = json.loads

    def noting(text: str) -> object:
        parsed.append(loads(text)["asset"])
        return loads(text)

    monkeypatch.setattr(journals.json, "loads", noting)
    assert last_failures(out) == {}
    assert parsed == ["d.jpg", "d.jpg"]


def test_names_that_are_not_utf8_come_back(out: Path) -> None:
    name = os.fsdecode(b"caf\xe9\n\x1b.jpg")
    with Journal(out, "r1") as journal:
        journal.failed(failure(name), key="k")
    assert set(last_failures(out)) == {PurePosixPath(name)}
    assert file_of(out, "r1").read_bytes().count(b"\n") == 1


def test_torn_and_damaged_lines_are_passed_over(out: Path) -> None:
    with Journal(out, "r1") as journal:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            journal.failed(failure(name), key="k")
    first, second, third = file_of(out, "r1").read_bytes().splitlines(keepends=True)
    file_of(out, "r1").write_bytes(
        first + b"\x00\xff{" + second + b"[1]\n" + b"[" * 100_000 + b"\n" + third[:-1]
    )
    assert [line["asset"] for line in read_lines(out)] == ["a.jpg"]
    assert set(last_failures(out)) == {PurePosixPath("a.jpg")}


def test_every_prefix_of_a_journal_can_be_read(out: Path) -> None:
    with Journal(out, "r1") as journal:
        journal.failed(failure("a.jpg"), key="k")
        journal.failed(failure("b.jpg"), key="k")
    raw = file_of(out, "r1").read_bytes()
    for size in range(len(raw) + 1):
        file_of(out, "r1").write_bytes(raw[:size])
        assert len(last_failures(out)) == raw[:size].count(b"\n")


def test_what_a_journal_says_does_not_depend_on_how_much_is_read_at_once(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(out, "r1") as journal:
        for name in ("a.jpg", "b.jpg", "c.jpg"):
            journal.write("attempt_start", asset=PurePosixPath(name), key="k", attempt=1)
        journal.failed(failure("a.jpg"), key="k")
        journal.failed(failure("b.jpg"), key="k")
        journal.write("asset_done", asset=PurePosixPath("a.jpg"), key="k", attempt=2)
    raw = file_of(out, "r1").read_bytes()
    lines = list(read_lines(out))
    assert len(lines) == 6
    for size in range(1, len(raw) + 2):
        monkeypatch.setattr(journals, "BLOCK_BYTES", size)
        assert list(read_lines(out)) == lines
        assert set(last_failures(out)) == {PurePosixPath("b.jpg")}
        assert unfinished_attempts(out) == {PurePosixPath("c.jpg"): 1}


def test_a_line_that_the_full_disk_cut_short_is_taken_back(
    out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Journal(out, "r1") as journal:
        journal.write("run_start")
        whole = file_of(out, "r1").read_bytes()
        write = os.write
        with monkeypatch.context() as patch:
            patch.setattr(os, "write", lambda file, data: write(file, data[:9]))
            with pytest.raises(OutputError, match="No space left"):
                journal.write("run_end")
        assert file_of(out, "r1").read_bytes() == whole


def test_a_run_never_writes_into_another_runs_file(out: Path) -> None:
    with Journal(out, "r1"), pytest.raises(OutputError):
        Journal(out, "r1")
