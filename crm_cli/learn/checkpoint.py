"""Everything that moves while a network trains, in one file: written whole or not at all, read back strictly.

There is one checkpoint in a folder, the last good one. A run that diverges or finds the disk full leaves it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from crm_cli.errors import OutputError, UsageError

if TYPE_CHECKING:
    from crm_cli.learn.train import TrainSettings, TrainState

NAME = "checkpoint.safetensors"

Lesson = Mapping[str, Any]
"""What a run learns from and begins with, by the options that say so; see `lesson.lesson_of`."""

FREE = frozenset({"save_every", "log_every"})
"""Settings that no parameter depends on: a run may go on with others."""

WORDS = {"learning_rate": "--learning-rate", "weight_decay": "weight decay"}
"""What settings are called elsewhere; the others are flags of their own name."""


def save_checkpoint(state: TrainState, file: Path, settings: TrainSettings, lesson: Lesson) -> None:
    """Write everything that moves, atomically and to the disk; no pickle.

    Raises OutputError where there is no room; what stood there before then still does.
    """
    tensors = {f"network.{k}": v.contiguous() for k, v in state.network.state_dict().items()}
    tensors |= {f"average.{k}": v.contiguous() for k, v in state.average.items()}
    for index, slots in state.optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{index}.{k}": torch.as_tensor(v).contiguous() for k, v in slots.items()}
    if state.scaler.is_enabled():
        held = state.scaler.state_dict()
        tensors["scaler.scale"] = torch.tensor(held["scale"], dtype=torch.float64)
        tensors["scaler.growth_tracker"] = torch.tensor(held["_growth_tracker"])
    # One entry only: with several, the order in the header changes from run to run.
    progress = json.dumps(
        {"step": state.step, "settings": _deciding(settings), "lesson": dict(lesson)}, sort_keys=True
    )
    partial = file.with_suffix(".part")
    try:
        save_file(tensors, partial, {"progress": progress})
        with partial.open("rb") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True)
        kept = "; the checkpoint before it is kept" if file.exists() else ""
        raise OutputError(
            f"{file}: step {state.step} cannot be written: {error}{kept}",
            code="E_OUTPUT",
            remedy="free space or fix rights; the same command goes on from the checkpoint",
        ) from error


def check_checkpoint(file: Path, network: nn.Module, settings: TrainSettings, lesson: Lesson) -> int:
    """The step of a checkpoint that a run may go on from; UsageError where it is that of another run."""
    with _reading(file), safe_open(file, "pt") as opened:
        progress = json.loads((opened.metadata() or {})["progress"])
        shapes = {
            name.removeprefix("network."): list(opened.get_slice(name).get_shape())
            for name in opened.keys()  # noqa: SIM118 - not a mapping
            if name.startswith("network.")
        }
        step = int(progress["step"])
    _require_same(file, progress["settings"], settings, progress.get("lesson", {}), lesson)
    if shapes != {name: list(tensor.shape) for name, tensor in network.state_dict().items()}:
        raise UsageError(
            f"{file}: belongs to another network than this one",
            code="E_TRAIN_CHECKPOINT",
            remedy="give another --out folder: each network has its own",
        )
    return step


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Say what is to be done about a checkpoint that cannot be read."""
    try:
        yield
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise UsageError(
            f"{file}: cannot be read as a checkpoint: {error}",
            code="E_TRAIN_CHECKPOINT",
            remedy="remove it to begin anew, or give another --out folder",
        ) from error


def restore(state: TrainState, file: Path, settings: TrainSettings, lesson: Lesson) -> None:
    """Read a checkpoint back into a fresh state; see `check_checkpoint`."""
    state.step = check_checkpoint(file, state.network, settings, lesson)
    with _reading(file):
        tensors = load_file(file)
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
    if state.scaler.is_enabled():
        held = {
            "scale": tensors["scaler.scale"].item(),
            "_growth_tracker": tensors["scaler.growth_tracker"].item(),
        }
        state.scaler.load_state_dict(state.scaler.state_dict() | held)


def saved_step(folder: Path) -> int:
    """The step that a folder's checkpoint was made after; 0 where there is none that can be read."""
    try:
        with safe_open(folder / NAME, "pt") as opened:
            return int(json.loads(opened.metadata()["progress"])["step"])
    except (OSError, SafetensorError, KeyError, TypeError):
        return 0


def averaged(file: Path) -> dict[str, Tensor]:
    """The averaged parameters of a checkpoint: what ships."""
    return _under("average.", load_file(file))


def _deciding(settings: TrainSettings) -> dict[str, Any]:
    """The settings that every parameter depends on."""
    return {name: value for name, value in asdict(settings).items() if name not in FREE}


def _require_same(
    file: Path, stored: Mapping[str, Any], settings: TrainSettings, learnt: Lesson, lesson: Lesson
) -> None:
    """Raise UsageError where a checkpoint was made with other settings, or learned something else."""
    # What an older checkpoint does not name had its default then.
    given = type(settings)(steps=settings.steps)
    wrong = [
        f"{WORDS.get(name, f'--{name}')} {stored.get(name, getattr(given, name))}, not {value}"
        for name, value in _deciding(settings).items()
        if stored.get(name, getattr(given, name)) != value
    ]
    # Nor does it say what it learned: it goes on with what it is given.
    wrong += [
        f"{_said(name, learnt[name])}, not {_said(name, value)}"
        for name, value in lesson.items()
        if name in learnt and learnt[name] != value
    ]
    if wrong:
        raise UsageError(
            f"{file}: made with other settings: {', '.join(wrong)}",
            code="E_TRAIN_SETTINGS",
            remedy="give the same settings, or another --out folder",
        )


def _said(name: str, value: Any) -> str:
    """An option and its value, in words."""
    if value is None or isinstance(value, bool):
        return f"{'with' if value else 'without'} --{name}"
    return f"--{name} {value}"


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
