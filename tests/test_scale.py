"""Many photos: what a run does for each, in counts and bytes; bench_scale.py measures seconds."""

import json
import os
import subprocess
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

import fakes
import pytest
from bench_scale import crm, environment, plant
from output import HERE, copied, put_fakes_on_the_path, statuses
from output import plant as plant_named
from output import run as run_into
from scale_chart import TOP, Point, draw

from crm_cli.export.sheet import SheetEntry, SheetSummary, write_sheet
from crm_cli.preset import Override, load_preset
from crm_cli.run.batch import convert
from crm_cli.run.events import AssetFinished, Event, Plan, RunFinished, StageStarted
from crm_cli.run.journal import read_lines
from crm_cli.run.options import Engine, RunOptions
from crm_cli.run.report import rewrite_report
from crm_cli.run.status import status

GLB = ("export.formats=[glb]",)

FEW, MANY = 500, 1500
"""What a photo costs is the difference between these, so that nothing a run does once is counted."""


@pytest.fixture(autouse=True)
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    put_fakes_on_the_path(monkeypatch)


def finished_folder(base: Path, count: int) -> Path:
    photos = plant(base / "in", count)
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_on_the_path(patch)
        # This folder need not survive a power cut, and a busy disk would take most of a minute for it.
        patch.setattr(os, "fsync", lambda descriptor: None)
        patch.setattr(os, "fdatasync", lambda descriptor: None)
        events = run_into(photos, base / "out", *GLB, jobs=2, report=True, preset_name="tiny")
    assert Counter(statuses(events).values()) == {"converted": count}
    return base


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("few"), FEW)


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finished_folder(tmp_path_factory.mktemp("many"), MANY)


class Audit(NamedTuple):
    """What one run of the command asked of the file system, and what it said."""

    events: list[dict[str, Any]]
    opened: list[tuple[str, bool]]
    changed: list[str]
    started: list[str]
    looks: int

    def opened_below(self, folder: Path) -> Counter[str]:
        return Counter(path for path, _ in self.opened if Path(path).is_relative_to(folder))

    def altered(self) -> set[str]:
        return {path for path, is_written in self.opened if is_written} | set(self.changed)


def audited(base: Path, *more: str) -> Audit:
    """Convert what is in a folder once more, in a process that hears of each of its calls."""
    words = ["convert", base / "in", "-o", base / "out", "-p", "tiny", "--format", "glb", "--json", "-q"]
    tell = base / "told.json"
    done = subprocess.run(
        [sys.executable, str(HERE / "audited.py"), *map(str, words), *more],
        capture_output=True,
        text=True,
        env=environment(AUDITED=str(tell)),
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(tell.read_bytes())
    told["opened"] = [(path, is_written) for path, is_written in told["opened"]]
    return Audit(events=[json.loads(line) for line in done.stdout.splitlines()], **told)


def standing(out: Path) -> dict[str, tuple[int, int, int]]:
    """Every file and folder but what a run says of itself, with what changes when it is written again."""
    own = tuple(out / ".crm" / name for name in ("journal", "runs", "lock", "tmp"))
    found = {}
    for path in out.rglob("*"):
        if not any(path.is_relative_to(folder) for folder in own):
            about = path.lstat()
            found[str(path)] = (about.st_ino, about.st_mtime_ns, about.st_size)
    return found


def test_a_run_with_nothing_to_do_makes_nothing_writes_nothing_and_reads_each_record_once(many: Path) -> None:
    out = many / "out"
    records = {str(path) for path in (out / ".crm" / "records").glob("*/*.json")}
    assert len(records) == MANY
    before = standing(out)
    audit = audited(many)
    kinds = Counter(event["type"] for event in audit.events)
    assert kinds.keys() == {"run_started", "plan", "asset_finished", "run_finished"}
    ends = Counter(event["status"] for event in audit.events if event["type"] == "asset_finished")
    assert ends == {"cached": MANY}
    assert audit.started == [], "no worker"
    assert standing(out) == before
    private = out / ".crm"
    wrong = [
        path
        for path in audit.altered()
        if Path(path).is_relative_to(out)
        and not any(Path(path).is_relative_to(private / name) for name in ("journal", "runs", "lock"))
    ]
    assert wrong == []
    opened = audit.opened_below(private / "records")
    assert {path: count for path, count in opened.items() if path.endswith(".json")} == dict.fromkeys(
        records, 1
    )
    assert audit.opened_below(many / "in") == {}, "no photo is read"
    assert not any(path.endswith(".glb") for path in audit.opened_below(out)), "no asset is read"


def test_a_finished_photo_costs_one_open_and_two_looks_however_many_there_are(few: Path, many: Path) -> None:
    """The photo when it is compared with its record, and its asset; the listing told that it is a file."""
    small, large = audited(few), audited(many)
    opens = (len(large.opened) - len(small.opened)) / (MANY - FEW)
    looks = (large.looks - small.looks) / (MANY - FEW)
    assert 1 <= opens < 1.1  # and two looks into each hundredth page, whether it is ours
    assert 2 <= looks < 2.2


def peak_bytes(base: Path) -> int:
    """The most memory that a run holds at a time, for whoever keeps none of its events."""
    preset = load_preset("tiny", [Override.from_assignment(*GLB)]).preset
    options = RunOptions(inputs=(base / "in",), out=base / "out", device="cpu", jobs=2, preset_name="tiny")
    tracemalloc.start()
    try:
        ends = Counter(
            event.status
            for event in convert(preset, options, engine=fakes.engine())
            if isinstance(event, AssetFinished)
        )
        assert len(ends) == 1, ends
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def peaks_bytes(*bases: Path) -> list[int]:
    """The same of runs after a first one, which imports what it needs."""
    # In a process of its own: others' leftovers must not be counted. Nobody cuts its power.
    code = (
        "import os, sys; from pathlib import Path; from test_scale import peak_bytes\n"
        "os.fsync = os.fdatasync = lambda descriptor: None\n"
        "print([peak_bytes(Path(base)) for base in sys.argv[1:]][1:])"
    )
    command = [sys.executable, "-c", code, *map(str, bases)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    peaks: list[int] = json.loads(done.stdout)
    return peaks


def test_a_finished_photo_takes_three_kilobytes_at_most_until_the_end(few: Path, many: Path) -> None:
    small, large = peaks_bytes(few, few, many)
    assert 500 < (large - small) / (MANY - FEW) < 3000


def test_a_photo_that_is_converted_takes_two_kilobytes_at_most(tmp_path: Path) -> None:
    """What its record says of it is read again where it is shown."""
    counts = (5, 60, 160)
    for count in counts:
        plant(tmp_path / str(count) / "in", count)
    small, large = peaks_bytes(*(tmp_path / str(count) for count in counts))
    assert 500 < (large - small) / 100 < 2000


def sheet_peak_bytes(base: Path, count: int) -> int:
    """The most memory that it takes to write the sheet of so many photos, beside what is told of them."""
    base.mkdir()
    entries = [
        SheetEntry(id=f"{number:016x}", photo=PurePosixPath(f"{number}.jpg"), checks=fakes.CHECKS)
        for number in range(count)
    ]
    summary = SheetSummary(
        started=datetime.now().astimezone(), wall_s=1.0, weights="w", preset="p", device="cpu", version="1"
    )
    tracemalloc.start()
    try:
        write_sheet(base, entries, summary)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def test_a_sheet_is_written_page_by_page(tmp_path: Path) -> None:
    """A photo's card alone takes two kilobytes, and is written twice."""
    sheet_peak_bytes(tmp_path / "first", 1)  # imports what it needs
    small, large = (sheet_peak_bytes(tmp_path / str(count), count) for count in (200, 600))
    assert (large - small) / 400 < 300


def looks_of(base: Path, count: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often a run looks at files that finds one of somebody else's in the way of each asset."""
    photos, out = plant(base / "in", count), base / "out"
    for photo in photos.rglob("*.jpg"):
        foreign = out / photo.relative_to(photos).with_suffix(".glb")
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_bytes(b"theirs")
    looks = 0

    def counting(look: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*arguments: Any, **more: Any) -> Any:
            nonlocal looks
            looks += 1
            return look(*arguments, **more)

        return counted

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", counting(os.stat))
        patch.setattr(os, "lstat", counting(os.lstat))
        events = run_into(photos, out, *GLB, overwrite=True)
    assert Counter(statuses(events).values()) == {"converted": count}
    return looks


def test_files_in_the_way_cost_each_photo_the_same_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = {count: looks_of(tmp_path / str(count), count, monkeypatch) for count in (20, 40, 80)}
    assert (looks[80] - looks[40]) / 40 == pytest.approx((looks[40] - looks[20]) / 20, rel=0.1)


def test_a_photo_is_found_in_the_way_also_through_a_link(tmp_path: Path) -> None:
    photos, out = plant_named(tmp_path / "in", "b.jpg"), tmp_path / "out"
    out.mkdir()
    (out / "b.glb").write_bytes(b"a photo with an odd name")
    (photos / "a.jpg").symlink_to(out / "b.glb")
    kept = replace(RunOptions(inputs=(photos,), out=out).select, follow_symlinks=True)
    for _ in range(2):
        events = run_into(photos, out, *GLB, overwrite=True, select=kept)
        ends = {str(event.path): event for event in events if isinstance(event, AssetFinished)}
        assert ends["b.jpg"].status == "conflict" and "it is an input" in ends["b.jpg"].reason
        assert ends["a.jpg"].status in ("converted", "cached")
    assert (out / "b.glb").read_bytes() == b"a photo with an odd name"


def points(*counts: int) -> list[Point]:
    return [
        Point(
            photos=count, converted_ms=2 + 400 / count, converted_mb=45 + count / 100,
            again_s=0.4 + count / 9000, again_mb=44, scan_s=count / 20000,
        )
        for count in counts
    ]  # fmt: skip


@pytest.mark.parametrize("counts", [(1, 10, 100, 1000, 10_000), (100,), (1000, 10)])
def test_the_chart_has_a_line_for_every_quantity_that_stays_in_its_panel(counts: tuple[int, ...]) -> None:
    chart = ElementTree.fromstring(draw(points(*counts)))
    names = {"svg": "http://www.w3.org/2000/svg"}
    width, height = map(float, chart.attrib["viewBox"].split()[2:])
    lines = chart.findall("svg:polyline", names)
    assert len(lines) == 5
    for line in lines:
        corners = [tuple(map(float, corner.split(","))) for corner in line.attrib["points"].split()]
        assert len(corners) == len(counts) and corners == sorted(corners)
        assert all(0 < x < width and TOP <= y <= height for x, y in corners)
    words = [text.text for text in chart.findall("svg:text", names)]
    assert {f"{count:,}" for count in counts} <= set(words)
    assert {"asked for: 3", "asked of the scan: 0.5"} <= set(words)
    end = max(counts)
    assert f"of it the scan: {end / 20000:.3g} at {end:,}" in words


NAMES = tuple(f"{letter}.jpg" for letter in "abcdefgh")


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Eight finished photos with what was imagined of them; only ever copied."""
    base = tmp_path_factory.mktemp("kept")
    with pytest.MonkeyPatch.context() as patch:
        put_fakes_on_the_path(patch)
        events = run_into(plant_named(base / "in", *NAMES), base / "out", *GLB, engine=keeping())
        assert set(imagined(events)) == set(NAMES)
        yield base


def keeping(**stages: str) -> Engine:
    """Fakes that keep what they imagine; stages: other weights for a stage."""
    used = fakes.engine().weights(load_preset("tiny").preset)
    used = replace(used, stages={**used.stages, **stages})
    return replace(fakes.engine("KeepingLine"), weights=lambda preset: used)


def imagined(events: list[Event]) -> list[str]:
    return [str(e.path) for e in events if isinstance(e, StageStarted) and e.stage == "imagine"]


def made_anew(events: list[Event]) -> set[str]:
    assert isinstance(events[-1], RunFinished) and events[-1].exit_code == 0
    return {name for name, end in statuses(events).items() if end == "converted"}


def reasons(events: list[Event]) -> Mapping[str, int]:
    return next(event for event in events if isinstance(event, Plan)).reasons


def one_byte_changed(photos: Path) -> None:
    for name in ("a.jpg", "d.jpg", "h.jpg"):
        data = (photos / name).read_bytes()
        (photos / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def touched(photos: Path) -> None:
    for name in NAMES:
        os.utime(photos / name)


def renamed(photos: Path) -> None:
    (photos / "c.jpg").rename(photos / "z.jpg")


def nothing(photos: Path) -> None:
    pass


class Change(NamedTuple):
    """What is different in the next run, and what must follow."""

    settings: tuple[str, ...] = ()
    weights: Mapping[str, str] = {}
    photos: Callable[[Path], None] = nothing
    anew: frozenset[str] = frozenset(NAMES)
    imagines: bool = False
    reason: str = ""


CHANGES = {
    "nothing": Change(anew=frozenset()),
    "touch only": Change(photos=touched, anew=frozenset()),
    "an export setting": Change(settings=("texture.size_px=256",), reason="texture.size_px 128 → 256"),
    "an added format": Change(settings=("export.formats=[glb,obj]",), reason="export.formats glb → glb+obj"),
    "a surface setting": Change(settings=("mesh.faces=900",), reason="mesh.faces 2000 → 900"),
    "weights of the surface": Change(weights={"mesh": "w2"}, reason="other weights"),
    "seed": Change(settings=("seed=1",), imagines=True, reason="seed 0 → 1"),
    "weights of the views": Change(weights={"views": "w2"}, imagines=True, reason="other weights"),
    "a cut-out setting": Change(
        settings=("cutout.size_px=64",), imagines=True, reason="cutout.size_px 128 → 64"
    ),
    "one byte in three photos": Change(
        photos=one_byte_changed,
        anew=frozenset({"a.jpg", "d.jpg", "h.jpg"}),
        imagines=True,
        reason="photo changed",
    ),
    "a renamed photo": Change(photos=renamed, anew=frozenset({"z.jpg"}), reason="new"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_what_a_change_concerns_is_made_anew_from_there_on_and_nothing_else(
    kept: Path, tmp_path: Path, what: str
) -> None:
    change = CHANGES[what]
    photos, out = copied(kept / "in", tmp_path / "in"), copied(kept / "out", tmp_path / "out")
    change.photos(photos)
    engine = keeping(**change.weights)
    events = run_into(photos, out, *GLB, *change.settings, engine=engine)
    assert made_anew(events) == change.anew
    assert reasons(events) == ({change.reason: len(change.anew)} if change.anew else {})
    assert set(imagined(events)) == (change.anew if change.imagines else set())
    again = run_into(photos, out, *GLB, *change.settings, engine=engine)
    assert made_anew(again) == set()
    assert set(statuses(again).values()) == {"cached"}


def test_going_back_to_what_was_asked_first_imagines_nothing_again(kept: Path, tmp_path: Path) -> None:
    photos, out = copied(kept / "in", tmp_path / "in"), copied(kept / "out", tmp_path / "out")
    before = {path.name: path.read_bytes() for path in out.glob("*.glb")}
    assert len(imagined(run_into(photos, out, *GLB, "seed=1", engine=keeping()))) == len(NAMES)
    events = run_into(photos, out, *GLB, engine=keeping())
    assert made_anew(events) == set(NAMES) and imagined(events) == []
    assert {path.name: path.read_bytes() for path in out.glob("*.glb")} == before


def finished_and_at_work(out: Path) -> tuple[int, set[str]]:
    """How many records stand, and which runs have begun and not ended."""
    runs = out / ".crm" / "runs"
    begun = {path.parent.name for path in runs.glob("*/run.json")}
    ended = {path.parent.name for path in runs.glob("*/summary.json")}
    return len(list((out / ".crm" / "records").glob("*/*.json"))), begun - ended


@pytest.fixture
def processes() -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that a test started; none outlives it."""
    begun: list[subprocess.Popen[bytes]] = []
    yield begun
    for process in begun:
        process.kill()
        process.wait()


@pytest.mark.slow
def test_sixteen_shards_share_a_thousand_photos_and_the_folder_tells_how_far_they_are(
    tmp_path: Path, processes: list["subprocess.Popen[bytes]"]
) -> None:
    shards, at_once = 16, 3
    photos, out = plant(tmp_path / "in", 1000), tmp_path / "out"
    for number in range(0, 1000, 250):
        (photos / f"shelf-{number // 100:04}" / f"input_{number}.jpg").write_bytes(b"nothing to see")
    command = [sys.executable, str(HERE / "fakes.py"), "convert", str(photos), "-o", str(out)]
    command += ["-p", "tiny", "--format", "glb", "--jobs", "1", "-q"]
    seen = []
    ends = time.monotonic() + 600
    while len(processes) < shards or any(process.poll() is None for process in processes):
        assert time.monotonic() < ends
        running = sum(process.poll() is None for process in processes)
        for number in range(len(processes), min(shards, len(processes) + at_once - running)):
            shard = ["--shard", f"{number + 1}/{shards}"]
            with (tmp_path / "log").open("ab") as log:
                processes.append(
                    subprocess.Popen([*command, *shard], stdout=log, stderr=log, env=environment())
                )
        if (out / ".crm" / "FORMAT").exists():
            before, begun = finished_and_at_work(out)
            told = status(out)
            after, going_on = finished_and_at_work(out)
            assert before <= told.finished <= after and told.damaged == 0
            assert {failure.code for failure in told.failures} <= {"E_EMPTY"}
            assert told.is_running or not begun & going_on
            seen.append((told.finished, told.is_running))
    codes = Counter(process.wait() for process in processes)
    assert codes.keys() == {0, 3} and codes.total() == shards
    assert seen == sorted(seen, key=lambda one: one[0]) and len({one for one in seen if one[1]}) > 5
    attempts = Counter(str(line["asset"]) for line in read_lines(out) if line["ev"] == "attempt_start")
    assert len(attempts) == 1004 and set(attempts.values()) == {1}
    told = status(out)
    assert (told.finished, told.damaged, len(told.failures), told.is_running) == (1000, 0, 4, False)
    counts = rewrite_report(out)
    assert (counts.finished, counts.failed) == (1000, 4)
    pages = [path.read_text() for path in (out / "report").glob("*.html")]
    assert len(pages) == 11
    assert sum(page.count('<article class="card') for page in pages) == 1004
    assert sum(page.count('<article class="card failed"') for page in pages) == 4


@pytest.mark.slow
def test_ten_times_as_many_photos_take_a_little_more_memory(tmp_path: Path) -> None:
    peaks_mb = {}
    for count in (1_000, 10_000):
        photos, out = plant(tmp_path / f"in{count}", count), tmp_path / f"out{count}"
        words = ("convert", photos, "-o", out, "--jobs", "2", "-q", "--json")
        first, again = crm(*words), crm(*words)
        for cost, end in ((first, "converted"), (again, "cached")):
            ends = Counter(e["status"] for e in cost.events if e["type"] == "asset_finished")
            assert ends == {end: count}
        peaks_mb[count] = (first.peak_mb, again.peak_mb)
    growth = [large - small for small, large in zip(peaks_mb[1_000], peaks_mb[10_000], strict=True)]
    assert max(peaks_mb[10_000]) < 150 and max(growth) < 40
