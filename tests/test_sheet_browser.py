"""The contact sheet of three hundred hostile names in a real browser, opened from the disk as people do."""

import dataclasses
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

import numpy as np
import pytest
from browser import Browser, browser
from hostile import names
from test_sheet import SUMMARY, entry, failed, low

from crm_cli.export.sheet import SheetEntry, write_sheet, write_thumbs
from crm_cli.names import display_name

COUNT = 300

SHAPE = """
return Array.from(document.querySelectorAll('*'), element => {
  let path = [];
  for (let e = element; e; e = e.parentElement) path.unshift(e.tagName);
  const attributes = Array.from(element.attributes, a => a.name).join(',');
  return path.join('/') + ' ' + attributes + ' ' + (element.getAttribute('class') || '');
});
"""

PICTURES = """
const pictures = Array.from(document.querySelectorAll('main img'));
for (const picture of pictures) picture.loading = 'eager';
return Promise.all(pictures.map(picture => picture.decode().catch(() => 0))).then(
  () => pictures.map(picture => [picture.src, picture.naturalWidth]));
"""

LINKS = "return Array.from(document.links, link => link.href)"

HEADINGS = "return Array.from(document.querySelectorAll('article h2 bdi'), e => e.textContent)"

READY = """
return document.documentElement.classList.contains('js') && document.querySelector('#count').textContent
"""

FOREIGN = """
const tags = 'script[src], script + script, main script, iframe, object, embed, link, base, form, ' +
  'template, noscript, frame, portal';
const names = ['style', 'srcdoc', 'formaction', 'action', 'ping'];
const all = Array.from(document.querySelectorAll('*:not(.laid)'))
  .flatMap(e => Array.from(e.attributes, a => a.name));
return Array.from(document.querySelectorAll(tags), e => e.outerHTML).concat(
  all.filter(name => name.startsWith('on') || names.includes(name)));
"""


def entries(texts: Sequence[str]) -> list[SheetEntry]:
    """Three kinds of photos in turn, each with its text in every place that takes one."""
    made = []
    for number, text in enumerate(texts):
        photo = f"{number:03}/{text}"
        match number % 3:
            case 0:
                made.append(entry(photo, warnings=(f"odd: {text}", text), seconds={text: 1.0}))
            case 1:
                made.append(failed(photo, message=f"{text}: too large [E_EMPTY]; look at {text}"))
            case 2:
                made.append(dataclasses.replace(low(photo), is_kept=True))
    return made


def write(out: Path, texts: Sequence[str], said: str) -> list[SheetEntry]:
    made = entries(texts)
    picture = np.full((12, 16, 3), 90, np.uint8)
    for each in made:
        write_thumbs(
            out / "report" / "thumbs",
            each.id,
            photo=picture,
            cutout=picture,
            views_rgb=[picture] * 6,
            turns=[picture] * 4,
        )
        for file in each.files:
            (out / file.path).parent.mkdir(parents=True, exist_ok=True)
            (out / file.path).write_bytes(b"asset")
    write_sheet(out, made, dataclasses.replace(SUMMARY, weights=said, preset=said, device=said, note=said))
    return made


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="module")
def sheets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[SheetEntry]]:
    """A sheet of hostile names, and the same one of plain names."""
    hostile, plain = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("plain")
    made = write(hostile, names(COUNT), "<script>alert(1)</script>")
    write(plain, [f"shoe {number}" for number in range(COUNT)], "plain")
    return hostile, plain, made


PAGES = ("index.html", "page-002.html", "page-003.html")


@pytest.mark.parametrize("name", PAGES)
def test_a_page_of_hostile_names_is_in_a_browser_what_a_page_of_plain_names_is(
    chromium: Browser, sheets: tuple[Path, Path, list[SheetEntry]], name: str, tmp_path: Path
) -> None:
    hostile, plain, made = sheets
    chromium.open(plain / "report" / name)
    chromium.until(READY)
    expected = chromium.run(SHAPE)
    page = hostile / "report" / name
    chromium.log()
    chromium.open(page)
    chromium.until(READY)
    assert chromium.run(SHAPE) == expected
    assert chromium.run(FOREIGN) == []
    pictures = chromium.run(PICTURES)
    assert len(pictures) == 400 and all(width > 0 for _, width in pictures)
    _check_links(chromium.run(LINKS), hostile)
    start = PAGES.index(name) * 100
    shown = [display_name(each.photo) for each in made[start : start + 100]]
    assert chromium.run(HEADINGS) == shown
    # Long enough for a refresh, a timer or a late event of a picture.
    chromium.run("return new Promise(done => setTimeout(done, 300))")
    assert chromium.run("return location.href") == page.as_uri()
    assert (chromium.has_dialog(), chromium.tabs(), chromium.log()) == (False, 1, [])
    chromium.screenshot(tmp_path / "page.png")
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_names_stay_texts_also_where_the_script_puts_cards_of_other_pages_and_the_large_view_together(
    chromium: Browser, sheets: tuple[Path, Path, list[SheetEntry]]
) -> None:
    hostile, plain, made = sheets
    shapes = []
    for out in (plain, hostile):
        chromium.open(out / "report" / "index.html")
        chromium.until(READY)
        chromium.log()
        # Failures have no seconds and come last: cards of all three pages.
        chromium.run(
            "const sort = document.getElementById('sort'); sort.value = 'faces';"
            "sort.dispatchEvent(new Event('change'))"
        )
        chromium.until(
            "return document.querySelector('article:last-of-type.low h2, article:last-of-type.done h2')"
        )
        seen = []
        opened = """if (!document.getElementById('review').open)
          document.querySelector('[aria-current] .view').click()"""
        for _ in range(40):
            chromium.press("j")
            chromium.run(opened)
            chromium.until("return document.getElementById('review').open")
            seen.append(chromium.run(SHAPE))
            assert chromium.run(FOREIGN) == []
        shapes.append(seen)
        assert (chromium.has_dialog(), chromium.tabs(), chromium.log()) == (False, 1, [])
    assert shapes[0] == shapes[1]
    assert len({json.dumps(shape) for shape in shapes[0]}) > 1
    by_faces = sorted(made, key=lambda each: -(each.checks.faces if each.checks else -1))
    assert chromium.run(HEADINGS) == [display_name(each.photo) for each in by_faces[:100]]
    assert chromium.run("return document.getElementById('review-name').textContent") == display_name(
        by_faces[39].photo
    )


def _check_links(links: list[str], out: Path) -> None:
    """Every link leads to a file of the output folder, and to a place that is there."""
    assert len(links) > 300
    for link in links:
        parts = urlsplit(link)
        assert (parts.scheme, parts.netloc, parts.query) == ("file", "", ""), link
        target = Path(os.fsdecode(unquote_to_bytes(parts.path)))
        assert target.is_file() and target.is_relative_to(out), link
        assert not parts.fragment or f'id="{parts.fragment}"' in target.read_text("utf-8"), link


def test_the_policy_of_the_page_lets_nothing_run_that_got_in(
    chromium: Browser, sheets: tuple[Path, Path, list[SheetEntry]], tmp_path: Path
) -> None:
    chromium.open(sheets[0] / "report" / "index.html")
    smuggled: dict[str, Any] = chromium.run(
        """
        document.body.insertAdjacentHTML('beforeend',
          '<img src=x onerror="window.canary=1"><svg onload="window.canary=2"></svg>' +
          '<iframe srcdoc="<script>parent.canary=3</script>">');
        const script = document.createElement('script');
        script.textContent = 'window.canary = 4';
        document.body.append(script);
        const style = document.createElement('style');
        style.textContent = 'body { color: rgb(1, 2, 3) }';
        document.body.append(style);
        return new Promise(done => setTimeout(() => done(
          {canary: window.canary || null, colour: getComputedStyle(document.body).color}), 300));
        """
    )
    assert smuggled["canary"] is None
    assert smuggled["colour"] != "rgb(1, 2, 3)"
    assert any("Content Security Policy" in said["message"] for said in chromium.log())


def test_the_same_injection_runs_on_a_page_without_a_policy(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(
        "<!doctype html><title>x</title><body><img src=x onerror='window.canary=1'>"
    )
    chromium.open(tmp_path / "page.html")
    assert chromium.run("return new Promise(done => setTimeout(() => done(window.canary), 300))") == 1
    assert chromium.log() != []


def test_a_page_that_says_hello_has_a_dialog(chromium: Browser, tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text("<!doctype html><title>x</title><body>x")
    chromium.open(tmp_path / "page.html")
    chromium.run("setTimeout(() => alert(1), 0)")
    ends = time.monotonic() + 20
    while not chromium.has_dialog() and time.monotonic() < ends:
        time.sleep(0.05)
    assert chromium.has_dialog()
