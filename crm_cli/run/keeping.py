"""How much the cache of six views may hold: what was unused longest goes first.

    OUT/.crm/cache/aa/<key>/ok.json     written last; its time is that of the last use

Only folders that stand whole count; what a worker is writing has a name that begins with a dot.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from crm_cli.errors import UsageError

MARK = "ok.json"

CACHE_SIZE = "20G"
"""What the cache may hold unless told otherwise."""

FORSAKEN_S = 3600.0
"""Writing a folder takes a second; one begun this long ago has nobody any more."""

_UNITS = {unit: 1024**power for power, unit in enumerate(("", "K", "M", "G", "T", "P"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Kept:
    """One folder of the cache."""

    folder: Path
    size_bytes: int
    used_ns: int
    """When it was last used; 0 where it is not whole and serves nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trimmed:
    """What a look at the cache's size came to."""

    kept: int
    kept_bytes: int
    removed: tuple[Kept, ...]

    @property
    def removed_bytes(self) -> int:
        """What was freed."""
        return sum(one.size_bytes for one in self.removed)


def folder_of(out: Path, key: str) -> Path:
    """Where views are kept under the key of everything they depend on; see `Keys.views`."""
    return out / ".crm" / "cache" / key[:2] / key


def trim(out: Path, *, limit_bytes: int) -> Trimmed:
    """Bring an output folder's cache down to a size; the caller holds the folder's lock.

    A folder that cannot be removed stays and counts: nobody depends on a cache, and no run ends for it.
    """
    for folder in _forsaken(out):
        _remove(folder)
    standing, surplus = _divided(out, limit_bytes)
    removed: list[Kept] = []
    for one in surplus:
        _remove(one.folder)
        gone = not os.path.lexists(one.folder)
        (removed if gone else standing).append(one)
    return _trimmed(standing, removed)


def would_trim(out: Path, *, limit_bytes: int) -> Trimmed:
    """What trim would do."""
    return _trimmed(*_divided(out, limit_bytes))


def read_size(text: str) -> int:
    """Bytes of `20G`, `512M`, `1.5T` or a plain number; units are powers of 1024. Raises UsageError."""
    # So few digits that int() takes them.
    pattern = r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([KMGTP]?)(?:i?B)?\s*"
    found = re.fullmatch(pattern, text, re.ASCII | re.IGNORECASE)
    size = float(found[1]) * _UNITS[found[2].upper()] if found else math.inf
    if not found or size > _UNITS["P"] * 1024:
        raise UsageError(f"{text}: not a size", code="E_SIZE", remedy="write 20G, 512M, or a number of bytes")
    # A whole number is exact, however many digits it has.
    return int(found[1]) * _UNITS[found[2].upper()] if found[1].isdigit() else int(size)


def size_words(size_bytes: int) -> str:
    """A size as people read it, in the units that read_size takes."""
    unit = max(
        (u for u, factor in _UNITS.items() if size_bytes >= factor), key=_UNITS.__getitem__, default=""
    )
    return f"{size_bytes / _UNITS[unit]:.1f} {unit}B" if unit else f"{size_bytes} B"


def _divided(out: Path, limit_bytes: int) -> tuple[list[Kept], list[Kept]]:
    """What may stay, and what has to go: the newest stay as long as they fit together."""
    standing: list[Kept] = []
    surplus: list[Kept] = []
    room = limit_bytes
    for one in sorted(_listed(out), key=lambda kept: (-kept.used_ns, kept.folder.name)):
        room -= one.size_bytes
        # Once one does not fit, nothing that was used before it stays: least recently used goes first.
        fits = one.used_ns > 0 and room >= 0
        (standing if fits else surplus).append(one)
    return standing, surplus[::-1]


def _trimmed(standing: list[Kept], removed: list[Kept]) -> Trimmed:
    return Trimmed(
        kept=len(standing), kept_bytes=sum(one.size_bytes for one in standing), removed=tuple(removed)
    )


def _listed(out: Path) -> Iterator[Kept]:
    """Look at every folder of the cache; links are not followed, as they may lead anywhere."""
    for shelf in _folders(out / ".crm" / "cache"):
        for folder in _folders(shelf):
            if not folder.name.startswith("."):
                yield _looked_at(folder)


def _forsaken(out: Path) -> Iterator[Path]:
    """Folders that a worker began to write and, dead by now, never will finish."""
    for shelf in _folders(out / ".crm" / "cache"):
        for folder in _folders(shelf):
            with contextlib.suppress(OSError):
                if folder.name.startswith(".") and time.time() - folder.stat().st_mtime > FORSAKEN_S:
                    yield folder


def _folders(folder: Path) -> Iterator[Path]:
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        yield from (Path(entry) for entry in listing if entry.is_dir(follow_symlinks=False))


def _looked_at(folder: Path) -> Kept:
    """How large a folder is, and when it was used."""
    size_bytes = used_ns = 0
    with contextlib.suppress(OSError), os.scandir(folder) as listing:
        for entry in listing:
            found = entry.stat(follow_symlinks=False)
            size_bytes += found.st_size
            if entry.name == MARK and stat.S_ISREG(found.st_mode):
                used_ns = max(1, found.st_mtime_ns)
    return Kept(folder=folder, size_bytes=size_bytes, used_ns=used_ns)


def _remove(folder: Path) -> None:
    """Remove a folder, its mark first: what a kill leaves of it is then never taken for whole."""
    with contextlib.suppress(OSError):
        (folder / MARK).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)
