"""Large files over plain HTTP, taken up where they stopped."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, Locked
from crm_cli.models.hub_library import AGAIN, library, network_error, status_of
from crm_cli.models.weights import Progress

PAUSES_S = (1.0, 2.0, 4.0, 8.0, 16.0)
"""Waits before asking again while nothing comes; whatever comes starts them over."""

PASSING = frozenset({408, 429, 500, 502, 503, 504})
"""Answers that may be different a little later."""

PARTIAL_CONTENT = 206


def part_of(target: Path) -> Path:
    """Where a download grows; tools of the hub's cache know the suffix and clean it away."""
    return target.with_name(f"{target.name}.crm.incomplete")


def download(
    url: str, target: Path, *, size: int, check: Callable[[Path], None], progress: Progress, name: str
) -> None:
    """Bring a file to its place; there it is whole and right, or not at all.

    Args:
        url: Must stand for the same bytes each time.
        target: What is there of it already lies beside it, see `part_of`.
        size: Bytes of the whole file.
        check: Raises for a file of wrong bytes, after removing it.
        progress: Told as bytes come.
        name: What the file is called there.
    """
    part = part_of(target)
    part.parent.mkdir(parents=True, exist_ok=True)
    with part.open("ab") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Locked(
                f"{part}: another process downloads it", code="E_LOCKED", remedy="wait for it"
            ) from error
        if target.is_file():
            # Another process has brought it between the caller's look and this lock.
            part.unlink(missing_ok=True)
            check(target)
            return
        if stream.tell() > size:
            stream.truncate(0)
        _read_rest(url, stream, size=size, report=lambda done: progress(name, done, size))
        os.fsync(stream.fileno())
        check(part)
        part.replace(target)


def _read_rest(url: str, stream: IO[bytes], *, size: int, report: Callable[[int], None]) -> None:
    """Append what is missing, asking again as long as anything comes."""
    transport_error = network_error()
    tries = 0
    while (before := stream.seek(0, os.SEEK_END)) < size:
        failure: Exception | None = None
        try:
            _append(url, stream, size, report)
        except transport_error as error:
            if status_of(error) not in {None, *PASSING}:
                raise
            failure = error
        stream.flush()
        if (done := stream.tell()) >= size:
            return
        tries = 0 if done > before else tries
        if tries == len(PAUSES_S):
            raise failure or _cut_off(url, done, size)
        time.sleep(PAUSES_S[tries])
        tries += 1


def _append(url: str, stream: IO[bytes], size: int, report: Callable[[int], None]) -> None:
    """One request for everything behind what is there; no more than there is room for."""
    hub = library()
    done = stream.tell()
    headers = hub.utils.build_hf_headers(library_name="crm", library_version=__version__)
    # A compressed body could not be taken up in its middle.
    headers |= {"Accept-Encoding": "identity"} | ({"Range": f"bytes={done}-"} if done else {})
    patience_s = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    session = hub.utils.get_session()
    with session.stream("GET", url, headers=headers, timeout=patience_s, follow_redirects=True) as response:
        hub.utils.hf_raise_for_status(response)
        if done and response.status_code != PARTIAL_CONTENT:
            # A server that does not know ranges begins anew.
            done = 0
            stream.truncate(0)
        for block in response.iter_raw():
            stream.write(block)
            done += len(block)
            report(done)
            if done > size:
                return


def _cut_off(url: str, done: int, size: int) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{url}: ends after {done} of {size} bytes", code="E_HUB_UNREACHABLE", remedy=AGAIN
    )
