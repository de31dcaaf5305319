"""Whether weights are good enough to ship: measured on products that no training saw, decided by exit code.

    python tests/gate.py --weights FOLDER --against embedded --photos FOLDER -o OUT

measures 200 held-out products photo by photo to the finished mesh, beside two solids that need no learning
(the photo's outline inflated, its profile turned) and beside other weights on the same products. Exit code 0
says that the weights may ship: they beat the other weights in the F-score beyond chance (paired by product,
bootstrap interval of 95 %), and in every family the better of the two solids; 1 that they may not.

--against takes a folder, `embedded`, or scores.json of an earlier run, which saves its time. --photos shows
what becomes of real photos, of which no truth is known. --given replaces parts of the imagined views by the
truth, which tells what each of them costs; nothing is decided then. -o keeps scores, table and pictures.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import gate_pictures as pictures
import gate_table as tables
import torch
from PIL import Image

from crm_cli.learn.compare import Decision, decide
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.evaluate import Chain, Score, by_family, evaluate
from crm_cli.learn.given import PARTS, GivenImagination, Part
from crm_cli.learn.subjects import subject
from crm_cli.mesh.raster import WarpRaster
from crm_cli.pipeline import Prepare
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import Job
from crm_cli.toolbox import Toolbox, open_toolbox

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp")

SHARE = 10
"""Products that a process is handed at once."""

TEXTURE_PX = 512
"""Half of the default: a tenth of the time a photo takes, and photos of 64 px need no more."""

PHOTO_CELL_PX = 256

HEADS = ("photo", "truth", "", "", "ours", "", "")
PHOTO_HEADS = ("photo", "front", "side", "three quarters", "back")


class Tools(NamedTuple):
    """What a process opens once for one set of weights."""

    toolbox: Toolbox
    preset: Preset
    chain: Chain


@functools.cache
def tools_of(weights: str, is_trusting: bool = False) -> Tools:
    """Open the stations; is_trusting: whatever the networks draw is kept."""
    torch.set_flush_denormal(True)
    overrides = [
        Override("weights", weights, "--weights"),
        Override("texture.size_px", str(TEXTURE_PX), "gate"),
        *([Override("checks.min_silhouette_iou", "0", "--given")] if is_trusting else []),
    ]
    preset = load_preset("default", overrides).preset
    toolbox = open_toolbox(preset, device="cpu", threads=1, precision="auto", sharers=1, is_frugal=False)
    return Tools(toolbox, preset, Chain(toolbox, preset))


def measure(seeds: Sequence[int], weights: str, given: Sequence[Part]) -> list[Score]:
    """Score the chain on products of these seeds."""
    tools = tools_of(weights, is_trusting="views" in given)
    imagine = GivenImagination(tools.toolbox, tools.preset, given).of if given else None
    raster = WarpRaster()
    return list(evaluate(tools.chain, (subject(seed, raster) for seed in seeds), imagine))


def measure_all(
    pool: ProcessPoolExecutor, seeds: Sequence[int], weights: Sequence[str], given: Sequence[Part]
) -> dict[str, list[Score]]:
    """Scores by weights, in the order of the seeds."""
    pending = {
        pool.submit(measure, seeds[first : first + SHARE], name, given): name
        for first in range(0, len(seeds), SHARE)
        for name in weights
    }
    found: dict[str, list[Score]] = {name: [] for name in weights}
    for done in as_completed(pending):
        found[pending[done]] += done.result()
        counts = ", ".join(f"{name} {len(scores)}" for name, scores in found.items())
        sys.stderr.write(f"\rof {len(seeds)} products: {counts} ")
    sys.stderr.write("\n")
    return {name: sorted(scores, key=lambda score: score.seed) for name, scores in found.items()}


def portray(seed: int, weights: str) -> list[Image.Image]:
    """Pictures of one product."""
    return pictures.portray(seed, tools_of(weights).chain, WarpRaster())


def typical(scores: Sequence[Score]) -> Score:
    """The product whose F-score is the median; of two the worse."""
    middle = statistics.median_low(score.made.f_score for score in scores)
    return next(score for score in scores if score.made.f_score == middle)


def look_at(photo: Path, weights: str) -> tuple[dict[str, Any], list[Image.Image]]:
    """What becomes of a real photo: its checks, and pictures of it and of the asset."""
    tools = tools_of(weights)
    job = Job(
        root=photo.parent,
        path=PurePosixPath(photo.name),
        stem=PurePosixPath(photo.stem),
        id="0",
        scratch=photo.parent,  # nothing is written
        max_mpixels=64,
    )
    read, cutout = Prepare(tools.toolbox, tools.preset)(job)
    made = tools.chain.make(read, cutout, tools.chain.imagine(cutout))
    checks = made.checks
    told = {
        "photo": photo.name,
        "grade": made.verdict.grade,
        "reasons": made.verdict.codes,
        "silhouette_iou": float(checks.silhouette_iou),
        "colour_distance": checks.colour_distance,
        "seen_share": checks.seen_share,
        "is_low": made.is_low,
        "is_sound": checks.is_sound,
        "components": checks.components,
        # Each handle lowers the Euler number of a closed surface by two.
        "handles": checks.components - checks.euler // 2,
    }
    wanted = (pictures.FRONT, pictures.SIDE, pictures.THREE_QUARTER, pictures.BACK)
    shown = pictures.sides(made.textured, tools.toolbox.raster, wanted, PHOTO_CELL_PX)
    return told, [pictures.as_cell(read, PHOTO_CELL_PX), *shown]


def photos_in(folder: Path) -> list[Path]:
    """Photos of a folder, by name."""
    return sorted(file for file in folder.iterdir() if file.suffix.lower() in PHOTO_SUFFIXES)


def draw_families(
    pool: ProcessPoolExecutor, scores: Sequence[Score], weights: str, folder: Path
) -> Iterator[Path]:
    """Picture the typical product of each family, in two files."""
    chosen = [typical(own) for own in by_family(scores).values()]
    drawn = list(pool.map(portray, [score.seed for score in chosen], [weights] * len(chosen)))
    rows = [
        pictures.Row(f"{score.family.replace('_', ' ')}  {score.made.f_score:.2f}", cells)
        for score, cells in zip(chosen, drawn, strict=True)
    ]
    file = folder / "families.webp"
    pictures.save(pictures.sheet(rows, HEADS, columns=min(3, len(rows))), file)
    yield file


def options(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--count", type=int, default=200, help="products; 0 for photos alone")
    parser.add_argument("--first", type=int, default=0, help="the first of them, of those held out")
    parser.add_argument("--weights", default="embedded", help="embedded, or a folder")
    parser.add_argument("--against", help="embedded, a folder, or scores.json of an earlier run")
    parser.add_argument("--given", default="", help=f"parts of the views, with commas: {', '.join(PARTS)}")
    parser.add_argument("--photos", type=Path, help="a folder of real photos")
    parser.add_argument("-o", "--out", type=Path, help="folder for scores, table and pictures")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="processes")
    given = parser.parse_args(words)
    given.given = tuple(part for part in given.given.split(",") if part)
    if unknown := set(given.given) - set(PARTS):
        parser.error(f"--given: no such part {sorted(unknown)[0]!r}")
    if given.given and given.against:
        parser.error("--given decides nothing: leave out --against")
    return given


def scores_before(against: str, seeds: Sequence[int]) -> list[Score]:
    """Scores of an earlier run on these products."""
    read = [Score.from_json(values) for values in json.loads(Path(against).read_text())["scores"]]
    kept = [score for score in read if score.seed in set(seeds)]
    if len(kept) != len(seeds):
        sys.exit(f"gate: {against} holds {len(kept)} of the {len(seeds)} products")
    return kept


def judge(
    pool: ProcessPoolExecutor, given: argparse.Namespace
) -> tuple[list[Score], list[Score] | None, Decision]:
    """Measure and decide."""
    seeds = range(HELD_OUT + given.first, HELD_OUT + given.first + given.count)
    is_kept = given.against is not None and given.against.endswith(".json")
    before = scores_before(given.against, seeds) if is_kept else None
    names = [given.weights, *([given.against] if given.against and not is_kept else [])]
    found = measure_all(pool, seeds, list(dict.fromkeys(names)), given.given)
    scores = found[given.weights]
    before = found[names[1]] if len(names) > 1 else before
    return scores, before, decide(scores, before)


def main() -> None:
    """Measure, print, keep and decide."""
    given = options()
    kept: dict[str, Any] = {"weights": tools_of(given.weights).toolbox.weights.digest, "given": given.given}
    told: list[str] = []
    failed = False
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        if given.count:
            scores, before, decision = judge(pool, given)
            told += [tables.overall(scores, decision, before), tables.families(scores, decision)]
            kept |= {"scores": [score.as_json() for score in scores], "decision": asdict(decision)}
            if not given.given:
                told.append(tables.verdict(decision))
                failed = not decision.may_ship
            if given.out and not given.given:
                told += [f"{file}\n" for file in draw_families(pool, scores, given.weights, given.out)]
        if given.photos:
            files = photos_in(given.photos)
            found = list(pool.map(look_at, files, [given.weights] * len(files)))
            kept["photos"] = [checks for checks, _ in found]
            told.append(tables.photos(kept["photos"]))
            if given.out:
                for file, (_, cells) in zip(files, found, strict=True):
                    row = pictures.Row(file.name, cells)
                    pictures.save(
                        pictures.sheet([row], PHOTO_HEADS, columns=1), given.out / f"{file.stem}.webp"
                    )
    text = "\n".join(told)
    if given.out:
        (given.out / "scores.json").write_text(json.dumps(kept, indent=1))
        (given.out / "table.md").write_text(text)
    sys.stdout.write(text)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
