"""What the paper's ideas are worth: small trainings that leave one out, and grids of several sizes.

    python tests/ablations.py --variant no-ccm --seeds 0 1 -o DIR   # one of them
    python tests/ablations.py --all -o DIR                          # everything, the table last
    python tests/ablations.py --table -o DIR                        # the table alone, of what is there

Every run leaves a file in DIR and is not done again; runs may be spread over processes (`-j`) and over calls.
The table goes to tests/ablations.md, the curves to tests/ablations.png and all numbers of the curves to
DIR/curves.csv.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from functools import cache
from itertools import chain, zip_longest
from multiprocessing import get_context
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from ablation_table import THIN, write_all
from numpy.typing import NDArray

from crm_cli.errors import PhotoError
from crm_cli.learn.ablations import VARIANTS, AblationTask, Variant
from crm_cli.learn.checkpoint import averaged
from crm_cli.learn.data import HELD_OUT, Shards, build
from crm_cli.learn.examples import draw_posed
from crm_cli.learn.fit import CELLS, F_SCORE_AT, distances, spread
from crm_cli.learn.products import FAMILIES
from crm_cli.learn.solid import Solid
from crm_cli.learn.tasks import records_of
from crm_cli.learn.train import train
from crm_cli.learn.turned import TurnedShards, retake, retake_all
from crm_cli.learn.unseen import held
from crm_cli.learn.watch import measure
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models.field import Field, surface
from crm_cli.models.reconstruction import Reconstruction
from crm_cli.pipeline import Imagine
from crm_cli.preset import Override, load_preset
from crm_cli.records import Mesh, SixViews
from crm_cli.toolbox import Toolbox, open_toolbox

GRIDS = (40, 80, 120, 160)
NEAR = (0.01, 0.02, F_SCORE_AT)
"""Distances at which grids are told apart: a cell of a grid of 40 is 0.05, one of 160 0.0125."""

POINTS = 8
"""Measurements along a curve, the one before the first step not counted; two where only the end counts."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One finished training."""

    variant: str
    seed: int
    parameters: int
    plane_parameters: int
    """Of what makes the triplane."""
    samples: int
    cpu_s: float
    """Training alone."""
    curve: list[dict[str, float]]
    """Held-out terms of the averaged parameters by `samples` seen."""
    scores: dict[str, list[list[float]]] = field(default_factory=dict)
    """`true` and `imagined` views: Chamfer distance and F-score of each held-out object."""


def open_data(folder: Path, count: int, held_out: int) -> None:
    """Render what is missing."""
    for name, number, first in (("train", count, 0), ("held-out", held_out, HELD_OUT)):
        for _ in chain(
            build(folder / name, number, 1, first_seed=first),
            retake_all(folder / f"turned-{name}", number, first_seed=first),
        ):
            pass


def examples(folder: Path, name: str, count: int, *, is_turned: bool) -> Any:
    plain = Shards(folder / name, count)
    return TurnedShards(plain, Shards(folder / f"turned-{name}", count)) if is_turned else plain


def run(variant: Variant, seed: int, options: argparse.Namespace) -> Run:
    """Train one variant, measuring as it goes, and score its shapes."""
    settings = variant.settings(seed=seed, samples=options.samples)
    learnt = examples(options.data, "train", options.examples, is_turned=variant.is_turned)
    held_out = examples(options.data, "held-out", options.held_out, is_turned=variant.is_turned)
    task, shipped = AblationTask(variant, seed=seed), AblationTask(variant, seed=seed)
    folder = options.out / "runs" / f"{variant.name}-{seed}"
    # A run that was stopped begins anew: its curve was not kept.
    shutil.rmtree(folder, ignore_errors=True)
    curve = [{"samples": 0, **measure(shipped, held_out)}]
    cpu_s = 0.0
    points = POINTS if variant.is_compared else 2
    for step in sorted({round(settings.steps * (k + 1) / points) for k in range(points)} - {0}):
        began = time.process_time()
        for _ in train(task, learnt, settings, folder, until=step):
            pass
        cpu_s += time.process_time() - began
        shipped.network.load_state_dict(averaged(folder / "checkpoint.safetensors"))
        curve.append({"samples": step * settings.batch, **measure(shipped, held_out)})
    count = options.scored if variant.is_compared else 0
    scores = {"true": [score(shipped, held_out, index) for index in range(count)]}
    if not variant.is_turned:
        drawn = read_imagined(options.out / "imagined.safetensors") if count else []
        scores["imagined"] = [
            score(shipped, held_out, index, views) for index, views in enumerate(drawn[:count])
        ]
    network = cast(Reconstruction, shipped.network)
    return Run(
        variant=variant.name,
        seed=seed,
        parameters=sum(p.numel() for p in network.parameters()),
        plane_parameters=sum(p.numel() for p in network.unet2.parameters()),
        samples=settings.steps * settings.batch,
        cpu_s=cpu_s,
        curve=curve,
        scores=scores,
    )


@torch.inference_mode()
def score(task: AblationTask, held_out: Any, index: int, views: SixViews | None = None) -> list[float]:
    """Chamfer distance and F-score of one object, from its exact views or from others."""
    batch = held_out.batch(np.array([index]))
    seen = task.exact(batch)[0] if views is None else task.variant.retouch(views, None)
    try:
        mesh = surface(cast(Reconstruction, task.network).field(seen), CELLS)
    except PhotoError:  # nothing drawn
        return [1.0, 0.0]
    points = spread(mesh.vertices, mesh.faces, 4096)
    return list(distances(points, batch["surface"][0].numpy()))


@cache
def embedded(*, views_px: int | None = None) -> tuple[Toolbox, Imagine]:
    """The embedded networks; views_px: the side of the views they hand on, where not the default's."""
    sets = [] if views_px is None else [Override("views.size_px", str(views_px), "ablations")]
    preset = load_preset("default", [Override("weights", "embedded", "ablations"), *sets]).preset
    toolbox = open_toolbox(preset, device="cpu", threads=1)
    return toolbox, Imagine(toolbox, preset)


def imagine_all(options: argparse.Namespace) -> Path:
    """Views that the embedded denoisers draw of the held-out photos, once for all variants."""
    from safetensors.torch import save_file

    file: Path = options.out / "imagined.safetensors"
    if not file.exists() or len(read_imagined(file)) < options.scored:
        _, imagine = embedded(views_px=64)
        held_out = Shards(options.data / "held-out", options.held_out)
        tensors = {}
        for index in range(options.scored):
            [views] = imagine([held(held_out.batch(np.array([index]))["photo"][0].numpy(), index)[1]])
            for name in ("rgb", "alpha", "ccm"):
                tensors[f"{index}.{name}"] = getattr(views, name).contiguous()
        save_file(tensors, file.with_suffix(".part"))
        file.with_suffix(".part").replace(file)
    return file


def read_imagined(file: Path) -> list[SixViews]:
    from safetensors.torch import load_file

    tensors = load_file(file)
    return [
        SixViews(**{name: tensors[f"{index}.{name}"] for name in ("rgb", "alpha", "ccm")})
        for index in range(len(tensors) // 3)
    ]


def closeness(
    mesh: Mesh, solid: Solid, true: NDArray[np.float32], near: Sequence[float] = NEAR
) -> dict[str, float]:
    """Chamfer distance and F-scores of a surface against the solid itself, not against points on it.

    Distances from the drawn surface are exact; distances to it are to points 0.01 apart, so that an
    F-score at 0.01 still means something.
    """
    from scipy.spatial import cKDTree

    off = np.abs(solid.signed_distance(spread(mesh.vertices, mesh.faces, 4096)))
    missed = cKDTree(spread(mesh.vertices, mesh.faces, 60_000)).query(true)[0]
    found = {"chamfer": float(off.mean() + missed.mean()) / 2}
    for within in near:
        precision, recall = float((off < within).mean()), float((missed < within).mean())
        both = precision + recall
        found[f"f{within:g}"] = 2 * precision * recall / both if both else 0.0
    return found


@torch.inference_mode()
def measure_grids(index: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One object on every grid, from exact and from imagined views."""
    toolbox, imagine = embedded()
    network = cast(Reconstruction, toolbox.networks["reconstruction"])
    held_out = Shards(options.data / "held-out", options.held_out)
    batch = held_out.batch(np.array([index]))
    posed = draw_posed(np.random.default_rng(HELD_OUT + index))
    solid = Solid(posed.vertices, posed.faces, posed.product.part)
    [imagined] = imagine([held(batch["photo"][0].numpy(), index)[1]])
    rows = []
    for views, shown in (("true", fine_views(index, WarpRaster())), ("imagined", imagined)):
        drawn: Field = network.field(shown)
        for grid in GRIDS:
            began = time.process_time()
            mesh = surface(drawn, grid)
            seconds = time.process_time() - began
            rows.append(
                {
                    "object": index,
                    "family": posed.product.family,
                    "views": views,
                    "grid": grid,
                    "cpu_s": seconds,
                    "faces": len(mesh.faces),
                    **closeness(mesh, solid, batch["surface"][0].numpy()),
                }
            )
    return rows


def fine_views(index: int, raster: WarpRaster, size_px: int = 256) -> SixViews:
    """Exact views as large as those that are imagined."""
    seen = retake(HELD_OUT + index, raster, size_px=size_px, turn=np.eye(3))
    rgba, depth = (torch.from_numpy(one)[None].float() for one in (seen.views, seen.depth))
    [views] = records_of(rgba / 255, depth)
    return views


def work(name: str, seed: int, options: argparse.Namespace) -> str:
    """One run in a process of its own."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    file = options.out / "runs" / f"{name}-{seed}.json"
    if file.exists():
        return f"{name} {seed}: done meanwhile by another call"
    found = run(VARIANTS[name], seed, options)
    write_json(file, asdict(found))
    return f"{name} {seed}: {found.cpu_s:.0f} CPU-s, {found.curve[-1]}"


def work_on_grids(index: int, options: argparse.Namespace) -> str:
    """One object in a process that others may share."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    write_json(options.out / "grids" / f"{index}.json", measure_grids(index, options))
    return f"grids: object {index}"


def write_json(file: Path, tree: Any) -> None:
    part = file.with_suffix(".part")
    part.write_text(json.dumps(tree), "ascii")
    part.replace(file)


def todo(options: argparse.Namespace) -> Iterator[tuple[str, int]]:
    """Runs that are asked for and not there."""
    names = options.variant or (VARIANTS if options.all else ())
    for seed in options.seeds:
        for name in names:
            # What batch and learning rate do is larger than the noise: one seed shows it.
            is_wanted = seed == options.seeds[0] or VARIANTS[name].is_compared or options.variant
            if is_wanted and not (options.out / "runs" / f"{name}-{seed}.json").exists():
                yield name, seed


def todo_on_grids(options: argparse.Namespace) -> Iterator[int]:
    """Held-out objects to be drawn on every grid: half of them thin, as far as there are so many."""
    if not (options.grids or options.all):
        return
    families = Shards(options.data / "held-out", options.held_out).families
    is_thin = np.array([list(FAMILIES)[family] in THIN for family in families])
    sides = [np.flatnonzero(is_thin == side)[: options.gridded // 2] for side in (True, False)]
    for index in chain(*zip_longest(*sides)):
        if index is not None and not (options.out / "grids" / f"{index}.json").exists():
            yield int(index)


def told(lines: Iterable[str]) -> None:
    for line in lines:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def parsed(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("-o", "--out", type=Path, required=True, help="folder of runs and numbers")
    parser.add_argument("--data", type=Path, help="folder of examples; OUT/data where not given")
    parser.add_argument("--variant", nargs="+", choices=VARIANTS, help="train these")
    parser.add_argument("--grids", action="store_true", help="measure grids with the embedded weights")
    parser.add_argument("--all", action="store_true", help="train all, measure grids, write the table")
    parser.add_argument("--table", action="store_true", help="write the table of what is there")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--samples", type=int, help="examples seen in training; each variant has its own number"
    )
    parser.add_argument("--steps", type=int, help="the same, in steps of 8")
    parser.add_argument("--examples", type=int, default=1024, help="to learn from")
    parser.add_argument("--held-out", type=int, default=128, help="to measure on")
    parser.add_argument("--scored", type=int, default=40, help="of these, whose surface is compared")
    parser.add_argument("--gridded", type=int, default=32, help="of these, drawn on every grid; half thin")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes")
    parser.add_argument("--to", type=Path, default=Path(__file__).parent, help="folder of the table")
    options = parser.parse_args(arguments)
    options.data = options.data or options.out / "data"
    if options.steps:
        options.samples = 8 * options.steps
    return options


def main(arguments: Sequence[str] | None = None) -> None:
    """Do what is asked for and missing, then write the table."""
    options = parsed(arguments)
    for folder in ("runs", "grids"):
        (options.out / folder).mkdir(parents=True, exist_ok=True)
    wanted = list(todo(options))
    if wanted or options.grids or options.all:
        # One process, one thread: so that its seconds can be compared, and nothing waits for another.
        os.environ["OMP_NUM_THREADS"] = "1"
        open_data(options.data, options.examples, options.held_out)
        with ProcessPoolExecutor(options.jobs, mp_context=get_context("spawn")) as pool:
            if any(VARIANTS[name].is_compared for name, _ in wanted):
                pool.submit(imagine_all, options).result()
            pending = [pool.submit(work, name, seed, options) for name, seed in wanted]
            pending += [pool.submit(work_on_grids, index, options) for index in todo_on_grids(options)]
            told(done.result() for done in as_completed(pending))
    if options.table or options.all:
        told(str(file) for file in write_all(options.out, options.to))


if __name__ == "__main__":
    main()
