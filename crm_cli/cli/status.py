"""`crm status`: what an output folder holds."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from crm_cli.cli.console import EndpointOption, JsonOption, OutArgument, say
from crm_cli.errors import UsageError

CsvOption = Annotated[bool, typer.Option("--csv", help="Print a table of all photos on stdout, as CSV.")]


def status(
    out: OutArgument,
    endpoint_url: EndpointOption = "",
    as_json: JsonOption = False,
    as_csv: CsvOption = False,
) -> None:
    """Say what is finished and what failed, at any time."""
    if as_json and as_csv:
        raise UsageError("--json and --csv: only one of them", code="E_OUTPUT_FORM")
    from crm_cli.run import table
    from crm_cli.run.elsewhere import opened, said_out
    from crm_cli.run.events import verdicts_label
    from crm_cli.run.status import status as read_status
    from crm_cli.run.wire import to_plain
    from crm_cli.screen import with_path

    with opened(out, endpoint=endpoint_url) as folder:
        if as_csv:
            # In bytes: a table is UTF-8 whatever the terminal speaks.
            typer.echo(table.as_csv(table.read_rows(folder)).encode("utf-8"), nl=False)
            return
        standing = read_status(folder)
    if as_json:
        typer.echo(json.dumps({**to_plain(standing), **said_out(out)}))
        return
    say(f"{standing.finished} finished ({standing.low_confidence} with low confidence)", to_stdout=True)
    if standing.verdicts:
        say(f"verdicts: {verdicts_label(standing.verdicts)} (--csv tells which and why)", to_stdout=True)
    verbs = {"approve": "approved", "reject": "rejected", "redo": "to be redone"}
    counts = [f"{standing.decided[verb]} {word}" for verb, word in verbs.items() if verb in standing.decided]
    if counts:
        say(", ".join(counts), to_stdout=True)
    for label, count in standing.weights.items():
        say(f"{count} made with {label}", to_stdout=True)
    if standing.damaged:
        say(f"{standing.damaged} with files missing or changed; convert again to redo them", to_stdout=True)
    for failure in standing.failures:
        words = with_path(failure.asset, failure.message, code=failure.code)
        how = "in quarantine since it crashed" if failure.is_quarantined else "failed"
        say(f"{how} in {failure.stage}: {words}", to_stdout=True)
    if standing.is_running:
        say("a run is at work", to_stdout=True)
