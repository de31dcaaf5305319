"""Training: one loop, three losses, exact resume.

What step k sees depends on the seed and on k alone, and a checkpoint holds everything else that moves
(parameters, their running average, the optimiser's moments), so that stopping and resuming at any step
gives the file that an uninterrupted run gives, byte for byte on one kind of machine.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from crm_cli.errors import UsageError

log = logging.getLogger(__name__)

Batch = Mapping[str, Tensor]

Terms = Mapping[str, Tensor]
"""Parts of a loss to be logged, by name: scalars on the device, read only where they are logged."""

Precision = Literal["float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """How long, how fast and from which seed; stored in the weights' metadata."""

    steps: int
    batch: int = 8
    learning_rate: float = 1.5e-3
    warmup: int = 50
    weight_decay: float = 1e-3
    average: float = 0.995
    """Decay of the running average of the parameters; the average is what ships."""
    seed: int = 0
    precision: Precision = "float32"
    """Of matrix products and convolutions. bfloat16 halves a step where the processor has units for it, and
    is many times slower where it has none."""
    save_every: int = 500
    log_every: int = 50


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What one logged step looked like."""

    step: int
    loss: float
    terms: Mapping[str, float]
    learning_rate: float


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
    optimiser = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": plain, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.99),
        fused=next(task.network.parameters()).is_cuda,
    )
    average = {name: p.detach().clone() for name, p in task.network.state_dict().items()}
    return TrainState(step=0, network=task.network, average=average, optimiser=optimiser)


def train(
    task: Task, examples: Examples, settings: TrainSettings, folder: Path, *, until: int | None = None
) -> Iterator[Progress]:
    """Train from the folder's checkpoint, or from the start, and save there; yields a line now and then.

    Args:
        task: the network and its loss.
        examples: what to learn from.
        settings: must equal those of the checkpoint in the folder, if there is one.
        folder: receives `checkpoint.safetensors` and `log.csv`.
        until: stop (and save) at this step instead of the last.
    """
    folder.mkdir(parents=True, exist_ok=True)
    state = begin(task, settings)
    file = folder / "checkpoint.safetensors"
    if file.exists():
        restore(state, file, settings)
        log.info("resuming %s at step %d", task.name, state.step)
    last = settings.steps if until is None else min(until, settings.steps)
    task.network.train()
    while state.step < last:
        loss, terms = _step(state, task, examples, settings)
        if state.step % settings.log_every == 0 or state.step == last:
            progress = Progress(
                step=state.step,
                loss=loss.item(),
                terms={name: term.item() for name, term in terms.items()},
                learning_rate=learning_rate_at(state.step - 1, settings),
            )
            _append(folder / "log.csv", progress)
            yield progress
        if state.step % settings.save_every == 0 or state.step == last:
            save_checkpoint(state, file, settings)


def _step(state: TrainState, task: Task, examples: Examples, settings: TrainSettings) -> tuple[Tensor, Terms]:
    """Take one optimiser step; what it sees is drawn from (seed, step)."""
    device = next(state.network.parameters()).device
    chooser = np.random.default_rng([settings.seed, state.step])
    random = torch.Generator(device).manual_seed(int(chooser.integers(2**62)))
    chosen = chooser.integers(examples.at_step(state.step), size=settings.batch)
    batch = {name: tensor.to(device) for name, tensor in examples.batch(chosen).items()}
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate_at(state.step, settings)
    state.optimiser.zero_grad(set_to_none=True)
    with torch.autocast(device.type, torch.bfloat16, enabled=settings.precision == "bfloat16"):
        loss, terms = task.loss(batch, random)
    loss.backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_(state.network.parameters(), 1.0)
    state.optimiser.step()
    state.step += 1
    decay = min(settings.average, state.step / (state.step + 10))  # a young average follows quickly
    with torch.no_grad():
        current = state.network.state_dict()
        torch._foreach_lerp_([state.average[name] for name in current], list(current.values()), 1 - decay)
    return loss.detach(), terms


def save_checkpoint(state: TrainState, file: Path, settings: TrainSettings) -> None:
    """Write everything that moves, atomically; no pickle."""
    from safetensors.torch import save_file

    tensors = {f"network.{k}": v.contiguous() for k, v in state.network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in state.average.items()}
    for index, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v).contiguous() for k, v in slots.items()}
    partial = file.with_suffix(".part")
    # One entry only: with several, the order in the header changes from run to run.
    progress = json.dumps({"step": state.step, "settings": asdict(settings)}, sort_keys=True)
    save_file(tensors, partial, {"progress": progress})
    partial.replace(file)


def restore(state: TrainState, file: Path, settings: TrainSettings) -> None:
    """Read a checkpoint back into a fresh state; the settings must be the ones it was made with."""
    from safetensors import safe_open

    with safe_open(file, "pt") as opened:
        progress = json.loads(opened.metadata()["progress"])
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118 - not a mapping
    if progress["settings"] != asdict(settings):
        raise UsageError(
            f"{file}: made with other settings {progress['settings']}",
            code="E_TRAIN_SETTINGS",
            remedy="give the same settings, or another --out folder",
        )
    state.step = progress["step"]
    state.network.load_state_dict(_under("network.", tensors))
    device = next(state.network.parameters()).device
    state.average = {name: tensor.to(device) for name, tensor in _under("average.", tensors).items()}
    slots: dict[int, dict[str, Tensor]] = {}
    for key, value in _under("optimiser.", tensors).items():
        index, name = key.split(".", 1)
        slots.setdefault(int(index), {})[name] = value
    state.optimiser.load_state_dict(
        {"state": slots, "param_groups": state.optimiser.state_dict()["param_groups"]}
    )


def averaged(file: Path) -> dict[str, Tensor]:
    """The averaged parameters of a checkpoint: what ships."""
    from safetensors.torch import load_file

    return _under("average.", load_file(file))


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}


def _append(file: Path, progress: Progress) -> None:
    """Add one line to the training log."""
    is_new = not file.exists()
    with file.open("a", encoding="utf-8") as out:
        if is_new:
            out.write(",".join(["step", "learning_rate", "loss", *progress.terms]) + "\n")
        values = [progress.learning_rate, progress.loss, *progress.terms.values()]
        out.write(f"{progress.step}," + ",".join(f"{value:.6g}" for value in values) + "\n")
