"""A folder of an object store, by its URL: listed, read, and written object by object.

Only the coordinator speaks to a store. Nothing is ever opened for writing there: a file is finished here and
then put, which a store does as a whole or not at all. Credentials come from where the store's own tools look
for them, and no message repeats what a driver says, since that may hold some.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import logging
import os
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.names import display_name
from crm_cli.run.lease import LEASE, Note

T = TypeVar("T")
U = TypeVar("U")

DRIVERS: Mapping[str, tuple[str, str]] = {
    "s3": ("s3fs", "pip install 'crm-cli[s3]'"),
    "gs": ("gcsfs", "pip install gcsfs"),
    "gcs": ("gcsfs", "pip install gcsfs"),
    "az": ("adlfs", "pip install adlfs"),
    "abfs": ("adlfs", "pip install adlfs"),
    "memory": ("fsspec", "pip install fsspec"),
}
"""Stores that may be named, what speaks to each, and how one gets that. Nothing else: a URL is input."""

PAUSES_S = (0.2, 0.6, 1.8, 5.0)
"""How long a failed request waits before each further try, more or less."""

PROBE = "lease.probe-"
"""How objects are named that are written to learn the store's time."""

READS = 5
"""How often a lease that is just being renewed is read again."""

PARTS_BYTES = 100_000_000
"""Larger files go in parts, which s3fs puts over a certain object only by looking before."""

AT_ONCE = 16
"""Requests under way at the same time."""

CHATTY = ("aiobotocore", "aiohttp", "asyncio", "boto3", "botocore", "fsspec", "gcsfs", "s3fs", "urllib3")
"""Loggers that would tell signed requests to whoever asks for -vv."""

NO_CREDENTIALS = frozenset(
    {
        "NoCredentialsError",
        "PartialCredentialsError",
        "CredentialRetrievalError",
        "ProfileNotFound",
        "SSOError",
        "DefaultCredentialsError",
    }
)
"""What drivers call it when they find nothing to sign with; their classes are not imported for it."""

PASSING = frozenset(
    {
        "AzureError",
        "BotoCoreError",
        "ClientError",
        "ClientPayloadError",
        "ConnectionError",
        "EOFError",
        "HTTPException",
        "HttpError",
        "OSError",
        "TimeoutError",
    }
)
"""What drivers raise where another try may do; anything else is a bug and stays one."""

ANY = "*"
"""Tag of whatever stands, if anything does."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stamp:
    """What a store says of an object without reading it."""

    size: int
    etag: str
    """Changes with the bytes."""
    written: datetime | None = field(default=None, compare=False)
    """By the store's clock; None where it does not tell."""


class Taken(FileExistsError):
    """Something else stands where an object was to be put."""


def is_url(text: str) -> bool:
    """Whether something given as a path names a place in a store: `file` URLs do not."""
    return bool(re.match(r"[^/]*://", text)) and not text.startswith("file://")


def local_path(text: str) -> Path:
    """The path that is meant, by itself or as a `file` URL."""
    slip = re.match(rf"({'|'.join(DRIVERS)}):/[^/]", text)
    if slip:
        raise UsageError(f"{text}: one slash short", code="E_URL", remedy=f"write {slip[1]}://…")
    return Path(text.removeprefix("file://"))


def check_url(url: str) -> str:
    """Return a URL as we write it; UsageError for all that is no folder or object of a known store.

    Nothing of a refused URL is repeated beyond its protocol: it may hold a password.
    """
    protocol, _, rest = url.partition("://")
    shown = f"{display_name(protocol)[:40]}://…"
    if protocol not in DRIVERS:
        raise UsageError(
            f"{shown}: no place that crm reads or writes",
            code="E_URL",
            remedy=f"one of {', '.join(sorted({*DRIVERS, 'file'} - {'memory'}))}, without chains",
        )
    authority = rest.partition("/")[0]
    # Azure writes container@account; nobody's name has a colon.
    is_container = protocol in ("az", "abfs") and ":" not in authority
    if ("@" in authority and not is_container) or "?" in rest:
        raise UsageError(
            f"{shown}: holds a user, a password or a query",
            code="E_URL",
            remedy="credentials belong into the environment, as AWS_PROFILE or AWS_ACCESS_KEY_ID",
        )
    parts = rest.rstrip("/").split("/")
    if "::" in rest or not all(parts) or {".", ".."} & set(parts) or not rest.isprintable():
        raise UsageError(f"{shown}: not a folder or object", code="E_URL", remedy="write s3://bucket/folder")
    return f"{protocol}://{'/'.join(parts)}"


def check_endpoint(url: str) -> str:
    """Return the address of a service; UsageError where it is none, or holds a password."""
    if url and not re.fullmatch(r"https?://[A-Za-z0-9.\-:\[\]]+(/[A-Za-z0-9._~/-]*)?", url):
        raise UsageError(
            "--endpoint-url: not an address without user, password and query",
            code="E_URL",
            remedy="write https://host:port",
        )
    return url


def is_plain(name: str) -> bool:
    """Whether an object's name can be a file's: stores take any text."""
    parts = name.split("/")
    return all(part not in ("", ".", "..") and len(os.fsencode(part)) <= 255 for part in parts) and (
        "\0" not in name
    )


class Remote:
    """One folder of a store. What goes wrong is an OSError in our own words.

    blame: what to raise instead where the store fails or refuses, which is more than that nothing is there.
    """

    def __init__(self, driver: Any, root: str, *, url: str, blame: Callable[[OSError], Exception]) -> None:
        self._driver = driver
        self._root = root.rstrip("/")
        self.url = url
        self._blame = blame
        self.is_strict = url.startswith("s3://")
        """Whether it puts over a certain object and nothing else, when told so."""
        self._is_azure = url.startswith(("az://", "abfs://"))

    @classmethod
    def open(
        cls, url: str, *, endpoint: str = "", blame: Callable[[OSError], Exception] = lambda error: error
    ) -> Remote:
        """Get a driver ready; nothing is asked of the store yet."""
        url, endpoint = check_url(url), check_endpoint(endpoint)
        protocol = url.partition("://")[0]
        return cls(_driver(protocol, endpoint), url.partition("://")[2], url=url, blame=blame)

    def url_of(self, name: str) -> str:
        """The URL of an object."""
        return f"{self.url}/{name}" if name else self.url

    def listed(self, folder: str = "") -> dict[str, Stamp]:
        """Every object below a folder, by its name within this one; an object by itself has the name ''."""
        root = self._path(folder)

        def find() -> Mapping[str, Mapping[str, Any]]:
            found: Mapping[str, Mapping[str, Any]] = self._driver.find(root, detail=True)
            return found

        prefix = self._root + "/"
        return {
            _within(path, prefix): _stamp(about)
            for path, about in self._patiently(find).items()
            if about.get("type") == "file" and not path.endswith("/")
        }

    def stamp(self, name: str) -> Stamp | None:
        """What the store says of an object; None where there is none."""
        try:
            about = self._patiently(lambda: self._driver.info(self._path(name)))
        except FileNotFoundError:
            return None
        return _stamp(about) if about.get("type") == "file" else None

    def read(self, name: str, *, first: int | None = None) -> bytes:
        """An object's bytes, or so many of its first ones."""
        data: bytes = self._patiently(
            lambda: self._driver.cat_file(self._path(name), start=None if first is None else 0, end=first)
        )
        return data

    def fetch(self, name: str, to: Path, *, stamp: Stamp | None = None) -> tuple[str, Stamp]:
        """Write an object's bytes into a new file; returns their SHA-256, and what the store says of them.

        stamp: what it said a while ago, which usually spares a question.
        """
        for before in (stamp, None):
            if before is None:
                before = self.stamp(name)
            if before is None:
                raise FileNotFoundError(errno.ENOENT, "no such object")
            self._patiently(lambda: self._driver.get_file(self._path(name), str(to)))
            sha256, size = _digest(to)
            # What was read must be what the store speaks of, at either end of the reading.
            if size == before.size and self.stamp(name) == before:
                return sha256, before
        raise OSError(errno.EIO, "changed while it was read")

    def put(self, file: Path, name: str, *, over: str) -> Stamp:
        """Put a finished file, as a whole or not at all.

        over: the etag that it replaces; '' where nothing may stand, ANY for whatever does. Raises Taken.
        """
        try:
            self._conditionally(
                lambda path, **how: self._driver.put_file(str(file), path, **how),
                name,
                over,
                is_whole=file.stat().st_size < PARTS_BYTES,
            )
        except Taken:
            # The answer to an earlier try of ours may have been lost.
            if not self._holds(name, file):
                raise
        stamp = self.stamp(name)
        if stamp is None or stamp.size != file.stat().st_size:
            raise self._blame(OSError(errno.EREMOTEIO, f"{name} was put, and is not there"))
        return stamp

    def write(self, name: str, data: bytes, *, over: str = ANY) -> None:
        """Put a few bytes; over as for put."""
        self._conditionally(lambda path, **how: self._driver.pipe_file(path, data, **how), name, over)

    def remove(self, name: str) -> None:
        """Remove an object; that it is gone already is no failure."""
        with contextlib.suppress(FileNotFoundError):
            self._patiently(lambda: self._driver.rm_file(self._path(name)))

    def each(self, do: Callable[[T], U], things: Iterable[T]) -> list[U]:
        """Do something with many objects at the same time; results are in order."""
        with ThreadPoolExecutor(max_workers=AT_ONCE, thread_name_prefix="remote") as pool:
            return list(pool.map(do, things))

    def abort_uploads(self, is_ours: Callable[[str], bool]) -> int:
        """End uploads in parts that nobody will finish; returns how many. Only S3 keeps such.

        is_ours: told the name of an object that somebody began to put.
        """
        if not self.is_strict:
            return 0
        bucket, _, folder = self._root.partition("/")
        prefix = folder and f"{folder}/"
        ended, after = 0, {"KeyMarker": ""}
        while True:
            list_page = functools.partial(
                self._driver.call_s3, "list_multipart_uploads", Bucket=bucket, Prefix=prefix, **after
            )
            page = self._patiently(list_page)
            for upload in page.get("Uploads") or ():
                if is_ours(upload["Key"].removeprefix(prefix)):
                    which = {"Bucket": bucket, "Key": upload["Key"], "UploadId": upload["UploadId"]}
                    self._patiently(
                        functools.partial(self._driver.call_s3, "abort_multipart_upload", **which)
                    )
                    ended += 1
            if not page.get("IsTruncated"):
                return ended
            after = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def _holds(self, name: str, file: Path) -> bool:
        """Whether an object has just the bytes of a file."""
        stamp = self.stamp(name)
        is_alike = stamp is not None and stamp.size == file.stat().st_size
        return is_alike and self.read(name) == file.read_bytes()

    def _conditionally(self, put: Callable[..., Any], name: str, over: str, *, is_whole: bool = True) -> None:
        """Put something over what it is meant to replace, and nothing else."""
        condition: dict[str, str | bool] = {}
        if self._is_azure:
            condition["overwrite"] = bool(over)
        elif not over:
            condition["mode"] = "create"
        if over not in ("", ANY) and self.is_strict and is_whole:
            condition["IfMatch"] = over
        elif over not in ("", ANY):  # nearly as good: between this look and the next line lies an instant
            stamp = self.stamp(name)
            if stamp is None or stamp.etag != over:
                raise Taken(errno.EEXIST, "something else stands there")
        try:
            self._patiently(
                lambda: put(self._path(name), **condition), is_conditional=not over or "IfMatch" in condition
            )
        except FileNotFoundError as error:
            if "IfMatch" not in condition:
                raise self._blame(error) from None
            raise Taken(errno.EEXIST, "was removed meanwhile") from error

    def _path(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _patiently(self, ask: Callable[[], T], *, is_conditional: bool = False) -> T:
        """Ask, and ask again after failures that may pass."""
        for pause_s in (*PAUSES_S, None):
            try:
                return ask()
            # Drivers raise classes of libraries that are not imported here.
            except Exception as error:
                kinds = {kind.__name__ for kind in type(error).__mro__}
                final = _final(error, kinds, is_conditional=is_conditional)
                if isinstance(final, OSError) and not isinstance(final, FileNotFoundError | Taken):
                    raise self._blame(final) from None
                if final is not None:
                    raise final from None
                if not kinds & PASSING:
                    raise
                if pause_s is None:
                    words = f"the store does not answer as it should ({type(error).__name__})"
                    raise self._blame(OSError(errno.EREMOTEIO, words)) from None
                time.sleep(pause_s * random.uniform(0.5, 1.5))
        raise AssertionError


class RemoteShelf:
    """Leases as objects of a store, which writes them on a condition."""

    def __init__(self, remote: Remote, folder: str) -> None:
        self._remote = remote
        self._folder = folder

    def names(self) -> Sequence[str]:
        """Names of the leases that stand."""
        names = (PurePosixPath(name).name for name in self._remote.listed(self._folder))
        return sorted(name for name in names if LEASE.fullmatch(name))

    def read(self, name: str) -> Note | None:
        """A lease; None where there is none."""
        for _ in range(READS):
            path = self._path(name)
            try:
                stamp, data = self._remote.stamp(path), self._remote.read(path)
            except FileNotFoundError:
                return None
            if stamp is not None and stamp == self._remote.stamp(path):
                return Note(data=data, tag=stamp.etag)
        raise OSError(errno.EREMOTEIO, "a lease changes all the time")

    def age_s(self, name: str) -> float:
        """Seconds since a lease was written, by the store's clock: that of an object written now."""
        probe = self._path(f"{PROBE}{os.urandom(4).hex()}")
        self._remote.write(probe, b"")
        now, then = self._remote.stamp(probe), self._remote.stamp(self._path(name))
        self._remote.remove(probe)
        if now is None or now.written is None or then is None or then.written is None:
            return 0.0
        return (now.written - then.written).total_seconds()

    def write(self, name: str, data: bytes, *, over: str) -> str | None:
        """Write a lease over the one of this tag, or where none stands if that is empty."""
        path = self._path(name)
        try:
            self._remote.write(path, data, over=over)
        except Taken:
            return None
        stamp = self._remote.stamp(path)
        return stamp.etag if stamp else None

    def remove(self, name: str, tag: str) -> None:
        """Remove a lease if it still has this tag."""
        stamp = self._remote.stamp(self._path(name))
        if stamp is not None and stamp.etag == tag:
            self._remote.remove(self._path(name))

    def clear_probes(self) -> None:
        """Remove what killed processes left that had asked for the time."""
        names = [name for name in self._remote.listed(self._folder) if name.startswith(self._path(PROBE))]
        self._remote.each(self._remote.remove, names)

    def _path(self, name: str) -> str:
        return f"{self._folder}/{name}"


def _driver(protocol: str, endpoint: str) -> Any:
    """What speaks to a store, imported only here."""
    module, remedy = DRIVERS[protocol]
    for name in CHATTY:
        logging.getLogger(name).setLevel(logging.WARNING)
    # No listing is kept: others write there too.
    settings: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    if protocol == "s3":
        # Tries of ours around tries of two libraries would make minutes of every silence.
        settings["config_kwargs"] = {"retries": {"total_max_attempts": 1}}
        # Many objects at a time, each in one piece: pieces may be of two objects.
        settings["max_concurrency"] = 1
    if endpoint:
        settings["endpoint_url"] = endpoint
    try:
        import fsspec

        driver = fsspec.filesystem(protocol, **settings)
    except ImportError as error:
        raise EnvironmentProblem(
            f"{protocol}://: {module} is not installed", code="E_DRIVER", remedy=remedy
        ) from error
    driver.retries = 1
    return driver


def _final(error: Exception, kinds: set[str], *, is_conditional: bool) -> Exception | None:
    """An error that no further try would mend, in our own words; None where one might."""
    if kinds & NO_CREDENTIALS:
        return EnvironmentProblem(
            "no credentials for the store were found",
            code="E_CREDENTIALS",
            remedy="set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or what it reads",
        )
    if isinstance(error, FileExistsError) or getattr(error, "errno", None) == errno.EINVAL:
        if is_conditional:
            return Taken(errno.EEXIST, "something else stands there")
        return OSError(errno.EINVAL, "the store does not take this name")
    if isinstance(error, FileNotFoundError):
        return FileNotFoundError(errno.ENOENT, "no such bucket, folder or object")
    if isinstance(error, PermissionError):
        return PermissionError(errno.EACCES, "the store denies access")
    return None


def _digest(file: Path) -> tuple[str, int]:
    """SHA-256 and size of a file."""
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
        return digest.hexdigest(), stream.tell()


def _within(path: str, prefix: str) -> str:
    """An object's name within a folder; '' for the object that the URL itself names."""
    return path.lstrip("/").removeprefix(prefix) if path.lstrip("/") + "/" != prefix else ""


def _stamp(about: Mapping[str, Any]) -> Stamp:
    """Size, etag and time, under the names that different drivers have; a time is better than no etag."""
    written = _when(about)
    etag = next((str(about[key]).strip('"') for key in ("ETag", "etag", "md5Hash") if about.get(key)), "")
    return Stamp(
        size=int(about["size"]), etag=etag or (written.isoformat() if written else ""), written=written
    )


def _when(about: Mapping[str, Any]) -> datetime | None:
    for key in ("LastModified", "updated", "last_modified", "created"):
        value = about.get(key)
        if isinstance(value, str):
            value = datetime.fromisoformat(value)
        elif isinstance(value, int | float):
            value = datetime.fromtimestamp(value, UTC)
        if isinstance(value, datetime):
            return value
    return None
