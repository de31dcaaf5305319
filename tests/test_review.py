"""The contact sheet as a review tool, in a real browser, opened from the disk with no network."""

import dataclasses
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
from browser import Browser, browser
from output import plant, put_fakes_on_the_path, run
from PIL import Image
from test_retry import again
from test_sheet import SUMMARY, entry, failed, graded
from test_viewer import tetrahedron

from crm_cli.export.preview import render_front
from crm_cli.export.sheet import SheetEntry, write_sheet, write_thumbs
from crm_cli.export.viewer import write_model
from crm_cli.mesh.raster import TorchRaster
from crm_cli.run.commits import Records
from crm_cli.run.decisions import kept_decisions, read_decisions
from crm_cli.run.redo import take_over
from crm_cli.run.walk import asset_id

COUNT = 230

SHOWN = "return Array.from(document.querySelectorAll('article h2 bdi'), e => e.textContent)"

CHOOSE = """
const [id, value] = arguments;
document.getElementById(id).value = value;
document.getElementById(id).dispatchEvent(new Event(id === 'search' ? 'input' : 'change'));
"""

READY = """
return document.documentElement.classList.contains('js') && document.querySelector('#count').textContent
"""

CURRENT = "return document.querySelector('.card[aria-current]')?.querySelector('h2').textContent"


def name(number: int) -> str:
    return f"shelf/shoe {number:03}.jpg"


def entries() -> list[SheetEntry]:
    """Silhouettes, triangles and seconds that each have an order of their own; every tenth needs a look."""
    made = []
    for number in range(COUNT):
        each = entry(name(number))
        assert each.checks
        each = dataclasses.replace(
            each,
            checks=dataclasses.replace(
                each.checks, silhouette_iou=1 - number / 1000, faces=(number * 7) % COUNT
            ),
            seconds={"bake": float((number * 11) % COUNT)},
            verdict=graded("review", f"It leans by {number} degrees.")
            if number % 10 == 3
            else graded("pass"),
        )
        made.append(each)
    made[5] = failed(name(5))
    return made


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out")
    made = entries()
    grey = np.full((40, 40, 3), 128, np.uint8)
    thumbs = out / "report" / "thumbs"
    (out / "report").mkdir()
    for each in made[:2]:
        front = render_front(tetrahedron(), TorchRaster(), size_px=100)
        write_thumbs(
            thumbs, each.id, photo=grey, cutout=grey, front=front, views_rgb=[grey] * 6, views_ccm=[grey] * 6,
            turns=[grey] * 4,
        )  # fmt: skip
        write_model(thumbs, each.id, tetrahedron())
    write_sheet(out, made, SUMMARY)
    return out / "report"


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("profile")


@pytest.fixture(scope="module")
def chromium(profile: Path) -> Iterator[Browser]:
    with browser(profile) as opened:
        yield opened


@pytest.fixture
def page(chromium: Browser, sheet: Path) -> Browser:
    """The sheet's first page, with nothing decided."""
    show(chromium, sheet)
    chromium.run("localStorage.clear()")
    show(chromium, sheet)
    return chromium


def show(chromium: Browser, sheet: Path) -> None:
    chromium.open(sheet / "index.html")
    chromium.until(READY)


def picture(chromium: Browser, folder: Path) -> np.ndarray:
    chromium.screenshot(folder / "page.png")
    return np.asarray(Image.open(io.BytesIO((folder / "page.png").read_bytes())).convert("RGB")).astype(int)


def download(chromium: Browser, profile: Path) -> bytes:
    file = profile / "downloads" / "decisions.json"
    file.unlink(missing_ok=True)
    chromium.run("document.getElementById('download').click()")
    ends = time.monotonic() + 30
    while not (file.exists() and file.stat().st_size):
        assert time.monotonic() < ends
        time.sleep(0.05)
    return file.read_bytes()


def decided(raw: bytes) -> dict[str, str]:
    return {each["photo"]: each["decision"] for each in json.loads(raw)["decisions"]}


def test_the_page_asks_for_nothing_but_files_beside_it_and_complains_of_nothing(
    page: Browser, sheet: Path
) -> None:
    page.log()
    page.requests()
    show(page, sheet)
    page.press("j", "v")
    page.until("return document.querySelector('model-viewer')?.loaded")
    asked = page.requests()
    assert any(address.endswith("entries.js") for address in asked)
    for address in asked:
        assert address.startswith((sheet.as_uri(), "blob:", "data:")), address
    assert page.log() == []


def test_the_model_is_loaded_when_it_is_opened_and_really_drawn(page: Browser, tmp_path: Path) -> None:
    page.requests()
    page.press("j", "v")
    page.until("return document.querySelector('model-viewer')?.loaded")
    asked = page.requests()
    assert sum(address.endswith("-model.js") for address in asked) == 1
    assert sum(address.endswith("model-viewer.js") for address in asked) == 1
    box = page.run("const b = document.querySelector('model-viewer').getBoundingClientRect();"
                   "return [b.left, b.top, b.right, b.bottom].map(Math.round)")  # fmt: skip

    def colours() -> tuple[int, int]:
        left, top, right, bottom = box
        seen = picture(page, tmp_path)[top:bottom, left:right]
        red = (seen[..., 0] > 120) & (seen[..., 1:].max(axis=-1) < 80)
        blue = (seen[..., 2] > 120) & (seen[..., :2].max(axis=-1) < 80)
        return int(red.sum()), int(blue.sum())

    ends = time.monotonic() + 30
    while min(colours()) < 1000:
        assert time.monotonic() < ends, colours()
    # From behind, the same: it is a body, and the camera moves.
    page.run("document.querySelector('model-viewer').cameraOrbit = '180deg 90deg auto'")
    assert page.until(
        "return Math.abs(document.querySelector('model-viewer').getCameraOrbit().theta - Math.PI) < 0.1"
    )
    assert min(colours()) > 1000
    page.press("v")
    page.until("return !document.querySelector('model-viewer')")


def test_the_slider_moves_the_edge_between_photo_and_asset_also_by_keys(page: Browser) -> None:
    page.press("j", "v")
    clips = """return ['under', 'over'].map(
      side => getComputedStyle(document.querySelector('.laid .' + side)).clipPath)"""
    assert page.until("return document.querySelector('.laid .over').naturalWidth") == 100
    assert page.run(clips) == ["inset(0px 50% 0px 0px)", "inset(0px 0px 0px 50%)"]
    page.run("document.getElementById('slider').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.run(clips) == ["inset(0px 48% 0px 0px)", "inset(0px 0px 0px 52%)"]
    page.press("End")
    assert page.run(clips)[1] == "inset(0px 0px 0px 100%)"
    # The arrows were the slider's, and moved to no other asset.
    assert page.run("return document.getElementById('review-name').textContent") == name(0)


def test_the_stages_of_an_asset_stand_in_a_row(page: Browser) -> None:
    page.press("j", "v")
    page.until("return document.getElementById('review').open")
    strip = """return Array.from(document.querySelectorAll('#review-strip figure'),
      figure => [figure.className, figure.getBoundingClientRect().top])"""
    figures = page.run(strip)
    assert [kind for kind, _ in figures] == ["photo", "cutout", "views", "ccm", "turn"]
    assert len({round(top) for _, top in figures}) == 1


@pytest.mark.parametrize(
    ("order", "key", "is_rising"),
    [
        ("iou", lambda e: e.checks.silhouette_iou if e.checks else 2, True),
        ("faces", lambda e: e.checks.faces if e.checks else -1, False),
        ("seconds", lambda e: sum(e.seconds.values()) if e.seconds else -1, False),
    ],
)
def test_all_photos_are_sorted_not_only_those_of_the_page(
    page: Browser, order: str, key: Any, is_rising: bool
) -> None:
    page.run(CHOOSE, "sort", order)
    expected = [str(e.photo) for e in sorted(entries(), key=key, reverse=not is_rising)][:100]
    page.until(f"return document.querySelector('article h2').textContent === {json.dumps(expected[0])}")
    assert page.run(SHOWN) == expected
    page.run(CHOOSE, "sort", "name")
    page.until(f"return document.querySelector('article h2').textContent === {json.dumps(name(0))}")


def test_the_worst_verdicts_come_first_and_failures_before_them(page: Browser) -> None:
    page.run(CHOOSE, "sort", "verdict")
    expected = [name(5), *(name(number) for number in range(3, COUNT, 10))]
    page.until(f"return document.querySelector('article h2').textContent === {json.dumps(name(5))}")
    assert page.run(SHOWN)[: len(expected)] == expected


def test_kinds_and_words_are_looked_for_on_all_pages(page: Browser) -> None:
    page.run("document.querySelector('[data-kind=review]').click()")
    page.until("return document.querySelectorAll('article').length === 23")
    assert page.run(SHOWN) == [name(number) for number in range(3, COUNT, 10)]
    assert page.run("return document.getElementById('count').textContent") == "23 of 230 photos"
    page.run(CHOOSE, "search", "LEANS by 223")
    page.until("return document.querySelectorAll('article').length === 1")
    assert page.run(SHOWN) == [name(223)]
    page.run(CHOOSE, "search", "nowhere")
    assert page.until("return document.querySelector('main .empty')?.textContent") == "Nothing matches."
    page.run(CHOOSE, "search", "")
    page.run("document.querySelector('[data-kind=\"\"]').click()")
    page.until("return document.querySelectorAll('article').length === 100")


def test_keys_decide_move_on_and_undo_and_a_reload_forgets_nothing(
    page: Browser, sheet: Path, profile: Path
) -> None:
    page.press("j")
    assert page.until(CURRENT) == name(0)
    page.press("a", "r", "e")
    page.until(
        f"return document.querySelector('.card[aria-current] h2').textContent === {json.dumps(name(3))}"
    )
    page.press("k", "k")
    page.press("u")
    badges = (
        "return Array.from(document.querySelectorAll('.card .decided:not([hidden])'), b => b.textContent)"
    )
    page.until("return document.querySelectorAll('.card .decided:not([hidden])').length === 2")
    assert page.run(badges) == ["Approved", "Rejected"]
    assert page.run("return document.getElementById('reviewed').textContent") == "2 of 230 reviewed"
    show(page, sheet)
    assert page.run(badges) == ["Approved", "Rejected"]
    assert decided(download(page, profile)) == {name(0): "approve", name(1): "reject"}
    # A word with modifiers, or typed into a field, decides nothing.
    page.press("/")
    page.press("a", "Escape")
    page.run(CHOOSE, "search", "")
    assert decided(download(page, profile)) == {name(0): "approve", name(1): "reject"}


def test_a_key_says_it_again_where_a_button_takes_it_back(page: Browser, profile: Path) -> None:
    page.press("j", "a", "k", "a")
    assert decided(download(page, profile)) == {name(0): "approve"}
    page.run("document.querySelector('article .verbs .approve').click()")
    page.until("return document.getElementById('reviewed').textContent === '0 of 230 reviewed'")
    assert decided(download(page, profile)) == {}


def test_the_keys_lead_from_page_to_page(page: Browser) -> None:
    page.run("document.querySelectorAll('article')[99].focus()")
    assert page.until(CURRENT) == name(99)
    page.press("j")
    page.until(f"return document.querySelector('article h2').textContent === {json.dumps(name(100))}")
    assert page.until(CURRENT) == name(100)
    page.press("k")
    page.until(f"return document.querySelector('article h2').textContent === {json.dumps(name(0))}")
    assert page.until(CURRENT) == name(99)


def test_a_failure_is_not_approved(page: Browser) -> None:
    page.run("document.querySelectorAll('article')[5].focus()")
    page.press("a")
    assert "cannot be approved" in page.until("return document.getElementById('toast').textContent")
    assert page.run("return document.getElementById('reviewed').textContent") == "0 of 230 reviewed"


def test_decisions_can_be_taken_along_and_a_file_of_something_else_is_refused(
    page: Browser, sheet: Path, profile: Path, tmp_path: Path
) -> None:
    page.press("j", "v")
    page.until("return document.getElementById('review').open")
    page.run(
        "const note = document.getElementById('note'); note.value = 'bent </script>';"
        "note.dispatchEvent(new Event('change'))"
    )
    page.press("e", "v")
    raw = download(page, profile)
    [one] = read_decisions(raw, source="x")
    assert (str(one.photo), one.decision, one.note) == (name(0), "redo", "bent </script>")
    (tmp_path / "kept.json").write_bytes(raw)
    page.run("localStorage.clear()")
    show(page, sheet)
    assert page.run("return document.getElementById('reviewed').textContent") == "0 of 230 reviewed"
    page.attach("#file", tmp_path / "kept.json")
    page.until("return document.getElementById('reviewed').textContent === '1 of 230 reviewed'")
    assert json.loads(download(page, profile)) == json.loads(raw)
    (tmp_path / "other.json").write_text('{"schema": "crm.events/1"}')
    page.attach("#file", tmp_path / "other.json")
    page.until("return document.getElementById('toast').textContent.startsWith('This is no decisions.json')")
    assert page.run("return document.getElementById('reviewed').textContent") == "1 of 230 reviewed"


def test_what_is_downloaded_is_what_crm_redo_reads(
    chromium: Browser, profile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_fakes_on_the_path(monkeypatch)
    out = tmp_path / "out"
    run(plant(tmp_path / "in", "a.jpg", "b.jpg", "c.jpg"), out, "export.formats=glb", report=True)
    show(chromium, out / "report")
    chromium.press("j", "e", "a")
    raw = download(chromium, profile)
    again(take_over(out, read_decisions(raw, source="decisions.json")).again)
    seeds = {n: Records.scan(out).of(asset_id(PurePosixPath(n)))[0].seed for n in ("a.jpg", "b.jpg", "c.jpg")}
    assert seeds == {"a.jpg": 1, "b.jpg": 0, "c.jpg": 0}
    assert {str(each.photo): each.decision for each in kept_decisions(out).values()} == {
        "a.jpg": "redo",
        "b.jpg": "approve",
    }
