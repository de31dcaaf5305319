"""Photos in an object store: listed with what the store says of each, fetched when their turn comes."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crm_cli.errors import EnvironmentProblem, NoInput, UsageError
from crm_cli.names import display_name
from crm_cli.run.files import Input
from crm_cli.run.options import RunOptions
from crm_cli.run.remote import Remote, Stamp, check_url, is_plain
from crm_cli.run.search import EXTENSIONS, PassedOver


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """Where a photo is until its turn comes. It is only ever read."""

    remote: Remote
    name: str
    stamp: Stamp
    """What the store said when it was listed."""

    @property
    def url(self) -> str:
        """What people call it."""
        return self.remote.url_of(self.name)

    def is_same(self, known: Input) -> bool:
        """Whether the store says of it what it said when these bytes were read."""
        return bool(known.etag) and (known.size, known.etag) == (self.stamp.size, self.stamp.etag)

    def fetch(self, to: Path) -> Input:
        """Write the photo into a new file; OSError where that fails or it is not what was listed any more."""
        to.parent.mkdir(parents=True, exist_ok=True)
        sha256, stamp = self.remote.fetch(self.name, to, stamp=self.stamp)
        return Input(sha256=sha256, size=stamp.size, mtime_ns=0, inode=0, etag=stamp.etag)

    def read(self) -> Input:
        """Say what the photo holds, and keep nothing of it."""
        with tempfile.TemporaryDirectory(prefix="crm-photo-") as folder:
            return self.fetch(Path(folder) / "photo")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tree:
    """The photos of one URL."""

    url: str
    photos: Sequence[tuple[PurePosixPath, Source]]
    """Each with its path relative to the URL; that of a single photo is its name."""
    passed_over: Sequence[PassedOver]


def list_tree(url: str, *, endpoint: str = "", out: str = "", is_recursive: bool = True) -> Tree:
    """List the photos below a URL, or the one photo that it names.

    out: URL of the output folder; it may lie below and is not listed. Raises NoInput where nothing stands.
    """
    url = check_url(url)
    if url == out:
        raise UsageError(
            f"{display_name(url)}: is the input and the output folder",
            code="E_OUT_IS_INPUT",
            remedy="choose another folder with -o",
        )
    remote = Remote.open(url, endpoint=endpoint)
    try:
        listed = remote.listed()
    except OSError as error:
        reason = error.strerror or str(error)
        if isinstance(error, FileNotFoundError | PermissionError):
            raise _missing(url, reason) from error
        # A scheduler must not take a store that is away for one that holds nothing.
        where = f" at {display_name(endpoint)}" if endpoint else ""
        raise EnvironmentProblem(
            f"{display_name(url)}: {reason}{where}",
            code="E_STORE",
            remedy="see to the store, or --endpoint-url",
        ) from error
    if not listed:
        raise _missing(url, "no such folder or object")
    if "" in listed:  # the URL is a photo's own
        above, _, name = url.rpartition("/")
        remote, listed = Remote.open(above, endpoint=endpoint), {name: listed[""]}
    passed_over: list[PassedOver] = []
    photos = [
        (PurePosixPath(name), Source(remote=remote, name=name, stamp=stamp))
        for name, stamp in _taken(listed, passed_over, outside=_below(remote.url, out))
        if is_recursive or "/" not in name
    ]
    return Tree(url=url, photos=photos, passed_over=passed_over)


def trees(options: RunOptions) -> Iterator[Tree]:
    """The photos of all URLs that a run was given, also in lists."""
    out = check_url(options.place) if options.place else ""
    for url in (*options.urls, *(listed.url for listed in options.listed if listed.url)):
        yield list_tree(url, endpoint=options.endpoint, out=out, is_recursive=options.select.is_recursive)


def _taken(
    listed: dict[str, Stamp], passed_over: list[PassedOver], *, outside: str
) -> Iterator[tuple[str, Stamp]]:
    """What is named like a photo, by the rules for folders."""
    mark = "/.crm/FORMAT"
    ours = [name.removesuffix(mark) for name in listed if name.endswith(mark)]
    passed_over += [PassedOver(path=name, reason="an output folder of crm") for name in ours]
    for name, stamp in listed.items():
        path = PurePosixPath(name)
        if any(path.is_relative_to(folder) for folder in ours):
            continue
        if path.suffix.lower() not in EXTENSIONS or (outside and name.startswith(outside)):
            continue
        if not is_plain(name):
            passed_over.append(PassedOver(path=name, reason="no name for a file"))
        elif not any(part.startswith(".") for part in path.parts):
            yield name, stamp


def _below(url: str, out: str) -> str:
    """The output folder's name within an input, with a slash behind it; empty where it is not inside."""
    return f"{out.removeprefix(url + '/')}/" if out.startswith(f"{url}/") else ""


def _missing(url: str, reason: str) -> NoInput:
    return NoInput(f"{display_name(url)}: {reason}", code="E_INPUT_MISSING", remedy="check the URL")


def staged(source: Source, scratch: Path, path: PurePosixPath) -> tuple[Path, Input]:
    """Fetch a photo into an attempt's own folder, which goes with it; returns the root it is under there."""
    root = scratch / ".photo"
    return root, source.fetch(root / path)
