"""How a run is told: on the screen, to programs, in files. And the flags that say so."""

from __future__ import annotations

import io
import os
import select
import shlex
import sys
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, BinaryIO

import typer

from crm_cli.cli.console import COLORS, open_console, say
from crm_cli.errors import CrmError, UsageError

if TYPE_CHECKING:
    from crm_cli.run.events import Event, RunFinished
    from crm_cli.run.options import Stop
    from crm_cli.screen import LogScreen

STDOUT = "-"

PRINTED = ("path", "path0")

PATIENCE_S = 0.2
"""How soon a second interrupt is noticed while a reader sleeps."""

Json = Annotated[bool, typer.Option("--json", help="Print events on stdout, one JSON object a line.")]
Events = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|-", envvar="CRM_EVENTS", help="Write events to a file; - is stdout, as --json."
    ),
]
Print = Annotated[
    str | None,
    typer.Option(
        "--print", metavar="path|path0", help="Print the files of every asset; path0 ends with NUL."
    ),
]
ProgressMode = Annotated[str, typer.Option(envvar="CRM_PROGRESS", help="auto, bar, plain or none.")]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Print failures only.")]
Verbose = Annotated[int, typer.Option("-v", "--verbose", count=True, help="Print more; -vv even more.")]
Color = Annotated[str, typer.Option(envvar="CRM_COLOR", help="auto, always or never.")]
LogFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", envvar="CRM_LOG_FILE", help="Append to a log; OUT/.crm/runs has one of each run."
    ),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """What is told of a run, how, and to whom."""

    progress: str = "auto"
    is_quiet: bool = False
    verbosity: int = 0
    as_json: bool = False
    events: str | None = None
    printed: str | None = None
    color: str = "auto"
    log_file: Path | None = None
    endpoint: str = ""
    """Of an object store; named in commands that are suggested."""

    def __post_init__(self) -> None:
        """Refuse what there is not, and two things on one stdout."""
        from crm_cli.screen import PROGRESS_MODES

        _one_of("--progress", self.progress, PROGRESS_MODES, code="E_PROGRESS")
        _one_of("--color", self.color, COLORS, code="E_COLOR")
        if self.printed is not None:
            _one_of("--print", self.printed, PRINTED, code="E_PRINT")
            if self.as_json or self.events == STDOUT:
                raise UsageError(
                    "--print and events: both on stdout", code="E_STDOUT", remedy="give --events a file"
                )

    @property
    def level(self) -> int:
        """-1 for failures alone, then 0, 1, 2."""
        return -1 if self.is_quiet else self.verbosity

    def follow(self, events: Generator[Event, None, None], stop: Stop) -> RunFinished:
        """Tell of events until the last one, and return it. stop: whether anybody still waits for us."""
        from crm_cli.run.events import AssetPlanned, RunFinished, RunStarted
        from crm_cli.screen import open_screen, show_refusal, show_summary

        console = open_console(color=self.color)
        is_dry = False
        out: Path | str | None = None
        with ExitStack() as stack:
            # Whatever goes wrong here, the run must end its workers and give its lock back.
            stack.enter_context(closing(events))
            pipes = [stack.enter_context(pipe) for pipe in self._pipes(stop)]
            logs = [stack.enter_context(_open_log(self.log_file))] if self.log_file else []
            screen = stack.enter_context(open_screen(self.progress, console, verbosity=self.level))
            try:
                for event in events:
                    if isinstance(event, RunStarted):
                        out = event.out
                        if isinstance(out, Path):  # in an object store nothing can be appended to
                            log_file = out / ".crm" / "runs" / event.run / "log.txt"
                            with suppress(UsageError):  # its events are kept all the same
                                logs.append(stack.enter_context(_open_log(log_file)))
                    for pipe in pipes:
                        pipe.write(event)
                    for log in logs:
                        log.show(event)
                    screen.show(event)
                    is_dry |= isinstance(event, AssetPlanned)
            except CrmError as error:
                for log in logs:
                    log.tell(f"error: {error}")
                raise
        assert isinstance(event, RunFinished)
        if self.level >= 0 and not is_dry:
            show_summary(console, event, retry=self._retry(out))
        else:
            show_refusal(console, event)
        return event

    def _retry(self, out: Path | str | None) -> str:
        """The command that tries failed photos again."""
        words = ["crm", "retry", str(out), *(["--endpoint-url", self.endpoint] if self.endpoint else [])]
        return shlex.join(words)

    def _pipes(self, stop: Stop) -> Iterator[_Pipe]:
        """Where programs listen."""
        stdout = getattr(sys.stdout, "buffer", None)  # None where it was closed before we began
        if self.as_json or self.events == STDOUT:
            yield _Pipe("stdout", stdout, stop, is_ours=False)
        if self.events is not None and self.events != STDOUT:
            yield _Pipe(self.events, _open(Path(self.events), flag="--events"), stop)
        if self.printed is not None:
            end = b"\0" if self.printed == "path0" else b"\n"
            yield _Paths("stdout", stdout, stop, is_ours=False, end=end)


class _Pipe:
    """Writes events for a program, until nobody reads them any more: that is no reason to end a run."""

    def __init__(self, name: str, stream: BinaryIO | None, stop: Stop, *, is_ours: bool = True) -> None:
        self._name = name
        self._stream = stream
        self._stop = stop
        self._is_ours = is_ours
        self._has_reader = stream is not None

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours and self._stream is not None:
            self._stream.close()

    def write(self, event: Event) -> None:
        """Write what a program is told of an event."""
        data = self._data(event) if self._has_reader else b""
        if not data or self._stream is None:
            return
        try:
            if self._waits(self._stream):
                self._stream.write(data)
                self._stream.flush()
        except BrokenPipeError:
            self._give_up("was closed")
        except OSError as error:
            self._give_up(f"cannot be written ({error.strerror})")

    def _data(self, event: Event) -> bytes:
        return event.as_json().encode("ascii") + b"\n"

    def _waits(self, stream: BinaryIO) -> bool:
        """Whether the reader takes more: who interrupts twice does not want to wait for one that sleeps."""
        try:
            number = stream.fileno()
        except OSError:  # no real file, as in a test
            return True
        while True:
            is_urgent = self._stop.is_urgent
            if select.select([], [number], [], 0 if is_urgent else PATIENCE_S)[1]:
                return True
            if is_urgent:
                return False

    def _give_up(self, why: str) -> None:
        """Go on without."""
        from crm_cli.screen import silence

        if self._stream is not None:
            silence(self._stream)
        self._has_reader = False
        say(f"warning: {self._name} {why}; going on without", style="yellow")


class _Paths(_Pipe):
    """Writes the files of finished assets, as bytes: names leave as they came."""

    def __init__(
        self, name: str, stream: BinaryIO | None, stop: Stop, *, is_ours: bool = True, end: bytes
    ) -> None:
        super().__init__(name, stream, stop, is_ours=is_ours)
        self._end = end
        self._out: Path | str = ""

    def _data(self, event: Event) -> bytes:
        from crm_cli.run.events import AssetFinished, RunStarted

        if isinstance(event, RunStarted):
            self._out = event.out
        if not isinstance(event, AssetFinished):
            return b""
        return b"".join(os.fsencode(f"{self._out}/{path}") + self._end for path in event.outputs)


def _open_log(path: Path) -> LogScreen:
    from crm_cli.screen import LogScreen

    file = _open(path, flag="--log-file")
    return LogScreen(io.TextIOWrapper(file, encoding="utf-8", errors="backslashreplace"))


def _open(path: Path, *, flag: str) -> BinaryIO:
    """Open a file to append to; UsageError where that cannot be."""
    try:
        return path.open("ab")
    except OSError as error:
        raise UsageError(
            f"{flag} {path}: cannot be written: {error.strerror}", code="E_LOG", remedy="choose another place"
        ) from error


def _one_of(flag: str, given: str, known: tuple[str, ...], *, code: str) -> None:
    if given not in known:
        raise UsageError(f"{flag} {given}: no such way", code=code, remedy=f"one of {', '.join(known)}")
