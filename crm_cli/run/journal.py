"""What was attempted and what failed: append-only lines, on disk before anything depends on them.

    OUT/.crm/journal/<run>.ndjson

A run writes a file of its own, so that a line torn by a full disk or a kill can never be glued to a good one.
Finished assets are known from their records; the journal is where failures and interruptions are remembered.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path, PurePosixPath
from typing import Any, Literal, Self

from crm_cli.errors import ErrorClass
from crm_cli.records import Failed
from crm_cli.run.files import output_error, sync_folder, unreadable
from crm_cli.run.wire import dumps, from_plain

JournalEvent = Literal[
    "run_start",
    "attempt_start",
    "stage_done",
    "asset_done",
    "asset_failed",
    "quarantined",
    "interrupted",
    "withdrawn",
    "run_end",
]
"""`withdrawn`: a repair took an asset's record away, so that it does not count as finished any more."""

RETRYABLE: frozenset[ErrorClass] = frozenset({"internal", "oom", "crash", "timeout", "quality", "io"})
"""Classes that may end otherwise next time; the rest need another photo or another folder."""

BLOCK_BYTES = 1 << 20
"""Of a journal, read at once."""

TAIL_BYTES = 4096
"""Of a journal, to see its last line: several times what a run says at its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LastFailure:
    """How the latest attempt at an asset failed."""

    asset: PurePosixPath
    t: float
    """When, in seconds since 1970."""
    key: str
    """What was asked for: the asset's last key, and the limits that decide whether a photo is read at all."""
    stage: str
    kind: ErrorClass
    code: str
    message: str
    attempt: int = 1
    run: str = ""
    is_quarantined: bool = False
    """Whether it has crashed every worker that tried, and is left alone until somebody asks."""


class Journal:
    """The lines of one run; only the process that holds the output folder's lock writes them."""

    def __init__(self, out: Path, run: str) -> None:
        self._out = out
        self._run = run
        self._lines = 0
        path = _folder(out) / f"{run}.ndjson"
        try:
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
            self._file = os.open(path, flags, 0o644)
            sync_folder(path.parent)
        except OSError as error:
            raise output_error(out, error) from error

    def __enter__(self) -> Self:
        """Return the journal."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        os.close(self._file)

    def write(self, event: JournalEvent, /, *, is_durable: bool = True, **details: Any) -> None:
        """Append one line; durable ones are on disk when this returns."""
        self._lines += 1
        head = {"v": 1, "t": round(time.time(), 3), "run": self._run, "seq": self._lines, "ev": event}
        line = dumps({**head, **details}).encode("ascii") + b"\n"
        try:
            append_line(self._file, line)
            if is_durable:
                os.fdatasync(self._file)
        except OSError as error:
            raise output_error(self._out, error) from error

    def failed(self, failure: Failed, *, key: str, signal: int | None = None) -> None:
        """Remember that an attempt failed."""
        self.write("asset_failed", **_about(failure, key, signal))

    def quarantined(self, failure: Failed, *, key: str, evidence: Path) -> None:
        """Remember that a photo is set aside. evidence: relative to the output folder."""
        self.write("quarantined", **_about(failure, key, None), evidence=evidence)


def _about(failure: Failed, key: str, signal: int | None) -> dict[str, Any]:
    """What a line says of a failure."""
    return {
        "asset": failure.path,
        "key": key,
        "attempt": failure.attempts,
        "stage": failure.stage,
        "error": {
            "class": failure.kind,
            "code": failure.code,
            "msg": failure.message,
            "signal": signal,
            "retryable": failure.kind in RETRYABLE,
        },
    }


def append_line(descriptor: int, line: bytes) -> None:
    """Write one line or nothing: readers see it whole or torn at the end, never mixed with another."""
    written = os.write(descriptor, line)
    if written != len(line):
        os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def read_lines(out: Path) -> Iterator[Mapping[str, Any]]:
    """Yield every whole line of every run, oldest run first; torn or damaged ones are passed over.

    Raises OutputError where a journal cannot be read: what it holds must not be taken for forgotten.
    """
    return _lines_that(out, lambda raw: True)


def _lines_that(out: Path, count: Callable[[bytes], object]) -> Iterator[Mapping[str, Any]]:
    """Yield what read_lines does of the lines whose bytes count; the others are not even parsed.

    count: is asked of several lines together as well, and finds one that counts among them.
    """
    for path in _journals(out):
        yield from _lines_of(out, path, count)


def _lines_of(out: Path, path: Path, count: Callable[[bytes], object]) -> Iterator[Mapping[str, Any]]:
    """The same of one run."""
    for block in _blocks(out, path):
        # Asked of many lines at once, since most journals hold none that counts.
        for raw in BytesIO(block) if count(block) else ():
            if not raw.endswith(b"\n") or not count(raw):
                continue
            with contextlib.suppress(ValueError, RecursionError):
                line = json.loads(raw.decode())
                if isinstance(line, dict):
                    yield line


def _blocks(out: Path, path: Path) -> Iterator[bytes]:
    """A journal in pieces that end where lines do."""
    try:
        with path.open("rb") as file:
            while block := file.read(BLOCK_BYTES):
                yield block + file.readline()
    except (FileNotFoundError, IsADirectoryError):
        return  # a journal that was taken away, or never was one
    except OSError as error:
        raise unreadable(out, error) from error


def _journals(out: Path) -> list[Path]:
    """Files of all runs, oldest first; OutputError where they cannot be listed."""
    try:
        return sorted(path for path in _folder(out).iterdir() if path.suffix == ".ndjson")
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise unreadable(out, error) from error


# A quotation mark inside a text is written with a backslash before it, so that no name looks like these.
_FAILURES = re.compile(rb'"ev":"(?:asset_failed|quarantined)"')
_ENDS = re.compile(rb'"ev":"(?:asset_failed|asset_done|quarantined)"')
_COURSE = re.compile(rb'"ev":"(?:attempt_start|asset_failed|asset_done|interrupted)"')
_END = b'"ev":"run_end"'


def last_failures(out: Path) -> dict[PurePosixPath, LastFailure]:
    """Failures that no later success has answered, by asset."""
    failures: dict[str, LastFailure] = {}
    # Of ten thousand successes none matters where there is no failure that it could answer.
    for line in _lines_that(out, lambda raw: (_ENDS if failures else _FAILURES).search(raw)):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            asset = _name_in(line)
            failures.pop(asset, None)
            if line["ev"] != "asset_done":
                error = line["error"]
                plain = {**line, "kind": error["class"], "code": error["code"], "message": error["msg"]}
                plain["is_quarantined"] = line["ev"] == "quarantined"
                failures[asset] = from_plain(LastFailure, plain)
    return {failure.asset: failure for failure in failures.values()}


def unfinished_attempts(out: Path) -> Counter[PurePosixPath]:
    """How many attempts at an asset ended with the run itself, since its last outcome.

    A run that dies without a word leaves its attempts open: power cuts do, and photos that take the machine
    down. One that was told to stop says so, and its photos had no part in it.
    """
    deaths: Counter[str] = Counter()
    is_open: dict[str, str] = {}
    for path in _journals(out):
        # Whoever comes to its end leaves nothing open: what it tells concerns runs before it alone.
        if not deaths and not is_open and _came_to_its_end(path):
            continue
        for line in _lines_of(out, path, _COURSE.search):
            with contextlib.suppress(ValueError, KeyError, TypeError):
                asset, run = _name_in(line), str(line["run"])
                if line["ev"] == "attempt_start":
                    # Within a run every attempt is closed before the next begins.
                    if is_open.get(asset, run) != run:
                        deaths[asset] += 1
                    is_open[asset] = run
                else:
                    is_open.pop(asset, None)
                    if line["ev"] in ("asset_done", "asset_failed"):
                        del deaths[asset]
    deaths.update(is_open.keys())
    return Counter({PurePosixPath(asset): count for asset, count in deaths.items()})


def _came_to_its_end(path: Path) -> bool:
    """Whether the last line of a run is its own; no where that cannot be seen at once."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - TAIL_BYTES))
            before, _, last = file.read().rpartition(b"\n")
    except OSError:  # whoever reads all of it will say so
        return False
    return not last and _END in before.rpartition(b"\n")[2]


def _name_in(line: Mapping[str, Any]) -> str:
    """The asset that a line is about; as text, of which tens of thousands are read and few are kept."""
    asset = line["asset"]
    return asset if type(asset) is str else str(from_plain(PurePosixPath, asset))


def _folder(out: Path) -> Path:
    return out / ".crm" / "journal"
