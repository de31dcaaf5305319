"""The command line: words in, exit code out. Only here and on the screen is anything printed.

Nothing heavy is imported on the way to `--help`; each command imports what it needs.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crm_cli import __version__
from crm_cli.errors import CrmError, ExitCode, UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from crm_cli.learn.train import Progress
    from crm_cli.preset import Override, ResolvedPreset
    from crm_cli.run.events import Event, RunFinished
    from crm_cli.run.options import Engine, Stop

DEBOUNCE_S = 0.5
"""Two interrupts closer than this are one: a terminal and a shell may both pass a key on."""

app = typer.Typer(
    name="crm",
    help="Turn a folder of product photos into textured 3D assets.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    # Rich help would double the time that --help takes.
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
presets_app = typer.Typer(help="What the shipped presets say.", no_args_is_help=True)
app.add_typer(presets_app, name="presets")

OutArgument = Annotated[Path, typer.Argument(metavar="OUT", help="An output folder of crm.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]


def main(engine: Engine | None = None) -> None:
    """Run the command line. engine: what converts photos; tests put fakes in its place."""
    try:
        app(obj=engine, prog_name="crm")
    except CrmError as error:
        _say(f"error: {error}", style="red")
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


@app.command()
def convert(
    context: typer.Context,
    inputs: Annotated[
        list[Path], typer.Argument(metavar="INPUT...", help="Photos, and folders searched for photos.")
    ],
    out: Annotated[Path, typer.Option("-o", "--out", help="Output folder; mirrors the input's folders.")],
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
        str | None, typer.Option(envvar="CRM_WEIGHTS", help="auto, embedded, or a folder of weights.")
    ] = None,
    formats: Annotated[
        list[str] | None,
        typer.Option("--format", envvar="CRM_FORMAT", help="glb, obj, usd; repeat, or separate by commas."),
    ] = None,
    include: Annotated[
        list[str] | None, typer.Option(metavar="GLOB", help="Take only photos that match.")
    ] = None,
    exclude: Annotated[list[str] | None, typer.Option(metavar="GLOB", help="Leave out what matches.")] = None,
    no_recursive: Annotated[bool, typer.Option("--no-recursive", help="Do not search sub-folders.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Take the first N photos only.")] = None,
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
    timeouts: Annotated[
        list[str] | None,
        typer.Option("--timeout", metavar="STAGE=SECONDS", help="Change a stage's deadline."),
    ] = None,
    max_mpixels: Annotated[
        float,
        typer.Option(min=0.01, envvar="CRM_MAX_MPIXELS", help="Refuse photos of more million pixels."),
    ] = 64.0,
    wait_lock: Annotated[
        float, typer.Option(min=0.0, metavar="SECONDS", help="Wait for another run in OUT to end.")
    ] = 0.0,
    allow_empty: Annotated[bool, typer.Option("--allow-empty", help="No photo is no error.")] = False,
    no_report: Annotated[bool, typer.Option("--no-report", help="Write no contact sheet.")] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print events on stdout, one JSON object a line.")
    ] = False,
    progress: Annotated[str, typer.Option(envvar="CRM_PROGRESS", help="auto, bar, plain or none.")] = "auto",
    quiet: Annotated[bool, typer.Option("-q", "--quiet", help="Print failures only.")] = False,
    verbose: Annotated[
        int, typer.Option("-v", "--verbose", count=True, help="Print more; -vv even more.")
    ] = 0,
) -> None:
    """Convert photos to 3D assets. Run it again to do what is missing."""
    from crm_cli.preset import load_preset
    from crm_cli.run.batch import convert as run_batch
    from crm_cli.run.options import PRODUCTION, RunOptions
    from crm_cli.run.walk import Selection

    _log_to_stderr(-1 if quiet else verbose)
    overrides = _overrides(assignments or [], matting=matting, weights=weights, formats=formats)
    options = RunOptions(
        inputs=tuple(inputs),
        out=out,
        select=Selection(
            include=tuple(include or ()),
            exclude=tuple(exclude or ()),
            is_recursive=not no_recursive,
            limit=limit,
        ),
        keep_ext=keep_ext,
        preset_name=preset,
        device=device,
        jobs=jobs,
        deadlines_s=_deadlines(timeouts or []),
        max_mpixels=max_mpixels,
        overwrite=overwrite,
        retry_failed=retry_failed,
        fail_fast=fail_fast,
        dry_run=dry_run,
        allow_empty=allow_empty,
        report=not no_report,
        wait_lock_s=wait_lock,
    )
    resolved = load_preset(preset, overrides)
    with _listening() as stop:
        events = run_batch(resolved.preset, options, stop=stop, engine=context.obj or PRODUCTION)
        finished = _follow(events, progress=progress, verbosity=-1 if quiet else verbose, as_json=as_json)
    raise typer.Exit(finished.exit_code)


@app.command()
def status(out: OutArgument, as_json: JsonOption = False) -> None:
    """Say what is finished and what failed, at any time."""
    from crm_cli.run.status import status as read_status
    from crm_cli.run.wire import to_plain
    from crm_cli.screen import with_path

    standing = read_status(out)
    if as_json:
        typer.echo(json.dumps(to_plain(standing)))
        return
    _say(f"{standing.finished} finished ({standing.low_confidence} with low confidence)", to_stdout=True)
    if standing.damaged:
        _say(f"{standing.damaged} with files missing or changed; convert again to redo them", to_stdout=True)
    for failure in standing.failures:
        words = with_path(failure.asset, failure.message, code=failure.code)
        _say(f"failed in {failure.stage}: {words}", to_stdout=True)
    if standing.is_running:
        _say("a run is at work", to_stdout=True)


@presets_app.command("list")
def list_presets_command() -> None:
    """Name the shipped presets."""
    from crm_cli.preset import list_presets

    for name in list_presets():
        typer.echo(name)


@presets_app.command("show")
def show_preset(
    name: Annotated[str, typer.Argument(help="Name of a preset, or a file.yaml.")] = "default",
    origin: Annotated[bool, typer.Option("--origin", help="Say which file each value comes from.")] = False,
    assignments: Annotated[
        list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change one setting first.")
    ] = None,
) -> None:
    """Print every setting of a preset with its meaning."""
    from crm_cli.preset import load_preset, settings, value_of

    resolved = load_preset(name, _overrides(assignments or []))
    for key, setting in settings().items():
        value = json.dumps(value_of(resolved.preset, key), ensure_ascii=False)
        end = f"from {_origin(resolved, key)}" if origin else setting.about
        _say(f"{key}: {value}  # {end}", to_stdout=True)


@app.command()
def doctor() -> None:
    """Say what this machine can do, and how to make it do more."""
    from crm_cli.doctor import examine

    report = examine()
    for line in report.lines:
        _say(line, to_stdout=True)
    if not report.can_convert:
        raise typer.Exit(ExitCode.ENVIRONMENT)


@app.command()
def train(
    network: Annotated[str, typer.Argument(metavar="rgb|ccm|reconstruction", help="Which network.")],
    folder: Annotated[Path, typer.Option("-o", "--out", help="Checkpoint and log; continued where it is.")],
    data: Annotated[Path, typer.Option(help="Folder of examples; missing ones are rendered.")] = Path("data"),
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.")] = 3000,
    examples: Annotated[int, typer.Option(min=1, help="Procedural products to learn from.")] = 8192,
    held_out: Annotated[int, typer.Option(min=8, help="Other products to measure on.")] = 256,
    batch: Annotated[int, typer.Option(min=1, help="Examples a step.")] = 8,
    learning_rate: Annotated[float, typer.Option(min=0, help="At its highest.")] = 2e-3,
    precision: Annotated[
        str, typer.Option(help="float32; or bfloat16, where the processor has it.")
    ] = "float32",
    seed: Annotated[int, typer.Option(min=0, help="Of parameters, order and noise.")] = 0,
    threads: Annotated[int, typer.Option(min=1, help="Cores a step may use.")] = 1,
    workers: Annotated[int, typer.Option(min=1, help="Processes that render examples.")] = 1,
    ship: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the averaged weights here when done.")
    ] = None,
    commit: Annotated[str, typer.Option(help="Source revision to note in the weights.")] = "unknown",
) -> None:
    """Train one of the embedded networks; the same command continues a run that was stopped."""
    import torch

    from crm_cli.learn.course import Course, check_precision, run_course
    from crm_cli.learn.course import ship as write_weights
    from crm_cli.learn.train import TrainSettings

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    course = Course(
        network=network,
        data=data,
        folder=folder,
        examples=examples,
        held_out=held_out,
        workers=workers,
        commit=commit,
    )
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        precision=check_precision(precision),
        save_every=100,
        log_every=25,
    )
    _show_training(run_course(course, settings), steps)
    if ship is not None:
        scores = write_weights(course, settings, ship)
        _say(f"{ship}: " + ", ".join(f"{name} {score}" for name, score in scores.items()), to_stdout=True)


def _show_training(lines: Iterator[Progress], steps: int) -> None:
    """Draw a bar on a terminal; a log gets one line a minute at most."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    with tqdm(total=steps, unit="step", mininterval=0.1 if is_terminal else 60, ascii=not is_terminal) as bar:
        for line in lines:
            bar.set_postfix({name: f"{value:.4f}" for name, value in line.terms.items()}, refresh=False)
            bar.update(line.step - bar.n)


def _follow(events: Iterator[Event], *, progress: str, verbosity: int, as_json: bool) -> RunFinished:
    """Show events until the last one."""
    from crm_cli.run.events import AssetPlanned, RunFinished
    from crm_cli.screen import ProgressMode, open_screen, show_summary

    modes: Sequence[ProgressMode] = ("auto", "bar", "plain", "none")
    mode = next((mode for mode in modes if mode == progress), None)
    if mode is None:
        raise UsageError(
            f"--progress {progress}: no such way", code="E_PROGRESS", remedy=f"one of {', '.join(modes)}"
        )
    console = _console()
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
        _say("warning: stdout was closed; going on without events", style="yellow")
        return False
    return True


@contextmanager
def _listening() -> Iterator[Stop]:
    """Turn signals into a wish to stop: the first ends the run between photos, the second at once."""
    from crm_cli.run.options import Stop

    stop = Stop()
    first_at = 0.0

    def hear(number: int, _: FrameType | None) -> None:
        nonlocal first_at
        now = time.monotonic()
        if stop.signal is None:
            stop.signal, first_at = number, now
        elif stop.is_urgent:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        elif now - first_at > DEBOUNCE_S:
            stop.is_urgent = True

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, hear) for number in numbers]
    try:
        yield stop
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)


def _overrides(
    assignments: Sequence[str],
    *,
    matting: str | None = None,
    weights: str | None = None,
    formats: Sequence[str] | None = None,
) -> list[Override]:
    """Settings from the command line, weakest first: a flag of its own beats --set."""
    from crm_cli.preset import Override

    overrides = [Override.from_assignment(assignment) for assignment in assignments]
    flags: list[tuple[str, Any, str]] = [
        ("matting.method", matting, "--matting"),
        ("weights", weights, "--weights"),
        ("export.formats", _split(formats) if formats else None, "--format"),
    ]
    # JSON is YAML, so a value given by its own flag is never read as anything but text.
    overrides += [
        Override(key, json.dumps(value, ensure_ascii=False), flag)
        for key, value, flag in flags
        if value is not None
    ]
    return overrides


def _split(values: Sequence[str]) -> list[str]:
    """Names from repeated and comma-separated values."""
    return [name.strip() for value in values for name in value.split(",") if name.strip()]


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


def _origin(resolved: ResolvedPreset, key: str) -> str:
    """Where a value comes from, short where it is a file."""
    source = resolved.origins[key]
    return Path(source).name if os.sep in source else source


def _console(*, to_stdout: bool = False) -> Console:
    from rich.console import Console

    return Console(stderr=not to_stdout, highlight=False)


def _say(text: str, *, style: str = "", to_stdout: bool = False) -> None:
    """Print one message that may hold hostile names."""
    from crm_cli.screen import say

    say(_console(to_stdout=to_stdout), text, style=style)


def _log_to_stderr(verbosity: int) -> None:
    """Show the library's log from the level that was asked for."""
    import logging

    level = {-1: logging.ERROR, 0: logging.WARNING, 1: logging.INFO}.get(verbosity, logging.DEBUG)
    logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
