"""Signals at random times, on a terminal and on a pipe (A7)."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import signal
import subprocess
import termios
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from blows.bench import Bench, Done, Finding, finished, litter, orphans_of
from crm_cli.cli.listening import DEBOUNCE_S
from crm_cli.run.events import SCHEMA
from crm_cli.run.journal import read_lines
from crm_cli.run.options import GRACE_S

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

HIDE, SHOW = b"\x1b[?25l", b"\x1b[?25h"
"""What makes a terminal's cursor vanish and come back."""

SLACK_S = 10.0
"""How much later than promised a run may end here: this machine may be busy."""


class Terminal:
    """A terminal of our own for a run's stderr, and what was written to it."""

    def __init__(self) -> None:
        self._ours, self.theirs = pty.openpty()
        self._before = termios.tcgetattr(self.theirs)
        self._seen = bytearray()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        with contextlib.suppress(OSError):  # the other end is closed
            while data := os.read(self._ours, 1 << 16):
                self._seen.extend(data)

    def close(self) -> tuple[str, list[str]]:
        """What was shown, and what is not as it was before."""
        wrong = [] if termios.tcgetattr(self.theirs) == self._before else ["the terminal's modes are changed"]
        os.close(self.theirs)
        self._reader.join()
        os.close(self._ours)
        if self._seen.rfind(HIDE) > self._seen.rfind(SHOW):
            wrong.append("the cursor is gone")
        return self._seen.decode(errors="replace"), wrong


def once(root: Path, dice: random.Random) -> Iterator[Finding]:
    """One signal at any moment of a run, start-up and contact sheet included."""
    bench = Bench(root, *(f"slow_{index}.jpg" for index in range(3)), flags=("--jobs", "2"))
    out = bench.fresh()
    while True:
        number = dice.choice(SIGNALS)
        finding = _signalled(bench, out, dice, [(dice.uniform(0.0, 1.1 * bench.seconds), number)])
        finding.wrong += [*bench.corrupt(out), *bench.lost(out)]
        if dice.random() < 0.5:
            finding.wrong += bench.unsettled(out)
            out = bench.fresh()
        yield finding


def twice(root: Path, dice: random.Random) -> Iterator[Finding]:
    """A second interrupt while photos hang: nobody waits for them, and nobody blames them."""
    bench = Bench(root, "hang_a.jpg", "hang_b.jpg", flags=("--jobs", "2"))
    while True:
        out = bench.fresh()
        first = dice.uniform(0.3, 1.2)
        blows = [(first, signal.SIGINT), (DEBOUNCE_S + dice.uniform(0.1, 0.4), signal.SIGINT)]
        finding = _signalled(bench, out, dice, blows)
        events = Counter(line["ev"] for line in read_lines(out))
        if events["asset_failed"] or events["interrupted"] != events["attempt_start"]:
            finding.wrong.append(f"a photo is blamed for an interrupt: {dict(events)}")
        finding.wrong += [f"litter: {path}" for path in litter(out)]
        yield finding


def _signalled(
    bench: Bench, out: Path, dice: random.Random, blows: Sequence[tuple[float, signal.Signals]]
) -> Finding:
    """Run, send each signal after its pause, and look at how the run ended."""
    terminal = Terminal() if dice.random() < 0.5 else None
    stderr = terminal.theirs if terminal else subprocess.PIPE
    process = bench.start(out, "--json", stderr=stderr, TERM="xterm-256color")
    for index, (pause_s, number) in enumerate(blows):
        if index:
            _wait_until_heard(process, out)
        time.sleep(pause_s)
        was_running = process.poll() is None
        since = time.monotonic()
        process.send_signal(number)
    done = finished(process, since)
    number = blows[0][1]
    finding = Finding()
    if terminal:
        shown, finding.wrong = terminal.close()
        done = replace(done, stderr=shown)
    # Before it listens a signal ends it as it ends any process; after its end there is nothing to stop.
    if done.code == -signal.SIGINT:
        # Python itself was still loading us, and has its own way to say so.
        done = replace(done, stderr="")
        finding.figures["interrupted while Python loads"] += 1
    finding.wrong += done.surprises(expected=[128 + number, -number, 0])
    finding.wrong += _misread(done) + orphans_of(process.pid)
    ends_within_s = 2.0 if len(blows) > 1 else GRACE_S
    if was_running and done.seconds > ends_within_s + SLACK_S:
        finding.wrong.append(f"ended {done.seconds:.1f} s after the signal")
    how = "finished first" if done.code == 0 else "before it listens" if done.code < 0 else "tidy ends"
    finding.figures.update([f"{how}", "on a terminal" if terminal else "on a pipe"])
    if was_running and done.code > 0:
        finding.longest_s["from the last signal to the end"] = done.seconds
    finding.wrong = [f"{number.name}, exit {done.code}: {words}" for words in finding.wrong]
    return finding


def _wait_until_heard(process: subprocess.Popen[str], out: Path) -> None:
    """Wait until a run has said that it stops, or is gone: only then does a second signal mean more."""
    ends = time.monotonic() + SLACK_S
    while process.poll() is None and time.monotonic() < ends:
        logs = out.glob(".crm/runs/*/events.ndjson")
        if any(b'"warning"' in log.read_bytes() for log in logs):
            return
        time.sleep(0.01)


def _misread(done: Done) -> list[str]:
    """What a program that reads the events would stumble over."""
    events = []
    for line in done.stdout.splitlines(keepends=True):
        try:
            events.append(json.loads(line))
        except ValueError:
            return [f"no JSON on stdout: {line!r}"]
        if events[-1].get("schema") != SCHEMA:
            return [f"not an event: {line!r}"]
    told = [event["exit_code"] for event in events if event["type"] == "run_finished"]
    # A run that had not begun has nothing to end; one that is ended by the signal itself tells nothing.
    is_right = told == [done.code] or not events or done.code < 0
    return [] if is_right else [f"told exit {told}, left with {done.code}"]
