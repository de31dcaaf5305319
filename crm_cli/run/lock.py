"""Who may write to an output folder: one run, or the shards of one division, each once.

    OUT/.crm/lock                   held alone by a run, shared by shards
    OUT/.crm/lock.shard-3-of-16     held by that shard alone

All are held with flock: the kernel frees them however a process ends. What they say is for messages, and to
tell whose leftovers are whose; whether somebody is at work is asked of the kernel alone. Only on a disk that
has no locks, as some network disks, leases take their place: see crm_cli/run/lease.py.
"""

from __future__ import annotations

import fcntl
import json
import os
import socket
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crm_cli.run.lease import (
    NO_LOCKS,
    FileShelf,
    Lease,
    holders,
    in_words,
    rival_of,
    try_lease,
    until_free,
    us,
)
from crm_cli.run.shards import Shard


@dataclass(frozen=True, slots=True)
class Lock:
    """What a run holds of an output folder."""

    held: ExitStack

    def release(self) -> None:
        """Let others in."""
        self.held.close()


def take_lock(
    private: Path,
    *,
    run: str,
    shard: Shard | None = None,
    wait_s: float = 0.0,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Lock:
    """Lock an output folder's `.crm` for a run or a shard, or raise Locked with the name of the holder.

    is_unwanted: asked while waiting; true ends the wait.
    """

    def attempt(held: ExitStack) -> Lock | str:
        try:
            rival = _find_rival(private, shard, held)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            lease = try_lease(FileShelf(private), run=run, shard=shard)
            if not isinstance(lease, Lease):
                return lease
            held.callback(lease.release)
            _own_path(private, shard).touch()
        else:
            if rival is not None:
                return in_words(rival.name, _signature(rival))
            # Another machine may see no locks on this disk.
            words = rival_of(FileShelf(private), shard)
            if words is not None:
                return words
        _sign(_own_path(private, shard), run)
        return Lock(held.pop_all())

    return until_free(attempt, place=str(private.parent), wait_s=wait_s, is_unwanted=is_unwanted)


def is_at_work(private: Path) -> bool:
    """Whether a run or a shard is at work; asked for an instant, shorter than a starting run waits."""
    by_locks = any(is_held(path) for path in (private / "lock", *_shard_locks(private)))
    return by_locks or bool(holders(FileShelf(private)))


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock alone."""
    with ExitStack() as held:
        try:
            descriptor = held.enter_context(_opened(path, os.O_RDONLY))
        except OSError:
            return False
        try:
            return not _try_lock(descriptor, fcntl.LOCK_SH)
        except OSError as error:
            if error.errno not in NO_LOCKS:
                raise
            return False


def shards_at_work(private: Path, leftovers: Collection[str]) -> frozenset[str]:
    """Runs of the shards at work, of those that leftovers are named after.

    Other locks are not even touched: a shard that is about to start would find its own taken. Shards of other
    machines count as well: some network disks show no machine the locks of another.
    """
    at_work = set()
    here = socket.gethostname()
    leased = {holder.get("run") for holder in holders(FileShelf(private))}
    for path in _shard_locks(private):
        holder = _signature(path)
        run = str(holder.get("run", ""))
        has_left = bool(run) and any(is_named_after(name, run) for name in leftovers)
        if has_left and (holder.get("host") != here or run in leased or is_held(path)):
            at_work.add(run)
    return frozenset(at_work)


def is_named_after(name: str, run: str) -> bool:
    """Whether a temporary file or folder is a run's."""
    return name.startswith((f"{run}-", f".crm-{run}-"))


def _find_rival(private: Path, shard: Shard | None, held: ExitStack) -> Path | None:
    """Lock what a run needs, or name the lock that somebody else holds."""
    whole, own = private / "lock", _own_path(private, shard)
    shared = fcntl.LOCK_SH if shard else fcntl.LOCK_EX
    if not _try_lock(held.enter_context(_opened(whole)), shared):
        return next(filter(is_held, () if shard else _shard_locks(private)), whole)
    if shard is None:
        return None
    if not _try_lock(held.enter_context(_opened(own)), fcntl.LOCK_EX):
        return own
    # Part 1 of 2 and part 1 of 3 have photos in common. Each takes its own lock before it looks for others:
    # of two that start together, one sees the other at least.
    others = (path for path in _shard_locks(private) if not path.name.endswith(f"-of-{shard.of}"))
    return next(filter(is_held, others), None)


def _own_path(private: Path, shard: Shard | None) -> Path:
    return private / (f"lock.{shard}" if shard else "lock")


def _shard_locks(private: Path) -> list[Path]:
    return sorted(private.glob("lock.shard-*-of-*"))


@contextmanager
def _opened(path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> Iterator[int]:
    # Close-on-exec: a worker that outlived its parent would otherwise keep the lock alive.
    descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    """Take a lock if it is free."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _sign(path: Path, run: str) -> None:
    """Say in a lock who holds it."""
    with path.open("r+b") as file:
        file.truncate()
        file.write(us(run))


def _signature(path: Path) -> Mapping[str, Any]:
    """What a lock says; nothing where that cannot be read."""
    try:
        with path.open("rb") as file:
            signature = json.loads(file.read(4096))
    except (OSError, ValueError, RecursionError):
        return {}
    return signature if isinstance(signature, dict) else {}
