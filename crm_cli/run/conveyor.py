"""The local engine: a pool of worker processes, one photo in each, a deadline for every stage.

A pool of our own, since the standard one fails every photo in flight when one worker dies, without saying
which photo did it. Here a death belongs to exactly one photo.

An accelerator's networks are in a process of its own, its lane, which all workers of the device ask. Where
that one dies, hangs or is spoilt, the photo it worked for has done it; its other workers go with it, and
their photos are no worse for it.
"""

from __future__ import annotations

import math
import os
import selectors
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from crm_cli.errors import UsageError
from crm_cli.records import Job
from crm_cli.run.crew import OPENING, START, LaneProcess, WorkerProcess
from crm_cli.run.process import FAREWELL_S, Child
from crm_cli.run.reports import Displaced, Finished, Report
from crm_cli.run.worker import Launch

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
        self._seats: list[WorkerProcess | None] = [None] * workers
        self._lanes: dict[str, LaneProcess] = {}
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
        for child in sorted(ready, key=lambda child: isinstance(child, LaneProcess)):
            if isinstance(child, LaneProcess):
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

    def _workers(self) -> list[WorkerProcess]:
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

    def _start(self, *, on_cpu: bool) -> tuple[WorkerProcess, bool]:
        """Start a worker on the first empty seat, and its lane; whether either of them loads networks."""
        seat = self._seats.index(None)
        launch = self._launch_on(seat, on_cpu=on_cpu)
        lane, is_new = self._lane(launch) if launch.desk else (None, True)
        self._started += 1
        worker = WorkerProcess(
            launch,
            number=self._started,
            lane=lane,
            log=self._logs / f"worker-{seat + 1}.log",
            deadlines_s=self._spare.deadlines_s if on_cpu else self._deadlines_s,
        )
        self._seats[seat] = worker
        self._selector.register(worker.reports, selectors.EVENT_READ, worker)
        return worker, is_new

    def _lane(self, launch: Launch) -> tuple[LaneProcess, bool]:
        """The lane of a device, and whether it had to be started."""
        lane = self._lanes.get(launch.device)
        if lane is not None:
            return lane, False
        log = self._logs / f"lane-{launch.device.replace(':', '-')}.log"
        lane = LaneProcess(launch, log=log, opening_s=self._deadlines_s[OPENING])
        self._lanes[launch.device] = lane
        self._selector.register(lane.reports, selectors.EVENT_READ, lane)
        return lane, True

    def _read(self, worker: WorkerProcess) -> list[Report]:
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

    def _read_lane(self, lane: LaneProcess) -> list[Report]:
        """Take in what a lane has sent; what it does for workers, they tell themselves."""
        if lane not in self._lanes.values():
            return []  # dropped a moment ago
        try:
            data = os.read(lane.reports, 1 << 16)
            for message in lane.unframer.feed(data):
                lane.hear(message)
                if "ready" in message:
                    self._begin_at(lane)
                for worker in self._workers():
                    if worker.lane is lane and worker.number == lane.serving:
                        worker.go_on()
        except (ValueError, KeyError) as error:
            lane.complaint = f"unreadable answer ({error})"
            lane.kill()
        else:
            if data:
                return []
        return self._bury_lane(lane)

    def _begin_at(self, lane: LaneProcess) -> None:
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
            if worker.stands_aside:
                continue  # what it stands aside for has a deadline of its own
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

    def _bury(self, worker: WorkerProcess) -> list[Report]:
        """Remove a dead worker and say which photo it took along."""
        worker.wait_for_exit(FAREWELL_S)
        self._remove(worker)
        return worker.last_words()

    def _bury_lane(self, lane: LaneProcess) -> list[Report]:
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

    def _drop(self, lane: LaneProcess, *, told: Sequence[WorkerProcess] = ()) -> list[Report]:
        """Remove a lane with its workers, and give back their photos, but for those told of already."""
        displaced: list[Report] = []
        for worker in [one for one in self._workers() if one.lane is lane]:
            if worker.job is not None and worker not in told:
                displaced.append(Displaced(job=worker.job))
            self._remove(worker)
        del self._lanes[lane.launch.device]
        self._end(lane)
        return displaced

    def _remove(self, worker: WorkerProcess) -> None:
        """Kill a worker with all its children, and free its seat."""
        self._end(worker)
        self._seats[self._seats.index(worker)] = None

    def _end(self, child: Child) -> None:
        self._selector.unregister(child.reports)
        child.kill()
        child.dispose()


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
