"""The output folder's truth: a lock, atomic writes, and commit records that are written last.

    OUT/.crm/FORMAT     the layout's number; a newer one is refused
    OUT/.crm/lock       held while a run writes: see crm_cli/run/lock.py
    OUT/.crm/reserve    space set aside while a run writes: see crm_cli/run/space.py
    OUT/.crm/records    aa/<asset>.<key>.json, one for each finished asset
    OUT/.crm/tmp        where workers write; emptied by the next run

An asset is finished when its record stands, never because its files do. Before the first file is moved into
place the record is written as `….intent`; moving it to `….json` is the commit. So at any instant every file
under its final name is complete, and every such file is known to be ours, even where the run was killed
between two moves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Protocol

from crm_cli.errors import NoInput, OutputError, PhotoError, UsageError
from crm_cli.export.sheet import PICTURE
from crm_cli.run.commits import CommitRecord, Output, Records
from crm_cli.run.files import (
    FULL_OR_GONE,
    listed,
    output_error,
    sync_file,
    sync_folder,
    write_atomically,
)
from crm_cli.run.lock import Lock, is_named_after, shards_at_work, take_lock
from crm_cli.run.shards import Shard
from crm_cli.run.space import drop, set_aside

FORMAT = 1

SHELVES = ("records", "runs", "quarantine")
"""Private folders whose folders hold files that are written whole."""

REPORT = "report"
"""Where the contact sheet and its pictures are, in the output folder."""


class Place(Protocol):
    """Where a store's files end up: every change that a reader may see goes through it, one after another."""

    def look_again(self, paths: Sequence[PurePosixPath]) -> None:
        """Learn what stands under these names by now."""

    def is_input(self, path: PurePosixPath) -> bool:
        """Whether one of the photos stands under this name."""

    def write(self, file: Path, data: bytes, *, run: str) -> None:
        """Replace a file as a whole."""

    def move_in(self, record: CommitRecord, scratch: Path) -> CommitRecord:
        """Put an attempt's files under their final names; returns the record as it has to be committed."""

    def commit(self, record: CommitRecord, intent: Path, final: Path) -> None:
        """Make a record's intent the record."""

    def remove(self, file: Path) -> None:
        """Remove a file that may be there."""


@dataclass(frozen=True, slots=True)
class LocalPlace:
    """The output folder itself."""

    out: Path

    def look_again(self, paths: Sequence[PurePosixPath]) -> None:
        """Nothing: whoever asks the file system always hears the latest."""

    def is_input(self, path: PurePosixPath) -> bool:
        """Nothing is known here: photos in the folder are files that can be compared."""
        return False

    def write(self, file: Path, data: bytes, *, run: str) -> None:
        """Replace a file as a whole."""
        write_atomically(file, data, run=run)

    def move_in(self, record: CommitRecord, scratch: Path) -> CommitRecord:
        """Rename an attempt's files."""
        for output in record.outputs:
            (scratch / output.path).replace(self.out / output.path)
        return record

    def commit(self, record: CommitRecord, intent: Path, final: Path) -> None:
        """Rename the intent."""
        intent.replace(final)
        sync_folder(final.parent)

    def remove(self, file: Path) -> None:
        """Remove a file that may be there."""
        file.unlink(missing_ok=True)


class Store:
    """The output folder of a run that may write; holds the lock until closed."""

    def __init__(self, out: Path, *, run: str, lock: Lock, reserve: Path, place: Place | None = None) -> None:
        self.out = out
        self.run = run
        self._place = place or LocalPlace(out)
        self._lock: Lock | None = lock
        self._reserve = reserve
        self._scratch = 0
        self.records = Records.scan(out)

    @classmethod
    def open(
        cls,
        out: Path,
        *,
        run: str,
        shard: Shard | None = None,
        wait_lock_s: float = 0.0,
        is_unwanted: Callable[[], bool] = lambda: False,
        place: Place | None = None,
    ) -> Store:
        """Create or open an output folder, take its lock, and clear away what dead runs left.

        shard: what is opened for; others may then be at work on theirs. is_unwanted: asked while waiting for
        the lock; true ends the wait. place: where files go in the end, if not into the folder.
        """
        private = _private(out)
        try:
            _make_private(out)
            refuse_newer(out)
            lock = take_lock(private, run=run, shard=shard, wait_s=wait_lock_s, is_unwanted=is_unwanted)
            try:
                if not (private / "FORMAT").exists():
                    write_atomically(private / "FORMAT", b"%d\n" % FORMAT, run=run)
                _clear_leftovers(out, is_alone=shard is None)
                reserve = private / (f"reserve.{shard}" if shard else "reserve")
                return cls(out, run=run, lock=lock, reserve=reserve, place=place)
            except BaseException:
                lock.release()
                raise
        except OSError as error:
            raise output_error(out, error) from error

    def close(self) -> None:
        """Remove the run's scratch folder and let the next run in."""
        if self._lock is None:
            return
        shutil.rmtree(self._own_tmp, ignore_errors=True)
        self.drop_reserve()
        self._lock.release()
        self._lock = None

    def drop_reserve(self) -> None:
        """Give back the space that was set aside, for the last words of a run that ends on a full disk."""
        if self._scratch:
            drop(self._reserve)

    def refuse_gone(self) -> None:
        """Raise OutputError where the output folder has vanished, or cannot be written to any more.

        Asked while workers are busy: a photo may take long, and would be made for nothing.
        """
        try:
            # A write, and none that anybody sees: a disk that has given up still calls itself writable.
            os.utime(_private(self.out) / "tmp")
        except OSError as error:
            raise output_error(self.out, error) from error

    @property
    def _own_tmp(self) -> Path:
        return _private(self.out) / "tmp" / f"{self.run}-{os.getpid()}"

    def scratch(self) -> Path:
        """A new empty folder for one attempt, on the output's disk; with the first, space is set aside."""
        self._scratch += 1
        folder = self._own_tmp / str(self._scratch)
        try:
            if self._scratch == 1:
                set_aside(self._reserve)
            # Not parents: an output folder that has vanished must not be made again.
            self._own_tmp.mkdir(exist_ok=True)
            folder.mkdir()
        except OSError as error:
            raise output_error(self.out, error) from error
        return folder

    def publish(
        self,
        record: CommitRecord,
        scratch: Path,
        *,
        may_overwrite: bool = False,
        is_input: Callable[[Path], bool] = lambda file: False,
    ) -> CommitRecord:
        """Move an attempt's files into place and commit the asset; returns the record as committed.

        record: its outputs name the files in scratch; times are filled in here. is_input: whether a file of
        the output folder is a photo of this run; those are never overwritten. Raises PhotoError (conflict,
        io) where this asset cannot be published, OutputError where no other could be either.
        """
        try:
            record = _with_times(record, scratch)
            self._place.look_again([output.path for output in record.outputs])
            self._refuse_foreign(record, may_overwrite=may_overwrite, is_input=is_input)
            folders = self._make_folders(record)
            final = self._record_path(record)
            intent = final.with_name(f"{record.file_name}.intent")
            # Known from now on: should the rest fail, another try must find its own files again.
            self.records.names[record.id] = (*self.records.names.get(record.id, ()), intent.name)
            self._place.write(intent, record.as_bytes(), run=self.run)
            record = self._place.move_in(record, scratch)
            folders += self._move_pictures(scratch, record.id)
            for folder in folders:
                sync_folder(folder)
            self._place.commit(record, intent, final)
            self._drop_superseded(record)
        except OSError as error:
            is_ours = error.errno in (errno.EACCES, errno.EPERM) and self._is_private(error.filename)
            if error.errno in FULL_OR_GONE or is_ours or not _private(self.out).is_dir():
                raise output_error(self.out, error) from error
            raise PhotoError(
                f"{record.asset}: cannot be published: {error}",
                code="E_PUBLISH",
                remedy="see to the file or folder in the way, then run again",
                kind="io",
            ) from error
        return record

    def _is_private(self, name: object) -> bool:
        """Whether something that went wrong did so where every other photo will meet it as well."""
        return isinstance(name, str) and Path(name).is_relative_to(_private(self.out))

    def discard(self, scratch: Path) -> None:
        """Throw an attempt's files away."""
        shutil.rmtree(scratch, ignore_errors=True)

    def _record_path(self, record: CommitRecord) -> Path:
        return self.records.path(f"{record.file_name}.json")

    def _refuse_foreign(
        self, record: CommitRecord, *, may_overwrite: bool, is_input: Callable[[Path], bool]
    ) -> None:
        """Raise PhotoError where a final name is taken by a file that is not ours, or was edited since."""
        records = [*self.records.of(record.id, with_intents=True), record]
        known = [output for old in records for output in old.outputs]
        own_paths = {output.path for output in known if self.records.is_as_written(output)}
        for output in record.outputs:
            final = self.out / output.path
            if output.path in own_paths or not os.path.lexists(final):
                continue
            # In a copied folder times are others, and where a record was lost the bytes are those of now.
            if any(one.path == output.path and self.records.is_copy(one) for one in known):
                continue
            is_photo = self._place.is_input(output.path) or is_input(final)
            if not may_overwrite or is_photo or final.is_dir():
                raise PhotoError(
                    f"{record.asset}: {output.path} is in the way: "
                    + ("it is an input" if is_photo else "not written by crm, or changed since"),
                    code="E_CONFLICT",
                    remedy="move it" if is_photo else "move it, or use --overwrite",
                    kind="conflict",
                )

    def _make_folders(self, record: CommitRecord) -> list[Path]:
        """Make the folders of an asset's files and of its record; returns those that must be synced."""
        wanted = {self.out / output.path.parent for output in record.outputs}
        for folder in [*sorted(wanted), self._record_path(record).parent]:
            made = self.out
            for part in folder.relative_to(self.out).parts:
                parent, made = made, made / part
                try:
                    made.mkdir()
                except FileExistsError:
                    # A link could lead anywhere, and a file cannot be written under.
                    if not stat.S_ISDIR(made.lstat().st_mode):
                        raise
                else:
                    sync_folder(parent)
        return sorted(wanted)

    def _move_pictures(self, scratch: Path, asset: str) -> list[Path]:
        """Move the contact sheet's pictures; the sheet can do without one, so no record names them.

        What an earlier try has left of a kind that is not made any more would show another asset.
        """
        folders = (self.out / REPORT, self.out / REPORT / "thumbs")
        if any(os.path.lexists(folder) and not stat.S_ISDIR(folder.lstat().st_mode) for folder in folders):
            return []  # a link could lead anywhere, and a file cannot be written under
        pictures = [file for file in sorted((scratch / REPORT / "thumbs").glob("*")) if _is_plain(file)]
        if not pictures:
            return []
        for folder in folders:
            folder.mkdir(exist_ok=True)
        for file in pictures:
            sync_file(file)
            file.replace(folders[-1] / file.name)
        made = {file.name for file in pictures}
        for old in folders[-1].glob(f"{asset}-*"):
            if old.name not in made and PICTURE.fullmatch(old.name) and _is_plain(old):
                self._place.remove(old)
        return [self.out, *folders]

    def _drop_superseded(self, record: CommitRecord) -> None:
        """Remove older records of the asset, but keep one that alone knows a file to be ours."""
        final = self._record_path(record)
        current = {output.path for output in record.outputs}
        names = {final.name}
        for old in self.records.of(record.id, with_intents=True):
            if not {output.path for output in old.outputs} <= current:
                names |= {f"{old.file_name}.json", f"{old.file_name}.intent"}
        known = self.records.names[record.id]
        self.records.names[record.id] = (final.name, *(n for n in known if n in names and n != final.name))
        for name in known:
            if name not in names:
                self._place.remove(final.with_name(name))


@contextlib.contextmanager
def locked(out: Path) -> Iterator[str]:
    """Hold the lock of a standing output folder and change nothing else; gives a name for what is done."""
    refuse_none(out)
    refuse_newer(out)
    run = new_run()
    try:
        lock = take_lock(_private(out), run=run)
    except OSError as error:
        raise output_error(out, error) from error
    try:
        yield run
    finally:
        lock.release()


def new_run() -> str:
    """A name that no other run has; names sort as runs began."""
    now_us = time.time_ns() // 1000
    second = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now_us // 10**6))
    return f"{second}-{now_us % 10**6:05x}{os.urandom(3).hex()}"


def refuse_none(out: Path) -> None:
    """Raise NoInput where a folder is no output folder."""
    if not _private(out).is_dir():
        raise NoInput(f"{out}: not an output folder of crm", code="E_NOT_OUT", remedy="check the path")


def refuse_file(out: Path) -> None:
    """Raise UsageError where something else than a folder stands."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"{out}: no folder", code="E_OUT_IS_FILE", remedy="name a folder with -o")


def refuse_newer(out: Path) -> None:
    """Raise UsageError where the folder was written by a later version of crm."""
    try:
        text = (_private(out) / "FORMAT").read_text("ascii").strip()
    except (FileNotFoundError, NotADirectoryError):
        return
    except (OSError, UnicodeDecodeError) as error:
        raise OutputError(f"{out}: .crm/FORMAT cannot be read", code="E_FORMAT") from error
    if text != str(FORMAT):
        raise UsageError(
            f"{out}: written in format {text[:20]!r}, this version reads {FORMAT}",
            code="E_FORMAT",
            remedy="update crm, or choose another output folder",
        )


def _private(out: Path) -> Path:
    return out / ".crm"


def _make_private(out: Path) -> None:
    """Make an output folder and our own in it, so that they survive a power cut: records hang from them."""
    private, out = _private(out), out.absolute()
    for folder in (*reversed(out.parents), out):
        if not folder.exists():
            folder.mkdir(exist_ok=True)
            sync_folder(folder.parent)
    for name in ("", "records", "tmp", "journal", "runs"):
        (private / name).mkdir(exist_ok=True)
    # Also where they were there: a run that made them may have been killed before this.
    for folder in (private, out):
        sync_folder(folder)
    with contextlib.suppress(
        PermissionError
    ):  # a folder may be ours to write and its parent not ours to open
        sync_folder(out.parent)


def _with_times(record: CommitRecord, scratch: Path) -> CommitRecord:
    """Make the files in scratch durable, and fill in the times they keep when they are moved."""
    outputs = []
    for output in record.outputs:
        if output.path.is_absolute() or ".." in output.path.parts:
            raise PhotoError(f"{record.asset}: wrote outside its folder", code="E_ESCAPE", kind="internal")
        found = sync_file(scratch / output.path)
        if not stat.S_ISREG(found.st_mode) or found.st_size != output.size:
            raise PhotoError(
                f"{record.asset}: {output.path} has {found.st_size} bytes, {output.size} were announced",
                code="E_SHORT_FILE",
                kind="io",
            )
        outputs.append(
            Output(path=output.path, size=output.size, mtime_ns=found.st_mtime_ns, sha256=output.sha256)
        )
    return replace(record, outputs=tuple(outputs))


def _is_plain(path: Path) -> bool:
    """Whether a path is a file and no link."""
    return path.is_file() and not path.is_symlink()


def _clear_leftovers(out: Path, *, is_alone: bool) -> None:
    """Remove what earlier runs left unfinished. Whoever holds the lock may: nobody else is writing.

    is_alone: a shard is not; it spares what shards at work are named in, reserves, and the contact sheet.
    """
    private = _private(out)
    for reserve in private.glob("reserve*") if is_alone else ():
        drop(reserve)
    folders = (private, *(Path(entry) for name in SHELVES for entry in listed(private / name)))
    parts = [
        entry
        for folder in ((*folders, out / REPORT) if is_alone else folders)
        for entry in listed(folder)
        if entry.name.startswith(".crm-") and entry.name.endswith(".part")
    ]
    scratch = listed(private / "tmp")
    # Asked after the look: whoever left something signed its lock before.
    names = {entry.name for entry in (*scratch, *parts)}
    spared = frozenset() if is_alone else shards_at_work(private, names)
    for entry in parts:
        if not any(is_named_after(entry.name, run) for run in spared):
            Path(entry).unlink(missing_ok=True)
    for entry in scratch:
        if not any(is_named_after(entry.name, run) for run in spared):
            shutil.rmtree(entry.path, ignore_errors=True)
