"""Find photos, name their assets after them, refuse collisions.

Names are decided here for the whole run, before anything starts: the output folder mirrors the input folder,
and two photos that would write the same file are an error, never "the first one wins".
"""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from crm_cli.errors import UsageError
from crm_cli.names import display_name
from crm_cli.records import RealSize
from crm_cli.run.lists import Listed
from crm_cli.run.products import Product, match
from crm_cli.run.search import PassedOver, Start, candidates, start_of, start_of_listed
from crm_cli.run.selection import Selection
from crm_cli.run.slugs import slugs

if TYPE_CHECKING:
    from crm_cli.run.sources import Source, Tree


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One photo and the name of its asset."""

    root: Path
    path: PurePosixPath
    """Relative to the root."""
    stem: PurePosixPath
    """Relative to the output folder, without the suffix that each format adds."""
    source: Source | None = field(default=None, compare=False)
    """Where it is until its turn comes, if that is no file."""
    size: RealSize | None = field(default=None, compare=False)
    """What its product measures, where somebody knows."""

    @property
    def file(self) -> Path:
        """Where the photo is."""
        return self.root / self.path

    @property
    def shown(self) -> str:
        """Where it is, for messages."""
        return display_name(self.source.url if self.source else self.file)

    @property
    def asset(self) -> str:
        """The asset's identity: the relative path, in the one Unicode form that all systems agree on."""
        return _identity(self.path)

    @property
    def id(self) -> str:
        """Sixteen hexadecimal digits of the asset's identity, safe in file names."""
        return asset_id(self.path)

    @property
    def extras(self) -> Mapping[str, str]:
        """What this asset alone depends on beside its photo, by the stage that reads it."""
        return {"out": f"size {self.size}"} if self.size else {}


def asset_id(path: PurePosixPath) -> str:
    """Sixteen hexadecimal digits of the identity of a photo's asset."""
    return hashlib.sha256(os.fsencode(_identity(path))).hexdigest()[:16]


def _identity(path: PurePosixPath) -> str:
    return unicodedata.normalize("NFC", str(path))


@dataclass(frozen=True, slots=True, kw_only=True)
class Walk:
    """What the inputs hold, in the order of their names' bytes."""

    photos: tuple[Found, ...]
    passed_over: tuple[PassedOver, ...]
    found: int
    """How many photos there are with those of other shards and beyond the limit."""
    unsized: str = ""
    """Rows and photos that a table of products does not bring together, in one line."""


def walk(
    inputs: Sequence[Path],
    out: Path,
    *,
    select: Selection,
    keep_ext: bool = False,
    listed: Sequence[Listed] = (),
    trees: Iterable[Tree] = (),
    products: Sequence[Product] = (),
    has_slugs: bool = False,
) -> Walk:
    """Find the photos of all inputs, each a folder or a file.

    out: the output folder; it may lie inside an input and is not searched. keep_ext: name assets
    `a.jpg.glb` instead of `a.glb`. listed: more inputs; relative ones keep their folders in the names of
    their assets. trees: photos in object stores. products: what is known of their sizes. has_slugs: spell the
    names of assets in a-z, 0-9, _ and -. Raises UsageError where two photos would write the same files.
    """
    passed_over: list[PassedOver] = []

    def photos_of(starts: Iterable[Start]) -> Iterator[Found]:
        for start in starts:
            for path in candidates(
                start,
                out,
                passed_over,
                is_recursive=select.is_recursive,
                follow_symlinks=select.follow_symlinks,
            ):
                if select.wants(path):
                    stem = path if keep_ext else path.with_suffix("")
                    yield Found(root=start.root, path=path, stem=stem)

    photos = list(photos_of(map(start_of, inputs)))
    if len(inputs) > 1:
        # A photo that was given twice, as in `photos photos/a.jpg`, is one.
        photos = list(dict.fromkeys(photos))
    files = {photo.file for photo in photos} if listed else set()
    for photo in photos_of(start_of_listed(one) for one in listed if not one.url):
        if photo.file not in files:
            files.add(photo.file)
            photos.append(photo)
    known = {photo.source.url for photo in photos if photo.source}
    for tree in trees:
        passed_over += tree.passed_over
        for path, source in tree.photos:
            if select.wants(path) and source.url not in known:
                known.add(source.url)
                stem = path if keep_ext else path.with_suffix("")
                photos.append(Found(root=Path(source.remote.url), path=path, stem=stem, source=source))
    photos.sort(key=lambda photo: os.fsencode(photo.path))
    if has_slugs:
        names = slugs(photo.stem for photo in photos)
        photos = [replace(photo, stem=names[photo.stem]) for photo in photos]
    _refuse_collisions(photos)
    sized = match(products, [photo.path for photo in photos]) if products else None
    if sized:
        photos = [replace(photo, size=sized.sizes.get(photo.path)) for photo in photos]
    wanted = [photo for photo in photos if select.shard is None or select.shard.holds(photo.asset)]
    return Walk(
        photos=tuple(wanted[: select.limit]),
        passed_over=tuple(passed_over),
        found=len(photos),
        unsized=sized.warning() if sized else "",
    )


def _refuse_collisions(photos: Sequence[Found]) -> None:
    """Raise UsageError where two photos have one asset name, be it on a disk that folds case."""
    taken: dict[str, Found] = {}
    for photo in photos:
        other = taken.setdefault(_folded(str(photo.stem)), photo)
        if other is photo:
            continue
        if photo.path == other.path:
            names = f"{other.shown} and {photo.shown}"
            remedy = "give the folder above them, or list paths relative to it"
        else:
            names = f"{display_name(other.path)} and {display_name(photo.path)}"
            remedy = "--keep-ext names assets a.jpg.glb and a.png.glb; otherwise rename one"
        raise UsageError(f"{names} would write the same files", code="E_NAME_COLLISION", remedy=remedy)


def _folded(name: str) -> str:
    """What a name is to a disk that folds case, in whatever Unicode form it keeps names."""
    if name.isascii():
        return name.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())
