"""What a reviewer has decided of assets, as the contact sheet hands it over and the output folder keeps it.

    decisions.json           {"schema": "crm.decisions/1", "decisions": [{"id", "photo", "decision", …}]}
    OUT/.crm/decisions.json  the same for all that was ever taken over, with how often each was redone

A redo asks for seeds that were not tried: the run's own, plus how often the asset was redone times how many a
run tries. That is kept here, so that any later run asks for them as well, and a redo that was interrupted is
finished by `crm convert`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from crm_cli.errors import UsageError
from crm_cli.preset import Preset
from crm_cli.run.files import read_whole, unreadable, write_atomically
from crm_cli.run.wire import from_plain, to_plain

SCHEMA = "crm.decisions/1"

Verb = Literal["approve", "reject", "redo", "none"]
"""`none` takes an earlier decision back."""

MAX_BYTES = 64 << 20
"""A hundred thousand decisions with notes take less."""

MAX_REDONE = 1_000_000

ID = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision:
    """What was decided of one asset."""

    asset: str = ""
    """Its name, for people."""
    id: str
    photo: PurePosixPath
    decision: Verb
    note: str = ""
    edition: str = ""
    """Which asset of this photo was looked at; empty where nobody said."""
    redone: int = 0
    """How often the photo was given another seed; only what is kept in an output folder says so."""


def read_decisions(raw: bytes, *, source: str) -> tuple[Decision, ...]:
    """Read a decisions file; UsageError where it is none, or is damaged. source: its name, for messages."""
    if len(raw) > MAX_BYTES:
        raise _wrong(source, "too large to be one")
    try:
        read = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise _wrong(source, f"not valid JSON ({str(error).splitlines()[0]})") from error
    if not isinstance(read, dict) or not isinstance(read.get("schema"), str):
        raise _wrong(source, "it names no schema")
    if read["schema"] != SCHEMA:
        raise _wrong(source, f"its schema is {read['schema'][:60]!r}, not {SCHEMA!r}")
    if not isinstance(read.get("decisions"), list):
        raise _wrong(source, "it holds no list of decisions")
    found: dict[str, Decision] = {}
    for number, each in enumerate(read["decisions"], start=1):
        decision = _decision(each, f"decision {number}", source)
        if decision.id in found and found[decision.id] != decision:
            raise _wrong(source, f"decision {number}: {decision.id} is decided twice, and differently")
        found[decision.id] = decision
    return tuple(found.values())


def _decision(each: Any, place: str, source: str) -> Decision:
    try:
        decision = from_plain(Decision, each)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        verbs = ", ".join(get_args(Verb))
        raise _wrong(source, f"{place}: needs an id, a photo and a decision ({verbs})") from error
    if not ID.fullmatch(decision.id):
        raise _wrong(source, f"{place}: its id is none")
    if not 0 <= decision.redone <= MAX_REDONE:
        raise _wrong(source, f"{place}: redone {decision.redone} times")
    return decision


def _wrong(source: str, problem: str) -> UsageError:
    return UsageError(
        f"{source}: not a decisions file: {problem}",
        code="E_DECISIONS",
        remedy="download it from the contact sheet again, or move it away",
    )


def kept_decisions(out: Path) -> dict[str, Decision]:
    """What an output folder keeps, by asset id; nothing where it keeps nothing.

    UsageError where the file is damaged, OutputError where the disk does not give it: without it, redone
    assets would silently be made as they first were.
    """
    path = _file(out)
    try:
        raw = read_whole(path)
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise unreadable(out, error) from error
    return {decision.id: decision for decision in read_decisions(raw, source=str(path))}


def keep_decisions(out: Path, decisions: Iterable[Decision], *, run: str) -> None:
    """Replace what an output folder keeps; the caller holds its lock."""
    listed = [to_plain(each) for each in sorted(decisions, key=lambda each: each.id)]
    text = json.dumps({"schema": SCHEMA, "decisions": listed}, indent=1)
    write_atomically(_file(out), text.encode("ascii"), run=run)


def _file(out: Path) -> Path:
    return out / ".crm" / "decisions.json"


def of_edition(decisions: Mapping[str, Decision], asset: str, edition: str) -> Decision | None:
    """What was decided of this very asset, not of an earlier one of the same photo."""
    decision = decisions.get(asset)
    if decision is None or decision.decision == "none" or decision.edition != edition:
        return None
    return decision


def redone(decisions: Mapping[str, Decision]) -> dict[str, int]:
    """How often each asset was redone, of those that were."""
    return {id: decision.redone for id, decision in decisions.items() if decision.redone}


def redone_preset(preset: Preset, times: int) -> Preset:
    """The preset of a photo that was redone so often: it tries no seed that was tried before."""
    return replace(preset, seed=(preset.seed + times * preset.checks.best_of) % 2**32)
