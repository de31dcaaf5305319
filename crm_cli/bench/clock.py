"""Where the time of one conversion went, by stage."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch

from crm_cli.models.steps import planned
from crm_cli.preset import Preset, Sampling

CONDITIONS, HAND_OVER, DECODE = "conditions", "hand-over", "decode"
"""What the imagination does before, between and after its two diffusions, `rgb` and `ccm`."""

IMAGINE = "imagine"

STAGES = (
    "prepare", CONDITIONS, "rgb", HAND_OVER, "ccm", DECODE, IMAGINE,
    "reconstruct", "unwrap", "bake", "deliver",
)  # fmt: skip
"""In the order of work. With too few steps to tell its parts apart a conversion has `imagine` as a whole."""

CPU_SIDE = ("prepare", "unwrap", "bake", "deliver")
"""Stages that do little or nothing on an accelerator."""


class Moment(NamedTuple):
    """A time, or a length of time, on two clocks."""

    wall_s: float
    cpu_s: float
    """Of all threads of this process together."""

    def since(self, earlier: Moment) -> Moment:
        """The length from there to here."""
        return Moment(self.wall_s - earlier.wall_s, self.cpu_s - earlier.cpu_s)


def now() -> Moment:
    """Read both clocks."""
    return Moment(time.perf_counter(), time.process_time())


def settle(device: str) -> None:
    """Wait until a device has done all that it was told; a CPU always has."""
    if device != "cpu":
        torch.accelerator.synchronize(device)


class Plan(NamedTuple):
    """Evaluations of one denoiser, the guided ones first."""

    evaluations: int
    guided: int

    @classmethod
    def of(cls, sampling: Sampling) -> Plan:
        """What a sampling comes to."""
        return cls(*planned(sampling))


class Plans(NamedTuple):
    """The evaluations of both denoisers."""

    rgb: Plan
    ccm: Plan

    @classmethod
    def of(cls, preset: Preset) -> Plans:
        """What a preset comes to."""
        return cls(Plan.of(preset.rgb), Plan.of(preset.ccm))


@dataclass(frozen=True, slots=True)
class Timeline:
    """When each stage of a conversion began, when each evaluation of a denoiser ended, and when all did."""

    stages: Sequence[tuple[str, Moment]]
    steps: Sequence[Moment]
    end: Moment


class Watch:
    """Listens to one conversion; see `Line.convert` for who calls it.

    Stages begin when the device has settled, which costs nothing: what a station gives is on the CPU.
    Evaluations follow each other without waiting, so that on an accelerator its own clock is asked.
    """

    def __init__(self, device: str) -> None:
        self._device = device
        self._stages: list[tuple[str, Moment]] = []
        self._steps: list[Moment] = []
        self._events: list[torch.Event] = []

    def stage(self, name: str) -> None:
        """Note that a stage begins."""
        settle(self._device)
        self._stages.append((name, now()))
        if name == IMAGINE and self._device != "cpu":
            self._events = [self._event()]

    def step(self, done: int, of: int) -> None:
        """Note that an evaluation of a denoiser has been made, or ordered."""
        if self._events:
            self._events.append(self._event())
        self._steps.append(now())

    def stop(self) -> Timeline:
        """Note that everything is done."""
        settle(self._device)
        end = now()
        if self._events:
            began = next(moment for name, moment in self._stages if name == IMAGINE)
            first, *events = self._events
            self._steps = [
                Moment(began.wall_s + first.elapsed_time(event) / 1000, step.cpu_s)
                for event, step in zip(events, self._steps, strict=True)
            ]
        return Timeline(self._stages, self._steps, end)

    def _event(self) -> torch.Event:
        event = torch.Event(self._device, enable_timing=True)
        event.record()
        return event


def lengths(timeline: Timeline, *, ran: Plans, wanted: Plans) -> dict[str, Moment]:
    """How long each stage took, and the diffusions as if they had made all the steps that are wanted.

    ran: the evaluations that were made. Missing ones count like the median of their kind; where only one
    kind was seen, a guided evaluation counts like two without guidance, as its operations do.
    """
    ends = [moment for _, moment in timeline.stages[1:]] + [timeline.end]
    taken: dict[str, Moment] = {}
    for (name, began), end in zip(timeline.stages, ends, strict=True):
        parts = _imagined(began, timeline.steps, end, ran, wanted) if name == IMAGINE else None
        for part, length in (parts or {name: end.since(began)}).items():
            before = taken.get(part, Moment(0.0, 0.0))
            taken[part] = Moment(before.wall_s + length.wall_s, before.cpu_s + length.cpu_s)
    return taken


def _imagined(
    began: Moment, steps: Sequence[Moment], end: Moment, ran: Plans, wanted: Plans
) -> dict[str, Moment] | None:
    """The parts of the imagination; None where a denoiser made too few evaluations to tell its own time."""
    if min(ran.rgb.evaluations, ran.ccm.evaluations) < 2:
        return None
    rgb, ccm = steps[: ran.rgb.evaluations], steps[ran.rgb.evaluations :]
    parts = (CONDITIONS, "rgb", HAND_OVER, "ccm", DECODE)
    by_clock = []
    for clock in range(2):
        before, rgb_s = _diffusion([began[clock], *(s[clock] for s in rgb)], ran.rgb, wanted.rgb)
        between, ccm_s = _diffusion([rgb[-1][clock], *(s[clock] for s in ccm)], ran.ccm, wanted.ccm)
        by_clock.append((before, rgb_s, between, ccm_s, end[clock] - ccm[-1][clock]))
    return {part: Moment(wall, cpu) for part, wall, cpu in zip(parts, by_clock[0], by_clock[1], strict=True)}


def _diffusion(times: Sequence[float], ran: Plan, wanted: Plan) -> tuple[float, float]:
    """Seconds before a diffusion and in it, of its evaluations and all that were wanted.

    times: of what came before it, and then of the end of each evaluation. The first evaluation cannot be told
    from what came before, and counts like the median of its kind.
    """
    each = [later - earlier for earlier, later in itertools.pairwise(times[1:])]
    guided_s, plain_s = _by_kind(each, ran)
    first_s = min(guided_s if ran.guided else plain_s, times[1] - times[0])
    missing_s = (wanted.guided - ran.guided) * guided_s
    missing_s += (wanted.evaluations - wanted.guided - (ran.evaluations - ran.guided)) * plain_s
    return times[1] - times[0] - first_s, first_s + sum(each) + missing_s


def _by_kind(each: Sequence[float], ran: Plan) -> tuple[float, float]:
    """Seconds of a guided and of an unguided evaluation. each: from the second evaluation on."""
    guided, plain = each[: max(0, ran.guided - 1)], each[max(0, ran.guided - 1) :]
    if not guided:
        return 2 * statistics.median(plain), statistics.median(plain)
    return statistics.median(guided), statistics.median(plain) if plain else statistics.median(guided) / 2


def in_order(stages: Mapping[str, object]) -> Iterator[str]:
    """Names of stages in the order of work."""
    return (name for name in STAGES if name in stages)
