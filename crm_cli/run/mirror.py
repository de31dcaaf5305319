"""An output folder in an object store, worked on in a local mirror of it.

    real copies      records, journals, what runs were asked for, the sheet's mark
    stand-ins        finished files and pictures: of the right size, without bytes
    first kilobyte   the sheet's pages and scripts, SHA256SUMS: enough to know them as ours

A stand-in has the time that a record names if the store says of the object what it said when the record was
written, and another one else. So everything that looks at a folder looks at its mirror in the same way.
What a run makes is put into the store in the order in which it is put into a folder: the intent, the files,
the record. Finished files leave the local disk at once; the rest follows every half minute, and at the end.
"""

from __future__ import annotations

import contextlib
import os
import re
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from crm_cli.errors import OutputError, PhotoError
from crm_cli.run.commits import CommitRecord, Output
from crm_cli.run.files import Input, hash_file
from crm_cli.run.lease import LEASE, Lease
from crm_cli.run.remote import Remote, Stamp, Taken, is_plain
from crm_cli.run.store import REPORT
from crm_cli.run.sums import SUMS

PRIVATE = ".crm"

REAL = re.compile(
    r"\.crm/(FORMAT|sheet|decisions\.json|journal/[^/]+\.ndjson|runs/[^/]+/(run|summary)\.json"
    r"|records/[^/]+/[^/]+\.(json|intent))"
)
"""What is copied as it is."""

PAGE = re.compile(
    rf"{REPORT}/((index|page-\d{{3,}})\.html|(entries|cards-\d{{3,}}|model-viewer)\.js"
    r"|model-viewer\.LICENSE\.txt)"
)

PAGE_BYTES = 1024
"""How much of a page tells whose it is."""

MAX_KEY_BYTES = 1024
"""Of an object's name, as S3 has it."""


class Mirror:
    """The local folder, and what it knows of the store."""

    def __init__(self, remote: Remote, folder: Path) -> None:
        self.folder = folder
        self.remote = remote
        self.inputs: frozenset[str] = frozenset()
        """URLs of photos, never overwritten."""
        self.lease: Lease | None = None
        self.outputs: frozenset[str] = frozenset()
        """Names of all files that records and intents know."""
        self.has_doubted = False
        """Whether objects had to be read to know whose they are."""
        self.stamps: dict[str, Stamp] = {}
        """What the store last said of objects, by name."""
        self.same: dict[str, tuple[int, int]] = {}
        """Size and time of local files as they were when the store had the same, by name."""

    def hydrate(self, *, with_leases: bool) -> None:
        """Make the folder say what the store says now."""
        try:
            listed = {name: stamp for name, stamp in self.remote.listed().items() if is_plain(name)}
        except FileNotFoundError as error:
            raise OutputError(
                f"{self.remote.url}: {error.strerror}", code="E_OUTPUT", remedy="make the bucket first"
            ) from error
        self.stamps = dict(listed)
        self.remote.each(self._copy, [name for name in listed if REAL.fullmatch(name)])
        if with_leases:
            for name in filter(_is_lease, listed):
                self._copy(name)
                self._set_time(name, listed[name])
        for name, stamp in listed.items():
            if not REAL.fullmatch(name) and name.startswith((f"{PRIVATE}/runs/", f"{REPORT}/")):
                with contextlib.suppress(OSError):
                    self.stand_in(name, stamp.size, 0)
        if SUMS in listed:
            self.stand_in(SUMS, listed[SUMS].size, 0)
        heads = [name for name in listed if name == SUMS or PAGE.fullmatch(name)]
        self.remote.each(self._copy_head, heads)
        self._stand_in_for_outputs(listed)

    def _stand_in_for_outputs(self, listed: Mapping[str, Stamp]) -> None:
        """Let finished files stand in the folder, with their time where they are as a record left them."""
        records = sorted(self._records(), key=lambda record: record.t)
        outputs = {str(output.path): output for record in records for output in record.outputs}
        self.outputs = frozenset(outputs)
        standing = {name: listed[name] for name in outputs if name in listed}
        times = dict.fromkeys(standing, 0)
        unsure: dict[str, list[Output]] = {}
        for record in records:  # the newest last: it counts where two know a file
            for output in record.outputs:
                name = str(output.path)
                stamp = standing.get(name)
                if stamp is None or stamp.size != output.size:
                    continue
                if output.etag == stamp.etag:
                    times[name] = output.mtime_ns
                elif not output.etag:
                    unsure.setdefault(name, []).append(output)
        # Of a killed run's files only the bytes tell: nobody was left to note what the store said of them.
        doubted = [name for name in unsure if not times[name]]
        self.has_doubted = bool(doubted)
        for name, digest in zip(doubted, self.remote.each(self._digest, doubted), strict=True):
            for output in unsure[name]:
                if output.sha256 == digest:
                    times[name] = output.mtime_ns
        for name, stamp in standing.items():
            with contextlib.suppress(OSError):  # a name that no disk takes
                self.stand_in(name, stamp.size, times[name])

    def _records(self) -> Iterator[CommitRecord]:
        for path in (self.folder / PRIVATE / "records").glob("*/*"):
            with contextlib.suppress(OSError, ValueError, RecursionError):
                record = CommitRecord.from_bytes(path.read_bytes())
                if not any(_is_strange(str(output.path)) for output in record.outputs):
                    yield record

    def _copy(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):  # a run is at work
            data = self.remote.read(name)
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
            self.remember(name)

    def _copy_head(self, name: str) -> None:
        with contextlib.suppress(OSError):
            head = self.remote.read(name, first=PAGE_BYTES)
            with (self.folder / name).open("r+b") as page:
                page.write(head)
            self.remember(name)

    def _set_time(self, name: str, stamp: Stamp) -> None:
        """Let a lease be as old as it is, more or less: clocks differ."""
        if stamp.written is not None:
            with contextlib.suppress(OSError):
                os.utime(self.folder / name, (stamp.written.timestamp(),) * 2)

    def _digest(self, name: str) -> str:
        try:
            return self.hash(self.folder / name).sha256
        except OSError:
            return ""

    def hash(self, path: Path) -> Input:
        """Read the object that a file stands in for; what a file of its own would be hashed for."""
        name = path.relative_to(self.folder).as_posix()
        handle, copy = tempfile.mkstemp(dir=self.folder / PRIVATE / "tmp")
        os.close(handle)
        try:
            self.remote.fetch(name, Path(copy))
            return hash_file(Path(copy))
        finally:
            Path(copy).unlink()

    def look_again(self, paths: Sequence[PurePosixPath]) -> None:
        """Learn what stands under these names by now."""
        self.require_lease()
        names = [self._name(path) for path in paths]
        # A store that refuses to put over what has changed need not be asked before.
        ask = self.stamps.get if self.remote.is_strict else self.remote.stamp
        for name, stamp in zip(names, self.remote.each(ask, names), strict=True):
            if stamp is None:
                self.stamps.pop(name, None)
                (self.folder / name).unlink(missing_ok=True)
            elif stamp != self.stamps.get(name) or not os.path.lexists(self.folder / name):
                self.stamps[name] = stamp
                self.stand_in(name, stamp.size, 0)

    def is_input(self, path: PurePosixPath) -> bool:
        """Whether one of the photos stands under this name."""
        return self.remote.url_of(str(path)) in self.inputs

    def write(self, file: Path, data: bytes, *, run: str) -> None:
        """Replace a small object."""
        self.require_lease()
        self.remote.write(self.name_of(file), data)
        file.write_bytes(data)

    def move_in(self, record: CommitRecord, scratch: Path) -> CommitRecord:
        """Put an attempt's files under their final names; their stand-ins remain here."""

        def put(output: Output) -> Output:
            name = self._name(output.path)
            try:
                known = self.stamps.get(name)
                stamp = self.remote.put(scratch / output.path, name, over=known.etag if known else "")
            except Taken as error:
                raise PhotoError(
                    f"{record.asset}: {output.path} was written by somebody else meanwhile",
                    code="E_CONFLICT",
                    remedy="run again",
                    kind="conflict",
                ) from error
            self.stamps[name] = stamp
            return replace(output, etag=stamp.etag)

        outputs = tuple(self.remote.each(put, record.outputs))
        for output in outputs:
            self.stand_in(str(output.path), output.size, output.mtime_ns)
        return replace(record, outputs=outputs)

    def commit(self, record: CommitRecord, intent: Path, final: Path) -> None:
        """Put the record, and remove its intent."""
        self.write(final, record.as_bytes(), run=record.run)
        self.remove(intent)

    def remove(self, file: Path) -> None:
        """Remove an object that may be there."""
        self.remote.remove(self.name_of(file))
        file.unlink(missing_ok=True)

    def require_lease(self) -> None:
        """Raise OutputError where somebody else has the folder by now."""
        if self.lease is not None and self.lease.is_lost:
            raise OutputError(
                f"{self.remote.url}: another run has taken this folder over, as this one seemed dead",
                code="E_LEASE_LOST",
                remedy="run again when it has ended: finished assets are kept",
            )

    def _name(self, path: PurePosixPath) -> str:
        """An output's name in the store; PhotoError where it can have none."""
        name = str(path)
        try:
            if len(self.remote.url_of(name).encode()) > MAX_KEY_BYTES:
                raise ValueError
        except ValueError as error:
            raise PhotoError(
                f"{path}: no name for an object: not UTF-8, or too long",
                code="E_NAME",
                remedy="rename the photo",
            ) from error
        return name

    def is_ours(self, name: str) -> bool:
        """Whether only crm puts something under a name: others may use the folder, or bucket, as well."""
        return name in self.outputs or name.startswith((f"{PRIVATE}/", f"{REPORT}/"))

    def name_of(self, file: Path) -> str:
        """The object's name that a file of the folder belongs to."""
        return file.relative_to(self.folder).as_posix()

    def stand_in(self, name: str, size: int, mtime_ns: int) -> None:
        """Let a file of this size stand under a name."""
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.truncate(size)
        os.utime(path, ns=(mtime_ns, mtime_ns))
        self.remember(name)

    def remember(self, name: str) -> None:
        """Take a file for the same as its object."""
        found = look(self.folder / name)
        if found is not None:
            self.same[name] = found


def _is_lease(name: str) -> bool:
    folder, _, last = name.rpartition("/")
    return folder == PRIVATE and bool(LEASE.fullmatch(last))


def _is_strange(name: str) -> bool:
    """Whether a record names a file where no asset's can be."""
    return not is_plain(name) or name.startswith(f"{PRIVATE}/")


def look(path: Path) -> tuple[int, int] | None:
    """Size and time of a file; None where there is none."""
    try:
        found = path.lstat()
    except OSError:
        return None
    return (found.st_size, found.st_mtime_ns)
