"""What failures mean: another try for a photo, or the end of the whole run.

    input, conflict, quality    one try: another would end the same
    internal, timeout, io       a second try, in a fresh worker where the first was a surprise
    oom                         up to three tries, each with less at a time: see conveyor.py
    crash                       three tries, then quarantine: see quarantine.py

A worker that somebody kills from outside, and a run that dies, are no failures of any photo.
"""

from __future__ import annotations

import math
import signal
import time
from collections import Counter
from collections.abc import Mapping
from typing import Literal

from crm_cli.errors import ErrorClass, ExitCode
from crm_cli.records import Failed
from crm_cli.run.amounts import Share
from crm_cli.run.options import RunOptions, Stop

TRIES: Mapping[ErrorClass, int] = {"internal": 2, "timeout": 2, "io": 2, "oom": 3, "crash": 3}
"""How often a photo is tried in one run, by the class of its latest failure; other classes once."""

MAX_KILLS = 5
"""Kills from outside that one photo is forgiven in a run; after so many they have to do with it."""

MAX_INTERRUPTIONS = 5
"""Runs that died with a photo at work; after so many it waits until nothing else is left, and runs alone."""

OWN_FAULT: frozenset[ErrorClass] = frozenset({"input", "conflict"})
"""What a photo or its place is to blame for: a folder full of it says nothing about the machine."""

ROW = 10
"""Photos that fail one after the other trip the breaker: ten thousand would go the same way."""

FIRST, FIRST_SHARE = 20, 0.9
"""So does the same failure of nearly all of the first photos, be there a success among them."""

SUSPECT_ROW = 3
"""After so many failures in a row a worker that is still the same may be to blame, and is replaced."""


def may_try_again(failed: Failed) -> bool:
    """Whether a fresh try may end otherwise."""
    return failed.attempts < TRIES.get(failed.kind, 1)


class Breaker:
    """Notices that the machine fails, not the photos.

    A dead driver would otherwise mark every photo of a night as failed.
    """

    def __init__(self) -> None:
        self._row: list[tuple[ErrorClass, int]] = []
        self._first: list[ErrorClass | None] = []
        self.reason: str | None = None
        """Why the run should stop; None as long as it should not."""

    def note(self, kind: ErrorClass | None, *, worker: int) -> None:
        """Count how a photo ended for good. kind: None where it became an asset; worker: the last to try."""
        if kind in OWN_FAULT:
            return
        if len(self._first) < FIRST:
            self._first.append(kind)
        if kind is None:
            self._row.clear()
        else:
            self._row.append((kind, worker))
        self.reason = self.reason or self._reason()

    def is_suspect(self, worker: int) -> bool:
        """Whether the latest photos in a row have all failed in this one worker process."""
        return [pid for _, pid in self._row[-SUSPECT_ROW:]] == [worker] * SUSPECT_ROW

    def _reason(self) -> str | None:
        if len(self._row) >= ROW and len({worker for _, worker in self._row}) > 1:
            kinds = Counter(kind for kind, _ in self._row)
            told = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
            return f"{len(self._row)} photos in a row have failed ({told})"
        if len(self._first) == FIRST:
            [(kind, count)] = Counter(self._first).most_common(1)
            if kind is not None and count >= FIRST_SHARE * FIRST:
                return f"{count} of the first {FIRST} photos have failed alike ({kind})"
        return None


Why = Literal["signal", "failures", "breaker", "time"]


class Ending:
    """Whether a run ends before its work is done, why, and how long it waits for what is running."""

    def __init__(self, options: RunOptions, stop: Stop, *, photos: int, since: float) -> None:
        """photos: that were asked for. since: time.monotonic() when the run was asked for."""
        self.breaker = Breaker()
        self._options = options
        self._stop = stop
        self._photos = photos
        self._failed = 0
        limit_s = options.time_limit_s
        self._time_is_up_at = math.inf if limit_s is None else since + limit_s
        self._why: Why | None = None

    def note_failure(self) -> None:
        """Count a failure of this run; those remembered from earlier ones stop nothing."""
        self._failed += 1

    @property
    def why(self) -> Why | None:
        """Why nothing new starts any more; None as long as something may. The first reason stays."""
        self._why = self._why or self._now()
        return self._why

    def _now(self) -> Why | None:
        if self._stop.signal is not None:
            return "signal"
        if self.breaker.reason is not None:
            return "breaker"
        most = self._most_failures
        if most is not None and self._failed >= most:
            return "failures"
        return "time" if time.monotonic() >= self._time_is_up_at else None

    @property
    def has_grace(self) -> bool:
        """Whether running photos are waited for only so long: schedulers kill soon after they ask."""
        is_late = time.monotonic() >= self._time_is_up_at
        return self._stop.is_graceful or (is_late and self._stop.signal is None)

    @property
    def is_urgent(self) -> bool:
        """Whether somebody wants running photos given up: whoever interrupts a run that ends already does."""
        return self._stop.is_urgent or (self._stop.signal == signal.SIGINT and self.why != "signal")

    def words(self) -> str:
        """Why the run ends, for a person."""
        match self.why:
            case "breaker":
                return f"{self.breaker.reason}: something is wrong with more than the photos"
            case "failures":
                return f"{self._failed} failed, and no more are allowed"
            case "time":
                return "the time limit is reached"
            case _:
                return self._stop.name

    def exit_code(self, *, failed: int, left: int, refused: int = 0) -> ExitCode:
        """What the caller learns.

        failed: also those remembered. left: photos nothing was decided about. refused: assets whose verdict
        the caller wants to be no success.
        """
        why = self.why
        if why == "signal":
            return ExitCode(128 + int(self._stop.signal or 0))
        if why in ("failures", "breaker"):
            return ExitCode.STOPPED_EARLY
        if left:
            return ExitCode.TIME_LIMIT
        allowed = self._options.allow_failures
        is_allowed = failed + refused <= (allowed.of(self._photos) if allowed else 0)
        return ExitCode.DONE if is_allowed else ExitCode.SOME_FAILED

    @property
    def _most_failures(self) -> int | None:
        """Failures that end the run; one at the least, since none can end none."""
        wanted = self._options.max_failures
        if self._options.fail_fast:
            wanted = Share(number=1, is_percent=False)
        return None if wanted is None else max(1, wanted.of(self._photos))
