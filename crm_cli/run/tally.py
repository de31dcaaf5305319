"""What has become of a run's photos so far."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

from crm_cli.errors import ExitCode
from crm_cli.export.sheet import SheetEntry
from crm_cli.records import Grade
from crm_cli.run.events import FAILING, AssetFinished, Progress, RunFinished
from crm_cli.run.options import UsedWeights

PROGRESS_S = 1.0
"""How often a run says how far it is."""


class Tally:
    """Counts of how photos ended, and the entries on the sheet of those that this run has worked on."""

    def __init__(self, weights: UsedWeights, *, found: int, planned: int) -> None:
        """Found: photos there are; more than were planned where a signal came before."""
        self._weights = weights
        self._found = found
        self._planned = planned
        self._clock = time.monotonic()
        self._told_at = 0.0
        self._counts: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()
        self._verdicts: Counter[Grade] = Counter()
        self._peak_bytes: dict[str, int] = {}
        self.entries: dict[str, SheetEntry] = {}
        """By asset id: what the sheet says of photos that failed; converted ones are only named."""

    def count(self, end: AssetFinished, entry: SheetEntry | None = None) -> AssetFinished:
        """Count one photo for good, with what the sheet says of it; gives its event back."""
        self._counts[end.status] += 1
        if end.kind:
            self._failures[end.kind] += 1
        if end.verdict is not None:
            self._verdicts[end.verdict.grade] += 1
        if entry is not None:
            self.entries[entry.id] = entry
        return end

    def note_peak(self, kind: str, peak_bytes: int) -> None:
        """Remember the most that a worker has held in memory of one kind."""
        self._peak_bytes[kind] = max(self._peak_bytes.get(kind, 0), peak_bytes)

    @property
    def seconds(self) -> float:
        """Since the run began."""
        return time.monotonic() - self._clock

    @property
    def counts(self) -> dict[str, int]:
        """Photos by how they ended."""
        return dict(self._counts)

    @property
    def failed(self) -> int:
        """Photos that failed in any way."""
        return sum(self._counts[status] for status in FAILING)

    @property
    def left(self) -> int:
        """Photos that nothing was decided about."""
        return self._found - self._counts.total()

    def refused(self, fail_on: str | None) -> int:
        """Assets whose verdict is as bad as the caller wants to hear of."""
        if fail_on is None:
            return 0
        return self._verdicts["fail"] + (self._verdicts["review"] if fail_on == "review" else 0)

    def progress(self) -> Progress | None:
        """How far the run is, where that was not said a moment ago."""
        now = time.monotonic()
        if now - self._told_at < PROGRESS_S:
            return None
        self._told_at = now
        done = self._counts.total()
        rate = self._counts["converted"] * 3600 / (now - self._clock)
        return Progress(
            done=done,
            total=self._planned,
            failed=self.failed,
            rate=round(rate, 1),
            eta_s=round((self._planned - done) * 3600 / rate, 1) if rate else None,
        )

    def finished(self, exit_code: ExitCode, *, report: Path | str | None = None) -> RunFinished:
        """The run's last event."""
        return RunFinished(
            exit_code=exit_code,
            counts=self.counts,
            failures=dict(self._failures),
            seconds=round(self.seconds, 3),
            left=self.left,
            report=report,
            weights=self._weights.name,
            weights_digest=self._weights.digest,
            verdicts=dict(self._verdicts),
            peak_bytes=dict(self._peak_bytes),
        )
