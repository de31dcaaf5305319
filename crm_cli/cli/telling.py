"""How a run is told: on the screen, to programs, in files. And the flags that say so."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from crm_cli.cli.console import COLORS, open_console, say
from crm_cli.errors import CrmError, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from crm_cli.run.events import Event, RunFinished
    from crm_cli.screen import LogScreen

STDOUT = "-"

PRINTED = ("path", "path0")

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

    def follow(self, events: Iterator[Event]) -> RunFinished:
        """Tell of events until the last one, and return it."""
        from crm_cli.run.events import AssetPlanned, RunFinished, RunStarted
        from crm_cli.screen import open_screen, show_summary

        console = open_console(color=self.color)
        is_dry = False
        out: Path | str | None = None
        with ExitStack() as stack:
            pipes = [stack.enter_context(pipe) for pipe in self._pipes(console)]
            logs = [stack.enter_context(_open_log(self.log_file))] if self.log_file else []
            screen = stack.enter_context(open_screen(self.progress, console, verbosity=self.level))
            try:
                for event in events:
                    if isinstance(event, RunStarted):
                        out = event.out
                        if isinstance(out, Path):  # in an object store nothing can be appended to
                            log_file = out / ".crm" / "runs" / event.run / "log.txt"
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
            show_summary(console, event, out=out)
        return event

    def _pipes(self, console: Console) -> Iterator[_Pipe]:
        """Where programs listen."""
        if self.as_json or self.events == STDOUT:
            yield _Pipe("stdout", sys.stdout, console, is_ours=False)
        if self.events is not None and self.events != STDOUT:
            yield _Pipe(self.events, _open(Path(self.events), flag="--events"), console)
        if self.printed is not None:
            end = "\0" if self.printed == "path0" else "\n"
            yield _Paths("stdout", sys.stdout, console, is_ours=False, end=end)


class _Pipe:
    """Writes events for a program, until nobody reads them any more: that is no reason to end a run."""

    def __init__(self, name: str, stream: TextIO, console: Console, *, is_ours: bool = True) -> None:
        self._name = name
        self._stream = stream
        self._console = console
        self._is_ours = is_ours
        self._is_open = True

    def __enter__(self) -> _Pipe:
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_ours:
            self._stream.close()

    def write(self, event: Event) -> None:
        """Write what a program is told of an event."""
        text = self._text(event) if self._is_open else ""
        if not text:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except BrokenPipeError:
            self._give_up("was closed")
        except OSError as error:
            self._give_up(f"cannot be written ({error.strerror})")

    def _text(self, event: Event) -> str:
        return event.as_json() + "\n"

    def _give_up(self, why: str) -> None:
        """Go on without: what is still in the stream's buffer must not fail again when it is closed."""
        self._is_open = False
        with Path(os.devnull).open("w", encoding="ascii") as nothing:
            os.dup2(nothing.fileno(), self._stream.fileno())
        say(f"warning: {self._name} {why}; going on without events", style="yellow")


class _Paths(_Pipe):
    """Writes the files of finished assets, relative to where the caller stands."""

    def __init__(
        self, name: str, stream: TextIO, console: Console, *, is_ours: bool = True, end: str
    ) -> None:
        super().__init__(name, stream, console, is_ours=is_ours)
        self._end = end
        self._out: Path | str = ""
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="surrogateescape")  # names are bytes, and leave as they came

    def _text(self, event: Event) -> str:
        from crm_cli.run.events import AssetFinished, RunStarted

        if isinstance(event, RunStarted):
            self._out = event.out
        if not isinstance(event, AssetFinished):
            return ""
        return "".join(f"{self._out}/{path}{self._end}" for path in event.outputs)


def _open_log(path: Path) -> LogScreen:
    from crm_cli.screen import LogScreen

    return LogScreen(_open(path, flag="--log-file"))


def _open(path: Path, *, flag: str) -> TextIO:
    """Open a file to append to; UsageError where that cannot be."""
    try:
        return path.open("a", encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(
            f"{flag} {path}: cannot be written: {error.strerror}", code="E_LOG", remedy="choose another place"
        ) from error


def _one_of(flag: str, given: str, known: tuple[str, ...], *, code: str) -> None:
    if given not in known:
        raise UsageError(f"{flag} {given}: no such way", code=code, remedy=f"one of {', '.join(known)}")
