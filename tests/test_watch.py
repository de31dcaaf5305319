"""Looking at a network while it trains shows the average, and changes no byte."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_train import SETTINGS, LineTask, Points
from torch import Tensor

from crm_cli.learn.checkpoint import NAME, averaged
from crm_cli.learn.train import Batch, Terms, begin, train
from crm_cli.learn.watch import Watch, measure

SHORT = replace(SETTINGS, steps=12)

pytestmark = pytest.mark.usefixtures("no_board")


class HeldOutPoints(Points):
    def __len__(self) -> int:
        return 10

    def batch(self, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        return {"x": torch.from_numpy(indices).float()[:, None] / 10}


class ShownTask(LineTask):
    """Draws what it was given and its parameters; learns with dropout, from torch's own random state."""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[Tensor] = []

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        x = torch.nn.functional.dropout(batch["x"], 0.2, self.network.training)
        error = (self.network(x) - (2 * batch["x"] - 1)).square().mean()
        return error, {"error": error, "noise": torch.rand((), generator=random)}

    def show(self, batch: Batch, random: torch.Generator) -> Tensor:
        assert not self.network.training and not torch.is_grad_enabled()
        torch.rand(7)
        self.shown.append(self.network.weight.detach().clone())
        row = torch.cat([batch["x"].flatten(), torch.rand(2, generator=random)])
        return row.expand(3, 2, -1)


def run(folder: Path, task: ShownTask, *, until: int | None = None, **every: int) -> None:
    torch.manual_seed(3)
    watch = Watch(examples=HeldOutPoints(), **every) if every else None
    list(train(task, Points(), SHORT, folder, until=until, watch=watch))


def test_a_run_that_is_looked_at_gives_the_bytes_of_one_that_is_not(tmp_path: Path) -> None:
    run(tmp_path / "unseen", ShownTask())
    task = ShownTask()
    run(tmp_path / "seen", task, sample_every=2, measure_every=3)
    assert len(task.shown) == 6
    for name in (NAME, "log.csv"):
        assert (tmp_path / "unseen" / name).read_bytes() == (tmp_path / "seen" / name).read_bytes()


def test_the_averaged_parameters_are_looked_at(tmp_path: Path) -> None:
    task = ShownTask()
    run(tmp_path, task, sample_every=4)
    assert torch.equal(task.shown[-1], averaged(tmp_path / NAME)["weight"])
    assert not torch.equal(task.shown[-1], task.network.weight)


def test_what_is_measured_is_what_the_averaged_network_scores(tmp_path: Path) -> None:
    run(tmp_path, ShownTask(), measure_every=5)
    header, *lines = (tmp_path / "held-out.csv").read_text().splitlines()
    assert header == "step,error,noise"
    assert [line.split(",")[0] for line in lines] == ["5", "10", "12"]
    task = ShownTask()
    task.network.load_state_dict(averaged(tmp_path / NAME))
    scores = measure(task, HeldOutPoints())
    assert [*map(float, lines[-1].split(",")[1:])] == pytest.approx([*scores.values()])


def test_pictures_show_the_same_examples_with_the_same_noise(tmp_path: Path) -> None:
    run(tmp_path, ShownTask(), sample_every=5)
    files = sorted((tmp_path / "samples").iterdir())
    assert [file.name for file in files] == ["step-000005.png", "step-000010.png", "step-000012.png"]
    pictures = [np.asarray(Image.open(file)) for file in files]
    assert pictures[0].shape == (2, 6, 3)
    assert all(np.array_equal(pictures[0], picture) for picture in pictures[1:])
    # Four of ten, all over the set.
    assert pictures[0][0, :4, 0].tolist() == [0, 51, round(255 * 0.5), round(255 * 0.7)]


def test_an_error_while_looking_leaves_the_parameters_in_place() -> None:
    task = ShownTask()
    state = begin(task, SHORT)
    state.average["weight"] += 1
    state.step = 1
    before = task.network.weight.detach().clone()
    task.show = lambda batch, random: 1 / 0  # type: ignore[assignment,method-assign]
    with pytest.raises(ZeroDivisionError):
        Watch(examples=HeldOutPoints(), sample_every=1).sample(task, state, 12)
    assert torch.equal(task.network.weight, before) and task.network.training
    assert torch.equal(state.average["weight"], before + 1)


def test_a_task_that_has_nothing_to_show_is_measured_alone(tmp_path: Path) -> None:
    watch = Watch(examples=HeldOutPoints(), sample_every=1, measure_every=6)
    list(train(LineTask(), Points(), SHORT, tmp_path, watch=watch))
    assert not (tmp_path / "samples").exists()
    assert len((tmp_path / "held-out.csv").read_text().splitlines()) == 3
