"""`crm retry`: try the failed photos again, as they were asked for."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli import telling
from crm_cli.cli.console import EndpointOption, OutArgument, log_to_stderr, say
from crm_cli.cli.listening import listening
from crm_cli.errors import ExitCode, NoInput, UsageError

if TYPE_CHECKING:
    from crm_cli.run.options import Engine
    from crm_cli.run.retry import Again


def retry(
    context: typer.Context,
    out: OutArgument,
    classes: Annotated[
        list[str] | None,
        typer.Option(
            "--class", metavar="CLASS", help="Only failures of this class, as timeout or oom; repeat."
        ),
    ] = None,
    id_file: Annotated[
        str | None,
        typer.Option(
            "--id-file", metavar="FILE", help="Only photos listed in FILE by path or id; - is stdin."
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be tried again; write nothing.")
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
    """Try failed photos again, with the inputs, settings and options of the run in which they failed."""
    from crm_cli.run.elsewhere import opened
    from crm_cli.run.retry import plan_retry

    told = telling.Telling(
        progress=progress, is_quiet=quiet, verbosity=verbose, as_json=as_json, events=events, printed=printed,
        color=color, log_file=log_file, endpoint=endpoint_url,
    )  # fmt: skip
    log_to_stderr(told.level)
    names = None if id_file is None else _names(id_file)
    with opened(out, endpoint=endpoint_url) as folder:
        planned = plan_retry(folder, classes=classes or (), names=names, dry_run=dry_run)
    if not planned:
        say("nothing to try again")
    raise typer.Exit(convert_again(planned, out, told, context.obj, endpoint=endpoint_url))


def convert_again(
    planned: Sequence[Again],
    out: str,
    told: telling.Telling,
    engine: Engine | None,
    *,
    endpoint: str,
    times: Mapping[str, int] | None = None,
) -> ExitCode:
    """Make runs once more, one after the other, until something ends them; returns the exit code of all.

    times: how often each asset was redone, by id; None: as the folder keeps it.
    """
    from crm_cli.run.batch import convert as run_batch
    from crm_cli.run.options import PRODUCTION
    from crm_cli.run.remote import is_url

    if is_url(out):
        planned = [again.placed(out, endpoint=endpoint) for again in planned]
    exit_code = ExitCode.DONE
    with listening() as stop:
        for again in planned:
            run = run_batch(
                again.preset,
                again.options,
                stop=stop,
                engine=engine or PRODUCTION,
                only=again.photos,
                times=times,
            )
            try:
                finished = told.follow(run, stop)
            except NoInput as error:  # other photos may still be there
                say(f"error: {error}", style="red")
                exit_code = error.exit_code
                continue
            exit_code = ExitCode(finished.exit_code or exit_code)
            if finished.exit_code not in (ExitCode.DONE, ExitCode.SOME_FAILED):
                break
    return exit_code


def _names(file: str) -> tuple[str, ...]:
    """Read a list of ids or paths."""
    from crm_cli.run.retry import read_names

    try:
        return read_names(sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes())
    except OSError as error:
        raise UsageError(
            f"--id-file {file}: {error.strerror}", code="E_LIST", remedy="check the path"
        ) from error
