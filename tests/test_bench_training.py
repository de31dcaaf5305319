"""The benchmark times and counts what the loop does."""

from __future__ import annotations

import argparse
from pathlib import Path

import bench_training
import pytest
import torch
from bench_training import Bench, Clock, peaks

from crm_cli.learn import course
from crm_cli.learn.data import Shards, write_shard
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models.denoiser import TINY_RGB


def test_a_step_is_timed_in_parts_beside_its_floor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(course, "SMALL_RGB", TINY_RGB)
    monkeypatch.setattr(bench_training, "PEAKS", {"matmul 1024³": (), "conv": (8, 8)})
    write_shard(tmp_path / "0000000.npz", range(2), WarpRaster(), 16)
    given = argparse.Namespace(device="cpu", batch=2, precision="float32", rounds=1, threads=1)
    clock = Clock("cpu", 1)
    bench = Bench("rgb", Shards(tmp_path), given, clock)
    before = [p.detach().clone() for p in bench._task.network.parameters()]
    bench.count()
    assert bench.seconds == [], "counting slows a step down"
    for _ in range(2):
        bench.step()
    assert not all(map(torch.equal, before, bench._task.network.parameters()))
    assert len(bench.seconds) == 2 and all(second > 0 for second in bench.seconds[0].values())

    forward = bench_training.FlopCounterMode(display=False)
    batch = Shards(tmp_path).batch(bench_training.np.array([0, 1]))
    with forward, torch.no_grad():
        bench._task.loss(batch, torch.Generator().manual_seed(0))
    # Backward takes twice as much, but for the first layer's input.
    assert bench.gflop * 1e9 == pytest.approx(3 * forward.get_total_flops(), rel=0.1)

    speeds = peaks(given, clock)
    assert set(speeds) == {"matmul 1024³", "conv"} and min(speeds.values()) > 0
    cells = bench.row("rgb", peak=1.0).split("|")
    assert len(cells) == 12 and float(cells[9]) == pytest.approx(bench.gflop * 1e3, abs=0.5)
