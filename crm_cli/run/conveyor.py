"""The local engine: a pool of worker processes, one photo in each, a deadline for every stage.

A pool of our own, since the standard one fails every photo in flight when one worker dies, without saying
which photo did it. Here a death belongs to exactly one photo.

An accelerator's networks are in a process of its own, its lane, which all workers of the device ask. Where
that one dies, hangs or is spoilt, the photo it worked for has done it; its other workers go with it, and
their photos are no worse for it.
"""

from __future__ import annotations

import contextlib
import math
import os
import selectors
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crm_cli.errors import ErrorClass, UsageError
from crm_cli.records import Asset, Failed, Job
from crm_cli.run.machine import no_process
from crm_cli.run.process import FAREWELL_S, Child, refusal
from crm_cli.run.wire import frame, from_plain
from crm_cli.run.worker import NO_LANE, Launch
from crm_cli.toolbox import RASTERISER

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

QUIET_S = 60.0
"""How long a lane that is at nobody's work may leave a request alone."""


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
    is_lanes: bool = False
    """Whether it was a surprise in its lane: memory that lacked was the accelerator's, not the machine's."""
    was_frugal: bool = False
    """Whether its lane kept less in memory already."""
    device: str = "cpu"
    peak_bytes: int = 0
    """The most of the device's memory that the worker has held so far; 0 where it has not told."""
    log: str = ""
    """The end of what a worker said before it died: its complaints, and where its threads were."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Killed:
    """A worker is gone, and the photo is not to blame.

    Somebody killed it, or its lane, and not for want of memory; or its lane ended at nobody's work.
    """

    job: Job
    stage: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Displaced:
    """A worker had to go with the lane of its device: the photo has nothing to do with it."""

    job: Job


@dataclass(frozen=True, slots=True, kw_only=True)
class NotOpened:
    """A worker died before it could start the photo, which is not to blame."""

    job: Job
    kind: ErrorClass
    reason: str


Report = Opened | Staged | Stepped | Finished | Killed | Displaced | NotOpened


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
        self._lanes: dict[str, _Lane] = {}
        self._room = workers
        self._is_frugal = False
        self._started = 0
        self._untold: list[Report] = []

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

    def submit(self, job: Job, *, on_cpu: bool = False) -> bool:
        """Give a photo to an idle worker, or to a new one; returns whether networks are loaded for it.

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
        worker, loads = self._start(on_cpu=on_cpu)
        worker.take(job)
        return loads

    def economize(self) -> str | None:
        """Need less of accelerators' memory from now on; says how, or None where nothing is left to save.

        One network is on each at a time, and asked for fewer points at once. Photos that are on their way
        begin again.
        """
        if self._devices[0] == "cpu" or self._is_frugal:
            return None
        self._is_frugal = True
        for lane in list(self._lanes.values()):
            self._untold += self._drop(lane)
        return "one network at a time, in smaller pieces"

    def make_fewer(self) -> str | None:
        """Make half as many photos at the same time from now on; says how, or None where it is one already.

        Workers that are busy are not disturbed.
        """
        if self._room == 1:
            return None
        self._room //= 2
        self._dismiss_surplus()
        return f"{self._room} at a time"

    def renew(self, pid: int) -> None:
        """Replace an idle worker, and the lane it asks: what they answer may be their own fault."""
        for worker in self._workers():
            if worker.pid == pid and worker.job is None:
                if worker.lane is None:
                    self._remove(worker)
                else:
                    self._untold += self._drop(worker.lane)

    def wait(self, timeout_s: float) -> list[Report]:
        """Collect what happened, waiting for at most the given time."""
        now = time.monotonic()
        ends = [worker.deadline for worker in self._workers() if worker.job]
        ends += [lane.deadline for lane in self._lanes.values()]
        left_s = 0.0 if self._untold else min(timeout_s, min(ends, default=math.inf) - now)
        ready = [key.data for key, _ in self._selector.select(max(0.0, left_s))]
        reports, self._untold = self._untold, []
        # Lanes last: what a worker has said before its lane went is known before it goes as well.
        for child in sorted(ready, key=lambda child: isinstance(child, _Lane)):
            if isinstance(child, _Lane):
                reports += self._read_lane(child)
            elif child in self._seats:
                reports += self._read(child)
        return reports + self._end_overdue()

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
        for lane in list(self._lanes.values()):
            self._drop(lane)
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
            return replace(self._launch, device="cpu", desk="", threads=self._spare.threads)
        device = self._devices[seat % len(self._devices)]
        sharers = self._room if device == "cpu" else 1
        return replace(self._launch, device=device, is_frugal=self._is_frugal, sharers=sharers)

    def _start(self, *, on_cpu: bool) -> tuple[_Worker, bool]:
        """Start a worker on the first empty seat, and its lane; whether either of them loads networks."""
        seat = self._seats.index(None)
        launch = self._launch_on(seat, on_cpu=on_cpu)
        lane, is_new = self._lane(launch) if launch.desk else (None, True)
        self._started += 1
        worker = _Worker(
            launch,
            number=self._started,
            lane=lane,
            log=self._logs / f"worker-{seat + 1}.log",
            deadlines_s=self._spare.deadlines_s if on_cpu else self._deadlines_s,
        )
        self._seats[seat] = worker
        self._selector.register(worker.reports, selectors.EVENT_READ, worker)
        return worker, is_new

    def _lane(self, launch: Launch) -> tuple[_Lane, bool]:
        """The lane of a device, and whether it had to be started."""
        lane = self._lanes.get(launch.device)
        if lane is not None:
            return lane, False
        log = self._logs / f"lane-{launch.device.replace(':', '-')}.log"
        lane = _Lane(launch, log=log, opening_s=self._deadlines_s[OPENING])
        self._lanes[launch.device] = lane
        self._selector.register(lane.reports, selectors.EVENT_READ, lane)
        return lane, True

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
        if worker.lane is not None and any(
            isinstance(report, Finished) and report.is_lanes for report in reports
        ):
            return reports + self._drop(worker.lane)
        if any(isinstance(report, Finished) and report.traceback for report in reports):
            # After a surprise its state is unknown: the next photo gets another.
            self._remove(worker)
        return reports

    def _read_lane(self, lane: _Lane) -> list[Report]:
        """Take in what a lane has sent; what it does for workers, they tell themselves."""
        if lane not in self._lanes.values():
            return []  # dropped a moment ago
        try:
            data = os.read(lane.reports, 1 << 16)
            for message in lane.unframer.feed(data):
                lane.hear(message)
                if "ready" in message:
                    self._begin_at(lane)
        except (ValueError, KeyError) as error:
            lane.complaint = f"unreadable answer ({error})"
            lane.kill()
        else:
            if data:
                return []
        return self._bury_lane(lane)

    def _begin_at(self, lane: _Lane) -> None:
        """Start the photos that have waited for a lane to open."""
        for worker in self._workers():
            if worker.lane is lane:
                worker.begin()

    def _end_overdue(self) -> list[Report]:
        """Give up whatever has not shown a sign of life for too long."""
        reports: list[Report] = []
        for worker in self._workers():
            # One that has gone with its lane, a moment ago, is told of already.
            if worker not in self._seats or not worker.job or time.monotonic() < worker.deadline:
                continue
            if worker.lane is not None and worker.lane.serving == worker.number:
                worker.lane.give_up()
                reports += self._bury_lane(worker.lane)
            else:
                worker.give_up()
                reports += self._bury(worker)
        for lane in list(self._lanes.values()):
            lane.watch([worker for worker in self._workers() if worker.lane is lane])
            if time.monotonic() >= lane.deadline:
                lane.give_up()
                reports += self._bury_lane(lane)
        return reports

    def _bury(self, worker: _Worker) -> list[Report]:
        """Remove a dead worker and say which photo it took along."""
        worker.wait_for_exit(FAREWELL_S)
        self._remove(worker)
        return worker.last_words()

    def _bury_lane(self, lane: _Lane) -> list[Report]:
        """Remove a dead lane with its workers, and say which photo has to do with it.

        It is the one that the lane was at, and none where that one's worker has died before. Where the lane
        was at nobody's work, one of its photos stands for all, so that a lane that always dies comes to an
        end.
        """
        lane.wait_for_exit(FAREWELL_S)
        busy = [worker for worker in self._workers() if worker.lane is lane and worker.job is not None]
        if lane.serving is None:
            blamed = sorted(busy, key=lambda worker: not worker.is_asking)[:1]
        else:
            blamed = [worker for worker in busy if worker.number == lane.serving]
        reports = [worker.words_of(lane) for worker in blamed]
        return reports + self._drop(lane, told=blamed)

    def _drop(self, lane: _Lane, *, told: Sequence[_Worker] = ()) -> list[Report]:
        """Remove a lane with its workers, and give back their photos, but for those told of already."""
        displaced: list[Report] = []
        for worker in [one for one in self._workers() if one.lane is lane]:
            if worker.job is not None and worker not in told:
                displaced.append(Displaced(job=worker.job))
            self._remove(worker)
        del self._lanes[lane.launch.device]
        self._end(lane)
        return displaced

    def _remove(self, worker: _Worker) -> None:
        """Kill a worker with all its children, and free its seat."""
        self._end(worker)
        self._seats[self._seats.index(worker)] = None

    def _end(self, child: Child) -> None:
        self._selector.unregister(child.reports)
        child.kill()
        child.dispose()


class _Lane(Child):
    """The process that has an accelerator's networks, as the parent sees it; see `run.lane`."""

    def __init__(self, launch: Launch, *, log: Path, opening_s: float) -> None:
        self.launch = launch
        self._control, end = _joined()
        with end:
            super().__init__("lane", stdin=end, threads=launch.threads, log=log)
        self._opening_s = opening_s
        self.deadline = time.monotonic() + opening_s
        self.is_open = False
        self.serving: int | None = None
        """The number of the worker for whom it is at work."""
        self.peak_bytes = 0
        self._send({"open": launch})

    def admit(self, number: int) -> socket.socket:
        """Let a worker ask; returns its end of the line, which it is to inherit."""
        ours, theirs = _joined()
        with ours:
            self._send({"worker": number}, ours.fileno())
        return theirs

    def hear(self, message: Mapping[str, Any]) -> None:
        """Understand one message."""
        error = refusal(message)
        if error is not None:
            raise error
        if "ready" in message:
            self.is_open = True
        elif "begun" in message:
            self.serving = from_plain(int, message["begun"])
            self.begin_work()
        else:
            self.peak_bytes = from_plain(int, message["peak_bytes"])
            self.serving = None
        self.deadline = math.inf

    def watch(self, workers: Sequence[_Worker]) -> None:
        """Look whether somebody waits for nothing: a lane at nobody's work has no reason not to begin.

        workers: its own. The deadline of a photo counts where the lane is at it; one that is still at the
        work of a worker that has died has a deadline here.
        """
        if not self.is_open:
            return
        is_at_work = any(worker.number == self.serving for worker in workers)
        if is_at_work or not any(worker.is_asking for worker in workers):
            self.deadline = math.inf
        elif self.deadline == math.inf:
            self.deadline = time.monotonic() + QUIET_S

    def dispose(self) -> None:
        """Reap the process and close what leads to it."""
        self._control.close()
        super().dispose()

    @property
    def limit_s(self) -> float:
        """How long it could leave without a sign of life, where nobody else's limit counts."""
        return QUIET_S if self.is_open else self._opening_s

    def _send(self, message: Mapping[str, Any], *descriptors: int) -> None:
        # One that died meanwhile is noticed at its reports.
        with contextlib.suppress(OSError):
            socket.send_fds(self._control, [frame(message)], descriptors)


class _Worker(Child):
    """One worker process as the parent sees it."""

    def __init__(
        self,
        launch: Launch,
        *,
        number: int,
        lane: _Lane | None,
        log: Path,
        deadlines_s: Mapping[str, float],
    ) -> None:
        self.launch = launch
        self.number = number
        self.lane = lane
        self._deadlines_s = deadlines_s
        with contextlib.ExitStack() as ends:
            line = [ends.enter_context(lane.admit(number)).fileno()] if lane else []
            super().__init__(
                "worker",
                *(str(descriptor) for descriptor in line or [NO_LANE]),
                stdin=subprocess.PIPE,
                threads=launch.threads,
                log=log,
                inherits=line,
                # A rasteriser that somebody asks for by name may need one.
                sees_accelerators=lane is None or RASTERISER in os.environ,
            )
        self.job: Job | None = None
        self.stage = OPENING
        self.is_asking = False
        """Whether what it asked its lane has yet to begin."""
        self._is_open = False
        self.deadline = time.monotonic() + deadlines_s[OPENING]
        self._send(open=launch)

    def take(self, job: Job) -> None:
        """Hand a photo over; it is started when the worker is ready, and its lane."""
        self.job = job
        self.begin()

    def begin(self) -> None:
        """Start the photo that it has, if it is ready and its lane is.

        Not before: a photo that has entered a stage speaks for the machine, and what never opens must not
        look like one that works.
        """
        if self.job is None:
            return
        self.begin_work()
        if not self._is_open:
            return
        if self.lane is not None and not self.lane.is_open:
            self.deadline = math.inf  # the lane's own counts
            return
        self._enter(START)
        self._send(job=self.job)

    def hear(self, message: Mapping[str, Any]) -> list[Report]:
        """Understand one message."""
        job = self.job
        error = refusal(message)
        if error is not None:
            raise error
        if "ready" in message:
            forecast_s = from_plain(float | None, message.get("forecast_s"))  # type: ignore[arg-type]
            self._is_open = True
            self.begin()
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
        if "lane" in message:
            self._enter(self.stage)
            self.is_asking = message["lane"] == "asked"
            if self.is_asking:
                # It waits for others' photos, whose own deadlines count.
                self.deadline = math.inf
            return []
        finished = self._finished(job, message)
        # Only now: a worker whose answer cannot be read still has the photo, and its death is the answer.
        self.job = None
        return [finished]

    def _finished(self, job: Job, message: Mapping[str, Any]) -> Finished:
        if "done" in message:
            finished = Finished(job=job, worker=self.pid, outcome=from_plain(Asset, message["done"]))
        else:
            finished = Finished(
                job=job,
                worker=self.pid,
                outcome=from_plain(Failed, message["failed"]),
                traceback=str(message.get("traceback", "")),
                is_lanes=from_plain(bool, message.get("is_lanes", False)),
                was_frugal=self.launch.is_frugal,
            )
        peak_bytes = from_plain(int, message.get("peak_bytes", 0))
        return replace(
            finished,
            device=self.launch.device,
            peak_bytes=peak_bytes if self.lane is None else self.lane.peak_bytes,
        )

    def last_words(self) -> list[Report]:
        """Say what its death means for the photo it had."""
        if self.job is None:
            return []
        return [self._words("worker", self, is_open=self._is_open, limit_s=self._limit_s)]

    def words_of(self, lane: _Lane) -> Report:
        """Say what the death of its lane means for its photo."""
        assert self.job is not None
        who, is_at_fault = f"lane of {lane.launch.device}", lane.serving == self.number
        if lane.is_open and not is_at_fault and not lane.was_killed_from_outside():
            reason = lane.death(who, limit_s=lane.limit_s).reason
            return Killed(job=self.job, stage=self.stage, reason=f"{reason} at nobody's work; see {lane.log}")
        limit_s = self._limit_s if is_at_fault else lane.limit_s
        return self._words(who, lane, is_open=lane.is_open, limit_s=limit_s)

    def _words(self, who: str, child: Child, *, is_open: bool, limit_s: float) -> Report:
        """Say what a child's death means for the photo of this worker."""
        assert self.job is not None
        if child.was_killed_from_outside():
            reason = f"the {who} was killed in {self.stage}, from outside"
            return Killed(job=self.job, stage=self.stage, reason=reason)
        kind, code, reason = child.death(who, limit_s=limit_s)
        if not is_open:
            return NotOpened(job=self.job, kind=kind, reason=f"{reason}; see {child.log}")
        failed = Failed(
            path=self.job.path, kind=kind, code=code, message=f"{reason} in {self.stage}", stage=self.stage
        )
        return Finished(
            job=self.job,
            worker=self.pid,
            outcome=failed,
            signal=child.signal,
            was_frugal=self.launch.is_frugal,
            log=child.last_log(),
        )

    def close_commands(self) -> None:
        """Tell the process that nothing more will come."""
        with contextlib.suppress(OSError):
            self.stdin.close()

    @property
    def _limit_s(self) -> float:
        """How long it may go without a sign of life in its stage."""
        return self._deadlines_s.get(self.stage, max(self._deadlines_s.values()))

    def _enter(self, stage: str) -> None:
        self.stage = stage
        self.deadline = time.monotonic() + self._limit_s

    def _send(self, **message: Any) -> None:
        # A worker that died meanwhile is noticed at the other pipe.
        with contextlib.suppress(BrokenPipeError):
            self.stdin.write(frame(message))
            self.stdin.flush()


def _joined() -> tuple[socket.socket, socket.socket]:
    """Both ends of a line to a process; EnvironmentProblem where the system gives us none."""
    try:
        return socket.socketpair()
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
