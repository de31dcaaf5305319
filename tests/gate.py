"""Whether weights are good enough to ship: measured on products that no training saw, decided by exit code.

    python tests/gate.py --weights FOLDER --against embedded --photos FOLDER -o OUT

measures 200 held-out products photo by photo to the finished mesh, beside two solids that need no learning
(the photo's outline inflated, its profile turned) and beside other weights on the same products. Exit code 0
says that the weights may ship: they beat the other weights in the F-score beyond chance (paired by product,
bootstrap interval of 95 %), in every family the better of the two solids, and tear no photo; 1 that they may
not.

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
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import gate_pictures as pictures
import gate_table as tables
import torch
from PIL import Image

from crm_cli.learn.compare import Decision, decide
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.evaluate import Chain, Score, by_family, compare_on
from crm_cli.learn.given import PARTS, GivenImagination, Part
from crm_cli.learn.unseen import unseen
from crm_cli.mesh.raster import WarpRaster
from crm_cli.pipeline import Prepare
from crm_cli.preset import Override, Preset, load_preset
from crm_cli.records import Job
from crm_cli.toolbox import Toolbox, open_toolbox

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp")

SHARE = 10
"""Products that a process is handed at once."""

LIGHTER = {"texture.size_px": "512", "mesh.faces": "20000"}
"""Where measuring departs from the default preset, for half of the time: photos of 64 px have no use for more
texture, and with 20,000 faces instead of 50,000 the F-score of twelve products moved by less than 0.005."""

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
        *(Override(key, value, "gate") for key, value in LIGHTER.items()),
        *([Override("checks.min_silhouette_iou", "0", "--given")] if is_trusting else []),
    ]
    preset = load_preset("default", overrides).preset
    toolbox = open_toolbox(preset, device="cpu", threads=1, precision="auto", sharers=1, is_frugal=False)
    return Tools(toolbox, preset, Chain(toolbox, preset))


def measure(seeds: Sequence[int], weights: Sequence[str], given: Sequence[Part]) -> list[list[Score]]:
    """Score the chain on products of these seeds: for each the scores of all weights."""
    tools = [tools_of(name, is_trusting="views" in given) for name in weights]
    imagine = GivenImagination(tools[0].toolbox, tools[0].preset, given).of if given else None
    raster, chains = WarpRaster(), [one.chain for one in tools]
    return [compare_on(unseen(seed, raster), chains, imagine) for seed in seeds]


def measure_all(
    pool: ProcessPoolExecutor, seeds: Sequence[int], weights: Sequence[str], given: Sequence[Part]
) -> list[list[Score]]:
    """Scores by weights, in the order of the seeds."""
    shares = [seeds[first : first + SHARE] for first in range(0, len(seeds), SHARE)]
    pending = [pool.submit(measure, share, weights, given) for share in shares]
    found: list[list[Score]] = []
    for done in as_completed(pending):
        found += done.result()
        sys.stderr.write(f"\r{len(found)} of {len(seeds)} products ")
    sys.stderr.write("\n")
    found.sort(key=lambda scores: scores[0].seed)
    return [list(scores) for scores in zip(*found, strict=True)]


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
        "is_low": checks.confidence == "low",
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


def draw_families(pool: ProcessPoolExecutor, scores: Sequence[Score], weights: str) -> Image.Image:
    """Picture the typical product of each family."""
    chosen = [typical(own) for own in by_family(scores).values()]
    drawn = list(pool.map(portray, [score.seed for score in chosen], [weights] * len(chosen)))
    rows = [
        pictures.Row(f"{score.family.replace('_', ' ')}  {score.made.f_score:.2f}", cells)
        for score, cells in zip(chosen, drawn, strict=True)
    ]
    return pictures.sheet(rows, HEADS, columns=min(3, len(rows)))


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
    names, before = [given.weights], None
    if given.against and given.against.endswith(".json"):
        before = scores_before(given.against, seeds)
    elif given.against:
        names.append(given.against)
    scores, *others = measure_all(pool, seeds, names, given.given)
    before = others[0] if others else before
    return scores, before, decide(scores, before)


def on_products(pool: ProcessPoolExecutor, given: argparse.Namespace, report: Report) -> None:
    """Measure products, and decide where nothing is given."""
    scores, before, decision = judge(pool, given)
    report.text += [tables.overall(scores, decision, before), tables.families(scores, decision)]
    report.kept["scores"] = [score.as_json() for score in scores]
    if given.given:
        return
    report.kept["decision"] = asdict(decision)
    report.text.append(tables.verdict(decision))
    report.may_ship &= decision.may_ship
    if given.out:
        pictures.save(draw_families(pool, scores, given.weights), given.out / "families.webp")


def on_photos(pool: ProcessPoolExecutor, given: argparse.Namespace, report: Report) -> None:
    """Look at real photos; weights that tear one may not ship."""
    files = photos_in(given.photos)
    found = list(pool.map(look_at, files, [given.weights] * len(files)))
    report.kept["photos"] = [checks for checks, _ in found]
    report.text.append(tables.photos(report.kept["photos"]))
    report.may_ship &= all(checks["is_sound"] for checks, _ in found)
    if given.out:
        for file, (_, cells) in zip(files, found, strict=True):
            drawn = pictures.sheet([pictures.Row(file.name, cells)], PHOTO_HEADS, columns=1)
            pictures.save(drawn, given.out / f"{file.stem}.webp")


@dataclass
class Report:
    """What is told and kept of a run."""

    kept: dict[str, Any]
    text: list[str] = field(default_factory=list)
    may_ship: bool = True


def main() -> None:
    """Measure, print, keep and decide."""
    given = options()
    if given.out:
        given.out.mkdir(parents=True, exist_ok=True)
    digest = tools_of(given.weights).toolbox.weights.digest
    report = Report({"weights": digest, "given": given.given})
    with ProcessPoolExecutor(given.jobs, mp_context=get_context("spawn")) as pool:
        if given.count:
            on_products(pool, given, report)
        if given.photos:
            on_photos(pool, given, report)
    text = "\n".join(report.text)
    if given.out:
        (given.out / "scores.json").write_text(json.dumps(report.kept, indent=1))
        (given.out / "table.md").write_text(text)
    sys.stdout.write(text)
    sys.exit(0 if report.may_ship else 1)


if __name__ == "__main__":
    main()
