"""One try at one photo, and what is known of it while it goes on."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from crm_cli.records import Job
from crm_cli.run.plan import Planned

RECENT = 4
"""How many reports of steps tell the pace: steps of one stage do not all take as long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A photo that waits for a worker."""

    planned: Planned
    number: int = 1
    """Of the try, counted from one."""
    crashes: tuple[str, ...] = ()
    """Last words of the workers that crashed over it."""
    kills: int = 0
    """How often its worker was killed from outside."""
    on_cpu: bool = False
    """Whether no accelerator had memory for it."""
    is_alone: bool = False
    """Whether nothing else may run beside it."""


@dataclass(slots=True)
class Attempt:
    """One try at one photo, from dispatch to outcome."""

    turn: Turn
    job: Job
    key: str
    room: int = 1
    """How many photos could run at a time when it began."""
    stage: str = "start"
    since: float = 0.0
    seconds: float = 0.0
    steps: deque[tuple[int, float]] = field(default_factory=lambda: deque(maxlen=RECENT))
    """Steps done in this stage and when that was told; the first entry is its start."""
    ends: float | None = None
    """When the stage will be over, as far as its steps tell."""

    @property
    def planned(self) -> Planned:
        """What was planned with the photo."""
        return self.turn.planned

    def enter(self, stage: str, now: float) -> None:
        """Begin a stage."""
        self.stage, self.since, self.ends = stage, now, None
        self.steps.clear()
        self.steps.append((0, now))

    def step(self, done: int, of: int, now: float) -> float | None:
        """Seconds that are left of the stage, at the pace of its latest steps.

        None before the first step, and after the last: what follows it takes a while that no step tells.
        """
        if self.steps and done <= self.steps[-1][0]:  # they begin now, or anew
            self.steps.clear()
        before, then = self.steps[0] if self.steps else (done, now)
        self.steps.append((done, now))
        is_known = before < done < of
        left_s = (now - then) / (done - before) * (of - done) if is_known else None
        self.ends = None if left_s is None else now + left_s
        return left_s
