"""How busy workers keep an accelerator, where a sleep stands for one.

    python tests/bench_lane.py [--photos 16] [--seconds 0.3 0.6 1.2] [--jobs 1 2 3]

The process that has the networks sleeps for so many seconds a photo, as one does that waits for a GPU, and
answers what the networks have answered before; messages, and all that is done on the cores, are those of a
conversion with the preset `default`. It is busy for as much of the time from its first work to its last as it
sleeps; photos an hour are how many that leaves room for. One worker is what a conversion would be that does
one thing after the other: the accelerator stands still while its photo is cut out, unwrapped, baked and
written.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from torch import Tensor

from crm_cli.bundle import bundled, unbundled
from crm_cli.pipeline import Imagine, Prepare, Reconstruct
from crm_cli.preset import DEFAULT, load_preset
from crm_cli.records import Asset, Cutout, Job, Mesh, SixViews
from crm_cli.run.conveyor import DEADLINES_S, Conveyor
from crm_cli.run.reports import Finished
from crm_cli.run.worker import Launch
from crm_cli.toolbox import Place, open_toolbox, usable_cores

PHOTOS = Path(__file__).resolve().parent / "photos"
ANSWERS, SECONDS = "BENCH_LANE_ANSWERS", "BENCH_LANE_SECONDS"
"""Tell the networks' process, in the environment, where its answers are and how long each takes."""

DRAWN = 0.1
"""Share of a photo's time that goes to its surface."""

STEPS = 40
"""Of both diffusions together, as the preset `fast` has them."""


class Grey:
    """A field of one colour."""

    has_hull = False
    device = torch.device("cpu")

    def colour(self, points: Tensor) -> Tensor:
        return torch.full_like(points, 0.5)


class Asleep:
    """Networks that answer what they have answered before, after a sleep."""

    place = Place(device="cpu", precision="float32", surface="own")
    takes_turns = False

    @classmethod
    def open(cls, preset: Any, **opened: Any) -> Asleep:
        return cls()

    def __init__(self) -> None:
        self._began: float | None = None
        self._slept_s = 0.0

    def imagine(self, seed: int, cutout: Cutout, report_step: Any) -> SixViews:
        for step in range(STEPS):
            self._sleep((1 - DRAWN) / STEPS)
            report_step(step + 1, STEPS)
        tensors = _answer(cutout.digest)
        return SixViews(rgb=tensors["rgb"], ccm=tensors["ccm"], alpha=tensors["alpha"])

    def draw(self, seed: int, views: SixViews, digest: str) -> tuple[Mesh, Grey]:
        self._sleep(DRAWN)
        tensors = _answer(digest)
        return Mesh(vertices=tensors["vertices"].numpy(), faces=tensors["faces"].numpy()), Grey()

    def _sleep(self, share: float) -> None:
        """Work for a share of a photo's time, and say how busy that makes it."""
        began = time.perf_counter()
        time.sleep(share * float(os.environ[SECONDS]))
        now = time.perf_counter()
        self._began = self._began or began
        self._slept_s += now - began
        _told().write_text(str(self._slept_s / (now - self._began)))


def _answer(digest: str) -> dict[str, Tensor]:
    return unbundled((Path(os.environ[ANSWERS]) / digest).read_bytes())[0]


def _told() -> Path:
    return Path(os.environ[ANSWERS]) / "busy"


def main() -> None:
    options = _options()
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parent)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ[ANSWERS] = str(folder / "answers")
        names = _plant(folder, options.photos)
        print(f"{usable_cores()} cores, {options.photos} photos")  # noqa: T201
        for seconds in options.seconds:
            os.environ[SECONDS] = str(seconds)
            for jobs in options.jobs:
                busy = _convert(folder, names, jobs)
                print(  # noqa: T201
                    f"networks {seconds:g} s, {jobs} workers: busy {busy:.0%}, "
                    f"{3600 * busy / seconds:,.0f} photos an hour",
                    flush=True,
                )


def _convert(folder: Path, names: list[str], jobs: int) -> float:
    """Convert them; for which share of the time the networks were busy."""
    launch = Launch(preset=load_preset(DEFAULT).preset, device="cuda:0", threads=1, desk="bench_lane:Asleep")
    belt = Conveyor(launch, devices=["cuda:0"], workers=jobs, deadlines_s=DEADLINES_S, logs=folder)
    waiting, left = list(names), len(names)
    while left:
        while waiting and belt.has_room:
            belt.submit(_job(folder, waiting.pop()))
        for report in belt.wait(1.0):
            if isinstance(report, Finished):
                assert isinstance(report.outcome, Asset), report.outcome
                left -= 1
                shutil.rmtree(report.job.scratch)
    belt.close()
    return float(_told().read_text())


def _plant(folder: Path, count: int) -> list[str]:
    """Copies of the sample photos, and what the networks answer about each."""
    (folder / "in").mkdir()
    (folder / "answers").mkdir()
    preset = load_preset(DEFAULT).preset
    toolbox = open_toolbox(preset, device="cpu", threads=usable_cores())
    samples = sorted(path for path in PHOTOS.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
    names = []
    for number in range(count):
        sample = samples[number % len(samples)]
        names.append(f"{number:03}{sample.suffix}")
        shutil.copy(sample, folder / "in" / names[-1])
        if number < len(samples):
            _, cutout = Prepare(toolbox, preset)(_job(folder, names[-1]))
            [views] = Imagine(toolbox, preset)([cutout])
            mesh, _ = Reconstruct(toolbox, preset).draw(views, cutout.digest)
            tensors = {"rgb": views.rgb, "ccm": views.ccm, "alpha": views.alpha}
            surface = {"vertices": torch.from_numpy(mesh.vertices), "faces": torch.from_numpy(mesh.faces)}
            (folder / "answers" / cutout.digest).write_bytes(bundled({**tensors, **surface}, {}))
    return names


def _job(folder: Path, name: str) -> Job:
    scratch = folder / f"scratch-{name}"
    scratch.mkdir(exist_ok=True)
    path = PurePosixPath(name)
    return Job(
        root=folder / "in",
        path=path,
        stem=path.with_suffix(""),
        id=path.stem,
        scratch=scratch,
        max_mpixels=64,
    )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--seconds", type=float, nargs="+", default=[0.3, 0.6, 1.2])
    parser.add_argument("--jobs", type=int, nargs="+", default=[1, 2, 3])
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
