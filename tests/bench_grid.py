"""What a finer grid costs: CPU seconds of drawing and cleaning a surface on 80³, 160³ and 256³ cubes.

    python tests/bench_grid.py PHOTO [--grids 80 160 256] [--rounds 3] [--threads 1]

The embedded network reconstructs the photo once; then every round draws its surface on every grid in turn,
so that what else the machine does falls on all alike. The least of each is shown, and its ratio to the first.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path, PurePosixPath
from typing import Any

FACES = 200_000
"""The preset fine's budget: a surface of 80³ cubes keeps all its faces."""


class Asked:
    """A field that counts the points it is asked for."""

    def __init__(self, field: Any) -> None:
        self._field, self.points = field, 0
        self.cube_weights, self.colour = field.cube_weights, field.colour

    def geometry(self, points: Any) -> Any:
        self.points += len(points)
        return self._field.geometry(points)


def main() -> None:
    options = _options()
    import torch

    from crm_cli.mesh.clean import clean
    from crm_cli.models.field import surface
    from crm_cli.pipeline import Imagine, Line, Prepare
    from crm_cli.preset import load_preset
    from crm_cli.records import Job
    from crm_cli.toolbox import open_toolbox

    preset = load_preset("default").preset
    Line.open(preset, device="cpu", threads=options.threads)
    tools = open_toolbox(preset, device="cpu", threads=options.threads)
    with tempfile.TemporaryDirectory() as scratch:
        job = Job(
            root=options.photo.parent,
            path=PurePosixPath(options.photo.name),
            stem=PurePosixPath("asset"),
            id=f"{0:016x}",
            scratch=Path(scratch),
            max_mpixels=64,
        )
        _, cutout = Prepare(tools, preset)(job)
    [views] = Imagine(tools, preset)([cutout])
    network: Any = tools.networks["reconstruction"]
    with torch.inference_mode():
        network.field(views)
        started = time.process_time()
        field = network.field(views)
        fixed = time.process_time() - started
        seconds: dict[int, list[tuple[float, float]]] = {grid: [] for grid in options.grids}
        shown: dict[int, str] = {}
        for _ in range(options.rounds):
            for grid in options.grids:
                asked = Asked(field)
                began = time.process_time()
                mesh = surface(asked, grid)
                drawn = time.process_time()
                cleaned = clean(mesh, faces=FACES, smooth=2)
                seconds[grid].append((drawn - began, time.process_time() - drawn))
                peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
                shown[grid] = (
                    f"{asked.points:>10,} points {len(mesh.faces):>9,} faces drawn "
                    f"{len(cleaned.faces):>9,} kept  peak so far {peak_mb:,} MB"
                )
    sys.stdout.write(f"network {fixed:.2f} s, whatever the grid\n")
    first = None
    for grid, times in seconds.items():
        draw, mend = (min(column) for column in zip(*times, strict=True))
        first = first or (draw, fixed + draw)
        sys.stdout.write(
            f"{grid:>4}³ drawn {draw:6.2f} s ({draw / first[0]:5.2f}x) "
            f"with the network {fixed + draw:6.2f} s ({(fixed + draw) / first[1]:5.2f}x) "
            f"cleaned {mend:6.2f} s {shown[grid]}\n"
        )


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--grids", type=int, nargs="+", default=[80, 160, 256])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


if __name__ == "__main__":
    main()
