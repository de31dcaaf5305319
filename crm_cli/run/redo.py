"""A reviewer's decisions, taken over into the output folder, and what is to be redone for them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from crm_cli.export.sheet import SheetEntry
from crm_cli.names import display_name
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.decisions import Decision, keep_decisions, kept_decisions, redone, redone_preset
from crm_cli.run.files import output_error
from crm_cli.run.journal import LastFailure, last_failures
from crm_cli.run.past import asked_of
from crm_cli.run.report import failed_entry, sheet_entry
from crm_cli.run.retry import Again, grouped
from crm_cli.run.status import answer
from crm_cli.run.store import locked, refuse_newer, refuse_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Redo:
    """What became of decisions."""

    again: tuple[Again, ...]
    """Runs to make once more, of the photos that are to be redone."""
    times: Mapping[str, int]
    """How often each asset was redone with those, by id."""
    taken: Mapping[str, int]
    """How many decisions of each kind count now."""
    unknown: tuple[str, ...]
    """Photos, as they are shown, of which the folder has neither an asset nor a failure."""
    outdated: tuple[str, ...]
    """Photos whose asset is another one than was looked at."""


@dataclass(frozen=True, slots=True)
class _Standing:
    """What stands in an output folder for one photo."""

    photo: PurePosixPath
    run: str
    entry: SheetEntry
    record: CommitRecord | None


def take_over(out: Path, decisions: Sequence[Decision], *, dry_run: bool = False) -> Redo:
    """Keep decisions in an output folder, and plan what is to be redone; Locked where a run is at work.

    A redo that was taken over but not made yet is planned again and counts no further seed: the same file may
    be given once more after an interruption.
    """
    refuse_none(out)
    refuse_newer(out)
    if dry_run:
        return _planned(out, decisions, dry_run=True)[0]
    with locked(out) as run:
        redo, kept = _planned(out, decisions, dry_run=False)
        try:
            keep_decisions(out, kept.values(), run=run)
        except OSError as error:
            raise output_error(out, error) from error
    return redo


def _planned(out: Path, decisions: Sequence[Decision], *, dry_run: bool) -> tuple[Redo, dict[str, Decision]]:
    """What decisions mean for what stands, and what is to be kept then."""
    standing = _standing(out)
    kept = kept_decisions(out)
    taken: Counter[str] = Counter()
    unknown, outdated, wanted = [], [], []
    for decision in decisions:
        there = standing.get(decision.id)
        if there is None:
            unknown.append(display_name(decision.photo))
        elif decision.edition not in ("", there.entry.edition):
            outdated.append(display_name(there.photo))
        else:
            taken[decision.decision] += 1
            kept[decision.id] = _merged(out, decision, there, kept.get(decision.id))
            if decision.decision == "redo":
                wanted.append((there.run, there.photo))
    redo = Redo(
        again=grouped(out, wanted, dry_run=dry_run),
        times=redone(kept),
        taken=taken,
        unknown=tuple(unknown),
        outdated=tuple(outdated),
    )
    return redo, kept


def _standing(out: Path) -> dict[str, _Standing]:
    """Every photo that has an asset or a failure, by id; the newer of the two counts."""
    failures: dict[PurePosixPath, LastFailure] = last_failures(out)
    records = Records.scan(out)
    found = {}
    for record in records.newest():
        is_intact = records.intact(record)
        if is_intact:
            answer(failures, record)
        entry = sheet_entry(record, is_intact=is_intact)
        found[record.id] = _Standing(record.asset, record.run, entry, record)
    for failure in failures.values():
        entry = failed_entry(failure)
        found[entry.id] = _Standing(failure.asset, failure.run, entry, None)
    return found


def _merged(out: Path, decision: Decision, there: _Standing, before: Decision | None) -> Decision:
    """A decision as the folder keeps it."""
    times = before.redone if before else 0
    if decision.decision == "redo" and not _is_pending(out, there, before):
        times += 1
    return replace(
        decision,
        photo=there.photo,
        asset=display_name(there.entry.stem),
        edition=there.entry.edition,
        redone=times,
    )


def _is_pending(out: Path, there: _Standing, before: Decision | None) -> bool:
    """Whether a redo was taken over before, and no run has made it yet."""
    if before is None or before.decision != "redo" or there.record is None:
        return False
    asked = asked_of(out, there.record.run)
    return asked is not None and there.record.seed not in redone_preset(asked.preset, before.redone).seeds()
