"""A whole training run: examples made where they are missing, a network trained, measured and shipped."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch

from crm_cli import __version__
from crm_cli.errors import UsageError
from crm_cli.learn.data import HELD_OUT, Shards, build
from crm_cli.learn.tasks import CcmTask, ReconstructionTask, RgbTask
from crm_cli.learn.train import Precision, Progress, Task, TrainSettings, averaged, train
from crm_cli.models.denoiser import SMALL_CCM, SMALL_RGB
from crm_cli.models.loading import save
from crm_cli.models.reconstruction import SMALL

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
    return (
        _examples(course.data / "train", course.examples, course.workers, first_seed=0),
        _examples(course.data / "held-out", course.held_out, course.workers, first_seed=HELD_OUT),
    )


def _examples(folder: Path, count: int, workers: int, *, first_seed: int) -> Shards:
    for shard in build(folder, count, workers, first_seed=first_seed):
        log.info("examples: %s", shard)
    shards = Shards(folder, count)
    if len(shards) < count:
        raise UsageError(
            f"{folder}: {len(shards)} examples, not {count}: a finished file is never added to",
            code="E_TRAIN_DATA",
            remedy=f"remove {shards.files[-1].name} there, or give another --data folder",
        )
    return shards


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
    # First: a wrong name should not cost an hour of rendering.
    task = open_task(course.network, settings.seed)
    examples, _ = make_examples(course)
    yield from train(task, examples, settings, course.folder)


def measure(task: Task, examples: Shards, *, batch: int = 8) -> dict[str, float]:
    """Mean of the task's terms over a held-out set, each batch with its own fixed noise."""
    task.network.eval()
    totals: Counter[str] = Counter()
    with torch.no_grad():
        for first in range(0, len(examples), batch):
            indices = np.arange(first, min(first + batch, len(examples)))
            _, terms = task.loss(examples.batch(indices), torch.Generator().manual_seed(first))
            totals.update({term: len(indices) * value for term, value in terms.items()})
    return {term: round(total / len(examples), 5) for term, total in totals.items()}


def ship(course: Course, settings: TrainSettings, file: Path) -> dict[str, float]:
    """Write the averaged parameters of a course's checkpoint as a weights file, with what they score."""
    task = open_task(course.network, settings.seed)
    task.network.load_state_dict(averaged(course.folder / "checkpoint.safetensors"))
    scores = measure(task, make_examples(course)[1])
    metadata = {
        "network": course.network,
        "preset": "small",
        "crm_version": __version__,
        "commit": course.commit,
        "settings": json.dumps(asdict(settings), sort_keys=True),
        "examples": str(course.examples),
        "held_out": json.dumps(scores, sort_keys=True),
    }
    save(task.network, file, metadata)
    return scores
