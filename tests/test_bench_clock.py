from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from crm_cli.bench import clock
from crm_cli.bench.clock import Moment, Plan, Plans, Timeline, Watch, in_order, lengths
from crm_cli.preset import load_preset


def at(seconds: float) -> Moment:
    """A time at which this process has worked half of the time."""
    return Moment(seconds, seconds / 2)


def timeline(*, rgb: list[float], ccm: list[float]) -> Timeline:
    """Stages of 1, ?, 4 and 2 s; in the second 3 s before, 5 s between and 7 s after evaluations as given."""
    evaluations = [3, *rgb, 5, *ccm, 7]
    times = list(itertools.accumulate(evaluations, initial=1.0))
    ends = [*times[2 : 2 + len(rgb)], *times[3 + len(rgb) : -1]]
    stages = [("prepare", 0.0), ("imagine", 1.0), ("reconstruct", times[-1]), ("deliver", times[-1] + 4)]
    return Timeline([(name, at(s)) for name, s in stages], [at(s) for s in ends], at(times[-1] + 6))


def walls(taken: dict[str, Moment]) -> dict[str, float]:
    assert all(moment.cpu_s == pytest.approx(moment.wall_s / 2) for moment in taken.values())
    return {name: moment.wall_s for name, moment in taken.items()}


def test_a_whole_conversion_is_split_between_its_stages_and_the_parts_of_the_imagination() -> None:
    plans = Plans(Plan(4, 3), Plan(3, 3))
    taken = walls(lengths(timeline(rgb=[2, 2, 2, 1], ccm=[3, 3, 3]), ran=plans, wanted=plans))
    assert taken == pytest.approx(
        {
            "prepare": 1, "conditions": 3, "rgb": 7, "hand-over": 5, "ccm": 9, "decode": 7,
            "reconstruct": 4, "deliver": 2,
        }
    )  # fmt: skip
    assert list(in_order(taken)) == list(taken)


def test_missing_steps_count_like_the_median_of_their_kind() -> None:
    ran, wanted = Plans(Plan(4, 3), Plan(2, 2)), Plans(Plan(20, 15), Plan(50, 50))
    taken = walls(lengths(timeline(rgb=[2, 2, 4, 1], ccm=[3, 3]), ran=ran, wanted=wanted))
    # Guided ones are seen to take 2 and 4 s, the first of all like their median.
    assert taken["rgb"] == pytest.approx(3 + 2 + 4 + 1 + 12 * 3 + 4 * 1)
    assert taken["ccm"] == pytest.approx(50 * 3)
    assert taken["conditions"] == pytest.approx(3 + 2 - 3)
    assert (taken["hand-over"], taken["decode"]) == pytest.approx((5, 7))


@pytest.mark.parametrize(("guided", "guided_s", "plain_s"), [(1, 2, 1), (2, 1, 0.5)])
def test_a_kind_that_was_not_seen_is_reckoned_from_the_other(
    guided: int, guided_s: float, plain_s: float
) -> None:
    # The second evaluation, of 1 s, is the only one that can be told: without guidance, or with it.
    ran, wanted = Plans(Plan(2, guided), Plan(2, 2)), Plans(Plan(20, 12), Plan(2, 2))
    taken = walls(lengths(timeline(rgb=[1, 1], ccm=[3, 3]), ran=ran, wanted=wanted))
    assert taken["rgb"] == pytest.approx(12 * guided_s + 8 * plain_s)


def test_an_imagination_of_single_steps_is_left_whole() -> None:
    plans = Plans(Plan(1, 0), Plan(1, 0))
    taken = walls(lengths(timeline(rgb=[2], ccm=[3]), ran=plans, wanted=plans))
    assert taken == pytest.approx({"prepare": 1, "imagine": 20, "reconstruct": 4, "deliver": 2})


def test_a_stage_that_comes_twice_counts_twice() -> None:
    plans = Plans(Plan(1, 0), Plan(1, 0))
    stages = [("imagine", 0.0), ("unwrap", 1.0), ("imagine", 3.0), ("unwrap", 7.0)]
    twice = Timeline([(name, at(s)) for name, s in stages], [at(0.5)] * 4, at(8))
    assert walls(lengths(twice, ran=plans, wanted=plans)) == pytest.approx({"imagine": 5, "unwrap": 3})


def test_plans_are_those_of_the_samplers() -> None:
    preset = load_preset("fast", architecture="release").preset
    assert Plans.of(preset) == ((20, 15), (20, 15))


def test_on_an_accelerator_steps_have_the_times_of_its_own_events(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    ticks = itertools.count(100)

    class Event:
        """Ordered by the host at once; reached by the device half a second after the one before."""

        made = 0

        def __init__(self, device: str, *, enable_timing: bool) -> None:
            assert (device, enable_timing) == ("cuda", True)

        def record(self) -> None:
            self.number = Event.made
            Event.made += 1

        def elapsed_time(self, later: Any) -> float:
            return 500.0 * (later.number - self.number)

    monkeypatch.setattr(torch, "Event", Event)
    monkeypatch.setattr(torch.accelerator, "synchronize", told.append)
    monkeypatch.setattr(clock, "now", lambda: Moment(next(ticks), 0.0))
    watch = Watch("cuda")
    watch.stage("prepare")
    watch.stage("imagine")
    watch.step(1, 2)
    watch.step(2, 2)
    watch.stage("reconstruct")
    found = watch.stop()
    assert [moment.wall_s for moment in found.steps] == [101.5, 102.0]
    assert [moment.wall_s for _, moment in found.stages] == [100, 101, 104]
    assert told == ["cuda"] * 4  # before each stage and at the end, never between steps


def test_on_a_cpu_steps_have_the_times_at_which_they_were_told(monkeypatch: pytest.MonkeyPatch) -> None:
    ticks = itertools.count(5)
    monkeypatch.setattr(clock, "now", lambda: Moment(next(ticks), 0.0))
    watch = Watch("cpu")
    watch.stage("imagine")
    watch.step(1, 1)
    assert [moment.wall_s for moment in watch.stop().steps] == [6]
