"""The published schema of events: true of what runs write, and only ever added to."""

import json
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from output import plant
from runs import PATHS, start
from typer.testing import CliRunner

from crm_cli.cli.app import app
from crm_cli.run.events import Event, RunFinished
from crm_cli.run.schema import schema

PUBLISHED = Path(__file__).parent / "crm.events.1.json"
"""What programs were promised. Fields may be added to it; nothing in it may change."""

VALIDATOR = jsonschema.Draft202012Validator(schema())


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", PATHS)


def test_every_event_of_a_run_fits_the_schema(tmp_path: Path) -> None:
    photos = plant(tmp_path / "in", "a.jpg", "input_b.jpg", "segv_c.jpg", "steps_d.jpg", "caf\udce9.jpg")
    seen = set()
    for changes in ({"jobs": 2}, {"jobs": 2}, {"dry_run": True}):
        for event in start(photos, **changes):
            VALIDATOR.validate(json.loads(event.as_json()))
            seen.add(event.type)
            if isinstance(event, RunFinished) and event.counts.get("converted"):
                assert set(event.peak_bytes) == {"cpu"} and event.peak_bytes["cpu"] > 5e6
    ends = {"run_started", "plan", "asset_planned", "progress", "run_finished"}
    stages = {"stage_started", "stage_progress", "stage_finished"}
    assert ends | stages | {"asset_started", "attempt_failed", "asset_finished"} <= seen


def sample(**changes: object) -> dict[str, object]:
    event = {
        "schema": "crm.events/1",
        "type": "asset_finished",
        "t": 1.5,
        "path": "a.jpg",
        "status": "failed",
    }
    return {**event, **changes}


@pytest.mark.parametrize(
    "event",
    [
        sample(status="lost"),
        sample(path=None),
        sample(outputs="a.glb"),
        sample(outputs=[3]),
        sample(seconds="long"),
        sample(kind="weather"),
        sample(schema="crm.events/2"),
        {"schema": "crm.events/1", "type": "plan", "t": 1.0},
        [],
    ],
)
def test_what_is_no_event_does_not_fit(event: object) -> None:
    assert not VALIDATOR.is_valid(event)


def test_types_and_fields_that_are_not_known_yet_fit() -> None:
    assert VALIDATOR.is_valid(sample())
    assert VALIDATOR.is_valid(sample(mood="good"))
    assert VALIDATOR.is_valid({"schema": "crm.events/1", "type": "eclipse", "t": 1.0})


def test_the_schema_describes_every_event_and_every_field() -> None:
    described = schema()["$defs"]
    for kind in Event.__subclasses__():
        assert {field.name for field in fields(kind)} <= set(described[kind.type]["properties"])


def test_nothing_that_was_published_has_gone_or_changed() -> None:
    was, now = json.loads(PUBLISHED.read_text()), schema()
    for name, old in was["$defs"].items():
        new = now["$defs"][name]
        for field, kind in old["properties"].items():
            assert _is_wider(new["properties"][field], kind), f"{name}.{field}"
        # What was always there stays so.
        assert set(old["required"]) <= set(new["required"])


def _is_wider(new: dict[str, Any], old: dict[str, Any]) -> bool:
    """Whether every value of the old type is one of the new type."""
    if "enum" in old:
        return set(old["enum"]) <= set(new.get("enum", ()))
    return {k: v for k, v in new.items() if k != "description"} == {
        k: v for k, v in old.items() if k != "description"
    }


def test_the_command_prints_the_schema() -> None:
    done = CliRunner().invoke(app, ["schema"])
    assert done.exit_code == 0 and json.loads(done.stdout) == schema()
