"""The contact sheet: of a run, from what it knows of each photo; of a folder, from all that stands in it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path, PurePosixPath

from crm_cli import __version__
from crm_cli.export.sheet import SheetEntry, SheetSummary, write_sheet
from crm_cli.records import Failed, WrittenFile
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.decisions import Decision, kept_decisions, of_edition
from crm_cli.run.events import weights_label
from crm_cli.run.files import output_error
from crm_cli.run.journal import LastFailure, last_failures
from crm_cli.run.options import RunOptions
from crm_cli.run.status import answer
from crm_cli.run.store import REPORT, locked
from crm_cli.run.sums import write_sums
from crm_cli.run.walk import asset_id
from crm_cli.run.wire import dumps, from_plain

NOT_INTACT = "files are missing or were changed since; convert again, or see `crm verify`"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """What the head of the sheet says."""

    started: datetime
    seconds: float
    """Since the run began."""
    device: str
    weights: str
    """Label of the set that was really used."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SheetCounts:
    """A written sheet, and what stands on it."""

    sheet: Path
    finished: int
    failed: int
    problem: str | None = None
    """Why there is no list of digests beside it."""


def write_report(
    entries: Sequence[SheetEntry],
    records: Records,
    *,
    left: int,
    is_idle: bool,
    options: RunOptions,
    facts: RunFacts,
) -> Path:
    """Write the sheet of a run's photos; returns its first page.

    entries: those of finished assets name them only; the rest is read from records, and only where a sheet is
    written. left: photos that were not reached. is_idle: no photo was tried; such a
    run leaves a sheet of just these entries alone, since it tells more of how they were made.
    """
    summary = SheetSummary(
        started=facts.started,
        wall_s=facts.seconds,
        weights=facts.weights,
        preset=options.preset_name,
        device=facts.device,
        version=__version__,
        note=f"stopped early: {left} left" if left else "",
    )
    kept = kept_decisions(options.out)
    sheet = options.out / REPORT / "index.html"
    if is_idle and sheet.exists() and _read(_mark(options.out)) == _digest(entries, summary, kept):
        return sheet
    return _write(options.out, entries, summary, kept, records)


def rewrite_report(out: Path) -> SheetCounts:
    """Write the sheet and the digests of everything in an output folder; Locked where a run is at work."""
    with locked(out) as run:
        try:
            return replace(write_whole(out), problem=write_sums(out, run=run))
        except OSError as error:
            raise output_error(out, error) from error


def write_whole(out: Path, *, so_far_s: Mapping[str, float] | None = None) -> SheetCounts:
    """Write the sheet of all finished assets and all failures, whichever runs they are from.

    The caller holds the folder's lock. so_far_s: seconds of a run that has not ended yet, by its name.
    """
    records = Records.scan(out)
    failures = last_failures(out)
    entries: dict[PurePosixPath, SheetEntry] = {}
    labels: Counter[str] = Counter()
    runs: set[str] = set()
    for record in records.newest():
        is_intact = records.intact(record)
        if is_intact:
            answer(failures, record)
        if record.asset not in failures:
            entries[record.asset] = SheetEntry(
                id=record.id, photo=record.asset, made=record.t, warnings=() if is_intact else (NOT_INTACT,)
            )
            runs.add(record.run)
            labels.update([weights_label(record.weights_name, record.weights_digest)])
    runs |= {failure.run for failure in failures.values()}
    entries |= {failure.asset: failed_entry(failure) for failure in failures.values()}
    shown = sorted(entries.values(), key=lambda entry: os.fsencode(entry.photo))
    summary = _summary(out, sorted(runs), labels=tuple(labels), so_far_s=so_far_s or {})
    return SheetCounts(
        sheet=_write(out, shown, summary, kept_decisions(out), records),
        finished=len(shown) - len(failures),
        failed=len(failures),
    )


def _summary(
    out: Path, runs: Sequence[str], *, labels: Sequence[str], so_far_s: Mapping[str, float]
) -> SheetSummary:
    """The head of a sheet of several runs: what they have in common, and all that they have not."""
    abouts = [about for about in (_about(out, run) for run in runs) if about]
    seconds = [so_far_s.get(run, _seconds(out, run)) for run in runs]
    return SheetSummary(
        started=abouts[-1].started if abouts else datetime.now().astimezone(),
        wall_s=sum(seconds),
        weights=_listed(labels or [about.weights for about in abouts]),
        preset=_listed(about.options.preset_name for about in abouts),
        device=_listed(about.device for about in abouts),
        version=__version__,
        note=f"from {len(runs)} runs" if len(runs) > 1 else "",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Named:
    """The part of a run's options that a sheet names."""

    preset_name: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class _About:
    """What a run said of itself."""

    started: datetime
    device: str
    weights: str
    options: _Named


def _about(out: Path, run: str) -> _About | None:
    """What run.json says; None where it does not stand."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        about = json.loads((out / ".crm" / "runs" / run / "run.json").read_bytes())
        return _About(
            started=datetime.fromisoformat(about["started"]),
            device=str(about["device"]),
            weights=weights_label(str(about["weights"]["name"]), str(about["weights"]["digest"])),
            options=from_plain(_Named, about["options"]),
        )
    return None


def _seconds(out: Path, run: str) -> float:
    """How long a run took; 0 where it was killed before it could tell."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, RecursionError):
        summary = json.loads((out / ".crm" / "runs" / run / "summary.json").read_bytes())
        return float(summary["seconds"])
    return 0.0


def _listed(names: Iterable[str]) -> str:
    """Each name once."""
    return ", ".join(dict.fromkeys(name for name in names if name))


def _write(
    out: Path,
    entries: Sequence[SheetEntry],
    summary: SheetSummary,
    kept: Mapping[str, Decision],
    records: Records,
) -> Path:
    """Write a sheet, and remember what it says. entries: finished assets are only named, see _filled."""

    def shown(entry: SheetEntry) -> SheetEntry:
        return _decided(entry if entry.failure else _filled(entry, records), kept)

    # Gone before the pages change: a mark must never outlive the sheet it was written for.
    _mark(out).unlink(missing_ok=True)
    sheet = write_sheet(out, entries, summary, shown=shown)
    _mark(out).write_text(_digest(entries, summary, kept), encoding="ascii")
    return sheet


def _mark(out: Path) -> Path:
    return out / ".crm" / "sheet"


def _digest(entries: Sequence[SheetEntry], summary: SheetSummary, kept: Mapping[str, Decision]) -> str:
    """What a sheet says, apart from when it was written and who made what.

    When an asset was committed stands for all that is said of it: no record is read to know that nothing new
    is to be said.
    """
    digest = hashlib.sha256(dumps((summary.version, summary.preset, summary.weights, summary.note)).encode())
    for entry in entries:
        is_intact = NOT_INTACT not in entry.warnings
        said = (entry.id, entry.photo, entry.made, is_intact, entry.failure, kept.get(entry.id))
        digest.update(dumps(said).encode())
    return digest.hexdigest()


def _read(mark: Path) -> str:
    """The digest of the sheet that stands; empty where none is known."""
    try:
        return mark.read_text("ascii")
    except (OSError, UnicodeDecodeError):
        return ""


def sheet_entry(record: CommitRecord, *, is_intact: bool = True) -> SheetEntry:
    """A finished asset's place on the sheet."""
    files = tuple(
        WrittenFile(path=output.path, size=output.size, sha256=output.sha256) for output in record.outputs
    )
    return SheetEntry(
        id=record.id,
        photo=record.asset,
        files=files,
        checks=record.checks,
        verdict=record.verdict,
        seconds=record.seconds,
        warnings=record.warnings if is_intact else (*record.warnings, NOT_INTACT),
        made=record.t,
    )


def _filled(entry: SheetEntry, records: Records) -> SheetEntry:
    """The whole entry of a finished asset; one that only names it warns at most that it is not intact."""
    record = next((record for record in records.of(entry.id) if record.t == entry.made), None)
    if record is None:  # it was there a moment ago
        return replace(entry, warnings=(NOT_INTACT,))
    whole = sheet_entry(record, is_intact=not entry.warnings)
    return replace(whole, photo=entry.photo, is_kept=entry.is_kept)


def failed_entry(failure: LastFailure) -> SheetEntry:
    """A remembered failure's place on the sheet."""
    failed = Failed(
        path=failure.asset,
        kind=failure.kind,
        code=failure.code,
        message=failure.message,
        stage=failure.stage,
        attempts=failure.attempt,
    )
    return SheetEntry(id=asset_id(failure.asset), photo=failure.asset, failure=failed)


def _decided(entry: SheetEntry, kept: Mapping[str, Decision]) -> SheetEntry:
    """An entry with what was decided of this very asset."""
    decision = of_edition(kept, entry.id, entry.edition)
    if decision is None or decision.decision == "none":
        return entry
    return replace(entry, decision=decision.decision, note=decision.note)
