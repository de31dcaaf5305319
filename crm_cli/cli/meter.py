"""Bytes as they go by."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import NoReturn

from crm_cli.cli.console import say

Meter = Callable[[str, int, int], None]
"""Told what is at work, and how many bytes of how many are done."""

LINE_EVERY_S = 60.0

DELAY_S = 0.5
"""What is done sooner needs no bar."""


@contextmanager
def metering() -> Iterator[Meter]:
    """Draw a bar on a terminal; a log gets one line a minute at most."""
    with ExitStack() as stack:
        yield _bars(stack) if sys.stderr.isatty() else _lines()


def _bars(stack: ExitStack) -> Meter:
    from tqdm import tqdm

    def begin(of: int, done: int) -> tqdm[NoReturn]:
        return stack.enter_context(tqdm(total=of, initial=done, unit="B", unit_scale=True, delay=DELAY_S))

    bar: tqdm[NoReturn] | None = None

    def draw(what: str, done: int, of: int) -> None:
        nonlocal bar
        if bar is None or bar.total != of or done < bar.n:
            stack.close()
            bar = begin(of, done)
        bar.set_description_str(what, refresh=False)
        bar.update(done - bar.n)

    return draw


def _lines() -> Meter:
    last = time.monotonic()

    def tell(what: str, done: int, of: int) -> None:
        nonlocal last
        if time.monotonic() - last >= LINE_EVERY_S:
            last = time.monotonic()
            say(f"{what}: {done / 1e9:.2f} of {of / 1e9:.2f} GB ({done / max(of, 1):.0%})")

    return tell
