"""One worker process: opens the line of stations once, then converts one photo after another.

A photo that crashes or hangs a native library costs this process and nothing else. The parent speaks to it
over stdin and a private copy of stdout, in length-prefixed JSON:

    parent → worker   {"open": Launch}, then {"job": Job} for each photo; end of file means: leave
    worker → parent   {"ready": true, "forecast_s": seconds or null} once; then for each photo {"stage": name}
                      as often as it enters one, {"step": [done, of]} at most once a second, {"lane": where}
                      as what it asked an accelerator's lane is "asked", "begun" and "answered", and
                      {"done": Asset} or {"failed": Failed}, either with "peak_bytes", the most memory it
                      has held so far; at any time {"refused": …}, its last word

Where its accelerator has a lane, a worker inherits its end of a pair of sockets to it; see `crm_cli.lane`.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import faulthandler
import importlib
import math
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from crm_cli.errors import CrmError, ErrorClass, PhotoError, told
from crm_cli.names import display_name
from crm_cli.preset import Preset
from crm_cli.records import Asset, Failed, Job
from crm_cli.run.wire import Unframer, frame, from_plain
from crm_cli.toolbox import peak_memory

if TYPE_CHECKING:
    from crm_cli.lane import Lane

PIPELINE = "crm_cli.pipeline:Line"
"""What converts photos, as `module:class`."""

DESK = "crm_cli.pipeline:Desk"
"""What the lane of an accelerator opens."""

NO_LANE = -1
"""Stands for the descriptor of a worker's line to its lane, where it has none."""

FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG})
"""Errors of a disk, or of a limit on files, that takes no more of what we write."""

NO_SPACE = "E_NO_SPACE"
"""Code of a failure that the next photo would meet as well, since it has the same disk to write to."""

STEP_PAUSE_S = 1.0
"""How long a worker keeps steps to itself after it has told one: small networks take many a second."""

PR_SET_PDEATHSIG = 1


class Line(Protocol):
    """The stations that turn one photo into an asset, opened and ready."""

    @classmethod
    def open(
        cls,
        preset: Preset,
        *,
        device: str,
        threads: int,
        precision: str,
        sharers: int,
        is_frugal: bool,
        lane: Lane | None,
    ) -> Line:
        """Load what the stations need."""

    def forecast_s(self) -> float | None:
        """Seconds that a photo will take, where that is worth saying before the first one starts."""

    def convert(
        self, job: Job, report_stage: Callable[[str], None], report_step: Callable[[int, int], None]
    ) -> Asset:
        """Write the photo's files into the job's scratch folder.

        report_stage: told the name of each stage before it starts. report_step: told, within a long stage,
        how many steps are done, of how many.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a worker is told once."""

    preset: Preset
    device: str
    threads: int
    precision: str = "auto"
    sharers: int = 1
    """How many workers share the memory of the CPU."""
    is_frugal: bool = False
    """Whether memory has run out before, and less of it should do."""
    line: str = PIPELINE
    """Never taken from a preset: a preset can name no code."""
    desk: str = ""
    """What the lane of the device opens; empty where workers have the device themselves."""


def main() -> None:
    """Serve until the parent closes the pipe."""
    *_, line_to_lane, parent = sys.argv
    commands, reports = settle(int(parent))
    serve(commands, reports, line_to_lane=int(line_to_lane))


def settle(parent: int) -> tuple[BinaryIO, BinaryIO]:
    """Become a child that lives as long as its parent; the pipes to it."""
    _die_with(parent)
    # The parent decides what an interrupt means; a worker finishes its photo, or is killed.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    faulthandler.enable()
    return _claim_pipes()


def serve(commands: BinaryIO, reports: BinaryIO, *, line_to_lane: int = NO_LANE) -> None:
    """Answer every message until the end of the stream."""

    def send(**message: Any) -> None:
        reports.write(frame(message))
        reports.flush()

    line: Line | None = None
    device = "cpu"
    for message in _messages(commands):
        if line is None:
            launch = from_plain(Launch, message["open"])
            device = launch.device
            try:
                line = open_line(launch, _lane(line_to_lane, lambda where: send(lane=where)))
            except CrmError as error:
                send(refused=told(error))
                return
            send(ready=True, forecast_s=line.forecast_s())
        else:
            answer = convert_one(
                line,
                from_plain(Job, message["job"]),
                lambda name: send(stage=name),
                seldom(lambda done, of: send(step=[done, of])),
            )
            send(**answer, peak_bytes=peak_memory(device))
            if "refused" in answer:
                return


def _lane(descriptor: int, tell: Callable[[str], None]) -> Lane | None:
    """The line to the lane of its device, where there is one."""
    if descriptor == NO_LANE:
        return None
    from multiprocessing.connection import Connection

    from crm_cli.lane import Lane

    return Lane(Connection(descriptor), tell)


def named(path: str) -> Any:
    """What a `module:class` names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def open_line(launch: Launch, lane: Lane | None) -> Line:
    """Import the pipeline and open it."""
    factory: type[Line] = named(launch.line)
    return factory.open(
        launch.preset,
        device=launch.device,
        threads=launch.threads,
        precision=launch.precision,
        sharers=launch.sharers,
        is_frugal=launch.is_frugal,
        lane=lane,
    )


def seldom(report: Callable[[int, int], None]) -> Callable[[int, int], None]:
    """Pass on the first report of steps, and then at most one in STEP_PAUSE_S."""
    told_at = -math.inf

    def hear(done: int, of: int) -> None:
        nonlocal told_at
        now = time.monotonic()
        if now - told_at >= STEP_PAUSE_S:
            told_at = now
            report(done, of)

    return hear


def convert_one(
    line: Line, job: Job, report_stage: Callable[[str], None], report_step: Callable[[int, int], None]
) -> dict[str, Any]:
    """Convert one photo; whatever goes wrong becomes a value, with its traceback where it is a surprise.

    An expected error that is no PhotoError is the machine's: the next photo would meet it as well.
    """
    stage = "start"

    def enter(name: str) -> None:
        nonlocal stage
        stage = name
        report_stage(name)

    try:
        asset = line.convert(job, enter, report_step)
        frame(asset)  # what cannot be told, such as a number that is none, is a failure of this photo
        return {"done": asset}
    except PhotoError as error:
        return {"failed": Failed.from_error(job.path, error, stage=stage)}
    except CrmError as error:
        return {"refused": told(error)}
    # The one place that catches everything: no list of what can go wrong in a library is ever complete.
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:
            return {"failed": Failed.from_error(job.path, _too_long(job), stage=stage)}
        surprise = Surprise.of(error)
        failed = Failed(
            path=job.path, kind=surprise.kind, code=surprise.code, message=surprise.words, stage=stage
        )
        return {"failed": failed, "traceback": surprise.trace, "is_lanes": surprise.is_lanes}


@dataclass(frozen=True, slots=True, kw_only=True)
class Surprise:
    """An exception that nobody expected."""

    kind: ErrorClass
    code: str
    words: str
    trace: str
    is_lanes: bool = False
    """Whether it was raised in the lane of the device, whose state is unknown since."""

    @classmethod
    def of(cls, error: Exception) -> Surprise:
        """Describe the exception that is being handled."""
        # The lane's module is heavy, and whoever never imported it has no failure of it.
        lane = sys.modules.get("crm_cli.lane")
        if lane is not None and isinstance(error, lane.LaneFailure):
            return cls(kind=error.kind, code=error.code, words=str(error), trace=error.trace, is_lanes=True)
        kind, code = _classify(error)
        words = f"{type(error).__name__}: {error}"[:2000]
        return cls(kind=kind, code=code, words=words, trace=traceback.format_exc())


def _too_long(job: Job) -> PhotoError:
    """Say that an asset is called after its photo, with more behind it."""
    return PhotoError(
        f"{display_name(job.path)}: the names of its files would be longer than the disk allows",
        code="E_NAME_TOO_LONG",
        remedy="give the photo a shorter name",
    )


def _classify(error: Exception) -> tuple[ErrorClass, str]:
    """Class and code of an unexpected exception."""
    if isinstance(error, OSError) and error.errno in FULL:
        return "io", NO_SPACE
    # torch's class is compared by name: importing torch to compare would defeat a light worker.
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or "can't allocate memory" in str(error):
        return "oom", "E_MEMORY"
    return "internal", "E_INTERNAL"


def _messages(stream: BinaryIO) -> Iterator[dict[str, Any]]:
    """Yield messages until the parent closes the pipe."""
    unframer = Unframer()
    while data := os.read(stream.fileno(), 1 << 16):
        yield from unframer.feed(data)


def _claim_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Take stdin and stdout for the protocol, and point their numbers elsewhere.

    A library that prints, or a child of ours that inherits them, can then neither corrupt nor hold the pipes.
    """
    commands, reports = os.fdopen(os.dup(0), "rb", buffering=0), os.fdopen(os.dup(1), "wb")
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    return commands, reports


def _die_with(parent: int) -> None:
    """Ask the kernel to kill this process when its parent dies, and check that it has not died already."""
    with contextlib.suppress(OSError, AttributeError):  # elsewhere than on Linux, end of file has to do
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
