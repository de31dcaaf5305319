"""The command line: words in, exit code out. Only in this package and on the screen is anything printed.

Nothing heavy is imported on the way to `--help`; each command imports what it needs.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli import __version__
from crm_cli.cli.bench import bench
from crm_cli.cli.console import say
from crm_cli.cli.convert import convert
from crm_cli.cli.doctor import doctor
from crm_cli.cli.gc import gc
from crm_cli.cli.presets import presets_app
from crm_cli.cli.products import products
from crm_cli.cli.redo import redo
from crm_cli.cli.report import report
from crm_cli.cli.reproduce import reproduce
from crm_cli.cli.retry import retry
from crm_cli.cli.schema import schema
from crm_cli.cli.sections import Sections
from crm_cli.cli.show import show
from crm_cli.cli.status import status
from crm_cli.cli.train import train
from crm_cli.cli.verify import verify
from crm_cli.cli.weights import weights_app
from crm_cli.errors import CrmError

if TYPE_CHECKING:
    from crm_cli.run.options import Engine

app = typer.Typer(
    name="crm",
    help="Turn a folder of product photos into textured 3D assets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich help would double the time that --help takes.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(convert)
app.command()(status)
app.command()(retry)
app.command()(redo)
app.command()(report)
app.command()(verify)
app.command()(gc)
app.command()(show)
app.command()(reproduce)
app.add_typer(presets_app, name="presets")
app.add_typer(weights_app, name="weights")
app.command()(doctor)
app.command()(bench)
app.command()(schema)
app.command(cls=Sections)(train)
app.command()(products)


def main(engine: Engine | None = None) -> None:
    """Run the command line. engine: what converts photos; tests put fakes in its place."""
    try:
        app(obj=engine, prog_name="crm")
    except CrmError as error:
        say(f"error: {error}", style="red")
        sys.exit(int(error.exit_code))


def _show_version(is_wanted: bool) -> None:
    if is_wanted:
        typer.echo(f"crm {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Turn a folder of product photos into textured 3D assets."""
