"""Training is a loop that can stop anywhere; a straight line is learned here instead of a network."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from crm_cli.errors import UsageError
from crm_cli.learn.train import (
    Batch,
    Terms,
    TrainSettings,
    averaged,
    begin,
    learning_rate_at,
    train,
)

SETTINGS = TrainSettings(steps=40, batch=4, learning_rate=0.1, warmup=5, seed=3, save_every=7, log_every=10)


class LineTask:
    """Learn y = 2x - 1 from noisy points, so that the loss uses the generator it is given."""

    name = "line"

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.network = nn.Linear(1, 1)

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        x = batch["x"] + 0.01 * torch.randn(batch["x"].shape, generator=random)
        error = (self.network(x) - (2 * batch["x"] - 1)).square().mean()
        return error, {"error": error}


class Points:
    """A thousand numbers."""

    def at_step(self, step: int) -> int:
        return 1000

    def batch(self, indices: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Batch:
        return {"x": torch.from_numpy(indices).float()[:, None] / 500 - 1}


def run(folder: Path, *, until: int | None = None, settings: TrainSettings = SETTINGS) -> list[float]:
    return [line.loss for line in train(LineTask(), Points(), settings, folder, until=until)]


def test_training_learns(tmp_path: Path) -> None:
    losses = run(tmp_path, settings=TrainSettings(steps=400, batch=16, learning_rate=0.1, log_every=20))
    assert losses[-1] < 0.01 * losses[0]


@pytest.mark.parametrize("stops", [(1,), (7, 8), (13, 26, 39)])
def test_stopping_and_resuming_gives_the_bytes_of_an_uninterrupted_run(
    tmp_path: Path, stops: tuple[int, ...]
) -> None:
    run(tmp_path / "straight")
    for stop in (*stops, None):
        run(tmp_path / "resumed", until=stop)
    straight, resumed = (
        (tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("straight", "resumed")
    )
    assert straight == resumed


def test_what_a_step_sees_depends_on_the_seed(tmp_path: Path) -> None:
    run(tmp_path / "a")
    other = TrainSettings(steps=40, batch=4, learning_rate=0.1, warmup=5, seed=4, save_every=7, log_every=10)
    run(tmp_path / "b", settings=other)
    a, b = (averaged(tmp_path / name / "checkpoint.safetensors")["weight"] for name in ("a", "b"))
    assert not torch.equal(a, b)


def test_a_checkpoint_refuses_other_settings(tmp_path: Path) -> None:
    run(tmp_path, until=5)
    with pytest.raises(UsageError, match="other settings"):
        run(tmp_path, settings=TrainSettings(steps=41, batch=4, learning_rate=0.1))


def test_a_finished_run_trains_no_further(tmp_path: Path) -> None:
    run(tmp_path)
    before = (tmp_path / "checkpoint.safetensors").read_bytes()
    assert run(tmp_path) == []
    assert (tmp_path / "checkpoint.safetensors").read_bytes() == before


def test_the_average_trails_the_parameters(tmp_path: Path) -> None:
    run(tmp_path, until=20)
    task = LineTask()
    start = begin(task, SETTINGS).average["weight"]
    average = averaged(tmp_path / "checkpoint.safetensors")["weight"]
    from safetensors.torch import load_file

    now = load_file(tmp_path / "checkpoint.safetensors")["network.weight"]
    assert min(start.item(), now.item()) < average.item() < max(start.item(), now.item())


def test_the_learning_rate_warms_up_and_falls_to_a_hundredth() -> None:
    rates = [learning_rate_at(step, SETTINGS) for step in range(SETTINGS.steps + 1)]
    assert rates[0] == pytest.approx(0.1 / 5)
    assert max(rates) == pytest.approx(0.1)
    assert rates.index(max(rates)) in (4, 5)
    assert rates[-1] == pytest.approx(0.001)
    assert all(a >= b for a, b in itertools.pairwise(rates[5:]))


def test_the_log_has_a_line_for_every_report_of_all_runs(tmp_path: Path) -> None:
    run(tmp_path, until=20)
    run(tmp_path)
    lines = (tmp_path / "log.csv").read_text().splitlines()
    assert lines[0] == "step,learning_rate,loss,error"
    assert [line.split(",")[0] for line in lines[1:]] == ["10", "20", "30", "40"]
