"""A whole training run: examples made where they are missing, a network trained, measured and shipped."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Literal, get_args

import numpy as np
import torch

from crm_cli import __version__
from crm_cli.errors import UsageError
from crm_cli.learn.data import HELD_OUT, Shards, build
from crm_cli.learn.tasks import CcmTask, ReconstructionTask, RgbTask
from crm_cli.learn.train import Precision, Progress, Task, TrainSettings, averaged, train
from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB
from crm_cli.models.reconstruction import SMALL
from crm_cli.models.weights import save

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
    commit: str = "unknown"
    """The source the file was made from; goes into its metadata."""


def open_task(network: str, seed: int) -> Task:
    """A fresh network, its first parameters drawn from the seed."""
    torch.manual_seed(seed)
    if network == "rgb":
        return RgbTask(SMALL_RGB)
    if network == "ccm":
        return CcmTask(SMALL_CCM)
    if network == "reconstruction":
        return ReconstructionTask(SMALL)
    known = ", ".join(get_args(NetworkName))
    raise UsageError(f"no network named {network}", code="E_TRAIN_NETWORK", remedy=f"known: {known}")


def make_examples(course: Course) -> tuple[Shards, Shards]:
    """The training and the held-out set of a course, rendered where they are missing."""
    for name, first_seed, count in (("train", 0, course.examples), ("held-out", HELD_OUT, course.held_out)):
        for shard in build(course.data / name, count, course.workers, first_seed=first_seed):
            log.info("examples: %s", shard)
    return Shards(course.data / "train", course.examples), Shards(course.data / "held-out", course.held_out)


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
    task = open_task(
        course.network, settings.seed
    )  # first: a wrong name should not cost an hour of rendering
    examples, _ = make_examples(course)
    yield from train(task, examples, settings, course.folder)


def measure(task: Task, examples: Shards, *, batch: int = 8) -> dict[str, float]:
    """Mean of the task's terms over a held-out set, each batch with its own fixed noise."""
    task.network.eval()
    rows: list[Mapping[str, float]] = []
    with torch.no_grad():
        for first in range(0, len(examples) - batch + 1, batch):
            random = torch.Generator().manual_seed(first)
            rows.append(task.loss(examples.batch(np.arange(first, first + batch)), random)[1])
    return {term: round(fmean(row[term] for row in rows), 5) for term in rows[0]}


def ship(course: Course, settings: TrainSettings, file: Path) -> dict[str, float]:
    """Write the averaged parameters of a course's checkpoint as a weights file, with what they score."""
    task = open_task(course.network, settings.seed)
    task.network.load_state_dict(averaged(course.folder / "checkpoint.safetensors"))
    scores = measure(task, make_examples(course)[1])
    metadata = {
        "network": course.network,
        "crm_version": __version__,
        "commit": course.commit,
        "settings": json.dumps(asdict(settings), sort_keys=True),
        "examples": str(course.examples),
        "held_out": json.dumps(scores, sort_keys=True),
    }
    save(task.network, file, metadata)
    return scores
