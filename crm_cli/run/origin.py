"""Where one asset came from: what its file says, and what the records of its folder add to that."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal

from crm_cli.errors import CrmError, NoInput
from crm_cli.run.commits import CommitRecord, Output, Records
from crm_cli.run.files import hash_file

if TYPE_CHECKING:
    from crm_cli.export.provenance import Format, Provenance

State = Literal["intact", "changed", "unknown"]
"""Against the record; unknown where no record is near: a file cannot hold its own digest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A file's record, and where in its folder it is."""

    out: Path
    record: CommitRecord
    output: Output


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """All that can be told of one file."""

    file: Path
    format: Format
    size: int
    sha256: str
    """Of the file as it is now."""
    state: State
    provenance: Provenance
    entry: Entry | None


def trace(file: Path) -> Origin:
    """Say where an asset came from; NoInput where it is not ours."""
    from crm_cli.export.provenance import read_label

    label = read_label(file)
    try:
        now = hash_file(file)
    except OSError as error:
        raise NoInput(f"{file}: cannot be read: {error.strerror or error}", code="E_NO_FILE") from error
    entry = find_entry(file)
    state: State = "unknown"
    if entry is not None:
        state = "intact" if entry.output.sha256 == now.sha256 else "changed"
    return Origin(
        file=file,
        format=label.format,
        size=now.size,
        sha256=now.sha256,
        state=state,
        provenance=label.provenance,
        entry=entry,
    )


def find_entry(file: Path) -> Entry | None:
    """The newest record that knows a file, in the nearest output folder above it that has one."""
    place = file.absolute()
    for out in place.parents:
        if (out / ".crm" / "records").is_dir():
            path = PurePosixPath(place.relative_to(out))
            known = max(_knowing(out, path), key=lambda entry: entry.record.t, default=None)
            if known is not None:
                return known
    return None


def _knowing(out: Path, path: PurePosixPath) -> Iterator[Entry]:
    """Every current record that names a file."""
    with contextlib.suppress(CrmError):  # a folder that nobody may read tells nothing
        for record in Records.scan(out).newest():
            for output in record.outputs:
                if output.path == path:
                    yield Entry(out=out, record=record, output=output)
