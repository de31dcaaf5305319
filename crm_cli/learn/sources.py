"""Folders to learn from: GLB files, or objects in the published layout.

What is in a folder is listed once, beside the examples that are rendered from it (LIST): what can be read,
in the order of the digests, and what cannot and why. Example `n` shows object (n // VISIT) modulo their
number, so that it is drawn from the folder and `n` alone; how it is posed, lit and spoiled depends on the
object's digest and on how often it was shown before.
"""

from __future__ import annotations

import hashlib
import json
import logging
import multiprocessing
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from crm_cli.errors import UsageError
from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed, draw_pose, pose
from crm_cli.learn.examples import Example, example_of
from crm_cli.learn.layout import MAP_NAMES, VIEW_NAMES, RenderedObject, example_of_views, read_object
from crm_cli.learn.materials import Random
from crm_cli.learn.meshes import LoadedMesh, read_mesh
from crm_cli.learn.subject import Unusable

log = logging.getLogger(__name__)

LIST = "source.json"

VISIT = 4
"""Photos of an object that follow each other: it is read, and looked at from all sides, once for them."""

HELD_OUT_SHARE = 1 / 16
"""Of the objects, by digest; at least one where there are two."""

POSES = 8
"""Tries to turn a flat object so that the photo shows more than its edge."""

Kind = Literal["meshes", "published layout"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One object of a folder: its files, and the digest of what is in them."""

    name: str
    """Relative to the folder."""
    files: tuple[Path, ...]
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """Objects to learn from, one part of a folder's."""

    kind: Kind
    objects: tuple[Found, ...]
    first_seed: int = 0
    """Seed of example 0; see data.py."""

    def example(self, seed: int, raster: Raster, *, size_px: int, has_field: bool) -> Example:
        """Photograph the object whose turn it is; has_field is ignored where only pictures are known.

        Raises:
            Unusable: The object's files are no longer what they were when they were listed.
        """
        rng, subject = self._turn_of(seed, size_px)
        if isinstance(subject, RenderedObject):
            return example_of_views(rng, subject, size_px=size_px)
        return example_of(rng, _stood(rng, subject), raster, size_px=size_px, has_field=has_field)

    def posed(self, seed: int, *, size_px: int) -> Posed:
        """The mesh of an example, turned as it is photographed; see `example`."""
        rng, subject = self._turn_of(seed, size_px)
        if isinstance(subject, RenderedObject):
            raise TypeError("the published layout has pictures alone")
        return _stood(rng, subject)

    def _turn_of(self, seed: int, size_px: int) -> tuple[Random, LoadedMesh | RenderedObject]:
        """The object whose turn it is, and the random numbers of its photo."""
        visit, photo = divmod(seed - self.first_seed, VISIT)
        turn, index = divmod(visit, len(self.objects))
        found = self.objects[index]
        rng = np.random.default_rng([int(found.digest, 16), turn * VISIT + photo])
        return rng, _read(self.kind, found, size_px)


def _stood(rng: Random, mesh: LoadedMesh) -> Posed:
    """Draw a pose that shows a mesh: of a sheet seen edge on there is no photo."""
    posed = pose(mesh, draw_pose(rng))
    for _ in range(POSES):
        a, b, c = (posed.vertices[posed.faces[:, k]][:, [0, 2]] for k in range(3))
        (ux, uz), (vx, vz) = (b - a).T, (c - a).T
        if np.abs(ux * vz - uz * vx).sum() > 0.05:
            break
        posed = pose(mesh, draw_pose(rng))
    return posed


@lru_cache(maxsize=1)
def _read(kind: Kind, found: Found, size_px: int) -> LoadedMesh | RenderedObject:
    """Read an object; Unusable where that cannot be done, or where it has changed."""
    try:
        data = [file.read_bytes() for file in found.files]
    except OSError as error:
        raise Unusable(f"{Path(str(error.filename)).name}: {error.strerror}") from error
    if found.digest != _digest([hashlib.sha256(part).digest() for part in data]):
        raise Unusable(f"{found.name}: has changed since its folder was listed")
    if kind == "meshes":
        return read_mesh(data[0], size_px=size_px)
    return read_object(data[: len(VIEW_NAMES)], data[len(VIEW_NAMES) :])


def _digest(parts: Sequence[bytes]) -> str:
    """One digest over those of an object's files."""
    return parts[0].hex() if len(parts) == 1 else hashlib.sha256(b"".join(parts)).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """A folder's objects, none of them in both parts."""

    train: Folder
    held_out: Folder


def open_folder(folder: Path, data: Path, *, size_px: int, workers: int, held_out_seed: int) -> Split:
    """Find what can be learned from in a folder; what cannot be read is warned of by its name, once.

    Args:
        folder: Searched with all that is in it.
        data: Where examples of it are rendered; the list is kept there, and must fit the folder.
        size_px: Side of the pictures that will be rendered.
        workers: Processes that try the files, the first time.
        held_out_seed: Seed of the first held-out example.

    Raises:
        UsageError: There is nothing to learn from, or `data` holds examples of something else.
    """
    kind, found = _search(folder)
    listed = _listed(data)
    if listed is None:
        if next(data.glob("*/*.npz"), None) is not None:
            raise _other(data, "procedural products")
        why = dict(_try_all(kind, found, size_px, max(1, workers)))
        listed = {
            "kind": kind,
            "objects": {o.digest: {"name": o.name, "unusable": why[o.digest]} for o in found},
        }
        for name, reason in ((one.name, why[one.digest]) for one in found):
            if reason:
                log.warning("%s: passed over: %s", folder / name, reason)
        if all(why.values()):
            raise UsageError(
                f"{folder}: none of its {len(found)} objects can be read",
                code="E_TRAIN_SOURCE",
                remedy="see the warnings above",
            )
        data.mkdir(parents=True, exist_ok=True)
        part = data / f"{LIST}.part"
        part.write_text(json.dumps(listed, indent=1) + "\n", encoding="utf-8")
        part.replace(data / LIST)
    elif listed["kind"] != kind or listed["objects"].keys() != {o.digest for o in found}:
        raise _other(data, f"another folder, or of another state of {folder}")
    usable = [o for o in found if not listed["objects"][o.digest]["unusable"]]
    return _split(kind, usable, held_out_seed)


def digest_of_folder(folder: Path) -> str:
    """Stand for the objects of a folder, whatever they are called."""
    kind, found = _search(folder)
    return hashlib.sha256("\n".join([kind, *(one.digest for one in found)]).encode()).hexdigest()


def refuse_other(data: Path) -> None:
    """Raise UsageError where a folder of examples was rendered from a folder of objects."""
    if _listed(data) is not None:
        raise _other(data, "a folder of objects")


def _other(data: Path, what: str) -> UsageError:
    return UsageError(
        f"{data}: holds examples of {what}",
        code="E_TRAIN_DATA",
        remedy="give another --data folder, or remove this one",
    )


def _listed(data: Path) -> dict[str, Any] | None:
    """Read the list that was kept with examples, where there is one."""
    try:
        found: dict[str, Any] = json.loads((data / LIST).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return found


def _search(folder: Path) -> tuple[Kind, list[Found]]:
    """Find the objects of a folder in the order of their digests; copies count once."""
    if not folder.is_dir():
        raise UsageError(
            f"--from {folder}: no such folder",
            code="E_TRAIN_SOURCE",
            remedy="name a folder of GLB files, or of the published layout",
        )
    meshes = sorted(file for file in folder.rglob("*") if file.suffix.lower() == ".glb" and file.is_file())
    rendered = dict(_rendered(folder))
    if bool(meshes) == bool(rendered):
        holds = "both GLB files and" if meshes else "neither GLB files nor"
        raise UsageError(
            f"--from {folder}: {holds} the published layout",
            code="E_TRAIN_SOURCE",
            remedy=f"name a folder of *.glb, or one with {VIEW_NAMES[0]} to {VIEW_NAMES[-1]} and "
            f"{MAP_NAMES[0]} to {MAP_NAMES[-1]} in a folder for each object",
        )
    kind: Kind = "meshes" if meshes else "published layout"
    files = {str(mesh.relative_to(folder)): (mesh,) for mesh in meshes} | rendered
    found: dict[str, Found] = {}
    for name, group in files.items():
        digest = _digest([_digest_of(file) for file in group])
        found.setdefault(digest, Found(name=name, files=group, digest=digest))
    return kind, [found[digest] for digest in sorted(found)]


def _digest_of(file: Path) -> bytes:
    """Stand for what is in a file; for its name where it cannot be read, which `_read` will report."""
    try:
        stat = file.stat()
        return _read_digest(file, stat.st_size, stat.st_mtime_ns)
    except OSError:
        return hashlib.sha256(str(file).encode("utf-8", "surrogateescape")).digest()


@cache
def _read_digest(file: Path, size_bytes: int, written_ns: int) -> bytes:
    """Read a file once: a run asks for the same folder again for each set of examples."""
    return hashlib.sha256(file.read_bytes()).digest()


def _rendered(folder: Path) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Find the objects of the published layout: views and maps lie in folders of one name, or in the same."""
    views, maps = (
        {file.parent.name: file.parent for file in sorted(folder.rglob(name))}
        for name in (VIEW_NAMES[0], MAP_NAMES[0])
    )
    for name in sorted(views.keys() & maps.keys()):
        yield name, (*(views[name] / file for file in VIEW_NAMES), *(maps[name] / file for file in MAP_NAMES))


def _try_all(kind: Kind, found: Sequence[Found], size_px: int, workers: int) -> Iterator[tuple[str, str]]:
    """Try every object, in so many processes: yields digests and why they are unusable, or nothing."""
    if workers == 1 or len(found) < 2 * workers:
        yield from ((one.digest, _why_not(kind, one, size_px)) for one in found)
        return
    with ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn")) as pool:
        tries = pool.map(_why_not, [kind] * len(found), found, [size_px] * len(found), chunksize=4)
        yield from zip((one.digest for one in found), tries, strict=True)


def _why_not(kind: Kind, found: Found, size_px: int) -> str:
    """Say why an object cannot be learned from; nothing where it can."""
    try:
        _read(kind, found, size_px)
    except Unusable as error:
        return str(error)
    return ""


def _split(kind: Kind, usable: Sequence[Found], held_out_seed: int) -> Split:
    """Hold out those with the lowest digests."""
    share = sum(int(found.digest[:8], 16) < HELD_OUT_SHARE * 2**32 for found in usable)
    count = min(max(1, share), len(usable) - 1)
    held_out = Folder(kind=kind, objects=tuple(usable[:count]), first_seed=held_out_seed)
    return Split(train=replace(held_out, objects=tuple(usable[count:]), first_seed=0), held_out=held_out)
