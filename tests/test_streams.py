"""Terminals that close, readers that sleep, signals that are ignored: a run goes on, or ends at once."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from output import plant
from test_cli import ENVIRONMENT, HERE

from crm_cli.run.journal import read_lines
from crm_cli.run.status import status

PATIENCE_S = 30.0


@contextmanager
def started(photos: Path, *flags: str, **streams: object) -> Iterator[subprocess.Popen[bytes]]:
    command = [
        sys.executable,
        HERE / "fakes.py",
        "convert",
        photos,
        "-o",
        photos.parent / "out",
        "-p",
        "tiny",
    ]
    process = subprocess.Popen(
        [*map(str, command), "--no-report", "--jobs", "1", *flags], env=ENVIRONMENT, **streams
    )  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def assets(photos: Path) -> int:
    return len(list((photos.parent / "out").glob("*.glb")))


def until_begun(photos: Path) -> None:
    ends = time.monotonic() + PATIENCE_S
    while not any(line["ev"] == "stage_done" for line in _lines(photos.parent / "out")):
        assert time.monotonic() < ends
        time.sleep(0.02)


def _lines(out: Path) -> list[dict[str, object]]:
    return [dict(line) for line in read_lines(out)] if (out / ".crm" / "journal").is_dir() else []


def test_a_reader_of_messages_that_leaves_ends_no_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", *(f"slow_{number}.jpg" for number in range(4)))
    with started(photos, "-v", stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        process.stderr.readline()
        process.stderr.close()
        process.stderr = None
        assert process.wait(PATIENCE_S) == 0
    assert assets(photos) == 4 and _lines(tmp_path / "out")[-1]["ev"] == "run_end"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_under_the_messages_ends_no_run(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "input_b.jpg")
    with Path("/dev/full").open("wb") as full, started(photos, "-v", stderr=full) as process:
        assert process.wait(PATIENCE_S) == 3
    assert assets(photos) == 1


@pytest.mark.parametrize("progress", ["bar", "plain"])
def test_a_terminal_that_closes_hangs_up_and_leaves_a_journal_that_says_so(
    tmp_path: Path, progress: str
) -> None:
    photos = plant(tmp_path / "in", *(f"slow_{number}.jpg" for number in range(40)))
    master, slave = pty.openpty()
    with started(
        photos, "--progress", progress, stdin=slave, stdout=slave, stderr=slave, start_new_session=True
    ) as process:
        os.close(slave)
        until_begun(photos)
        os.close(master)
        process.send_signal(signal.SIGHUP)
        assert process.wait(PATIENCE_S) == 129
    last = _lines(tmp_path / "out")[-1]
    assert (last["ev"], last["exit_code"]) == ("run_end", 129) and 0 < assets(photos) < 40


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGINT])
def test_a_signal_that_was_ignored_before_stays_ignored(tmp_path: Path, number: signal.Signals) -> None:
    photos = plant(tmp_path / "in", *(f"slow_{index}.jpg" for index in range(4)))
    before = signal.signal(number, signal.SIG_IGN)  # as nohup and a shell's & leave it
    try:
        with started(photos, stderr=subprocess.DEVNULL) as process:
            until_begun(photos)
            process.send_signal(number)
            assert process.wait(PATIENCE_S) == 0
    finally:
        signal.signal(number, before)
    assert assets(photos) == 4


def test_a_reader_that_sleeps_does_not_hold_up_a_second_interrupt(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg", *(f"{number:04}.jpg" for number in range(400)))
    reader, writer = os.pipe()
    with started(
        photos, "--json", "--timeout", "unwrap=60", stdout=writer, stderr=subprocess.DEVNULL
    ) as process:
        os.close(writer)
        # Nobody reads: sooner or later the pipe is full.
        ends = time.monotonic() + PATIENCE_S
        while os.fstat(reader) and select.select([reader], [], [], 0)[0] and assets(photos) < 60:
            assert time.monotonic() < ends
            time.sleep(0.05)
        time.sleep(1.0)
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_S) == 130
    os.close(reader)


def test_stdout_that_was_closed_before_is_no_reason_to_fail(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    command = f"exec {sys.executable} {HERE}/fakes.py convert {photos} -o {tmp_path}/out -p tiny --json >&-"
    done = subprocess.run(["bash", "-c", command], env=ENVIRONMENT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert assets(photos) == 1


def test_a_run_that_cannot_go_on_tells_programs_and_leaves_its_results(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "lacking_b.jpg")
    junit = tmp_path / "results.xml"
    junit.write_text("of another run")
    with started(
        photos, "--json", "--junit", str(junit), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout.read().splitlines()]
        assert process.wait(PATIENCE_S) == 6
    assert (events[-1]["type"], events[-1]["exit_code"], events[-1]["left"]) == ("run_finished", 6, 1)
    assert 'name="a.jpg"' in junit.read_text() and "not reached" in junit.read_text()


def test_after_a_second_interrupt_programs_are_told_the_end(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "hang_a.jpg")
    with started(
        photos, "--json", "--timeout", "unwrap=60", stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as process:
        until_begun(photos)
        process.send_signal(signal.SIGINT)
        time.sleep(0.7)
        process.send_signal(signal.SIGINT)
        assert process.stdout is not None
        last = json.loads(process.stdout.read().splitlines()[-1])
        assert process.wait(PATIENCE_S) == 130
    assert (last["type"], last["exit_code"], last["left"]) == ("run_finished", 130, 1)


def test_a_summary_that_nobody_can_read_is_none(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg")
    with started(photos, stderr=subprocess.DEVNULL) as process:
        assert process.wait(PATIENCE_S) == 0
    [summary] = (tmp_path / "out").glob(".crm/runs/*/summary.json")
    summary.write_text("[" * 100_000)
    standing = status(tmp_path / "out")
    assert standing.finished == 1 and standing.last_run == {}
