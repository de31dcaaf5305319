"""What has to be done with each photo, and why: decided from records and names, without a worker."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath
from typing import Literal

from crm_cli.names import lod_names
from crm_cli.records import Verdict
from crm_cli.run.commits import Glance, Keys, Recipe, Records
from crm_cli.run.events import Plan
from crm_cli.run.files import Input, hash_photo, looks_unchanged
from crm_cli.run.journal import LastFailure
from crm_cli.run.keeping import MARK, folder_of
from crm_cli.run.options import UsedWeights, makes_views_anew
from crm_cli.run.past import Past
from crm_cli.run.walk import Found
from crm_cli.run.wire import PathText

Action = Literal["convert", "cached", "skipped", "failed", "conflict"]

PARTS: Mapping[str, str] = {"prep": "cut-out", "views": "views", "mesh": "surface", "out": "texture"}
"""What people call the first thing that is made anew, by the key that changed."""

MAIN_FILES: Mapping[str, tuple[str, ...]] = {
    "glb": (".glb",),
    "obj": (".obj", ".mtl", "{texture}"),
    "usd": (".usdc", "{texture}"),
    "usdz": (".usdz",),
}
"""Suffixes of what a format writes, so that a file in the way is noticed before any work is done."""

TEXTURE_SUFFIXES: Mapping[str, str] = {"png": ".png", "jpeg": ".jpg"}
"""Of the picture beside an OBJ or a USD file, by its format."""

UP_TO_DATE = "up to date"
"""Why nothing has to be done with a photo, unless an older asset is kept."""

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
    outputs: tuple[PathText, ...] = ()
    """Files of the finished asset, where there is one."""
    made: float = 0.0
    """When it was committed; what else its record says is read where it is shown."""
    verdict: Verdict | None = None
    """Of the finished asset."""
    failure: LastFailure | None = None
    """How this very photo failed before, where it is not tried again or has an asset all the same."""
    stage: str = ""
    """The first stage that runs, where one does."""
    interruptions: int = 0
    """Runs that died with this photo at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Planner:
    """Everything a decision depends on."""

    recipe: Recipe
    """Of all photos but those in `redone`."""
    records: Records
    failures: Mapping[PurePosixPath, LastFailure]
    max_mpixels: float
    redone: Mapping[str, Recipe] = field(default_factory=dict)
    """Asset id → recipe with the seed that a reviewer's redo has asked for."""
    interruptions: Mapping[PurePosixPath, int] = field(default_factory=dict)
    """Runs that died with a photo at work."""
    past: Past | None = None
    """What finished assets were made with, to say what is different now."""
    formats: Sequence[str] = ()
    plain_texture: Literal["png", "jpeg"] = "png"
    """Picture format beside the files that do not hold their texture."""
    lods: Sequence[float] = (1.0,)
    """Shares of the triangles, each written as files of its own."""
    may_overwrite: bool = False
    skip_existing: bool = False
    """Whether a photo is left alone whose asset somebody else has put in place."""
    keep_stale: bool = False
    """Whether an asset stays that was made of the same bytes with other settings or weights."""
    force_stage: str | None = None
    retry_failed: bool = False
    is_dry: bool = False
    """Whether nothing may be changed, be it a time stamp."""

    def recipe_of(self, found: Found) -> Recipe:
        """What a photo's asset depends on beside the photo."""
        return self.redone.get(found.id, self.recipe)

    def decide(self, found: Found) -> Planned:
        """Say what to do with one photo."""
        asset = found.id
        records = self.records.glance(asset)
        failure = self.failures.get(found.path)
        interruptions = self.interruptions.get(found.path, 0)
        if not records and failure is None:
            return self._convert(
                Planned(found=found, action="convert", reason="new", stage="prepare"), interruptions
            )
        try:
            known = self._identify(found, records)
        except OSError:  # it fails by itself when its turn comes
            return Planned(found=found, action="convert", reason="unreadable when planned", stage="prepare")
        keys = self.redone.get(asset, self.recipe).keys(known.sha256, found.extras)
        # The record before the failure: a kill right after the commit leaves the success out of the journal.
        current = next((r for r in records if r.keys.out == keys.out and r.stem == str(found.stem)), None)
        if current and self.force_stage is None and self._stands(current):
            return _kept(found, current, UP_TO_DATE, failure)
        stale = None if current else self._stale(found, known, records)
        if stale and self.keep_stale and self.force_stage is None:
            reason = f"kept, although {self._why_again(found, keys, known, records, None)}"
            return _kept(found, stale, reason)
        if failure and self._is_settled(failure, keys):
            reason = f"failed before with these bytes ({failure.code})"
            return Planned(found=found, action="failed", reason=reason, input=known, failure=failure)
        reason = self._why_again(found, keys, known, records, current)
        if current and self.force_stage is not None and self.records.intact(current):
            reason = f"forced, from {self.force_stage} on"
        planned = Planned(
            found=found, action="convert", reason=reason, input=known, stage=self._first_stage(keys)
        )
        return self._convert(planned, interruptions)

    def _convert(self, planned: Planned, interruptions: int) -> Planned:
        """Convert a photo, unless somebody else's file is in the way."""
        planned = replace(planned, interruptions=interruptions)
        obstacle = self._obstacle(planned.found)
        if obstacle is None:
            return planned
        if self.may_overwrite:
            return replace(planned, reason=f"{planned.reason}; replaces {obstacle}")
        if self.skip_existing:
            return replace(planned, action="skipped", reason=f"{obstacle} is there already", stage="")
        known = bool(self.records.of(planned.found.id, with_intents=True))
        words = "was changed since crm wrote it" if known else "is in the way: crm did not write it"
        reason = f"{obstacle} {words}; move it, or use --overwrite"
        return replace(planned, action="conflict", reason=reason, stage="")

    def _stands(self, record: Glance) -> bool:
        """Whether an asset's files are as they were written, be it with other times, as copies have them."""
        others = [output for output in record.outputs if not self.records.is_as_written(output)]
        if not others:
            return True
        is_copied = all(self.records.is_copy(output) for output in others)
        if is_copied and not self.is_dry:
            self.records.set_times(others)
        return is_copied

    def _is_settled(self, failure: LastFailure, keys: Keys) -> bool:
        """Whether a photo failed in a way that another try would only repeat."""
        is_final = failure.kind == "input" or failure.is_quarantined
        return is_final and not self.retry_failed and failure.key == self.attempt_key(keys)

    def _first_stage(self, keys: Keys) -> str:
        """Where the work begins: behind the views, where they are kept."""
        is_kept = (folder_of(self.records.out, keys.views) / MARK).exists()
        return "reconstruct" if is_kept and not makes_views_anew(self.force_stage) else "prepare"

    def _stale(self, found: Found, known: Input, records: Sequence[Glance]) -> Glance | None:
        """A standing asset of the same photo, whatever the settings it was made with."""
        return next(
            (
                record
                for record in records
                if record.input.sha256 == known.sha256
                and record.stem == str(found.stem)
                and self.records.intact(record)
            ),
            None,
        )

    def attempt_key(self, keys: Keys) -> str:
        """What an attempt was asked for; a higher limit on pixels is another question."""
        return f"{keys.out}:{self.max_mpixels:g}"

    def _identify(self, found: Found, records: list[Glance]) -> Input:
        """The photo's digest, from a record where the file is plainly the same one."""
        if found.source is not None:
            same = (record.input for record in records if found.source.is_same(record.input))
            return next(same, None) or found.source.read()
        for record in records:
            is_settled = record.t - record.input.mtime_ns / 1e9 > CLOCK_DOUBT_S
            if is_settled and looks_unchanged(f"{found.root}/{found.path}", record.input):
                return record.input
        return hash_photo(found.file)

    def _obstacle(self, found: Found) -> PurePosixPath | None:
        """A file where the asset's would go that none of its records or intents has left like this.

        Intents count: a run killed between two moves leaves files that no record names yet.
        """
        written = self.records.of(found.id, with_intents=True)
        if self.records.names.get(found.id) and not written:
            return None  # its record is damaged: whether the files are the same is seen once they are made
        outputs = [output for record in written for output in record.outputs]
        ours = {o.path for o in outputs if self.records.is_as_written(o) or self.records.is_copy(o)}
        suffixes = [suffix for name in self.formats for suffix in MAIN_FILES.get(name, (f".{name}",))]
        texture = TEXTURE_SUFFIXES[self.plain_texture]
        named = {
            found.stem.with_name(f"{name}{suffix.format(texture=texture)}"): None
            for name in lod_names(found.stem.name, self.lods)
            for suffix in suffixes
        }
        wanted = {output.path: None for output in outputs} | named
        return next((p for p in wanted if p not in ours and os.path.lexists(self.records.out / p)), None)

    def _why_again(
        self,
        found: Found,
        keys: Keys,
        known: Input,
        records: Sequence[Glance],
        current: Glance | None,
    ) -> str:
        """Say why a photo that was looked at before is converted."""
        if current:
            is_there = all(os.path.lexists(self.records.out / output.path) for output in current.outputs)
            return "output changed" if is_there else "output missing"
        if not records:
            return "failed before"
        latest = next(iter(self.records.of(found.id)), None)
        if latest is None:
            return "its record is of another version"
        if latest.input.sha256 != known.sha256:
            return "photo changed"
        if latest.keys == keys:
            return "output renamed"
        part = next(key for key in PARTS if getattr(latest.keys, key) != getattr(keys, key))
        parts = [self.past.changes_since(latest.run)] if self.past else []
        recipe = self.recipe_of(found)
        if found.id in self.redone and latest.seed not in recipe.seeds:
            parts = [f"to be redone, from seed {recipe.seed} instead of {latest.seed}"]
        if latest.size != found.size:
            parts.append(f"real size {latest.size or 'unknown'} → {found.size or 'unknown'} mm")
        if self.recipe.weights.get(part, "") != latest.weights.get(part, ""):
            parts.append("other weights")
        told = ", ".join(part for part in parts if part)
        return told or f"settings, weights or crm itself changed, from the {PARTS[part]} on"


def _kept(found: Found, record: Glance, reason: str, failure: LastFailure | None = None) -> Planned:
    """Leave a finished asset as it is."""
    outputs = tuple([output.path for output in record.outputs])
    return Planned(
        found=found,
        action="cached",
        reason=reason,
        outputs=outputs,
        made=record.t,
        verdict=record.verdict,
        failure=failure,
    )


def summary(plan: Sequence[Planned], weights: UsedWeights, *, workers: int) -> Plan:
    """Say in numbers what will be done."""
    counts = Counter(planned.action for planned in plan)
    failed = [planned.failure for planned in plan if planned.action == "failed"]
    quarantined = sum(failure is not None and failure.is_quarantined for failure in failed)
    return Plan(
        photos=len(plan),
        to_convert=counts["convert"],
        cached=counts["cached"],
        stale=sum(planned.action == "cached" and planned.reason != UP_TO_DATE for planned in plan),
        skipped=counts["skipped"],
        failed_before=counts["failed"] - quarantined,
        quarantined_before=quarantined,
        conflicts=counts["conflict"],
        workers=workers,
        reasons=dict(Counter(planned.reason for planned in plan if planned.action == "convert")),
        weights=weights.name,
        weights_digest=weights.digest,
    )
