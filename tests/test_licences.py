"""The table of licences: everything is on it, and what forbids something says so."""

import json
from importlib.metadata import requires
from pathlib import Path

import pytest
from typer.testing import CliRunner

from crm_cli import licences as module
from crm_cli.cli.app import app
from crm_cli.licences import SEE_PAGE, USES, Licence, licences


@pytest.fixture(scope="module")
def found() -> dict[str, Licence]:
    return {one.name: one for one in licences()}


def test_crm_and_both_weights_come_first(found: dict[str, Licence]) -> None:
    assert [(one.kind, one.name) for one in list(found.values())[:3]] == [
        ("own", "crm"),
        ("weights", "embedded weights"),
        ("weights", "published weights"),
    ]
    assert found["embedded weights"].licence == "Apache-2.0"
    published = found["published weights"]
    assert published.licence == SEE_PAGE and "huggingface.co/Zhengyi/CRM" in published.note


def test_every_package_that_crm_asks_for_is_on_it_with_its_licence_and_use(found: dict[str, Licence]) -> None:
    asked = [line for line in requires("crm-cli") or () if "extra ==" not in line]
    names = {module._plain(module._NAME.match(line)[0]) for line in asked}  # type: ignore[index]
    assert len(names) > 15
    for name in names:
        one = found[name]
        assert one.kind == "required" and one.version and one.licence != SEE_PAGE, one
        assert USES[name] == one.used_for


def test_what_those_need_in_turn_is_on_it_too(found: dict[str, Licence]) -> None:
    assert found["markupsafe"].used_for == "needed by jinja2"
    assert found["sympy"].used_for == "needed by torch"
    assert "pytest" not in found, "tests make no asset"


def test_what_forbids_commercial_use_or_carries_other_licences_says_so(found: dict[str, Licence]) -> None:
    assert [one.name for one in found.values() if one.forbids_commerce] == ["nvdiffrast"]
    assert "forbids commercial use" in found["nvdiffrast"].note
    assert "codecs" in found["pillow-heif"].note
    assert not {"bpy", "ninja", "pytest"} & set(found)


@pytest.mark.parametrize(
    ("lines", "licence"),
    [
        ("License-Expression: MIT\nClassifier: License :: OSI Approved :: BSD License", "MIT"),
        ("License: whatever\nClassifier: License :: OSI Approved :: BSD License", "BSD License"),
        ("License: MIT License\n  \n  Copyright (c) 2021 Somebody", "MIT License"),
        ("License: Copyright (c) 2021 Somebody", SEE_PAGE),
        ("License: " + "word " * 50, SEE_PAGE),
        ("Classifier: License :: OSI Approved", SEE_PAGE),
        ("Summary: nothing said", SEE_PAGE),
    ],
)
def test_a_licence_is_read_wherever_a_package_declares_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: str, licence: str
) -> None:
    about = tmp_path / "strange_thing-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: strange-thing\nVersion: 1.0\n{lines}\n")
    monkeypatch.syspath_prepend(tmp_path)
    seen: dict[str, Licence] = {}
    module._add(seen, "strange-thing", kind="required", user="")
    assert (seen["strange-thing"].licence, seen["strange-thing"].version) == (licence, "1.0")


def test_vendored_files_are_named_from_their_manifest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = json.dumps(
        {"a-viewer": {"version": "4", "licence": "MIT", "source": "npm: a-viewer 4", "licence_file": "L"}}
    )
    fake = tmp_path / "manifest.json"
    fake.write_text(text)
    monkeypatch.setattr(module, "VENDORED", fake)
    monkeypatch.setattr(module, "HERE", tmp_path / "crm_cli")
    one = {one.name: one for one in licences()}["a-viewer"]
    assert (one.kind, one.version, one.licence, one.licence_file) == ("vendored", "4", "MIT", "L")


def test_every_vendored_file_has_its_licence_beside_it(found: dict[str, Licence]) -> None:
    for one in found.values():
        if one.kind == "vendored":
            assert (module.HERE.parent / one.licence_file).read_text()


def test_the_command_prints_a_table_and_the_same_for_programs() -> None:
    told = CliRunner().invoke(app, ["doctor", "--licences", "--json"])
    assert told.exit_code == 0
    rows = json.loads(told.stdout)
    assert {row["name"] for row in rows} == {one.name for one in licences()}
    shown = CliRunner().invoke(app, ["doctor", "--licences"], env={"COLUMNS": "200"})
    assert shown.exit_code == 0
    for row in rows:
        assert row["name"] in shown.stdout
    assert "forbids commercial use" in shown.stdout


def test_json_is_refused_for_what_is_no_table() -> None:
    assert CliRunner().invoke(app, ["doctor", "--json"]).exit_code != 0
