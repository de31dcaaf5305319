"""`crm products`: photos of made-up products, and what they show, to try the program on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import JsonOption, say

if TYPE_CHECKING:
    from collections.abc import Iterator

    from crm_cli.learn.catalogue_files import Written


def products(
    folder: Annotated[Path, typer.Option("-o", "--out", help="Folder of the photos; continued where it is.")],
    count: Annotated[int, typer.Option("-n", "--count", min=1, help="How many photos.")],
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="Of the first; the others follow. Not one that trains, if unsaid."),
    ] = None,
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Only such products: mug, chair, …; repeat.")
    ] = None,
    size_px: Annotated[int, typer.Option(help="Side of the largest photos.")] = 1024,
    jobs: Annotated[int, typer.Option("-j", "--jobs", min=1, help="Photos at the same time.")] = 1,
    as_json: JsonOption = False,
) -> None:
    """Photograph made-up products, and write what each photo shows as a GLB beside it.

    Photos are in the folder, shapes in truth/, sizes in products.csv, everything else in truth.json.
    """
    from crm_cli.learn.catalogue import FIRST_SEED, plan
    from crm_cli.learn.catalogue_files import write_catalogue

    first = FIRST_SEED if seed is None else seed
    plans = plan(count=count, seed=first, families=family or (), size_px=size_px)
    made, kept = _show(write_catalogue(folder, plans, jobs=jobs), count)
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "made": made, "kept": kept}))
        return
    say(f"{folder}: {made} photos made, {kept} were there", to_stdout=True)


def _show(entries: Iterator[Written], count: int) -> tuple[int, int]:
    """Draw a bar on a terminal, one line a minute at most in a log; count what was made and what was kept."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    interval_s = 0.1 if is_terminal else 60
    kept = sum(
        entry.is_kept
        for entry in tqdm(entries, total=count, unit="photo", mininterval=interval_s, ascii=not is_terminal)
    )
    return count - kept, kept
