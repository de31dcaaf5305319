"""A run as JUnit XML, which every CI system reads: one test case for each photo.

An asset whose verdict is `fail` is a failure of the type `verdict`, also where an earlier run made it; one
that a person should look at passes, unless the run was told to fail on it. Either has its verdict and the
reasons' codes as properties.
"""

from __future__ import annotations

import base64
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath

from crm_cli.names import display_name
from crm_cli.records import Grade, Verdict, unsaid
from crm_cli.run.events import FAILING, AssetFinished
from crm_cli.run.wire import from_plain

XML = '<?xml version="1.0" encoding="utf-8"?>'

CONVERTED = "converted"
"""The status of an asset that this run made; every other one but the failed counts as skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What became of one photo."""

    path: PurePosixPath
    status: str
    """`converted`, one of FAILING, or why there was nothing to do: `cached`, `left`."""
    seconds: float = 0.0
    kind: str = ""
    """Class of the failure."""
    code: str = ""
    message: str = ""
    """Of the failure; of a skipped photo the reason."""
    warnings: tuple[str, ...] = ()
    verdict: Verdict | None = None

    def is_refused(self, fail_on: Grade) -> bool:
        """Whether there is an asset with such a verdict, or a worse one."""
        return self.verdict is not None and self.verdict.grade in ("fail", fail_on)


def cases_told(events: Path) -> Iterator[Case]:
    """What became of each photo, from the events that a run has kept: it holds none of it in memory."""
    with events.open("rb") as lines:
        for line in lines:
            if b'"asset_finished"' not in line:
                continue
            told = json.loads(line)
            if told["type"] != AssetFinished.type:
                continue
            exact = told.get("path_b64")
            yield Case(
                path=PurePosixPath(os.fsdecode(base64.b64decode(exact)) if exact else told["path"]),
                status=told["status"],
                seconds=told["seconds"],
                kind=told["kind"] or "",
                code=told["code"],
                message=told["reason"],
                warnings=tuple(told["warnings"]),
                verdict=from_plain(Verdict, told["verdict"]) if told["verdict"] else None,
            )


def junit(cases: Iterable[Case], *, name: str, seconds: float, t: str, fail_on: Grade = "fail") -> bytes:
    """Write the outcomes of a run as JUnit XML.

    name: what the suite is called. seconds: wall time of the run. t: when it began, in ISO 8601.
    fail_on: the verdict from which on an asset counts as a failure.
    """
    # Written one by one, as text: a tree of thousands takes ten times the room, and three times the time.
    written: list[bytes] = []
    kinds: Counter[str] = Counter()
    for case in cases:
        kinds.update([_kind(case, fail_on)])
        written.append(_written(case, fail_on).encode("utf-8"))
    totals = {
        "name": _legal(name),
        "tests": str(len(written)),
        "failures": str(kinds["failure"]),
        "errors": "0",
        "skipped": str(kinds["skipped"]),
        "time": _time(seconds),
        "timestamp": _legal(t),
    }
    head, suite = (_element(tag, totals, "").partition("</")[0] for tag in ("testsuites", "testsuite"))
    ends = "</testsuite>\n</testsuites>\n"
    return b"\n".join([f"{XML}\n{head}\n{suite}".encode(), *written, ends.encode()])


def _kind(case: Case, fail_on: Grade) -> str:
    """What JUnit calls an outcome."""
    if case.status in FAILING or case.is_refused(fail_on):
        return "failure"
    return "passed" if case.status == CONVERTED else "skipped"


def _written(case: Case, fail_on: Grade) -> str:
    """One photo's test case."""
    place = {
        "classname": _legal(case.path.parent),
        "name": _legal(case.path.name),
        "time": _time(case.seconds),
    }
    inner = []
    reasons = case.verdict.reasons if case.verdict else ()
    if case.verdict:
        known = {"verdict": case.verdict.grade, "reasons": " ".join(case.verdict.codes)}
        properties = (
            _element("property", {"name": name, "value": _legal(value)}) for name, value in known.items()
        )
        inner.append(_element("properties", {}, *properties))
    if case.is_refused(fail_on):
        words = "; ".join(_legal(reason.sentence) for reason in reasons)
        inner.append(_failure(case, "verdict", words))
    elif case.status in FAILING:
        message = case.message.removeprefix(f"{case.path}: ")
        coded = message if f"[{case.code}]" in message else f"{message} [{case.code}]"
        inner.append(_failure(case, _legal(case.kind), _legal(coded)))
    elif case.status != CONVERTED:
        inner.append(_element("skipped", {"message": _legal(case.message or case.status)}))
    warnings = unsaid(case.warnings, case.verdict)
    if warnings or reasons:
        lines = [f"warning: {_legal(warning)}" for warning in warnings]
        lines += [f"{reason.severity}: {_legal(reason.sentence)}" for reason in reasons]
        inner.append(_element("system-out", {}, escape("\n".join(lines), quote=False)))
    return _element("testcase", place, *inner)


def _failure(case: Case, kind: str, words: str) -> str:
    """Why a test case failed: some readers show the attribute, some the text."""
    text = escape(f"{_legal(case.path)}: {words}", quote=False)
    return _element("failure", {"type": kind, "message": words}, text)


def _element(tag: str, attributes: Mapping[str, str], *inner: str) -> str:
    """An element as text. inner: what is between its tags, as XML."""
    begun = "".join([tag, *(f' {name}="{escape(value)}"' for name, value in attributes.items())])
    return f"<{begun}>{''.join(inner)}</{tag}>" if inner else f"<{begun} />"


def _legal(text: str | PurePosixPath) -> str:
    """A text that XML may hold: it has no way at all to write most control characters.

    What a person may read is printable, and everything printable is legal. (XML 1.0 §2.2)
    """
    return display_name(text)


def _time(seconds: float) -> str:
    """Seconds as readers of JUnit expect them."""
    return f"{seconds:.3f}"
