"""Signals, heard as a wish to stop, or to leave at once but tidily."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from crm_cli.run.options import Stop

DEBOUNCE_S = 0.5
"""Two interrupts closer than this are one: a terminal and a shell may both pass a key on."""


@contextmanager
def listening() -> Iterator[Stop]:
    """Turn signals into a wish to stop: the first ends the run between photos, the second at once."""
    from crm_cli.run.options import Stop

    stop = Stop()
    first_at = 0.0

    def hear(number: int, _: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if stop.signal is None:
            stop.signal, first_at = number, now
        elif stop.is_urgent:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif now - first_at > DEBOUNCE_S:
            stop.is_urgent = True

    numbers = _heard(signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, hear) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


@contextmanager
def leaving() -> Iterator[None]:
    """Let SIGTERM and SIGHUP unwind a command as Ctrl-C does, so that nothing half-written stays behind."""

    def leave(number: int, _: FrameType | None) -> None:
        raise SystemExit(128 + number)

    numbers = _heard(signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, leave) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _heard(*numbers: signal.Signals) -> list[signal.Signals]:
    """Signals that nobody has told us to ignore, as nohup does."""
    return [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
