"""The contact sheet of a run, from what the run knows of each photo."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from crm_cli import __version__
from crm_cli.export.sheet import SheetEntry, SheetSummary, write_sheet
from crm_cli.records import Failed, WrittenFile
from crm_cli.run.options import RunOptions
from crm_cli.run.plan import Planned
from crm_cli.run.store import REPORT, CommitRecord
from crm_cli.run.wire import dumps


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the head of the sheet says."""

    started: datetime
    clock: float
    """time.monotonic() when the run began."""
    device: str
    weights: str
    """Label of the set that was really used."""


def write_report(
    plan: Sequence[Planned],
    outcomes: Mapping[str, CommitRecord | Failed],
    *,
    options: RunOptions,
    facts: RunFacts,
) -> Path:
    """Write the sheet of everything the plan names; returns its first page.

    A run that tried no photo leaves a sheet of just these entries alone: it tells more of how they were made.

    outcomes: by asset id; a photo without one was not reached.
    """
    entries = [
        _entry(planned, outcomes[planned.found.id]) for planned in plan if planned.found.id in outcomes
    ]
    left = len(plan) - len(entries)
    summary = SheetSummary(
        started=facts.started,
        wall_s=time.monotonic() - facts.clock,
        weights=facts.weights,
        preset=options.preset_name,
        device=facts.device,
        version=__version__,
        note=f"stopped early: {left} left" if left else "",
    )
    digest = _digest(entries, summary)
    mark = options.out / ".crm" / "sheet"
    sheet = options.out / REPORT / "index.html"
    is_idle = all(planned.action != "convert" for planned in plan)
    if is_idle and sheet.exists() and _read(mark) == digest:
        return sheet
    # Gone before the pages change: a mark must never outlive the sheet it was written for.
    mark.unlink(missing_ok=True)
    sheet = write_sheet(options.out, entries, summary)
    mark.write_text(digest, encoding="ascii")
    return sheet


def _digest(entries: Sequence[SheetEntry], summary: SheetSummary) -> str:
    """What a sheet says, apart from when it was written and who made what."""
    about = (summary.version, summary.preset, summary.weights, summary.note)
    return hashlib.sha256(
        dumps((about, [replace(entry, is_kept=False) for entry in entries])).encode()
    ).hexdigest()


def _read(mark: Path) -> str:
    """The digest of the sheet that stands; empty where none is known."""
    try:
        return mark.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def _entry(planned: Planned, outcome: CommitRecord | Failed) -> SheetEntry:
    """One photo's place on the sheet."""
    if isinstance(outcome, Failed):
        return SheetEntry(id=planned.found.id, photo=outcome.path, failure=outcome)
    files = tuple(
        WrittenFile(path=output.path, size=output.size, sha256=output.sha256) for output in outcome.outputs
    )
    return SheetEntry(
        id=outcome.id,
        photo=outcome.asset,
        files=files,
        checks=outcome.checks,
        seconds=outcome.seconds,
        warnings=outcome.warnings,
        is_kept=planned.action == "cached",
    )
