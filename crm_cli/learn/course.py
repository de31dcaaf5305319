"""A whole training run: examples made where they are missing, a network trained, measured and shipped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, OutputError, UsageError
from crm_cli.learn.beginning import Start
from crm_cli.learn.checkpoint import NAME, averaged, check_checkpoint
from crm_cli.learn.latent import LatentSettings, open_latent
from crm_cli.learn.lesson import lesson_of, require_sense
from crm_cli.learn.ranks import ALONE, Ranks, Stopped
from crm_cli.learn.rendering import held_out_examples, rendering, training_examples
from crm_cli.learn.shipping import ship_set
from crm_cli.learn.surface import EndToEnd, SurfaceTask
from crm_cli.learn.tasks import CcmTask, ReconstructionTask, RgbTask
from crm_cli.learn.train import Precision, Progress, Task, TrainSettings, never, train
from crm_cli.learn.watch import Watch, measure
from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB, MultiViewUNet
from crm_cli.models.loading import load, save
from crm_cli.models.reconstruction import RELEASE, SMALL, ReconstructionConfig

NetworkName = Literal["rgb", "ccm", "reconstruction"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What to train, on how much, and where everything is kept."""

    network: str
    """rgb, ccm or reconstruction."""
    data: Path
    """Folder of examples; missing ones are made."""
    folder: Path
    """Checkpoint and log of this run."""
    examples: int
    held_out: int = 256
    workers: int = 1
    device: str = "cpu"
    grow: float = 0.0
    """Share of the steps in which examples are still being rendered; 0: all are there before the first."""
    first: Path | None = None
    """Weights of a trained first stage: half of what the second one learns from is then drawn by it."""
    start: Start | None = None
    """Weights to begin with; None: small networks with parameters drawn from the seed."""
    latent: LatentSettings | None = None
    """Of denoisers of the published structure."""
    source: Path | None = None
    """Folder of GLB files, or of the published layout, to learn from instead of procedural products."""
    size_px: int | None = None
    """Side of every picture; None: as in the folder of examples, 64 in a new one."""
    surface: EndToEnd | None = None
    """How the reconstruction is trained on pictures of its surface; None: on distances and colours."""
    commit: str = "unknown"
    """The source the file was made from; goes into its metadata."""
    sample_every: int = 0
    """Steps between sample pictures of held-out products; 0: none."""
    measure_every: int = 0
    """Steps between scores on all held-out products; 0: none before the end."""
    is_shipped: bool = False
    """Whether weights are written in the end, with scores on held-out products."""

    @property
    def is_latent(self) -> bool:
        """Whether it trains a denoiser of the published structure."""
        return self.start is not None and self.start.is_latent and self.network != "reconstruction"

    @property
    def needs_held_out(self) -> bool:
        """Whether it looks at products that it does not learn from."""
        return bool(self.is_shipped or self.sample_every or self.measure_every)

    @property
    def has_field(self) -> bool:
        """Whether its examples hold distances; the denoisers learn from pictures alone."""
        return not self.grow


def open_task(
    network: str,
    seed: int,
    *,
    device: str = "cpu",
    first: Path | None = None,
    start: Start | None = None,
    latent: LatentSettings | None = None,
    surface: EndToEnd | None = None,
) -> Task:
    """A network on its device, its first parameters drawn from the seed or those it starts from.

    first, start, latent, surface: see `Course`.
    """
    torch.manual_seed(seed)
    if start is not None and start.is_latent and network != "reconstruction":
        return open_latent(start, latent, device=device)
    task: Task
    if network == "rgb":
        task = RgbTask(SMALL_RGB)
    elif network == "ccm":
        task = CcmTask(SMALL_CCM, first=None if first is None else _first_stage(first, device))
    elif network == "reconstruction":
        config = _reconstruction(surface) if start is None else start.reconstruction
        task = ReconstructionTask(config) if surface is None else SurfaceTask(config, surface, device=device)
    else:
        known = ", ".join(get_args(NetworkName))
        raise UsageError(f"no network named {network}", code="E_TRAIN_NETWORK", remedy=f"known: {known}")
    if start is not None:
        start.fill(task.network)
    task.network.to(device)
    return task


def _reconstruction(surface: EndToEnd | None) -> ReconstructionConfig:
    """How a reconstruction is built that starts with nothing."""
    configs = {"small": SMALL, "release": RELEASE}
    wanted = "small" if surface is None else surface.architecture
    if wanted not in configs:
        raise UsageError(
            f"--architecture {wanted}: no such architecture",
            code="E_TRAIN_ARCHITECTURE",
            remedy=f"one of {', '.join(configs)}",
        )
    return configs[wanted]


def _first_stage(file: Path, device: str) -> MultiViewUNet:
    """A trained first stage, in the precision of training."""
    with torch.device("meta"):
        network = MultiViewUNet(SMALL_RGB)
    load(network, [file], device=device)
    return network


def check_precision(name: str) -> Precision:
    """Take a precision by its name, or raise UsageError."""
    known: tuple[Precision, ...] = get_args(Precision)
    for precision in known:
        if precision == name:
            return precision
    raise UsageError(
        f"--precision {name}: no such precision",
        code="E_TRAIN_PRECISION",
        remedy=f"one of {', '.join(known)}",
    )


def run_course(
    course: Course,
    settings: TrainSettings,
    *,
    ranks: Ranks = ALONE,
    is_stopped: Callable[[], bool] = never,
) -> Iterator[Progress]:
    """Train to the last step, continuing where an earlier run of the same course stopped.

    ranks: which process of several this is; the first one alone renders, looks and writes.
    is_stopped: asked while examples are rendered, and after every step; what is finished is then kept.
    """
    require_sense(course)
    ranks.share(settings.accumulate)
    # First: a wrong name should not cost an hour of rendering.
    task = _task_of(course, settings)
    lesson = lesson_of(course)
    if (course.folder / NAME).exists():
        check_checkpoint(course.folder / NAME, task.network, settings, lesson)
    with rendering(course if ranks.is_first else replace(course, workers=0)) as has_failed:

        def is_over() -> bool:
            return is_stopped() or has_failed()

        try:
            examples = ranks.after_first(
                "training", lambda: training_examples(course, settings, is_stopped=is_over), is_over
            )
            watch = _watch(course, ranks, is_over)
            yield from train(
                task,
                examples,
                settings,
                course.folder,
                lesson=lesson,
                ranks=ranks,
                watch=watch,
                is_stopped=is_over,
            )
        except Stopped:
            return
        except TimeoutError as error:  # of examples that grow
            raise EnvironmentProblem(
                str(error), code="E_TRAIN_DATA", remedy="give --workers, or let another run render them"
            ) from error


def _watch(course: Course, ranks: Ranks, is_stopped: Callable[[], bool]) -> Watch | None:
    """What to look at meanwhile, if anything."""
    if not course.sample_every and not course.measure_every:
        return None
    return Watch(
        examples=ranks.after_first(
            "held out", lambda: held_out_examples(course, is_stopped=is_stopped), is_stopped
        ),
        sample_every=course.sample_every,
        measure_every=course.measure_every,
    )


def check_ship(file: Path) -> None:
    """Refuse a place for weights that is none, before there are any."""
    folder = file.absolute().parent
    if file.is_dir() or not os.access(folder, os.W_OK):
        what = "a folder" if file.is_dir() else "cannot be written"
        raise OutputError(
            f"--ship {file}: {what if folder.is_dir() else f'no folder {folder}'}",
            code="E_OUTPUT",
            remedy="give a file in a folder of yours that is there",
        )


def _task_of(course: Course, settings: TrainSettings) -> Task:
    return open_task(
        course.network,
        settings.seed,
        device=course.device,
        first=course.first,
        start=course.start,
        latent=course.latent,
        surface=course.surface,
    )


def ship(course: Course, settings: TrainSettings, file: Path) -> dict[str, float]:
    """Write the averaged parameters of a course's checkpoint, with what they score.

    file: a weights file; of a network of the published structure, the folder of a whole set.
    """
    task = _task_of(course, settings)
    task.network.load_state_dict(averaged(course.folder / NAME))
    scores = measure(task, held_out_examples(course), device=course.device)
    metadata = {
        "network": course.network,
        "preset": "small" if course.surface is None else course.surface.architecture,
        "crm_version": __version__,
        "commit": course.commit,
        "settings": json.dumps(asdict(settings), sort_keys=True),
        "examples": str(course.examples),
        "held_out": json.dumps(scores, sort_keys=True),
    }
    if course.surface is not None:
        metadata["end_to_end"] = json.dumps(course.surface.words, sort_keys=True)
    if course.start is not None:
        metadata |= {"preset": course.start.architecture, "start": course.start.digest}
        if course.start.is_latent:
            ship_set(course.start, task.network, file, metadata)
            return scores
    save(task.network.cpu(), file, metadata)
    return scores
