"""What becomes of verdicts in a run: told, counted, kept, and asked about by exit code."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import fakes
import jsonschema
import pytest
from output import exit_code, plant, put_fakes_on_the_path, records, run, statuses
from test_cli import crm

from crm_cli.preset import load_preset
from crm_cli.run.commits import CommitRecord, Recipe
from crm_cli.run.events import AssetFinished, Event, RunFinished
from crm_cli.run.files import hash_file
from crm_cli.run.schema import schema
from crm_cli.run.table import as_csv, read_rows


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return plant(tmp_path / "in", "a.jpg", "poor_b.jpg", "review_c.jpg")


def grades(events: list[Event]) -> dict[str, str]:
    return {
        str(event.path): event.verdict.grade
        for event in events
        if isinstance(event, AssetFinished) and event.verdict
    }


EXPECTED = {"a.jpg": "pass", "poor_b.jpg": "fail", "review_c.jpg": "review"}


def test_a_run_tells_its_verdicts_and_a_second_one_those_that_stand(photos: Path, tmp_path: Path) -> None:
    for status in ("converted", "cached"):
        events = run(photos, tmp_path / "out")
        assert set(statuses(events).values()) == {status}
        assert grades(events) == EXPECTED
        assert isinstance(events[-1], RunFinished)
        assert events[-1].verdicts == {"pass": 1, "review": 1, "fail": 1}
        assert exit_code(events) == 0


def test_a_verdict_is_told_whole_and_fits_the_schema(photos: Path, tmp_path: Path) -> None:
    validator = jsonschema.Draft202012Validator(schema())
    told: dict[str, Any] = {}
    for event in run(photos, tmp_path / "out"):
        plain = json.loads(event.as_json())
        validator.validate(plain)
        if plain["type"] == "asset_finished":
            told[plain["path"]] = plain["verdict"]
    assert told["review_c.jpg"] == {
        "grade": "review",
        "reasons": [
            {
                "code": "likeness.colour", "severity": "review", "found": 12.0, "limit": 9.0,
                "sentence": "the colours are 12.0 away",
            }
        ],
        "score": 0.8,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "fail_on", "code"),
    [
        ("a.jpg", "review", 0),
        ("review_a.jpg", None, 0),
        ("review_a.jpg", "fail", 0),
        ("review_a.jpg", "review", 3),
        ("poor_a.jpg", None, 0),
        ("poor_a.jpg", "fail", 3),
        ("poor_a.jpg", "review", 3),
    ],
)
def test_a_verdict_ends_a_run_as_its_caller_asks(
    name: str, fail_on: str | None, code: int, tmp_path: Path
) -> None:
    photos, out = plant(tmp_path / "in", name), tmp_path / "out"
    assert exit_code(run(photos, out, fail_on=fail_on)) == code
    # Nothing is left to do, and still it is not what was asked for.
    assert exit_code(run(photos, out, fail_on=fail_on)) == code


def test_records_keep_the_verdict_and_older_ones_have_none(photos: Path, tmp_path: Path) -> None:
    run(photos, tmp_path / "out")
    found = [CommitRecord.from_bytes(path.read_bytes()) for path in records(tmp_path / "out")]
    assert {str(record.asset): record.verdict.grade for record in found if record.verdict} == EXPECTED
    poor = next(record for record in found if "poor" in str(record.asset))
    assert poor.verdict == fakes.VERDICTS["poor"]
    old = json.loads(replace(poor, verdict=None).as_bytes())
    del old["verdict"], old["crc"]
    for name in ("colour_distance", "views_iou", "thickness", "seen_share"):
        del old["checks"][name]
    read = from_older(old)
    assert read.verdict is None and read.checks == poor.checks


def from_older(plain: dict[str, Any]) -> CommitRecord:
    """A record as an earlier version wrote it."""
    from crm_cli.run.wire import from_plain

    return from_plain(CommitRecord, plain)


def test_a_failed_verdict_fails_its_test_case_and_a_reviewed_one_passes(photos: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    for _ in range(2):  # made now, or standing from before
        run(photos, tmp_path / "out", junit=results)
        [suite] = ET.parse(results).getroot()
        assert suite.attrib["failures"] == "1"
        cases = {case.attrib["name"]: case for case in suite}
        failure = cases["poor_b.jpg"].find("failure")
        assert failure is not None and failure.attrib["type"] == "verdict"
        assert failure.attrib["message"] == "the surface has holes; the colours are 12.0 away"
        assert cases["review_c.jpg"].find("failure") is None
        properties = {p.attrib["name"]: p.attrib["value"] for p in cases["review_c.jpg"].iter("property")}
        assert properties == {"verdict": "review", "reasons": "likeness.colour"}
        assert cases["review_c.jpg"].findtext("system-out") == "review: the colours are 12.0 away"


def test_a_reviewed_asset_fails_its_test_case_where_the_run_fails_on_it(photos: Path, tmp_path: Path) -> None:
    results = tmp_path / "results.xml"
    run(photos, tmp_path / "out", junit=results, fail_on="review")
    [suite] = ET.parse(results).getroot()
    assert suite.attrib["failures"] == "2"
    failures = {case.attrib["name"]: case.find("failure") for case in suite}
    assert failures["a.jpg"] is None
    reviewed = failures["review_c.jpg"]
    assert reviewed is not None
    assert reviewed.attrib == {"type": "verdict", "message": "the colours are 12.0 away"}


def test_status_counts_verdicts_and_its_table_says_which_and_why(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(photos, out)
    assert "verdicts: 1 pass, 1 review, 1 fail" in crm("status", str(out)).stdout
    assert json.loads(crm("status", str(out), "--json").stdout)["verdicts"] == {
        "pass": 1, "review": 1, "fail": 1
    }  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(as_csv(read_rows(out)))))
    assert [(row["photo"], row["verdict"], row["flags"]) for row in rows] == [
        ("a.jpg", "pass", ""),
        ("poor_b.jpg", "fail", "geometry.open; likeness.colour"),
        ("review_c.jpg", "review", "likeness.colour"),
    ]


def test_the_seed_that_won_is_recorded_and_each_seeds_views_are_kept_as_its_own(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg"), tmp_path / "out"
    events = run(photos, out, "checks.best_of=3", "seed=7", engine=fakes.engine("SeedsLine"))
    assert [event.seed for event in events if isinstance(event, AssetFinished)] == [9]
    [path] = records(out)
    assert CommitRecord.from_bytes(path.read_bytes()).seed == 9
    weights = fakes.engine().weights(load_preset("tiny").preset).stages
    input_sha256 = hash_file(photos / "a.jpg").sha256
    # As a run of one seed alone would keep them: a change of the number of seeds makes no view again.
    preset = load_preset("tiny").preset
    alone = [Recipe.of(replace(preset, seed=seed), weights).keys(input_sha256).views for seed in (7, 8, 9)]
    kept = {folder.name for folder in (out / ".crm" / "cache").glob("*/*")}
    assert kept == set(alone)


def test_seeds_count_on_after_the_largest() -> None:
    preset = load_preset("tiny").preset
    last = replace(preset, seed=2**32 - 1, checks=replace(preset.checks, best_of=3))
    assert last.seeds() == (2**32 - 1, 0, 1)


def test_the_flags_are_what_they_say(photos: Path, tmp_path: Path) -> None:
    done = crm("convert", photos, "-o", tmp_path / "out", "--best-of", "65", check=2)
    assert "checks.best_of" in done.stderr and "--best-of" in done.stderr
    crm("convert", photos, "-o", tmp_path / "out", "--fail-on", "sometimes", check=2)


def test_the_last_table_counts_verdicts_and_lines_say_why(photos: Path, tmp_path: Path) -> None:
    flags = ("--jobs", "1", "--progress", "plain", "--fail-on", "fail")
    done = crm("convert", photos, "-o", tmp_path / "out", *flags, check=3)
    assert "1 pass, 1 review, 1 fail" in done.stderr
    assert "poor_b.jpg: converted in" in done.stderr
    assert "; fail: the surface has holes; the colours are 12.0 away" in done.stderr
    assert "--fail-on" in done.stderr and "nothing is left to do" not in done.stderr
    quiet = crm("convert", photos, "-o", tmp_path / "out", "--quiet", "--fail-on", "fail", check=3)
    assert quiet.stderr.splitlines() == [
        "--fail-on: there are assets with such a verdict (1 pass, 1 review, 1 fail), see the contact sheet"
    ]
