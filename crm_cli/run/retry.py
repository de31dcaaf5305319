"""Failed photos, and how each was asked for: so that just they are tried again, in the same way."""

from __future__ import annotations

import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import get_args

from crm_cli.errors import ErrorClass, UsageError
from crm_cli.names import display_name
from crm_cli.preset import Preset
from crm_cli.run.commits import Records
from crm_cli.run.journal import LastFailure, last_failures
from crm_cli.run.options import RunOptions
from crm_cli.run.past import Asked, asked_of
from crm_cli.run.status import answer
from crm_cli.run.store import refuse_newer, refuse_none
from crm_cli.run.walk import asset_id

CLASSES: tuple[ErrorClass, ...] = get_args(ErrorClass)


@dataclass(frozen=True, slots=True, kw_only=True)
class Again:
    """A run to make once more, of some of its photos."""

    preset: Preset
    options: RunOptions
    photos: tuple[PurePosixPath, ...]

    def placed(self, url: str, *, endpoint: str) -> Again:
        """The same in an object store, under the address that it is known by now."""
        endpoint = endpoint or self.options.endpoint
        return replace(self, options=replace(self.options, place=url, endpoint=endpoint))


def plan_retry(
    out: Path, *, classes: Sequence[str] = (), names: Collection[str] | None = None, dry_run: bool = False
) -> tuple[Again, ...]:
    """Find the failed photos of an output folder, with the settings of the run in which each failed last.

    classes: of failures to try again; empty: all. names: ids or paths of failed photos; None: all.
    Usually one run comes out: more where photos failed under different inputs, presets or options.
    """
    refuse_none(out)
    refuse_newer(out)
    _refuse_unknown(classes)
    failures = last_failures(out)
    records = Records.scan(out)
    for record in records.newest():
        if records.intact(record):
            answer(failures, record)
    if names is not None:
        failures = _chosen(failures, names, finished=records.names)
    wanted = [failure for failure in failures.values() if not classes or failure.kind in classes]
    return grouped(out, [(failure.run, failure.asset) for failure in wanted], dry_run=dry_run)


def read_names(raw: bytes) -> tuple[str, ...]:
    """Ids or paths, one a line; empty lines do not count."""
    lines = (line.removesuffix(b"\r") for line in raw.split(b"\n"))
    return tuple(os.fsdecode(line) for line in lines if line)


def _refuse_unknown(classes: Sequence[str]) -> None:
    for name in classes:
        if name not in CLASSES:
            raise UsageError(
                f"--class {name}: no such class", code="E_CLASS", remedy=f"one of {', '.join(CLASSES)}"
            )


def _chosen(
    failures: dict[PurePosixPath, LastFailure], names: Collection[str], *, finished: Collection[str]
) -> dict[PurePosixPath, LastFailure]:
    """Failures that are named; a name of a finished asset is no mistake, as that is what was wanted."""
    by_id = {asset_id(path): path for path in failures}
    chosen = {}
    for name in names:
        path = by_id.get(name) or by_id.get(asset_id(PurePosixPath(name)))
        if path is not None:
            chosen[path] = failures[path]
        elif name not in finished and asset_id(PurePosixPath(name)) not in finished:
            raise UsageError(
                f"{display_name(name)}: no photo of this name has failed",
                code="E_NOT_FAILED",
                remedy="`crm status OUT` lists those that have",
            )
    return chosen


def grouped(out: Path, wanted: Sequence[tuple[str, PurePosixPath]], *, dry_run: bool) -> tuple[Again, ...]:
    """Put together what was asked for in the same way, in the order of the runs.

    wanted: photos, each with the run that tells how it was asked for.
    """
    groups: list[Again] = []
    for run in sorted({run for run, _ in wanted}):
        asked = _asked(out, run)
        options = replace(
            asked.options,
            out=out,
            place="",
            # The photos are known: counting or dividing anew would leave some of them out.
            select=replace(asked.options.select, limit=None, shard=None),
            # Limits were for the whole run, and so were its results.
            max_failures=None,
            fail_fast=False,
            time_limit_s=None,
            junit=None,
            # Asked for once, of all photos.
            force_stage=None,
            keep_stale=False,
            retry_failed=True,
            dry_run=dry_run,
        )
        photos = tuple(sorted(photo for its_run, photo in wanted if its_run == run))
        for index, group in enumerate(groups):
            if (group.preset, group.options) == (asked.preset, options):
                groups[index] = replace(group, photos=(*group.photos, *photos))
                break
        else:
            groups.append(Again(preset=asked.preset, options=options, photos=photos))
    return tuple(groups)


def _asked(out: Path, run: str) -> Asked:
    """What a run was asked for, or, where nobody knows any more, the latest run that still tells."""
    folders = sorted((out / ".crm" / "runs").glob("*/run.json"), reverse=True)
    for name in (run, *(path.parent.name for path in folders)):
        asked = asked_of(out, name)
        if asked is not None:
            return asked
    raise UsageError(
        f"{out}: no run has left word of what it was asked for",
        code="E_NO_RUN",
        remedy="use `crm convert --retry-failed` with the same inputs and settings",
    )
