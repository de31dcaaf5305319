"""The processes of a run, as their parent sees them: workers, and the lanes of accelerators."""

from __future__ import annotations

import contextlib
import math
import os
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from crm_cli.records import Asset, Failed, Job
from crm_cli.run.machine import no_process
from crm_cli.run.process import Child, refusal
from crm_cli.run.reports import Finished, Killed, NotOpened, Opened, Report, Staged, Stepped
from crm_cli.run.wire import frame, from_plain
from crm_cli.run.worker import NO_LANE, Launch
from crm_cli.toolbox import RASTERISER

OPENING = "opening"
"""What a worker does before its first photo: loads libraries and weights."""

START = "start"
"""Where a photo is that a worker has but did not begin."""

QUIET_S = 60.0
"""How long a lane that is at nobody's work may leave a request alone."""


class LaneProcess(Child):
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

    def watch(self, workers: Sequence[WorkerProcess]) -> None:
        """Look whether somebody waits for nothing: a lane at nobody's work has no reason not to begin.

        workers: its own. The deadline of a photo counts where the lane is at it; one that is still at the
        work of a worker that has died has a deadline here.
        """
        if not self.is_open:
            return
        is_at_work = any(worker.number == self.serving for worker in workers)
        if is_at_work or not any(worker.is_asking or worker.is_served for worker in workers):
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


class WorkerProcess(Child):
    """One worker process as the parent sees it."""

    def __init__(
        self,
        launch: Launch,
        *,
        number: int,
        lane: LaneProcess | None,
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
        self.is_served = False
        """Whether that has begun, and is not back."""
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

    @property
    def stands_aside(self) -> bool:
        """Whether its lane does something short for another before it goes on with what this one asked."""
        return self.is_served and self.lane is not None and self.lane.serving not in (None, self.number)

    def go_on(self) -> None:
        """Start its deadline again: its lane is back at its work."""
        if self.is_served:
            self._enter(self.stage)

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
            self.is_asking, self.is_served = message["lane"] == "asked", message["lane"] == "begun"
            if self.is_asking:
                # It waits for others' photos, whose own deadlines count.
                self.deadline = math.inf
            return []
        finished = self._finished(job, message)
        # Only now: a worker whose answer cannot be read still has the photo, and its death is the answer.
        self.job = None
        self.is_asking = self.is_served = False
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

    def words_of(self, lane: LaneProcess) -> Report:
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
