"""`crm convert`: what is asked for, handed to a run and followed to its end."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import (
    EndpointOption,
    EventsOption,
    ProgressOption,
    QuietOption,
    VerboseOption,
    log_to_stderr,
    open_console,
    say,
)
from crm_cli.cli.listening import listening
from crm_cli.cli.overrides import read_overrides
from crm_cli.errors import UsageError
from crm_cli.run.keeping import CACHE_SIZE, read_size

if TYPE_CHECKING:
    from rich.console import Console

    from crm_cli.run.events import Event, RunFinished


def convert(
    context: typer.Context,
    out: Annotated[
        str, typer.Option("-o", "--out", help="Output folder, or its URL; mirrors the input's folders.")
    ],
    inputs: Annotated[
        list[str] | None,
        typer.Argument(metavar="INPUT...", help="Photos, and folders searched for photos; or their URLs."),
    ] = None,
    preset: Annotated[
        str, typer.Option("-p", "--preset", envvar="CRM_PRESET", help="Name of a preset, or a file.yaml.")
    ] = "default",
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting of the preset.")
    ] = None,
    matting: Annotated[
        str | None,
        typer.Option(envvar="CRM_MATTING", help="Who finds the subject: auto, alpha, grabcut, rembg, none."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option(envvar="CRM_WEIGHTS", help="auto, embedded, published, or a folder.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", envvar="CRM_FORMAT", help="glb, obj, usd; repeat, or separate by commas."),
    ] = None,
    from_file: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="More photos and folders, one a line; - is stdin."),
    ] = None,
    null: Annotated[bool, typer.Option("-0", "--null", help="Lists end their paths with NUL bytes.")] = False,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Take only photos that match.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave out what matches.")] = None,
    no_recursive: Annotated[bool, typer.Option("--no-recursive", help="Do not search sub-folders.")] = False,
    follow_symlinks: Annotated[
        bool,
        typer.Option(
            "--follow-symlinks", help="Take links that lead out of the input, and search linked folders."
        ),
    ] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N photos only.")] = None,
    shard: Annotated[
        str | None, typer.Option(metavar="I/N", help="Take part I of N, for N machines with one OUT.")
    ] = None,
    keep_ext: Annotated[
        bool, typer.Option("--keep-ext", help="Name assets a.jpg.glb, so that a.jpg and a.png can both stay.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace files in OUT that crm did not write.")
    ] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try photos again that were refused before.")
    ] = False,
    fail_fast: Annotated[bool, typer.Option("--fail-fast", help="Stop after the first failure.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and why; write nothing.")
    ] = False,
    jobs: Annotated[
        int | None, typer.Option("-j", "--jobs", min=1, envvar="CRM_JOBS", help="Photos at the same time.")
    ] = None,
    device: Annotated[str, typer.Option(envvar="CRM_DEVICE", help="auto, cpu, cuda, or cuda:0,1.")] = "auto",
    precision: Annotated[
        str,
        typer.Option(envvar="CRM_PRECISION", help="auto, float32, bfloat16 or float16, for large networks."),
    ] = "auto",
    timeouts: Annotated[
        list[str] | None,
        typer.Option(
            "--timeout",
            metavar="STAGE=SECONDS",
            help="Change a stage's deadline, counted from its start or its last sign of life.",
        ),
    ] = None,
    max_mpixels: Annotated[
        float,
        typer.Option(min=0.01, envvar="CRM_MAX_MPIXELS", help="Refuse photos of more million pixels."),
    ] = 64.0,
    cache_size: Annotated[
        str,
        typer.Option(
            envvar="CRM_CACHE_SIZE",
            metavar="SIZE",
            help="What OUT may keep of imagined views, so that other textures or formats need no network.",
        ),
    ] = CACHE_SIZE,
    no_cache: Annotated[
        bool, typer.Option("--no-cache", help="Neither keep views nor use kept ones.")
    ] = False,
    wait_lock: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Wait for another run in OUT to end.")
    ] = 0.0,
    endpoint_url: EndpointOption = "",
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="No photo is no error.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no contact sheet.")] = False,
    as_json: EventsOption = False,
    progress: ProgressOption = "auto",
    quiet: QuietOption = False,
    verbose: VerboseOption = 0,
) -> None:
    """Convert photos to 3D assets. Run it again to do what is missing."""
    from crm_cli.run.batch import convert as run_batch
    from crm_cli.run.lists import read_lists
    from crm_cli.run.options import PRODUCTION, RunOptions, load_suited
    from crm_cli.run.remote import check_endpoint, check_url, is_url, local_path
    from crm_cli.run.shards import Shard
    from crm_cli.run.walk import Selection

    log_to_stderr(-1 if quiet else verbose)
    overrides = read_overrides(assignments or [], matting=matting, weights=weights, formats=formats)
    if not inputs and not from_file:
        raise UsageError(
            "nothing to convert", code="E_NOTHING_GIVEN", remedy="give photos, folders or --from-file"
        )
    if null and not from_file:
        raise UsageError("-0 without a list", code="E_LIST", remedy="it tells how to read --from-file")
    options = RunOptions(
        inputs=tuple(local_path(given) for given in inputs or () if not is_url(given)),
        urls=tuple(check_url(given) for given in inputs or () if is_url(given)),
        listed=read_lists(from_file or (), is_null=null),
        out=Path() if is_url(out) else local_path(out),
        place=check_url(out) if is_url(out) else "",
        endpoint=check_endpoint(endpoint_url),
        select=Selection(
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            is_recursive=not no_recursive,
            limit=limit,
            shard=Shard.from_text(shard) if shard is not None else None,
            follow_symlinks=follow_symlinks,
        ),
        keep_ext=keep_ext,
        preset_name=" ".join([preset, *(f"--set {assignment}" for assignment in assignments or [])]),
        device=device,
        jobs=jobs,
        precision=precision,
        deadlines_s=_deadlines(timeouts or []),
        max_mpixels=max_mpixels,
        cache_bytes=0 if no_cache else read_size(cache_size),
        overwrite=overwrite,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        dry_run=dry_run,
        allow_empty=allow_empty,
        report=not no_report,
        wait_lock_s=wait_lock,
    )
    engine = context.obj or PRODUCTION
    resolved = load_suited(preset, overrides, engine)
    with listening() as stop:
        events = run_batch(resolved.preset, options, stop=stop, engine=engine)
        finished = follow(events, progress=progress, verbosity=-1 if quiet else verbose, as_json=as_json)
    raise typer.Exit(finished.exit_code)


def follow(events: Iterator[Event], *, progress: str, verbosity: int, as_json: bool) -> RunFinished:
    """Show events until the last one."""
    from crm_cli.run.events import AssetPlanned, RunFinished
    from crm_cli.screen import ProgressMode, open_screen, show_summary

    modes: Sequence[ProgressMode] = ("auto", "bar", "plain", "none")
    mode = next((mode for mode in modes if mode == progress), None)
    if mode is None:
        raise UsageError(
            f"--progress {progress}: no such way", code="E_PROGRESS", remedy=f"one of {', '.join(modes)}"
        )
    console = open_console()
    writes = as_json
    is_dry = False
    with open_screen(mode, console, verbosity=verbosity) as screen:
        for event in events:
            if writes:
                writes = _write_line(event.as_json(), console)
            screen.show(event)
            is_dry |= isinstance(event, AssetPlanned)
    assert isinstance(event, RunFinished)
    if verbosity >= 0 and not is_dry:
        show_summary(console, event)
    return event


def _write_line(line: str, console: Console) -> bool:
    """Write to stdout; False once nobody reads it any more, which is no reason to end a run."""
    try:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Python flushes stdout once more at exit, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("warning: stdout was closed; going on without events", style="yellow")
        return False
    return True


def _deadlines(timeouts: Sequence[str]) -> dict[str, float]:
    """Read STAGE=SECONDS."""
    table = {}
    for text in timeouts:
        stage, _, seconds = text.partition("=")
        try:
            table[stage.strip()] = float(seconds)
        except ValueError as error:
            raise UsageError(
                f"--timeout {text}: expected STAGE=SECONDS",
                code="E_TIMEOUT_FLAG",
                remedy="--timeout unwrap=600",
            ) from error
        if not 0 < table[stage.strip()] < float("inf"):
            raise UsageError(f"--timeout {text}: not a number of seconds", code="E_TIMEOUT_FLAG")
    return table
