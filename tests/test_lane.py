"""Networks in a process of their own: the bytes they come to, and what becomes of photos when it dies."""

import errno
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from io import BytesIO
from multiprocessing.connection import Connection
from pathlib import Path, PurePosixPath
from types import SimpleNamespace

import pytest
import torch
from fakes import STEPS, job

from crm_cli.errors import EnvironmentProblem, PhotoError, UsageError, retold, told
from crm_cli.export.provenance import read_label
from crm_cli.lane import Lane, LaneFailure, Message, Session
from crm_cli.models.reconstruction import PlaneField
from crm_cli.pipeline import Desk, Line
from crm_cli.preset import load_preset
from crm_cli.records import Asset, Cutout, Failed, Job, Mesh, SixViews
from crm_cli.run import crew, process
from crm_cli.run.conveyor import DEADLINES_S, Conveyor, Spare
from crm_cli.run.lane import Server
from crm_cli.run.reports import Displaced, Finished, Killed, NotOpened, Opened, Report, Staged, Stepped
from crm_cli.run.wire import Unframer, frame
from crm_cli.run.worker import Launch
from crm_cli.toolbox import Place, open_toolbox

PHOTOS = Path(__file__).parent / "photos"
PRESET = load_preset("tiny").preset
LIMITS = {**DEADLINES_S, "imagine": 1.0}


def test_a_message_comes_through_with_its_tensors_and_its_note() -> None:
    sent = Message(
        kind="draw", tensors={"a": torch.arange(6.0).view(2, 3).T, "b": torch.ones(0, 3)}, note={"seed": 7}
    )
    read = Message.unpacked(sent.packed())
    assert (read.kind, read.note) == ("draw", {"seed": 7})
    assert torch.equal(read.tensors["a"], sent.tensors["a"]) and read.tensors["b"].shape == (0, 3)


@pytest.mark.parametrize(
    "error",
    [
        PhotoError("a.jpg: empty", code="E_EMPTY", remedy="another", kind="quality"),
        UsageError("a flag", code="E_FLAG"),
        EnvironmentProblem("no weights", code="E_WEIGHTS", remedy="fetch them"),
    ],
)
def test_an_error_is_raised_again_as_what_it_was(error: PhotoError) -> None:
    again = retold(told(error))
    assert type(again) is type(error) and str(again) == str(error)
    assert getattr(again, "kind", None) == getattr(error, "kind", None)


class Served:
    """A server in a thread, with one desk, and lines to it."""

    def __init__(self, desk: object, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("crm_cli.run.lane.named", lambda path: self)
        self._desk = desk
        self._open = ExitStack()
        self._control, end = (self._open.enter_context(each) for each in socket.socketpair())
        self._reports = BytesIO()
        self._server = Server(end, self._reports)
        self._thread = threading.Thread(target=self._server.run, daemon=True)
        socket.send_fds(self._control, [frame({"open": Launch(preset=PRESET, device="cpu", threads=1)})], [])
        self._thread.start()
        self._admitted = 0

    def open(self, *args: object, **kwargs: object) -> object:
        return self._desk

    def line(self, tell: Callable[[str], None] = lambda where: None) -> Lane:
        ours, theirs = socket.socketpair()
        self._admitted += 1
        with theirs:
            socket.send_fds(self._control, [frame({"worker": self._admitted})], [theirs.fileno()])
        return Lane(self._open.enter_context(Connection(ours.detach())), tell)

    def said(self) -> list[dict[str, object]]:
        """What it has told its parent."""
        return list(Unframer().feed(self._reports.getvalue()))

    def wait_for_queue(self, requests: int) -> None:
        """Wait until so many requests wait for another."""
        patience = time.monotonic() + 10
        while len(self._server._waiting) != requests:
            assert time.monotonic() < patience
            time.sleep(0.01)

    def close(self) -> None:
        self._control.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        assert not self._thread.is_alive()
        self._open.close()


@pytest.fixture(scope="module")
def desk() -> Desk:
    return Desk.open(PRESET, device="cpu", threads=1, precision="auto", is_frugal=False)


@pytest.fixture
def served(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(desk, monkeypatch)
    yield served
    served.close()


def real_job(name: str, scratch: Path, seed: int | None = None) -> Job:
    scratch.mkdir()
    path = PurePosixPath(name)
    return Job(
        root=PHOTOS,
        path=path,
        stem=path.with_suffix(""),
        id="0123",
        scratch=scratch,
        max_mpixels=64,
        seed=seed,
    )


@pytest.mark.parametrize("seed", [None, 5])
def test_an_asset_is_the_same_wherever_its_networks_are(
    seed: int | None, served: Served, tmp_path: Path
) -> None:
    here = Line(open_toolbox(PRESET, device="cpu", threads=1), PRESET)
    where: list[str] = []
    there = Line.open(PRESET, device="cuda:0", threads=1, lane=served.line(where.append))
    assert there._tools.networks == {} and there._tools.device == "cpu"
    name = sorted(path.name for path in PHOTOS.iterdir() if path.suffix == ".png")[0]
    made = [
        line.convert(real_job(name, tmp_path / folder, seed), lambda stage: None)
        for line, folder in ((here, "here"), (there, "there"))
    ]
    files = [
        sorted(path for path in (tmp_path / folder).rglob("*") if path.is_file())
        for folder in ("here", "there")
    ]
    assert len(files[0]) == len(files[1]) > 5
    for one, other in zip(*files, strict=True):
        assert one.read_bytes() == other.read_bytes(), one
    assert replace(made[0], seconds={}) == replace(made[1], seconds={})
    assert "queue" in made[1].seconds and "queue" not in made[0].seconds
    assert set(where) == {"asked", "begun", "answered"} and where[:3] == ["asked", "begun", "answered"]


class Blank:
    """A desk whose networks draw nothing."""

    place = Place(device="cuda", precision="bfloat16", surface="kaolin")
    takes_turns = False

    def __init__(self, desk: Desk) -> None:
        self.imagine = desk.imagine

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, PlaneField]:
        raise PhotoError("the reconstruction is empty", code="E_NO_SURFACE", kind="quality")


def test_a_photo_of_which_a_lane_can_draw_nothing_becomes_a_solid_that_says_where_it_was_asked_for(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    served = Served(Blank(desk), monkeypatch)
    line = Line.open(PRESET, device="cuda:0", threads=1, lane=served.line())
    asset = line.convert(real_job("bottle.png", tmp_path / "there"), lambda stage: None)
    assert asset.checks.confidence == "low" and any("is empty" in warning for warning in asset.warnings)
    [glb] = (tmp_path / "there").rglob("*.glb")
    said = read_label(glb).provenance
    assert (said.device, said.precision) == ("cuda", "bfloat16")
    served.close()


def views_of(shade: float) -> SixViews:
    return SixViews(
        rgb=torch.full((6, 3, 8, 8), shade), ccm=torch.zeros(6, 3, 8, 8), alpha=torch.ones(6, 1, 8, 8)
    )


class Painted:
    """A field whose colour is a number."""

    has_hull = True
    device = torch.device("cpu")

    def __init__(self, shade: float, served: list[str]) -> None:
        self._shade = shade
        self._served = served

    def seen_as(self, views: SixViews, *, trust: torch.Tensor) -> "Painted":
        return Painted(float(views.rgb.mean() + trust.sum()), self._served)

    def colour(self, points: torch.Tensor) -> torch.Tensor:
        self._served.append("colour")
        return torch.full_like(points, self._shade)


class Shades:
    """A desk whose answers say what was asked, once it may go on."""

    place = Place(device="cpu", precision="float32", surface="own")
    takes_turns = True

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.may_go.set()
        self.served: list[str] = []
        self.drawn_of: list[float] = []
        """The shades of the views that surfaces were asked for."""

    def imagine(self, seed: int, cutout: Cutout, report_step: Callable[[int, int], None]) -> SixViews:
        self.served.append(cutout.digest)
        report_step(1, 2)
        assert self.may_go.wait(10)
        report_step(2, 2)
        if cutout.digest == "boom":
            raise MemoryError("no more")
        return views_of(float(seed))

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, Painted]:
        self.drawn_of.append(float(views.rgb[0, 0, 0, 0]))
        if digest == "boom":
            raise MemoryError("no more")
        if digest == "empty":
            raise PhotoError("the reconstruction is empty", code="E_NO_SURFACE", kind="quality")
        return Mesh(vertices=torch.zeros(3, 3).numpy(), faces=torch.zeros(1, 3).long().numpy()), Painted(
            seed, self.served
        )


@pytest.fixture
def shades() -> Shades:
    return Shades()


class Whole(Shades):
    """The same, with all its networks in memory."""

    takes_turns = False


@pytest.fixture
def counter(shades: Shades, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    served = Served(shades, monkeypatch)
    yield served
    served.close()


def cutout_called(digest: str) -> Cutout:
    from crm_cli.records import Crop

    return Cutout(
        rgb=torch.zeros(3, 8, 8), alpha=torch.ones(1, 8, 8), crop=Crop(centre_x=4, centre_y=4, side_px=8),
        photo=PurePosixPath("a.jpg"), digest=digest, matting="alpha",
    )  # fmt: skip


def ignored(done: int, of: int) -> None:
    pass


def test_every_worker_has_the_colours_of_its_own_field(counter: Served) -> None:
    lanes = [counter.line(), counter.line()]
    points = torch.zeros(4, 3)
    fields = [lane.draw(shade, views_of(0), "a")[1] for shade, lane in enumerate(lanes)]
    assert [float(field.colour(points)[0, 0]) for field in fields] == [0.0, 1.0]
    dressed = fields[0].seen_as(views_of(0.5), trust=torch.tensor([0.25, 0, 0, 0, 0, 0]))
    assert float(dressed.colour(points)[3, 2]) == 0.75 and float(fields[1].colour(points)[0, 0]) == 1.0
    assert lanes[0].place == Shades.place


def test_a_surface_is_drawn_of_the_views_that_are_shown_and_not_of_the_last_ones(
    shades: Shades, counter: Served
) -> None:
    lane = counter.line()
    last = lane.imagine(6, cutout_called("a"), ignored)
    for views in (last, views_of(0.25), last):
        lane.draw(1, views, "a")
    assert shades.drawn_of == [6, 0.25, 6]


def test_where_nothing_was_drawn_nobody_has_the_colours_of_what_was_drawn_before() -> None:
    session = Session(Shades())  # type: ignore[arg-type]
    views = {"rgb": torch.zeros(6, 3, 8, 8), "ccm": torch.zeros(6, 3, 8, 8), "alpha": torch.ones(6, 1, 8, 8)}
    session.answer(Message(kind="draw", tensors=views, note={"seed": 1, "digest": "a"}), ignored)
    with pytest.raises(PhotoError):
        session.answer(Message(kind="draw", tensors=views, note={"seed": 1, "digest": "empty"}), ignored)
    with pytest.raises(AssertionError):
        session.answer(Message(kind="colour", tensors={"points": torch.zeros(1, 3)}), ignored)


def test_what_cannot_be_drawn_is_told_and_the_lane_goes_on(counter: Served) -> None:
    lane = counter.line()
    with pytest.raises(PhotoError, match="empty") as told_of:
        lane.draw(1, views_of(0), "empty")
    assert told_of.value.kind == "quality" and lane.draw(2, views_of(0), "a")[0].faces.shape == (1, 3)


def test_what_is_short_is_served_before_what_has_waited_longer(shades: Shades, counter: Served) -> None:
    painter = counter.line()
    field = painter.draw(3, views_of(0), "a")[1]
    shades.may_go.clear()
    threads = [
        threading.Thread(target=counter.line().imagine, args=(1, cutout_called(name), ignored))
        for name in ("first", "second")
    ]
    threads.append(threading.Thread(target=field.colour, args=(torch.zeros(1, 3),)))
    for waiting, thread in enumerate(threads):
        thread.start()
        while not shades.served:
            time.sleep(0.01)
        counter.wait_for_queue(waiting)
    shades.may_go.set()
    for thread in threads:
        thread.join(10)
    assert shades.served == ["first", "colour", "second"]


def test_what_is_short_is_served_between_steps_and_said_to_be(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shades = Whole()
    served = Served(shades, monkeypatch)
    painter = served.line()
    field = painter.draw(3, views_of(0), "a")[1]
    shades.may_go.clear()
    views: list[SixViews] = []
    long = threading.Thread(
        target=lambda: views.append(served.line().imagine(4, cutout_called("long"), ignored))
    )
    long.start()
    while not shades.served:
        time.sleep(0.01)
    short = threading.Thread(target=field.colour, args=(torch.zeros(1, 3),))
    short.start()
    served.wait_for_queue(1)
    late = threading.Thread(target=served.line().imagine, args=(1, cutout_called("late"), ignored))
    late.start()
    served.wait_for_queue(2)
    shades.may_go.set()
    for thread in (long, short, late):
        thread.join(10)
    served.close()
    assert shades.served == ["long", "colour", "late"] and float(views[0].rgb.mean()) == 4
    # Whoever hears the lane die knows at whose work it was.
    words = [(name, said[name]) for said in served.said() for name in ("begun", "done") if name in said]
    assert words == [
        ("begun", 1), ("done", 1), ("begun", 2), ("begun", 1), ("done", 1), ("begun", 2), ("done", 2),
        ("begun", 3), ("done", 3),
    ]  # fmt: skip


def test_a_surprise_between_steps_spoils_what_it_came_between(monkeypatch: pytest.MonkeyPatch) -> None:
    shades = Whole()
    served = Served(shades, monkeypatch)
    shades.may_go.clear()
    long = threading.Thread(
        target=served.line().imagine, args=(4, cutout_called("long"), ignored), daemon=True
    )
    long.start()
    while not shades.served:
        time.sleep(0.01)
    failures: list[LaneFailure] = []

    def draw() -> None:
        try:
            served.line().draw(1, views_of(0), "boom")
        except LaneFailure as failure:
            failures.append(failure)

    short = threading.Thread(target=draw)
    short.start()
    served.wait_for_queue(1)
    shades.may_go.set()
    short.join(10)
    long.join(0.5)
    assert [failure.kind for failure in failures] == ["oom"] and long.is_alive()
    assert [said["done"] for said in served.said() if "done" in said] == [2]
    served.close()


def test_waiting_for_others_is_counted_and_work_is_not(shades: Shades, counter: Served) -> None:
    first, second = counter.line(), counter.line()
    shades.may_go.clear()
    threads = [
        threading.Thread(target=lane.imagine, args=(1, cutout_called(name), ignored))
        for name, lane in (("a", first), ("b", second))
    ]
    threads[0].start()
    while not shades.served:
        time.sleep(0.01)
    threads[1].start()
    counter.wait_for_queue(1)
    time.sleep(0.4)
    shades.may_go.set()
    for thread in threads:
        thread.join(10)
    # The first one's answer took as long, of which nothing was waiting.
    assert second.waited_s >= 0.4 and first.waited_s < second.waited_s


def test_a_surprise_is_told_with_its_trace_and_nobody_is_served_after_it(
    shades: Shades, counter: Served
) -> None:
    lane, other = counter.line(), counter.line()
    with pytest.raises(LaneFailure, match="MemoryError: no more") as failure:
        lane.imagine(1, cutout_called("boom"), ignored)
    assert (failure.value.kind, failure.value.code) == ("oom", "E_MEMORY")
    assert "in imagine" in failure.value.trace
    waiting = threading.Thread(target=other.imagine, args=(1, cutout_called("late"), ignored), daemon=True)
    waiting.start()
    waiting.join(0.5)
    assert waiting.is_alive() and shades.served == ["boom"]


def test_who_leaves_while_it_is_served_disturbs_nobody(shades: Shades, counter: Served) -> None:
    gone, stays = counter.line(), counter.line()
    shades.may_go.clear()
    note = {"seed": 1, "digest": "gone", "crop": {"centre_x": 4, "centre_y": 4, "side_px": 8}}
    planes = {"rgb": torch.zeros(3, 8, 8), "alpha": torch.ones(1, 8, 8)}
    gone._send(Message(kind="imagine", tensors=planes, note=note))
    while not shades.served:
        time.sleep(0.01)
    gone._connection.close()
    shades.may_go.set()
    assert float(stays.imagine(6, cutout_called("stays"), ignored).rgb.mean()) == 6


def test_who_leaves_while_waiting_is_not_served(shades: Shades, counter: Served) -> None:
    gone, stays = counter.line(), counter.line()
    shades.may_go.clear()
    working = threading.Thread(target=stays.imagine, args=(1, cutout_called("stays"), ignored))
    working.start()
    while not shades.served:
        time.sleep(0.01)
    waiting = threading.Thread(target=gone.imagine, args=(1, cutout_called("gone"), ignored), daemon=True)
    waiting.start()
    counter.wait_for_queue(1)
    with socket.socket(fileno=os.dup(gone._connection.fileno())) as end:
        end.shutdown(socket.SHUT_RDWR)
    counter.wait_for_queue(0)
    shades.may_go.set()
    working.join(10)
    stays.imagine(1, cutout_called("again"), ignored)
    assert shades.served == ["stays", "again"]


def test_a_lane_that_can_hear_nobody_any_more_goes(counter: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    surprises: list[threading.ExceptHookArgs] = []
    monkeypatch.setattr(threading, "excepthook", surprises.append)
    counter.line()._connection.send_bytes(b"no message")
    counter._thread.join(10)
    assert not counter._thread.is_alive()
    while not surprises:
        time.sleep(0.01)


def test_nothing_else_can_be_asked() -> None:
    with pytest.raises(ValueError, match="nobody asks a lane to dance"):
        Session(Shades()).answer(Message(kind="dance"), ignored)  # type: ignore[arg-type]


# Processes, with a desk that obeys file names.


@pytest.fixture
def fakes_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))


@pytest.fixture
def pool(tmp_path: Path, fakes_on_the_path: None) -> Iterator[Callable[..., Conveyor]]:
    opened = []

    def open_pool(workers: int = 2, desk: str = "FakeDesk", **changes: object) -> Conveyor:
        desk, line = f"fakes:{desk}", "fakes:LaneLine"
        launch = Launch(preset=PRESET, device="cuda:0", threads=1, line=line, desk=desk)
        arranged = {"devices": ["cuda:0"], "deadlines_s": LIMITS, "logs": tmp_path, **changes}
        opened.append(Conveyor(launch, workers=workers, **arranged))  # type: ignore[arg-type]
        return opened[-1]

    yield open_pool
    for belt in opened:
        with suppress(RuntimeError):  # closed by the test itself
            belt.close()


def reports_until(belt: Conveyor, is_enough: Callable[[list[Report]], bool]) -> list[Report]:
    reports: list[Report] = []
    patience = time.monotonic() + 20
    while not is_enough(reports):
        assert time.monotonic() < patience, reports
        reports += belt.wait(0.5)
    return reports


def ended(reports: list[Report]) -> dict[str, Report]:
    """The last word on each photo."""
    last = [report for report in reports if isinstance(report, Finished | Killed | Displaced | NotOpened)]
    return {report.job.path.name: report for report in last}


def run_all(belt: Conveyor, *jobs: Job) -> dict[str, Report]:
    for one in jobs:
        belt.submit(one)
    return ended(reports_until(belt, lambda reports: len(ended(reports)) == len(jobs)))


def seen_by(pid: int) -> bytes:
    """The accelerators that a process may see."""
    settings = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(line.split(b"=", 1) for line in settings if line)[b"CUDA_VISIBLE_DEVICES"]


def test_workers_of_one_device_ask_one_lane(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    belt = pool()
    assert belt.submit(job(tmp_path, "a.jpg")) and not belt.submit(job(tmp_path, "b.jpg"))
    made = ended(reports_until(belt, lambda reports: len(ended(reports)) == 2))
    words = [(tmp_path / f"scratch-{name}.jpg" / f"{name}.txt").read_text() for name in "ab"]
    assert len(words) == 2 and all(isinstance(report.outcome, Asset) for report in made.values())  # type: ignore[union-attr]
    # The lane's memory is told, not the workers'.
    [lane] = belt._lanes.values()
    assert {report.device for report in made.values()} == {"cuda:0"}  # type: ignore[union-attr]
    assert lane.is_open and lane.serving is None
    assert len(belt._workers()) == 2 and {worker.lane for worker in belt._workers()} == {lane}
    seen = [seen_by(child.pid) for child in (lane, *belt._workers())]
    assert seen == [b"0,1", b"", b""]


def test_every_device_has_a_lane_of_its_own(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    monkeypatch.setenv("CRM_RASTERISER", "nvdiffrast")
    belt = pool(devices=["cuda:0", "cuda:1"], workers=4)
    made = run_all(belt, *(job(tmp_path, f"{name}.jpg") for name in "abcd"))
    assert all(isinstance(report.outcome, Asset) for report in made.values())  # type: ignore[union-attr]
    assert set(belt._lanes) == {"cuda:0", "cuda:1"}
    # Who asks for a rasteriser by name wants workers to see what it may need.
    assert {seen_by(worker.pid) for worker in belt._workers()} == {b"0,1"}
    assert sorted(worker.lane.launch.device for worker in belt._workers() if worker.lane) == [
        "cuda:0", "cuda:0", "cuda:1", "cuda:1",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "code", "words"),
    [
        ("segv_a.jpg", "crash", "E_CRASH", "the lane of cuda:0 died with SIGSEGV in imagine"),
        ("exit0_a.jpg", "crash", "E_EXIT", "the lane of cuda:0 left with status 0 in imagine"),
        ("stall_a.jpg", "timeout", "E_TIMEOUT", "no sign of life for 1 s in imagine"),
        ("raise_a.jpg", "internal", "E_INTERNAL", "RuntimeError: a surprise"),
    ],
)
def test_a_lane_that_dies_costs_the_photo_that_it_was_at_and_no_other(
    name: str, kind: str, code: str, words: str, pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool()
    belt.submit(job(tmp_path, name))
    reports_until(belt, lambda reports: any(isinstance(report, Staged) for report in reports))
    belt.submit(job(tmp_path, "good.jpg"))
    told_of = ended(reports_until(belt, lambda reports: name in ended(reports)))
    failed = told_of[name]
    assert isinstance(failed, Finished) and isinstance(failed.outcome, Failed)
    assert (failed.outcome.kind, failed.outcome.code) == (kind, code) and words in failed.outcome.message
    assert failed.outcome.stage == "imagine"
    if kind in ("crash", "timeout") and code != "E_EXIT":
        assert "in imagine" in failed.log or "Segmentation" in failed.log
    if "good.jpg" not in told_of:
        told_of |= ended(reports_until(belt, lambda reports: "good.jpg" in ended(reports)))
    # It was on its way, or was not yet at the lane and went with it.
    if isinstance(told_of["good.jpg"], Displaced):
        told_of |= run_all(belt, job(tmp_path, "good.jpg"))
    assert isinstance(told_of["good.jpg"].outcome, Asset)  # type: ignore[union-attr]


def test_a_photo_that_waits_for_another_has_no_deadline_and_what_works_tells_its_steps(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(deadlines_s={**LIMITS, "imagine": 2.0})
    # Five seconds of steps; the other photo waits for all of them.
    for name in ("steps_a.jpg", "b.jpg"):
        belt.submit(job(tmp_path, name))
    reports = reports_until(belt, lambda reports: len(ended(reports)) == 2)
    assert all(isinstance(report.outcome, Asset) for report in ended(reports).values())  # type: ignore[union-attr]
    steps = [report.done for report in reports if isinstance(report, Stepped)]
    assert steps[-1] <= STEPS and len(steps) >= 4


def test_a_photo_that_another_came_between_is_not_given_up_for_it(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(workers=1, deadlines_s={**LIMITS, "imagine": 60.0})
    belt.submit(job(tmp_path, "stall_a.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    [worker], [lane] = belt._workers(), belt._lanes.values()
    assert worker.is_served and lane.serving == worker.number
    lane.serving, worker.deadline = worker.number + 1, time.monotonic() - 1
    assert belt.wait(0.1) == [] and belt._workers() == [worker]
    # Nobody with that number is there any more: the lane itself has a deadline then.
    assert lane.deadline < time.monotonic() + crew.QUIET_S + 1
    lane.serving = worker.number
    worker.go_on()
    assert worker.deadline > time.monotonic() + 30
    worker.deadline = time.monotonic() - 1
    [failed] = belt.wait(0.1)
    assert isinstance(failed, Finished) and isinstance(failed.outcome, Failed)
    assert failed.outcome.kind == "timeout"


def test_a_lane_killed_from_outside_is_nobodys_fault(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(process, "memory_kills", lambda: 7)
    belt = pool()
    for name in ("stall_a.jpg", "b.jpg"):
        belt.submit(job(tmp_path, name))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    [lane] = belt._lanes.values()
    lane.kill()
    told_of = ended(reports_until(belt, lambda reports: len(ended(reports)) == 2))
    killed = told_of["stall_a.jpg"]
    assert isinstance(killed, Killed) and isinstance(told_of["b.jpg"], Displaced)
    assert killed.reason == "the lane of cuda:0 was killed in imagine, from outside"
    assert belt._lanes == {} and belt._workers() == []


def test_a_kill_that_the_kernel_may_have_done_is_want_of_memory(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = iter(range(1000))
    monkeypatch.setattr(process, "memory_kills", lambda: next(kills))
    belt = pool(workers=1)
    belt.submit(job(tmp_path, "stall_a.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    next(iter(belt._lanes.values())).kill()
    [report] = ended(reports_until(belt, lambda reports: len(ended(reports)) == 1)).values()
    assert isinstance(report, Finished) and isinstance(report.outcome, Failed)
    assert (report.outcome.kind, report.outcome.code) == ("oom", "E_KILLED")


def test_where_memory_runs_out_the_lane_is_opened_anew_for_less(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(spare=Spare(threads=3, deadlines_s=LIMITS))
    failed = run_all(belt, job(tmp_path, "big_a.jpg"))["big_a.jpg"]
    assert isinstance(failed, Finished) and isinstance(failed.outcome, Failed)
    assert failed.outcome.kind == "oom" and not failed.was_frugal and belt._lanes == {}
    assert belt.submit(job(tmp_path, "steps_b.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    assert belt.economize() == "one network at a time, in smaller pieces" and belt.economize() is None
    # It held memory that the next one needs, so its photo begins again.
    assert isinstance(ended(belt.wait(0))["steps_b.jpg"], Displaced)
    made = run_all(belt, job(tmp_path, "big_a.jpg"))["big_a.jpg"]
    assert isinstance(made, Finished) and isinstance(made.outcome, Asset)
    assert belt.submit(job(tmp_path, "c.jpg"), on_cpu=True)
    spare = [worker for worker in belt._workers() if worker.launch.device == "cpu"]
    assert [(worker.launch.threads, worker.launch.desk, worker.lane) for worker in spare] == [(3, "", None)]


def test_a_lane_that_cannot_open_says_so_with_its_remedy(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(desk="ClosedDesk")
    belt.submit(job(tmp_path, "a.jpg"))
    with pytest.raises(EnvironmentProblem, match=r"no weights \[E_WEIGHTS_MISSING\]; fetch them"):
        reports_until(belt, lambda reports: bool(ended(reports)))


@pytest.mark.parametrize(
    ("desk", "reason"), [("DeadDesk", "died with SIGSEGV"), ("StuckDesk", "no sign of life for 3 s")]
)
def test_a_lane_that_never_opens_is_no_photos_fault(
    desk: str, reason: str, pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(desk=desk, deadlines_s={**LIMITS, "opening": 3.0})
    told_of = run_all(belt, job(tmp_path, "a.jpg"), job(tmp_path, "b.jpg"))
    # One stands for all, so that it comes to an end.
    assert sorted(type(report).__name__ for report in told_of.values()) == ["Displaced", "NotOpened"]
    [report] = [report for report in told_of.values() if isinstance(report, NotOpened)]
    assert reason in report.reason and "lane-cuda-0.log" in report.reason


def test_where_there_are_no_descriptors_left_no_folder_is_to_blame(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left() -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(socket, "socketpair", none_left)
    with pytest.raises(EnvironmentProblem, match="no worker can be started: Too many open files"):
        pool().submit(job(tmp_path, "a.jpg"))


def test_a_photo_begins_when_its_lane_is_open_and_not_before(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(desk="StuckDesk", workers=1, deadlines_s={**LIMITS, "opening": 30.0})
    waits = job(tmp_path, "a.jpg")
    belt.submit(waits)
    reports = reports_until(belt, lambda reports: any(isinstance(report, Opened) for report in reports))
    [worker] = belt._workers()
    # It has no deadline of its own, and leaves without a trace where the run is to end.
    assert worker.stage == "opening" and worker.deadline == math.inf
    assert not any(isinstance(report, Staged) for report in [*reports, *belt.wait(0.3)])
    assert belt.recall() == [waits]


def test_whoever_is_overdue_as_its_lane_is_given_up_is_told_of_once(
    pool: Callable[..., Conveyor], tmp_path: Path
) -> None:
    belt = pool(deadlines_s={**LIMITS, "imagine": 30.0})
    belt.submit(job(tmp_path, "stall_a.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    belt.submit(job(tmp_path, "b.jpg"))
    for worker in belt._workers():
        worker.deadline = 0.0
    told_of = belt.wait(0)
    assert [(type(report), report.job.path.name) for report in told_of] == [
        (Finished, "stall_a.jpg"), (Displaced, "b.jpg"),
    ]  # fmt: skip
    assert belt._workers() == [] and belt.wait(0) == []


def test_a_lane_that_hangs_at_the_work_of_a_dead_worker_is_given_up_and_blames_nobody(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belt = pool(deadlines_s={**LIMITS, "imagine": 30.0})
    belt.submit(job(tmp_path, "stall_a.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    belt.submit(job(tmp_path, "b.jpg"))
    first, second = belt._workers()
    reports_until(belt, lambda reports: second.is_asking)
    # Whoever waits has no deadline: that of the photo before it counts.
    assert second.deadline == math.inf > first.deadline
    os.kill(first.pid, signal.SIGSEGV)
    monkeypatch.setattr(crew, "QUIET_S", 0.5)
    told_of = ended(reports_until(belt, lambda reports: len(ended(reports)) == 2))
    assert isinstance(told_of["stall_a.jpg"], Finished) and isinstance(told_of["b.jpg"], Displaced)
    assert told_of["stall_a.jpg"].outcome.message.startswith("the worker died with SIGSEGV")  # type: ignore[union-attr]


def test_what_workers_have_said_is_heard_before_the_end_of_their_lane(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belt = pool(workers=1)
    belt.submit(job(tmp_path, "a.jpg"))
    [worker] = belt._workers()
    heard: list[object] = []
    for read in ("_read", "_read_lane"):
        monkeypatch.setattr(belt, read, lambda child: [heard.append(child)])
    keys = [(SimpleNamespace(data=child), 1) for child in (worker.lane, worker)]
    monkeypatch.setattr(belt._selector, "select", lambda timeout: keys)
    belt.wait(0)
    assert heard == [worker, worker.lane]


def test_a_lane_that_serves_nobody_is_given_up(
    pool: Callable[..., Conveyor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    belt = pool(workers=1)
    run_all(belt, job(tmp_path, "a.jpg"))
    [lane] = belt._lanes.values()
    os.kill(lane.pid, signal.SIGSTOP)  # it lives, and does nothing
    belt.submit(job(tmp_path, "b.jpg"))
    with monkeypatch.context() as patched:
        patched.setattr(crew, "QUIET_S", 0.5)
        told_of = ended(reports_until(belt, lambda reports: bool(ended(reports))))
    given_up = told_of["b.jpg"]
    assert isinstance(given_up, Killed) and belt._lanes == {}
    assert given_up.reason.startswith("no sign of life for 0.5 s at nobody's work; see ")
    assert isinstance(run_all(belt, job(tmp_path, "b.jpg"))["b.jpg"], Finished)


def test_a_worker_under_suspicion_takes_its_lane_along(pool: Callable[..., Conveyor], tmp_path: Path) -> None:
    belt = pool(workers=1)
    run_all(belt, job(tmp_path, "a.jpg"))
    [worker] = belt._workers()
    belt.renew(worker.pid)
    assert belt._workers() == [] and belt._lanes == {}


def test_closing_leaves_no_process_behind(pool: Callable[..., Conveyor], tmp_path: Path) -> None:
    belt = pool()
    belt.submit(job(tmp_path, "stall_a.jpg"))
    reports_until(belt, lambda reports: any(isinstance(report, Stepped) for report in reports))
    [lane] = belt._lanes.values()
    children = [lane, *belt._workers()]
    belt.close()
    assert all(child._process.returncode is not None for child in children)
