"""`crm train`: one network, and a bar while it learns."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_cli.cli.console import say
from crm_cli.cli.listening import leaving, listening
from crm_cli.errors import ExitCode

if TYPE_CHECKING:
    from crm_cli.learn.train import Progress

DATA, BEGIN, LENGTH = "What to learn from", "What to begin with", "How long, and how"
PLACE, TOLD = "Where", "What is told and kept"
"""Sections of the help."""

LOG_EVERY = 25
"""Steps between lines of the log: a line costs a wait for the device."""


def train(
    network: Annotated[
        str, typer.Argument(metavar="rgb|ccm|reconstruction", help="Which network.", rich_help_panel=DATA)
    ],
    folder: Annotated[
        Path,
        typer.Option(
            "-o", "--out", help="Checkpoint and logs; continued where it is.", rich_help_panel=PLACE
        ),
    ],
    data: Annotated[
        Path, typer.Option(help="Folder of examples; missing ones are rendered.", rich_help_panel=DATA)
    ] = Path("data"),
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            metavar="FOLDER",
            help="GLB files, or the published layout, instead of products.",
            rich_help_panel=DATA,
        ),
    ] = None,
    size_px: Annotated[
        int | None,
        typer.Option(
            "--size",
            min=16,
            max=512,
            help="Side of the pictures: 64, or as in the data folder.",
            rich_help_panel=DATA,
        ),
    ] = None,
    examples: Annotated[
        int, typer.Option(min=1, help="Procedural products to learn from.", rich_help_panel=DATA)
    ] = 8192,
    held_out: Annotated[
        int, typer.Option(min=8, help="Other products to measure on.", rich_help_panel=DATA)
    ] = 256,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that render examples.", rich_help_panel=DATA)
    ] = 1,
    start: Annotated[
        str | None,
        typer.Option(
            metavar="WEIGHTS",
            help="Begin with these: embedded, published, a folder, or a weights file.",
            rich_help_panel=BEGIN,
        ),
    ] = None,
    fresh: Annotated[
        bool,
        typer.Option(
            "--fresh",
            help="Take from --start only what stays frozen: CLIP and the VAE.",
            rich_help_panel=BEGIN,
        ),
    ] = False,
    hide: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Published structure: share of examples shown no condition.",
            rich_help_panel=DATA,
        ),
    ] = 0.0,
    photos: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Published structure: share shown a photo, not a face.",
            rich_help_panel=DATA,
        ),
    ] = 0.5,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute",
            help="Published structure: less memory, a third more time.",
            rich_help_panel=PLACE,
        ),
    ] = False,
    grow: Annotated[
        float,
        typer.Option(
            min=0,
            max=1,
            help="Learn while examples are rendered, over this share of steps.",
            rich_help_panel=DATA,
        ),
    ] = 0.0,
    first: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="ccm: rgb weights that draw half of what it sees.", rich_help_panel=DATA
        ),
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps in all.", rich_help_panel=LENGTH)] = 3000,
    batch: Annotated[
        int, typer.Option(min=1, help="Examples calculated at once.", rich_help_panel=LENGTH)
    ] = 8,
    accumulate: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Learn from N times --batch a step, by turns; one turn for each process, if unsaid.",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    learning_rate: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="At its highest: 2e-3, or 5e-5 for networks of the published structure.",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    warmup: Annotated[
        int, typer.Option(min=0, help="Steps in which the learning rate rises.", rich_help_panel=LENGTH)
    ] = 50,
    average: Annotated[
        float, typer.Option(min=0, max=1, help="Decay of the average that ships.", rich_help_panel=LENGTH)
    ] = 0.995,
    seed: Annotated[
        int, typer.Option(min=0, help="Of parameters, order and noise.", rich_help_panel=LENGTH)
    ] = 0,
    device: Annotated[
        str, typer.Option(help="cpu or cuda; torchrun gives each process a GPU.", rich_help_panel=PLACE)
    ] = "cpu",
    precision: Annotated[
        str,
        typer.Option(
            help="float32 (TF32 on a GPU); bfloat16, or float16 on older GPUs.", rich_help_panel=PLACE
        ),
    ] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Cores a step may use.", rich_help_panel=PLACE)] = 1,
    end_to_end: Annotated[
        bool,
        typer.Option(
            "--end-to-end",
            help="reconstruction: learn from pictures of its surface.",
            rich_help_panel=LENGTH,
        ),
    ] = False,
    grid: Annotated[
        int,
        typer.Option(min=8, max=256, help="--end-to-end: cubes along each side.", rich_help_panel=LENGTH),
    ] = 80,
    lpips: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="FILE",
            help="--end-to-end: LPIPS from the files of VGG16 and its heads.",
            rich_help_panel=LENGTH,
        ),
    ] = None,
    architecture: Annotated[
        str,
        typer.Option(
            metavar="small|release",
            help="--end-to-end without --start: embedded, or as published.",
            rich_help_panel=BEGIN,
        ),
    ] = "small",
    save_every: Annotated[
        int, typer.Option(min=1, help="Steps between checkpoints.", rich_help_panel=TOLD)
    ] = 100,
    sample_every: Annotated[
        int, typer.Option(min=0, help="Steps between sample pictures; 0: none.", rich_help_panel=TOLD)
    ] = 0,
    measure_every: Annotated[
        int,
        typer.Option(min=0, help="Steps between scores on the held-out products.", rich_help_panel=TOLD),
    ] = 0,
    ship: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|DIR",
            help="Write the averaged weights here when done: a file, or a published set.",
            rich_help_panel=TOLD,
        ),
    ] = None,
    commit: Annotated[
        str, typer.Option(help="Source revision to note in the weights.", rich_help_panel=TOLD)
    ] = "unknown",
) -> None:
    """Train a network, from nothing or from weights; the same command continues a run that was stopped.

    Several GPUs: torchrun --nproc-per-node 4 -m crm_cli train rgb --device cuda …
    """
    import torch

    from crm_cli.learn.beginning import find_start
    from crm_cli.learn.checkpoint import saved_step
    from crm_cli.learn.course import Course, check_precision, check_ship, run_course
    from crm_cli.learn.course import ship as write_weights
    from crm_cli.learn.latent import LEARNING_RATE, WEIGHT_DECAY, LatentSettings
    from crm_cli.learn.ranks import Ranks, joined
    from crm_cli.learn.surface import EndToEnd, check_end_to_end
    from crm_cli.learn.train import TrainSettings
    from crm_cli.models.combine import require_place
    from crm_cli.toolbox import precision_doubt, resolve_device

    ranks = Ranks.of_environment()
    torch.set_num_threads(threads)
    torch.set_flush_denormal(True)
    begin = find_start(start, network, is_fresh=fresh, first=first)
    is_latent = begin is not None and begin.is_latent
    if ship is not None:
        (require_place if is_latent else check_ship)(ship)
    # What the published networks were trained with, where it is they that learn.
    usual_rate, decay = (LEARNING_RATE, WEIGHT_DECAY) if is_latent else (2e-3, 1e-3)
    course = Course(
        network=network,
        data=data,
        folder=folder,
        examples=examples,
        held_out=held_out,
        workers=workers,
        device=resolve_device(ranks.device(resolve_device(device))),
        grow=grow,
        first=first,
        start=begin,
        latent=LatentSettings(hidden=hide, photos=photos, is_recomputed=recompute),
        source=source,
        size_px=size_px,
        commit=commit,
        surface=check_end_to_end(
            EndToEnd(grid=grid, lpips=tuple(lpips or ()), architecture=architecture), is_asked=end_to_end
        ),
        sample_every=sample_every,
        measure_every=measure_every,
        is_shipped=ship is not None,
    )
    settings = TrainSettings(
        steps=steps,
        batch=batch,
        accumulate=ranks.count if accumulate is None else accumulate,
        learning_rate=usual_rate if learning_rate is None else learning_rate,
        weight_decay=decay,
        seed=seed,
        average=average,
        warmup=warmup,
        precision=check_precision(precision),
        save_every=save_every,
        log_every=LOG_EVERY,
    )
    if course.device != "cpu":
        # Products of matrices too in the ten bits that convolutions have by themselves: training bears it.
        torch.set_float32_matmul_precision("high")
    doubt = precision_doubt(precision, course.device)
    if doubt is not None and ranks.is_first:
        say(f"--precision {precision}: {doubt}", style="yellow")
    with listening() as stop, joined(ranks, course.device) as together, _telling(is_wanted=ranks.is_first):
        lines = run_course(course, settings, ranks=together, is_stopped=lambda: stop.signal is not None)
        _show(lines, begin=saved_step(folder), steps=steps, is_shown=ranks.is_first)
    if stop.signal is not None:
        if ranks.is_first:
            step = saved_step(folder)
            say(f"{stop.name}: stopped at step {step} of {steps}; the same command goes on from there")
        raise typer.Exit(128 + stop.signal)
    if ship is not None and ranks.is_first:
        with leaving():
            try:
                scores = write_weights(course, settings, ship)
            except KeyboardInterrupt:
                raise typer.Exit(ExitCode.INTERRUPTED) from None
        say(f"{ship}: " + ", ".join(f"{name} {score}" for name, score in scores.items()), to_stdout=True)
        if not is_latent:
            say(f"to convert with it: crm weights combine {shlex.quote(str(ship))} -o FOLDER")


@contextmanager
def _telling(*, is_wanted: bool) -> Iterator[None]:
    """Show what the library logs meanwhile: files rendered, a checkpoint taken up."""
    from tqdm import tqdm

    class AboveTheBar(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if sys.stderr.isatty():
                tqdm.write(record.getMessage(), file=sys.stderr)
            else:
                say(record.getMessage())

    logger, handler = logging.getLogger("crm_cli.learn"), AboveTheBar()
    if is_wanted:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)


def _show(lines: Iterator[Progress], *, begin: int, steps: int, is_shown: bool) -> None:
    """Draw a bar on a terminal; a log gets one line a minute at most."""
    from tqdm import tqdm

    is_terminal = sys.stderr.isatty()
    with tqdm(
        total=steps,
        initial=begin,
        unit="step",
        mininterval=0.1 if is_terminal else 60,
        ascii=not is_terminal,
        disable=not is_shown,
    ) as bar:
        for line in lines:
            bar.set_postfix({name: f"{value:.4f}" for name, value in line.terms.items()}, refresh=False)
            bar.update(line.step - bar.n)
