"""What a person sees of a run: a live picture on a terminal, one plain line a photo in a log.

Everything goes to stderr; stdout belongs to programs. Names are hostile text: each passes through
display_name and is printed as plain text, never as markup.
"""

from __future__ import annotations

import contextlib
import io
import os
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import IO, TYPE_CHECKING, BinaryIO, Protocol, Self, TextIO, cast

from crm_cli.errors import ExitCode
from crm_cli.names import display_name
from crm_cli.records import unsaid
from crm_cli.run.events import (
    FAILING,
    AssetFinished,
    AssetPlanned,
    AttemptFailed,
    Event,
    Forecast,
    Plan,
    Progress,
    RunFinished,
    StageFinished,
    StageProgress,
    StageStarted,
    Warned,
    WeightsLoading,
    duration,
    verdicts_label,
    weights_label,
)

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

PROGRESS_MODES = ("auto", "bar", "plain", "none")
"""How a run may be shown: `auto` draws where somebody can watch."""

HEARTBEAT_S = 30.0
"""How often a log hears that a run is alive."""

STEPS_EVERY_S = 60.0
"""How often a log hears how far a photo is within a long stage."""

FRAMES_PER_S = 8

LOADING = "loading weights"
"""What a photo waits for before its first stage."""

SHOWN_RUNNING = 8
"""Rows of running photos; more would push failures off a small terminal."""


class Patient(io.TextIOBase):
    """Writes to a stream as long as it takes anything: no run ends with its terminal, or on a full disk."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream  # None where a process was started without one

    def write(self, text: str) -> int:
        """Write, or do as if."""
        self._try(lambda stream: stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Pass on what was written."""
        self._try(lambda stream: stream.flush())

    def isatty(self) -> bool:
        """Whether somebody can watch."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Number of the stream's file, for whoever asks how wide it is."""
        if self._stream is None:
            raise io.UnsupportedOperation("fileno")
        return self._stream.fileno()

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What the stream can show."""
        return getattr(self._stream, "encoding", None) or "utf-8"

    def _try(self, act: Callable[[TextIO], object]) -> None:
        if self._stream is None:
            return
        try:
            act(self._stream)
        except (OSError, ValueError):  # ValueError: it was closed
            silence(self._stream)
            self._stream = None


def silence(stream: TextIO | BinaryIO) -> None:
    """Let what is still in a stream's buffer go nowhere, so that it does not fail again when it is closed."""
    with contextlib.suppress(OSError, ValueError), Path(os.devnull).open("wb") as nothing:
        os.dup2(nothing.fileno(), stream.fileno())


class Screen(Protocol):
    """Shows events; as a context manager it gives the terminal back however the run ends."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give the terminal back."""

    def show(self, event: Event) -> None:
        """Show one event."""


def open_screen(mode: str, console: Console, *, verbosity: int) -> Screen:
    """The screen that fits: live where somebody can watch, otherwise plain lines. mode: a PROGRESS_MODE."""
    if mode == "none" or verbosity < 0:
        return QuietScreen(console)
    if mode in ("bar", "auto") and console.is_terminal and not console.is_dumb_terminal:
        return LiveScreen(console)
    return PlainScreen(console, is_verbose=verbosity > 0)


class QuietScreen:
    """Failures only."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def __enter__(self) -> Self:
        """Nothing to prepare."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Nothing to restore."""

    def show(self, event: Event) -> None:
        """Print a failed photo."""
        if isinstance(event, AssetFinished) and event.status in FAILING:
            self.tell(f"error: {with_path(event.path, event.reason, code=event.code)}", style="red")

    def tell(self, line: str, *, style: str = "") -> None:
        """Print one line."""
        say(self._console, line, style=style)


class PlainScreen(QuietScreen):
    """One line for each new asset, warning and failure, and a sign of life in between.

    is_verbose: tells stages as well, and the photos that had nothing to be done.
    """

    def __init__(self, console: Console, *, is_verbose: bool) -> None:
        super().__init__(console)
        self._is_verbose = is_verbose
        self._count = 0
        self._total = 0
        self._last_line = time.monotonic()
        self._last_steps = time.monotonic()

    def show(self, event: Event) -> None:
        """Print what belongs in a log."""
        lines = self._lines(event)
        for line in lines:
            self.tell(line)
            self._last_line = time.monotonic()
        if not lines:
            super().show(event)

    def _lines(self, event: Event) -> list[str]:
        match event:
            case Plan():
                self._total = event.photos
                return [_plan(event)]
            case AssetFinished():
                self._count += 1
                is_quiet = event.status in ("cached", "skipped")
                is_told = event.status == "converted" or (is_quiet and self._is_verbose)
                if not is_told:
                    return []
                text = f"[{self._count}/{self._total}] {event.path}: {event.status}"
                text += f" in {event.seconds:.1f} s" if event.status == "converted" else ""
                text += _verdict(event)
                warnings = unsaid(event.warnings, event.verdict)
                return [text, *(f"warning: {event.path}: {warning}" for warning in warnings)]
            case AssetPlanned():
                start = f"; from {event.stage}" if event.stage else ""
                return [f"{event.action:9}{event.path}  ({event.reason}{start})"]
            case AttemptFailed():
                return [f"again: {_once(event.path, event.reason)}"]
            case Warned():
                return [f"warning: {event.message}"]
            case WeightsLoading():
                return [f"{LOADING}: {event.weights}"]
            case Forecast():
                return [event.message]
            case StageProgress() if time.monotonic() - self._last_steps >= STEPS_EVERY_S:
                self._last_steps = time.monotonic()
                return [f"{event.path}: {event.stage} {_steps(event, time.monotonic())}"]
            case Progress() if time.monotonic() - self._last_line > HEARTBEAT_S:
                return [_progress(event)]
            case StageFinished() if self._is_verbose:
                return [f"{event.path}: {event.stage} {event.seconds:.1f} s"]
        return []


class LogScreen(PlainScreen):
    """A log file: everything that plain lines tell, each with its time, and the end as well."""

    def __init__(self, file: TextIO) -> None:
        from rich.console import Console

        super().__init__(
            Console(file=cast("IO[str]", Patient(file)), highlight=False, no_color=True), is_verbose=True
        )
        self._file = file

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the file."""
        with contextlib.suppress(OSError):
            self._file.close()

    def show(self, event: Event) -> None:
        """Write down an event."""
        super().show(event)
        if isinstance(event, RunFinished):
            counts = (
                ", ".join(f"{count} {status}" for status, count in event.counts.items()) or "nothing done"
            )
            self.tell(f"exit code {int(event.exit_code)} after {duration(event.seconds)}: {counts}")

    def tell(self, line: str, *, style: str = "") -> None:
        """Write one line with its time."""
        # Not laid out: there is no style to it, and a run over ten thousand finished photos writes as many.
        self._console.file.write(f"{time.strftime('%Y-%m-%dT%H:%M:%S%z')} {display_name(line)}\n")
        self._console.file.flush()


class LiveScreen(PlainScreen):
    """A bar, the photos at work and their stages; failures scroll by above."""

    def __init__(self, console: Console) -> None:
        from rich.live import Live

        super().__init__(console, is_verbose=False)
        self._running: dict[str, tuple[str, float]] = {}
        self._steps: dict[str, tuple[StageProgress, float]] = {}
        self._progress: Progress | None = None
        self._finished = 0
        self._failed = 0
        self._live = Live(
            console=console,
            get_renderable=self._picture,
            refresh_per_second=FRAMES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        """Hide the cursor and begin to draw."""
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Show the cursor again, whatever happened."""
        self._live.stop()

    def show(self, event: Event) -> None:
        """Update the picture; failures and warnings are printed above it."""
        match event:
            case WeightsLoading():
                self._running[str(event.path)] = (LOADING, time.monotonic())
                return
            case StageStarted():
                self._running[str(event.path)] = (event.stage, time.monotonic())
                self._steps.pop(str(event.path), None)
                return
            case StageProgress():
                self._steps[str(event.path)] = (event, time.monotonic())
                return
            case Progress():
                self._progress = event
                return
            case AssetFinished():
                self._running.pop(str(event.path), None)
                self._steps.pop(str(event.path), None)
                self._finished += 1
                self._failed += event.status in FAILING
                if event.status not in FAILING and not event.warnings:
                    self._count += 1
                    return
            case AttemptFailed():
                self._running.pop(str(event.path), None)
        super().show(event)

    def _picture(self) -> RenderableType:
        """Draw the bar and the running photos."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        head = Table.grid(padding=(0, 2))
        done = f"{self._finished}/{self._total}"
        failed = Text(f"{self._failed} failed", style="red") if self._failed else Text("")
        speed = _speed(self._progress) if self._progress else ""
        bar = ProgressBar(total=max(self._total, 1), completed=self._finished, width=30)
        head.add_row(bar, done, failed, speed)
        rows = Table.grid(padding=(0, 2))
        # A copy: the run adds photos while another thread draws.
        for name, (stage, since) in list(self._running.items())[:SHOWN_RUNNING]:
            spent = duration(time.monotonic() - since)
            steps = self._steps.get(name)
            far = _steps(*steps) if steps else ""
            rows.add_row(Text(stage, style="cyan"), Text(spent), Text(display_name(name)), Text(far))
        return Group(head, rows)


def say(console: Console, text: str, *, style: str = "") -> None:
    """Print one line that may hold hostile names, as it is."""
    from rich.text import Text

    console.print(Text(display_name(text), style=style), soft_wrap=True)


def with_path(path: PurePosixPath, reason: str, *, code: str) -> str:
    """Path, cause, code and remedy of a failure, each once."""
    text = _once(path, reason)
    return text if f"[{code}]" in text else f"{text} [{code}]"


def _once(path: PurePosixPath, reason: str) -> str:
    """A reason with the path it is about, which it may name already."""
    return reason if reason.startswith(str(path)) else f"{path}: {reason}"


def show_summary(console: Console, event: RunFinished, *, retry: str) -> None:
    """Print the table that ends every run, and what may be done next.

    retry: the command that tries failed photos again.
    """
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2))
    for name in ("converted", "cached", "skipped", "failed", "quarantined", "conflict"):
        count = event.counts.get(name, 0)
        if count or name == "converted":
            # Whoever is in quarantine has crashed, and has a line of its own.
            others = Counter(event.failures)
            others.subtract({"crash": event.counts.get("quarantined", 0)})
            del others["conflict"]
            classes = sorted((kind, many) for kind, many in others.items() if many)
            kinds = ", ".join(f"{kind} {many}" for kind, many in classes)
            detail = f"({kinds})" if name == "failed" else ""
            table.add_row(name, Text(str(count), justify="right"), detail)
    if event.verdicts:
        table.add_row("verdicts", "", Text(verdicts_label(event.verdicts)))
    if event.weights:
        label = display_name(weights_label(event.weights, event.weights_digest))
        table.add_row("weights", "", Text(label))
    table.add_row("time", Text(f"{event.seconds:.1f} s", justify="right"), "")
    if event.seconds > 0 and event.counts.get("converted"):
        rate = event.counts["converted"] * 3600 / event.seconds
        table.add_row("per hour", Text(f"{rate:.0f}", justify="right"), "")
    for device, peak in sorted(event.peak_bytes.items()):
        where = "" if device == "cpu" else f"of {device} "
        table.add_row("memory", Text(f"{peak / 1e9:.1f} GB", justify="right"), f"{where}at most in a worker")
    console.print(table)
    if event.report is not None:
        say(console, f"contact sheet: {event.report}")
    # Photos that are to blame themselves fail again.
    may_retry = any(kind not in ("conflict", "input") for kind in event.failures)
    if event.left:
        say(console, f"{event.left} left: the same command again does what is left")
    elif _is_refused(event):
        show_refusal(console, event)
    elif event.exit_code and not event.failures and event.counts:
        say(console, "nothing is left to do")
    if may_retry:
        say(console, f"what failed can be tried once more: {retry}")


def show_refusal(console: Console, event: RunFinished) -> None:
    """Say why a run failed in which no photo did; otherwise nothing."""
    if _is_refused(event):
        told = f" ({verdicts_label(event.verdicts)})" if event.verdicts else ""
        say(console, f"--fail-on: there are assets with such a verdict{told}, see the contact sheet")


def _is_refused(event: RunFinished) -> bool:
    return event.exit_code == ExitCode.SOME_FAILED and not event.failures


def _verdict(event: AssetFinished) -> str:
    """What speaks against an asset; nothing where it passes."""
    if event.verdict is None or event.verdict.grade == "pass":
        return ""
    sentences = "; ".join(reason.sentence for reason in event.verdict.reasons)
    return f"; {event.verdict.grade}: {sentences}"


def _plan(event: Plan) -> str:
    """Say in one line what will be done."""
    parts = [f"{_count(event.photos, 'photo')}: {event.to_convert} to convert"]
    current = event.cached - event.stale
    parts += [f"{current} up to date"] if current else []
    parts += [f"{event.stale} kept as other settings made them"] if event.stale else []
    parts += [f"{event.skipped} skipped"] if event.skipped else []
    parts += [f"{event.failed_before} failed before"] if event.failed_before else []
    parts += [f"{event.quarantined_before} in quarantine"] if event.quarantined_before else []
    parts += [f"{event.conflicts} in conflict"] if event.conflicts else []
    again = {reason: count for reason, count in event.reasons.items() if reason != "new"}
    parts += [f"{count} because: {reason}" for reason, count in sorted(again.items())]
    line = ", ".join(parts) + (f"; {_count(event.workers, 'worker')}" if event.workers else "")
    return line + (
        f"; weights: {weights_label(event.weights, event.weights_digest)}" if event.weights else ""
    )


def _steps(event: StageProgress, told: float) -> str:
    """How far a photo is within its stage, and how long that will go on, counted down since it was told."""
    far = f"{event.done} of {event.of}"
    if event.done >= event.of:
        return f"{far}, almost done"
    left_s = -1.0 if event.eta_s is None else event.eta_s - (time.monotonic() - told)
    # A step that takes longer than foreseen leaves no time to tell.
    return f"{far}, {duration(left_s)} left" if left_s > 0 else far


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _progress(event: Progress) -> str:
    parts = [f"{event.done}/{event.total} done", f"{event.failed} failed", _speed(event)]
    return ", ".join(part for part in parts if part)


def _speed(event: Progress) -> str:
    """Photos an hour and the time left; nothing before there is a photo to tell them by."""
    if event.eta_s is None:
        return ""
    # A photo that takes minutes makes a rate of a few an hour, where the digit after the point counts.
    rate = f"{event.rate:.0f}" if event.rate >= 10 else f"{event.rate:.1f}"
    return f"{rate} an hour, {duration(event.eta_s)} left"
