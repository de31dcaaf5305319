"""`crm gc`: throw away what nobody needs in an output folder."""

from __future__ import annotations

from collections import Counter
from typing import Annotated

import typer

from crm_cli.cli.console import EndpointOption, OutArgument, say
from crm_cli.run.keeping import CACHE_SIZE


def gc(
    out: OutArgument,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    cache_size: Annotated[
        str,
        typer.Option(metavar="SIZE", envvar="CRM_CACHE_SIZE", help="What the cache may hold: 20G, 512M, 0."),
    ] = CACHE_SIZE,
    keep_runs: Annotated[
        int, typer.Option(min=1, metavar="N", help="Keep logs and events of the last N runs.")
    ] = 20,
    endpoint_url: EndpointOption = "",
) -> None:
    """Free space: leftovers of killed runs, superseded records, old logs, the cache. Assets stay."""
    from crm_cli.errors import ExitCode
    from crm_cli.run.elsewhere import swept_up
    from crm_cli.run.gc import sweep
    from crm_cli.run.keeping import read_size, size_words

    cache_bytes = read_size(cache_size)
    with swept_up(out, endpoint=endpoint_url, dry_run=dry_run) as (folder, uploads):
        swept = sweep(folder, cache_bytes=cache_bytes, keep_runs=keep_runs, dry_run=dry_run)
    if dry_run:
        for one in swept.litter:
            say(f"{one.kind}: {one.path.relative_to(folder)} ({size_words(one.size_bytes)})", to_stdout=True)
        for kept in swept.cache.removed:
            say(f"cache: {kept.folder.relative_to(folder)} ({size_words(kept.size_bytes)})", to_stdout=True)
    kinds: list[str] = [one.kind for one in swept.litter]
    counts = Counter(kinds + ["cached"] * len(swept.cache.removed) + ["upload"] * uploads)
    what = ", ".join(f"{count} {_NAMES[kind][count != 1]}" for kind, count in counts.items()) or "nothing"
    say(
        f"{'would remove' if dry_run else 'removed'} {what}, {size_words(swept.freed_bytes)}; "
        f"the cache holds {size_words(swept.cache.kept_bytes)}",
        to_stdout=True,
    )
    for one in swept.left:
        say(f"error: {one.path}: cannot be removed", style="red")
    if swept.left:
        raise typer.Exit(ExitCode.OUTPUT)


_NAMES = {
    "scratch": ("leftover", "leftovers"),
    "record": ("old record", "old records"),
    "picture": ("picture", "pictures"),
    "run": ("run's log", "runs' logs"),
    "upload": ("unfinished upload", "unfinished uploads"),
    "cached": ("cached photo", "cached photos"),
}
