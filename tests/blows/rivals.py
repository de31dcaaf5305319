"""Several runs in one output folder at once: started together, as shards, and without any lock (A6)."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

from blows.bench import Bench, Finding, assets, attempts, finished
from blows.killed import Watch

RIVALS = 8

SHARDS = 16


def starts(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Eight runs at once: one works, and no photo is begun twice."""
    bench = Bench(root, *(f"slow_{index}.jpg" for index in range(6)), flags=("--jobs", "2"))
    while True:
        out = bench.fresh()
        finding = _together(bench, out, [()] * RIVALS, expected=[0, 11])
        finding.wrong += bench.unsettled(out)
        yield finding


def shards(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Sixteen shards at once: each photo is begun by one of them, and none is left."""
    bench = Bench(root, *(f"{index}.jpg" for index in range(12)), "sub/b.png", flags=("--jobs", "1"))
    while True:
        out = bench.fresh()
        flags = [("--shard", f"{index + 1}/{SHARDS}") for index in range(SHARDS)]
        dice.shuffle(flags)
        finding = _together(bench, out, flags, expected=[0])
        if assets(out) != bench.whole:
            finding.wrong.append("the shards together have not made everything")
        finding.wrong += bench.unsettled(out)
        yield finding


def unlocked(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Three runs that see no lock: they disturb each other, and corrupt nothing."""
    bench = Bench(root, *(f"{index}.jpg" for index in range(4)), flags=("--jobs", "1"))
    while True:
        out = bench.fresh()
        with Watch(bench, out) as watch:
            # A photo whose files another run has cleared away or overtaken fails; the next run makes it.
            runs = []
            for _ in range(3):
                runs.append(bench.start(out, entry="blows.unlocked"))
                time.sleep(dice.uniform(0.0, bench.seconds / 2))
            done = [finished(run, time.monotonic()) for run in runs]
        finding = Finding([*watch.wrong, *bench.corrupt(out)])
        for one in done:
            finding.wrong += one.surprises(expected=[0, 3, 5])
            finding.figures[f"exit {one.code}"] += 1
        finding.wrong += bench.unsettled(out)
        yield finding


def _together(bench: Bench, out: Path, flags: list[tuple[str, ...]], *, expected: list[int]) -> Finding:
    """Start runs at once, and wait for all."""
    since = time.monotonic()
    runs = [bench.start(out, *theirs) for theirs in flags]
    done = [finished(run, since) for run in runs]
    finding = Finding([*bench.corrupt(out), *bench.lost(out)])
    for one in done:
        finding.wrong += one.surprises(expected=expected)
        finding.figures[f"exit {one.code}"] += 1
    twice = [asset for asset, tries in attempts(out).items() if tries > 1]
    finding.wrong += [f"{asset} was begun twice" for asset in twice]
    return finding
