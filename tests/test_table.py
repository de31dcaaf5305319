import csv
import io
import os
from pathlib import Path, PurePosixPath

import fakes
import pytest
from hostile import names
from output import plant, put_fakes_on_the_path, run
from test_cli import crm

from crm_cli.errors import NoInput
from crm_cli.names import display_name
from crm_cli.run.table import HEAD, Row, as_csv, read_rows


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


def read_back(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text, newline="")))


def without_mark(cell: str) -> str:
    """A text as it was before it was marked as one."""
    return cell.removeprefix("'")


def test_a_folder_becomes_a_row_for_each_photo(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "b/a.jpg", "z.jpg", "input_c.jpg", "y.jpg"), tmp_path / "out"
    (out / "y.glb").parent.mkdir()
    (out / "y.glb").write_text("mine")
    run(photos, out, "export.formats=glb,obj")
    (out / "z.glb").unlink()
    rows = read_back(as_csv(read_rows(out)))
    assert [(row["photo"], row["status"], row["code"]) for row in rows] == [
        ("b/a.jpg", "finished", ""),
        ("input_c.jpg", "failed", "E_EMPTY"),
        ("y.jpg", "conflict", "E_CONFLICT"),
        ("z.jpg", "damaged", ""),
    ]
    assert rows[0] == {
        "photo": "b/a.jpg", "assets": "b/a.glb; b/a.obj", "status": "finished", "faces": "12",
        "confidence": "ok", "silhouette_iou": "0.9000", "code": "", "reason": "",
        "verdict": "pass", "flags": "", "colour_distance": "0.00", "seen_share": "0.000",
        "decision": "", "note": "",
    }  # fmt: skip
    assert rows[1]["reason"] == "input_c.jpg: nothing in the picture [E_EMPTY]; another photo"
    assert "missing" in rows[3]["reason"]


def test_a_photo_that_failed_and_was_finished_later_stands_once(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "input_a.jpg"), tmp_path / "out"
    run(photos, out)
    run(photos, out, engine=fakes.engine("KindLine"), retry_failed=True)
    # A kill right after the commit leaves the success out of the journal.
    for file in (out / ".crm" / "journal").iterdir():
        lines = file.read_bytes().splitlines(keepends=True)
        file.write_bytes(b"".join(line for line in lines if b"asset_done" not in line))
    assert [(str(row.photo), row.status) for row in read_rows(out)] == [("input_a.jpg", "finished")]


def test_a_folder_of_something_else_has_no_table(tmp_path: Path) -> None:
    with pytest.raises(NoInput, match="E_NOT_OUT"):
        read_rows(tmp_path)


def test_an_empty_table_has_its_head() -> None:
    head = "photo,assets,status,faces,confidence,silhouette_iou,code,reason,verdict,flags,colour_distance,"
    assert as_csv([]) == head + "seen_share,decision,note\n"


def test_no_cell_of_a_hostile_name_is_a_formula_or_spans_lines_and_each_can_be_read_back() -> None:
    rows = [
        Row(
            photo=PurePosixPath(f"{name}.jpg"), assets=(PurePosixPath(f"{name}.glb"), PurePosixPath("b.obj")),
            status="failed", confidence=name, code=name, reason=name, note=name,
        )
        for name in names(300)
    ]  # fmt: skip
    text = as_csv(rows)
    assert text.count("\n") == 301
    assert all(letter.isprintable() or letter in "\n\u200d\ufe0f" for letter in text)
    back = read_back(text)
    assert [without_mark(row["photo"]) for row in back] == [
        display_name(f"{name}.jpg") for name in names(300)
    ]
    for column in ("reason", "note"):
        assert [without_mark(row[column]) for row in back] == [display_name(name) for name in names(300)]
    for cell in (cell for row in back for cell in row.values()):
        assert cell.strip()[:1] not in tuple("=+-@\uff1d\uff0b\uff0d\uff20")


@pytest.mark.parametrize(
    ("name", "cell"),
    [
        ("=1+1", "'=1+1"), ("-rf", "'-rf"), ("+49", "'+49"), ("@x", "'@x"), (" =1", "' =1"), ("'x", "''x"),
        ("a=1", "a=1"), ("\t=1", "\\x09=1"), ("\r=1", "\\x0d=1"), ("\uff1d1", "'\uff1d1"), ("", ""),
    ],
)  # fmt: skip
def test_what_a_spreadsheet_would_calculate_is_marked_as_text(name: str, cell: str) -> None:
    [row] = read_back(as_csv([Row(photo=PurePosixPath("x"), status="failed", reason=name)]))
    assert row["reason"] == cell


def test_the_command_prints_the_table_and_nothing_else(tmp_path: Path) -> None:
    name = os.fsdecode(b"=caf\xe9 \xc3\xa9.jpg")
    run(plant(tmp_path / "in", name), tmp_path / "out")
    done = crm("status", tmp_path / "out", "--csv", PYTHONIOENCODING="ascii")
    [row] = read_back(done.stdout)
    assert tuple(row) == HEAD
    assert (row["photo"], row["status"]) == ("'=caf\\xe9 é.jpg", "finished")
    assert done.stderr == ""
    assert "only one of them" in crm("status", tmp_path / "out", "--csv", "--json", check=2).stderr
