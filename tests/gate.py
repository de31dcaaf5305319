"""How good the embedded networks are on products that no training saw, beside a solid that needs no learning.

`python tests/gate.py --count 200` prints a table of medians, of all products and by family. Weights are worth
shipping where they beat both the baseline and the weights before them (`--weights FOLDER` measures others).
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from itertools import chain
from multiprocessing import get_context

import numpy as np
import torch

from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.evaluate import Score, by_family, evaluate, summary
from crm_cli.learn.examples import ARRAYS, make_example
from crm_cli.learn.train import Batch
from crm_cli.mesh.raster import WarpRaster
from crm_cli.preset import Override, load_preset
from crm_cli.toolbox import open_toolbox

COLUMNS = {
    "photos": "n",
    "outline IoU": "outline_iou",
    "silhouette IoU": "silhouette_iou",
    "Chamfer": "chamfer",
    "its baseline": "baseline_chamfer",
    "F-score": "f_score",
    "F-score baseline": "baseline_f_score",
}


def examples(seeds: Sequence[int]) -> Iterator[tuple[str, Batch]]:
    """Products of these seeds, each as a batch of one."""
    raster = WarpRaster()
    for seed in seeds:
        example = make_example(np.random.default_rng(seed), raster)
        arrays = {name: torch.from_numpy(np.array(getattr(example, name)))[None] for name in ARRAYS}
        yield example.family, {name: t.float() if t.is_floating_point() else t for name, t in arrays.items()}


def scores(seeds: Sequence[int], weights: str, use_true_views: bool) -> list[Score]:
    """Score the chain on products of these seeds."""
    torch.set_flush_denormal(True)
    preset = load_preset("default", [Override("weights", weights, "--weights")]).preset
    toolbox = open_toolbox(preset, device="cpu", threads=1, precision="auto", sharers=1, is_frugal=False)
    return list(evaluate(toolbox, preset, examples(seeds), use_true_views=use_true_views))


def table(found: list[Score]) -> str:
    """Medians in Markdown."""
    families = by_family(found)
    counts = {family: sum(score.family == family for score in found) for family in families}
    rows = {"all": {"n": len(found), **summary(found)}}
    rows |= {family: {"n": counts[family], **figures} for family, figures in families.items()}
    lines = [f"| | {' | '.join(COLUMNS)} |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, figures in rows.items():
        cells = [figures[key] if key == "n" else f"{figures[key]:.3f}" for key in COLUMNS.values()]
        lines.append(f"| {name} | {' | '.join(map(str, cells))} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="products")
    parser.add_argument("--first", type=int, default=0, help="the first of them, of those held out")
    parser.add_argument("--weights", default="embedded", help="embedded, or a folder")
    parser.add_argument(
        "--true-views", action="store_true", help="reconstruct from rendered views: an upper bound"
    )
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes")
    given = parser.parse_args()
    seeds = range(HELD_OUT + given.first, HELD_OUT + given.first + given.count)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        shares = [seeds[job :: given.jobs] for job in range(given.jobs)]
        parts = [pool.submit(scores, share, given.weights, given.true_views) for share in shares]
        found = list(chain.from_iterable(part.result() for part in parts))
    sys.stdout.write(table(found) + "\n")


if __name__ == "__main__":
    main()
