"""What a step of training costs, beside the least that it could cost on this machine.

    python tests/bench_training.py [--networks rgb ccm reconstruction] [--batch 8] [--rounds 5] [--threads 1]
        [--device cpu] [--precision float32] [--render-s 20]

Every network is timed at its shipped size on rendered examples: reading a batch, forward, backward, and the
optimiser with the running average. FLOPs are counted by torch while the step runs. The floor is those FLOPs
at the best speed that products of matrices, or convolutions as these networks have them, reach in the same
minute; the ratio is what a step takes in units of its floor. Rounds take turns, and the least of each counts,
so that what else the machine does falls on nobody in particular. On a CPU it is the processor's time that is
counted, divided by the threads.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from crm_cli.bench.bench import describe_machine
from crm_cli.learn.course import check_precision, open_task
from crm_cli.learn.data import Shards, write_shard
from crm_cli.learn.examples import make_example
from crm_cli.learn.train import Task, TrainSettings, begin, calculating, descend, follow
from crm_cli.mesh.raster import RASTERS, Raster
from crm_cli.toolbox import choose, peak_memory, resolve_device

PEAKS: dict[str, tuple[int, ...]] = {
    "matmul 1024³": (),
    "conv 64 → 64, 64²": (64, 64),
    "conv 128 → 128, 16²": (128, 16),
}
"""Products whose best speed stands for the machine's."""


class Clock:
    """Seconds of this process's work on a CPU, of waiting on a GPU."""

    def __init__(self, device: str, threads: int) -> None:
        self._is_cpu, self._threads = device == "cpu", threads

    def __call__(self) -> float:
        if self._is_cpu:
            return time.process_time() / self._threads
        torch.accelerator.synchronize()
        return time.perf_counter()

    def least(self, work: Callable[[], object], rounds: int) -> float:
        """Seconds of the best of some rounds, after one that sets things up."""
        work()
        return min(self.spent(work) for _ in range(rounds))

    def spent(self, work: Callable[[], object]) -> float:
        before = self()
        work()
        return self() - before


def peaks(given: argparse.Namespace, clock: Clock) -> dict[str, float]:
    """GFLOP/s of the products, forward as a network has them."""
    device = torch.device(given.device)
    found = {}
    for name, shape in PEAKS.items():
        with calculating(given.precision, device):
            if shape:
                channels, side = shape
                layer = torch.nn.Conv2d(channels, channels, 3, padding=1, bias=False).to(device)
                x = torch.randn(48, channels, side, side, device=device)
                flops = 2 * 48 * side**2 * 9 * channels**2

                def work(layer: torch.nn.Module = layer, x: torch.Tensor = x) -> object:
                    return layer(x)
            else:
                a = torch.randn(1024, 1024, device=device)
                flops = 2 * 1024**3

                def work(a: torch.Tensor = a) -> object:  # type: ignore[misc]
                    return a @ a

            with torch.no_grad():
                found[name] = flops / clock.least(work, given.rounds) / 1e9
    return found


class Bench:
    """One network, and the parts of a step of it."""

    PARTS = ("data", "forward", "backward", "optimiser")

    def __init__(self, name: str, shards: Shards, given: argparse.Namespace, clock: Clock) -> None:
        self._task: Task = open_task(name, 0, device=given.device)
        self._settings = TrainSettings(steps=1000, batch=given.batch, precision=given.precision)
        self._state = begin(self._task, self._settings)
        self._shards, self._clock = shards, clock
        self._device = torch.device(given.device)
        self._task.network.train()
        self.parameters = sum(p.numel() for p in self._task.network.parameters())
        self.seconds: list[dict[str, float]] = []
        self.gflop = 0.0

    def step(self) -> None:
        """Take one step as the loop does, with a look at the clock between its parts."""
        random = torch.Generator(self._device).manual_seed(0)
        chosen = np.random.default_rng(len(self.seconds)).integers(
            len(self._shards), size=self._settings.batch
        )
        times = [self._clock()]
        batch = {name: tensor.to(self._device) for name, tensor in self._shards.batch(chosen).items()}
        self._state.optimiser.zero_grad(set_to_none=True)
        times.append(self._clock())
        with calculating(self._settings.precision, self._device):
            loss, _ = self._task.loss(batch, random)
        times.append(self._clock())
        self._state.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        times.append(self._clock())
        descend(self._state)
        follow(self._state, self._settings)
        times.append(self._clock())
        self.seconds.append(dict(zip(self.PARTS, np.diff(times).tolist(), strict=True)))

    def count(self) -> None:
        """Count the operations of a step, which also sets things up."""
        with FlopCounterMode(display=False) as counter:
            self.step()
        self.gflop = counter.get_total_flops() / 1e9
        self.seconds.clear()

    def row(self, name: str, peak: float) -> str:
        """One line of the table."""
        least = {part: min(round_[part] for round_ in self.seconds) * 1e3 for part in self.PARTS}
        total, floor = sum(least.values()), self.gflop / peak * 1e3
        times = " | ".join(f"{least[part]:.0f}" for part in self.PARTS)
        return (
            f"| {name} | {self.parameters / 1e6:.2f} M | {times} | {total:.0f} | {self.gflop:.1f} "
            f"| {floor:.0f} | {total / floor:.1f} |"
        )


def rendered_per_second(raster: Raster, seconds: float) -> dict[str, float]:
    """Examples that one core renders in a second, with distances and without."""
    found = {}
    for name, has_field in (("pictures and distances", True), ("pictures alone", False)):
        make_example(np.random.default_rng(0), raster, has_field=has_field)
        began, count = time.process_time(), 0
        while time.process_time() - began < seconds:
            count += 1
            make_example(np.random.default_rng(count), raster, has_field=has_field)
        found[name] = count / (time.process_time() - began)
    return found


def main() -> None:
    given = _options()
    torch.set_num_threads(given.threads)
    torch.set_flush_denormal(True)
    if given.device != "cpu":
        torch.set_float32_matmul_precision("high")
    clock = Clock(given.device, given.threads)
    raster = choose("rasteriser", RASTERS, "cpu")()
    rates = rendered_per_second(raster, given.render_s)
    with tempfile.TemporaryDirectory() as scratch:
        write_shard(Path(scratch) / "0000000.npz", range(2 * given.batch), raster, 64)
        benches = {name: Bench(name, Shards(Path(scratch)), given, clock) for name in given.networks}
        for bench in benches.values():
            bench.count()
        speeds = peaks(given, clock)
        for _ in range(given.rounds):
            for bench in benches.values():
                bench.step()
        speeds = {name: max(speed, speeds[name]) for name, speed in peaks(given, clock).items()}
    peak = max(speeds.values())
    told = "processor" if given.device == "cpu" else "elapsed"
    out = [
        f"{describe_machine(given.device)}, {os.cpu_count()} cores; {given.threads} thread(s), "
        f"batch {given.batch}, {given.precision}, torch {torch.__version__}; "
        f"milliseconds ({told}), least of {given.rounds}",
        "",
        f"| network | parameters | {' | '.join(Bench.PARTS)} | step | GFLOP | floor | step / floor |",
        "|---" + "|---:" * (len(Bench.PARTS) + 5) + "|",
        *(bench.row(name, peak) for name, bench in benches.items()),
        "",
        "floor: GFLOP at the best of " + ", ".join(f"{name} {v:.0f} GFLOP/s" for name, v in speeds.items()),
        "rendered per core-second: " + ", ".join(f"{v:.1f} ({name})" for name, v in rates.items()),
        f"peak memory {peak_memory('cpu') / 1e9:.2f} GB" + _on_device(given.device),
    ]
    sys.stdout.write("\n".join(out) + "\n")


def _on_device(device: str) -> str:
    if device == "cpu":
        return ""
    return f", {peak_memory(device) / 1e9:.2f} GB on the device"


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=["rgb", "ccm", "reconstruction"])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", type=resolve_device, default="cpu")
    parser.add_argument("--precision", type=check_precision, default="float32")
    parser.add_argument("--render-s", type=float, default=20, help="seconds of rendering")
    return parser.parse_args()


if __name__ == "__main__":
    main()
