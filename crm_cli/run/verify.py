"""Whether an output folder holds what its records say: each record, each file, on request each byte.

Looking changes nothing and needs no lock. A repair makes the next run redo what does not hold: it takes
records back, never a file. A record taken back stays as an intent, so that its files are still known as ours.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from crm_cli.errors import ExitCode, OutputError
from crm_cli.run.commits import CommitRecord, Output, Records
from crm_cli.run.files import Input, hash_file, sync_folder, write_atomically
from crm_cli.run.journal import Journal, read_lines
from crm_cli.run.status import is_locked
from crm_cli.run.store import locked, refuse_newer, refuse_none
from crm_cli.run.walk import asset_id
from crm_cli.run.wire import from_plain

Kind = Literal["damaged", "lost", "missing", "changed", "moved", "corrupt", "unreadable"]

MEANINGS: dict[Kind, str] = {
    "damaged": "the record is not as it was written",
    "lost": "was finished, and has no record any more",
    "missing": "not there",
    "changed": "not as crm wrote it",
    "moved": "another time stamp, but the same bytes",
    "corrupt": "other bytes under the same size and time stamp",
    "unreadable": "cannot be read",
}

SUFFIXES = (".json", ".intent")

RECORD = re.compile(r"[0-9a-f]{16}\.[0-9a-f]{12}\.(json|intent)")
"""Anything else among the records is not ours."""

LOOKS = 3
"""How often an asset is looked at again while a run may be replacing it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is not as it was left."""

    kind: Kind
    path: PurePosixPath
    """Relative to the output folder."""
    asset: PurePosixPath | None
    """The photo; None where the record no longer tells."""
    is_repaired: bool = False
    """The next run finds it as it should be, or makes it again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What a look at an output folder found."""

    out: Path
    assets: int
    files: int
    hashed_bytes: int
    """0 unless every byte was asked for."""
    problems: tuple[Problem, ...]

    @property
    def exit_code(self) -> ExitCode:
        """Whether everything was as it should be."""
        return ExitCode.SOME_FAILED if self.problems else ExitCode.DONE


def verify(out: Path, *, deep: bool = False, read: Callable[[Path], Input] = hash_file) -> Verdict:
    """Look at every record and every file it names; deep: read them whole. Needs no lock.

    read: how a file is read whole.
    """
    refuse_none(out)
    refuse_newer(out)
    with _reading(out):
        return _Look(out, deep=deep, read=read).verdict()


def repair(out: Path, *, deep: bool = False, read: Callable[[Path], Input] = hash_file) -> Verdict:
    """Verify, and take back the records that do not hold; files stay, except that times are set right."""
    with locked(out) as run:
        with _reading(out):
            look = _Look(out, deep=deep, read=read, is_alone=True)
            verdict = look.verdict()
            mended, withdrawn = _Repair(look, run).mend(verdict.problems)
        if withdrawn:
            # Else they would count as lost once nothing is left of their records.
            with Journal(out, run) as journal:
                for asset in withdrawn:
                    journal.write("withdrawn", asset=asset)
        return replace(verdict, problems=mended)


@dataclass(slots=True)
class _Look:
    """One look at a folder."""

    out: Path
    deep: bool
    read: Callable[[Path], Input]
    is_alone: bool = False
    """Whether nothing can change meanwhile."""
    records: Records = field(init=False)
    finished: dict[str, PurePosixPath] = field(init=False)
    """Assets that the journal knows as finished, by id."""
    assets: int = 0
    files: int = 0
    hashed_bytes: int = 0

    def verdict(self) -> Verdict:
        """Look at everything."""
        # The journal before the records: what it knows as finished then has one.
        self.finished = _finished(self.out)
        self.records = Records.scan(self.out)
        problems = []
        for asset in sorted({*self.records.names, *self.finished}):
            problems += self._settled(asset)
        return Verdict(
            out=self.out,
            assets=self.assets,
            files=self.files,
            hashed_bytes=self.hashed_bytes,
            problems=tuple(problems),
        )

    def _settled(self, asset: str) -> list[Problem]:
        """Look at one asset until no run is replacing it meanwhile."""
        counted = self.assets, self.files
        problems: list[Problem] = []
        for _ in range(LOOKS):
            self.assets, self.files = counted
            problems = self._problems(asset)
            if not problems or self.is_alone:
                break
            here = self.records.path(asset).parent
            names = tuple(sorted(path.name for path in here.glob(f"{asset}.*") if path.suffix in SUFFIXES))
            if any(name.endswith(".intent") for name in names) and is_locked(self.out / ".crm" / "lock"):
                return []  # a run at work is putting it in place
            if names == self.records.names.get(asset, ()):
                break
            self.records = replace(self.records, names={**self.records.names, asset: names})
        return problems

    def _problems(self, asset: str) -> list[Problem]:
        """What is wrong with one asset."""
        names = [name for name in self.records.names.get(asset, ()) if RECORD.fullmatch(name)]
        photo = self.finished.get(asset)
        if not names:
            if photo is None:
                return []
            return [Problem(kind="lost", path=_place(self.records, asset), asset=photo)]
        committed = [name for name in names if name.endswith(".json")]
        read = {name: _whole(self.records.path(name)) for name in committed}
        problems = [
            Problem(kind="damaged", path=_place(self.records, name), asset=photo)
            for name, record in read.items()
            if record is None
        ]
        standing = [record for record in read.values() if record]
        if standing:
            newest = max(standing, key=lambda record: record.t)
            self.assets += 1
            for output in newest.outputs:
                self.files += 1
                kind = self._look_at(output)
                if kind:
                    problems.append(Problem(kind=kind, path=output.path, asset=newest.asset))
        return problems

    def _look_at(self, output: Output) -> Kind | None:
        """What is wrong with one file; None where nothing is."""
        file = self.out / output.path
        try:
            found = file.lstat()
            if not stat.S_ISREG(found.st_mode) or found.st_size != output.size:
                return "changed"
            is_timely = found.st_mtime_ns == output.mtime_ns
            if not self.deep:
                return None if is_timely else "changed"
            self.hashed_bytes += found.st_size
            is_same = self.read(file).sha256 == output.sha256
        except (FileNotFoundError, NotADirectoryError):
            return "missing"
        except OSError:
            return "unreadable"
        if is_same:
            return None if is_timely else "moved"
        return "corrupt" if is_timely else "changed"


@dataclass(frozen=True, slots=True)
class _Repair:
    """What can be put right without making anything again."""

    look: _Look
    run: str

    def mend(self, problems: Sequence[Problem]) -> tuple[tuple[Problem, ...], list[PurePosixPath]]:
        """Mend what can be; returns the problems as they stand then, and the photos that count no more."""
        mended: list[Problem] = []
        withdrawn: list[PurePosixPath] = []
        for problem in problems:
            if problem.kind == "damaged":
                is_done = self._drop(self.look.out / problem.path)
                mended.append(replace(problem, is_repaired=is_done))
                withdrawn += [problem.asset] if is_done and problem.asset else []
            elif problem.kind == "lost":
                mended.append(problem)
        files: dict[PurePosixPath, list[Problem]] = {}
        for problem in problems:
            if problem.asset and problem.kind not in ("damaged", "lost"):
                files.setdefault(problem.asset, []).append(problem)
        # Read again: what was just taken back still tells which files are ours.
        records = Records.scan(self.look.out)
        for asset, theirs in files.items():
            is_done = self._mend_files(records, asset, theirs)
            mended += [replace(problem, is_repaired=is_done) for problem in theirs]
            if is_done and any(problem.kind != "moved" for problem in theirs):
                withdrawn.append(asset)
        return tuple(mended), withdrawn

    def _mend_files(self, records: Records, asset: PurePosixPath, problems: Sequence[Problem]) -> bool:
        """Set times right, or take the asset's records back; False where that helps nobody."""
        known = records.of(asset_id(asset), with_intents=True)
        outputs = [output for record in known for output in record.outputs]
        ours = {output.path for output in outputs if records.is_as_written(output)}
        for problem in problems:
            # A file that somebody edited is in the next run's way whatever the records say.
            is_edited = problem.kind == "changed" and problem.path not in ours
            if is_edited or problem.kind == "unreadable":
                return False
        try:
            if all(problem.kind == "moved" for problem in problems):
                self._set_times(records.of(asset_id(asset))[0], {problem.path for problem in problems})
            else:
                self._withdraw(records, asset_id(asset))
        except OSError:
            return False
        return True

    def _set_times(self, record: CommitRecord, paths: set[PurePosixPath]) -> None:
        """Give files of the right bytes the time that their record names."""
        for output in record.outputs:
            if output.path in paths:
                times = (output.mtime_ns, output.mtime_ns)
                os.utime(self.look.out / output.path, ns=times, follow_symlinks=False)

    def _withdraw(self, records: Records, asset: str) -> None:
        """Turn an asset's records into intents: not finished, but its files are known."""
        for name in records.names.get(asset, ()):
            if name.endswith(".json"):
                path = records.path(name)
                path.replace(path.with_suffix(".intent"))
                sync_folder(path.parent)

    def _drop(self, path: Path) -> bool:
        """Remove a damaged record; False where its files are then in the next run's way."""
        record = _salvaged(path)
        try:
            if record:
                write_atomically(path.with_suffix(".intent"), record.as_bytes(), run=self.run)
            if not path.is_dir():
                path.unlink(missing_ok=True)
                sync_folder(path.parent)
        except OSError:
            return False
        return record is not None


@contextlib.contextmanager
def _reading(out: Path) -> Iterator[None]:
    """Blame the output folder for an OSError that concerns no single file."""
    try:
        yield
    except OSError as error:
        raise OutputError(
            f"{out}: cannot be looked at: {error.strerror or error}",
            code="E_OUTPUT",
            remedy="see to the folder",
        ) from error


def _finished(out: Path) -> dict[str, PurePosixPath]:
    """Photos that the journal knows as finished and not taken back, by asset id."""
    finished: dict[str, PurePosixPath] = {}
    for line in read_lines(out):
        if line.get("ev") in ("asset_done", "withdrawn"):
            with contextlib.suppress(ValueError, KeyError):
                asset = from_plain(PurePosixPath, line["asset"])
                finished.pop(asset_id(asset), None)
                if line["ev"] == "asset_done":
                    finished[asset_id(asset)] = asset
    return finished


def _place(records: Records, name: str) -> PurePosixPath:
    return PurePosixPath(records.path(name).relative_to(records.out))


def _whole(path: Path) -> CommitRecord | None:
    """A record as it was written under this name; None where it is not."""
    return _read(path, CommitRecord.from_bytes)


def _salvaged(path: Path) -> CommitRecord | None:
    """What can be read of a damaged record; only to know files by size and time, never to trust them."""
    return _read(path, lambda raw: from_plain(CommitRecord, json.loads(raw)))


def _read(path: Path, parse: Callable[[bytes], CommitRecord]) -> CommitRecord | None:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        if path.is_file() and not path.is_symlink():
            record = parse(path.read_bytes())
            return record if f"{record.file_name}.json" == path.name else None
    return None
