from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import os
import re
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote_to_bytes

import numpy as np
import pytest
from PIL import Image

from crm_cli.errors import OutputError
from crm_cli.export.sheet import (
    ENTRIES_PER_PAGE,
    PICTURE,
    SheetEntry,
    SheetSummary,
    _nearby,
    write_sheet,
    write_thumbs,
)
from crm_cli.export.vendored import vendored_viewer
from crm_cli.names import display_name
from crm_cli.records import Checks, Failed, Reason, Verdict, WrittenFile

SUMMARY = SheetSummary(
    started=datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
    wall_s=1800,
    weights="w",
    preset="web",
    device="cpu",
    version="1",
)
VOID = {"meta", "input", "img"}

HOSTILE = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "'><b>",
    "</title><h1>",
    "</style><script>",
    "--><script>",
    "<!--",
    "]]>",
    "&lt;b&gt;",
    "&#60;b&#62;",
    "&amp;",
    "a&b;c",
    "{{ 7*7 }}",
    "{% raw %}",
    "{# x #}",
    "javascript:alert(1)",
    "data:text/html,x",
    "//evil.example/x",
    "http:evil",
    "a b",
    "a#b",
    "a?b=c",
    "a%2e%2eb",
    "100%",
    "a\\b",
    "a\nb",
    "a\r\nb",
    "\x1b[2J\x1b[H",
    "\x07bell",
    "gpj\u202eexe",
    "\u2066iso\u2069",
    "\u200bzero",
    "\ufeffbom",
    "\x7f",
    "\x85",
    "\u2028line",
    os.fsdecode(b"caf\xe9"),
    os.fsdecode(b"\xff\xfe<b>"),
    "👩‍🦰",
    "皮鞋",
    "שולחן",
    "`tick`",
    "x onmouseover=alert(1) y",
    "a=\"b\" style='c'",
    "..hidden",
    "-rf",
    "CON",
    "//",
]


class Tree(HTMLParser):
    """The elements of a page with the names of their attributes, its texts and its links."""

    def __init__(self, page: Path) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, tuple[str, ...]]] = []
        self.values: list[tuple[str, str, str]] = []
        self.open: list[str] = []
        self.texts: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attributes):
        names = tuple(name for name, _ in attributes)
        self.elements.append(("/".join([*self.open, tag]), names))
        self.values += [(tag, name, value or "") for name, value in attributes]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def handle_comment(self, data):
        pytest.fail(f"a comment: {data}")

    def of(self, tag: str, attribute: str) -> list[str]:
        return [value for t, a, value in self.values if (t, a) == (tag, attribute)]


def entry(name: str, **changes) -> SheetEntry:
    stem = PurePosixPath(name)
    made = SheetEntry(
        id=hashlib.sha256(os.fsencode(name)).hexdigest()[:16],
        photo=stem,
        files=tuple(
            WrittenFile(path=stem.parent / (stem.name + suffix), size=1_234_567, sha256="0" * 64)
            for suffix in (".glb", ".obj", ".mtl", ".png", ".usdc")
        ),
        checks=Checks(
            vertices=1234, faces=2468, volume=1.0, euler=2, components=1, degenerate_faces=0,
            is_closed=True, is_manifold=True, is_oriented=True,
            uv_overlap=0.0, uv_coverage=0.6, silhouette_iou=0.95, confidence="ok",
        ),
        seconds={"prepare": 1.0, "imagine": 3.0},
    )  # fmt: skip
    return dataclasses.replace(made, **changes)


def failed(name: str, message: str = "the photo is empty [E_EMPTY]; take another") -> SheetEntry:
    failure = Failed(path=PurePosixPath(name), kind="input", code="E_EMPTY", message=message, stage="prepare")
    return entry(name, files=(), checks=None, seconds={}, failure=failure)


def low(name: str) -> SheetEntry:
    return entry(name, checks=dataclasses.replace(entry(name).checks, confidence="low"))


def tree_of(folder: Path, entries: list[SheetEntry], summary: SheetSummary = SUMMARY) -> Tree:
    return Tree(write_sheet(folder, entries, summary))


def text(tree: Tree) -> str:
    return " ".join(" ".join(tree.texts).split())


def everywhere(name: str) -> list[SheetEntry]:
    """Put one text into every place that takes one."""
    return [
        entry(f"folder/{name}", warnings=(f"odd: {name}",), seconds={name: 1.0}),
        failed(f"folder/{name}", message=f"{name}: too large [E_EMPTY]; look at {name}"),
        dataclasses.replace(low(f"folder/{name}"), is_kept=True),
    ]


@pytest.mark.parametrize(
    "name", HOSTILE, ids=[hashlib.sha256(os.fsencode(n)).hexdigest()[:6] for n in HOSTILE]
)
def test_no_name_changes_the_page_s_elements(tmp_path, name):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    plain = tree_of(tmp_path / "a", everywhere("plain"))
    said = dataclasses.replace(SUMMARY, weights=name, preset=name, device=name)
    hostile = tree_of(tmp_path / "b", everywhere(name), said)
    assert hostile.elements == plain.elements
    assert all(
        character.isprintable() or character in "\n\u200d\ufe0f" for character in "".join(hostile.texts)
    )
    path = PurePosixPath(f"folder/{name}")
    assert sum(display_name(path) in found for found in hostile.texts) >= 3
    # Every link stays in the output folder, and leads to the very bytes of the name.
    targets = [unquote_to_bytes(link) for link in hostile.of("a", "href") if link.startswith("../")]
    assert os.fsencode(f"../{path}.glb") in targets
    assert all(re.fullmatch(r"(\.\./|\./)[\w./~%#-]+", link, re.ASCII) for link in hostile.of("a", "href"))


def called(script: Path, name: str) -> list:
    """The arguments of the one call that a script is."""
    text = script.read_bytes().decode("ascii")
    found = re.fullmatch(rf"/\* crm contact sheet \*/\ncrm\.{name}\((.*)\);\n", text)
    return json.loads(f"[{found[1]}]")


@pytest.mark.parametrize(
    "name", HOSTILE, ids=[hashlib.sha256(os.fsencode(n)).hexdigest()[:6] for n in HOSTILE]
)
def test_no_name_is_more_than_a_text_in_what_the_script_loads(tmp_path, name):
    entries = everywhere(name)
    page = write_sheet(tmp_path, entries, SUMMARY)
    [index] = called(page.parent / "entries.js", "entries")
    assert [each["photo"] for each in index] == [str(each.photo) for each in entries]
    assert all(display_name(each.photo) == one["name"] for each, one in zip(entries, index, strict=True))
    number, cards = called(page.parent / "cards-001.js", "cards")
    assert number == 0
    # What is put on the page later is to the letter what stands on it.
    html = page.read_text("utf-8")
    assert all(card in html for card in cards)
    for script in ("entries.js", "cards-001.js"):
        assert b"<" not in (page.parent / script).read_bytes()


def test_the_page_runs_its_own_script_alone_and_loads_nothing_from_elsewhere(tmp_path):
    photo = np.zeros((20, 30, 3), dtype=np.uint8)
    write_thumbs(tmp_path / "report" / "thumbs", entry("a").id, photo=photo, turns=[photo] * 4)
    tree = tree_of(tmp_path, [entry("a"), failed("b")])
    tags = {path.rpartition("/")[2] for path, _ in tree.elements}
    assert not tags & {"iframe", "object", "embed", "link", "base", "form"}
    assert sum(path.endswith("/script") for path, _ in tree.elements) == 1
    assert not tree.of("script", "src")
    names = {name for _, attributes in tree.elements for name in attributes}
    assert not any(name.startswith("on") or name == "style" for name in names)
    assert all((tmp_path / "report" / source).is_file() for source in tree.of("img", "src"))
    assert {path.name for path in (tmp_path / "report").glob("*.*")} == {
        "index.html",
        "entries.js",
        "cards-001.js",
    }
    assert len(tree.of("img", "src")) == 2
    assert "http" not in "".join(value for _, name, value in tree.values if name in ("src", "href"))


def test_the_policy_admits_our_styles_and_our_script_and_nothing_else(tmp_path):
    page = write_sheet(tmp_path, [entry("a")], SUMMARY)
    policy, local = (value for value in Tree(page).of("meta", "content") if "-src" in value)
    style = re.search(r"<style>(.*?)</style>", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}' 'sha256-{vendored_viewer().style_sha256}';" in policy
    script = re.search(r"<script>(.*?)</script>", page.read_text(encoding="utf-8"), re.DOTALL)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    # The viewer compiles WebAssembly that is part of it; that is no text made into a script.
    assert f"script-src 'sha256-{digest}' 'strict-dynamic' 'wasm-unsafe-eval';" in policy
    assert local == f"script-src 'self' file: 'sha256-{digest}' 'wasm-unsafe-eval'"
    assert "default-src 'none'" in policy
    assert "connect-src blob: data:;" in policy
    assert "unsafe" not in (policy + local).replace("'wasm-unsafe-eval'", "")


@pytest.mark.parametrize(
    ("made", "status"),
    [
        (entry("a"), "done"),
        (entry("a", is_kept=True), "kept"),
        (low("a"), "low"),
        (dataclasses.replace(low("a"), is_kept=True), "low"),
        (failed("a"), "failed"),
    ],
)
def test_the_badge_gives_the_news_that_matters_most(made, status):
    assert made.status == status


def test_the_head_counts_every_status_and_only_what_this_run_made_for_speed(tmp_path):
    entries = [entry("a"), entry("b"), entry("c", is_kept=True), low("d"), failed("e")]
    page = text(tree_of(tmp_path, entries))
    assert "Photos 5 Done 2 Low confidence 1 Kept 1 Failed 1 Wall time 30 min 00 s Photos per hour 6" in page
    assert "4 March 2026, 05:06 UTC" in page


def test_a_failure_tells_its_cause_its_remedy_and_where_it_happened(tmp_path):
    page = text(tree_of(tmp_path, [failed("e", "13000x13000 is 169 MP [E_EMPTY]; use --max-mpixels")]))
    assert "13000x13000 is 169 MP use --max-mpixels E_EMPTY input in prepare" in page


def test_a_failure_without_a_remedy_is_told_all_the_same(tmp_path):
    made = failed("e", "the worker died")
    assert (made.cause, made.remedy) == ("the worker died", "")


def test_a_finished_asset_shows_its_counts_its_time_and_its_files(tmp_path):
    page = text(tree_of(tmp_path, [entry("a")]))
    assert "1,234 vertices 2,468 triangles closed silhouette 0.95" in page
    assert "4.0 s prepare 1.0 s imagine 3.0 s" in page
    assert "GLB 1.2 MB OBJ 1.2 MB USD 1.2 MB" in page
    assert "not closed" not in page


def test_an_open_surface_is_pointed_out(tmp_path):
    opened = entry("a", checks=dataclasses.replace(entry("a").checks, is_closed=False, is_manifold=False))
    assert "not closed not manifold" in text(tree_of(tmp_path, [opened]))


def test_an_empty_run_still_has_a_page(tmp_path):
    assert "No photos." in text(tree_of(tmp_path, []))


def test_pages_hold_a_hundred_and_link_each_other_and_what_needs_a_look(tmp_path):
    entries = [entry(f"{i:04}") for i in range(2 * ENTRIES_PER_PAGE + 1)]
    entries[150] = failed("0150")
    first = tree_of(tmp_path, entries)
    names = ["index.html", "page-002.html", "page-003.html"]
    trees = [Tree(tmp_path / "report" / name) for name in names]
    cards = [sum(path.endswith("main/article") for path, _ in tree.elements) for tree in trees]
    assert cards == [ENTRIES_PER_PAGE, ENTRIES_PER_PAGE, 1]
    assert set(first.of("a", "href")) >= {f"./{name}" for name in names}
    assert f"./page-002.html#a-{entries[150].id}" in first.of("a", "href")
    assert f"a-{entries[150].id}" in trees[1].of("article", "id")


@pytest.mark.parametrize(("count", "links", "clicks"), [(1, 1, 0), (11, 11, 2), (100, 21, 3), (1000, 31, 4)])
def test_few_links_lead_from_the_first_page_to_every_other_in_a_few_clicks(count, links, clicks):
    assert max(len(_nearby(index, count)) for index in range(count)) <= links
    reached = {0}
    for _ in range(clicks):
        reached |= {other for index in reached for other in _nearby(index, count)}
    assert reached == set(range(count))


def test_the_pages_close_by_are_all_linked_whatever_else_is():
    for index in range(40):
        close = set(range(max(0, index - 5), min(40, index + 6)))
        assert close | {0, 39} <= set(_nearby(index, 40))


def test_a_shorter_sheet_leaves_no_page_of_the_longer_one_and_nothing_else_is_touched(tmp_path):
    write_sheet(tmp_path, [entry(f"{i}") for i in range(ENTRIES_PER_PAGE + 1)], SUMMARY)
    note = tmp_path / "report" / "page-note.html"
    note.write_text("mine")
    write_sheet(tmp_path, [entry("a")], SUMMARY)
    names = ["cards-001.js", "entries.js", "index.html", "page-note.html"]
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == names


def test_every_filter_names_a_radio_button(tmp_path):
    tree = tree_of(tmp_path, [entry("a")])
    filters = {name for name in tree.of("input", "id") if name.startswith("show-")}
    assert set(tree.of("label", "for")) == filters
    assert tree.of("input", "type").count("radio") == len(filters)


def test_strips_lay_pictures_side_by_side_in_order(tmp_path):
    greys = [np.full((50, 50, 3), 40 * i, dtype=np.uint8) for i in range(6)]
    photo = np.zeros((60, 30, 3), dtype=np.uint8)
    files = write_thumbs(
        tmp_path, "id", photo=photo, views_rgb=greys, turns=[Image.fromarray(g) for g in greys[:4]]
    )
    assert [file.name for file in files] == ["id-photo.webp", "id-views.webp", "id-turn.webp"]
    strip = np.asarray(Image.open(tmp_path / "id-views.webp").convert("L")).astype(int)
    assert strip.shape == (50, 300)
    np.testing.assert_allclose(strip[25, 25::50], [0, 40, 80, 120, 160, 200], atol=4)


def test_what_was_seen_has_a_strip_of_its_own_where_somebody_says_so(tmp_path):
    greys = [np.full((50, 50, 3), 80 * i, dtype=np.uint8) for i in range(3)]
    files = write_thumbs(tmp_path, "id", photo=greys[0], seen=greys)
    assert [file.name for file in files] == ["id-photo.webp", "id-seen.webp"]
    strip = np.asarray(Image.open(tmp_path / "id-seen.webp").convert("L")).astype(int)
    np.testing.assert_allclose(strip[25, 25::50], [0, 80, 160], atol=4)


def test_every_picture_that_is_made_is_shown_and_known_as_ours(tmp_path):
    grey = np.full((20, 20, 3), 128, dtype=np.uint8)
    files = write_thumbs(
        tmp_path / "report" / "thumbs", entry("a").id, photo=grey, cutout=grey, views_rgb=[grey],
        views_ccm=[grey], turns=[grey], front=grey, seen=[grey],
    )  # fmt: skip
    shown = tree_of(tmp_path, [entry("a")]).of("img", "src")
    # The front is loaded when it is laid over the cut-out.
    assert {Path(source).name for source in shown} == {file.name for file in files}
    assert all(PICTURE.fullmatch(file.name) for file in files)


def test_pictures_are_shrunk_keep_their_alpha_and_carry_no_metadata(tmp_path):
    photo = Image.fromarray(np.zeros((900, 1600, 3), dtype=np.uint8))
    photo.getexif()[0x013B] = "owner"
    cutout = np.zeros((64, 64, 4), dtype=np.uint8)
    cutout[16:48, 16:48] = 255
    write_thumbs(tmp_path, "id", photo=photo, cutout=cutout)
    with Image.open(tmp_path / "id-photo.webp") as small:
        assert max(small.size) == 400
        assert not small.getexif()
        assert not {"exif", "icc_profile", "xmp"} & set(small.info)
    alpha = np.asarray(Image.open(tmp_path / "id-cutout.webp"))[..., 3]
    assert alpha[0, 0] == 0
    assert alpha[32, 32] == 255


@pytest.mark.parametrize(
    "name", ["index.html", "page-002.html", "entries.js", "cards-001.js", "cards-002.js", "model-viewer.js"]
)
def test_a_page_that_crm_did_not_write_is_neither_overwritten_nor_removed(tmp_path: Path, name: str) -> None:
    foreign = tmp_path / "report" / name
    foreign.parent.mkdir()
    foreign.write_text("<title>mine</title>")
    entries = [
        SheetEntry(id=str(index), photo=PurePosixPath("a.jpg")) for index in range(ENTRIES_PER_PAGE + 1)
    ]
    with pytest.raises(OutputError, match=rf"{name}.*E_CONFLICT.*--no-report"):
        write_sheet(tmp_path, entries, SUMMARY)
    assert [path.name for path in foreign.parent.iterdir()] == [name]
    if "2" in name:
        write_sheet(tmp_path, entries[:1], SUMMARY)
    assert foreign.read_text() == "<title>mine</title>"


def test_a_report_folder_that_is_a_link_or_a_file_is_refused(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    report = tmp_path / "report"
    report.symlink_to(elsewhere)
    with pytest.raises(OutputError, match="--no-report"):
        write_sheet(tmp_path, [], SUMMARY)
    assert not list(elsewhere.iterdir())
    report.unlink()
    report.write_text("mine")
    with pytest.raises(OutputError, match="--no-report"):
        write_sheet(tmp_path, [], SUMMARY)
    assert report.read_text() == "mine"


def graded(grade, *sentences):
    reasons = (
        Reason(code="a.b", severity=grade, found=1.0, limit=2.0, sentence=sentence) for sentence in sentences
    )
    return Verdict(grade=grade, reasons=tuple(reasons))


def test_what_a_verdict_says_is_not_said_again_as_a_warning(tmp_path):
    warnings = ("it touches the frame [W_MATTE_FRAME]", "a.glb: too heavy", "mended: it was heavier")
    made = entry("a", verdict=graded("review", "it touches the frame", "a.glb: too heavy"), warnings=warnings)
    page = text(tree_of(tmp_path, [made]))
    assert page.count("it touches the frame") == page.count("too heavy") == 1
    assert "mended: it was heavier" in page
    assert dataclasses.replace(made, verdict=None).remarks == warnings


def test_levels_of_detail_are_told_apart(tmp_path):
    files = [
        WrittenFile(path=PurePosixPath(f"a_lod{level}{suffix}"), size=9000, sha256="0" * 64)
        for level in range(2)
        for suffix in (".glb", ".usdz")
    ]
    page = text(tree_of(tmp_path, [entry("a", files=tuple(files))]))
    assert "GLB lod0 9 kB USDZ lod0 9 kB GLB lod1 9 kB USDZ lod1 9 kB" in page


def test_a_verdict_stands_on_the_card_with_its_reasons_and_can_be_searched_for(tmp_path):
    made = entry("a", verdict=graded("fail", "The sides are <flat>."))
    tree = tree_of(tmp_path, [made, entry("b", verdict=graded("pass"))])
    assert "a Done Fail" in text(tree)
    assert "The sides are <flat>." in text(tree)
    assert "1 to look at" in text(tree)
    [index] = called(tmp_path / "report" / "entries.js", "entries")
    assert [each["verdict"] for each in index] == ["fail", "pass"]
    assert "the sides are <flat>." in index[0]["text"]


def test_what_a_person_should_look_at_heads_the_sheet_with_its_first_reason(tmp_path):
    review = graded("review", "The sides are flat.", "It is large.")
    tree = tree_of(tmp_path, [entry("a", verdict=review), entry("b", verdict=graded("pass"))])
    assert "1 to look at a The sides are flat. a Done Review" in text(tree)


def test_a_warning_that_the_verdict_says_as_well_is_shown_once(tmp_path):
    made = entry("a", verdict=graded("review", "Too wide."), warnings=("Too wide.", "Dark."))
    card = text(tree_of(tmp_path, [made])).partition("a Done Review")[2]
    assert (card.count("Too wide."), card.count("Dark.")) == (1, 1)


def test_the_share_that_the_photo_shows_is_told_where_it_is_known(tmp_path):
    seen = entry("a", checks=dataclasses.replace(entry("a").checks, seen_share=0.416))
    assert "silhouette 0.95 42 % seen" in text(tree_of(tmp_path, [seen]))
    assert (
        "seen"
        not in text(tree_of(tmp_path, [entry("a")])).partition("No photos")[0].split("silhouette")[1][:12]
    )


def test_a_decision_is_told_and_an_asset_of_other_bytes_is_another_edition(tmp_path):
    made = entry("a", decision="approve", note="good")
    assert "a Approved Done" in text(tree_of(tmp_path, [made]))
    [index] = called(tmp_path / "report" / "entries.js", "entries")
    assert (index[0]["decision"], index[0]["note"], index[0]["edition"]) == ("approve", "good", made.edition)
    other = [dataclasses.replace(file, sha256="1" * 64) for file in made.files]
    assert dataclasses.replace(made, files=tuple(other)).edition != made.edition
    assert dataclasses.replace(made, files=made.files[::-1], seconds={}).edition == made.edition


def test_the_viewer_is_beside_the_page_unchanged_only_where_there_is_something_to_view(tmp_path):
    report = write_sheet(tmp_path, [entry("a")], SUMMARY).parent
    assert not (report / "model-viewer.js").exists()
    (report / "thumbs").mkdir()
    (report / "thumbs" / f"{entry('a').id}-model.js").write_text("crm.model()")
    write_sheet(tmp_path, [entry("a"), entry("b")], SUMMARY)
    mark, _, script = (report / "model-viewer.js").read_bytes().partition(b"\n")
    assert mark == b"/* crm contact sheet */"
    assert hashlib.sha256(script).hexdigest() == vendored_viewer().sha256
    assert b"Apache License" in (report / "model-viewer.LICENSE.txt").read_bytes()
    [index] = called(report / "entries.js", "entries")
    assert [each["model"] for each in index] == [True, False]
