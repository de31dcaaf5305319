"""Where a run works, and with what: everything that stands before its first photo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from crm_cli.preset import Preset
from crm_cli.run.conveyor import Conveyor
from crm_cli.run.journal import Journal
from crm_cli.run.options import RunOptions, UsedWeights
from crm_cli.run.plan import Planner
from crm_cli.run.store import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where a run works, and with what."""

    options: RunOptions
    preset: Preset
    planner: Planner
    store: Store
    journal: Journal
    conveyor: Conveyor
    weights: UsedWeights
    folder: Path
    """Of the run: logs, events, summary."""
    device: str
    workers: int
    is_part: bool
    """Whether the photos are some of those that the inputs hold, and the sheet is of the whole folder."""
