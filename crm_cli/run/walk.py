"""Find photos, name their assets after them, refuse collisions.

Names are decided here for the whole run, before anything starts: the output folder mirrors the input folder,
and two photos that would write the same file are an error, never "the first one wins".
"""

from __future__ import annotations

import hashlib
import os
import stat
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

from crm_cli.errors import NoInput, UsageError
from crm_cli.names import display_name

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"}
)
"""What is taken for a photo, in lower case: image libraries read much more, and not all of it safely."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One photo and the name of its asset."""

    root: Path
    path: PurePosixPath
    """Relative to the root."""
    stem: PurePosixPath
    """Relative to the output folder, without the suffix that each format adds."""

    @property
    def file(self) -> Path:
        """Where the photo is."""
        return self.root / self.path

    @property
    def asset(self) -> str:
        """The asset's identity: the relative path, in the one Unicode form that all systems agree on."""
        return _identity(self.path)

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the asset's identity, safe in file names."""
        return asset_id(self.path)


def asset_id(path: PurePosixPath) -> str:
    """Sixteen hexadecimal digits of the identity of a photo's asset."""
    return hashlib.sha256(os.fsencode(_identity(path))).hexdigest()[:16]


def _identity(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """Something with a photo's name that is not taken, and why."""

    path: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which of the photos found are wanted."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Glob patterns for the relative path or the bare name; `*` also crosses folders."""
    is_recursive: bool = True
    limit: int | None = None

    def wants(self, path: PurePosixPath) -> bool:
        """Whether the patterns let a photo in."""
        return (not self.include or _matches(path, self.include)) and not _matches(path, self.exclude)


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What the inputs hold, in the order of their names' bytes."""

    photos: tuple[Found, ...]
    passed_over: tuple[PassedOver, ...]


def walk(inputs: Sequence[Path], out: Path, *, select: Selection, keep_ext: bool = False) -> Walk:
    """Find the photos of all inputs, each a folder or a file.

    out: the output folder; it may lie inside an input and is not searched. keep_ext: name assets
    `a.jpg.glb` instead of `a.glb`. Raises UsageError where two photos would write the same files.
    """
    photos: list[Found] = []
    passed_over: list[PassedOver] = []
    for given in inputs:
        for root, path in _candidates(given, out, select, passed_over):
            if select.wants(path):
                stem = path if keep_ext else path.with_suffix("")
                photos.append(Found(root=root, path=path, stem=stem))
    photos = _without_repeats(photos)
    photos.sort(key=lambda photo: os.fsencode(photo.path))
    _refuse_collisions(photos)
    return Walk(photos=tuple(photos[: select.limit]), passed_over=tuple(passed_over))


def absolute(path: Path) -> Path:
    """Make a path absolute; a linked folder keeps the name that the caller gave."""
    return Path(os.path.abspath(path))  # noqa: PTH100


def _candidates(
    given: Path, out: Path, select: Selection, passed_over: list[PassedOver]
) -> Iterator[tuple[Path, PurePosixPath]]:
    """Photos of one input as (root, relative path)."""
    try:
        is_folder = stat.S_ISDIR(given.stat().st_mode)
    except OSError as error:
        raise NoInput(
            f"{display_name(given)}: {error.strerror}", code="E_INPUT_MISSING", remedy="check the path"
        ) from error
    given = absolute(given)
    if is_folder:
        if out.exists() and given.samefile(out):
            raise UsageError(
                f"{display_name(given)}: is the input and the output folder",
                code="E_OUT_IS_INPUT",
                remedy="choose another folder with -o",
            )
        paths: Iterable[PurePosixPath] = _search(given, PurePosixPath(), out, select, passed_over)
        root = given
    else:
        root, paths = given.parent, [PurePosixPath(given.name)]
    inside = root.resolve()
    for path in paths:
        reason = _why_not(root / path, inside)
        if reason is None:
            yield root, path
        else:
            passed_over.append(PassedOver(path=str(path), reason=reason))


def _search(
    root: Path, folder: PurePosixPath, out: Path, select: Selection, passed_over: list[PassedOver]
) -> Iterator[PurePosixPath]:
    """Relative paths of everything that is named like a photo, folder by folder."""
    try:
        with os.scandir(root / folder) as listing:
            entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
    except OSError as error:
        passed_over.append(PassedOver(path=str(folder), reason=f"cannot be listed ({error.strerror})"))
        return
    for entry in entries:
        if entry.name.startswith("."):
            continue
        # Linked folders are not followed: they may lead out of the input, or round in a circle.
        if entry.is_dir(follow_symlinks=False):
            if select.is_recursive and not _is_same(entry, out):
                yield from _search(root, folder / entry.name, out, select, passed_over)
        elif PurePosixPath(entry.name).suffix.lower() in EXTENSIONS:
            yield folder / entry.name


def _is_same(entry: os.DirEntry[str], folder: Path) -> bool:
    """Whether an entry is the given folder."""
    try:
        other = folder.stat()
    except OSError:
        return False
    here = entry.stat(follow_symlinks=False)
    return (here.st_dev, here.st_ino) == (other.st_dev, other.st_ino)


def _why_not(file: Path, inside: Path) -> str | None:
    """Say why a file is not taken: only regular files are opened, since a pipe or a device never ends."""
    if file.suffix.lower() not in EXTENSIONS:
        return f"'{file.suffix}' is not a photo's extension"
    try:
        mode = file.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = file.resolve(strict=True)
            if not target.is_relative_to(inside):
                return "a link that leads out of the input folder"
            mode = target.stat().st_mode
    except (OSError, RuntimeError) as error:  # RuntimeError: pathlib's word for a circle of links
        return f"cannot be read ({getattr(error, 'strerror', None) or 'links run in a circle'})"
    return None if stat.S_ISREG(mode) else "not a regular file"


def _matches(path: PurePosixPath, patterns: Iterable[str]) -> bool:
    """Whether any pattern fits the relative path or the bare name."""
    return any(fnmatchcase(str(path), pattern) or fnmatchcase(path.name, pattern) for pattern in patterns)


def _without_repeats(photos: Sequence[Found]) -> list[Found]:
    """Drop a photo that was given twice, as in `photos photos/a.jpg`."""
    return list(dict.fromkeys(photos))


def _refuse_collisions(photos: Sequence[Found]) -> None:
    """Raise UsageError where two photos have one asset name, be it on a disk that folds case."""
    taken: dict[str, Found] = {}
    for photo in photos:
        folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", str(photo.stem)).casefold())
        other = taken.setdefault(folded, photo)
        if other is photo:
            continue
        if photo.path == other.path:
            names = f"{display_name(other.file)} and {display_name(photo.file)}"
            remedy = "convert the folders one at a time, or give the folder above them"
        else:
            names = f"{display_name(other.path)} and {display_name(photo.path)}"
            remedy = "--keep-ext names assets a.jpg.glb and a.png.glb; otherwise rename one"
        raise UsageError(f"{names} would write the same files", code="E_NAME_COLLISION", remedy=remedy)
