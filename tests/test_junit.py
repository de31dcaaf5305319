import hashlib
import os
from pathlib import PurePosixPath
from xml.etree import ElementTree as ET

import pytest
from hostile import names

from crm_cli.names import display_name
from crm_cli.records import Reason, Verdict
from crm_cli.run.junit import Case, junit

T = "2026-03-04T05:06:07+00:00"


def read(*cases: Case, name: str = "crm convert") -> ET.Element:
    return ET.fromstring(junit(cases, name=name, seconds=12.5, t=T))


def test_a_run_becomes_one_suite_with_a_case_for_each_photo() -> None:
    made = Case(
        path=PurePosixPath("shoes/a.jpg"), status="converted", seconds=1.25, warnings=("dark", "small")
    )
    bad = Case(
        path=PurePosixPath("b.jpg"),
        status="failed",
        kind="input",
        code="E_IMG_EMPTY",
        message="the file is empty",
    )
    conflict = Case(
        path=PurePosixPath("c.jpg"),
        status="conflict",
        kind="conflict",
        code="E_CONFLICT",
        message="was [E_CONFLICT]",
    )
    kept = Case(path=PurePosixPath("d.jpg"), status="cached", message="up to date")
    left = Case(path=PurePosixPath("e.jpg"), status="left")
    root = read(made, bad, conflict, kept, left)
    assert root.tag == "testsuites"
    [suite] = root
    expected = {
        "name": "crm convert", "tests": "5", "failures": "2", "errors": "0", "skipped": "2", "time": "12.500",
        "timestamp": T,
    }  # fmt: skip
    assert suite.attrib == root.attrib == expected
    assert [case.attrib for case in suite] == [
        {"classname": "shoes", "name": "a.jpg", "time": "1.250"},
        *({"classname": ".", "name": f"{letter}.jpg", "time": "0.000"} for letter in "bcde"),
    ]
    assert [[child.tag for child in case] for case in suite] == [
        ["system-out"], ["failure"], ["failure"], ["skipped"], ["skipped"],
    ]  # fmt: skip
    assert suite[0][0].text == "warning: dark\nwarning: small"
    assert suite[1][0].attrib == {"type": "input", "message": "the file is empty [E_IMG_EMPTY]"}
    assert suite[1][0].text == "b.jpg: the file is empty [E_IMG_EMPTY]"
    assert suite[2][0].get("message") == "was [E_CONFLICT]"
    assert [case[0].get("message") for case in suite][3:] == ["up to date", "left"]


def test_a_warning_that_is_a_reason_as_well_is_said_once() -> None:
    reason = Reason(code="limits.aspect", severity="review", found=0.2, limit=0.1, sentence="too wide")
    verdict = Verdict(grade="review", reasons=(reason,))
    made = Case(
        path=PurePosixPath("a.jpg"), status="converted", warnings=("too wide", "dark"), verdict=verdict
    )
    [[case]] = read(made)
    assert case.findtext("system-out") == "warning: dark\nreview: too wide"


def test_a_run_without_a_photo_is_still_a_report() -> None:
    [suite] = read()
    assert (suite.get("tests"), len(suite)) == ("0", 0)


def test_a_photo_in_quarantine_is_a_failure() -> None:
    [suite] = read(
        Case(path=PurePosixPath("a"), status="quarantined", kind="crash", code="E_CRASH", message="x")
    )
    assert (suite.get("failures"), suite[0][0].get("type")) == ("1", "crash")


def cases(name: str) -> list[Case]:
    """One text in every place that takes one."""
    path = PurePosixPath(f"folder {name}/{name}.jpg")
    heavy = Reason(code="a.b", severity="fail", found=2, limit=1, sentence=f"heavy: {name}")
    verdict = Verdict(grade="fail", reasons=(heavy,))
    return [
        Case(path=path, status="converted", warnings=(f"odd: {name}", name)),
        Case(path=path, status="failed", kind=name, code=name, message=f"{name}: damaged"),
        Case(path=path, status="left", message=name),
        Case(path=path, status="converted", verdict=verdict, warnings=(f"heavy: {name} [W_X]",)),
    ]


def shape(element: ET.Element) -> tuple[object, ...]:
    return element.tag, tuple(sorted(element.attrib)), tuple(map(shape, element))


def test_no_name_changes_the_elements_and_each_can_be_read_back() -> None:
    hostile = [case for name in names(300) for case in cases(name)]
    plain = [case for _ in names(300) for case in cases("plain")]
    root = read(*hostile, name=names(300)[0])
    assert shape(root) == shape(read(*plain))
    texts = [element.text or "" for element in root.iter()] + [
        v for e in root.iter() for v in e.attrib.values()
    ]
    assert all(letter.isprintable() or letter in "\n\u200d\ufe0f" for letter in "".join(texts))
    for case, element in zip(hostile, root[0], strict=True):
        assert element.get("name") == display_name(case.path.name)
        assert element.get("classname") == display_name(case.path.parent)
    told = [element.text.splitlines() for element in root.iter("system-out") if element.text]
    shown = [display_name(name) for name in names(300)]
    assert told[::2] == [[f"warning: odd: {name}", f"warning: {name}"] for name in shown]
    # What the verdict says is no warning as well.
    assert told[1::2] == [[f"fail: heavy: {name}"] for name in shown]


@pytest.mark.parametrize(
    "name", names(300), ids=lambda name: hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
)
def test_every_name_alone_is_well_formed(name: str) -> None:
    assert len(read(*cases(name), name=name)[0]) == 4
