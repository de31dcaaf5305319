"""How every command speaks: messages on stderr, answers on stdout."""

from __future__ import annotations

import sys
from typing import IO, TYPE_CHECKING, Annotated, cast

import typer

if TYPE_CHECKING:
    from rich.console import Console

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]

COLORS = ("auto", "always", "never")

# An output folder, here or in an object store. No paths: those would make one slash of two.
OutArgument = Annotated[str, typer.Argument(metavar="OUT", help="An output folder of crm, or its URL.")]
EndpointOption = Annotated[
    str,
    typer.Option(metavar="URL", envvar="CRM_ENDPOINT_URL", help="Address of the object store's service."),
]


def open_console(*, to_stdout: bool = False, color: str = "auto") -> Console:
    """Where words go: stderr, or stdout for answers. color: one of COLORS; `auto` minds the environment."""
    from rich.console import Console

    from crm_cli.screen import Patient

    file = cast("IO[str]", Patient(sys.stdout if to_stdout else sys.stderr))
    if color == "always":
        return Console(file=file, highlight=False, color_system="standard", no_color=False)
    return Console(file=file, highlight=False, no_color=True if color == "never" else None)


def say(text: str, *, style: str = "", to_stdout: bool = False) -> None:
    """Print one message that may hold hostile names."""
    from crm_cli import screen

    screen.say(open_console(to_stdout=to_stdout), text, style=style)


def log_to_stderr(verbosity: int) -> None:
    """Show the library's log from the level that was asked for."""
    import logging

    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
