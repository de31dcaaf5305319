"""A run as JUnit XML, which every CI system reads: one test case for each photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

from crm_cli.names import display_name

FAILED = frozenset({"failed", "conflict", "quarantined"})
"""Statuses of a photo that has no asset and is to blame for it."""

CONVERTED = "converted"
"""The status of an asset that this run made; every other one but the failed counts as skipped."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """What became of one photo."""

    path: PurePosixPath
    status: str
    """`converted`, one of FAILED, or why there was nothing to do: `cached`, `left`."""
    seconds: float = 0.0
    kind: str = ""
    """Class of the failure."""
    code: str = ""
    message: str = ""
    """Of the failure; of a skipped photo the reason."""
    warnings: tuple[str, ...] = ()


def junit(cases: Sequence[Case], *, name: str, seconds: float, t: str) -> bytes:
    """Write the outcomes of a run as JUnit XML.

    name: what the suite is called. seconds: wall time of the run. t: when it began, in ISO 8601.
    """
    failures = sum(case.status in FAILED for case in cases)
    skipped = sum(case.status not in FAILED and case.status != CONVERTED for case in cases)
    totals = {
        "name": _legal(name),
        "tests": str(len(cases)),
        "failures": str(failures),
        "errors": "0",
        "skipped": str(skipped),
        "time": _time(seconds),
        "timestamp": _legal(t),
    }
    root = ET.Element("testsuites", totals)
    suite = ET.SubElement(root, "testsuite", totals)
    for case in cases:
        _add(suite, case)
    ET.indent(root)
    written: bytes = ET.tostring(root, encoding="utf-8", xml_declaration=True)
    return written + b"\n"


def _add(suite: ET.Element, case: Case) -> None:
    """Append one photo's test case."""
    folder = str(case.path.parent)
    place = {"classname": _legal(folder), "name": _legal(case.path.name), "time": _time(case.seconds)}
    element = ET.SubElement(suite, "testcase", place)
    if case.status in FAILED:
        coded = case.message if f"[{case.code}]" in case.message else f"{case.message} [{case.code}]"
        said = {"type": _legal(case.kind), "message": _legal(coded)}
        # Some readers show the attribute, some the text.
        ET.SubElement(element, "failure", said).text = f"{_legal(case.path)}: {_legal(coded)}"
    elif case.status != CONVERTED:
        ET.SubElement(element, "skipped", {"message": _legal(case.message or case.status)})
    if case.warnings:
        lines = (f"warning: {_legal(warning)}" for warning in case.warnings)
        ET.SubElement(element, "system-out").text = "\n".join(lines)


def _legal(text: str | PurePosixPath) -> str:
    """A text that XML may hold: it has no way at all to write most control characters.

    What a person may read is printable, and everything printable is legal. (XML 1.0 §2.2)
    """
    return display_name(text)


def _time(seconds: float) -> str:
    """Seconds as readers of JUnit expect them."""
    return f"{seconds:.3f}"
