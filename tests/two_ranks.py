"""Started twice by `torchrun`: trains a line in two processes, and writes what came of it.

    torchrun --standalone --nproc-per-node 2 tests/two_ranks.py FOLDER

Runs `first` and `second` are the same; `lone` is told to stop in the second process alone; `broken` ends with
a failure of the second process, and with it of both.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from test_train import SETTINGS, LineTask, Points, Terms
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem
from crm_cli.learn import logs, ranks
from crm_cli.learn.train import Batch, train

PARTS = replace(SETTINGS, accumulate=4)
BROKEN_AT = 5


class UnevenTask(LineTask):
    """Only one of the four parts of a step has anything to say about the second parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.network = nn.Linear(1, 1)
        self.network.register_parameter("shift", nn.Parameter(torch.ones(3)))
        nn.init.constant_(self.network.weight, 0.5)
        nn.init.zeros_(self.network.bias)
        self.parts = 0

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        error, terms = super().loss(batch, random)
        is_told = torch.rand((), generator=random) < 0.25
        return (error + self.network.shift.square().sum() if is_told else error), terms


class FailingTask(LineTask):
    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        BROKEN.append(0)
        if len(BROKEN) > 2 * BROKEN_AT and ranks.Ranks.of_environment().rank == 1:
            raise ZeroDivisionError
        return super().loss(batch, random)


BROKEN: list[int] = []


def main(folder: Path) -> None:
    logs._board = lambda folder, step: None  # type: ignore[assignment]
    ranks.BUCKET_BYTES = 8  # so that a bucket holds less than all
    here = ranks.Ranks.of_environment()
    with ranks.joined(here, "cpu") as together:
        for name in ("first", "second"):
            list(train(UnevenTask(), Points(), PARTS, folder / name, ranks=together))
        asked = []

        def is_stopped() -> bool:
            asked.append(0)
            return here.rank == 1 and len(asked) == 11

        list(train(LineTask(), Points(), PARTS, folder / "lone", ranks=together, is_stopped=is_stopped))
        order = together.after_first("work", lambda: _note(folder / "order"), lambda: False)
        told = {"rank": here.rank, "steps": len(asked), "order": order}
        try:
            together.require_same(here.rank, "step")
        except EnvironmentProblem as error:
            told["refused"] = error.code
        (folder / f"told-{here.rank}.json").write_text(json.dumps(told))
        list(train(FailingTask(), Points(), PARTS, folder / "broken", ranks=together))
        (folder / f"finished-{here.rank}").write_text("")


def _note(file: Path) -> int:
    """How many have done this work before."""
    before = len(file.read_text()) if file.exists() else 0
    with file.open("a") as out:
        out.write("x")
    return before


if __name__ == "__main__":
    main(Path(sys.argv[1]))
