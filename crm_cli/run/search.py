"""Look into folders for what is named like a photo; only regular files inside the input are taken."""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crm_cli.errors import NoInput, UsageError
from crm_cli.names import display_name
from crm_cli.run.lists import Listed

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".avif", ".heic", ".heif"}
)
"""What is taken for a photo, in lower case: image libraries read much more, and not all of it safely."""

_ENDINGS = tuple(EXTENSIONS)

MAX_SHOWN = 200
"""How much of a path that is none is repeated: lists may turn out to be something else altogether."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassedOver:
    """Something with a photo's name that is not taken, and why."""

    path: str
    reason: str
    is_loss: bool = False
    """Whether photos may be lost with it: a folder that cannot be listed is no photo, but may hold some."""


def absolute(path: Path) -> Path:
    """Make a path absolute; a linked folder keeps the name that the caller gave."""
    return Path(os.path.abspath(path))  # noqa: PTH100


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where one input is looked for photos."""

    root: Path
    path: PurePosixPath
    """Relative to the root: a photo, or a folder to search."""
    is_folder: bool


def start_of(given: Path) -> Start:
    """Name the assets of a folder relative to it, and that of a file after the file alone."""
    is_folder = _is_folder(given, shown=display_name(given), remedy="check the path")
    given = absolute(given)
    if is_folder:
        return Start(root=given, path=PurePosixPath(), is_folder=True)
    return Start(root=given.parent, path=PurePosixPath(given.name), is_folder=False)


def start_of_listed(listed: Listed) -> Start:
    """Name the assets of a relative path after all of it: lists name photos of many folders."""
    shown = display_name(listed.path)
    shown = shown if len(shown) <= MAX_SHOWN else f"{shown[:MAX_SHOWN]}…"
    given = listed.folder / listed.path
    is_folder = _is_folder(given, shown=f"{listed.place}: {shown}", remedy="check the list")
    if listed.path.is_absolute() or ".." in listed.path.parts:
        return start_of(given)
    return Start(root=listed.folder, path=PurePosixPath(listed.path), is_folder=is_folder)


def _is_folder(given: Path, *, shown: str, remedy: str) -> bool:
    try:
        return stat.S_ISDIR(given.stat().st_mode)
    except OSError as error:
        raise NoInput(f"{shown}: {error.strerror}", code="E_INPUT_MISSING", remedy=remedy) from error


def candidates(
    start: Start, out: Path, passed_over: list[PassedOver], *, is_recursive: bool, follow_symlinks: bool
) -> Iterator[PurePosixPath]:
    """Photos of one input, relative to its root."""
    paths: Iterable[tuple[PurePosixPath, bool]] = [(start.path, False)]
    if start.is_folder:
        given = start.root / start.path
        here = _identity_of(given)
        if here is not None and here == _identity_of(out):
            raise UsageError(
                f"{display_name(given)}: is the input and the output folder",
                code="E_OUT_IS_INPUT",
                remedy="choose another folder with -o",
            )
        paths = _search(start, out, passed_over, is_recursive=is_recursive, follow_symlinks=follow_symlinks)
    inside = None if follow_symlinks else start.root.resolve()
    for path, is_plain in paths:
        reason = None if is_plain else _why_not(start.root / path, inside)
        if reason is None:
            yield path
        else:
            passed_over.append(PassedOver(path=str(path), reason=reason))


def _search(
    start: Start, out: Path, passed_over: list[PassedOver], *, is_recursive: bool, follow_symlinks: bool
) -> Iterator[tuple[PurePosixPath, bool]]:
    """Relative paths of everything that is named like a photo, and whether it is a file and no link."""
    output = _identity_of(out)
    searched: dict[tuple[int, int], PurePosixPath] = {}
    folders = [start.path]
    links: deque[PurePosixPath] = deque()
    # Linked folders come last, and each folder once: what is inside the input keeps its own name, links that
    # lead round in a circle end, and so do links that lead to the same place in more and more ways.
    while folders or links:
        is_link = not folders
        folder = links.popleft() if is_link else folders.pop()
        here = _identity_of(start.root / folder)
        if here is not None and (
            here == output or (is_link and (start.root / folder).resolve().is_relative_to(out.resolve()))
        ):
            continue
        if here is not None and here in searched:
            reason = f"the same folder as {searched[here]}, which is searched already"
            passed_over.append(PassedOver(path=str(folder), reason=reason))
            continue
        if here is not None and follow_symlinks:
            searched[here] = folder
        try:
            with os.scandir(start.root / folder) as listing:
                entries = sorted(listing, key=lambda entry: os.fsencode(entry.name))
        except OSError as error:
            reason = f"cannot be listed: {error.strerror}"
            passed_over.append(PassedOver(path=str(folder), reason=reason, is_loss=True))
            continue
        if folder != start.path and (start.root / folder / ".crm" / "FORMAT").exists():
            passed_over.append(PassedOver(path=str(folder), reason="an output folder of crm"))
            continue
        inner = []
        for entry in entries:
            if entry.name.startswith("."):
                continue
            if entry.is_dir(follow_symlinks=False):
                inner.append(folder / entry.name)
            elif follow_symlinks and _leads_to_folder(entry):
                if is_recursive:
                    links.append(folder / entry.name)
            elif entry.name.lower().endswith(_ENDINGS):
                # The listing knows: asking for each would take as long as all the rest.
                yield folder / entry.name, entry.is_file(follow_symlinks=False)
        if is_recursive:
            folders += reversed(inner)


def _leads_to_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a link to a folder."""
    try:
        return entry.is_symlink() and entry.is_dir()
    except OSError:
        return False


def _identity_of(folder: Path) -> tuple[int, int] | None:
    """What makes a folder itself, whatever its name; None where it cannot be asked."""
    try:
        found = folder.stat()
    except OSError:
        return None
    return (found.st_dev, found.st_ino)


def _why_not(file: Path, inside: Path | None) -> str | None:
    """Say why a file is not taken: only regular files are opened, since a pipe or a device never ends.

    inside: where links must lead; None where they may lead anywhere.
    """
    if file.suffix.lower() not in EXTENSIONS:
        return f"'{file.suffix}' is not a photo's extension"
    try:
        mode = file.lstat().st_mode
        if stat.S_ISLNK(mode):
            target = file.resolve(strict=True)
            if inside is not None and not target.is_relative_to(inside):
                return "a link that leads out of the input folder; --follow-symlinks takes it"
            mode = target.stat().st_mode
    except (OSError, RuntimeError):  # RuntimeError: pathlib's word for a circle of links
        return None  # a photo by its name: that it cannot be read is a failure, and is told as one
    return None if stat.S_ISREG(mode) else "not a regular file"
