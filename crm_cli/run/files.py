"""Files on disk: read with care, written whole; and the errors that concern more than one of them."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from crm_cli.errors import OutputError
from crm_cli.records import MAX_PHOTO_BYTES
from crm_cli.run.worker import FULL

FULL_OR_GONE = FULL | {errno.EIO, errno.ENODEV, errno.ESTALE}
"""Errors that the next photo would meet as well: the run ends instead of failing photo after photo."""

HASHED_AT_ONCE = 1 << 20

READ_AT_ONCE = 1 << 16
"""Bytes: many times what a record holds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """A photo's bytes, and what the file system said about them when they were hashed."""

    sha256: str
    size: int
    mtime_ns: int
    inode: int
    etag: str = ""
    """What an object store said of it; empty for a file, which has a time and an inode instead."""


def hash_file(path: Path, *, most_bytes: int | None = None) -> Input:
    """Read a file and say what it holds; OSError where it is no regular file.

    most_bytes: how much of it is read at most, where a larger one is of no use anyway: a file of terabytes
    that takes no place on the disk would keep us for hours, one that grows as fast as it is read for ever.
    """
    digest = hashlib.sha256()
    left = sys.maxsize if most_bytes is None else most_bytes
    # A pipe that has taken the file's place would wait for its writer.
    with open(path, "rb", opener=_open_at_once) as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        while block := file.read(min(HASHED_AT_ONCE, left)):
            digest.update(block)
            left -= len(block)
    return Input(
        sha256=digest.hexdigest(), size=found.st_size, mtime_ns=found.st_mtime_ns, inode=found.st_ino
    )


def hash_photo(path: Path) -> Input:
    """Read a photo and say what it holds; of one that is too large to be one, its first part has to do."""
    return hash_file(path, most_bytes=MAX_PHOTO_BYTES + 1)


def _open_at_once(path: str, flags: int) -> int:
    """Open a file without waiting for anybody."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_CLOEXEC)


def looks_unchanged(path: Path | str, known: Input) -> bool:
    """Whether a file still has the size, time and inode it had when it was hashed."""
    found = os.stat(path)  # noqa: PTH116 — a plan asks with texts
    return (found.st_size, found.st_mtime_ns, found.st_ino) == (known.size, known.mtime_ns, known.inode)


def identities(file: Path) -> frozenset[object]:
    """What makes a file itself under whatever name: where it really is, and what the file system calls it."""
    known: set[object] = {os.path.realpath(file)}
    with contextlib.suppress(OSError):
        found = file.stat()
        known.add((found.st_dev, found.st_ino))
    return frozenset(known)


def write_atomically(path: Path, data: bytes, *, run: str, beside: Path | None = None) -> None:
    """Replace a file so that at any instant either the old bytes or the new ones are there, whole.

    beside: folder of the same disk where it grows, if not its own.
    """
    part = (beside or path.parent) / f".crm-{run}-{os.getpid()}-{os.urandom(4).hex()}.part"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make renames and new entries in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def output_error(out: Path, error: OSError) -> OutputError:
    """Say that the output folder cannot be written."""
    return OutputError(
        f"{out}: cannot be written: {error.strerror or error}",
        code="E_OUTPUT",
        remedy="free space or fix the folder, then run the same command again: finished assets are kept",
    )


@contextlib.contextmanager
def writing(out: Path) -> Iterator[None]:
    """Blame the output folder for an OSError, around nothing but what writes to it."""
    try:
        yield
    except OSError as error:
        raise output_error(out, error) from error


def unreadable(out: Path, error: OSError) -> OutputError:
    """Say that what the output folder remembers cannot be read: nobody may take it for forgotten."""
    return OutputError(
        f"{out}: cannot be read: {error.strerror or error}",
        code="E_OUTPUT",
        remedy="see to the disk or the folder's rights, then run the same command again",
    )


def listed(folder: Path) -> Sequence[os.DirEntry[str]]:
    """Entries of a folder, in order; none where there is no such folder."""
    try:
        with os.scandir(folder) as listing:
            return sorted(listing, key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError):
        return []


def read_whole(path: Path | str) -> bytes:
    """Read a small file in four system calls; read_bytes makes seven, and a plan reads one file a photo."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while block := os.read(descriptor, READ_AT_ONCE):
            data += block
        return data
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> os.stat_result:
    """Put a file's bytes on the disk, and say what the file is."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)
