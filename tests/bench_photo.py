"""What a photo costs: CPU and wall seconds of every stage, and peak memory.

    python tests/bench_photo.py PHOTOS [--preset default] [--threads 1]

CPU seconds add up all threads and hardly depend on what else the machine does; wall seconds do. The first
photo is converted once more beforehand, because it alone pays for what is loaded at first use.
"""

from __future__ import annotations

import argparse
import itertools
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import NamedTuple

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


class Moment(NamedTuple):
    """Seconds on two clocks."""

    cpu: float
    wall: float

    @classmethod
    def now(cls) -> Moment:
        return cls(time.process_time(), time.perf_counter())

    def since(self, start: Moment) -> Moment:
        return Moment(self.cpu - start.cpu, self.wall - start.wall)


def main() -> None:
    options = _options()
    began = Moment.now()
    from crm_cli.pipeline import Line
    from crm_cli.preset import load_preset
    from crm_cli.records import Job

    line = Line.open(load_preset(options.preset).preset, device="cpu", threads=options.threads)
    opened = Moment.now().since(began)
    photos = sorted(path for path in options.photos.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not photos:
        sys.exit(f"{options.photos}: no photos")
    stages: dict[str, list[Moment]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for index, photo in enumerate([photos[0], *photos]):
            path = PurePosixPath(photo.relative_to(options.photos).as_posix())
            job = Job(
                root=options.photos,
                path=path,
                stem=path.with_suffix(""),
                id=f"{index:016x}",
                scratch=Path(scratch),
                max_mpixels=64,
            )
            marks: list[tuple[str, Moment]] = []
            line.convert(job, lambda stage, marks=marks: marks.append((stage, Moment.now())))
            marks.append(("", Moment.now()))
            if index == 0:
                continue
            for (stage, start), (_, end) in itertools.pairwise(marks):
                stages.setdefault(stage, []).append(end.since(start))
            stages.setdefault("all", []).append(marks[-1][1].since(marks[0][1]))
    _show(stages, opened, options.threads)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure what a photo costs.")
    parser.add_argument("photos", type=Path, help="folder of photos")
    parser.add_argument("--preset", default="default")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def _show(stages: dict[str, list[Moment]], opened: Moment, threads: int) -> None:
    out = [f"{len(stages['all'])} photos, {threads} thread(s), median seconds", "stage         CPU   wall"]
    out.append(f"{'(start)':<12}{opened.cpu:5.2f} {opened.wall:6.2f}")
    for stage, moments in stages.items():
        cpu, wall = (statistics.median(clock) for clock in zip(*moments, strict=True))
        out.append(f"{stage:<12}{cpu:5.2f} {wall:6.2f}")
    # macOS counts bytes, Linux kilobytes.
    unit = 1 if sys.platform == "darwin" else 1024
    peak_gb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
    out.append(f"peak memory {peak_gb:.2f} GB")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
