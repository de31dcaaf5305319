"""What earlier runs were asked for: to ask for it again, and to say what is different now."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crm_cli.preset import Preset, settings, value_of
from crm_cli.run.options import RunOptions
from crm_cli.run.wire import from_plain

MAX_TOLD = 3
"""Of changed settings so many are named; another preset changes dozens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What a run was asked for."""

    preset: Preset
    options: RunOptions


def asked_of(out: Path, run: str) -> Asked | None:
    """What a run was asked for; None where nobody knows any more, or only a version that is not this one."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        about = json.loads((out / ".crm" / "runs" / run / "run.json").read_bytes())
        return Asked(
            preset=from_plain(Preset, about["preset"]), options=from_plain(RunOptions, about["options"])
        )
    return None


@dataclass(frozen=True, slots=True)
class Past:
    """The presets that the assets of an output folder were made with, against the one of today."""

    out: Path
    today: Preset
    _told: dict[str, str] = field(default_factory=dict)
    """By run: thousands of assets are of one."""

    def changes_since(self, run: str) -> str:
        """Which settings are different now, as `texture.size_px 1024 → 2048`; empty where none is known."""
        if run not in self._told:
            then = asked_of(self.out, run)
            self._told[run] = "" if then is None else _changes(then.preset, self.today)
        return self._told[run]


def _changes(then: Preset, now: Preset) -> str:
    told = [
        f"{key} {_short(value_of(then, key))} → {_short(value_of(now, key))}"
        for key in settings()
        # What the weights are called says nothing: a folder may hold others under the same name.
        if key != "weights" and value_of(then, key) != value_of(now, key)
    ]
    more = [f"{len(told) - MAX_TOLD} more"] if len(told) > MAX_TOLD else []
    return ", ".join([*told[:MAX_TOLD], *more])


def _short(value: Any) -> str:
    """A value as a preset has it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "+".join(map(str, value)) if isinstance(value, tuple) else str(value)
