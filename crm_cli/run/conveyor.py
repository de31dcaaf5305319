"""The local engine: a pool of worker processes, one photo in each, a deadline for every stage.

A pool of our own, since the standard one fails every photo in flight when one worker dies, without saying
which photo did it. Here a death belongs to exactly one photo.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from crm_cli.errors import CrmError, EnvironmentProblem, ErrorClass, ExitCode, OutputError, UsageError
from crm_cli.records import Asset, Failed, Job
from crm_cli.run.machine import no_process
from crm_cli.run.wire import Unframer, frame, from_plain
from crm_cli.run.worker import Launch
from crm_cli.toolbox import memory_kills

OPENING = "opening"
"""What a worker does before its first photo: loads libraries and weights."""

START = "start"
"""Where a photo is that a worker has but did not begin."""

DEADLINES_S: Mapping[str, float] = {
    OPENING: 900,
    "prepare": 90,
    "imagine": 300,
    "reconstruct": 120,
    "unwrap": 300,
    "bake": 120,
    "deliver": 120,
}
"""Several times what the slowest photo took: a deadline ends a hang, it does not hurry anybody.

It counts from the last sign of life: from the start of the stage, or from the latest step told within it.
"""

DEADLINES_CPU_S: Mapping[str, float] = {**DEADLINES_S, "imagine": 3600, "reconstruct": 900, "bake": 600}
"""Without an accelerator a single step of the published networks may take minutes."""

FAREWELL_S = 2.0
"""How long an idle worker may take to leave before it is killed."""

DUMP_S = 1.0
"""How long a worker that hangs may take to write down where."""

MAX_LOG_BYTES = 1 << 16
"""What is kept as evidence of a worker's last words."""

BOOT = "import sys; sys.path.append(sys.argv[1]); from crm_cli.run.worker import main; main()"
"""Starts a worker. Python's -P keeps the current folder off its path: it may hold somebody's torch.py."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A photo has entered a stage."""

    job: Job
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A worker is ready; what it expects a photo to take."""

    forecast_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stepped:
    """A photo is so far within its stage."""

    job: Job
    done: int
    of: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A photo is through, one way or the other."""

    job: Job
    outcome: Asset | Failed
    worker: int
    """The process that had it."""
    traceback: str = ""
    signal: int | None = None
    was_frugal: bool = False
    """Whether the worker kept less in memory already."""
    device: str = "cpu"
    peak_bytes: int = 0
    """The most of the device's memory that the worker has held so far; 0 where it has not told."""
    log: str = ""
    """The end of what a worker said before it died: its complaints, and where its threads were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """Somebody killed the worker, and not for want of memory: the photo is not to blame."""

    job: Job
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOpened:
    """A worker died before it could start the photo, which is not to blame."""

    job: Job
    kind: ErrorClass
    reason: str


Report = Opened | Staged | Stepped | Finished | Killed | NotOpened


@dataclass(frozen=True, slots=True, kw_only=True)
class Spare:
    """How a photo is made on the CPU that no accelerator has memory for."""

    threads: int
    deadlines_s: Mapping[str, float]


class Conveyor:
    """Worker processes, started when there is work for them and replaced when they die."""

    def __init__(
        self,
        launch: Launch,
        *,
        devices: Sequence[str],
        workers: int,
        deadlines_s: Mapping[str, float],
        logs: Path,
        spare: Spare | None = None,
    ) -> None:
        """spare: for photos that are submitted to the CPU, whatever the devices are."""
        self._launch = launch
        self._spare = spare or Spare(threads=launch.threads, deadlines_s=deadlines_s)
        self._devices = devices
        self._deadlines_s = deadlines_s
        self._logs = logs
        self._selector = selectors.DefaultSelector()
        self._seats: list[_Worker | None] = [None] * workers
        self._room = workers
        self._is_frugal = False

    @property
    def running(self) -> list[Job]:
        """Photos that a worker has."""
        return [worker.job for worker in self._workers() if worker.job is not None]

    @property
    def has_room(self) -> bool:
        """Whether another photo could start now."""
        return len(self.running) < self.room

    @property
    def room(self) -> int:
        """How many photos may run at a time."""
        return self._room

    @property
    def shares_accelerators(self) -> bool:
        """Whether several workers take turns at one accelerator."""
        return self._devices[0] != "cpu" and self._room > len(self._devices)

    def submit(self, job: Job, *, on_cpu: bool = False) -> bool:
        """Give a photo to an idle worker, or to a new one; returns whether a new one was started for it.

        on_cpu: whatever devices the others use.
        """
        self._dismiss_surplus()
        idle = [(seat, worker) for seat, worker in enumerate(self._seats) if worker and worker.job is None]
        for seat, worker in idle:
            if worker.launch == self._launch_on(seat, on_cpu=on_cpu):
                worker.take(job)
                return False
        if len(self._workers()) >= self._room:
            # Opened for something else, it makes room for one that fits.
            self._remove(idle[0][1])
        self._start(on_cpu=on_cpu).take(job)
        return True

    def economize(self) -> str | None:
        """Need less memory from now on; says how, or None where nothing is left to save.

        First no accelerator is shared any more; then workers keep one network on it at a time and ask for
        fewer points at once. On the CPU half as many photos are made at the same time. Workers that are busy
        are not disturbed.
        """
        if self.shares_accelerators:
            self._room = len(self._devices)
            self._dismiss_surplus()
            return f"{self._room} at a time"
        if self._devices[0] != "cpu":
            if self._is_frugal:
                return None
            self._is_frugal = True
            return "one network at a time, in smaller pieces"
        if self._room == 1:
            return None
        self._room //= 2
        self._dismiss_surplus()
        return f"{self._room} at a time"

    def renew(self, pid: int) -> None:
        """Replace an idle worker: what it answers may be its own fault."""
        for worker in self._workers():
            if worker.pid == pid and worker.job is None:
                self._remove(worker)

    def wait(self, timeout_s: float) -> list[Report]:
        """Collect what happened, waiting for at most the given time."""
        now = time.monotonic()
        nearest = min((worker.deadline for worker in self._workers() if worker.job), default=now + timeout_s)
        reports: list[Report] = []
        for key, _ in self._selector.select(max(0.0, min(timeout_s, nearest - now))):
            reports += self._read(key.data)
        for worker in self._workers():
            if worker.job and time.monotonic() >= worker.deadline:
                worker.give_up()
                reports += self._bury(worker)
        return reports

    def recall(self) -> list[Job]:
        """End the workers whose photo has not entered a stage, and give back their photos."""
        jobs = []
        for worker in self._workers():
            if worker.job is not None and worker.stage in (OPENING, START):
                jobs.append(worker.job)
                self._remove(worker)
        return jobs

    def close(self) -> None:
        """Let idle workers leave, kill the others."""
        for worker in self._workers():
            if worker.job is None:
                worker.close_commands()
        patience = time.monotonic() + FAREWELL_S
        for worker in self._workers():
            if worker.job is None:
                worker.wait_for_exit(max(0.0, patience - time.monotonic()))
            self._remove(worker)
        self._selector.close()

    def _workers(self) -> list[_Worker]:
        return [worker for worker in self._seats if worker is not None]

    def _dismiss_surplus(self) -> None:
        """Let idle workers go that there is no room for any more."""
        for worker in self._workers():
            if worker.job is None and len(self._workers()) > self._room:
                self._remove(worker)

    def _launch_on(self, seat: int, *, on_cpu: bool) -> Launch:
        """What a worker on this seat is told."""
        if on_cpu:
            return replace(self._launch, device="cpu", threads=self._spare.threads)
        return replace(
            self._launch,
            device=self._devices[seat % len(self._devices)],
            sharers=-(-self._room // len(self._devices)),
            is_frugal=self._is_frugal,
        )

    def _start(self, *, on_cpu: bool) -> _Worker:
        """Start a worker on the first empty seat."""
        seat = self._seats.index(None)
        worker = _Worker(
            self._launch_on(seat, on_cpu=on_cpu),
            log=self._logs / f"worker-{seat + 1}.log",
            deadlines_s=self._spare.deadlines_s if on_cpu else self._deadlines_s,
        )
        self._seats[seat] = worker
        self._selector.register(worker.reports, selectors.EVENT_READ, worker)
        return worker

    def _read(self, worker: _Worker) -> list[Report]:
        """Take in what a worker has sent."""
        reports: list[Report] = []
        try:
            data = os.read(worker.reports, 1 << 16)
            if not data:
                return self._bury(worker)
            for message in worker.unframer.feed(data):
                reports += worker.hear(message)
        except (ValueError, KeyError) as error:
            # A worker that talks nonsense is as good as dead; what it said before holds.
            worker.complaint = f"unreadable answer ({error})"
            worker.kill()
            return [*reports, *self._bury(worker)]
        if any(isinstance(report, Finished) and report.traceback for report in reports):
            # After a surprise its state is unknown: a poisoned device context answers everything wrongly.
            self._remove(worker)
        return reports

    def _bury(self, worker: _Worker) -> list[Report]:
        """Remove a dead worker and say which photo it took along."""
        worker.wait_for_exit(FAREWELL_S)
        self._remove(worker)
        return worker.last_words()

    def _remove(self, worker: _Worker) -> None:
        """Kill a worker with all its children, and free its seat."""
        self._selector.unregister(worker.reports)
        worker.kill()
        worker.dispose()
        self._seats[self._seats.index(worker)] = None


class _Worker:
    """One worker process as the parent sees it."""

    def __init__(self, launch: Launch, *, log: Path, deadlines_s: Mapping[str, float]) -> None:
        self.launch = launch
        self._log = log
        self._deadlines_s = deadlines_s
        with log.open("ab") as errors:
            self._log_start = errors.tell()
            self._process = _spawn(launch, errors)
        assert self._process.stdout is not None
        self.reports = self._process.stdout.fileno()
        self.unframer = Unframer()
        self.job: Job | None = None
        self.stage = OPENING
        self.complaint = ""
        self._is_overdue = False
        self._memory_kills: int | None = None
        self._is_open = False
        self.deadline = time.monotonic() + deadlines_s[OPENING]
        self._send(open=launch)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def take(self, job: Job) -> None:
        """Hand a photo over; a worker that is still opening starts it when it is ready."""
        self.job = job
        self._memory_kills = memory_kills()
        if self._is_open:
            self._enter(START)
            self._send(job=job)

    def hear(self, message: Mapping[str, Any]) -> list[Report]:
        """Understand one message."""
        job = self.job
        if "refused" in message:
            raise _reraised(message["refused"])
        if "ready" in message:
            forecast_s = from_plain(float | None, message.get("forecast_s"))  # type: ignore[arg-type]
            self._is_open = True
            if job is not None:
                self.take(job)
            return [Opened(forecast_s=forecast_s)]
        if job is None:
            raise ValueError("an answer nobody asked for")
        if "stage" in message:
            self._enter(str(message["stage"]))
            return [Staged(job=job, stage=self.stage)]
        if "step" in message:
            done, of = from_plain(tuple[int, ...], message["step"])
            self._enter(self.stage)  # it lives: its deadline starts again
            return [Stepped(job=job, done=done, of=of)]
        if "done" in message:
            finished = Finished(job=job, worker=self.pid, outcome=from_plain(Asset, message["done"]))
        else:
            outcome = from_plain(Failed, message["failed"])
            trace = str(message.get("traceback", ""))
            finished = Finished(
                job=job,
                worker=self.pid,
                outcome=outcome,
                traceback=trace,
                was_frugal=self.launch.is_frugal,
            )
        finished = replace(
            finished,
            device=self.launch.device,
            peak_bytes=from_plain(int, message.get("peak_bytes", 0)),
        )
        # Only now: a worker whose answer cannot be read still has the photo, and its death is the answer.
        self.job = None
        return [finished]

    def last_words(self) -> list[Report]:
        """Say what its death means for the photo it had."""
        if self.job is None:
            return []
        if self._was_killed_from_outside():
            return [Killed(job=self.job, stage=self.stage)]
        kind, code, reason = self._cause_of_death()
        if not self._is_open:
            return [NotOpened(job=self.job, kind=kind, reason=f"{reason}; see {self._log}")]
        message = f"{reason} in {self.stage}"
        failed = Failed(path=self.job.path, kind=kind, code=code, message=message, stage=self.stage)
        status = self._process.returncode or 0
        return [
            Finished(
                job=self.job,
                worker=self.pid,
                outcome=failed,
                signal=-status if status < 0 else None,
                was_frugal=self.launch.is_frugal,
                log=self._last_log(),
            )
        ]

    def give_up(self) -> None:
        """End a process that gives no sign of life, after it has written down where it hangs."""
        self._is_overdue = True
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGABRT)  # faulthandler answers, also from native code
        self.wait_for_exit(DUMP_S)
        self.kill()

    def kill(self) -> None:
        """Kill the process and everything it has started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def close_commands(self) -> None:
        """Tell the process that nothing more will come."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def wait_for_exit(self, timeout_s: float) -> None:
        """Give the process time to end by itself."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)

    def dispose(self) -> None:
        """Reap the process and close its pipes; an empty log is no evidence.

        One that not even SIGKILL ends, as under a driver or disk that hangs, is left to the system.
        """
        self.wait_for_exit(FAREWELL_S)
        self.close_commands()
        assert self._process.stdout is not None
        self._process.stdout.close()
        with contextlib.suppress(OSError):
            if self._log.stat().st_size == 0:
                self._log.unlink()

    def _enter(self, stage: str) -> None:
        self.stage = stage
        longest = max(self._deadlines_s.values())
        self.deadline = time.monotonic() + self._deadlines_s.get(stage, longest)

    def _send(self, **message: Any) -> None:
        assert self._process.stdin is not None
        # A worker that died meanwhile is noticed at the other pipe.
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(frame(message))
            self._process.stdin.flush()

    def _was_killed_from_outside(self) -> bool:
        """Whether somebody sent SIGKILL who was neither this process nor, as it counts them, the kernel."""
        is_ours = self._is_overdue or self.complaint
        before, after = self._memory_kills, memory_kills()
        is_known = before is not None and after == before
        return self._process.returncode == -signal.SIGKILL and is_known and not is_ours

    def _last_log(self) -> str:
        """The end of what this process has said; its seat's log holds its predecessors' words as well."""
        with contextlib.suppress(OSError), self._log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - MAX_LOG_BYTES))
            return file.read(MAX_LOG_BYTES).decode("utf-8", "backslashreplace")
        return ""

    def _cause_of_death(self) -> tuple[ErrorClass, str, str]:
        """Class, code and words for how the process ended."""
        status = self._process.returncode or 0
        if self._is_overdue:
            limit_s = self._deadlines_s.get(self.stage, 0)
            return "timeout", "E_TIMEOUT", f"no sign of life for {limit_s:g} s"
        if self.complaint:
            return "crash", "E_PROTOCOL", self.complaint
        if status == -signal.SIGKILL:
            return "oom", "E_KILLED", "the worker was killed, most likely for want of memory"
        if status < 0:
            return "crash", "E_CRASH", f"the worker died with {signal.Signals(-status).name}"
        return "crash", "E_EXIT", f"the worker left with status {status}"


def _spawn(launch: Launch, errors: BinaryIO) -> subprocess.Popen[bytes]:
    """Start a worker process that complains into a file."""
    package = Path(__file__).resolve().parents[2]
    try:
        return subprocess.Popen(
            [sys.executable, "-P", "-c", BOOT, str(package), str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            env={**os.environ, **_thread_limits(launch.threads)},
            # A group of its own: Ctrl-C in the terminal reaches the parent alone, even before a worker
            # can ignore it, and a kill takes a worker's children along.
            process_group=0,
        )
    except OSError as error:
        raise no_process(error) from error


def deadlines(devices: Sequence[str], changes: Mapping[str, float]) -> Mapping[str, float]:
    """Deadline of every stage in seconds, with the caller's changes."""
    table = dict(DEADLINES_CPU_S if devices[0] == "cpu" else DEADLINES_S)
    names = {name.lower(): name for name in table}
    for name, seconds in changes.items():
        if name.lower() not in names:
            raise UsageError(
                f"--timeout {name}: no such stage", code="E_STAGE", remedy=f"stages: {', '.join(names)}"
            )
        table[names[name.lower()]] = seconds
    return table


def _thread_limits(threads: int) -> dict[str, str]:
    """Environment that keeps every numeric library of a worker to its share of the cores.

    Set before the start: most of them read it once, when they are loaded.
    """
    names = ("OMP", "MKL", "OPENBLAS", "NUMEXPR")
    return {f"{name}_NUM_THREADS": str(threads) for name in names}


def _reraised(refusal: Mapping[str, Any]) -> CrmError:
    """The error with which a worker refused to open or to go on, with its own exit code."""
    code = ExitCode(int(refusal["exit_code"]))
    family = {kind.exit_code: kind for kind in (UsageError, OutputError, EnvironmentProblem)}
    kind = family.get(code, EnvironmentProblem)
    return kind(str(refusal["cause"]), code=str(refusal["code"]), remedy=str(refusal["remedy"]))
