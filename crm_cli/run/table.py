"""An output folder as a table for spreadsheets: one row for each photo that is finished or failed."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crm_cli.export.sheet import edition_of
from crm_cli.names import display_name
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.decisions import Decision, kept_decisions, of_edition
from crm_cli.run.journal import LastFailure, last_failures
from crm_cli.run.status import answer
from crm_cli.run.store import refuse_newer, refuse_none

HEAD = (
    "photo", "assets", "status", "faces", "confidence", "silhouette_iou", "code", "reason",
    "verdict", "flags", "colour_distance", "seen_share", "decision", "note",
)  # fmt: skip
"""New columns come last: some who read a table count."""

FORMULA = frozenset("=+-@\uff1d\uff0b\uff0d\uff20")
"""What makes a spreadsheet calculate a cell, in narrow and wide letters: `=HYPERLINK(…)` is a name, too."""

TEXT_MARK = "'"
"""Before a cell it says that what follows is text; whoever reads the table takes one off."""

NOT_INTACT = "files are missing or were changed since"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One photo."""

    photo: PurePosixPath
    assets: tuple[PurePosixPath, ...] = ()
    """Its files in the output folder."""
    status: str
    """`finished`, `damaged`, `failed` or `conflict`."""
    faces: int | None = None
    confidence: str = ""
    silhouette_iou: float | None = None
    code: str = ""
    reason: str = ""
    verdict: str = ""
    flags: tuple[str, ...] = ()
    """Codes of the verdict's reasons."""
    colour_distance: float | None = None
    seen_share: float | None = None
    decision: str = ""
    """What `crm redo` took over of this very asset, if anything."""
    note: str = ""


def read_rows(out: Path) -> list[Row]:
    """Read what stands in an output folder, in the order of the photos' names; NoInput where it is none."""
    refuse_none(out)
    refuse_newer(out)
    # Before the records: an asset finished meanwhile then answers its failure, never the other way round.
    failures = last_failures(out)
    rows = {row.photo: row for row in _finished(Records.scan(out), failures, kept_decisions(out))}
    rows |= {failure.asset: _failed(failure) for failure in failures.values()}
    return sorted(rows.values(), key=lambda row: os.fsencode(row.photo))


def as_csv(rows: Iterable[Row]) -> str:
    """Write rows as CSV with a head; no cell is a formula, and none spans lines."""
    stream = io.StringIO()
    table = csv.writer(stream, lineterminator="\n")
    table.writerow(HEAD)
    for row in rows:
        iou = "" if row.silhouette_iou is None else f"{row.silhouette_iou:.4f}"
        colour = "" if row.colour_distance is None else f"{row.colour_distance:.2f}"
        faces = "" if row.faces is None else str(row.faces)
        assets = "; ".join(map(str, row.assets))
        texts = [str(row.photo), assets, row.status, row.confidence, row.code, row.reason]
        photo, assets, status, confidence, code, reason = map(_cell, texts)
        flags = "; ".join(row.flags)
        seen = "" if row.seen_share is None else f"{row.seen_share:.3f}"
        table.writerow([
            photo, assets, status, faces, confidence, iou, code, reason, row.verdict, flags, colour, seen,
            row.decision, _cell(row.note),
        ])  # fmt: skip
    return stream.getvalue()


def _cell(text: str) -> str:
    """A text that a spreadsheet shows and does not calculate, control characters as escapes."""
    shown = display_name(text)
    # Some programs look for a formula behind blanks as well.
    is_risky = shown.lstrip()[:1] in FORMULA or shown.startswith(TEXT_MARK)
    return TEXT_MARK + shown if is_risky else shown


def _finished(
    records: Records, failures: dict[PurePosixPath, LastFailure], decisions: Mapping[str, Decision]
) -> Iterator[Row]:
    """Rows of the assets that have a record; failures that these have answered are taken out."""
    for record in records.newest():
        is_intact = records.intact(record)
        if is_intact:
            answer(failures, record)
        edition = edition_of(output.sha256 for output in record.outputs)
        yield _row(record, of_edition(decisions, record.id, edition), is_intact=is_intact)


def _row(record: CommitRecord, decision: Decision | None, *, is_intact: bool) -> Row:
    verdict = record.verdict
    return Row(
        photo=record.asset,
        assets=tuple(output.path for output in record.outputs),
        status="finished" if is_intact else "damaged",
        faces=record.checks.faces,
        confidence=record.checks.confidence,
        silhouette_iou=record.checks.silhouette_iou,
        reason="; ".join(record.warnings) if is_intact else NOT_INTACT,
        verdict=verdict.grade if verdict else "",
        flags=verdict.codes if verdict else (),
        # Who was not judged was not measured.
        colour_distance=record.checks.colour_distance if verdict else None,
        seen_share=record.checks.seen_share if verdict else None,
        decision=decision.decision if decision else "",
        note=decision.note if decision else "",
    )


def _failed(failure: LastFailure) -> Row:
    return Row(
        photo=failure.asset,
        status="conflict" if failure.kind == "conflict" else "failed",
        code=failure.code,
        reason=failure.message,
    )
