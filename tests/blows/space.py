"""Disks that are full, or become full while a run writes, and limits on the size of files (A5)."""

from __future__ import annotations

import itertools
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from blows.bench import Bench, Done, Finding, assets, finished
from crm_cli.run.journal import read_lines
from crm_cli.run.space import RESERVE_BYTES

PAGE = 4096
"""What the smallest file takes of a disk in memory."""

DISK_BYTES = 4 * RESERVE_BYTES

RUN_PAGES = 48
"""A little more than a run of three photos fills."""

SIZES = (2_500, 100, 1_200, 8_000)
"""Bytes that an asset, a lock, a record, and a page or a journal are larger than, or nearly."""

LIMITED = """
import os, resource, sys
limit = int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
os.execv(sys.argv[2], sys.argv[2:])
"""
"""Runs a command that may write no larger file."""


def why_not() -> str | None:
    """What this machine lacks for disks of our own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _disk(Path(folder)):
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no disk in memory can be mounted here: {error}"


def full_disks(root: Path, dice: random.Random) -> Iterator[Finding]:
    """A disk with any little space left, or one that somebody else fills while a run writes."""
    bench = Bench(root, "a.jpg", "b.jpg", "sub/c.png")
    place = root / "disk"
    place.mkdir()
    while True:
        with _disk(place):
            out, ballast = place / "out", place / "ballast"
            if dice.random() < 0.5:
                free = dice.choice((0, RESERVE_BYTES, RESERVE_BYTES)) + dice.randrange(RUN_PAGES) * PAGE
                ballast.write_bytes(bytes(DISK_BYTES - free))
                done = bench.run(out)
            else:
                process = bench.start(out)
                time.sleep(dice.uniform(0.0, bench.seconds))
                _fill(ballast)
                done = finished(process, time.monotonic())
            finding = _judged(bench, out, done)
            finding.wrong += _last_words_missing(out) if done.code == 5 else []
            ballast.unlink()
            finding.wrong += bench.unsettled(out)
            finding.wrong = [f"exit {done.code}: {words}" for words in finding.wrong]
        yield finding


def limits(root: Path, dice: random.Random) -> Iterator[Finding]:
    """A limit on the size of files that something of a run exceeds: a lock, a record, an asset, a page."""
    bench = Bench(root, "a.jpg", "b.jpg", "sub/c.png")
    for size in itertools.cycle(SIZES):
        out, limit = bench.fresh(), int(size * dice.uniform(0.6, 1.2))
        done = bench.run(out, prefix=[sys.executable, "-c", LIMITED, str(limit)])
        finding = _judged(bench, out, done)
        finding.wrong += bench.unsettled(out)
        finding.wrong = [f"files of {limit} bytes at most: {words}" for words in finding.wrong]
        yield finding


def _judged(bench: Bench, out: Path, done: Done) -> Finding:
    wrong = [*done.surprises(expected=[0, 5]), *bench.corrupt(out), *bench.lost(out)]
    if done.code == 0 and assets(out) != bench.whole:
        wrong.append("exit 0, and not all is there")
    finding = Finding(wrong)
    finding.figures[f"exit {done.code}"] += 1
    return finding


def _last_words_missing(out: Path) -> list[str]:
    """What a run that began has not put down about its end, although space was set aside for that."""
    begun = [path.stem for path in (out / ".crm" / "journal").glob("*.ndjson")]
    if not begun:
        return []
    events = [line for line in read_lines(out) if line["run"] == begun[-1]]
    if not events or events[-1]["ev"] != "run_end" or events[-1]["exit_code"] != 5:
        return [f"the journal ends with {events[-1:]}"]
    open_ends = {line["asset"] for line in events if line["ev"] == "attempt_start"}
    open_ends -= {line["asset"] for line in events if line["ev"] in ("asset_done", "interrupted")}
    summary = out / ".crm" / "runs" / begun[-1] / "summary.json"
    if not summary.exists() or json.loads(summary.read_bytes())["exit_code"] != 5:
        return ["no summary says how the run ended"]
    return [f"{asset} was begun, and nothing says what became of it" for asset in sorted(open_ends)]


def _fill(ballast: Path) -> None:
    """Take all the space there is."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(PAGE)):
                pass
        except OSError:
            return


@contextmanager
def _disk(place: Path, size_bytes: int = DISK_BYTES) -> Iterator[None]:
    """A disk in memory, for a while."""
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "crm-hammer", str(place)]
    subprocess.run(mount, check=True, capture_output=True)
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True, capture_output=True)
