"""`crm report`: the contact sheet of a whole output folder."""

from __future__ import annotations

from crm_cli.cli.console import EndpointOption, OutArgument, say


def report(out: OutArgument, endpoint_url: EndpointOption = "") -> None:
    """Write the contact sheet and SHA256SUMS again, of everything in OUT, whichever runs it is from."""
    from crm_cli.run.elsewhere import opened
    from crm_cli.run.report import rewrite_report

    with opened(out, endpoint=endpoint_url, writes=True) as folder:
        counts = rewrite_report(folder)
    say(f"{counts.finished} finished, {counts.failed} failed", to_stdout=True)
    if counts.problem:
        say(f"warning: {counts.problem}", style="yellow")
    say(f"contact sheet: {out}/{counts.sheet.relative_to(folder)}", to_stdout=True)
