"""What nobody needs any more in an output folder: found, and removed under the lock.

Everything here is ours by its place and name; finished assets and their newest records are never litter,
nor is a record or intent that alone knows a standing file to be ours.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from crm_cli.export.sheet import PICTURE
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.journal import last_failures
from crm_cli.run.keeping import Trimmed, trim, would_trim
from crm_cli.run.status import answer
from crm_cli.run.store import REPORT, SHELVES, locked
from crm_cli.run.walk import asset_id

Kind = Literal["scratch", "record", "picture", "run"]

KEPT_RUNS = 20
"""Logs and events of so many runs stay; the journal stays whole, since it knows what failed."""

RUN = re.compile(r"\d{8}T\d{6}Z-[0-9a-f]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class Litter:
    """One file or folder that nobody needs."""

    kind: Kind
    path: Path
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """What was removed, or would be."""

    litter: tuple[Litter, ...]
    left: tuple[Litter, ...]
    """What could not be removed."""
    cache: Trimmed

    @property
    def freed_bytes(self) -> int:
        """The disk space of it all."""
        return sum(one.size_bytes for one in self.litter) + self.cache.removed_bytes


def sweep(out: Path, *, cache_bytes: int, keep_runs: int = KEPT_RUNS, dry_run: bool = False) -> Swept:
    """Remove what dead runs left and nobody needs; Locked where a run is at work.

    cache_bytes: what the cache may hold. dry_run: only tell.
    """
    with locked(out):
        litter = list(_litter(out, keep_runs=keep_runs))
        if dry_run:
            return Swept(litter=tuple(litter), left=(), cache=would_trim(out, limit_bytes=cache_bytes))
        gone = [_remove(one.path) for one in litter]
        return Swept(
            litter=tuple(one for one, is_gone in zip(litter, gone, strict=True) if is_gone),
            left=tuple(one for one, is_gone in zip(litter, gone, strict=True) if not is_gone),
            cache=trim(out, limit_bytes=cache_bytes),
        )


def _litter(out: Path, *, keep_runs: int) -> Iterator[Litter]:
    private = out / ".crm"
    records = Records.scan(out)
    failures = last_failures(out)
    for record in records.newest():
        if records.intact(record):
            answer(failures, record)
    yield from _scratch(out)
    for asset in sorted(records.names):
        for name in _superseded(records, asset):
            yield _weighed("record", records.path(name))
    known = {*records.names, *map(asset_id, failures)}
    pictures = [] if (out / REPORT).is_symlink() else _listed(out / REPORT / "thumbs")
    for entry in pictures:
        found = PICTURE.fullmatch(entry.name)
        if found and found[1] not in known and entry.is_file(follow_symlinks=False):
            yield _weighed("picture", Path(entry))
    runs = [entry for entry in _listed(private / "runs") if RUN.fullmatch(entry.name)]
    needed = {failure.run for failure in failures.values()}
    for entry in runs[: max(0, len(runs) - keep_runs)]:
        if entry.name not in needed and entry.is_dir(follow_symlinks=False):
            yield _weighed("run", Path(entry))


def _scratch(out: Path) -> Iterator[Litter]:
    """What a killed run was writing: nobody is writing now."""
    private = out / ".crm"
    for entry in _listed(private / "tmp"):
        yield _weighed("scratch", Path(entry))
    places = [private, private / "journal", out / REPORT]
    places += [Path(entry) for name in SHELVES for entry in _listed(private / name)]
    for place in places:
        for entry in _listed(place):
            if entry.name.startswith(".crm-") and entry.name.endswith(".part"):
                yield _weighed("scratch", Path(entry))
    for shelf in _listed(private / "cache"):
        for entry in _listed(Path(shelf)):
            if entry.name.startswith(".") and entry.name.endswith(".part"):
                yield _weighed("scratch", Path(entry))


def _superseded(records: Records, asset: str) -> Iterator[str]:
    """Names of an asset's records and intents that are neither the newest nor alone in knowing a file."""
    newest = next(iter(records.of(asset)), None)
    current = newest.outputs if newest else ()
    known = {output.path for output in current if records.is_as_written(output)}
    for name in records.names[asset]:
        record = _read(records.path(name))
        if record is None:
            # A damaged record is for `crm verify` to tell of; a damaged intent knows nothing.
            is_litter = name.endswith(".intent")
        elif newest and name == f"{newest.file_name}.json":
            is_litter = False
        else:
            written = {output.path for output in record.outputs if records.is_as_written(output)}
            is_litter = written <= known
        if is_litter:
            yield name


def _read(path: Path) -> CommitRecord | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        return CommitRecord.from_bytes(path.read_bytes())
    return None


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    """Entries of a folder that is no link, in order."""
    with contextlib.suppress(OSError):
        if not folder.is_symlink():
            with os.scandir(folder) as listing:
                return sorted(listing, key=lambda entry: entry.name)
    return []


def _weighed(kind: Kind, path: Path) -> Litter:
    return Litter(kind=kind, path=path, size_bytes=_size_bytes(path))


def _size_bytes(path: Path) -> int:
    """What a file or folder takes."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            return path.lstat().st_size
        return sum(_size_bytes(inner) for inner in path.iterdir())
    return 0


def _remove(path: Path) -> bool:
    """Remove a file or folder; whether it is gone."""
    with contextlib.suppress(OSError):
        if path.is_symlink() or not path.is_dir():
            path.unlink(missing_ok=True)
        else:
            shutil.rmtree(path)
    return not os.path.lexists(path)
