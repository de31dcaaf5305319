"""Amounts as people write them on a command line: times, and shares of a batch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Self

from crm_cli.errors import UsageError

_SECONDS = {"": 1.0, "ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}

_PART = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]*)\s*", re.ASCII | re.IGNORECASE)

LONGEST_S = 366 * 86400.0
"""Whoever writes more has mistaken the unit."""


def read_duration(text: str, *, flag: str) -> float:
    """Seconds of `90`, `20s`, `30m`, `1h30m`, `2d` or, as schedulers write it, `4:00:00`.

    flag: what the message names. Raises UsageError.
    """
    seconds = _clock(text) if ":" in text else _units(text)
    if seconds is None or not 0 <= seconds <= LONGEST_S:
        raise UsageError(
            f"{flag} {text}: not a time", code="E_DURATION", remedy="write 90, 20s, 30m, 1h30m or 4:00:00"
        )
    return seconds


def _clock(text: str) -> float | None:
    """Hours, minutes and seconds, or minutes and seconds."""
    if not re.fullmatch(r"\d{1,6}(:[0-5]?\d){1,2}", text.strip(), re.ASCII):
        return None
    seconds = 0.0
    for part in text.strip().split(":"):
        seconds = seconds * 60 + int(part)
    return seconds


def _units(text: str) -> float | None:
    """A sum of numbers with units; one number alone counts seconds."""
    rest, seconds, parts = text.strip(), 0.0, 0
    while found := _PART.match(rest):
        number, unit = float(found[1]), found[2].lower()
        if unit not in _SECONDS or (not unit and (parts or found.end() < len(rest))):
            return None
        seconds += number * _SECONDS[unit]
        rest, parts = rest[found.end() :], parts + 1
    return seconds if parts and not rest else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Share:
    """A number of photos, or so many of a hundred."""

    number: float
    is_percent: bool

    @classmethod
    def from_text(cls, text: str, *, flag: str) -> Self:
        """Read `5` or `2.5%`; UsageError where it is neither."""
        found = re.fullmatch(r"\s*(\d{1,9})\s*|\s*(\d{1,3}(?:\.\d{1,6})?)\s*%\s*", text, re.ASCII)
        if not found or (found[2] and float(found[2]) > 100):
            raise UsageError(
                f"{flag} {text}: neither a number nor a percentage",
                code="E_SHARE",
                remedy=f"write {flag} 5 or {flag} 10%",
            )
        return cls(number=float(found[1] or found[2]), is_percent=found[1] is None)

    def of(self, total: int) -> int:
        """How many that is of so many; a part of a photo does not count."""
        # Rounded first: 7 % of 100 is 7.000000000000001.
        return math.floor(round(self.number * total / 100, 6)) if self.is_percent else int(self.number)
