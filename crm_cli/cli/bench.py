"""`crm bench`: what a photo costs here, beside the published loop and beside what it must cost."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from crm_cli.cli.console import JsonOption, open_console, say
from crm_cli.cli.flags import complete_presets

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.table import Table

    from crm_cli.bench.bench import Result
    from crm_cli.bench.cost import SystemCost

SERVER_CORES = 16
"""Of the machine for which the table says what its CPU allows."""


def bench(
    networks: Annotated[
        Literal["auto", "published", "embedded", "miniature"],
        typer.Option(help="auto: published on a GPU, with random values; embedded on a CPU."),
    ] = "auto",
    preset: Annotated[
        list[str] | None,
        typer.Option(
            "-p",
            "--preset",
            metavar="NAME",
            help="Preset to measure; repeat.",
            autocompletion=complete_presets,
        ),
    ] = None,
    device: Annotated[str, typer.Option(envvar="CRM_DEVICE", help="auto, cpu, cuda, or cuda:1.")] = "auto",
    precision: Annotated[
        str, typer.Option(help="Of our presets: auto, float32, bfloat16 or float16.")
    ] = "auto",
    photos: Annotated[int, typer.Option("-n", "--photos", min=1, help="Photos that each converts.")] = 5,
    steps: Annotated[
        int | None,
        typer.Option(min=2, help="Make so few steps of each diffusion, and reckon with all of them."),
    ] = None,
    time_limit: Annotated[
        str, typer.Option(metavar="TIME", help="Begin no photo that ends later; two are converted anyway.")
    ] = "60s",
    has_baseline: Annotated[
        bool, typer.Option("--baseline/--no-baseline", help="Run the published loop beside them.")
    ] = True,
    as_json: JsonOption = False,
) -> None:
    """Measure what a photo costs: the published loop and our presets side by side, stage by stage.

    Needs no photos and no downloads. The published networks get random values: what they draw means nothing,
    and costs the same. On a CPU they make two or three steps of each diffusion and the rest is reckoned; that
    still takes half an hour, and 16 GB of memory.
    """
    from crm_cli.bench.bench import Settings, choose_networks, run_bench
    from crm_cli.run.amounts import read_duration
    from crm_cli.run.wire import to_plain

    result = run_bench(
        Settings(
            networks=choose_networks(device) if networks == "auto" else networks,
            presets=tuple(preset or ()),
            device=device,
            precision=precision,
            photos=photos,
            steps=steps,
            limit_s=read_duration(time_limit, flag="--time-limit"),
            has_baseline=has_baseline,
        ),
        _tell,
    )
    if as_json:
        typer.echo(json.dumps({"command": ["crm", *sys.argv[1:]], **to_plain(result)}))
        return
    console = open_console(to_stdout=True)
    console.print(_heading(result), markup=False)
    console.print(_systems(result))
    for system in result.systems:
        console.print()
        console.print(_stages(system))
    for line in _remarks(result):
        console.print(line, markup=False)


def _tell(text: str) -> None:
    """Say what is being measured, where somebody may be waiting."""
    if sys.stderr.isatty():
        say(text, style="dim")


def _heading(result: Result) -> str:
    """Where and with what it was measured."""
    peaks = ", ".join(f"{top / 1e12:.3g} TFLOP/s in {name}" for name, top in result.peak_operations.items())
    return (
        f"crm {result.version} on {result.machine}, device {result.device}, torch {result.torch}, "
        f"{result.threads} of {result.cores} cores for torch\n"
        f"{result.networks} networks in {result.precision}; this machine reaches {peaks} and copies "
        f"{result.peak_bytes / 1e9:.3g} GB/s"
    )


def _systems(result: Result) -> Table:
    """One column for each system."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("", no_wrap=True)
    for system in result.systems:
        table.add_column(system.name, justify="right", no_wrap=True)
    for name, values in _quantities(result):
        if any(values):
            table.add_row(name, *(value or "–" for value in values))
    return table


def _quantities(result: Result) -> Iterator[tuple[str, list[str]]]:
    """The lines of the table of systems: what is told, and what of each; empty where there is nothing."""

    def each(form: str, of: str, *, per: float = 1.0) -> list[str]:
        values = [getattr(system, of) for system in result.systems]
        return ["" if value is None else form.format(value / per) for value in values]

    systems = result.systems
    yield "photos an hour", each("{:,.0f}", "photos_an_hour")
    yield "  times the baseline", each("{:.1f}×", "over_baseline")
    yield "  networks alone", each("{:,.0f}", "networks_an_hour")
    yield "seconds a photo", [_seconds(system.photo_s.median) for system in systems]
    if any(system.photos > 1 for system in systems):
        spreads = [(system.photo_s.low, system.photo_s.high) for system in systems]
        yield "  from–to", ["–".join(map(_seconds, spread)) for spread in spreads]
    yield "  networks at best", each("{:.3g}", "floor_s")
    yield "TFLOP", each("{:.4g}", "operations", per=1e12)
    yield "core-seconds", each("{:.3g}", "cpu_s")
    yield "  times fewer", each("{:.1f}×", "over_baseline_cpu")
    if result.device == "cpu":
        whole = [f"{3600 * result.cores / system.cpu_s:,.0f}" for system in systems]
        yield f"  photos an hour, {result.cores} cores", whole
    yield "  besides the networks", each("{:.3g}", "cpu_side_s")
    if result.networks != "embedded":
        allowed = [f"{system.photos_an_hour_on(SERVER_CORES):,.0f}" for system in systems]
        yield f"  so at most, {SERVER_CORES} cores", allowed
    yield "accelerator busy", each("{:.0%}", "busy")
    yield "memory at most, GB", each("{:.2f}", "peak_bytes", per=1e9)
    yield "opening, s", each("{:.3g}", "opened_s")
    yield "first photo, s", each("{:.3g}", "first_s")
    yield "photos measured", each("{:.0f}", "photos")
    yield "steps measured", [_steps_measured(system) for system in systems]


def _seconds(length_s: float) -> str:
    return f"{length_s:,.0f}" if length_s >= 100 else f"{length_s:.3g}"


def _steps_measured(system: SystemCost) -> str:
    """`50 + 50`, or `2 × 3 of 50` where the rest was reckoned."""
    rgb, ccm = (str(of) if made == of else f"{made} of {of}" for made, of in system.steps.values())
    return f"2 × {rgb}" if rgb == ccm and " " in rgb else f"{rgb} + {ccm}"


def _stages(system: SystemCost) -> Table:
    """One line for each stage of a system."""
    from rich.table import Table

    headings = ("ms", "share", "core-s", "TFLOP", "TFLOP/s", "× best")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column(system.name, no_wrap=True, min_width=12)
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for stage in system.stages:
        wall_s = stage.wall_s.median
        cells = [f"{wall_s * 1e3:,.1f}", f"{wall_s / system.photo_s.median:.0%}", f"{stage.cpu_s:.3g}"]
        if stage.operations is not None and stage.floor_s is not None and stage.over_floor is not None:
            speed = stage.operations / (stage.floor_s * stage.over_floor) if stage.over_floor else 0.0
            cells += [
                f"{stage.operations / 1e12:.4g}",
                f"{speed / 1e12:.3g}",
                f"{stage.over_floor:.2f}",
            ]
        table.add_row(stage.stage, *cells)
    return table


def _remarks(result: Result) -> Iterator[str]:
    """What one must know to read the tables."""
    yield ""
    if (run := result.run) is not None:
        yield (
            f"crm convert: {run.first_s:.1f} s from its start to the first mesh, {run.again_s:.1f} s once "
            "everything it reads has been read before."
        )
        if run.photos > 1:
            yield f"{run.photos} photos in {run.photos_s:.1f} s: {run.photos_an_hour:,.0f} an hour."
    yield "One photo at a time in one process: unwrapping, baking and files are not done beside the networks."
    if result.networks != "embedded":
        yield (
            "Networks with random values. What they draw is replaced by surfaces of 30,000 to 43,000 faces, "
            "the same for all, before it is cleaned, unwrapped and baked."
        )
        yield (
            "conditions: towers, photo to latents; hand-over: latents to views, views to latents; "
            "decode: latents to maps."
        )
    if any(made < of for system in result.systems for made, of in system.steps.values()):
        yield "Steps that were not made count like the median of those that were: such times are reckoned."
    yield (
        "At best: operations at the speed of one large matrix product, or weights at that of a copy, "
        "whichever takes longer."
    )
    if result.device != "cpu":
        yield "Convolutions in float32 may round to TF32 there, and be faster than its product in float32."
    else:
        yield "On a CPU × best is from core-seconds over threads: what else the machine does counts little."
    yield f"Took {result.took_s:.0f} s."
