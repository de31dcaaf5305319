"""`crm convert`: what is asked for, handed to a run and followed to its end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from crm_cli.cli import flags, telling
from crm_cli.cli.console import EndpointOption, log_to_stderr
from crm_cli.cli.listening import listening
from crm_cli.cli.overrides import read_overrides
from crm_cli.errors import UsageError
from crm_cli.run.keeping import CACHE_SIZE, read_size


def convert(
    context: typer.Context,
    out: flags.Out,
    inputs: flags.Inputs = None,
    preset: flags.PresetName = "default",
    assignments: flags.Assignments = None,
    matting: flags.Matting = None,
    weights: flags.Weights = None,
    formats: flags.Formats = None,
    products: flags.Products = None,
    best_of: flags.BestOf = None,
    from_file: flags.FromFile = None,
    null: flags.Null = False,
    include: flags.Include = None,
    exclude: flags.Exclude = None,
    no_recursive: flags.NoRecursive = False,
    follow_symlinks: flags.FollowSymlinks = False,
    limit: flags.Limit = None,
    shard: flags.ShardText = None,
    keep_ext: flags.KeepExt = False,
    allow_empty: flags.AllowEmpty = False,
    overwrite: flags.Overwrite = False,
    skip_existing: flags.SkipExisting = False,
    keep_stale: flags.KeepStale = False,
    force_stage: flags.ForceStage = None,
    retry_failed: flags.RetryFailed = False,
    keep_going: flags.KeepGoing = True,
    max_failures: flags.MaxFailures = None,
    allow_failures: flags.AllowFailures = None,
    fail_on: flags.FailOn = None,
    dry_run: flags.DryRun = False,
    jobs: flags.Jobs = None,
    device: flags.Device = "auto",
    precision: flags.Precision = "auto",
    timeouts: flags.Timeouts = None,
    time_limit: flags.TimeLimit = None,
    grace: flags.Grace = "20s",
    wait_lock: flags.WaitLock = "0",
    max_mpixels: flags.MaxMpixels = 64.0,
    min_free: flags.MinFree = "auto",
    cache_size: flags.CacheSize = CACHE_SIZE,
    no_cache: flags.NoCache = False,
    endpoint_url: EndpointOption = "",
    no_report: flags.NoReport = False,
    junit: flags.Junit = None,
    as_json: telling.Json = False,
    events: telling.Events = None,
    printed: telling.Print = None,
    progress: telling.ProgressMode = "auto",
    quiet: telling.Quiet = False,
    verbose: telling.Verbose = 0,
    color: telling.Color = "auto",
    log_file: telling.LogFile = None,
) -> None:
    """Convert photos to 3D assets. Run it again to do what is missing."""
    from crm_cli.run.amounts import Share, read_duration
    from crm_cli.run.batch import convert as run_batch
    from crm_cli.run.lists import read_lists
    from crm_cli.run.options import PRODUCTION, RunOptions, load_suited
    from crm_cli.run.products import read_products
    from crm_cli.run.remote import check_endpoint, check_url, is_url, local_path
    from crm_cli.run.selection import Selection
    from crm_cli.run.shards import Shard

    told = telling.Telling(
        progress=progress, is_quiet=quiet, verbosity=verbose, as_json=as_json, events=events, printed=printed,
        color=color, log_file=log_file, endpoint=endpoint_url,
    )  # fmt: skip
    log_to_stderr(told.level)
    overrides = read_overrides(
        assignments or [], matting=matting, weights=weights, formats=formats, best_of=best_of
    )
    if not inputs and not from_file:
        raise UsageError(
            "nothing to convert", code="E_NOTHING_GIVEN", remedy="give photos, folders or --from-file"
        )
    if null and not from_file:
        raise UsageError("-0 without a list", code="E_LIST", remedy="it tells how to read --from-file")
    if overwrite and skip_existing:
        raise UsageError("--overwrite and --skip-existing: one or the other", code="E_FLAGS")
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
        products=read_products(products) if products is not None else (),
        preset_name=" ".join([preset, *(f"--set {assignment}" for assignment in assignments or [])]),
        device=device,
        jobs=jobs,
        precision=precision,
        deadlines_s=_deadlines(timeouts or []),
        max_mpixels=max_mpixels,
        cache_bytes=0 if no_cache else read_size(cache_size),
        overwrite=overwrite,
        skip_existing=skip_existing,
        keep_stale=keep_stale,
        force_stage=force_stage,
        retry_failed=retry_failed,
        fail_fast=not keep_going,
        max_failures=Share.from_text(max_failures, flag="--max-failures") if max_failures else None,
        allow_failures=Share.from_text(allow_failures, flag="--allow-failures") if allow_failures else None,
        fail_on=fail_on,
        time_limit_s=read_duration(time_limit, flag="--time-limit") if time_limit else None,
        grace_s=read_duration(grace, flag="--grace"),
        min_free_bytes=None if min_free == "auto" else read_size(min_free),
        dry_run=dry_run,
        allow_empty=allow_empty,
        report=not no_report,
        junit=junit,
        wait_lock_s=read_duration(wait_lock, flag="--wait-lock"),
    )
    engine = context.obj or PRODUCTION
    resolved = load_suited(preset, overrides, engine)
    with listening() as stop:
        finished = told.follow(run_batch(resolved.preset, options, stop=stop, engine=engine), stop)
    raise typer.Exit(finished.exit_code)


def _deadlines(timeouts: Sequence[str]) -> dict[str, float]:
    """Read STAGE=TIME."""
    from crm_cli.run.amounts import read_duration

    table = {}
    for text in timeouts:
        stage, equals, time = text.partition("=")
        if not equals:
            raise UsageError(
                f"--timeout {text}: expected STAGE=TIME", code="E_TIMEOUT_FLAG", remedy="--timeout unwrap=10m"
            )
        table[stage.strip()] = read_duration(time, flag=f"--timeout {stage.strip()}")
        if not table[stage.strip()]:
            raise UsageError(f"--timeout {text}: leaves no time at all", code="E_TIMEOUT_FLAG")
    return table
