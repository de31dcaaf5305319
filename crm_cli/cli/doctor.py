"""`crm doctor`: what this machine can do, and under which licences."""

from __future__ import annotations

import itertools
import json
from typing import Annotated

import typer

from crm_cli.cli.console import JsonOption, open_console, say
from crm_cli.errors import ExitCode, UsageError


def doctor(
    licences: Annotated[
        bool, typer.Option("--licences", help="List the licences of everything that makes an asset.")
    ] = False,
    as_json: JsonOption = False,
) -> None:
    """Say what this machine can do, and how to make it do more."""
    if licences:
        _show_licences(as_json=as_json)
        return
    if as_json:
        raise UsageError("--json: only with --licences", code="E_FLAGS")
    from crm_cli.doctor import examine

    report = examine()
    for line in report.lines:
        say(line, to_stdout=True)
    if not report.can_convert:
        raise typer.Exit(ExitCode.ENVIRONMENT)


def _show_licences(*, as_json: bool) -> None:
    """Print the table, or the same for programs."""
    from crm_cli.licences import licences
    from crm_cli.run.wire import to_plain

    found = licences()
    if as_json:
        typer.echo(json.dumps([to_plain(one) for one in found]))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("name", "version"):
        table.add_column(heading, no_wrap=True)
    # Sentences need the room that is left in 80 columns: the kind is a line of its own.
    for heading in ("licence", "for"):
        table.add_column(heading, overflow="fold", ratio=1)
    for kind, group in itertools.groupby(found, key=lambda one: one.kind):
        table.add_row(Text(kind, style="bold"))
        for one in group:
            use = "; ".join(filter(None, (one.used_for, one.note)))
            cells = (f"  {one.name}", one.version or "–", one.licence, use)
            table.add_row(*(Text(cell) for cell in cells), style="yellow" if one.forbids_commerce else "")
    open_console(to_stdout=True).print(table)
