"""Training: one loop, any loss, exact resume, any number of processes.

What step k sees depends on the seed and on k alone, and a checkpoint holds everything else that moves
(parameters, their running average, the optimiser's moments, the scale of half-precision gradients), so that
stopping and resuming at any step gives the file that an uninterrupted run gives, byte for byte on one kind of
machine. A step may be calculated in parts, in one process or in several: who calculates which part changes
nothing but the order in which numbers are added up.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, OutputError, StoppedEarly, UsageError
from crm_cli.learn.checkpoint import NAME, Lesson, restore, save_checkpoint
from crm_cli.learn.logs import open_logs
from crm_cli.learn.ranks import ALONE, Ranks
from crm_cli.learn.watch import Watch

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]

Terms = Mapping[str, Tensor]
"""Parts of a loss to be logged, by name: scalars on the device, read only where they are logged."""

Precision = Literal["float32", "bfloat16", "float16"]

LEAST_SCALE = 1.0
"""Of gradients in half precision; where even these are too large, no smaller scale helps."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long, how fast and from which seed; stored in the weights' metadata."""

    steps: int
    batch: int = 8
    """Examples calculated at once."""
    accumulate: int = 1
    """Parts of a step: it learns from so many times `batch`. Each part draws noise of its own, and the loss
    is their mean, as if they were one batch where a loss is a mean over its examples."""
    learning_rate: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 1e-3
    average: float = 0.995
    """Decay of the running average of the parameters; the average is what ships."""
    seed: int = 0
    precision: Precision = "float32"
    """Of matrix products and convolutions; parameters, and whatever is added up, stay in float32. bfloat16
    halves a step where the processor has units for it, and is many times slower where it has none. float16
    is for GPUs with units for nothing else: gradients are scaled, a step that overflows is skipped."""
    save_every: int = 500
    log_every: int = 50

    def __post_init__(self) -> None:
        """Refuse what would only show after hours."""
        wrong = {
            "--learning-rate": not (math.isfinite(self.learning_rate) and self.learning_rate > 0),
            "--average": not 0 <= self.average < 1,
            "--accumulate": self.accumulate < 1,
        }
        for flag, is_wrong in wrong.items():
            if is_wrong:
                value = getattr(self, flag[2:].replace("-", "_"))
                raise UsageError(
                    f"{flag} {value}: nothing would be learned",
                    code="E_TRAIN_SETTINGS",
                    remedy="see `crm train -h`",
                )


class Task(Protocol):
    """One network and its loss."""

    name: str
    network: nn.Module

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        """Return the scalar to minimise and what to log of it."""
        ...


class Examples(Protocol):
    """A set of training examples that can be read by index."""

    def at_step(self, step: int) -> int:
        """How many of them a step may choose from; it waits for those that are still being made."""
        ...

    def batch(self, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        """Stack some examples."""
        ...


@dataclass(slots=True)
class TrainState:
    """Everything that moves while a network trains."""

    step: int
    network: nn.Module
    average: dict[str, Tensor]
    optimiser: torch.optim.AdamW
    scaler: torch.amp.GradScaler
    """Of gradients in half precision; does nothing in the others."""
    diverged_at: Tensor
    """The first step whose gradients were not finite, or 0; on the device, so that reading it can wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one logged step looked like."""

    step: int
    loss: float
    terms: Mapping[str, float]
    learning_rate: float


def never() -> bool:
    """Nobody wants the run to stop."""
    return False


def learning_rate_at(step: int, settings: TrainSettings) -> float:
    """Linear warm-up, then one cosine down to a hundredth; no restarts."""
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return settings.learning_rate * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1.0, done))))


def begin(task: Task, settings: TrainSettings) -> TrainState:
    """A state before the first step."""
    decayed = [p for p in task.network.parameters() if p.ndim >= 2]
    plain = [p for p in task.network.parameters() if p.ndim < 2]
    device = next(task.network.parameters()).device
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        fused=device.type == "cuda",
    )
    average = {name: p.detach().clone() for name, p in task.network.state_dict().items()}
    return TrainState(
        step=0,
        network=task.network,
        average=average,
        optimiser=optimiser,
        scaler=torch.amp.GradScaler(device.type, enabled=settings.precision == "float16"),
        diverged_at=torch.zeros((), dtype=torch.int64, device=device),
    )


def train(
    task: Task,
    examples: Examples,
    settings: TrainSettings,
    folder: Path,
    *,
    until: int | None = None,
    lesson: Lesson = MappingProxyType({}),
    ranks: Ranks = ALONE,
    watch: Watch | None = None,
    is_stopped: Callable[[], bool] = never,
) -> Iterator[Progress]:
    """Train from the folder's checkpoint, or from the start, and save there; yields a line now and then.

    Args:
        task: the network and its loss.
        examples: what to learn from.
        settings: must equal those of the folder's checkpoint, if there is one, but for when to save and log.
        folder: receives `checkpoint.safetensors`, `log.csv`, and what `watch` asks for.
        until: stop (and save) at this step instead of the last.
        lesson: kept in the checkpoint; a run that learns something else does not go on from it.
        ranks: which share of every step is calculated here; the first process alone writes.
        watch: what to look at meanwhile; changes no parameter.
        is_stopped: asked after every step; the run then saves and ends.
    """
    _make(folder)
    state = begin(task, settings)
    file = folder / NAME
    if file.exists():
        restore(state, file, settings, lesson)
        log.info("resuming %s at step %d", task.name, state.step)
    ranks.require_same(state.step, "step")
    last = settings.steps if until is None else min(until, settings.steps)
    task.network.train()
    with open_logs(folder, state.step) if ranks.is_first else contextlib.nullcontext() as logs:
        while state.step < last:
            with _enough_memory(state.step + 1):
                loss, terms = _step(state, task, examples, settings, ranks)
            ends = ranks.any(is_stopped()) or state.step == last
            is_told = state.step % settings.log_every == 0 or state.step == last
            is_saved = state.step % settings.save_every == 0 or ends
            if is_told or is_saved or state.diverged_at.device.type == "cpu":
                _require_finite(state, folder)
            if is_told:
                progress = _progress(state, settings, loss, terms, ranks)
                if logs is not None:
                    logs.training(state.step, _columns(progress))
                yield progress
            if watch is not None and logs is not None:
                if (scores := watch.scores(task, state, last)) is not None:
                    logs.held_out(state.step, scores)
                if (picture := watch.sample(task, state, last)) is not None:
                    logs.picture(state.step, picture)
            if is_saved and ranks.is_first:
                save_checkpoint(state, file, settings, lesson)
            if ends:
                return


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"--out {folder}: {error.strerror}", code="E_OUTPUT", remedy="give a folder that can be made"
        ) from error


@contextlib.contextmanager
def _enough_memory(step: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise EnvironmentProblem(
            f"step {step}: the device has too little memory: {str(error).splitlines()[0]}",
            code="E_TRAIN_MEMORY",
            remedy="give half the --batch and twice the --accumulate, in another --out folder",
        ) from error


def _step(
    state: TrainState, task: Task, examples: Examples, settings: TrainSettings, ranks: Ranks
) -> tuple[Tensor, dict[str, Tensor]]:
    """Take one optimiser step; what it sees is drawn from (seed, step).

    Returns this process's part of the mean loss and of the mean terms.
    """
    chooser = np.random.default_rng([settings.seed, state.step])
    # One part sees the examples, and draws the noise, of a run that knows of no parts.
    seeds = [chooser.integers(2**62)]
    chosen = chooser.integers(examples.at_step(state.step), size=(settings.accumulate, settings.batch))
    seeds += list(chooser.integers(2**62, size=settings.accumulate - 1))
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate_at(state.step, settings)
    state.optimiser.zero_grad(set_to_none=True)
    loss, terms = torch.zeros_like(state.diverged_at, dtype=torch.float32), dict[str, Tensor]()
    for part in ranks.share(settings.accumulate):
        one, its_terms = _part(state, task, examples.batch(chosen[part]), int(seeds[part]), settings)
        loss = loss + one
        terms = {name: term + terms.get(name, 0.0) for name, term in its_terms.items()}
    ranks.add_gradients(state.network)
    descend(state)
    state.step += 1
    follow(state, settings)
    return loss, terms


def _part(
    state: TrainState, task: Task, batch: Batch, seed: int, settings: TrainSettings
) -> tuple[Tensor, dict[str, Tensor]]:
    """Add the gradients of one part of a step; returns its loss and terms, divided by the number of parts."""
    device = state.diverged_at.device
    random = torch.Generator(device).manual_seed(seed)
    moved = {name: tensor.to(device) for name, tensor in batch.items()}
    with calculating(settings.precision, device):
        loss, terms = task.loss(moved, random)
    share = 1 / settings.accumulate
    state.scaler.scale(loss * share).backward()  # type: ignore[no-untyped-call]
    return loss.detach() * share, {name: term.detach() * share for name, term in terms.items()}


def calculating(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Let products and convolutions be calculated in this precision."""
    if precision == "float32":
        return contextlib.nullcontext()
    return torch.autocast(device.type, getattr(torch, precision))


def descend(state: TrainState) -> None:
    """Let the optimiser go down the gradients, and remember when they first led nowhere."""
    state.scaler.unscale_(state.optimiser)
    norm = nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    if not state.scaler.is_enabled():
        is_first = (state.diverged_at == 0) & ~norm.isfinite()
        state.diverged_at = torch.where(is_first, state.step + 1, state.diverged_at)
    state.scaler.step(state.optimiser)
    state.scaler.update()


def follow(state: TrainState, settings: TrainSettings) -> None:
    """Let the average come a little after the parameters."""
    decay = min(settings.average, state.step / (state.step + 10))  # a young average follows quickly
    with torch.no_grad():
        current = state.network.state_dict()
        torch._foreach_lerp_([state.average[name] for name in current], list(current.values()), 1 - decay)


def _require_finite(state: TrainState, folder: Path) -> None:
    """Raise StoppedEarly where the parameters have become useless; what is in the folder still is of use."""
    step = int(state.diverged_at)
    if not step and state.scaler.is_enabled() and state.scaler.get_scale() < LEAST_SCALE:
        step = state.step
    if step:
        kept = folder / NAME
        raise StoppedEarly(
            f"step {step}: the loss or its gradients are no longer finite"
            + (f"; {kept} is from before" if kept.exists() else ""),
            code="E_TRAIN_DIVERGED",
            remedy="train into another --out folder with a lower --learning-rate, or in float32",
        )


def _progress(
    state: TrainState, settings: TrainSettings, loss: Tensor, terms: Mapping[str, Tensor], ranks: Ranks
) -> Progress:
    """Means over all parts of the last step."""
    means = torch.stack([loss, *(term.float() for term in terms.values())])
    ranks.add_up([means])
    first, *others = means.tolist()
    return Progress(
        step=state.step,
        loss=first,
        terms=dict(zip(terms, others, strict=True)),
        learning_rate=learning_rate_at(state.step - 1, settings),
    )


def _columns(progress: Progress) -> dict[str, float]:
    return {"learning_rate": progress.learning_rate, "loss": progress.loss, **progress.terms}
