"""What a run leaves beside its assets: run.json, its events and errors, the sheet, digests, JUnit XML."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

from crm_cli.export.sheet import SheetEntry
from crm_cli.run.attempt import Attempt
from crm_cli.run.events import Event, RunFinished, Warned, weights_label
from crm_cli.run.files import write_atomically, writing
from crm_cli.run.journal import append_line
from crm_cli.run.junit import Case, cases_told, junit
from crm_cli.run.options import RunOptions
from crm_cli.run.plan import Planned
from crm_cli.run.report import RunFacts, write_report, write_whole
from crm_cli.run.scene import Scene
from crm_cli.run.search import absolute
from crm_cli.run.store import REPORT
from crm_cli.run.sums import write_sums
from crm_cli.run.tally import Tally
from crm_cli.run.wire import dumps

EVENTS = "events.ndjson"
"""Where a run keeps what it has told."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Papers:
    """Writes them, under the output folder's lock."""

    scene: Scene
    plan: Sequence[Planned]
    tally: Tally
    started: datetime

    def open_run(self) -> None:
        """Say what the run was asked for, so that it can be asked for again."""
        about_run = {
            "run": self._run,
            "started": self.started.isoformat(),
            "device": self.scene.device,
            # Whoever reads it may stand in another folder.
            "preset": {**asdict(self.scene.preset), "weights": _placed(self.scene.preset.weights)},
            "options": replace(self._options, inputs=tuple(map(absolute, self._options.inputs))),
            "weights": self.scene.weights,
        }
        self._write("run.json", dumps(about_run))

    @contextmanager
    def keeping_events(self) -> Iterator[Callable[[Event], None]]:
        """Give what writes an event down, before anybody else hears of it."""
        with writing(self._out):
            lines = (self.scene.folder / EVENTS).open("ab", buffering=0)

        def keep(event: Event) -> None:
            with writing(self._out):
                append_line(lines.fileno(), event.as_json().encode("ascii") + b"\n")

        with lines:
            yield keep

    def keep_words(self, attempt: Attempt, text: str) -> None:
        """Keep a traceback, or a dead worker's last words."""
        if not text:
            return
        folder = self.scene.folder / "errors"
        name = f"{attempt.job.id}-{attempt.turn.number}.txt"
        with writing(self._out):
            folder.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")

    def close_run(self, finished: RunFinished) -> None:
        """Say how the run ended."""
        self._write("summary.json", finished.as_json())

    def write_report(self) -> Path | str | None:
        """Write the contact sheet of everything that the plan names; a shard would wipe out the others'.

        Returns where people find it.
        """
        if not self._options.report or not self.plan or self._options.select.shard:
            return None
        with writing(self._out):
            sheet = self._write_sheet()
        return f"{self._options.place}/{REPORT}/index.html" if sheet and self._options.place else sheet

    def _write_sheet(self) -> Path | None:
        if self.scene.is_part:
            return write_whole(self._out, so_far_s={self._run: self.tally.seconds}).sheet
        shown = [planned for planned in self.plan if planned.action != "skipped"]
        entries = [entry for entry in map(self._entry, shown) if entry is not None]
        return write_report(
            entries,
            self.scene.store.records,
            left=len(shown) - len(entries),
            is_idle=self._is_idle,
            options=self._options,
            facts=RunFacts(
                started=self.started,
                seconds=self.tally.seconds,
                device=self.scene.device,
                weights=weights_label(self.scene.weights.name, self.scene.weights.digest),
            ),
        )

    def write_sums(self) -> Iterator[Event]:
        """List the digests of everything that stands.

        Not as a shard of an object store: it knows of the others only what stood when it began.
        """
        if self._options.place and self._options.select.shard:
            return
        with writing(self._out):
            problem = write_sums(self._out, run=self._run, is_idle=self._is_idle)
        if problem:
            yield Warned(message=problem)

    def write_junit(self) -> Iterator[Event]:
        """Write the results as JUnit XML, in the run's folder and where else it was asked for."""
        with writing(self._out):
            xml = junit(
                self._cases(),
                name="crm convert",
                seconds=self.tally.seconds,
                t=self.started.isoformat(),
                fail_on=self._options.fail_on or "fail",
            )
            write_atomically(self.scene.folder / "junit.xml", xml, run=self._run)
        if self._options.junit is not None:
            try:
                write_atomically(self._options.junit.resolve(), xml, run=self._run)
            except OSError as error:  # the assets stand, and are worth more
                yield Warned(message=f"--junit {self._options.junit}: not written: {error.strerror}")

    @property
    def _options(self) -> RunOptions:
        return self.scene.options

    @property
    def _out(self) -> Path:
        return self.scene.options.out

    @property
    def _run(self) -> str:
        return self.scene.store.run

    @property
    def _is_idle(self) -> bool:
        """Whether nothing was to be done."""
        return all(planned.action != "convert" for planned in self.plan)

    def _entry(self, planned: Planned) -> SheetEntry | None:
        """A photo's place on the sheet; None where it was not reached."""
        asset = planned.found.id
        if planned.action == "cached":
            return SheetEntry(id=asset, photo=planned.found.path, is_kept=True, made=planned.made)
        return self.tally.entries.get(asset)

    def _cases(self) -> Iterator[Case]:
        """How every photo ended, and those that were not reached."""
        yield from cases_told(self.scene.folder / EVENTS)
        for planned in self.plan:
            if planned.action == "convert" and planned.found.id not in self.tally.entries:
                yield Case(path=planned.found.path, status="left", message="not reached")

    def _write(self, name: str, text: str) -> None:
        with writing(self._out):
            write_atomically(self.scene.folder / name, text.encode("ascii"), run=self._run)


def _placed(weights: str) -> str:
    """The weights as they are called from any folder."""
    is_folder = os.sep in weights and not weights.startswith("~")
    return str(absolute(Path(weights))) if is_folder else weights
