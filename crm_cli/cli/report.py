"""`crm report`: the contact sheet of a whole output folder."""

from __future__ import annotations

from crm_cli.cli.console import say
from crm_cli.cli.status import OutArgument


def report(out: OutArgument) -> None:
    """Write the contact sheet again, of everything in OUT, whichever runs it is from."""
    from crm_cli.run.report import rewrite_report

    counts = rewrite_report(out)
    say(f"{counts.finished} finished, {counts.failed} failed", to_stdout=True)
    say(f"contact sheet: {counts.sheet}", to_stdout=True)
