"""A look at a network while it trains: pictures and scores of products that it does not learn from.

It is the averaged parameters that are looked at, since those ship. Looking changes nothing: parameters
change places for the moment, and every random number comes from generators of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

if TYPE_CHECKING:
    from crm_cli.learn.train import Batch, Task, TrainState

SHOWN = 4
"""Products in a sample picture."""


class HeldOut(Protocol):
    """Examples that nothing is learned from."""

    def __len__(self) -> int: ...

    def batch(self, indices: NDArray[np.int64]) -> Batch:
        """Stack some examples."""
        ...


@runtime_checkable
class Showing(Protocol):
    """A task that can show what its network makes of examples."""

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Draw a picture [3 H W] in [0, 1]: what is given, what comes of it, and the truth."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Watch:
    """What to look at, and how often. Every 0 steps is never."""

    examples: HeldOut
    sample_every: int = 0
    measure_every: int = 0

    def sample(self, task: Task, state: TrainState, last: int) -> Tensor | None:
        """A picture, at steps that want one."""
        if not _is_time(state.step, self.sample_every, last) or not isinstance(task, Showing):
            return None
        count = min(SHOWN, len(self.examples))
        indices = np.arange(count) * len(self.examples) // count  # over all of them
        device = _device(task.network)
        chosen = {name: tensor.to(device) for name, tensor in self.examples.batch(indices).items()}
        with _looking(task.network, state.average):
            return task.show(chosen, torch.Generator(device).manual_seed(0))

    def scores(self, task: Task, state: TrainState, last: int) -> Mapping[str, float] | None:
        """Means over all held-out examples, at steps that want them."""
        if not _is_time(state.step, self.measure_every, last):
            return None
        with _looking(task.network, state.average):
            return measure(task, self.examples, device=_device(task.network))


def measure(task: Task, examples: HeldOut, *, batch: int = 8, device: str = "cpu") -> dict[str, float]:
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


def _is_time(step: int, every: int, last: int) -> bool:
    return every > 0 and (step % every == 0 or step == last)


def _device(network: nn.Module) -> str:
    return str(next(network.parameters()).device)


@contextmanager
def _looking(network: nn.Module, average: Mapping[str, Tensor]) -> Iterator[None]:
    """Evaluate with other parameters for a while; afterwards everything is as before, to the bit."""
    was_training = network.training
    device = torch.device(_device(network))
    network.eval()
    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.no_grad():
        _exchange(network, average)
        try:
            yield
        finally:
            _exchange(network, average)
            network.train(was_training)


def _exchange(network: nn.Module, others: Mapping[str, Tensor]) -> None:
    """Let parameters and others of the same names change their memory: nothing is copied."""
    for name, own in network.state_dict(keep_vars=True).items():
        own.data, others[name].data = others[name].data, own.data
