"""The contact sheet of a run: every photo with what became of it, on pages that need nothing but a browser.

    OUT/report/index.html       the summary, what needs a look, the first hundred photos
    OUT/report/page-002.html    the next hundred
    OUT/report/entries.js       what all photos are filtered and sorted by
    OUT/report/cards-001.js     the first hundred photos as they stand on their page, for when they are sorted
    OUT/report/model-viewer.js  the 3D view, loaded when one is opened
    OUT/report/thumbs           <id>-photo.webp, -cutout, -front, -views, -ccm, -turn, -seen, <id>-model.js

The worker that makes an asset leaves its small pictures; the page is built from plain records and whichever
pictures it finds. So a sheet of thousands can be written again at any time without making anything again.

Pages are whole without scripts. With them they are for reviewing: all that a script shows was written here,
and escaped here; it puts elements together but never builds one from a text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

from crm_cli.errors import OutputError
from crm_cli.export.vendored import vendored_viewer
from crm_cli.names import display_name
from crm_cli.records import Checks, Failed, Verdict, WrittenFile, unsaid

if TYPE_CHECKING:
    import numpy as np
    from jinja2 import Environment
    from numpy.typing import NDArray
    from PIL.Image import Image

    Picture = Image | NDArray[np.uint8]

Status = Literal["done", "low", "kept", "failed"]

LABELS: Mapping[Status, str] = {
    "done": "Done",
    "low": "Low confidence",
    "kept": "Kept",
    "failed": "Failed",
}

Decision = Literal["", "approve", "reject", "redo"]
"""What a reviewer has said of an asset."""

DECIDED: Mapping[Decision, str] = {"approve": "Approved", "reject": "Rejected", "redo": "To be redone"}

GRADES: Mapping[str, str] = {"pass": "Pass", "review": "Review", "fail": "Fail"}

ENTRIES_PER_PAGE = 100

PICTURE = re.compile(r"([0-9a-f]{16})-(?:(?:photo|cutout|front|views|ccm|turn|seen)\.webp|model\.js)")
"""What a worker leaves of an asset for the sheet, with the asset's id."""

_PASSING = re.compile(r"page-\d{3,}\.html|cards-\d{3,}\.js|model-viewer\.(js|LICENSE\.txt)")
"""What some sheets have and others do without."""

_LESS = r"\u003c"
"""The sign < as JSON may have it: inside a page, it could begin a tag."""

PAGES_AROUND = 5
"""How many pages are linked to each side of a page, and as many tens, hundreds and so on."""

MAIN_SUFFIXES: Mapping[str, str] = {".glb": "GLB", ".obj": "OBJ", ".usdc": "USD", ".usdz": "USDZ"}
"""What a person would open; companions such as textures are not linked."""

# Twice the size at which the page shows them on a laptop, for dense screens.
_PHOTO_PX, _VIEW_PX, _TURN_PX = 400, 200, 400

FRONT_PX = _PHOTO_PX
"""Side of the asset's front view, which is laid over the cut-out."""

_WEBP_QUALITY, _WEBP_METHOD = 82, 0
"""The quickest way: two thirds of the usual one's time, and 30 kB more of the 700 kB an asset takes here."""


_GENERATOR = b'<meta name="generator" content="crm '
_SCRIPT_MARK = b"/* crm contact sheet */\n"
_HEAD_BYTES = 1024
"""Our pages and scripts say within so many bytes that they are ours."""

_VIEWER = "model-viewer.js"
_VIEWER_LICENCE = "model-viewer.LICENSE.txt"


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetEntry:
    """One photo and what became of it."""

    id: str
    """The asset's id: its pictures are named after it."""
    photo: PurePosixPath
    files: tuple[WrittenFile, ...] = ()
    checks: Checks | None = None
    verdict: Verdict | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    is_kept: bool = False
    """Made by an earlier run; nothing had to be done now."""
    failure: Failed | None = None
    made: float = 0.0
    """When it was finished, in seconds since 1970; not shown, but tells a newer asset from an older one."""
    decision: Decision = ""
    """What `crm redo` has recorded of this very asset."""
    note: str = ""
    """What the reviewer wrote to it."""

    @property
    def status(self) -> Status:
        """The one word of its badge: the news that matters most."""
        if self.failure:
            return "failed"
        if self.checks and self.checks.confidence == "low":
            return "low"
        return "kept" if self.is_kept else "done"

    @property
    def needs_a_look(self) -> bool:
        """Whether there is something to decide: a failure, or an asset that did not simply pass."""
        return self.status in ("failed", "low") or (self.verdict is not None and self.verdict.grade != "pass")

    @property
    def remarks(self) -> tuple[str, ...]:
        """Warnings beside the verdict's reasons."""
        return unsaid(self.warnings, self.verdict)

    @property
    def edition(self) -> str:
        """Tells this very asset, or failure, from one that the same photo becomes another time."""
        failure = self.failure
        parts = [failure.code, failure.stage] if failure else [file.sha256 for file in self.files]
        return edition_of(parts)

    @property
    def stem(self) -> PurePosixPath:
        """What the asset is called: its files without their suffix."""
        return self.files[0].path.with_suffix("") if self.files else self.photo

    @property
    def remedy(self) -> str:
        """What to do about the failure, taken from its message `cause [CODE]; remedy`."""
        return self._cause_and_remedy()[1]

    @property
    def cause(self) -> str:
        """What went wrong, without code and remedy."""
        return self._cause_and_remedy()[0]

    def _cause_and_remedy(self) -> tuple[str, str]:
        if not self.failure:
            return "", ""
        cause, _, remedy = self.failure.message.partition(f" [{self.failure.code}]")
        return cause, remedy.removeprefix("; ")


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetSummary:
    """What the head of the sheet says of the run."""

    started: datetime
    wall_s: float
    weights: str
    preset: str
    device: str
    version: str
    note: str = ""
    """For instance why the run ended early."""


def edition_of(digests: Iterable[str]) -> str:
    """Short for what the files of an asset hold; digests: SHA-256 of each."""
    return hashlib.sha256("\n".join(sorted(digests)).encode()).hexdigest()[:16]


def write_thumbs(
    folder: Path,
    asset_id: str,
    *,
    photo: Picture,
    cutout: Picture | None = None,
    views_rgb: Sequence[Picture] = (),
    views_ccm: Sequence[Picture] = (),
    turns: Sequence[Picture] = (),
    front: Picture | None = None,
    seen: Sequence[Picture] = (),
) -> list[Path]:
    """Write the small pictures of one asset, and name them.

    Pictures are uint8 [H W 3] or [H W 4], or PIL's. They are encoded afresh from pixels, so nothing of a
    photo's metadata (place, camera, owner) reaches the page.
    """
    # Not all parents: a scratch folder that has vanished with the output folder must not be made again.
    for made in (folder.parent, folder):
        made.mkdir(exist_ok=True)
    strips = {
        "photo": _strip([photo], _PHOTO_PX),
        "cutout": _strip([cutout] if cutout is not None else [], _PHOTO_PX),
        "front": _strip([front] if front is not None else [], FRONT_PX),
        "views": _strip(views_rgb, _VIEW_PX),
        "ccm": _strip(views_ccm, _VIEW_PX),
        "turn": _strip(turns, _TURN_PX),
        "seen": _strip(seen, _VIEW_PX),
    }
    files = []
    for kind, strip in strips.items():
        if strip is not None:
            path = folder / f"{asset_id}-{kind}.webp"
            strip.save(path, "WEBP", quality=_WEBP_QUALITY, method=_WEBP_METHOD)
            files.append(path)
    return files


def write_sheet(
    folder: Path,
    entries: Sequence[SheetEntry],
    summary: SheetSummary,
    *,
    shown: Callable[[SheetEntry], SheetEntry] = lambda entry: entry,
) -> Path:
    """Write the sheet of all entries into the output folder; return its first page.

    shown: gives an entry with all that is to be seen of it; asked twice for each, so that no more are held at
    a time than a page has. An older sheet is replaced, page by page and never half. OutputError where a page
    is not ours.
    """
    refuse_foreign(folder, len(entries))
    report = folder / "report"
    report.mkdir(exist_ok=True)
    pages = _paginate(entries)
    page_names = [_page_name(index) for index in range(len(pages))]
    pictures = {path.name for path in (report / "thumbs").glob("*")}
    environment = _environment(pictures)
    template, card = environment.get_template("sheet.html"), environment.get_template("card.html")
    overview = _Overview(pictures)
    _replace(report / "entries.js", overview.index(map(shown, entries)))
    written = {"entries.js", *page_names, *map(_cards_name, range(len(pages)))}
    if overview.has_models:
        written |= _write_viewer(report)
    common = {
        "summary": summary,
        "counts": overview.counts,
        "total": len(entries),
        "per_hour": overview.made * 3600 / summary.wall_s if summary.wall_s > 0 else 0.0,
        "page_names": page_names,
        "per_page": ENTRIES_PER_PAGE,
        "attention": overview.attention,
    }
    for index, page in enumerate(pages):
        # Page by page: the cards of thousands of photos take more memory than all else of a run.
        whole = [shown(entry) for entry in page]
        cards = [_trusted(card.render(entry=entry)) for entry in whole]
        _replace(report / _cards_name(index), [_SCRIPT_MARK, b"crm.cards(%d, %s);\n" % (index, _json(cards))])
        html = template.render(common, entries=whole, cards=cards, page_index=index)
        _replace(report / page_names[index], [html.encode()])
    _sync(report)
    for stale in report.iterdir():
        is_stale = _PASSING.fullmatch(stale.name) and stale.name not in written
        if is_stale and _is_ours(stale):
            stale.unlink()
    return report / page_names[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Attention:
    """What the first page says of an entry that needs a look."""

    id: str
    photo: PurePosixPath
    page: str
    kind: str
    """Its grade, or its status."""
    words: str


class _Overview:
    """What every page says of all entries, gathered as they pass by once."""

    def __init__(self, pictures: Collection[str]) -> None:
        self._pictures = pictures
        self.counts: Counter[Status] = Counter()
        self.made = 0
        """What this run had to make itself."""
        self.has_models = False
        self.attention: list[_Attention] = []

    def index(self, entries: Iterable[SheetEntry]) -> Iterator[bytes]:
        """The script by which all photos are found, in pieces."""
        yield _SCRIPT_MARK + b"crm.entries(["
        for number, entry in enumerate(entries):
            has_model = f"{entry.id}-model.js" in self._pictures
            self.has_models |= has_model
            self.counts[entry.status] += 1
            self.made += not entry.is_kept and not entry.failure
            if entry.needs_a_look:
                self.attention.append(_attention(entry, _page_name(number // ENTRIES_PER_PAGE)))
            yield (b"," if number else b"") + _json(_indexed(entry, has_model=has_model))
        yield b"]);\n"


def _attention(entry: SheetEntry, page: str) -> _Attention:
    words = ""
    if entry.failure:
        words = entry.failure.code
    elif entry.verdict and entry.verdict.reasons:
        words = entry.verdict.reasons[0].sentence
    elif entry.checks:
        words = f"silhouette {entry.checks.silhouette_iou:.2f}"
    kind = entry.verdict.grade if entry.verdict else entry.status
    return _Attention(id=entry.id, photo=entry.photo, page=page, kind=kind, words=words)


def _write_viewer(report: Path) -> set[str]:
    """Write what shows a model, and name it."""
    viewer = vendored_viewer()
    files = {_VIEWER: viewer.script, _VIEWER_LICENCE: viewer.licence_file}
    for name, file in files.items():
        _replace(report / name, [_SCRIPT_MARK, file.read_bytes()])
    return set(files)


def _json(value: Any) -> bytes:
    """JSON in ASCII that is JavaScript as well, also inside a page: no text in it ends a string or a tag."""
    return json.dumps(value, separators=(",", ":")).replace("<", _LESS).encode("ascii")


def _indexed(entry: SheetEntry, *, has_model: bool) -> dict[str, Any]:
    """What one photo is found, filtered and sorted by, and what is written down of a decision on it."""
    checks = entry.checks
    said = [str(entry.photo), *(file.path.name for file in entry.files[:1]), *entry.warnings]
    said += [entry.failure.code, entry.failure.message] if entry.failure else []
    said += [reason.sentence for reason in entry.verdict.reasons] if entry.verdict else []
    return {
        "id": entry.id,
        "name": display_name(entry.photo),
        # As the file system has them, be they UTF-8 or not: a decision must name the very photo.
        "photo": str(entry.photo),
        "asset": str(entry.stem),
        "edition": entry.edition,
        "text": " ".join(display_name(text) for text in said).lower(),
        "status": entry.status,
        "verdict": entry.verdict.grade if entry.verdict else "",
        "iou": checks.silhouette_iou if checks else None,
        "faces": checks.faces if checks else None,
        "seconds": round(sum(entry.seconds.values()), 2) if entry.seconds else None,
        "decision": entry.decision,
        "note": entry.note,
        "model": has_model,
    }


def refuse_foreign(folder: Path, count: int) -> None:
    """Raise OutputError where the sheet of so many photos would overwrite a page that is not ours."""
    report = folder / "report"
    if not os.path.lexists(report):
        return
    if report.is_symlink() or not report.is_dir():
        raise _in_the_way(report)
    pages = range(_count_pages(count))
    names = ["entries.js", _VIEWER, _VIEWER_LICENCE, *map(_page_name, pages), *map(_cards_name, pages)]
    for name in names:
        page = report / name
        if os.path.lexists(page) and not _is_ours(page):
            raise _in_the_way(page)


def _is_ours(page: Path) -> bool:
    """Whether a page or script says that crm wrote it."""
    if page.is_symlink() or not page.is_file():
        return False
    with page.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    return _GENERATOR in head if page.suffix == ".html" else head.startswith(_SCRIPT_MARK)


def _in_the_way(path: Path) -> OutputError:
    """Name what keeps the sheet from being written."""
    return OutputError(
        f"{path}: in the way of the contact sheet, and not written by crm",
        code="E_CONFLICT",
        remedy="move it, or use --no-report",
    )


def _strip(pictures: Sequence[Picture], side_px: int) -> Image | None:
    """Shrink pictures to a common height and lay them side by side; None where there is none."""
    import numpy as np
    from PIL import Image

    cells = [Image.fromarray(np.asarray(picture)) for picture in pictures]
    if not cells:
        return None
    for cell in cells:
        # As sharp as bicubic, in the time of bilinear: Lanczos takes three times as long.
        cell.thumbnail((side_px, side_px), Image.Resampling.HAMMING, reducing_gap=2.0)
    strip = Image.new(cells[0].mode, (sum(cell.width for cell in cells), cells[0].height))
    left = 0
    for cell in cells:
        strip.paste(cell, (left, 0))
        left += cell.width
    return strip


def _paginate(entries: Sequence[SheetEntry]) -> list[Sequence[SheetEntry]]:
    """Cut the entries into pages; an empty run still has one."""
    starts = (index * ENTRIES_PER_PAGE for index in range(_count_pages(len(entries))))
    return [entries[start : start + ENTRIES_PER_PAGE] for start in starts]


def _count_pages(entries: int) -> int:
    """Count the pages of so many entries."""
    return max(1, -(-entries // ENTRIES_PER_PAGE))


def _page_name(index: int) -> str:
    """Name a page by its place."""
    return f"page-{index + 1:03}.html" if index else "index.html"


def _cards_name(index: int) -> str:
    """Name the script that holds a page's cards."""
    return f"cards-{index + 1:03}.js"


def _nearby(index: int, count: int) -> list[int]:
    """Which of so many pages a page links to: those close by, then tens, hundreds, first and last.

    Every page is a few clicks away, and a sheet of a thousand pages does not link each of them on each.
    """
    near = {0, count - 1}
    reach, step = PAGES_AROUND, 1
    while step < count:
        # Their numbers are round, which are one more than their places.
        first = -(-max(1, index + 1 - reach * step) // step) * step
        near |= set(range(first - 1, min(count, index + reach * step + 1), step))
        step *= 10
    return sorted(near)


def _environment(pictures: Collection[str]) -> Environment:
    """Open the templates with everything they may call. pictures: names of those that there are."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style = (here / "sheet.css").read_text(encoding="utf-8")
    script = (here / "sheet.js").read_text(encoding="utf-8")
    environment.globals.update(
        style=_trusted(style),
        style_digest=_digest(style),
        viewer_style_digest=vendored_viewer().style_sha256,
        script=_trusted(script),
        script_digest=_digest(script),
        labels=LABELS,
        grades=GRADES,
        decided=DECIDED,
        has_picture=lambda entry, kind: f"{entry.id}-{kind}.webp" in pictures,
        main_files=_main_files,
        nearby=_nearby,
        shares=_shares,
    )
    environment.filters.update(url=_url, size=_size, duration=_duration, when=_when, count=lambda n: f"{n:,}")
    return environment


def _digest(text: str) -> str:
    """What a policy admits a stylesheet or script by."""
    return base64.b64encode(hashlib.sha256(text.encode("utf-8")).digest()).decode("ascii")


def _trusted(text: str) -> Any:
    """Mark our own stylesheet and script, and what was escaped already, as not to be escaped."""
    from markupsafe import Markup

    return Markup(text)


def _shown(value: object) -> object:
    """Make every text on the page readable and harmless, whoever wrote it: file names reach messages too."""
    if isinstance(value, str | os.PathLike) and not hasattr(value, "__html__"):
        return display_name(value)
    return value


def _url(path: PurePosixPath) -> str:
    """Lead from a page of the report to a file of the output folder, whatever bytes its name holds."""
    return "../" + quote(os.fsencode(path))


def _main_files(entry: SheetEntry) -> list[tuple[str, WrittenFile]]:
    """List the files that a person would open, with the names of their formats, and of levels of detail."""
    kinds = [(MAIN_SUFFIXES.get(file.path.suffix), file) for file in entry.files]
    named = [(kind, file) for kind, file in kinds if kind]
    if len(named) == len({kind for kind, _ in named}):
        return named
    return [(f"{kind} {file.path.stem.rpartition('_')[2]}", file) for kind, file in named]


def _shares(seconds: Mapping[str, float]) -> list[tuple[str, float, float, float]]:
    """List stages as (name, seconds, where its bar starts, how long it is), both in percent."""
    total = sum(seconds.values()) or 1.0
    shares, start = [], 0.0
    for name, spent_s in seconds.items():
        width = 100 * spent_s / total
        shares.append((name, spent_s, round(start, 2), round(width, 2)))
        start += width
    return shares


def _when(moment: datetime) -> str:
    """Write a date as people read it."""
    return f"{moment.day} {moment:%B %Y, %H:%M %Z}".strip()


def _size(size: int) -> str:
    """Write a file size as people read it."""
    if size < 1_000_000:
        return f"{max(1, round(size / 1000))} kB"
    return f"{size / 1e6:.1f} MB"


def _duration(seconds: float) -> str:
    """Write a time as people read it."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


def _replace(path: Path, pieces: Iterable[bytes]) -> None:
    """Put a page or script in place whole."""
    part = path.with_name(f".crm-{os.getpid()}-{path.name}.part")
    with part.open("wb") as file:
        file.writelines(pieces)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _sync(folder: Path) -> None:
    """Make the new names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
