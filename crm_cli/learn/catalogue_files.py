"""The files of a catalogue, and the list of those that we wrote."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from crm_cli import __version__
from crm_cli.errors import OutputError
from crm_cli.export.scene import METRES_PER_UNIT
from crm_cli.learn.catalogue import SUFFIXES, TRUTHS, Box, Item, Plan, Shot, shoot_all

LIST, SIZES = "truth.json", "products.csv"


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One entry of a catalogue that stands on disk."""

    item: Item
    is_kept: bool
    """It was there already."""


def write_catalogue(folder: Path, plans: Sequence[Plan], *, jobs: int) -> Iterator[Written]:
    """Make a catalogue, or what is missing of one; yields every entry of the plans as it stands there.

    What was written is listed in LIST with its digest before it gets its name: a call that was interrupted
    goes on, and a file that is not listed, or no longer what was written, is never replaced.

    Raises:
        OutputError: The folder cannot be written, or holds a file under the name of one of ours.
    """
    try:
        shelf = _Shelf(folder)
        todo = []
        for planned in plans:
            item = shelf.finished(planned)
            if item is None:
                todo.append(planned)
            else:
                yield Written(item=item, is_kept=True)
        for shot in shoot_all(todo, jobs=jobs):
            shelf.put(shot)
            yield Written(item=shot.item, is_kept=False)
        shelf.write_sizes()
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder}: {error.strerror or error}",
            code="E_OUTPUT",
            remedy="name another folder with -o",
        ) from error


class _Shelf:
    """The files of one catalogue."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, made where it is missing, and check that what we shall write over is ours."""
        self._folder = folder
        (folder / TRUTHS).mkdir(parents=True, exist_ok=True)
        self._items: dict[str, Item] = {}
        self._digests: dict[str, str] = {}
        if os.path.lexists(folder / LIST):
            self._read()
        self._expect_ours(SIZES)

    def finished(self, planned: Plan) -> Item | None:
        """What a plan became, where that stands there whole; OutputError where something else does."""
        item = self._items.get(planned.sku)
        if item is None:
            for name in (*(planned.sku + suffix for suffix in SUFFIXES), f"{TRUTHS}/{planned.sku}.glb"):
                self._expect_ours(name)
            return None
        are_there = [os.path.lexists(self._folder / name) for name in (item.file, item.truth)]
        for name in (item.file, item.truth):
            self._expect_ours(name)
        return item if all(are_there) and item.largest_px == planned.size_px else None

    def put(self, shot: Shot) -> None:
        """Write an entry: first into the list, then its files."""
        old = self._items.get(shot.item.sku)
        self._items[shot.item.sku] = shot.item
        files = {shot.item.file: shot.photo, shot.item.truth: shot.truth}
        for name, data in files.items():
            self._expect_ours(name)
            self._digests[name] = hashlib.sha256(data).hexdigest()
        if old is not None and old.file != shot.item.file:
            self._expect_ours(old.file)
            (self._folder / old.file).unlink(missing_ok=True)
            del self._digests[old.file]
        self._write_list()
        for name, data in files.items():
            _replace(self._folder / name, data)

    def write_sizes(self) -> None:
        """Write what a shop would list: names and sizes."""
        stream = io.StringIO(newline="")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["sku", "file", "width_mm", "height_mm", "depth_mm"])
        table.writerows([item.sku, item.file, *item.size_mm] for item in self._in_order())
        data = stream.getvalue().encode("utf-8")
        self._expect_ours(SIZES)
        self._digests[SIZES] = hashlib.sha256(data).hexdigest()
        self._write_list()
        _replace(self._folder / SIZES, data)

    def _in_order(self) -> list[Item]:
        return sorted(self._items.values(), key=lambda item: (item.seed, item.sku))

    def _write_list(self) -> None:
        listed = {
            "generator": f"crm {__version__}",
            "metres_per_unit": METRES_PER_UNIT,
            "products": [_plain(item) for item in self._in_order()],
            "sha256": dict(sorted(self._digests.items())),
        }
        _replace(self._folder / LIST, (json.dumps(listed, indent=1) + "\n").encode("utf-8"))

    def _read(self) -> None:
        """Read the list of an earlier call."""
        try:
            listed = json.loads((self._folder / LIST).read_bytes())
            self._digests = {str(name): str(digest) for name, digest in listed["sha256"].items()}
            for entry in listed["products"]:
                sizes = {name: Box(**entry.pop(name)) for name in ("size_mm", "photographed_mm")}
                self._items[entry["sku"]] = Item(**(entry | sizes))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _in_the_way(self._folder / LIST) from error

    def _expect_ours(self, name: str) -> None:
        """Raise OutputError where a file is there that is not as we wrote it."""
        path = self._folder / name
        if not os.path.lexists(path):
            return
        is_plain = path.is_file() and not path.is_symlink()
        if not is_plain or hashlib.sha256(path.read_bytes()).hexdigest() != self._digests.get(name):
            raise _in_the_way(path)


def _plain(item: Item) -> dict[str, Any]:
    """Give an item as JSON holds it, its boxes by their sides."""
    boxes = {"size_mm": item.size_mm._asdict(), "photographed_mm": item.photographed_mm._asdict()}
    return asdict(item) | boxes


def _in_the_way(path: Path) -> OutputError:
    return OutputError(
        f"{path}: in the way, and not as crm products wrote it",
        code="E_CONFLICT",
        remedy="move it, or name another folder with -o",
    )


def _replace(path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
