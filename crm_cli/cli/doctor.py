"""`crm doctor`: what this machine can do."""

from __future__ import annotations

import typer

from crm_cli.cli.console import say
from crm_cli.errors import ExitCode


def doctor() -> None:
    """Say what this machine can do, and how to make it do more."""
    from crm_cli.doctor import examine

    report = examine()
    for line in report.lines:
        say(line, to_stdout=True)
    if not report.can_convert:
        raise typer.Exit(ExitCode.ENVIRONMENT)
