"""A whole training run: examples made where they are missing, a network trained, measured and shipped."""

from __future__ import annotations

import json
import os
import zipfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from threading import Event, Thread
from typing import Literal, get_args

import torch

from crm_cli import __version__
from crm_cli.errors import CrmError, EnvironmentProblem, OutputError, UsageError
from crm_cli.learn.beginning import Start, require_same_network
from crm_cli.learn.checkpoint import NAME, averaged
from crm_cli.learn.data import HELD_OUT, SHARD, Growing, Shards, build
from crm_cli.learn.latent import LatentSettings, open_latent
from crm_cli.learn.ranks import ALONE, Ranks, Stopped
from crm_cli.learn.shipping import ship_set
from crm_cli.learn.tasks import CcmTask, ReconstructionTask, RgbTask
from crm_cli.learn.train import Precision, Progress, Task, TrainSettings, never, train
from crm_cli.learn.watch import Watch, measure
from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB, MultiViewUNet
from crm_cli.models.loading import load, save
from crm_cli.models.reconstruction import SMALL

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
    commit: str = "unknown"
    """The source the file was made from; goes into its metadata."""
    sample_every: int = 0
    """Steps between sample pictures of held-out products; 0: none."""
    measure_every: int = 0
    """Steps between scores on all held-out products; 0: none before the end."""

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
) -> Task:
    """A network on its device, its first parameters drawn from the seed or those it starts from.

    first, start, latent: see `Course`.
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
        task = ReconstructionTask(SMALL if start is None else start.reconstruction)
    else:
        known = ", ".join(get_args(NetworkName))
        raise UsageError(f"no network named {network}", code="E_TRAIN_NETWORK", remedy=f"known: {known}")
    if start is not None:
        start.fill(task.network)
    task.network.to(device)
    return task


def _first_stage(file: Path, device: str) -> MultiViewUNet:
    """A trained first stage, in the precision of training."""
    with torch.device("meta"):
        network = MultiViewUNet(SMALL_RGB)
    load(network, [file], device=device)
    return network


def training_examples(
    course: Course, settings: TrainSettings, *, is_stopped: Callable[[], bool] = never
) -> Shards | Growing:
    """The training set of a course, rendered where it is missing; where it may grow, see `rendering`."""
    folder = course.data / "train"
    if not course.grow:
        return _examples(course, folder, course.examples, first_seed=0, is_stopped=is_stopped)
    first = min(course.examples, 16 * SHARD)
    return Growing(
        folder,
        course.examples,
        first=first,
        per_step=(course.examples - first) / (course.grow * settings.steps),
        device=course.device,
        is_stopped=is_stopped,
    )


def held_out_examples(course: Course, *, is_stopped: Callable[[], bool] = never) -> Shards:
    """The held-out set of a course, rendered where it is missing."""
    folder = course.data / "held-out"
    return _examples(course, folder, course.held_out, first_seed=HELD_OUT, is_stopped=is_stopped)


def _examples(
    course: Course, folder: Path, count: int, *, first_seed: int, is_stopped: Callable[[], bool]
) -> Shards:
    workers = max(1, course.workers)
    with _blaming(folder):
        made = build(
            folder,
            count,
            workers,
            first_seed=first_seed,
            has_field=course.has_field,
            is_stopped=is_stopped,
        )
        deque(made, 0)
    if is_stopped():
        raise Stopped
    try:
        shards = Shards(folder, count)
    except (zipfile.BadZipFile, ValueError) as error:
        raise UsageError(
            f"{folder}: an example file is damaged: {error}",
            code="E_TRAIN_DATA",
            remedy="remove it there: it is rendered again",
        ) from error
    if course.network == "reconstruction" and len(shards) and not len(shards[0]["points"]):
        raise UsageError(
            f"{folder}: its examples are pictures alone, and reconstruction learns from distances too",
            code="E_TRAIN_DATA",
            remedy="give another --data folder: this one was rendered with --grow",
        )
    if len(shards) < count:
        raise UsageError(
            f"{folder}: {len(shards)} examples, not {count}: a finished file is never added to",
            code="E_TRAIN_DATA",
            remedy=f"remove {shards.files[-1].name} there, or give another --data folder",
        )
    return shards


@contextmanager
def rendering(course: Course) -> Iterator[Callable[[], bool]]:
    """Render examples beside the training, where the course grows; yields whether that has failed.

    With no worker of its own, a course waits for what another one renders into the folder.
    """
    if not course.grow or not course.workers:
        yield never
        return
    over, failures, folder = Event(), list[CrmError](), course.data / "train"

    def render() -> None:
        try:
            with _blaming(folder):
                made = build(
                    folder,
                    course.examples,
                    course.workers,
                    has_field=course.has_field,
                    is_stopped=over.is_set,
                )
                deque(made, 0)
        except CrmError as error:
            failures.append(error)

    thread = Thread(target=render)
    thread.start()
    try:
        yield lambda: bool(failures)
    finally:
        over.set()
        thread.join()
    if failures:
        raise failures[0]


@contextmanager
def _blaming(folder: Path) -> Iterator[None]:
    """Say what is to be done where examples cannot be rendered."""
    try:
        yield
    except BrokenProcessPool as error:
        raise EnvironmentProblem(
            f"{folder}: a process that rendered examples was ended by the system",
            code="E_TRAIN_DATA",
            remedy="give fewer --workers, if memory is short; what is finished is kept",
        ) from error
    except OSError as error:
        raise OutputError(
            f"--data {folder}: {error.strerror or error}", code="E_OUTPUT", remedy="free space or fix rights"
        ) from error


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
    if course.network == "reconstruction" and course.grow:
        raise UsageError(
            "--grow: only pictures are rendered meanwhile, and reconstruction learns from distances too",
            code="E_TRAIN_GROW",
            remedy="leave --grow out",
        )
    ranks.share(settings.accumulate)
    # First: a wrong name should not cost an hour of rendering.
    task = _task_of(course, settings)
    require_same_network(course.folder / NAME, task.network)
    with rendering(course if ranks.is_first else replace(course, workers=0)) as has_failed:

        def is_over() -> bool:
            return is_stopped() or has_failed()

        try:
            examples = ranks.after_first(
                "training", lambda: training_examples(course, settings, is_stopped=is_over), is_over
            )
            watch = _watch(course, ranks, is_over)
            yield from train(
                task, examples, settings, course.folder, ranks=ranks, watch=watch, is_stopped=is_over
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
    if file.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OutputError(
            f"--ship {file}: cannot be written", code="E_OUTPUT", remedy="give a file in a folder of yours"
        )


def _task_of(course: Course, settings: TrainSettings) -> Task:
    return open_task(
        course.network,
        settings.seed,
        device=course.device,
        first=course.first,
        start=course.start,
        latent=course.latent,
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
        "preset": "small",
        "crm_version": __version__,
        "commit": course.commit,
        "settings": json.dumps(asdict(settings), sort_keys=True),
        "examples": str(course.examples),
        "held_out": json.dumps(scores, sort_keys=True),
    }
    if course.start is not None:
        metadata |= {"preset": course.start.architecture, "start": course.start.digest}
        if course.start.is_latent:
            ship_set(course.start, task.network, file, metadata)
            return scores
    save(task.network.cpu(), file, metadata)
    return scores
