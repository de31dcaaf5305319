"""What stands in an output folder: read at any time, also while a run is writing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from crm_cli.export.sheet import edition_of
from crm_cli.run.commits import CommitRecord, Records
from crm_cli.run.decisions import kept_decisions, of_edition
from crm_cli.run.events import weights_label
from crm_cli.run.journal import LastFailure, last_failures
from crm_cli.run.lock import is_at_work
from crm_cli.run.store import refuse_newer, refuse_none


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """Counts and failures of an output folder."""

    out: Path
    finished: int
    damaged: int
    """Assets with a record whose files are missing or were changed since."""
    low_confidence: int
    verdicts: Mapping[str, int]
    """Finished assets by their verdict; those of version 0.1.0 have none."""
    decided: Mapping[str, int]
    """Finished assets by what a reviewer decided of them."""
    weights: Mapping[str, int]
    """Finished assets by the weights that made them; those of version 0.1.0 do not tell."""
    failures: tuple[LastFailure, ...]
    is_running: bool
    last_run: Mapping[str, object]
    """The last RunFinished event; empty where no run has ended yet."""


def status(out: Path) -> Standing:
    """Read an output folder; NoInput where it is none."""
    refuse_none(out)
    refuse_newer(out)
    # Before the records: an asset finished meanwhile then answers its failure, never the other way round.
    failures = last_failures(out)
    records = Records.scan(out)
    finished = damaged = low = 0
    kept = kept_decisions(out)
    decided: Counter[str] = Counter()
    weights: Counter[str] = Counter()
    verdicts: Counter[str] = Counter()
    for record in records.newest():
        is_intact = records.intact(record)
        if is_intact:
            answer(failures, record)
        finished += is_intact
        damaged += not is_intact
        low += is_intact and record.checks.confidence == "low"
        if is_intact and record.verdict:
            verdicts[record.verdict.grade] += 1
        decision = of_edition(kept, record.id, edition_of(output.sha256 for output in record.outputs))
        if is_intact and decision:
            decided[decision.decision] += 1
        if is_intact and record.weights_name:
            weights[weights_label(record.weights_name, record.weights_digest)] += 1
    return Standing(
        out=out,
        finished=finished,
        damaged=damaged,
        low_confidence=low,
        verdicts=verdicts,
        decided=decided,
        weights=weights,
        failures=tuple(failures.values()),
        is_running=is_locked(out / ".crm" / "lock"),
        last_run=_last_summary(out),
    )


def answer(failures: dict[PurePosixPath, LastFailure], record: CommitRecord) -> None:
    """Take a finished asset's older failure away: a kill right after the commit keeps the journal from it."""
    failure = failures.get(record.asset)
    if failure and record.t > failure.t:
        del failures[record.asset]


def is_locked(path: Path) -> bool:
    """Whether a run holds the lock, or a shard one of its own."""
    return is_at_work(path.parent)


def _last_summary(out: Path) -> Mapping[str, object]:
    """The summary that the latest finished run left."""
    for path in sorted((out / ".crm" / "runs").glob("*/summary.json"), reverse=True):
        try:
            summary = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError):
            continue
        if isinstance(summary, dict):
            return summary
    return {}
