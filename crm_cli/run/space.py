"""Room on the output's disk: enough to begin with, and a little set aside to say at the end why it ended."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path

from crm_cli.errors import OutputError
from crm_cli.run.keeping import size_words

RESERVE_BYTES = 1 << 20
"""The last lines of the journal and the run's summary take a few kilobytes; blocks may be large."""

BYTES_EACH = 1_000_000
"""A small asset and its pictures; most take several times as much."""

ENOUGH_BYTES = 2 << 30
"""However many photos there are, a run begins with so much space, and says so when it is used up."""

NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})


def set_aside(reserve: Path) -> None:
    """Take space for a file that is only there to be dropped when the disk is full.

    Raises OSError where there is no such space; a disk that cannot set space aside goes without.
    """
    if not hasattr(os, "posix_fallocate"):  # elsewhere than on Linux
        return
    descriptor = os.open(reserve, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        os.posix_fallocate(descriptor, 0, RESERVE_BYTES)
    except OSError as error:
        drop(reserve)
        if error.errno in NO_ROOM:
            raise
    finally:
        os.close(descriptor)


def drop(reserve: Path) -> None:
    """Give the space back; a disk that does not let go keeps it."""
    with contextlib.suppress(OSError):
        reserve.unlink(missing_ok=True)


def check_free_space(out: Path, min_free_bytes: int | None, *, photos: int) -> None:
    """Raise OutputError where the disk of an output folder has no room for a run.

    min_free_bytes: what must be free; None: what so many photos may need. photos: to be converted.
    """
    if not photos:
        return
    if min_free_bytes is None:
        min_free_bytes = min(ENOUGH_BYTES, photos * BYTES_EACH)
    standing = next(folder for folder in (out.absolute(), *out.absolute().parents) if folder.exists())
    try:
        found = os.statvfs(standing)
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be looked at: {error.strerror}", code="E_OUTPUT", remedy="see to the folder"
        ) from error
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < min_free_bytes:
        raise OutputError(
            f"{out}: {size_words(free_bytes)} free, {size_words(min_free_bytes)} asked for",
            code="E_MIN_FREE",
            remedy="free space, or lower --min-free",
        )
