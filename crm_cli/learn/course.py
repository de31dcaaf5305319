"""A whole training run: examples made where they are missing, a network trained, measured and shipped."""

from __future__ import annotations

import json
import logging
from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Thread
from typing import Literal, get_args

import numpy as np
import torch

from crm_cli import __version__
from crm_cli.errors import UsageError
from crm_cli.learn.data import HELD_OUT, SHARD, Growing, Shards, build
from crm_cli.learn.portraits import Portrayed, build_portraits
from crm_cli.learn.surface import EndToEnd, SurfaceTask
from crm_cli.learn.tasks import CcmTask, ReconstructionTask, RgbTask
from crm_cli.learn.train import Precision, Progress, Task, TrainSettings, averaged, train
from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB, MultiViewUNet
from crm_cli.models.loading import load, save
from crm_cli.models.reconstruction import RELEASE, SMALL

NetworkName = Literal["rgb", "ccm", "reconstruction"]

log = logging.getLogger(__name__)


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
    surface: EndToEnd | None = None
    """How the reconstruction is trained on pictures of its surface; None: on distances and colours."""
    commit: str = "unknown"
    """The source the file was made from; goes into its metadata."""

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
    surface: EndToEnd | None = None,
) -> Task:
    """A fresh network on its device, its first parameters drawn from the seed.

    first, surface: see `Course`.
    """
    if surface is not None and network != "reconstruction":
        raise UsageError(
            f"--end-to-end: {network} makes no surface",
            code="E_TRAIN_SURFACE",
            remedy="it is for the reconstruction",
        )
    torch.manual_seed(seed)
    task: Task
    if network == "rgb":
        task = RgbTask(SMALL_RGB)
    elif network == "ccm":
        task = CcmTask(SMALL_CCM, first=None if first is None else _first_stage(first, device))
    elif network == "reconstruction":
        task = ReconstructionTask(SMALL) if surface is None else _surface_task(surface, device)
    else:
        known = ", ".join(get_args(NetworkName))
        raise UsageError(f"no network named {network}", code="E_TRAIN_NETWORK", remedy=f"known: {known}")
    task.network.to(device)
    return task


def _surface_task(surface: EndToEnd, device: str) -> SurfaceTask:
    configs = {"small": SMALL, "release": RELEASE}
    if surface.architecture not in configs:
        raise UsageError(
            f"--architecture {surface.architecture}: no such architecture",
            code="E_TRAIN_ARCHITECTURE",
            remedy=f"one of {', '.join(configs)}",
        )
    return SurfaceTask(configs[surface.architecture], surface, device=device)


def _first_stage(file: Path, device: str) -> MultiViewUNet:
    """A trained first stage, in the precision of training."""
    with torch.device("meta"):
        network = MultiViewUNet(SMALL_RGB)
    load(network, [file], device=device)
    return network


def training_examples(course: Course, settings: TrainSettings) -> Shards | Growing | Portrayed:
    """The training set of a course, rendered where it is missing; meanwhile, where it may grow."""
    folder = course.data / "train"
    if not course.grow:
        return _examples(course, folder, course.examples, first_seed=0)
    # With no worker of its own, a course waits for what another one renders into the folder.
    if course.workers:
        rendering = build(folder, course.examples, course.workers, has_field=course.has_field)
        Thread(target=deque, args=(rendering, 0), daemon=True).start()
    first = min(course.examples, 16 * SHARD)
    return Growing(
        folder,
        course.examples,
        first=first,
        per_step=(course.examples - first) / (course.grow * settings.steps),
        device=course.device,
    )


def held_out_examples(course: Course) -> Shards | Portrayed:
    """The held-out set of a course, rendered where it is missing."""
    return _examples(course, course.data / "held-out", course.held_out, first_seed=HELD_OUT)


def _examples(course: Course, folder: Path, count: int, *, first_seed: int) -> Shards | Portrayed:
    workers = max(1, course.workers)
    for shard in build(folder, count, workers, first_seed=first_seed, has_field=course.has_field):
        log.info("examples: %s", shard)
    shards = Shards(folder, count)
    is_measured = course.network == "reconstruction" and course.surface is None
    if is_measured and len(shards) and not len(shards[0]["points"]):
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
    return shards if course.surface is None else _portrayed(shards, workers, first_seed=first_seed)


def _portrayed(shards: Shards, workers: int, *, first_seed: int) -> Portrayed:
    """Examples with their portraits, which are rendered beside them where they are missing."""
    folder = shards.folder.with_name(f"{shards.folder.name}-portraits")
    size_px = shards[0]["photo"].shape[-1]
    for shard in build_portraits(folder, len(shards), workers, first_seed=first_seed, size_px=size_px):
        log.info("portraits: %s", shard)
    return Portrayed(shards, Shards(folder, len(shards)))


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


def run_course(course: Course, settings: TrainSettings) -> Iterator[Progress]:
    """Train to the last step, continuing where an earlier run of the same course stopped."""
    if course.network == "reconstruction" and course.grow:
        raise UsageError(
            "--grow: only pictures are rendered meanwhile, and reconstruction learns from distances too",
            code="E_TRAIN_GROW",
            remedy="leave --grow out",
        )
    # First: a wrong name should not cost an hour of rendering.
    task = open_task(
        course.network, settings.seed, device=course.device, first=course.first, surface=course.surface
    )
    yield from train(task, training_examples(course, settings), settings, course.folder)


def measure(
    task: Task, examples: Shards | Portrayed, *, batch: int = 8, device: str = "cpu"
) -> dict[str, float]:
    """Mean of the task's terms over a held-out set, each batch with its own fixed noise."""
    task.network.eval()
    totals: Counter[str] = Counter()
    with torch.no_grad():
        for first in range(0, len(examples), batch):
            indices = np.arange(first, min(first + batch, len(examples)))
            chosen = {name: tensor.to(device) for name, tensor in examples.batch(indices).items()}
            _, terms = task.loss(chosen, torch.Generator(device).manual_seed(first))
            totals.update({term: len(indices) * value.item() for term, value in terms.items()})
    return {term: round(total / len(examples), 5) for term, total in totals.items()}


def ship(course: Course, settings: TrainSettings, file: Path) -> dict[str, float]:
    """Write the averaged parameters of a course's checkpoint as a weights file, with what they score."""
    task = open_task(
        course.network, settings.seed, device=course.device, first=course.first, surface=course.surface
    )
    task.network.load_state_dict(averaged(course.folder / "checkpoint.safetensors"))
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
    save(task.network.cpu(), file, metadata)
    return scores
