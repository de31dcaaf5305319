"""An output folder wherever it is: each command gets a path, of the folder itself or of its mirror."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from fcntl import LOCK_EX, LOCK_NB, flock
from pathlib import Path

from crm_cli.errors import CrmError, NoInput, OutputError, UsageError
from crm_cli.run.files import Input, hash_file, output_error
from crm_cli.run.lease import take_lease
from crm_cli.run.mirror import PRIVATE, Mirror
from crm_cli.run.options import RunOptions
from crm_cli.run.outbox import Outbox
from crm_cli.run.remote import Remote, RemoteShelf, check_url, is_url, local_path
from crm_cli.run.shards import Shard
from crm_cli.run.store import FORMAT, new_run

SEGMENT_S = 30.0
"""How often a run's journal, pictures and settings follow what it has finished."""

ABANDONED_S = 3600.0
"""A mirror this old that nobody holds is a killed run's."""

MIRROR = "crm-mirror-"


@contextmanager
def reading(url: str, *, endpoint: str = "", must_stand: bool = True) -> Iterator[Mirror]:
    """A mirror to look at; NoInput where nothing of ours stands at the URL, if something must."""
    with _mirror(url, endpoint) as mirror:
        if must_stand:
            _require_ours(mirror.remote)
        mirror.hydrate(with_leases=True)
        _refuse_newer(mirror)
        yield mirror


@contextmanager
def writing(
    url: str,
    *,
    endpoint: str = "",
    shard: Shard | None = None,
    wait_lock_s: float = 0.0,
    is_unwanted: Callable[[], bool] = lambda: False,
    must_stand: bool = False,
) -> Iterator[Mirror]:
    """A mirror to work in: the folder is ours meanwhile, and what changes here follows into the store."""
    with _mirror(url, endpoint) as mirror:
        remote = mirror.remote
        if must_stand:
            _require_ours(remote)
        try:
            mirror.lease = take_lease(
                RemoteShelf(remote, PRIVATE),
                place=url,
                run=new_run(),
                shard=shard,
                wait_s=wait_lock_s,
                is_unwanted=is_unwanted,
            )
        except OSError as error:
            raise OutputError(
                f"{url}: cannot be written: {error.strerror}", code="E_OUTPUT", remedy="see to the bucket"
            ) from error
        try:
            mirror.hydrate(with_leases=False)
            _refuse_newer(mirror)
            if remote.stamp(f"{PRIVATE}/FORMAT") is None:
                remote.write(f"{PRIVATE}/FORMAT", b"%d\n" % FORMAT)
            if mirror.has_doubted:
                Outbox(mirror).adopt()
            yield from _followed(mirror)
        finally:
            mirror.lease.release()


def _followed(mirror: Mirror) -> Iterator[Mirror]:
    """Let what changes in a mirror follow into the store, and everything at the end."""
    outbox, is_over = Outbox(mirror), threading.Event()

    def follow() -> None:
        while not is_over.wait(SEGMENT_S):
            with contextlib.suppress(CrmError, OSError):  # the last push will meet it again
                outbox.push(is_last=False)

    thread = threading.Thread(target=follow, name="mirror", daemon=True)
    thread.start()
    try:
        yield mirror
    except BaseException:
        is_over.set()
        thread.join()
        with contextlib.suppress(CrmError, OSError):
            outbox.push(is_last=True)
        raise
    is_over.set()
    thread.join()
    try:
        outbox.push(is_last=True)
    except OSError as error:  # of the mirror's disk: the store's are OutputErrors by now
        raise output_error(mirror.folder, error) from error


@contextmanager
def mirrored(options: RunOptions, *, is_unwanted: Callable[[], bool]) -> Iterator[tuple[RunOptions, Mirror]]:
    """Mirror the output folder of a run; gives the options of the run in the mirror.

    Views are not kept: they would leave with the mirror. is_unwanted: asked while waiting for the lease.
    """
    url, endpoint = check_url(options.place), options.endpoint
    mirror = (
        reading(url, endpoint=endpoint, must_stand=False)
        if options.dry_run
        else writing(
            url,
            endpoint=endpoint,
            shard=options.select.shard,
            wait_lock_s=options.wait_lock_s,
            is_unwanted=is_unwanted,
        )
    )
    with mirror as standing:
        yield replace(options, out=standing.folder, place=url, cache_bytes=0), standing


@contextmanager
def opened(out: str, *, endpoint: str = "", writes: bool = False) -> Iterator[Path]:
    """An output folder as a path, wherever it is. writes: what changes there is put into the store."""
    if not is_url(out):
        yield local_path(out)
    elif writes:
        with writing(out, endpoint=endpoint, must_stand=True) as mirror:
            yield mirror.folder
    else:
        with reading(out, endpoint=endpoint) as mirror:
            yield mirror.folder


def said_out(out: str) -> Mapping[str, str]:
    """What a program is told in place of a mirror's path."""
    return {"out": out} if is_url(out) else {}


@contextmanager
def swept_up(out: str, *, endpoint: str = "", dry_run: bool = False) -> Iterator[tuple[Path, int]]:
    """An output folder to be cleared up: what goes there goes from the store, and uploads nobody will finish.

    Gives the folder, and how many such uploads were ended.
    """
    if not is_url(out):
        yield local_path(out), 0
    elif dry_run:
        with reading(out, endpoint=endpoint) as mirror:
            _forget_leases(mirror)
            yield mirror.folder, 0
    else:
        with writing(out, endpoint=endpoint, must_stand=True) as mirror:
            yield mirror.folder, mirror.remote.abort_uploads(mirror.is_ours)
            Outbox(mirror).push_removals()
            RemoteShelf(mirror.remote, PRIVATE).clear_probes()


@contextmanager
def looked_at(
    out: str, *, endpoint: str = "", mends: bool = False
) -> Iterator[tuple[Path, Callable[[Path], Input]]]:
    """An output folder to be verified, and how a file of it is read whole."""
    if not is_url(out):
        yield local_path(out), hash_file
    elif mends:
        with writing(out, endpoint=endpoint, must_stand=True) as mirror:
            yield mirror.folder, mirror.hash
            Outbox(mirror).push_records()
    else:
        with reading(out, endpoint=endpoint) as mirror:
            yield mirror.folder, mirror.hash


@contextmanager
def _mirror(url: str, endpoint: str) -> Iterator[Mirror]:
    """An empty mirror in a folder of its own, which goes when it is closed."""
    remote = Remote.open(url, endpoint=endpoint, blame=lambda error: _output_error(url, error))
    _clear_abandoned()
    folder = Path(tempfile.mkdtemp(prefix=MIRROR))
    held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        flock(held, LOCK_EX | LOCK_NB)
        (folder / PRIVATE / "tmp").mkdir(parents=True)
        yield Mirror(remote, folder)
    finally:
        os.close(held)
        shutil.rmtree(folder, ignore_errors=True)


def _clear_abandoned() -> None:
    """Remove the mirrors of killed runs."""
    for folder in Path(tempfile.gettempdir()).glob(f"{MIRROR}*"):
        with contextlib.suppress(OSError):
            about = folder.lstat()
            if about.st_uid != os.getuid() or time.time() - about.st_mtime < ABANDONED_S:
                continue
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                flock(held, LOCK_EX | LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(held)


def _forget_leases(mirror: Mirror) -> None:
    """Let a look that takes the folder's lock in the mirror be, whoever is at work in the store."""
    for path in (mirror.folder / PRIVATE).glob("lease*"):
        path.unlink()


def _require_ours(remote: Remote) -> None:
    """Raise NoInput where nothing of ours stands."""
    try:
        is_ours = any(remote.stamp(f"{PRIVATE}/{name}") for name in ("FORMAT", "lease"))
        is_ours = is_ours or bool(remote.listed(f"{PRIVATE}/records"))
    except FileNotFoundError:
        is_ours = False
    if not is_ours:
        raise NoInput(f"{remote.url}: not an output folder of crm", code="E_NOT_OUT", remedy="check the URL")


def _refuse_newer(mirror: Mirror) -> None:
    """Raise UsageError where a later version wrote what stands."""
    mark = mirror.folder / PRIVATE / "FORMAT"
    text = mark.read_text("ascii", "replace").strip() if mark.exists() else str(FORMAT)
    if text != str(FORMAT):
        raise UsageError(
            f"{mirror.remote.url}: written in format {text[:20]!r}, this version reads {FORMAT}",
            code="E_FORMAT",
            remedy="update crm, or choose another output folder",
        )


def _output_error(url: str, error: OSError) -> OutputError:
    return OutputError(
        f"{url}: {error.strerror or error}",
        code="E_OUTPUT",
        remedy="see to the store, then run the same command again: finished assets are kept",
    )
