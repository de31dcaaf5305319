"""Settings of a preset that the command line changes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from crm_cli.preset import Override


def read_overrides(
    assignments: Sequence[str],
    *,
    matting: str | None = None,
    weights: str | None = None,
    formats: Sequence[str] | None = None,
    best_of: int | None = None,
) -> list[Override]:
    """Settings from the command line, weakest first: a flag of its own beats --set."""
    from crm_cli.preset import Override

    overrides = [Override.from_assignment(assignment) for assignment in assignments]
    flags: list[tuple[str, Any, str]] = [
        ("matting.method", matting, "--matting"),
        ("weights", weights, "--weights"),
        ("checks.best_of", best_of, "--best-of"),
        ("export.formats", _split(formats) if formats else None, "--format"),
    ]
    # JSON is YAML, so a value given by its own flag is never read as anything but text.
    overrides += [
        Override(key, json.dumps(value, ensure_ascii=False), flag)
        for key, value, flag in flags
        if value is not None
    ]
    return overrides


def _split(values: Sequence[str]) -> list[str]:
    """Names from repeated and comma-separated values."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]
