r"""SHA256SUMS: the digest of every finished asset's files, as `sha256sum -c` reads them.

Digests are those of the records, so nothing is hashed. The list is of the whole folder, whichever runs and
shards filled it, and names only what still stands as a record left it. The first line says that it is ours:
a comment, which GNU's and Perl's checkers pass over. Names are raw bytes; where one holds a backslash,
newline or carriage return, these are written `\\`, `\n`, `\r` and the line begins with a backslash. (GNU
coreutils, md5sum)
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from crm_cli.run.commits import Records
from crm_cli.run.files import write_atomically

SUMS = "SHA256SUMS"

HEAD = b"# of finished assets, by crm\n"

LOOKS = 5
"""How often the list is made again while other shards commit; whoever writes last has seen them all."""

_ESCAPES = {ord("\\"): b"\\\\", ord("\n"): b"\\n", ord("\r"): b"\\r"}


def write_sums(out: Path, *, run: str, is_idle: bool = False) -> str | None:
    """List what stands in an output folder; returns why not where a file in the way is not ours.

    run: which run's leftover it is, should it be killed. is_idle: nothing was made, so that a list which is
    no older than any record is left alone.
    """
    target = out / SUMS
    if not is_ours(target):
        return f"{SUMS}: not written by crm, and left alone; move it, and `crm report` writes the list"
    if is_idle and _is_up_to_date(target, out):
        return None
    for _ in range(LOOKS):
        records = Records.scan(out)
        lines = list(_lines(records))
        if lines:
            write_atomically(target, b"".join([HEAD, *lines]), run=run, beside=out / ".crm")
        else:
            # A list of nothing is an error to those who check it.
            target.unlink(missing_ok=True)
        if Records.scan(out).names == records.names:
            break
    return None


def is_ours(target: Path) -> bool:
    """Whether a list may be written here: there is none, or one that says that it is ours."""
    if not os.path.lexists(target):
        return True
    if target.is_symlink() or not target.is_file():
        return False
    with target.open("rb") as file:
        return file.read(len(HEAD)) == HEAD


def line(sha256: str, name: bytes) -> bytes:
    """One line of the list."""
    escaped = b"".join(_ESCAPES.get(byte, bytes([byte])) for byte in name)
    mark = b"\\" if escaped != name else b""
    return mark + sha256.encode("ascii") + b"  " + escaped + b"\n"


def _lines(records: Records) -> Iterator[bytes]:
    """A line for every file of every asset that is whole, by name."""
    found: dict[bytes, str] = {}
    for asset in records.names:
        for record in records.glance(asset)[:1]:
            if records.intact(record):
                found |= {os.fsencode(output.path): output.sha256 for output in record.outputs}
    for name in sorted(found):
        yield line(found[name], name)


def _is_up_to_date(target: Path, out: Path) -> bool:
    """Whether no record came, went or was replaced since a list was written: their folders would tell."""
    try:
        written_ns = target.stat().st_mtime_ns
        with os.scandir(out / ".crm" / "records") as shelves:
            return all(shelf.stat().st_mtime_ns <= written_ns for shelf in shelves)
    except OSError:
        return False
