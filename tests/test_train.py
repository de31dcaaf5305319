"""Training is a loop that can stop anywhere; a straight line is learned here instead of a network."""

import itertools
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from crm_cli.errors import EnvironmentProblem, ExitCode, OutputError, StoppedEarly, UsageError
from crm_cli.learn.checkpoint import NAME, averaged, saved_step
from crm_cli.learn.train import Batch, Task, Terms, TrainSettings, begin, learning_rate_at, train

SETTINGS = TrainSettings(steps=40, batch=4, learning_rate=0.1, warmup=5, seed=3, save_every=7, log_every=10)
SETTINGS_AS_DICT = asdict(SETTINGS)

pytestmark = pytest.mark.usefixtures("no_board")


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


class PlainTask(LineTask):
    """The same without noise: the loss is a mean over examples and nothing else."""

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        error = (self.network(batch["x"]) - (2 * batch["x"] - 1)).square().mean()
        return error, {"error": error}


class SteepTask(PlainTask):
    """Its gradients are too large for half precision until their scale has come down."""

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        error, terms = super().loss(batch, random)
        return error.float() * 100, terms


class BreakingTask(LineTask):
    """Its process dies, or its loss is lost, at the so-many-th part that it calculates."""

    def __init__(self, at: int, *, dies: bool) -> None:
        super().__init__()
        self.left, self.dies = at, dies

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        self.left -= 1
        if self.left < 0 and self.dies:
            raise KeyboardInterrupt
        error, terms = super().loss(batch, random)
        return (error * torch.nan if self.left < 0 else error), terms


def run(
    folder: Path,
    *,
    until: int | None = None,
    settings: TrainSettings = SETTINGS,
    task: Task | None = None,
) -> list[float]:
    return [line.loss for line in train(task or LineTask(), Points(), settings, folder, until=until)]


def parameters(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / NAME)


def test_training_learns(tmp_path: Path) -> None:
    losses = run(tmp_path, settings=TrainSettings(steps=200, batch=16, learning_rate=0.1, log_every=20))
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
    now = parameters(tmp_path)["network.weight"]
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


@pytest.mark.parametrize("part", [3 * 9, 3 * 9 + 1, 3 * 9 + 2])
def test_dying_between_parts_of_a_step_costs_that_step_alone(tmp_path: Path, part: int) -> None:
    settings = replace(SETTINGS, accumulate=3, steps=12, save_every=1)
    run(tmp_path / "straight", settings=settings)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "died", settings=settings, task=BreakingTask(part, dies=True))
    assert saved_step(tmp_path / "died") == 9
    run(tmp_path / "died", settings=settings)
    straight, died = ((tmp_path / name / NAME).read_bytes() for name in ("straight", "died"))
    assert straight == died


def test_parts_of_a_step_are_one_batch(tmp_path: Path) -> None:
    whole, parts = replace(SETTINGS, batch=12), replace(SETTINGS, batch=4, accumulate=3)
    losses = [
        run(tmp_path / name, settings=settings, task=PlainTask())
        for name, settings in (("whole", whole), ("parts", parts))
    ]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    one, other = parameters(tmp_path / "whole"), parameters(tmp_path / "parts")
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-4, atol=1e-6)
    assert not torch.equal(one["network.weight"], begin(PlainTask(), whole).average["weight"])


def test_each_part_of_a_step_sees_examples_and_noise_of_its_own(tmp_path: Path) -> None:
    seen: list[tuple[tuple[float, ...], float]] = []

    class Noting(LineTask):
        def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
            seen.append((tuple(batch["x"].flatten().tolist()), torch.rand((), generator=random).item()))
            return super().loss(batch, random)

    run(tmp_path, settings=replace(SETTINGS, accumulate=3), until=2, task=Noting())
    assert len(set(seen)) == 6
    assert len({noise for _, noise in seen}) == 6


def test_half_precision_learns_and_resumes_to_the_byte(tmp_path: Path) -> None:
    settings = replace(SETTINGS, precision="float16")
    losses = run(tmp_path / "straight", settings=settings)
    assert losses[-1] < 0.2 * losses[0]
    run(tmp_path / "resumed", settings=settings, until=17)
    run(tmp_path / "resumed", settings=settings)
    assert (tmp_path / "straight" / NAME).read_bytes() == (tmp_path / "resumed" / NAME).read_bytes()
    full = run(tmp_path / "full")
    assert losses[-1] == pytest.approx(full[-1], rel=0.5, abs=0.02)


def test_steps_that_overflow_in_half_precision_are_skipped_and_the_scale_is_kept(tmp_path: Path) -> None:
    settings = replace(SETTINGS, precision="float16", weight_decay=0.0)
    start = begin(SteepTask(), settings)
    run(tmp_path / "resumed", settings=settings, until=3, task=SteepTask())
    early = parameters(tmp_path / "resumed")
    assert torch.equal(early["network.weight"], start.average["weight"])
    assert early["scaler.scale"] == start.scaler.get_scale() / 2**3
    run(tmp_path / "resumed", settings=settings, task=SteepTask())
    run(tmp_path / "straight", settings=settings, task=SteepTask())
    assert not torch.equal(parameters(tmp_path / "straight")["network.weight"], start.average["weight"])
    assert (tmp_path / "straight" / NAME).read_bytes() == (tmp_path / "resumed" / NAME).read_bytes()


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_a_loss_that_is_no_number_ends_the_run_and_leaves_the_checkpoint(
    tmp_path: Path, precision: str
) -> None:
    settings = TrainSettings(**{**SETTINGS_AS_DICT, "precision": precision})
    with pytest.raises(StoppedEarly, match="E_TRAIN_DIVERGED") as caught:
        run(tmp_path, settings=settings, task=BreakingTask(12, dies=False))
    # In half precision the scale is lowered first, as long as that could help.
    assert ("step 13:" in str(caught.value)) == (precision == "float32")
    assert saved_step(tmp_path) in ((7,) if precision == "float32" else (14, 21, 28))
    assert str(tmp_path / NAME) in str(caught.value) and "learning-rate" in caught.value.remedy
    assert caught.value.exit_code == ExitCode.STOPPED_EARLY
    assert all(tensor.isfinite().all() for tensor in parameters(tmp_path).values())


def test_a_run_that_is_asked_to_stop_saves_at_that_step(tmp_path: Path) -> None:
    run(tmp_path / "straight")
    asked = itertools.count(1)
    stopped = train(
        LineTask(), Points(), SETTINGS, tmp_path / "stopped", is_stopped=lambda: next(asked) == 11
    )
    assert [line.step for line in stopped] == [10]
    assert saved_step(tmp_path / "stopped") == 11
    run(tmp_path / "stopped")
    for name in (NAME, "log.csv"):
        assert (tmp_path / "straight" / name).read_bytes() == (tmp_path / "stopped" / name).read_bytes()


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """As a full disk, for this process."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_leaves_the_checkpoint_before_and_says_what_to_do(tmp_path: Path) -> None:
    run(tmp_path, until=7)
    before = (tmp_path / NAME).read_bytes()
    with files_of_at_most(300), pytest.raises(OutputError, match="step 14 cannot be written") as caught:
        run(tmp_path)
    assert "before it is kept" in str(caught.value)
    assert (tmp_path / NAME).read_bytes() == before
    assert not list(tmp_path.glob("*.part"))
    run(tmp_path)
    run(tmp_path / "straight")
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "straight" / NAME).read_bytes()


def test_a_checkpoint_that_does_not_reach_the_disk_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("crm_cli.learn.checkpoint.os.fsync", fail)
    with pytest.raises(OutputError, match=r"step 7 cannot be written.*No space left on device"):
        run(tmp_path)
    assert not list(tmp_path.glob("checkpoint*"))


def test_how_often_a_run_saves_and_logs_may_change(tmp_path: Path) -> None:
    run(tmp_path, until=7)
    run(tmp_path, settings=replace(SETTINGS, save_every=3, log_every=1))
    run(tmp_path / "straight")
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "straight" / NAME).read_bytes()


def test_the_message_about_other_settings_names_those_alone(tmp_path: Path) -> None:
    run(tmp_path, until=5)
    with pytest.raises(UsageError) as caught:
        run(tmp_path, settings=replace(SETTINGS, learning_rate=0.2, batch=5))
    assert caught.value.cause.endswith("other settings: --batch 4, not 5, --learning-rate 0.1, not 0.2")


def test_a_checkpoint_of_an_older_version_goes_on(tmp_path: Path) -> None:
    """Those that know of no parts name when they save, and saw what one part sees."""
    import json

    from safetensors.torch import save_file

    run(tmp_path, until=7)
    old = {name: value for name, value in SETTINGS_AS_DICT.items() if name != "accumulate"}
    progress = json.dumps({"step": 7, "settings": {**old, "save_every": 99}}, sort_keys=True)
    save_file(parameters(tmp_path), tmp_path / NAME, {"progress": progress})
    run(tmp_path)
    run(tmp_path / "straight")
    assert (tmp_path / NAME).read_bytes() == (tmp_path / "straight" / NAME).read_bytes()


@pytest.mark.parametrize("content", [b"", b"nothing", b"\x02\0\0\0\0\0\0\0{}"])
def test_a_checkpoint_that_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / NAME).write_bytes(content)
    assert saved_step(tmp_path) == 0
    with pytest.raises(UsageError, match="E_TRAIN_CHECKPOINT"):
        run(tmp_path)
    assert (tmp_path / NAME).read_bytes() == content


def test_a_checkpoint_of_another_network_is_refused(tmp_path: Path) -> None:
    run(tmp_path, until=5)
    other = LineTask()
    other.network = nn.Linear(1, 2)
    with pytest.raises(UsageError, match="another network"):
        run(tmp_path, task=other)


def test_lines_of_steps_that_are_taken_again_are_dropped(tmp_path: Path) -> None:
    for line in train(LineTask(), Points(), SETTINGS, tmp_path):
        if line.step == 20:
            break
    assert saved_step(tmp_path) == 14
    log = tmp_path / "log.csv"
    log.write_text(log.read_text() + "30,0.0")  # as a power cut leaves it
    run(tmp_path)
    run(tmp_path / "straight")
    assert log.read_text() == (tmp_path / "straight" / "log.csv").read_text()


@pytest.mark.parametrize(
    ("name", "value"),
    [("learning_rate", float("nan")), ("learning_rate", 0.0), ("average", 1.0), ("accumulate", 0)],
)
def test_settings_that_learn_nothing_are_refused(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"--{name.replace('_', '-')} {value}"):
        TrainSettings(**{"steps": 1, name: value})


def test_a_folder_that_cannot_be_made_is_told_apart_from_a_bug(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(OutputError, match="--out"):
            run(folder)


def test_a_device_with_too_little_memory_is_told_apart_from_a_bug(tmp_path: Path) -> None:
    class Large(LineTask):
        def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nSee more.")

    with pytest.raises(EnvironmentProblem, match="E_TRAIN_MEMORY") as caught:
        run(tmp_path, task=Large())
    assert "step 1:" in caught.value.cause and "20.00 GiB." in caught.value.cause
    assert "--accumulate" in caught.value.remedy
