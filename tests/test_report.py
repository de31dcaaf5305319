import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import fakes
import pytest
from output import HERE, begin, copied, everything, plant, put_fakes_on_the_path, records, run, statuses

from crm_cli.errors import Locked, NoInput, OutputError
from crm_cli.export import sheet as sheet_module
from crm_cli.run.events import Plan
from crm_cli.run.report import rewrite_report
from crm_cli.run.selection import Selection
from crm_cli.run.store import Store

NAMES = ("a.jpg", "input_b.jpg", "raise_c.jpg", "sub/d.png", "z.webp")


@pytest.fixture(autouse=True)
def small_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)
    monkeypatch.setattr(sheet_module, "ENTRIES_PER_PAGE", 2)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that one run made, with its sheet; only ever copied."""
    base = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_on_the_path(patch)
        patch.setattr(sheet_module, "ENTRIES_PER_PAGE", 2)
        run(plant(base / "in", *NAMES), base / "out", report=True, preset_name="tiny")
        yield base


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return copied(whole / "out", tmp_path / "out")


def pages(out: Path) -> dict[str, str]:
    """The pages without when and how fast it was."""
    texts = {}
    for path in (out / "report").glob("*.html"):
        text = re.sub(r"<time.*?</time>", "", path.read_text())
        text = re.sub(r"<div><dt>(Wall time|Photos per hour)</dt>.*?</div>", "", text)
        texts[path.name] = re.sub(r"<p class=\"note\">.*?</p>\n", "", text)
    return texts


def test_of_one_run_that_did_everything_it_is_that_runs_sheet(out: Path) -> None:
    before = pages(out)
    assert set(before) == {"index.html", "page-002.html", "page-003.html"}
    counts = rewrite_report(out)
    assert (counts.finished, counts.failed, counts.sheet) == (3, 2, out / "report" / "index.html")
    assert pages(out) == before
    assert "after 2 attempts" in "".join(before.values())


def test_of_several_runs_it_is_the_sheet_of_a_run_that_did_everything(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for wanted in ("z.webp", "a.jpg", "raise_c.jpg", "sub/*", "input_b.jpg", "a.jpg"):
        run(whole / "in", out, select=Selection(include=(wanted,)), report=True, preset_name="tiny")
    assert set(pages(out)) == {"index.html"}
    rewrite_report(out)
    assert pages(out) == pages(whole / "out")
    assert '<p class="note">from 5 runs</p>' in (out / "report" / "index.html").read_text()


def test_the_head_names_every_preset_and_weights_and_adds_the_time(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    for name, weights, preset in (("a.jpg", "w1", "web"), ("z.webp", "w2", "fine")):
        engine = fakes.engine(weights=weights, name=weights)
        run(
            whole / "in",
            out,
            engine=engine,
            select=Selection(include=(name,)),
            preset_name=preset,
            report=True,
        )
    for path in (out / ".crm" / "runs").glob("*/summary.json"):
        path.write_text(re.sub(r'"seconds": [\d.]+', '"seconds": 1800.0', path.read_text()))
    rewrite_report(out)
    text = (out / "report" / "index.html").read_text()
    assert "<dt>Preset</dt><dd><bdi>web, fine</bdi>" in text
    assert len(re.findall(r"w[12] \([0-9a-f]{12}\)", text)) == 2
    assert "<dt>Wall time</dt><dd>1 h 00 min</dd>" in text
    assert "<dt>Photos per hour</dt><dd>2</dd>" in text


def test_a_failure_counts_until_a_later_success(whole: Path, out: Path) -> None:
    run(whole / "in", out, "seed=3", select=Selection(include=("a.jpg",)))
    kind = fakes.engine("KindLine")
    run(whole / "in", out, engine=kind, retry_failed=True, select=Selection(include=("raise_c.jpg",)))
    counts = rewrite_report(out)
    assert (counts.finished, counts.failed) == (4, 1)
    assert "a surprise" not in "".join(pages(out).values())


def test_what_was_changed_since_says_so(out: Path) -> None:
    (out / "a.glb").unlink()
    rewrite_report(out)
    texts = pages(out)
    assert "files are missing or were changed since" in texts["index.html"]
    assert sum("changed since" in text for text in texts.values()) == 1


def test_it_is_written_also_where_no_run_is_remembered(out: Path) -> None:
    before = pages(out)
    for path in (out / ".crm" / "runs").glob("*/*.json"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    rewrite_report(out)
    after = pages(out)
    assert {name: text[text.index("<main") :] for name, text in after.items()} == {
        name: text[text.index("<main") :] for name, text in before.items()
    }


def test_an_idle_run_of_the_same_photos_leaves_it_alone(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    photos = plant(tmp_path / "in", "a.jpg", "b.jpg")
    run(photos, out, report=True)
    rewrite_report(out)
    before = everything(out / "report")
    assert set(statuses(run(photos, out, report=True)).values()) == {"cached"}
    assert everything(out / "report") == before


def cards(out: Path) -> dict[str, str]:
    """What the sheet says of each photo, its badge left out."""
    found = re.findall(r"<article.*?</article>", "".join(pages(out).values()), re.DOTALL)
    texts = [re.sub(r'<article class="[^"]*"|<span class="badge.*?</span>\n', "", card) for card in found]
    return {re.search(r"<h2><bdi>(.*?)</bdi>", text)[1]: text for text in texts}  # type: ignore[index]


def test_of_photos_that_were_finished_before_a_run_s_sheet_tells_all_that_theirs_did(
    whole: Path, tmp_path: Path
) -> None:
    photos, out = copied(whole / "in", tmp_path / "in"), copied(whole / "out", tmp_path / "out")
    before = cards(out)
    plant(photos, "new.jpg")
    run(photos, out, report=True, preset_name="tiny")
    after = cards(out)
    assert after.keys() == {*before, "new.jpg"}
    finished = ("a.jpg", "sub/d.png", "z.webp")
    assert [after[name] for name in finished] == [before[name] for name in finished]
    assert "8 vertices" in after["a.jpg"] and after["a.jpg"].count(".glb") == 2
    assert "".join(pages(out).values()).count('<span class="badge kept">Kept</span>') == 3


def test_an_idle_run_writes_the_sheet_anew_where_assets_were_made_anew_without_one(tmp_path: Path) -> None:
    photos, out = plant(tmp_path / "in", "a.jpg"), tmp_path / "out"
    run(photos, out, report=True)
    assert "a.obj" in cards(out)["a.jpg"]
    run(photos, out, "export.formats=[glb]")
    assert set(statuses(run(photos, out, "export.formats=[glb]", report=True)).values()) == {"cached"}
    assert "a.glb" in cards(out)["a.jpg"] and "a.obj" not in cards(out)["a.jpg"]


def test_an_asset_whose_record_is_lost_while_a_run_goes_on_says_so(whole: Path, tmp_path: Path) -> None:
    photos, out = copied(whole / "in", tmp_path / "in"), copied(whole / "out", tmp_path / "out")
    plant(photos, "new.jpg")
    [record] = [path for path in records(out) if b'"a.jpg"' in path.read_bytes()]
    for event in begin(photos, out, report=True):
        if isinstance(event, Plan):
            record.unlink()
    assert "files are missing or were changed since" in cards(out)["a.jpg"]
    assert sum("changed since" in text for text in cards(out).values()) == 1


def test_a_run_at_work_and_a_folder_of_something_else_are_left_alone(out: Path, tmp_path: Path) -> None:
    store = Store.open(out, run="r")
    before = everything(out)
    with pytest.raises(Locked):
        rewrite_report(out)
    assert everything(out) == before
    store.close()
    with pytest.raises(NoInput):
        rewrite_report(tmp_path)
    (out / "report" / "index.html").write_text("mine")
    with pytest.raises(OutputError):
        rewrite_report(out)
    assert (out / "report" / "index.html").read_text() == "mine"


def test_the_command_says_where_it_is(out: Path) -> None:
    assert len(records(out)) == 3
    done = subprocess.run(
        [sys.executable, str(HERE / "fakes.py"), "report", str(out)], capture_output=True, text=True
    )
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stdout == f"3 finished, 2 failed\ncontact sheet: {out}/report/index.html\n"
