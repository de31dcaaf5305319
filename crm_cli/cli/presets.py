"""`crm presets`: what the shipped presets say."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import say
from crm_cli.cli.overrides import read_overrides

if TYPE_CHECKING:
    from crm_cli.preset import ResolvedPreset

presets_app = typer.Typer(help="What the shipped presets say.", no_args_is_help=True)


@presets_app.command("list")
def list_presets_command() -> None:
    """Name the shipped presets, and what each is for."""
    from crm_cli.preset import list_presets, purpose

    names = list_presets()
    for name in names:
        say(f"{name.ljust(max(map(len, names)))}  {purpose(name)}", to_stdout=True)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="Name of a preset, or a file.yaml.")] = "default",
    origin: Annotated[bool, typer.Option("--origin", help="Say which file each value comes from.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting first.")
    ] = None,
) -> None:
    """Print every setting of a preset with its meaning."""
    from crm_cli.preset import AUTO, load_preset, settings, value_of

    resolved = load_preset(name, read_overrides(assignments or []))
    for key, setting in settings().items():
        is_auto = key in resolved.autos
        value = AUTO if is_auto else json.dumps(value_of(resolved.preset, key), ensure_ascii=False)
        end = f"from {_origin(resolved, key)}" if origin else setting.about
        if is_auto and setting.suited is not None:
            end += f"; {_plain(setting.suited.embedded)} with the embedded weights,"
            end += f" {_plain(setting.suited.published)} with the published"
        say(f"{key}: {value}  # {end}", to_stdout=True)


def _plain(value: float) -> str:
    """A number as a person writes it."""
    return f"{value:g}"


def _origin(resolved: ResolvedPreset, key: str) -> str:
    """Where a value comes from, short where it is a file."""
    source = resolved.origins[key]
    return Path(source).name if os.sep in source else source
