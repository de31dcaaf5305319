"""What reading a stranger's file may cost this process: memory and processor time.

Checks of a header cannot foresee it: a file may hold millions of empty chunks, or draw the same pixels over
and over. So the system counts while decoders work, and whatever goes on and on ends as an exception.
"""

from __future__ import annotations

import resource
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

AGAIN_S = 1.0
"""How soon the exception is raised once more, should somebody have swallowed it."""


class TookTooLong(BaseException):
    """The time is over. No `except Exception` of a library holds it up."""


@contextmanager
def bounded(*, memory_bytes: int, cpu_s: float) -> Iterator[bool]:
    """Raise MemoryError or TookTooLong where the block takes more; gives whether memory is counted here.

    memory_bytes: of address space, beyond what the process has taken already. cpu_s: of all its threads.
    A library's single call ends before the exception is raised; the run's deadlines are for those that never
    end. Outside the main thread no time is counted, and on systems without /proc no memory.
    """
    with _less_memory(memory_bytes) as is_counted, _less_time(cpu_s):
        yield is_counted


@contextmanager
def _less_memory(limit_bytes: int) -> Iterator[bool]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = _address_space()
    wanted = None if taken is None else taken + limit_bytes
    is_counted = wanted is not None and all(
        limit == resource.RLIM_INFINITY or wanted < limit for limit in (soft, hard)
    )
    if wanted is None or not is_counted:
        yield False
        return
    resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
    try:
        yield True
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _address_space() -> int | None:
    """Bytes of address space that this process has taken; None where nobody tells."""
    try:
        pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    except (OSError, ValueError, IndexError):
        return None
    return pages * resource.getpagesize()


@contextmanager
def _less_time(limit_s: float) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # no other thread hears signals
        yield
        return
    is_over = False

    def end(_: int, __: FrameType | None) -> None:
        if not is_over:
            raise TookTooLong

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, limit_s, AGAIN_S)
    try:
        yield
    finally:
        is_over = True
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)
