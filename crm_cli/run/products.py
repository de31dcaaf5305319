"""What products really measure: a shop's table, read once before the first photo."""

from __future__ import annotations

import csv
import io
import math
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crm_cli.errors import UsageError
from crm_cli.names import display_name
from crm_cli.records import RealSize

NAMES = ("file", "sku")
"""Columns that say which photo a row is about; where both do, the file does."""

LENGTHS = ("width_mm", "height_mm", "depth_mm")

MAX_TABLE_BYTES = 100_000_000
"""A million products; more is another file."""

MAX_MM = 100_000.0
"""100 m: a larger product is a slip of a unit."""

MAX_TOLD = 3
"""So many names stand in a warning; a wrong table is wrong in all rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """One row: which photo it is about, and what its product measures."""

    name: str
    """A relative path, a file's name, or either without its suffix."""
    size: RealSize


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """What a table says of the photos of a run."""

    sizes: Mapping[PurePosixPath, RealSize]
    """By photo, for those that the table knows a size of."""
    without_photo: tuple[str, ...]
    """Names in the table that are no photo's."""
    without_row: tuple[PurePosixPath, ...]
    """Photos that the table says nothing of."""

    def warning(self) -> str:
        """Say once which rows and photos have no counterpart; empty where all have."""
        parts = []
        if self.without_photo:
            parts.append(
                f"{_count(len(self.without_photo), 'row')} without a photo ({_some(self.without_photo)})"
            )
        if self.without_row:
            photos = [display_name(path) for path in self.without_row]
            parts.append(f"{_count(len(photos), 'photo')} without a row ({_some(photos)})")
        return f"--products: {', '.join(parts)}" if parts else ""


def read_products(file: Path) -> tuple[Product, ...]:
    """Read a table with a heading, separated by commas, semicolons or tabs.

    UsageError names the file and the line that is wrong.
    """
    table = _Table.read(file)
    rows = iter(table)
    line, heading = next(rows, (1, []))
    columns = [cell.strip().lower() for cell in heading]
    table.check(columns, line)
    found: dict[str, tuple[Product, int]] = {}
    for line, cells in rows:
        if len(cells) > len(columns):
            raise table.wrong(line, f"{len(cells)} cells under {len(columns)} headings")
        product = table.product(dict(zip(columns, cells, strict=False)), line)
        key = _folded(product.name)
        if key in found:
            raise table.wrong(line, f"{display_name(product.name)} stands already in line {found[key][1]}")
        found[key] = product, line
    if not found:
        raise table.wrong(line, "no row below the heading")
    return tuple(product for product, _ in found.values())


def match(products: Sequence[Product], photos: Sequence[PurePosixPath]) -> Sized:
    """Find each photo's row: by its path, else by its name in any folder, each with and without suffix."""
    rows = {_folded(product.name): product for product in products}
    sizes, used, without_row = {}, set(), []
    for photo in photos:
        names = map(_folded, (str(photo), str(photo.with_suffix("")), photo.name, photo.stem))
        key = next((name for name in names if name in rows), None)
        if key is None:
            without_row.append(photo)
            continue
        used.add(key)
        if any(rows[key].size.in_mm):
            sizes[photo] = rows[key].size
    without_photo = tuple(product.name for key, product in rows.items() if key not in used)
    return Sized(sizes=sizes, without_photo=without_photo, without_row=tuple(without_row))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """The text of a table, and how messages call it."""

    shown: str
    text: str
    separator: str

    @classmethod
    def read(cls, file: Path) -> _Table:
        shown = display_name(file)
        try:
            with file.open("rb") as stream:
                raw = stream.read(MAX_TABLE_BYTES + 1)
        except OSError as error:
            raise _refused(f"{shown}: cannot be read: {error.strerror}", "check the path") from error
        if len(raw) > MAX_TABLE_BYTES:
            raise _refused(f"{shown}: too large to be a list of products", "check the path")
        try:
            text = raw.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = raw[: error.start].count(b"\n") + 1
            raise _refused(f"{shown}, line {line}: not UTF-8", "save it as `CSV UTF-8`") from error
        heading = text.partition("\n")[0]
        # Of as many of both the comma: a lone column has none of either.
        separator = max(",;\t", key=heading.count)
        return cls(shown=shown, text=text, separator=separator)

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        """Yield rows that hold anything, with the line in which each ends."""
        reader = csv.reader(io.StringIO(self.text, newline=""), delimiter=self.separator, strict=True)
        try:
            for cells in reader:
                if any(cell.strip() for cell in cells):
                    yield reader.line_num, cells
        except csv.Error as error:
            raise self.wrong(reader.line_num, str(error)) from error

    def check(self, columns: Sequence[str], line: int) -> None:
        """Refuse a heading that names no photo or no length, or one of them twice."""
        for wanted, what in ((NAMES, "a photo"), (LENGTHS, "a length")):
            if not any(name in columns for name in wanted):
                raise self.wrong(line, f"no column says {what}: expected {' or '.join(wanted)}")
        twice = next((name for name in (*NAMES, *LENGTHS) if columns.count(name) > 1), None)
        if twice:
            raise self.wrong(line, f"two columns are called {twice}")

    def product(self, cells: Mapping[str, str], line: int) -> Product:
        """Read one row."""
        names = (cells.get(column, "").strip() for column in NAMES)
        name = next(filter(None, names), "")
        if not name:
            raise self.wrong(line, f"{' and '.join(column for column in NAMES if column in cells)} empty")
        lengths = {column: self._length(cells.get(column, ""), column, line) for column in LENGTHS}
        return Product(name=name, size=RealSize(**lengths))

    def _length(self, cell: str, column: str, line: int) -> float:
        """Read a length; 0 where there is none."""
        text = cell.strip()
        if not text:
            return 0.0
        try:
            # Where commas separate no cells, they are what the table's country writes for a point.
            length = float(text if self.separator == "," else text.replace(",", "."))
        except ValueError:
            length = math.nan
        if not 0 < length <= MAX_MM:
            expected = f"expected millimetres up to {MAX_MM:.0f}, without a unit or marks between thousands"
            raise self.wrong(line, f"{column}: {expected}; got {display_name(text[:40])}")
        return length

    def wrong(self, line: int, problem: str) -> UsageError:
        """Say what is wrong with a line."""
        return _refused(f"{self.shown}, line {line}: {problem}", "correct the table, then run again")


def _refused(problem: str, remedy: str) -> UsageError:
    return UsageError(f"--products {problem}", code="E_PRODUCTS", remedy=remedy)


def _folded(name: str) -> str:
    """A name as it is compared: shops and cameras do not agree on capitals, nor systems on accents."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", name).casefold())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _some(names: Sequence[str]) -> str:
    more = [f"{len(names) - MAX_TOLD} more"] if len(names) > MAX_TOLD else []
    return ", ".join([*map(display_name, names[:MAX_TOLD]), *more])
