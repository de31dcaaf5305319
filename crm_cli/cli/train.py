"""`crm train`: one network, and a bar while it learns."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import say

if TYPE_CHECKING:
    from crm_cli.learn.train import Progress


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
    workers: Annotated[int, typer.Option(min=0, help="Processes that render examples.")] = 1,
    device: Annotated[str, typer.Option(help="cpu or cuda.")] = "cpu",
    grow: Annotated[
        float, typer.Option(min=0, max=1, help="Learn while examples are rendered, over this share of steps.")
    ] = 0.0,
    first: Annotated[
        Path | None, typer.Option(metavar="FILE", help="ccm: rgb weights that draw half of what it sees.")
    ] = None,
    end_to_end: Annotated[
        bool, typer.Option("--end-to-end", help="reconstruction: learn from pictures of its surface.")
    ] = False,
    grid: Annotated[int, typer.Option(min=8, max=256, help="--end-to-end: cubes along each side.")] = 80,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="--end-to-end: LPIPS from the files of VGG16 and its heads."),
    ] = None,
    architecture: Annotated[
        str, typer.Option(metavar="small|release", help="--end-to-end: embedded, or as published.")
    ] = "small",
    average: Annotated[float, typer.Option(min=0, max=1, help="Decay of the average that ships.")] = 0.995,
    warmup: Annotated[int, typer.Option(min=0, help="Steps in which the learning rate rises.")] = 50,
    save_every: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    ship: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the averaged weights here when done.")
    ] = None,
    commit: Annotated[str, typer.Option(help="Source revision to note in the weights.")] = "unknown",
) -> None:
    """Train one of the embedded networks; the same command continues a run that was stopped."""
    import torch

    from crm_cli.learn.course import Course, check_precision, run_course
    from crm_cli.learn.course import ship as write_weights
    from crm_cli.learn.surface import EndToEnd, check_end_to_end
    from crm_cli.learn.train import TrainSettings
    from crm_cli.toolbox import resolve_device

    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    course = Course(
        network=network,
        data=data,
        folder=folder,
        examples=examples,
        held_out=held_out,
        workers=workers,
        device=resolve_device(device),
        grow=grow,
        first=first,
        commit=commit,
        surface=check_end_to_end(
            EndToEnd(grid=grid, lpips=tuple(lpips or ()), architecture=architecture), is_asked=end_to_end
        ),
    )
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        learning_rate=learning_rate,
        seed=seed,
        average=average,
        warmup=warmup,
        precision=check_precision(precision),
        save_every=save_every,
        log_every=25,
    )
    _show_training(run_course(course, settings), steps)
    if ship is not None:
        scores = write_weights(course, settings, ship)
        say(f"{ship}: " + ", ".join(f"{name} {score}" for name, score in scores.items()), to_stdout=True)


def _show_training(lines: Iterator[Progress], steps: int) -> None:
    """Draw a bar on a terminal; a log gets one line a minute at most."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    with tqdm(total=steps, unit="step", mininterval=0.1 if is_terminal else 60, ascii=not is_terminal) as bar:
        for line in lines:
            bar.set_postfix({name: f"{value:.4f}" for name, value in line.terms.items()}, refresh=False)
            bar.update(line.step - bar.n)
