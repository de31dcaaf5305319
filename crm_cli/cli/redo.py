"""`crm redo`: take a reviewer's decisions over, and convert again what is to be redone."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli import telling
from crm_cli.cli.console import EndpointOption, log_to_stderr, say
from crm_cli.cli.retry import convert_again
from crm_cli.errors import UsageError

if TYPE_CHECKING:
    from crm_cli.run.redo import Redo

MAX_NAMED = 10
"""Of photos that a decision does not fit so many are named."""


def redo(
    context: typer.Context,
    decisions: Annotated[
        str,
        typer.Argument(metavar="DECISIONS", help="decisions.json from the contact sheet; - is stdin."),
    ],
    out: Annotated[
        str, typer.Argument(metavar="[OUT]", help="The output folder of crm, or its URL; else this folder.")
    ] = ".",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be made again; write nothing.")
    ] = False,
    endpoint_url: EndpointOption = "",
    as_json: telling.Json = False,
    events: telling.Events = None,
    printed: telling.Print = None,
    progress: telling.ProgressMode = "auto",
    quiet: telling.Quiet = False,
    verbose: telling.Verbose = 0,
    color: telling.Color = "auto",
    log_file: telling.LogFile = None,
) -> None:
    """Take over decisions from the contact sheet; what is to be redone is made again from another seed."""
    from crm_cli.run.decisions import read_decisions
    from crm_cli.run.elsewhere import opened
    from crm_cli.run.redo import take_over
    from crm_cli.run.report import rewrite_report

    told = telling.Telling(
        progress=progress, is_quiet=quiet, verbosity=verbose, as_json=as_json, events=events, printed=printed,
        color=color, log_file=log_file, endpoint=endpoint_url,
    )  # fmt: skip
    log_to_stderr(told.level)
    read = read_decisions(_read(decisions), source=decisions)
    with opened(out, endpoint=endpoint_url, writes=not dry_run) as folder:
        taken = take_over(folder, read, dry_run=dry_run)
        if not dry_run and not taken.again:
            rewrite_report(folder)
    _tell(taken)
    # A dry run has kept nothing that the runs could read.
    raise typer.Exit(
        convert_again(taken.again, out, told, context.obj, endpoint=endpoint_url, times=taken.times)
    )


def _read(file: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}", code="E_DECISIONS", remedy="check the path") from error


def _tell(taken: Redo) -> None:
    """Say what counts now, and what could not."""
    words = {"approve": "approved", "reject": "rejected", "redo": "to be redone", "none": "undecided again"}
    counts = [f"{taken.taken[verb]} {word}" for verb, word in words.items() if taken.taken.get(verb)]
    say(", ".join(counts) or "no decision to take over")
    for names, problem in (
        (taken.unknown, "no such photo in this folder"),
        (taken.outdated, "was made anew since it was looked at; left as it is"),
    ):
        for name in names[:MAX_NAMED]:
            say(f"warning: {name}: {problem}", style="yellow")
        if len(names) > MAX_NAMED:
            say(f"warning: {len(names) - MAX_NAMED} more: {problem}", style="yellow")
