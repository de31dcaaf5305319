"""Two processes give what one gives: the same sums, added up in another place."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_train import Points, parameters
from two_ranks import BROKEN_AT, PARTS, UnevenTask

from crm_cli.errors import UsageError
from crm_cli.learn.checkpoint import NAME, saved_step
from crm_cli.learn.course import Course, run_course
from crm_cli.learn.data import HELD_OUT, write_shard
from crm_cli.learn.ranks import ALONE, Ranks
from crm_cli.learn.train import TrainSettings, train
from crm_cli.mesh.raster import WarpRaster
from crm_cli.toolbox import accelerators

HERE = Path(__file__).parent
pytestmark = pytest.mark.usefixtures("no_board")

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def in_two(*words: str | Path) -> subprocess.CompletedProcess[str]:
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    return subprocess.run(
        [*TORCHRUN, *map(str, words)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have left, of which one failed in the end."""
    folder = tmp_path_factory.mktemp("ranks")
    done = in_two(HERE / "two_ranks.py", folder)
    assert done.returncode != 0 and "ZeroDivisionError" in done.stderr, done.stderr
    return folder


def test_two_runs_in_two_processes_are_equal_to_the_byte(folder: Path) -> None:
    for name in (NAME, "log.csv"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()


def test_two_processes_give_what_one_gives(folder: Path, tmp_path: Path) -> None:
    list(train(UnevenTask(), Points(), PARTS, tmp_path))
    one, two = parameters(tmp_path), parameters(folder / "first")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)
    logged = [(place / "log.csv").read_text().splitlines() for place in (tmp_path, folder / "first")]
    for ours, theirs in zip(*logged, strict=True):
        if not ours.startswith("step"):
            assert [*map(float, ours.split(","))] == pytest.approx([*map(float, theirs.split(","))], rel=1e-4)


def test_a_wish_to_stop_told_to_one_stops_both_at_the_same_step(folder: Path) -> None:
    told = [json.loads((folder / f"told-{rank}.json").read_text()) for rank in (0, 1)]
    assert [one["steps"] for one in told] == [11, 11]
    assert saved_step(folder / "lone") == 11
    assert [one["order"] for one in told] == [0, 1], "the first one works before the second"
    assert [one["refused"] for one in told] == ["E_TRAIN_PROCESSES"] * 2


def test_one_that_fails_ends_the_other_and_leaves_the_checkpoint(folder: Path) -> None:
    assert not list(folder.glob("finished-*"))
    assert saved_step(folder / "broken") <= BROKEN_AT


def test_the_command_trains_under_torchrun_what_it_trains_alone(tmp_path: Path) -> None:
    for name, seeds in (("train", range(6)), ("held-out", range(HELD_OUT, HELD_OUT + 8))):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / f"{seeds[0]:07d}.npz", seeds, WarpRaster(), 16)
    words = "train rgb --examples 6 --held-out 8 --steps 2 --batch 2 --warmup 1 --sample-every 2 --seed 4"
    done = in_two("-m", "crm_cli", *words.split(), "--data", tmp_path, "--out", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("2/2") == 1, "one bar"
    assert (tmp_path / "two" / "samples" / "step-000002.png").exists()
    course = Course(network="rgb", data=tmp_path, folder=tmp_path / "one", examples=6, held_out=8)
    settings = TrainSettings(
        steps=2, batch=2, accumulate=2, learning_rate=2e-3, warmup=1, seed=4, log_every=25
    )
    list(run_course(course, settings))
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-4, atol=1e-6)


def test_parts_are_shared_evenly_or_not_at_all() -> None:
    shares = [Ranks(rank=rank, count=3).share(6) for rank in range(3)]
    assert [list(share) for share in shares] == [[0, 1], [2, 3], [4, 5]]
    assert list(ALONE.share(5)) == [0, 1, 2, 3, 4]
    with pytest.raises(UsageError, match="E_TRAIN_PROCESSES") as caught:
        Ranks(rank=0, count=3).share(4)
    assert "multiple of 3" in caught.value.remedy


def test_each_process_has_a_gpu_of_its_own() -> None:
    environment = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1"}
    ranks = Ranks.of_environment(environment)
    assert not ranks.is_first
    assert [ranks.device(name) for name in ("cuda", "cuda:0", "cpu")] == ["cuda:1", "cuda:1", "cpu"]
    assert Ranks.of_environment({}).device("cuda") == "cuda"
    assert Ranks.of_environment({"WORLD_SIZE": "8"}) == ALONE


@pytest.mark.skipif(len(accelerators()) < 2, reason="needs two GPUs that torch can use")
def test_two_gpus_train_what_one_trains(tmp_path: Path) -> None:
    for name, seeds in (("train", range(6)), ("held-out", range(HELD_OUT, HELD_OUT + 8))):
        (tmp_path / name).mkdir()
        write_shard(tmp_path / name / f"{seeds[0]:07d}.npz", seeds, WarpRaster(), 16)
    words = "train rgb --examples 6 --held-out 8 --steps 2 --batch 2 --warmup 1 --seed 4 --device cuda"
    given = [*words.split(), "--data", tmp_path, "--out"]
    done = in_two("-m", "crm_cli", *given, tmp_path / "two")
    assert done.returncode == 0, done.stderr
    alone = [sys.executable, "-m", "crm_cli", *map(str, given), str(tmp_path / "one"), "--accumulate", "2"]
    subprocess.run(alone, check=True, cwd=HERE.parent)
    one, two = parameters(tmp_path / "one"), parameters(tmp_path / "two")
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
