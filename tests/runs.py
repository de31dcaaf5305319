"""Runs with fakes for stations, started from a test and looked at afterwards."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import fakes
from output import HERE

from crm_cli.preset import Override, load_preset
from crm_cli.run.batch import convert
from crm_cli.run.events import AssetStarted, Event, Plan, Warned
from crm_cli.run.options import RunOptions, Stop

PATHS = os.pathsep.join([str(HERE), str(HERE.parent)])
"""PYTHONPATH of a process that is to find the fakes."""


def run(
    photos: Path,
    *assignments: str,
    stop: Stop | None = None,
    engine: fakes.Engine | None = None,
    **changes: Any,
) -> list[Event]:
    """Convert a folder into `out` beside it; see start."""
    return list(start(photos, *assignments, stop=stop, engine=engine, **changes))


def start(
    photos: Path,
    *assignments: str,
    stop: Stop | None = None,
    engine: fakes.Engine | None = None,
    **changes: Any,
) -> Iterator[Event]:
    """Begin to convert. assignments: of the preset; changes: of the options."""
    preset = load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset
    options = RunOptions(
        inputs=(photos,), out=photos.parent / "out", device="cpu", jobs=1, report=False,
        deadlines_s={"unwrap": 2.0},
    )  # fmt: skip
    return convert(preset, replace(options, **changes), stop=stop, engine=engine or fakes.engine())


def started(events: list[Event]) -> list[str]:
    """Every attempt."""
    return [str(event.path) for event in events if isinstance(event, AssetStarted)]


def warned(events: list[Event]) -> list[str]:
    """Every warning."""
    return [event.message for event in events if isinstance(event, Warned)]


def reasons(events: list[Event]) -> Mapping[str, int]:
    """Why photos were converted."""
    return next(event for event in events if isinstance(event, Plan)).reasons
