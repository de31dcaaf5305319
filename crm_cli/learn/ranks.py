"""Several processes that train one network together, as `torchrun` starts them.

Each holds the whole network and calculates its share of every step; gradients are added up between them,
so that all take the same step. No wrapper around the network does that: losses call more of a network than
its forward pass. A process that ends takes the others with it, and `torchrun` says which was the first.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Protocol, TypeVar

import torch
from torch import Tensor, distributed, nn

from crm_cli.errors import EnvironmentProblem, UsageError
from crm_cli.models.shards import grouped

BUCKET_BYTES = 32 << 20
"""Gradients added up at once: enough that starting costs nothing, little beside the network."""

PATIENCE = timedelta(hours=6)
"""How long one waits for another within a step: while the first measures or writes, the others wait."""

POLL_S = 0.1

Result = TypeVar("Result")


class Words(Protocol):
    """Where processes leave word for each other."""

    def set(self, name: str, value: str) -> None:
        """Leave word under a name."""
        ...

    def check(self, names: list[str]) -> bool:
        """Whether there is word under all these names."""
        ...


class Stopped(Exception):
    """Somebody wants a run to stop while there is nothing yet to save."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ranks:
    """Which of how many processes this is."""

    rank: int = 0
    count: int = 1
    local: int = 0
    """Which of those on this machine; the GPU of this number is its own."""
    words: Words | None = None
    """Of those that have joined."""

    @classmethod
    def of_environment(cls, variables: Mapping[str, str] = os.environ) -> Ranks:
        """What `torchrun` has set; alone where it has set nothing."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
        if not variables.keys() >= set(names):  # schedulers set one or the other by themselves
            return cls()
        rank, count, local = (int(variables[name]) for name in names)
        return cls(rank=rank, count=count, local=local)

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, tells and renders."""
        return self.rank == 0

    def share(self, parts: int) -> range:
        """Numbers of the parts of a step that this process calculates; as many for each."""
        if parts % self.count:
            raise UsageError(
                f"--accumulate {parts}: {self.count} processes cannot share so many parts of a step",
                code="E_TRAIN_PROCESSES",
                remedy=f"give a multiple of {self.count}, or leave it out",
            )
        each = parts // self.count
        return range(self.rank * each, (self.rank + 1) * each)

    def device(self, name: str) -> str:
        """The device of this process, of the kind of the one named: all share a CPU, none a GPU."""
        return f"cuda:{self.local}" if self.count > 1 and name != "cpu" else name

    def add_up(self, tensors: Iterable[Tensor]) -> None:
        """Replace tensors of one device and kind by their sums over all processes, the same bytes in each."""
        if self.count == 1:
            return
        for bucket in grouped(tensors, lambda tensor: tensor.nbytes, BUCKET_BYTES):
            flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
            _all_reduce(flat, distributed.ReduceOp.SUM)
            sums = torch.split(flat, [tensor.numel() for tensor in bucket])
            for tensor, total in zip(bucket, sums, strict=True):
                tensor.copy_(total.view_as(tensor))

    def add_gradients(self, network: nn.Module) -> None:
        """Add up the gradients of a network; nought where a parameter has none.

        Also with one process: an optimiser passes over a parameter without a gradient, and whether it does
        must not depend on who calculates what.
        """
        trained = [p for p in network.parameters() if p.requires_grad]
        for parameter in trained:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.add_up(p.grad for p in trained if p.grad is not None)

    def any(self, claim: bool) -> bool:
        """Whether it is so in one process at least; all are told alike."""
        if self.count == 1:
            return claim
        told = torch.tensor(int(claim))
        _all_reduce(told, distributed.ReduceOp.MAX)
        return bool(told)

    def after_first(self, what: str, work: Callable[[], Result], is_stopped: Callable[[], bool]) -> Result:
        """Do some work in the first process, and then, when it is as good as done, in the others.

        what: names the work; no name twice in a run. They wait however long it takes, or until they are
        to stop: Stopped.
        """
        if self.words is None or self.is_first:
            result = work()
            if self.words is not None:
                self.words.set(what, "done")
            return result
        while not self.words.check([what]):
            if is_stopped():
                raise Stopped
            time.sleep(POLL_S)
        return work()

    def require_same(self, number: int, what: str) -> None:
        """Raise unless all processes have the same number."""
        if self.count == 1:
            return
        ends = torch.tensor([number, -number])
        _all_reduce(ends, distributed.ReduceOp.MAX)
        if ends[0] != -ends[1]:
            raise EnvironmentProblem(
                f"process {self.rank} begins with {what} {number}, and another one does not",
                code="E_TRAIN_PROCESSES",
                remedy="let all processes see the same --out folder",
            )


ALONE = Ranks()


@contextmanager
def joined(ranks: Ranks, device: str) -> Iterator[Ranks]:
    """Let the processes find each other, by the address that `torchrun` gave them, and part at the end."""
    if ranks.count == 1:
        yield ranks
        return
    on_gpu = torch.device(device).type == "cuda"
    # torch does not mark these as its own, though they are documented.
    store, _, _ = next(distributed.rendezvous("env://", timeout=PATIENCE))  # type: ignore[attr-defined]
    group, words = (distributed.PrefixStore(name, store) for name in ("group", "words"))  # type: ignore[attr-defined]
    distributed.init_process_group(
        # Wishes to stop are told on the CPU, so that no step waits for the GPU to hear of them.
        "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
        store=group,
        rank=ranks.rank,
        world_size=ranks.count,
        timeout=PATIENCE,
        device_id=torch.device(device) if on_gpu else None,
    )
    try:
        yield replace(ranks, words=words)
    finally:
        distributed.destroy_process_group()


def _all_reduce(tensor: Tensor, how: distributed.ReduceOp.RedOpType) -> None:
    try:
        distributed.all_reduce(tensor, how)
    except RuntimeError as error:  # all of torch's own, where a connection is lost
        raise EnvironmentProblem(
            f"another process of this training has ended: {str(error).splitlines()[0]}",
            code="E_TRAIN_PROCESSES",
            remedy="see what it said; the same command goes on from the last checkpoint",
        ) from error
