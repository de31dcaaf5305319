"""`crm schema`: what programs may rely on in the events of a run."""

from __future__ import annotations

import json

import typer


def schema() -> None:
    """Print the JSON Schema of the events that `convert --json` writes."""
    from crm_cli.run.schema import schema as event_schema

    typer.echo(json.dumps(event_schema(), indent=2))
