"""`crm show`: where an asset came from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crm_cli.cli.console import JsonOption, open_console

if TYPE_CHECKING:
    from crm_cli.records import Verdict
    from crm_cli.run.origin import Origin

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="A .glb, .obj, .usdc or .usdz file, wherever it is now.")
]

STATES = {
    "intact": "as crm left it",
    "changed": "edited since crm wrote it",
    "unknown": "not known: no records of crm are near",
}


def show(file: FileArgument, as_json: JsonOption = False) -> None:
    """Say where an asset came from, by what its file holds."""
    from crm_cli.run.origin import trace

    origin = trace(file)
    if as_json:
        typer.echo(json.dumps(_as_plain(origin)))
        return
    _print(origin)


def _as_plain(origin: Origin) -> dict[str, Any]:
    """What a program is told."""
    from crm_cli.run.wire import to_plain

    said = origin.provenance
    plain: dict[str, Any] = {
        "file": to_plain(origin.file),
        "format": origin.format,
        "size": origin.size,
        "sha256": origin.sha256,
        "state": origin.state,
        "crm": said.crm_version,
        "photo_sha256": said.photo_sha256,
        "preset": said.settings,
        "preset_sha256": said.preset_sha256,
        "seed": said.seed,
        "weights": said.weights,
        "weights_sha256": said.weights_sha256,
        "libraries": dict(said.libraries),
        "device": said.device,
        "precision": said.precision,
        "rasteriser": said.rasteriser,
        "surface": said.surface,
        "more": dict(said.more),
        "record": None,
    }
    if origin.entry is not None:
        record = origin.entry.record
        plain["record"] = {
            "out": to_plain(origin.entry.out),
            "photo": to_plain(record.asset),
            "run": record.run,
            "seconds": dict(record.seconds),
            "checks": to_plain(record.checks),
            "verdict": to_plain(record.verdict),
            "warnings": list(record.warnings),
        }
    return plain


def _print(origin: Origin) -> None:
    """What a person is told: a table of two columns; in a file or a pipe each row is one line."""
    from rich.table import Table
    from rich.text import Text

    from crm_cli.names import display_name

    rows = [(display_name(name), display_name(value)) for name, value in _rows(origin)]
    console = open_console(to_stdout=True)
    if not console.is_terminal:
        # Whoever looks for a digest must find it in one piece.
        width = max(len(name) for name, _ in rows)
        for name, value in rows:
            console.print(Text(f"{name:<{width}}  {value}"), soft_wrap=True)
        return
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    console.print(table)


def _rows(origin: Origin) -> list[tuple[str, str]]:
    """Name and value, the most wanted first; what a file does not say is left out."""
    said, entry = origin.provenance, origin.entry
    rows = [
        ("file", f"{origin.file} ({origin.format}, {origin.size:,} bytes)"),
        ("sha256", origin.sha256),
        ("state", STATES[origin.state]),
        ("made by", f"crm {said.crm_version}, on {said.device or 'an unknown device'}"),
        ("verdict", _verdict(entry.record.verdict) if entry else ""),
        ("photo", str(entry.record.asset) if entry else ""),
        ("photo sha256", said.photo_sha256),
        ("weights", said.weights),
        ("weights sha256", said.weights_sha256),
        ("seed", str(said.seed)),
        ("precision", said.precision),
        ("rasteriser", said.rasteriser),
        ("surface", said.surface),
        *((name.replace("_", " "), _in_words(value)) for name, value in said.more.items()),
        ("libraries", ", ".join(f"{name} {version}" for name, version in said.libraries.items())),
        ("preset sha256", said.preset_sha256),
    ]
    if said.settings is not None:
        lines = [_in_line(name, value) for name, value in said.settings.items()]
        rows += zip(("preset", *[""] * len(lines)), lines, strict=False)
    elif said.preset:
        rows.append(("preset", "not the one that its digest was taken of"))
    return [(name, value) for name, value in rows if value]


def _verdict(verdict: Verdict | None) -> str:
    """The grade and what speaks against the asset; nothing where nobody judged it."""
    if verdict is None:
        return ""
    sentences = "; ".join(reason.sentence for reason in verdict.reasons)
    return f"{verdict.grade}: {sentences}" if sentences else verdict.grade


def _in_words(value: str) -> str:
    """A value that a file says: of a JSON object, its members side by side."""
    if not value.startswith("{"):
        return value
    try:
        members = json.loads(value)
    except (ValueError, RecursionError):
        return value
    return ", ".join(f"{name} {_plain(member)}" for name, member in members.items())


def _in_line(name: str, value: object) -> str:
    """A section's settings, or a setting that stands alone, as --set takes them."""
    if not isinstance(value, dict):
        return f"{name}={_plain(value)}"
    return " ".join(f"{name}.{key}={_plain(inner)}" for key, inner in value.items())


def _plain(value: object) -> str:
    """A value as --set takes it."""
    return ",".join(map(str, value)) if isinstance(value, list) else json.dumps(value).strip('"')
