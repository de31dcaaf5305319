"""`crm reproduce`: an asset made again from its photo, and compared."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Annotated

import typer

from crm_cli.cli import telling
from crm_cli.cli.console import JsonOption, say
from crm_cli.cli.listening import listening
from crm_cli.cli.show import FileArgument
from crm_cli.errors import ExitCode


def reproduce(
    context: typer.Context,
    file: FileArgument,
    photo: Annotated[Path, typer.Option("--photo", metavar="FILE", help="The photo it was made of.")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="Keep what is made here; else it is thrown away.")
    ] = None,
    weights: Annotated[
        str,
        typer.Option(metavar="NAME|FOLDER", help="Where its weights are, if neither shipped nor fetched."),
    ] = "",
    device: Annotated[
        str, typer.Option(metavar="DEVICE", help="Another device than it was made on: cpu, cuda.")
    ] = "",
    as_json: JsonOption = False,
    progress: telling.ProgressMode = "auto",
) -> None:
    """Make an asset again from its photo and what its file says, and compare byte for byte."""
    from crm_cli.run.batch import convert
    from crm_cli.run.options import PRODUCTION
    from crm_cli.run.reproduce import compare, plan_recreation

    told = telling.Telling(progress=progress, is_quiet=True)
    with tempfile.TemporaryDirectory(prefix="crm-reproduce-") as scratch:
        wanted = plan_recreation(file, photo, scratch=Path(scratch), out=out, weights=weights, device=device)
        for warning in wanted.warnings:
            say(f"warning: {warning}", style="yellow")
        with listening() as stop:
            run = convert(wanted.preset, wanted.options, stop=stop, engine=context.obj or PRODUCTION)
            finished = told.follow(run, stop)
        if finished.exit_code:
            raise typer.Exit(finished.exit_code)
        likeness = compare(wanted)
    for warning in likeness.warnings[len(wanted.warnings) :]:
        say(f"warning: {warning}", style="yellow")
    if as_json:
        plain = {
            "result": "identical" if likeness.is_identical else "differs",
            "differences": likeness.differences,
            "warnings": likeness.warnings,
            "sha256": wanted.sha256,
        }
        typer.echo(json.dumps(plain))
    elif likeness.is_identical:
        say("identical", to_stdout=True)
    else:
        say(f"differs: {'; '.join(likeness.differences)}", to_stdout=True)
    if not likeness.is_identical:
        raise typer.Exit(ExitCode.SOME_FAILED)
