"""`crm show`: where a lone file came from, and whether it is still as crm left it."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from in_process import Crm
from output import plant, put_fakes_on_the_path, records
from output import run as convert
from test_provenance import PRESET, SAID, write

from crm_cli.names import SUFFIXES
from crm_cli.run.commits import CommitRecord
from crm_cli.run.files import hash_file


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_lone_file_tells_all_that_made_it(tmp_path: Path, crm: Crm, name: str) -> None:
    file = write(tmp_path, name, SAID.as_words(), stem="皮鞋")
    told = crm("show", file)
    assert told.code == 0
    for word in (
        "皮鞋", "crm 0.1.0, on cpu", "a" * 64, "embedded", "b" * 64, "torch 2.13.0+cpu", "warp", "250 - 80.5",
        "trainedAlgorithmicMedia", f"texture.size_px={PRESET.texture.size_px}", "export.formats=glb,obj,usd",
        "not known: no records of crm are near",
    ):  # fmt: skip
        assert word in told.out
    said = json.loads(crm("show", file, "--json").out)
    assert said["preset"] == json.loads(PRESET.as_json())
    assert (said["format"], said["seed"], said["state"], said["record"]) == (name, 7, "unknown", None)
    assert said["libraries"] == SAID.libraries and said["more"]["size_mm"] == "250 - 80.5"


def test_in_a_pipe_every_row_is_one_line(tmp_path: Path, crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    words = {**SAID.as_words(), "camera": '{"kind":"orthographic","px_per_unit":708.125}'}
    told = crm("show", write(tmp_path, "glb", words)).out
    assert re.search(f"^photo sha256 +{'a' * 64}$", told, re.MULTILINE)
    assert re.search("^camera +kind orthographic, px_per_unit 708.125$", told, re.MULTILINE)


def test_a_file_that_is_not_ours_or_not_there_is_no_input(tmp_path: Path, crm: Crm) -> None:
    (tmp_path / "a.glb").write_bytes(b"glTF of somebody else's")
    told = crm("show", tmp_path / "a.glb")
    assert (told.code, told.out) == (7, "")
    assert "says nowhere that crm made it [E_NOT_OURS]" in told.err
    for path in (tmp_path / "none.glb", tmp_path):
        told = crm("show", path)
        assert told.code == 7 and "[E_NO_FILE]" in told.err


def test_words_that_would_rewrite_the_screen_are_shown_as_what_they_are(tmp_path: Path, crm: Crm) -> None:
    hostile = {**SAID.as_words(), "weights": "\x1b[2J[red]mine", "note": "\u202eevil", "preset": "{}"}
    told = crm("show", write(tmp_path, "glb", hostile))
    assert "\\x1b[2J[red]mine" in told.out and "\\u202eevil" in told.out
    assert "\x1b[2J" not in told.out and "\u202e" not in told.out
    assert "not the one that its digest was taken of" in told.out
    assert json.loads(crm("show", tmp_path / "box.glb", "--json").out)["preset"] is None


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A GLB with all its words, in an output folder whose record knows it."""
    put_fakes_on_the_path(monkeypatch)
    out = tmp_path / "out"
    convert(plant(tmp_path / "in", "sub/a.jpg", "b.jpg"), out, "export.formats=glb")
    file = write(tmp_path / "scratch", "glb", SAID.as_words())
    shutil.copy(file, out / "sub" / "a.glb")
    [path] = [path for path in records(out) if b"sub/a.glb" in path.read_bytes()]
    record = CommitRecord.from_bytes(path.read_bytes())
    outputs = tuple(replace(one, sha256=hash_file(file).sha256) for one in record.outputs)
    path.write_bytes(replace(record, outputs=outputs).as_bytes())
    return out / "sub" / "a.glb"


def test_beside_its_records_a_file_is_known_as_intact_or_changed(made: Path, crm: Crm) -> None:
    told = crm("show", made)
    assert "as crm left it" in told.out and "sub/a.jpg" in told.out
    record = json.loads(crm("show", made, "--json").out)["record"]
    assert re.search("^verdict +pass$", told.out, re.MULTILINE) and record["verdict"]["grade"] == "pass"
    assert record["photo"] == "sub/a.jpg" and record["checks"]["faces"] == 12 and record["run"]
    made.write_bytes(made.read_bytes() + b"\0\0\0\0")
    assert "edited since crm wrote it" in crm("show", made).out
    assert json.loads(crm("show", made, "--json").out)["state"] == "changed"


def test_a_file_that_the_records_do_not_know_is_a_lone_one(made: Path, crm: Crm) -> None:
    moved = made.rename(made.with_name("moved.glb"))
    assert json.loads(crm("show", moved, "--json").out)["state"] == "unknown"


def test_it_is_found_by_a_relative_path(made: Path, crm: Crm, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(made.parent)
    assert json.loads(crm("show", made.name, "--json").out)["state"] == "intact"
