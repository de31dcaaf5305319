"""Death without warning: `kill -9` of the coordinator (A2) and of workers (A3), at random times."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from blows.bench import (
    PATIENCE_S,
    Bench,
    Finding,
    attempts,
    finished,
    orphans_of,
    workers_of,
)
from crm_cli.run.journal import read_lines

LOOK_S = 0.005
"""Pause between two looks at an output folder that a run writes to."""

WORKERS = 2

KILLS = 2
"""Of workers, in one run."""

SETTLED = 0.15
"""Share of killed runs after which the folder is brought to its end and looked at whole."""


class Watch:
    """Looks at an output folder as often as it can, as a reader of its files might."""

    def __init__(self, bench: Bench, out: Path) -> None:
        self._bench = bench
        self._out = out
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.looks = 0
        self.wrong: set[str] = set()

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def _look(self) -> None:
        try:
            while not self._ended.wait(LOOK_S):
                self.wrong.update(f"while it ran: {words}" for words in self._bench.corrupt(self._out))
                self.looks += 1
        except Exception as error:
            self.wrong.add(f"cannot be looked at: {error!r}")


def coordinator(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Kill the same run again and again until it has finished; then begin with an empty folder."""
    bench = Bench(root, *(f"{index}.jpg" for index in range(6)), "sub/b.png", flags=("--jobs", f"{WORKERS}"))
    out = bench.fresh()
    while True:
        before, tried = bench.finished(out), attempts(out)
        process = bench.start(out)
        with Watch(bench, out) as watch:
            time.sleep(dice.uniform(0.0, 1.1 * bench.seconds))
            process.kill()
            done = finished(process, time.monotonic())
        orphans = orphans_of(process.pid)
        now, started = bench.finished(out), attempts(out) - tried
        wrong = [*watch.wrong, *orphans, *bench.corrupt(out), *bench.lost(out)]
        wrong += done.surprises(expected=[-signal.SIGKILL, 0])
        wrong += [f"{asset} was finished and is gone" for asset in sorted(before - now)]
        wrong += [f"{asset} was finished and is done again" for asset in sorted(before & started.keys())]
        unfinished = started.keys() - now
        if len(unfinished) > WORKERS:
            wrong.append(f"{len(unfinished)} photos have to be done again, by {WORKERS} workers")
        is_over = done.code == 0 or len(now) == len(bench.names)
        if is_over or dice.random() < SETTLED:
            wrong += bench.unsettled(out)
            out = bench.fresh()
        finding = Finding(wrong)
        finding.figures.update({"looks": watch.looks, "photos begun and lost": len(unfinished)})
        finding.figures.update(["finished first" if done.code == 0 else "kills"])
        yield finding


def workers(root: Path, dice: random.Random) -> Iterator[Finding]:
    """Kill random workers of a run, which must go on without them and blame no photo."""
    bench = Bench(root, *(f"slow_{index}.jpg" for index in range(6)), flags=("--jobs", f"{WORKERS}"))
    while True:
        out = bench.fresh()
        since = time.monotonic()
        process = bench.start(out)
        kills = sum(_kill_a_worker(process, out, dice, longest_s=bench.seconds / KILLS) for _ in range(KILLS))
        done = finished(process, since)
        finding = Finding(done.surprises(expected=[0]))
        finding.wrong += [*orphans_of(process.pid), *bench.corrupt(out), *bench.lost(out)]
        finding.wrong += [
            f"{line['asset']}: {line['ev']} after a kill: {line['error']}"
            for line in read_lines(out)
            if line["ev"] in ("asset_failed", "quarantined")
        ]
        left = sorted(set(bench.names) - bench.finished(out))
        finding.wrong += [f"{name} was not converted" for name in left]
        tried_again = sum(tries > 1 for tries in attempts(out).values())
        finding.figures.update({"kills": kills, "photos tried again": tried_again})
        yield finding


def _kill_a_worker(
    process: subprocess.Popen[str], out: Path, dice: random.Random, *, longest_s: float
) -> bool:
    """Kill one of the run's workers, after a while or in a stage; False where the run had ended before."""
    ends = time.monotonic() + PATIENCE_S
    is_in_stage = dice.random() < 0.5
    stages = _stages_done(out)
    time.sleep(0.0 if is_in_stage else dice.uniform(0.0, longest_s))
    while process.poll() is None and time.monotonic() < ends:
        if is_in_stage and _stages_done(out) == stages:
            time.sleep(0.001)
        elif found := workers_of(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(dice.choice(found), signal.SIGKILL)
                return True
        time.sleep(0.01)
    return False


def _stages_done(out: Path) -> int:
    return sum(line["ev"] == "stage_done" for line in read_lines(out))
