"""The contact sheet of a run, from what the run knows of each photo."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from crm_cli import __version__
from crm_cli.preset import Preset
from crm_cli.records import Failed, WrittenFile
from crm_cli.run.options import RunOptions
from crm_cli.run.plan import Planned
from crm_cli.run.store import CommitRecord

if TYPE_CHECKING:
    from crm_cli.export.sheet import SheetEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the head of the sheet says."""

    started: datetime
    clock: float
    """time.monotonic() when the run began."""
    device: str


def write_report(
    plan: Sequence[Planned],
    outcomes: Mapping[str, CommitRecord | Failed],
    *,
    preset: Preset,
    options: RunOptions,
    facts: RunFacts,
) -> Path:
    """Write the sheet of everything the plan names; returns its first page.

    outcomes: by asset id; a photo without one was not reached.
    """
    from crm_cli.export.sheet import SheetSummary, write_sheet
    from crm_cli.models.weights import name_of

    entries = [
        _entry(planned, outcomes[planned.found.id]) for planned in plan if planned.found.id in outcomes
    ]
    left = len(plan) - len(entries)
    summary = SheetSummary(
        started=facts.started,
        wall_s=time.monotonic() - facts.clock,
        weights=name_of(preset.weights),
        preset=options.preset_name,
        device=facts.device,
        version=__version__,
        note=f"stopped early: {left} left" if left else "",
    )
    return write_sheet(options.out, entries, summary)


def _entry(planned: Planned, outcome: CommitRecord | Failed) -> SheetEntry:
    """One photo's place on the sheet."""
    from crm_cli.export.sheet import SheetEntry

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
