"""Whole courses with networks and pictures so small that a step takes milliseconds."""

from __future__ import annotations

import json
import multiprocessing
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import get_args

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from crm_cli import __version__
from crm_cli.errors import EnvironmentProblem, OutputError, UsageError
from crm_cli.learn import course as module
from crm_cli.learn import rendering
from crm_cli.learn.checkpoint import NAME, averaged
from crm_cli.learn.course import (
    Course,
    NetworkName,
    check_precision,
    measure,
    open_task,
    run_course,
    ship,
)
from crm_cli.learn.data import HELD_OUT, Growing, Shards, build, write_shard
from crm_cli.learn.portraits import write_portraits
from crm_cli.learn.rendering import held_out_examples, training_examples
from crm_cli.learn.surface import EndToEnd
from crm_cli.learn.train import Batch, Precision, Progress, Terms, TrainSettings
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import loading
from crm_cli.models.reconstruction import MINI, Reconstruction
from crm_cli.toolbox import accelerators

NETWORKS: tuple[str, ...] = get_args(NetworkName)
SETTINGS = TrainSettings(steps=4, batch=2, warmup=2, save_every=1, log_every=1)

pytestmark = pytest.mark.usefixtures("tiny_networks")


def course_of(network: str, data: Path, folder: Path) -> Course:
    return Course(network=network, data=data, folder=folder, examples=4, held_out=5, commit="abc123")


def checkpoint(course: Course) -> bytes:
    return (course.folder / "checkpoint.safetensors").read_bytes()


def interrupted(lines: Iterator[Progress], step: int) -> None:
    """Stop listening in the middle of a run, as a killed process does."""
    for line in lines:
        if line.step == step:
            return


@pytest.mark.parametrize("network", NETWORKS)
def test_a_resumed_course_gives_the_bytes_of_an_uninterrupted_one(
    network: str, data: Path, tmp_path: Path
) -> None:
    straight = course_of(network, data, tmp_path / "straight")
    assert [line.step for line in run_course(straight, SETTINGS)] == [1, 2, 3, 4]
    resumed = course_of(network, data, tmp_path / "resumed")
    interrupted(run_course(resumed, SETTINGS), 3)
    assert checkpoint(resumed) != checkpoint(straight)
    # The third step was taken but not saved: it is taken again.
    assert [line.step for line in run_course(resumed, SETTINGS)] == [3, 4]
    assert checkpoint(resumed) == checkpoint(straight)


@pytest.mark.parametrize("network", NETWORKS)
def test_what_is_shipped_loads_strictly_and_says_what_it_is(network: str, data: Path, tmp_path: Path) -> None:
    course = course_of(network, data, tmp_path / "run")
    list(run_course(course, SETTINGS))
    file = tmp_path / f"{network}.safetensors"
    scores = ship(course, SETTINGS, file)
    assert scores and all(np.isfinite(score) for score in scores.values())

    task = open_task(network, seed=99)
    loading.load(task.network, [file])
    with safe_open(file, "pt") as opened:
        metadata = json.loads(opened.metadata()[loading.METADATA_KEY])
    average = averaged(course.folder / "checkpoint.safetensors")
    for name, tensor in task.network.state_dict().items():
        assert torch.equal(tensor, average[name].half().to(tensor.dtype)), name
    # Half precision costs the scores next to nothing.
    again = measure(task, held_out_examples(course))
    assert again == pytest.approx(scores, rel=0.02, abs=0.002)
    assert json.loads(metadata["held_out"]) == scores
    assert json.loads(metadata["settings"])["steps"] == 4
    assert {key: metadata[key] for key in ("network", "commit", "examples", "crm_version")} == {
        "network": network,
        "commit": "abc123",
        "examples": "4",
        "crm_version": __version__,
    }
    other = next(name for name in NETWORKS if name != network)
    with pytest.raises(EnvironmentProblem, match="E_WEIGHTS_WRONG"):
        loading.load(open_task(other, seed=0).network, [file])


def test_a_course_learns(data: Path, tmp_path: Path) -> None:
    settings = TrainSettings(steps=30, batch=4, learning_rate=5e-3, warmup=2, log_every=1)
    losses = [line.loss for line in run_course(course_of("reconstruction", data, tmp_path / "run"), settings)]
    assert fmean(losses[-5:]) < 0.9 * fmean(losses[:5])


def test_first_parameters_depend_on_the_seed_alone() -> None:
    def first(seed: int) -> list[Tensor]:
        return list(open_task("rgb", seed).network.parameters())

    torch.manual_seed(5)
    one = first(1)
    torch.rand(3)
    assert all(map(torch.equal, one, first(1)))
    assert not all(map(torch.equal, one, first(2)))


class MeanTask:
    """Its terms are the batch's mean and a number from the generator it is given."""

    name = "mean"

    def __init__(self) -> None:
        self.network: nn.Module = nn.Dropout()
        self.noise: list[float] = []

    def loss(self, batch: Batch, random: torch.Generator) -> tuple[Tensor, Terms]:
        assert not self.network.training and not torch.is_grad_enabled()
        mean = batch["seed"].double().mean()
        self.noise.append(torch.rand((), generator=random).item())
        return mean, {"mean": mean - HELD_OUT, "noise": torch.tensor(self.noise[-1])}


@pytest.mark.parametrize("batch", [1, 2, 5, 8])
def test_measuring_counts_every_held_out_example_once(data: Path, tmp_path: Path, batch: int) -> None:
    held_out = held_out_examples(course_of("rgb", data, tmp_path))
    task = MeanTask()
    scores = measure(task, held_out, batch=batch)
    assert scores["mean"] == 2  # of 0, 1, 2, 3, 4
    assert len(set(task.noise)) == len(task.noise) == -(-5 // batch)
    assert scores == measure(MeanTask(), held_out, batch=batch)


def test_training_and_held_out_examples_share_no_seed(data: Path, tmp_path: Path) -> None:
    course = course_of("rgb", data, tmp_path)
    train, held_out = training_examples(course, SETTINGS), held_out_examples(course)
    assert isinstance(train, Shards)
    seeds = [[int(s[k]["seed"]) for k in range(len(s))] for s in (train, held_out)]
    assert seeds == [[0, 1, 2, 3], [HELD_OUT + k for k in range(5)]]


def test_a_growing_course_sees_what_it_would_see_if_all_were_there(data: Path, tmp_path: Path) -> None:
    course = replace(course_of("rgb", data, tmp_path / "one"), grow=0.5, workers=0)
    list(run_course(course, SETTINGS))
    again = replace(course, folder=tmp_path / "two")
    interrupted(run_course(again, SETTINGS), 3)
    list(run_course(again, SETTINGS))
    assert checkpoint(again) == checkpoint(course)


def test_reconstruction_refuses_examples_without_distances(data: Path, tmp_path: Path) -> None:
    course = course_of("reconstruction", data, tmp_path / "run")
    with pytest.raises(UsageError, match="E_TRAIN_GROW"):
        list(run_course(replace(course, grow=0.5), SETTINGS))
    (tmp_path / "data" / "train").mkdir(parents=True)
    write_shard(tmp_path / "data" / "train" / "0000000.npz", range(4), WarpRaster(), 16, has_field=False)
    with pytest.raises(UsageError, match="E_TRAIN_DATA"):
        list(run_course(replace(course, data=tmp_path / "data"), SETTINGS))
    assert not course.folder.exists()


def test_the_second_stage_learns_from_what_the_first_one_draws(data: Path, tmp_path: Path) -> None:
    first = course_of("rgb", data, tmp_path / "rgb")
    list(run_course(first, SETTINGS))
    file = tmp_path / "rgb.safetensors"
    ship(first, SETTINGS, file)
    alone, taught = course_of("ccm", data, tmp_path / "alone"), course_of("ccm", data, tmp_path / "taught")
    taught = replace(taught, first=file)
    lines = {name: list(run_course(course, SETTINGS)) for name, course in (("a", alone), ("t", taught))}
    assert lines["a"][0].loss != lines["t"][0].loss
    tensors = averaged(taught.folder / "checkpoint.safetensors")
    assert tensors.keys() == averaged(alone.folder / "checkpoint.safetensors").keys()


def test_a_set_that_was_made_smaller_is_refused_rather_than_passed_off_as_larger(
    data: Path, tmp_path: Path
) -> None:
    course = Course(network="rgb", data=data, folder=tmp_path / "run", examples=6, held_out=5)
    with pytest.raises(UsageError, match="4 examples, not 6") as caught:
        list(run_course(course, SETTINGS))
    assert "0000000.npz" in caught.value.remedy
    assert not course.folder.exists()


@pytest.fixture
def portrayed(data: Path, tmp_path: Path) -> Path:
    """The data with portraits beside them; built where they are, nothing is rendered."""
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    for name, seeds in (("train", range(4)), ("held-out", range(HELD_OUT, HELD_OUT + 5))):
        (folder / f"{name}-portraits").mkdir()
        write_portraits(folder / f"{name}-portraits" / f"{seeds[0]:07d}.npz", seeds, WarpRaster(), 16)
    return folder


def test_a_course_end_to_end_learns_resumes_and_ships(portrayed: Path, tmp_path: Path) -> None:
    course = replace(course_of("reconstruction", portrayed, tmp_path / "run"), surface=EndToEnd(grid=12))
    lines = list(run_course(course, SETTINGS))
    assert set(lines[0].terms) == {"colour", "depth", "mask", "irregular", "iou"}
    resumed = replace(course, folder=tmp_path / "resumed")
    interrupted(run_course(resumed, SETTINGS), 3)
    list(run_course(resumed, SETTINGS))
    assert checkpoint(resumed) == checkpoint(course)
    file = tmp_path / "reconstruction.safetensors"
    scores = ship(course, SETTINGS, file)
    assert 0 < scores["iou"] < 1
    loading.load(open_task("reconstruction", seed=9).network, [file])  # the same network, however trained
    with safe_open(file, "pt") as opened:
        metadata = json.loads(opened.metadata()[loading.METADATA_KEY])
    assert metadata["preset"] == "small"
    assert json.loads(metadata["end_to_end"]) == {"architecture": "small", "grid": 12, "lpips": ""}


def test_examples_without_distances_will_do_end_to_end(portrayed: Path, tmp_path: Path) -> None:
    write_shard(portrayed / "train" / "0000000.npz", range(4), WarpRaster(), 16, has_field=False)
    course = course_of("reconstruction", portrayed, tmp_path / "run")
    assert len(list(run_course(replace(course, surface=EndToEnd(grid=8)), SETTINGS))) == 4


def test_the_published_reconstruction_is_trained_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RELEASE", MINI)
    task = open_task("reconstruction", 0, surface=EndToEnd(architecture="release"))
    assert [*task.network.state_dict()] == [*Reconstruction(MINI).state_dict()]
    with pytest.raises(UsageError, match="huge: no such architecture"):
        open_task("reconstruction", 0, surface=EndToEnd(architecture="huge"))


def test_an_unknown_network_is_refused_before_anything_is_rendered(tmp_path: Path) -> None:
    course = course_of("vae", tmp_path / "data", tmp_path / "run")
    with pytest.raises(UsageError, match="vae") as caught:
        list(run_course(course, SETTINGS))
    assert all(name in caught.value.remedy for name in NETWORKS)
    assert list(tmp_path.iterdir()) == []


def test_a_precision_is_taken_by_its_name() -> None:
    assert check_precision("bfloat16") == "bfloat16"
    with pytest.raises(UsageError, match="float8") as caught:
        check_precision("float8")
    assert "float32" in caught.value.remedy


def growing_from_nothing(tmp_path: Path) -> Course:
    """Twelve files of examples, which nobody has rendered yet."""
    return Course(network="rgb", data=tmp_path / "new", folder=tmp_path / "run", examples=3000, grow=1.0)


def test_a_growing_course_that_is_stopped_ends_its_rendering(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rendering, "build", partial(build, size_px=16))
    course = growing_from_nothing(tmp_path)
    before = set(threading.enumerate())
    # Stopped while the first step waits for its examples.
    began = iter([False] * 20)
    assert list(run_course(course, SETTINGS, is_stopped=lambda: next(began, True))) == []
    assert set(threading.enumerate()) <= before
    assert len(list((course.data / "train").glob("*.npz"))) < 12
    for child in multiprocessing.active_children():
        child.join(timeout=30)
    assert multiprocessing.active_children() == []


def test_a_growing_course_fails_as_its_rendering_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> Iterator[Path]:
        yield tmp_path
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rendering, "build", fail)
    with pytest.raises(OutputError, match="No space left") as caught:
        list(run_course(growing_from_nothing(tmp_path), SETTINGS))
    assert "--data" in str(caught.value)


def test_examples_that_nobody_renders_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "Growing", partial(Growing, patience_s=0))
    with pytest.raises(EnvironmentProblem, match="not written within 0 s") as caught:
        list(run_course(replace(growing_from_nothing(tmp_path), workers=0), SETTINGS))
    assert "--workers" in caught.value.remedy


def test_a_mistake_of_a_loss_is_not_blamed_on_the_examples(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def mistake(*_: object) -> None:
        raise ValueError("mine")

    monkeypatch.setattr(module.RgbTask, "loss", mistake)
    with pytest.raises(ValueError, match="mine"):
        list(run_course(course_of("rgb", data, tmp_path / "run"), SETTINGS))


needs_gpu = pytest.mark.skipif(not accelerators(), reason="needs a GPU that torch can use")


@needs_gpu
@pytest.mark.parametrize("precision", get_args(Precision))
@pytest.mark.parametrize("network", NETWORKS)
def test_a_gpu_trains_resumes_and_shows_in_every_precision(
    network: str, precision: Precision, data: Path, tmp_path: Path
) -> None:
    settings = replace(SETTINGS, precision=precision, accumulate=2)
    course = replace(
        course_of(network, data, tmp_path / "straight"), device="cuda", sample_every=4, measure_every=4
    )
    losses = [line.loss for line in run_course(course, settings)]
    assert np.isfinite(losses).all()
    resumed = replace(course, folder=tmp_path / "resumed")
    interrupted(run_course(resumed, settings), 3)
    list(run_course(resumed, settings))
    one, other = (averaged(folder / NAME) for folder in (course.folder, resumed.folder))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)
    assert (course.folder / "samples" / "step-000004.png").exists()
    on_cpu = replace(course, folder=tmp_path / "cpu", device="cpu")
    slow = [line.loss for line in run_course(on_cpu, replace(settings, precision="float32"))]
    # Noise is drawn on the device, so that only the size can be compared.
    assert losses[0] == pytest.approx(slow[0], rel=0.5)
