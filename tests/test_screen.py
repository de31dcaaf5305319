from __future__ import annotations

import io
from dataclasses import replace
from pathlib import PurePosixPath

import pytest
from rich.console import Console

from crm_cli import screen
from crm_cli.run.events import (
    AssetFinished,
    AttemptFailed,
    Event,
    Forecast,
    Plan,
    Progress,
    RunFinished,
    StageProgress,
    StageStarted,
    WeightsLoading,
    duration,
)
from crm_cli.screen import LiveScreen, PlainScreen, QuietScreen, open_screen, show_summary

PATH = PurePosixPath("shoes/a.jpg")
DIGEST = "0123456789abcdef" * 4


class Watch:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(screen.time, "monotonic", lambda: self.now)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def paper() -> Console:
    return Console(file=io.StringIO(), width=100, highlight=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def step(done: int, eta_s: float | None = 90.0, stage: str = "imagine", of: int = 40) -> StageProgress:
    return StageProgress(path=PATH, stage=stage, done=done, of=of, eta_s=eta_s)


def plan(weights: str = "published") -> Plan:
    return Plan(
        photos=2,
        to_convert=2,
        cached=0,
        failed_before=0,
        conflicts=0,
        workers=1,
        reasons={"new": 2},
        weights=weights,
        weights_digest=DIGEST,
    )


def drawn(live: LiveScreen) -> str:
    console = paper()
    console.print(live._picture())
    return text(console)


def test_the_first_line_of_a_log_names_the_weights(watch: Watch) -> None:
    console = paper()
    PlainScreen(console, is_verbose=False).show(plan())
    assert text(console) == "2 photos: 2 to convert; 1 worker; weights: published (0123456789ab)\n"


def test_a_hostile_name_of_weights_is_printed_as_it_is() -> None:
    console = paper()
    PlainScreen(console, is_verbose=False).show(plan("[/b]\x1b[2J"))
    show_summary(console, finished("[/b]\x1b[2J"), retry="")
    assert text(console).count("[/b]\\x1b[2J") == 2 and "\x1b" not in text(console)


def finished(weights: str = "published") -> RunFinished:
    return RunFinished(
        exit_code=0, counts={"converted": 2}, failures={}, seconds=9.0, weights=weights, weights_digest=DIGEST
    )


def test_the_summary_names_the_weights() -> None:
    console = paper()
    show_summary(console, finished(), retry="")
    [line] = [line for line in text(console).splitlines() if "weights" in line]
    assert line.split() == ["weights", "published", "(0123456789ab)"]


def test_the_summary_tells_the_most_memory_that_a_worker_has_held_on_each_device() -> None:
    console = paper()
    end = replace(finished(), peak_bytes={"cuda": 6_240_000_000, "cpu": 870_000_000})
    show_summary(console, end, retry="")
    lines = [" ".join(line.split()) for line in text(console).splitlines() if "memory" in line]
    assert lines == ["memory 0.9 GB at most in a worker", "memory 6.2 GB of cuda at most in a worker"]


@pytest.mark.parametrize(
    ("left", "failures", "words"),
    [
        (0, {}, "nothing is left to do"),
        (1, {}, "1 left: the same command again does what is left"),
        (0, {"crash": 1}, "what failed can be tried once more: crm retry 'my meshes'"),
        (2, {"oom": 1}, "what failed can be tried once more: crm retry 'my meshes'"),
        (1, {"conflict": 1, "input": 2}, "1 left: the same command again does what is left"),
    ],
)
def test_an_interrupted_run_says_whether_anything_is_left(
    left: int, failures: dict[str, int], words: str
) -> None:
    console = paper()
    end = replace(finished(), exit_code=130, left=left, failures=failures)
    show_summary(console, end, retry="crm retry 'my meshes'")
    assert text(console).splitlines()[-1] == words


def test_before_the_first_asset_no_rate_is_told(watch: Watch) -> None:
    first = Progress(done=0, total=2, failed=0, rate=0.0, eta_s=None)
    live, console = LiveScreen(paper()), paper()
    live.show(plan())
    live.show(first)
    assert drawn(live).split()[-1] == "0/2"
    log = PlainScreen(console, is_verbose=False)
    watch.now += 31
    log.show(first)
    watch.now += 31
    log.show(replace(first, done=1, rate=6.0, eta_s=600.0))
    assert text(console).splitlines() == [
        "0/2 done, 0 failed", "1/2 done, 0 failed, 6.0 an hour, 10 min 00 s left"
    ]  # fmt: skip


@pytest.mark.parametrize("verbosity", [0, 1])
def test_a_forecast_is_told_in_a_log_and_on_a_terminal_but_not_to_who_wants_quiet(verbosity: int) -> None:
    event = Forecast(photo_s=1500.0, run_s=3000.0, message="it takes long")
    screens: list[Event] = []
    for build in (lambda c: PlainScreen(c, is_verbose=bool(verbosity)), LiveScreen, QuietScreen):
        console = paper()
        build(console).show(event)
        screens.append(text(console))
    assert screens == ["it takes long\n", "it takes long\n", ""]


def test_a_log_hears_of_steps_once_a_minute_at_most(watch: Watch) -> None:
    console = paper()
    log = PlainScreen(console, is_verbose=False)
    for done in range(1, 301):  # one a second
        watch.now += 1
        log.show(step(done, of=400))
    lines = text(console).splitlines()
    assert [line.split()[2] for line in lines] == ["60", "120", "180", "240", "300"]
    assert lines[0] == "shoes/a.jpg: imagine 60 of 400, 1 min 30 s left"


def test_photos_that_are_up_to_date_are_counted_and_only_told_to_who_wants_more() -> None:
    def told(verbosity: int) -> list[str]:
        console = paper()
        log = open_screen("plain", console, verbosity=verbosity)
        log.show(AssetFinished(path=PurePosixPath("b.jpg"), status="cached", reason="up to date"))
        log.show(AssetFinished(path=PATH, status="converted", seconds=2.0))
        return text(console).splitlines()

    assert told(0) == ["[2/0] shoes/a.jpg: converted in 2.0 s"]
    assert told(1) == ["[1/0] b.jpg: cached", "[2/0] shoes/a.jpg: converted in 2.0 s"]


def test_a_first_step_that_tells_no_time_yet_is_shown_without_one(watch: Watch) -> None:
    console = paper()
    log = PlainScreen(console, is_verbose=False)
    watch.now += 60
    log.show(step(0, eta_s=None))
    assert text(console) == "shoes/a.jpg: imagine 0 of 40\n"


def test_the_live_picture_shows_the_steps_of_the_running_stage_alone(watch: Watch) -> None:
    live = LiveScreen(paper())
    live.show(StageStarted(path=PATH, stage="imagine"))
    live.show(step(7))
    assert "imagine" in drawn(live) and "7 of 40, 1 min 30 s left" in drawn(live)
    watch.now += 75
    assert "1 min 15 s" in drawn(live)
    live.show(step(8, eta_s=20.0))
    assert "8 of 40, 20 s left" in drawn(live) and "7 of 40" not in drawn(live)
    live.show(StageStarted(path=PATH, stage="reconstruct"))
    assert "of 40" not in drawn(live)
    live.show(AssetFinished(path=PATH, status="converted"))
    assert "shoes" not in drawn(live)


def test_a_second_attempt_begins_without_the_steps_of_the_first(watch: Watch) -> None:
    live = LiveScreen(paper())
    live.show(StageStarted(path=PATH, stage="imagine"))
    live.show(step(39))
    live.show(AttemptFailed(path=PATH, reason="the worker died"))
    live.show(StageStarted(path=PATH, stage="imagine"))
    assert "imagine" in drawn(live) and "of 40" not in drawn(live)


def test_the_time_left_counts_down_between_two_steps_and_goes_when_it_is_over(watch: Watch) -> None:
    live = LiveScreen(paper())
    live.show(StageStarted(path=PATH, stage="imagine"))
    live.show(step(7))
    watch.now += 75
    assert "7 of 40, 15 s left" in drawn(live)
    watch.now += 15
    assert "7 of 40" in drawn(live) and "left" not in drawn(live)


def test_while_weights_are_loaded_a_log_and_the_picture_say_so(watch: Watch) -> None:
    loading = WeightsLoading(path=PATH, weights="[/b]published")
    live, console = LiveScreen(paper()), paper()
    PlainScreen(console, is_verbose=False).show(loading)
    assert text(console) == "loading weights: [/b]published\n"
    live.show(loading)
    watch.now += 25
    assert "loading weights  25 s  shoes/a.jpg" in drawn(live)
    live.show(StageStarted(path=PATH, stage="prepare"))
    assert "loading" not in drawn(live) and "prepare" in drawn(live)


def test_after_the_last_step_no_time_is_promised(watch: Watch) -> None:
    live, console = LiveScreen(paper()), paper()
    live.show(StageStarted(path=PATH, stage="imagine"))
    live.show(step(40, eta_s=None))
    assert "40 of 40, almost done" in drawn(live)
    log = PlainScreen(console, is_verbose=False)
    watch.now += 60
    log.show(step(40, eta_s=None))
    assert text(console) == "shoes/a.jpg: imagine 40 of 40, almost done\n"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (59.4, "59 s"), (60, "1 min 00 s"), (3599, "59 min 59 s"), (7260, "2 h 01 min")],
)
def test_times_are_written_as_people_read_them(seconds: float, words: str) -> None:
    assert duration(seconds) == words
