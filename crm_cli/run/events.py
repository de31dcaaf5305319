"""What a run says while it works: for the terminal, and as `crm.events/1` for programs.

One JSON object a line. Types and fields are only ever added; whoever reads ignores what it does not know.
"""

from __future__ import annotations

import base64
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, ClassVar, Literal, get_args

from crm_cli.errors import ErrorClass
from crm_cli.records import Grade, Verdict
from crm_cli.run.wire import PathText, field_names, to_plain

SCHEMA = "crm.events/1"

Status = Literal["converted", "cached", "skipped", "failed", "quarantined", "conflict"]

FAILING: tuple[Status, ...] = ("failed", "quarantined", "conflict")
"""Ends of a photo that are no success."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened."""

    type: ClassVar[str]

    def as_json(self) -> str:
        """One line; a path that is not UTF-8 is approximate, and exact in a field of its own."""
        plain: dict[str, Any] = {"schema": SCHEMA, "type": self.type, "t": round(time.time(), 3)}
        kind: Any = type(self)
        for name in field_names(kind):
            value = getattr(self, name)
            if isinstance(value, PurePath):
                plain[name] = _approximate(value)
                if plain[name] != str(value):
                    plain[f"{name}_b64"] = base64.b64encode(os.fsencode(value)).decode("ascii")
            elif isinstance(value, tuple):
                plain[name] = [_approximate(item) for item in value]
                if value and plain[name] != [str(item) for item in value]:
                    plain[f"{name}_b64"] = [
                        base64.b64encode(os.fsencode(item)).decode("ascii") for item in value
                    ]
            else:
                plain[name] = to_plain(value) if isinstance(value, Verdict) else value
        return json.dumps(plain, ensure_ascii=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunStarted(Event):
    """The output folder is ours."""

    type: ClassVar[str] = "run_started"
    run: str
    out: Path | str
    """A URL is text: a path would lose one of its slashes."""
    weights: str = ""
    """Name of the set of weights that is really used."""
    weights_digest: str = ""
    architecture: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan(Event):
    """What will be done with the photos found."""

    type: ClassVar[str] = "plan"
    photos: int
    to_convert: int
    cached: int
    failed_before: int
    conflicts: int
    workers: int
    reasons: Mapping[str, int]
    """How many photos are converted for which reason."""
    weights: str = ""
    weights_digest: str = ""
    skipped: int = 0
    """Photos whose asset somebody else has put in place."""
    quarantined_before: int = 0
    stale: int = 0
    """Of the cached, those that other settings or weights have made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forecast(Event):
    """How long it will take, said before the first photo's work begins, where it is worth saying."""

    type: ClassVar[str] = "forecast"
    photo_s: float
    """Seconds for one photo in one worker."""
    run_s: float
    """Seconds for all that is to be converted."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetPlanned(Event):
    """What will be done with one photo; only a dry run says it one by one."""

    type: ClassVar[str] = "asset_planned"
    path: PurePosixPath
    action: str
    reason: str
    stage: str = ""
    """The first stage that would run; empty where none would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetStarted(Event):
    """A worker has a photo."""

    type: ClassVar[str] = "asset_started"
    path: PurePosixPath
    attempt: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsLoading(Event):
    """The worker that has a photo begins to load large networks, which takes a while."""

    type: ClassVar[str] = "weights_loading"
    path: PurePosixPath
    weights: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageStarted(Event):
    """A photo enters a stage."""

    type: ClassVar[str] = "stage_started"
    path: PurePosixPath
    stage: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProgress(Event):
    """A photo is so far within a long stage; at most once a second for each worker."""

    type: ClassVar[str] = "stage_progress"
    path: PurePosixPath
    stage: str
    done: int
    of: int
    eta_s: float | None
    """Seconds until its steps end, at the pace of the latest; None before the first and after the last."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageFinished(Event):
    """A photo leaves a stage."""

    type: ClassVar[str] = "stage_finished"
    path: PurePosixPath
    stage: str
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFailed(Event):
    """A photo failed and will be tried again."""

    type: ClassVar[str] = "attempt_failed"
    path: PurePosixPath
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AssetFinished(Event):
    """The last word about one photo."""

    type: ClassVar[str] = "asset_finished"
    path: PurePosixPath
    status: Status
    reason: str = ""
    kind: ErrorClass | None = None
    code: str = ""
    outputs: tuple[PurePosixPath | PathText, ...] = ()
    warnings: tuple[str, ...] = ()
    seconds: float = 0.0
    verdict: Verdict | None = None
    """Of the asset that stands now, be it an earlier run's; None where there is none, or nobody judged."""
    seed: int | None = None
    """That the asset was made with; None where this run made none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress(Event):
    """How far the run is; at most once a second."""

    type: ClassVar[str] = "progress"
    done: int
    total: int
    failed: int
    rate: float
    """Photos converted in an hour, in this run so far."""
    eta_s: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned(Event):
    """Something a person should know that concerns no single asset."""

    type: ClassVar[str] = "warning"
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFinished(Event):
    """The end; the exit code says what the caller may do next."""

    type: ClassVar[str] = "run_finished"
    exit_code: int
    counts: Mapping[str, int]
    failures: Mapping[str, int]
    """Failed photos by class."""
    seconds: float
    left: int = 0
    """Photos found that nothing was decided about, since the run ended before."""
    report: Path | str | None = None
    weights: str = ""
    weights_digest: str = ""
    verdicts: Mapping[Grade, int] = field(default_factory=dict)
    """How many of the assets that stand got which verdict."""
    peak_bytes: Mapping[str, int] = field(default_factory=dict)
    """The most memory that one worker has held, by the kind of device it worked on: cpu, cuda."""


def weights_label(name: str, digest: str) -> str:
    """How people are told which weights were used: a name can be given twice, bytes cannot."""
    return f"{name} ({digest[:12]})"


def verdicts_label(verdicts: Mapping[Any, int]) -> str:
    """How people are told of verdicts, the best first: `12 pass, 3 review`."""
    return ", ".join(f"{verdicts[grade]} {grade}" for grade in get_args(Grade) if verdicts.get(grade))


def duration(seconds: float) -> str:
    """A time as people read it."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def _approximate(value: Any) -> Any:
    """A path or text as valid Unicode."""
    if not isinstance(value, str | PurePath):
        return value
    text = str(value)
    return text if text.isascii() else os.fsencode(text).decode("utf-8", "replace")
