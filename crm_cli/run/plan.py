"""What has to be done with each photo, and why: decided from records and names, without a worker."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

from crm_cli.run.journal import LastFailure
from crm_cli.run.store import CommitRecord, Input, Keys, Recipe, Records, hash_file, looks_unchanged
from crm_cli.run.walk import Found

Action = Literal["convert", "cached", "failed", "conflict"]

PARTS: Mapping[str, str] = {"prep": "cut-out", "views": "views", "mesh": "surface", "out": "texture"}
"""What people call the first thing that is made anew, by the key that changed."""

CLOCK_DOUBT_S = 2.0
"""A file written this shortly before it was hashed may have changed again with the same time stamp."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planned:
    """One photo and what is to be done with it."""

    found: Found
    action: Action
    reason: str
    input: Input | None = None
    """Known where it was needed to decide; a new photo is hashed when its turn comes."""
    record: CommitRecord | None = None
    """Of the finished asset, where there is one."""
    failure: LastFailure | None = None
    """How this very photo failed before, where it is not tried again."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Everything a decision depends on."""

    recipe: Recipe
    records: Records
    failures: Mapping[PurePosixPath, LastFailure]
    max_mpixels: float
    may_overwrite: bool = False
    retry_failed: bool = False

    def decide(self, found: Found) -> Planned:
        """Say what to do with one photo."""
        records = self.records.of(found.id)
        failure = self.failures.get(found.path)
        if not records and failure is None:
            return Planned(found=found, action="convert", reason="new")
        try:
            known = self._identify(found, records)
        except OSError:  # it fails by itself when its turn comes
            return Planned(found=found, action="convert", reason="unreadable when planned")
        keys = self.recipe.keys(known.sha256)
        # The record before the failure: a kill right after the commit leaves the success out of the journal.
        current = next((r for r in records if r.keys == keys and r.stem == found.stem), None)
        if current and self.records.intact(current):
            return Planned(found=found, action="cached", reason="up to date", input=known, record=current)
        if (
            failure
            and not self.retry_failed
            and failure.kind == "input"
            and failure.key == self.attempt_key(keys)
        ):
            reason = f"failed before with these bytes ({failure.code})"
            return Planned(found=found, action="failed", reason=reason, input=known, failure=failure)
        edited = None if self.may_overwrite else self._edited(found)
        if edited is not None:
            reason = f"{edited} was changed since crm wrote it; move it, or use --overwrite"
            return Planned(found=found, action="conflict", reason=reason, input=known)
        reason = _why_again(found, keys, known, records, current)
        return Planned(found=found, action="convert", reason=reason, input=known)

    def attempt_key(self, keys: Keys) -> str:
        """What an attempt was asked for; a higher limit on pixels is another question."""
        return f"{keys.out}:{self.max_mpixels:g}"

    def _identify(self, found: Found, records: list[CommitRecord]) -> Input:
        """The photo's digest, from a record where the file is plainly the same one."""
        if found.source is not None:
            same = (record.input for record in records if found.source.is_same(record.input))
            return next(same, None) or found.source.read()
        for record in records:
            is_settled = record.t - record.input.mtime_ns / 1e9 > CLOCK_DOUBT_S
            if is_settled and looks_unchanged(found.file, record.input):
                return record.input
        return hash_file(found.file)

    def _edited(self, found: Found) -> PurePosixPath | None:
        """A file of the asset that stands but is not as any of its records or intents left it.

        Intents count: a run killed between two moves leaves files that no record names yet.
        """
        written = self.records.of(found.id, with_intents=True)
        outputs = [output for record in written for output in record.outputs]
        ours = {output.path for output in outputs if self.records.is_as_written(output)}
        standing = (output.path for output in outputs if os.path.lexists(self.records.out / output.path))
        return next((path for path in standing if path not in ours), None)


def _why_again(
    found: Found, keys: Keys, known: Input, records: list[CommitRecord], current: CommitRecord | None
) -> str:
    """Say why a photo that was looked at before is converted."""
    if current:
        return "output missing"
    if not records:
        return "failed before"
    latest = records[0]
    if latest.input.sha256 != known.sha256:
        return "photo changed"
    if latest.keys == keys:
        return "output renamed"
    part = next(words for key, words in PARTS.items() if getattr(latest.keys, key) != getattr(keys, key))
    return f"settings or weights changed, from the {part} on"
