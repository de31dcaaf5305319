"""`crm verify`: whether an output folder holds what its records say."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import EndpointOption, JsonOption, OutArgument, say

if TYPE_CHECKING:
    from crm_cli.run.verify import Problem


def verify(
    out: OutArgument,
    deep: Annotated[bool, typer.Option("--deep", help="Read every file and compare its SHA-256.")] = False,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Take back what does not hold, so that the next convert redoes it."),
    ] = False,
    endpoint_url: EndpointOption = "",
    as_json: JsonOption = False,
) -> None:
    """Look whether every finished asset is as it was left."""
    from crm_cli.run.elsewhere import looked_at, said_out
    from crm_cli.run.keeping import size_words
    from crm_cli.run.verify import repair as mend
    from crm_cli.run.verify import verify as look
    from crm_cli.run.wire import to_plain

    with looked_at(out, endpoint=endpoint_url, mends=repair) as (folder, read):
        verdict = (mend if repair else look)(folder, deep=deep, read=read)
    if as_json:
        typer.echo(json.dumps({**to_plain(verdict), **said_out(out), "exit_code": verdict.exit_code}))
        raise typer.Exit(verdict.exit_code)
    for problem in verdict.problems:
        say(_in_words(problem), to_stdout=True)
    depth = f", {size_words(verdict.hashed_bytes)} read" if deep else ""
    counts = f"{verdict.assets} assets, {verdict.files} files{depth}"
    if not verdict.problems:
        say(f"{counts}: all as they were left", to_stdout=True)
        return
    repaired = sum(problem.is_repaired for problem in verdict.problems)
    say(f"{counts}: {len(verdict.problems)} not as they were left, {repaired} repaired", to_stdout=True)
    if not repair:
        say("`crm verify --repair` takes back what does not hold; the next convert redoes it")
    elif repaired < len(verdict.problems):
        say("what was not repaired is in the way: move it, or convert with --overwrite")
    raise typer.Exit(verdict.exit_code)


def _in_words(problem: Problem) -> str:
    """One line about one problem."""
    from crm_cli.run.verify import MEANINGS

    of = f" (of {problem.asset})" if problem.asset else ""
    end = "; repaired" if problem.is_repaired else ""
    return f"{problem.kind}: {problem.path}{of}: {MEANINGS[problem.kind]}{end}"
