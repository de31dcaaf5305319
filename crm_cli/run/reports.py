"""What workers report of photos, as the conveyor passes it on."""

from __future__ import annotations

from dataclasses import dataclass

from crm_cli.errors import ErrorClass
from crm_cli.records import Asset, Failed, Job


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
