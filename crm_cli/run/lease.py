"""Who may write where nothing can be locked: a note that its holder keeps fresh.

    lease                     of a run
    lease.shard-3-of-16       of that shard

An object store has no locks, and some network disks have none that work. A note that nobody has renewed
for ten minutes is taken over. Like every lock it saves work; it is not what keeps files right.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import re
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from crm_cli.errors import CrmError, Locked
from crm_cli.names import display_name
from crm_cli.run.shards import Shard
from crm_cli.run.wire import dumps

HEARTBEAT_S = 60.0
"""How often a holder renews its lease."""

STALE_S = 600.0
"""After so long without a sign of life a lease is taken over: ten missed beats are no hiccup."""

SETTLE_S = 0.5
"""How long whoever took a stale lease over waits for rivals that found it stale at the same instant."""

BLINK_S = 0.4
"""How long a run waits at least: `crm status` shares a lock for an instant, and shards that start together
may each see the other first."""

NO_LOCKS = frozenset({errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a disk says that has no locks."""

T = TypeVar("T")

LEASE = re.compile(r"lease(\.shard-\d+-of-\d+)?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Note:
    """A lease as it stands."""

    data: bytes
    tag: str
    """Changes with every write."""

    @property
    def holder(self) -> Mapping[str, Any]:
        """What it says of its holder; nothing where that cannot be read."""
        try:
            holder = json.loads(self.data)
        except (ValueError, RecursionError):
            return {}
        return holder if isinstance(holder, dict) else {}


class Shelf(Protocol):
    """Where leases are kept."""

    def names(self) -> Sequence[str]:
        """Names of the leases that stand."""

    def read(self, name: str) -> Note | None:
        """A lease; None where there is none."""

    def age_s(self, name: str) -> float:
        """Seconds since a lease was written, by the clock of what keeps it: clocks of machines differ."""

    def write(self, name: str, data: bytes, *, over: str) -> str | None:
        """Write a lease over the one of this tag, or where none stands if that is empty.

        Returns its tag; None, and nothing written, where another one stands.
        """

    def remove(self, name: str, tag: str) -> None:
        """Remove a lease if it still has this tag."""


class Lease:
    """A lease that is held, and renewed by a thread of its own until it is released."""

    def __init__(self, shelf: Shelf, name: str, *, run: str, tag: str) -> None:
        self.is_lost = False
        """Whether somebody else has taken it over."""
        self._shelf = shelf
        self._name = name
        self._run = run
        self._tag = tag
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="lease", daemon=True)
        self._thread.start()

    def beat(self) -> None:
        """Renew the lease, however old it is: as long as nobody took it over, it is ours."""
        data = us(self._run)
        try:
            tag = self._shelf.write(self._name, data, over=self._tag)
            if tag is None:
                # The answer to our own write may have been lost.
                found = self._shelf.read(self._name)
                tag = found.tag if found and found.data == data else None
        except (OSError, CrmError):
            return  # the next beat may get through
        if tag is None:
            self.is_lost = True
        else:
            self._tag = tag

    def release(self) -> None:
        """Let others in."""
        self._is_over.set()
        self._thread.join()
        if not self.is_lost:
            with contextlib.suppress(OSError, CrmError):  # it will be found stale
                self._shelf.remove(self._name, self._tag)

    def _renew(self) -> None:
        while not self._is_over.wait(HEARTBEAT_S) and not self.is_lost:
            self.beat()


def try_lease(shelf: Shelf, *, run: str, shard: Shard | None = None) -> Lease | str:
    """Take a lease, or say in words who has one that this would be in the way of."""
    name, data = lease_name(shard), us(run)
    tag = shelf.write(name, data, over="")
    found = shelf.read(name)
    if tag is None and found is not None and found.data != data:
        if not is_stale(shelf, name, found):
            return in_words(name, found.holder)
        tag = shelf.write(name, data, over=found.tag)
        if tag is not None:
            time.sleep(SETTLE_S)
        found = shelf.read(name)
    # Not every store keeps its word about writing only where nothing stands.
    if found is None or found.data != data:
        return in_words(name, found.holder if found else {})
    lease = Lease(shelf, name, run=run, tag=found.tag)
    # Ours stands before others are looked for: of two that start together, one sees the other at least.
    rival = rival_of(shelf, shard, besides=name)
    if rival is not None:
        lease.release()
        return rival
    return lease


def take_lease(
    shelf: Shelf,
    *,
    place: str,
    run: str,
    shard: Shard | None = None,
    wait_s: float = 0.0,
    is_unwanted: Callable[[], bool] = lambda: False,
) -> Lease:
    """Take a lease, or raise Locked with the name of the holder. place: what messages call it."""

    def attempt(held: ExitStack) -> Lease | str:
        return try_lease(shelf, run=run, shard=shard)

    return until_free(attempt, place=place, wait_s=wait_s, is_unwanted=is_unwanted)


def until_free(
    attempt: Callable[[ExitStack], T | str], *, place: str, wait_s: float, is_unwanted: Callable[[], bool]
) -> T:
    """Attempt until something is held; words are who holds it instead, and end in Locked.

    attempt: what it puts on its stack is let go again where it returns words.
    """
    patience = time.monotonic() + max(wait_s, BLINK_S)
    while True:
        with ExitStack() as held:
            got = attempt(held)
            if not isinstance(got, str):
                held.pop_all()
                return got
        if time.monotonic() >= patience or is_unwanted():
            raise Locked(
                f"{display_name(place)}: another run holds this folder ({got})",
                code="E_LOCKED",
                remedy="wait for it; `crm convert --wait-lock TIME` does",
            )
        # Not all at the same beat: shards of two divisions would see each other again and again.
        time.sleep(BLINK_S * random.uniform(0.15, 0.35))


def rival_of(shelf: Shelf, shard: Shard | None, *, besides: str = "") -> str | None:
    """Words about a lease that is in the way of a run or a shard; stale ones are removed.

    besides: the name of its own.
    """
    for name in shelf.names():
        # Parts of one division have no photo in common; a whole run has some with every part.
        is_sibling = shard is not None and name.endswith(f"-of-{shard.of}")
        if name == besides or (is_sibling and name != lease_name(shard)):
            continue
        found = shelf.read(name)
        if found is None:
            continue
        if not is_stale(shelf, name, found):
            return in_words(name, found.holder)
        # Its holder may only be asleep, and must learn that it has lost the folder.
        shelf.remove(name, found.tag)
    return None


def holders(shelf: Shelf) -> list[Mapping[str, Any]]:
    """Who is at work by the leases."""
    notes = ((name, shelf.read(name)) for name in shelf.names())
    return [note.holder for name, note in notes if note and not is_stale(shelf, name, note)]


def is_stale(shelf: Shelf, name: str, note: Note) -> bool:
    """Whether nobody holds a lease any more."""
    return _is_dead(note.holder) or shelf.age_s(name) > STALE_S


def lease_name(shard: Shard | None) -> str:
    """What the lease of a run or a shard is called."""
    return f"lease.{shard}" if shard else "lease"


def us(run: str) -> bytes:
    """A line about this process; no two are equal."""
    about = {
        "host": socket.gethostname(), "boot": boot_id(), "space": _process_space(), "pid": os.getpid(),
        "t": time.time(), "run": run, "once": os.urandom(4).hex(),
    }  # fmt: skip
    return dumps(about).encode("ascii") + b"\n"


def in_words(name: str, holder: Mapping[str, Any]) -> str:
    """Words about who holds a lock or lease; for the message only, never to decide anything."""
    part = re.sub(r"^(lock|lease)\.?", "", name).replace("-", " ")
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(holder["t"])))
        who = f"process {int(holder['pid'])} on {display_name(str(holder['host']))} since {since}"
    except (ValueError, KeyError, TypeError, OverflowError, OSError):
        who = "it has not said who it is"
    return f"{part}: {who}" if part else who


def boot_id() -> str:
    """Which boot of this machine: a process number means nothing after a restart."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
    except OSError:
        return ""


def _process_space() -> str:
    """Which container of this machine: each counts its processes by itself."""
    try:
        return str(Path("/proc/self/ns/pid").readlink())
    except OSError:
        return ""


def _is_dead(holder: Mapping[str, Any]) -> bool:
    """Whether a holder on this very machine has ended without a word."""
    here = {"host": socket.gethostname(), "boot": boot_id(), "space": _process_space()}
    if not all(here.values()) or any(holder.get(key) != value for key, value in here.items()):
        return False
    pid = holder.get("pid")
    if type(pid) is not int or pid <= 0:
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # somebody else's, and alive
        pass
    return False


class FileShelf:
    """Leases as files of a folder, on a disk without locks.

    A file system can write a file where none stands, but not replace one on a condition: of two that take
    over the same stale lease, the one that wrote last has it.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> Sequence[str]:
        """Names of the leases that stand."""
        return sorted(path.name for path in self._folder.glob("lease*") if LEASE.fullmatch(path.name))

    def read(self, name: str) -> Note | None:
        """A lease; None where there is none."""
        try:
            with (self._folder / name).open("rb") as file:
                data = file.read(4096)
        except FileNotFoundError:
            return None
        return Note(data=data, tag=_digest(data))

    def age_s(self, name: str) -> float:
        """Seconds since a lease was written, by the clock of the disk, which may be another machine's."""
        try:
            written = (self._folder / name).stat().st_mtime
        except FileNotFoundError:
            return 0.0
        part = self._part()
        try:
            part.touch()
            return part.stat().st_mtime - written
        except OSError:  # whoever may only read asks the own clock
            return time.time() - written
        finally:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)

    def write(self, name: str, data: bytes, *, over: str) -> str | None:
        """Write a lease over the one of this tag, or where none stands if that is empty."""
        path = self._folder / name
        if not over:
            try:
                with path.open("xb") as file:
                    file.write(data)
                    file.flush()
                    os.fsync(file.fileno())
            except FileExistsError:
                return None
            return _digest(data)
        found = self.read(name)
        if found is None or found.tag != over:
            return None
        part = self._part()
        try:
            part.write_bytes(data)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        return _digest(data)

    def remove(self, name: str, tag: str) -> None:
        """Remove a lease if it still has this tag."""
        found = self.read(name)
        if found is not None and found.tag == tag:
            (self._folder / name).unlink(missing_ok=True)

    def _part(self) -> Path:
        return self._folder / f".crm-lease-{os.getpid()}-{os.urandom(4).hex()}.part"


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
