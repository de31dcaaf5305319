"""An output folder that vanishes, a disk that gives up, and a clock that jumps, while a run works (A12)."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from blows.bench import Bench, Done, Finding, assets, finished, orphans_of

ENDS_WITHIN_S = 10.0

SLACK_S = 10.0
"""How much later than promised a run may end here: this machine may be busy."""

DISK_BYTES = 16 << 20

DAY_S = 86_400.0


def deleted(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Somebody removes the output folder, or moves it away: the run ends, and makes nothing again."""
    bench = Bench(root, *(f"slow_{index}.jpg" for index in range(3)), "sub/b.png", flags=("--jobs", "2"))
    hangs = Bench(root / "hangs", "hang_a.jpg", "sub/hang_b.jpg", flags=("--jobs", "2"))
    while True:
        mine = dice.choice((bench, hangs))
        out = mine.fresh()
        process = mine.start(out)
        while not out.exists() and process.poll() is None:
            time.sleep(0.001)
        time.sleep(dice.uniform(0.0, 0.8) * bench.seconds)
        since = time.monotonic()
        _take_away(out, root / "elsewhere", dice)
        done = finished(process, since)
        # It may have been about to leave.
        finding = Finding(_too_late(done) + done.surprises(expected=[0, 5]) + orphans_of(process.pid))
        finding.wrong += ["it made its folder again"] if out.exists() else []
        finding.figures[f"exit {done.code}"] += 1
        finding.longest_s["from the loss to the end"] = done.seconds
        yield finding


def given_up(root: Path, dice: random.Random) -> Iterator[Finding]:
    """A disk that stops taking writes in the middle of a run, and is then checked and mounted again."""
    bench = Bench(root, *(f"slow_{index}.jpg" for index in range(3)), flags=("--jobs", "2"))
    hangs = Bench(root / "hangs", "hang_a.jpg", "hang_b.jpg", flags=("--jobs", "2"))
    while True:
        mine = dice.choice((bench, bench, hangs))
        with _disk(root) as disk:
            out = disk.place / "out"
            process = mine.start(out)
            time.sleep(dice.uniform(0.1, 1.1) * bench.seconds)
            since = time.monotonic()
            disk.give_up()
            done = finished(process, since)
            finding = Finding(_too_late(done) + done.surprises(expected=[0, 5]) + orphans_of(process.pid))
            finding.figures[f"exit {done.code}"] += 1
            finding.longest_s["from the loss to the end"] = done.seconds
            disk.mend()
            if mine is bench:
                finding.wrong += [*bench.corrupt(out), *bench.lost(out), *bench.unsettled(out)]
        yield finding


def clocks(root: Path, dice: random.Random) -> Iterator[Finding]:
    """A clock that is a day off, either way, in each of several runs that finish one folder together."""
    bench = Bench(root, *(f"{index}.jpg" for index in range(4)), "sub/b.png")
    while True:
        out, finding = bench.fresh(), Finding()
        for count in (2, 4):
            skew = f"{dice.choice((-DAY_S, 0.0, DAY_S)):g}"
            done = bench.run(out, "--limit", str(count), entry="blows.skewed", SKEWED_S=skew)
            finding.wrong += done.surprises(expected=[0])
        finding.wrong += bench.unsettled(out)
        again = bench.run(out, "--json", entry="blows.skewed", SKEWED_S=f"{dice.choice((-DAY_S, DAY_S)):g}")
        if '"asset_started"' in again.stdout or again.code:
            finding.wrong.append(f"another clock makes it do finished photos again, exit {again.code}")
        finding.wrong += [] if assets(out) == bench.whole else ["a clock changes what stands there"]
        yield finding


def _take_away(out: Path, elsewhere: Path, dice: random.Random) -> None:
    """Remove a folder that somebody may be writing to."""
    if dice.random() < 0.5:
        shutil.rmtree(elsewhere, ignore_errors=True)
        out.rename(elsewhere)
    while out.exists():
        shutil.rmtree(out, ignore_errors=True)


def _too_late(done: Done) -> list[str]:
    is_late = done.seconds > ENDS_WITHIN_S + SLACK_S
    return [f"it ended {done.seconds:.1f} s after the loss"] if is_late else []


def why_not() -> str | None:
    """What this machine lacks for a disk that can give up."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            with _disk(Path(folder)):
                return None
        except (OSError, subprocess.CalledProcessError) as error:
            return f"no disk in a file can be mounted here: {error}"


@dataclass(frozen=True)
class Disk:
    """A disk in a file."""

    image: Path
    place: Path

    def mount(self) -> None:
        """Make it a part of the tree."""
        _call("mount", "-o", "loop", self.image, self.place)

    def give_up(self) -> None:
        """Make it take no more writes, whoever has it open."""
        _call("mount", "-o", "remount,abort", self.place)

    def mend(self) -> None:
        """Do what a restart of the machine does."""
        _call("umount", self.place)
        # 1: it found something to put right, and did.
        assert subprocess.run(["fsck.ext4", "-p", self.image], capture_output=True).returncode in (0, 1)
        self.mount()


@contextmanager
def _disk(root: Path) -> Iterator[Disk]:
    disk = Disk(root / "image", root / "disk")
    disk.image.touch()
    os.truncate(disk.image, DISK_BYTES)
    disk.place.mkdir(exist_ok=True)
    _call("mkfs.ext4", "-q", "-F", disk.image)
    disk.mount()
    try:
        yield disk
    finally:
        _call("umount", "-l", disk.place)
        disk.image.unlink()


def _call(*words: str | Path) -> None:
    subprocess.run([*map(str, words)], check=True, capture_output=True)
