"""`crm status`: what an output folder holds."""

from __future__ import annotations

import json

import typer

from crm_cli.cli.console import EndpointOption, JsonOption, OutArgument, say


def status(out: OutArgument, endpoint_url: EndpointOption = "", as_json: JsonOption = False) -> None:
    """Say what is finished and what failed, at any time."""
    from crm_cli.run.elsewhere import opened, said_out
    from crm_cli.run.status import status as read_status
    from crm_cli.run.wire import to_plain
    from crm_cli.screen import with_path

    with opened(out, endpoint=endpoint_url) as folder:
        standing = read_status(folder)
    if as_json:
        typer.echo(json.dumps({**to_plain(standing), **said_out(out)}))
        return
    say(f"{standing.finished} finished ({standing.low_confidence} with low confidence)", to_stdout=True)
    for label, count in standing.weights.items():
        say(f"{count} made with {label}", to_stdout=True)
    if standing.damaged:
        say(f"{standing.damaged} with files missing or changed; convert again to redo them", to_stdout=True)
    for failure in standing.failures:
        words = with_path(failure.asset, failure.message, code=failure.code)
        say(f"failed in {failure.stage}: {words}", to_stdout=True)
    if standing.is_running:
        say("a run is at work", to_stdout=True)
