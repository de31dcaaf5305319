"""`crm weights`: which there are, and how the published ones come to this machine."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crm_cli.cli.console import JsonOption, say
from crm_cli.cli.listening import leaving
from crm_cli.cli.meter import metering
from crm_cli.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from crm_cli.models.weights import Known, WeightsSet

SHOWN_DIGITS = 12

HELP = """Fetch, convert, combine, check and list weights.

Converted weights are kept in ~/.local/share/crm/weights, or where CRM_WEIGHTS_HOME says; downloads in the
hub's cache, see HF_HOME.
"""

weights_app = typer.Typer(help=HELP, no_args_is_help=True)

RepositoryOption = Annotated[
    str | None,
    typer.Option("--repo", metavar="OWNER/NAME", help="Repository on the hub; without it, the authors' own."),
]
RevisionOption = Annotated[str, typer.Option(help="Branch, tag or commit there.")]
ArchitectureOption = Annotated[
    str, typer.Option(help="What the networks are built like: release, or miniature, which is for tests.")
]
OutOption = Annotated[
    Path | None,
    typer.Option("-o", "--out", help="Folder to write; without it, these become the published weights."),
]


@weights_app.command("list")
def list_weights(as_json: JsonOption = False) -> None:
    """Name all weights, their state, and which `auto` takes."""
    from crm_cli.models.weights import known

    rows = [_row(one) for one in known()]
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        mark = "*" if row["is_default"] else " "
        words = f"; {row['problem']}" if row["problem"] else _details(row)
        say(f"{mark} {row['name']}: {row['state']}{words}", to_stdout=True)
    say("* is what --weights auto takes", to_stdout=True)


@weights_app.command()
def fetch(
    repository: RepositoryOption = None,
    revision: RevisionOption = "main",
    download_only: Annotated[
        bool, typer.Option("--download-only", help="Leave the files in the hub's cache as they are.")
    ] = False,
    architecture: ArchitectureOption = "release",
) -> None:
    """Download the published weights, check and convert them.

    The hub's own variables are obeyed: HF_HOME, HF_TOKEN, HF_ENDPOINT, HF_HUB_OFFLINE. A download that
    was interrupted goes on where it stopped.
    """
    from crm_cli.models import hub

    repository = hub.REPOSITORY if repository is None else _full_name(repository)
    there = None if download_only else _published_from(repository, revision, architecture)
    if there is not None:
        _show(there)
        return
    # What a conversion would fail with is told before the first of many bytes.
    converted = None if download_only else _writable_place(architecture)
    with leaving(), metering() as progress:
        files = hub.fetch(repository=repository, revision=revision, converted=converted, progress=progress)
    if download_only:
        for file in files:
            say(str(file), to_stdout=True)
        return
    _convert(files, out=None, architecture=architecture)


@weights_app.command()
def convert(
    sources: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="SOURCE",
            help="The three published files, or a folder of them; without it, what `fetch` has downloaded.",
        ),
    ] = None,
    out: OutOption = None,
    architecture: ArchitectureOption = "release",
    clip: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CLIP, where the files are without it.")
    ] = None,
    vae: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The autoencoder, where the files are without it.")
    ] = None,
    repository: RepositoryOption = None,
    revision: RevisionOption = "main",
) -> None:
    """Turn the published files into weights for `crm convert`."""
    from crm_cli.models import hub

    files = sources
    repository = hub.REPOSITORY if repository is None else _full_name(repository)
    if not files:
        with metering() as progress:
            files = hub.fetched(repository=repository, revision=revision, progress=progress)
    if files is None:
        raise EnvironmentProblem(
            f"{repository}@{revision}: not downloaded",
            code="E_WEIGHTS_MISSING",
            remedy="run `crm weights fetch`, or name the folder of the files",
        )
    _convert(files, out=out, architecture=architecture, clip=clip, vae=vae)


@weights_app.command()
def combine(
    files: Annotated[
        list[Path], typer.Argument(metavar="FILE", help="Networks, as `crm train --ship` writes them.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Folder to write, for --weights.")],
    base: Annotated[
        str | None,
        typer.Option(
            "--with",
            metavar="WEIGHTS",
            help="What has the others: embedded, published, a folder; unsaid: what they were built for.",
        ),
    ] = None,
) -> None:
    """Put networks that were trained alone beside the others of a set."""
    from crm_cli.models.combine import combine as combine_files

    with leaving(), metering() as progress:
        made = combine_files(files, out, base=base, progress=progress)
    _show(made)


@weights_app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="NAME|DIR", help="Which weights; without it, all that are there."),
    ] = None,
) -> None:
    """Read every byte and compare digests, names and shapes."""
    from crm_cli.models import weights
    from crm_cli.models.loading import require_fit

    for name in names or _names_there():
        found = weights.find(name)
        with metering() as progress:
            weights.verify(found, progress)
        require_fit(found)
        _show(found)


def _full_name(repository: str) -> str:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repository):
        raise UsageError(
            f"--repo {repository}: not the name of a repository",
            code="E_HUB_NAME",
            remedy="--repo OWNER/NAME",
        )
    return repository


def _writable_place(architecture: str) -> Path:
    """Where the published weights would be written, or raise why they cannot be."""
    from crm_cli.models.convert import place_for
    from crm_cli.models.shards import require_writable
    from crm_cli.models.weights import home

    place = place_for(home() / "published", architecture)
    require_writable(place)
    return place


def _convert(
    files: Sequence[Path],
    *,
    out: Path | None,
    architecture: str,
    clip: Path | None = None,
    vae: Path | None = None,
) -> None:
    from crm_cli.models.convert import convert as convert_files
    from crm_cli.models.weights import home

    folder = out or home() / "published"
    with leaving(), metering() as progress:
        made = convert_files(files, folder, architecture=architecture, clip=clip, vae=vae, progress=progress)
    _show(made)


def _published_from(repository: str, revision: str, architecture: str) -> WeightsSet | None:
    """The published weights, if they are whole and were converted from the files of a repository."""
    from crm_cli.models import hub
    from crm_cli.models.weights import MANIFEST, find, require_intact

    try:
        found = find("published")
        require_intact(found)
        source = json.loads((found.directory / MANIFEST).read_bytes())["source"]
        digests = {name: source[name]["sha256"] for name in hub.DIGESTS}
    except (EnvironmentProblem, OSError, ValueError, KeyError, TypeError):
        return None
    if found.architecture != architecture:
        return None
    if repository == hub.REPOSITORY:
        wanted = dict(hub.DIGESTS)
    else:
        wanted = hub.digests_of(repository=repository, revision=revision)
    return found if digests == wanted else None


def _names_there() -> list[str]:
    """Names of all weights but those that were never put here."""
    from crm_cli.models.weights import known

    return [one.name for one in known() if one.problem is None or one.problem.code != "E_WEIGHTS_MISSING"]


def _row(one: Known) -> dict[str, Any]:
    """One set of weights in plain values."""
    found = one.weights
    state, problem = _state(one)
    return {
        "name": one.name,
        "state": state,
        "problem": problem,
        "is_default": one.is_default,
        "directory": str(one.directory),
        "architecture": found.architecture if found else None,
        "bytes": found.bytes if found else None,
        "digest": found.digest if found else None,
    }


def _state(one: Known) -> tuple[str, str | None]:
    """A word for programs, and for people why and what to do."""
    if one.problem is None:
        return "ready", None
    if one.problem.code != "E_WEIGHTS_MISSING":
        return "broken", str(one.problem)
    if one.name != "published":
        return "missing", str(one.problem)
    if _is_downloaded():
        return "not converted", "run `crm weights convert`"
    return "not fetched", "run `crm weights fetch`"


def _is_downloaded() -> bool:
    """Whether all published files lie in the hub's cache, without a look at their bytes."""
    from crm_cli.models import hub

    try:
        return len(hub.cached()) == len(hub.DIGESTS)
    except EnvironmentProblem:
        # A list says what there is, whatever else is wrong with this machine.
        return False


def _details(row: dict[str, Any]) -> str:
    """Architecture, size, digest and place of weights that can be used."""
    from crm_cli.models.weights import in_words

    if row["digest"] is None:
        return ""
    size = in_words(row["bytes"])
    return f", {row['architecture']}, {size}, {row['digest'][:SHOWN_DIGITS]}, {row['directory']}"


def _show(found: WeightsSet) -> None:
    """One line about weights that were found right."""
    row = {"architecture": found.architecture, "bytes": found.bytes, "digest": found.digest}
    say(f"{found.name}: ready{_details({**row, 'directory': found.directory})}", to_stdout=True)
