"""Lists of paths, as `find` and other programs write them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from crm_cli.errors import UsageError
from crm_cli.names import display_name
from crm_cli.run.remote import is_url, local_path

STDIN = "-"

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True, kw_only=True)
class Listed:
    """One path of a list."""

    folder: Path
    """What a relative path counts from: the folder that was current when the list was read."""
    path: Path
    url: str = ""
    """Where it is instead of at the path, if that is in an object store."""
    place: str
    """Where it stands, for messages: `list.txt, line 3`."""


def read_lists(names: Sequence[str], *, is_null: bool = False) -> tuple[Listed, ...]:
    """Read the paths of all lists, one a line; `-` is stdin, and blank lines do not count.

    is_null: paths end with a NUL byte instead, so that they may hold newlines. UsageError where a list
    cannot be read.
    """
    if names.count(STDIN) > 1:
        raise UsageError("--from-file -: stdin can be read only once", code="E_LIST")
    folder = Path.cwd()
    return tuple(listed for name in names for listed in _read(name, folder, is_null=is_null))


def _read(name: str, folder: Path, *, is_null: bool) -> Iterator[Listed]:
    shown = "stdin" if name == STDIN else display_name(name)
    try:
        with _open(name) as file:
            raw = file.read()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(
            f"--from-file {shown}: cannot be read: {reason}", code="E_LIST", remedy="check the path"
        ) from error
    entries = raw.split(b"\0") if is_null else _lines(raw)
    for number, entry in enumerate(entries, start=1):
        if not (entry if is_null else entry.strip()):
            continue
        place = f"{shown}, {'entry' if is_null else 'line'} {number}"
        if b"\0" in entry:
            raise UsageError(
                f"{place}: holds a NUL byte", code="E_LIST", remedy="-0 reads what find -print0 wrote"
            )
        name = os.fsdecode(entry)
        url = name if is_url(name) else ""
        yield Listed(folder=folder, path=local_path(name), url=url, place=place)


def _lines(raw: bytes) -> list[bytes]:
    """Lines as editors on Windows leave them as well: a mark first, and two characters at each end."""
    return [line.removesuffix(b"\r") for line in raw.removeprefix(_BYTE_ORDER_MARK).split(b"\n")]


def _open(name: str) -> BinaryIO:
    # By its number: sys.stdin has decoded what it reads, and is None where stdin is closed.
    return open(0, "rb", closefd=False) if name == STDIN else Path(name).open("rb")
