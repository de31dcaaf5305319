"""Make assets of a hundred photos and let programs that others wrote judge every one.

    python tests/census.py --count 101 --photos MORE_FOLDER --preset web --preset banner -o OUT \\
        --node-modules FOLDER/node_modules --bpy-python BPY/bin/python --markdown table.md

The photos are procedural products that no training saw (`crm products`), and those of MORE_FOLDER. Judges:
glTF-Validator, every validator of usd-core, Blender, trimesh, and counts that share no code with ours
(tests/judges.py). Nothing is judged by what crm says of itself.

A judge that the machine lacks is named in the table, not passed over. Stopped, the same command goes on.
Exit code 1 where any count is not zero; every such asset is named.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judges
import numpy as np

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".avif", ".tif", ".tiff", ".bmp")

FORMATS = (".glb", ".obj", ".usdc", ".usda", ".usd", ".usdz")
"""Main files; the first that an asset has is what the others are compared with."""

SOME_FAILED = 3
"""Exit code of `crm convert` where photos failed; they are counted and named here."""

FIRST_SEED = 1_200_000
"""Beyond every training, the evaluation, and the seeds that `crm products` takes if none is given."""

POINTS = 4096
"""On each surface that is compared, spread evenly."""

OUTSIDE = -2e-3
"""A place of a truth that is deeper in another part than this, in world units, cannot be seen."""

ROWS: tuple[tuple[str, str], ...] = (
    ("failed", "photos without an asset"),
    ("gltf error", "glTF-Validator: errors"),
    ("gltf warning", "glTF-Validator: warnings"),
    ("usd", "usd-core's validators, USDZ and ARKit profiles included"),
    ("blender", "Blender: not imported, or at another size or place"),
    ("not watertight", "trimesh: not watertight"),
    ("non-manifold", "trimesh: non-manifold"),
    ("degenerate faces", "trimesh: degenerate faces"),
    ("uv", "trimesh: UVs missing, broken or overlapping"),
    ("atlas", "charts closer than 4 texels, or denser than 3x another"),
    ("solid", "not finite, inside out, mixed winding, floaters"),
    ("formats differ", "a format unlike the GLB, or not where it should stand"),
    ("limit", "limits broken and not flagged"),
    ("files", "files missing, changed or unreadable"),
)
"""Counts of assets, each by the faults that it takes and its words in the table."""

ROW_OF = {
    "frame": "formats differ",
    "not finite": "solid",
    "winding": "solid",
    "volume": "solid",
    "floaters": "solid",
    "uv overlap": "uv",
    "uv padding": "atlas",
    "uv density": "atlas",
    "usd validation": "usd",
    "usd topology": "usd",
    "usd unreadable": "usd",
}


@dataclass(frozen=True)
class Finished:
    """One asset as its record and the disk have it."""

    asset: str
    """The photo's path."""
    files: tuple[Path, ...]
    record: Mapping[str, Any]

    def of(self, *suffixes: str) -> list[Path]:
        return [file for file in self.files if file.suffix in suffixes]


@dataclass(frozen=True)
class Judged:
    """What the judges that read in this process say of one asset."""

    asset: str
    faults: tuple[str, ...]
    chamfer: float | None = None
    f_score: float | None = None


# --- photos and assets ---------------------------------------------------------------------------------


def crm(*words: object, fine: Iterable[int] = (0,)) -> str:
    """Run crm as a reader would; returns what it says on stdout."""
    command = [sys.executable, "-m", "crm_cli", *map(str, words)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode not in fine:
        sys.exit(f"census: {' '.join(command)}: exit code {done.returncode}")
    return done.stdout


def gather(options: argparse.Namespace) -> Path:
    """Bring all photos together: made ones, and copies of those that are given."""
    photos: Path = options.out / "photos"
    if options.count:
        crm(
            "products", "-o", photos / "made", "--count", options.count, "--seed", options.seed,
            "--size-px", options.size_px, "-j", options.jobs,
        )  # fmt: skip
    for index, folder in enumerate(options.photos):
        for file in sorted(folder.rglob("*")):
            if file.suffix.lower() in PHOTO_SUFFIXES:
                copy = photos / f"given{index}" / file.relative_to(folder)
                copy.parent.mkdir(parents=True, exist_ok=True)
                if not copy.exists() or copy.read_bytes() != file.read_bytes():
                    shutil.copyfile(file, copy)
    return photos


def convert(photos: Path, out: Path, preset: str, options: argparse.Namespace) -> float:
    """Make the assets that are missing; returns wall seconds."""
    began = time.perf_counter()
    more = [word for name in options.format for word in ("--format", name)]
    crm(
        "convert", photos, "-o", out, "--preset", preset, "-j", options.jobs, "--no-cache", *more,
        fine=(0, SOME_FAILED),
    )  # fmt: skip
    return time.perf_counter() - began


def finished(out: Path) -> list[Finished]:
    """Every asset that has a record; the newest record of each counts."""
    newest: dict[str, dict[str, Any]] = {}
    for file in (out / ".crm" / "records").glob("*/*.json"):
        record = json.loads(file.read_text(encoding="utf-8"))
        if record.get("t", 0) >= newest.get(record["asset"], {}).get("t", 0):
            newest[record["asset"]] = record
    return [
        Finished(
            asset=asset,
            files=tuple(out / written["path"] for written in newest[asset]["outputs"]),
            record=newest[asset],
        )
        for asset in sorted(newest)
    ]


def limits_of(preset: str) -> dict[str, float]:
    """What the takers of such assets allow, and what the preset itself does where that is less."""
    limits: dict[str, float] = dict(judges.PUBLISHED_LIMITS.get(preset, {}))
    for name, value in re.findall(r"^limits\.(\w+): (\S+)", crm("presets", "show", preset), re.MULTILINE):
        if value == "true" or re.fullmatch(r"[\d.]+", value):
            own = 1.0 if value == "true" else float(value)
            limits[name] = min(own, limits.get(name) or own) if own else limits.get(name, 0)
    return limits


# --- judging -------------------------------------------------------------------------------------------


def judge(asset: Finished, limits: Mapping[str, float], truth: Path | None) -> Judged:
    """Let everything that reads in this process look at one asset, in a chain at every file."""
    missing = [file.name for file in asset.files if not file.is_file()]
    if missing:
        return Judged(asset.asset, (f"files: {missing[0]} is missing",))
    faults: list[str] = []
    finest: dict[str, judges.Geometry] = {}
    for file in sorted(asset.of(*FORMATS)):
        try:
            read, said = _look(file, limits)
        except Exception as error:  # whatever a reader raises, the file is what is wrong
            faults.append(f"files: {file.name}: {type(error).__name__}: {error}")
            continue
        faults += _unflagged(said, asset.record)
        finest.setdefault(file.suffix, read)
    scores: tuple[float, float] | None = None
    first, *others = (finest[suffix] for suffix in FORMATS if suffix in finest) if finest else (None,)
    if first is not None and np.isfinite(first.points).all():
        faults += judges.frame_faults(first)
        names = [suffix for suffix in FORMATS if suffix in finest][1:]
        for name, read in zip(names, others, strict=True):
            faults += judges.agreement_faults(name, read, first)
        scores = accuracy(first, truth) if truth else None
    chamfer, f_score = scores or (None, None)
    return Judged(asset.asset, tuple(dict.fromkeys(faults)), chamfer, f_score)


def _look(file: Path, limits: Mapping[str, float]) -> tuple[judges.Geometry, list[str]]:
    """Read one file, and say what is wrong with it alone."""
    if file.suffix.startswith(".usd"):
        return judges.read_usd(file), judges.usd_faults(file)
    read = judges.read_trimesh(file)
    if file.suffix != ".glb":
        return read, []
    written = judges.measure_glb(file)
    said = [*judges.census_faults(read), *judges.uv_faults(read, written.texture_px)]
    return read, said + judges.limit_faults(written, limits)


def _unflagged(faults: Sequence[str], record: Mapping[str, Any]) -> list[str]:
    """Leave out broken limits that the record itself names: an asset may fall short, but not silently."""
    publication = record.get("publication") or {}
    flagged = {check["limit"] for check in publication.get("checks", ()) if not check["is_kept"]}
    told = " ".join(record.get("warnings", ()))
    return [
        fault
        for fault in faults
        if not (fault.startswith("limit: ") and fault.split()[1] in flagged)
        and not (fault.startswith("limit: triangles") and "triangles" in told)
    ]


def accuracy(read: judges.Geometry, truth: Path) -> tuple[float, float]:
    """Chamfer distance and F-score against what was photographed, in units in which that is 1.6 long.

    Both stand with the bottom of their boxes centred on the origin; nothing is fitted.
    """
    from crm_cli.export.scene import METRES_PER_UNIT
    from crm_cli.learn.fit import distances, spread

    drawn = spread(read.points, read.faces, POINTS) / METRES_PER_UNIT
    return distances(drawn.astype(np.float32), true_points(truth) / np.float32(METRES_PER_UNIT))


def true_points(truth: Path) -> np.ndarray:
    """Places on the outside of a truth, in metres: its parts reach into each other."""
    from scipy.sparse import coo_matrix
    from scipy.sparse.csgraph import connected_components

    from crm_cli.export.scene import METRES_PER_UNIT
    from crm_cli.learn.fit import spread
    from crm_cli.learn.solid import Solid

    read = judges.read_trimesh(truth)
    edges, count = read.faces[:, [0, 1, 1, 2]].reshape(-1, 2), len(read.points)
    links = coo_matrix((np.ones(len(edges)), (edges[:, 0], edges[:, 1])), shape=(count, count))
    part = connected_components(links, directed=False)[1][read.faces[:, 0]].astype(np.int64)
    middle = read.bounds.mean(axis=0)
    world = ((read.points - middle) / METRES_PER_UNIT).astype(np.float32)
    places = spread(world, read.faces, 2 * POINTS)
    outer = Solid(world, read.faces, part).signed_distance(places, reach=0.05) > OUTSIDE
    return (places[outer][:POINTS] * METRES_PER_UNIT + middle).astype(np.float32)


def judge_all(
    assets: Sequence[Finished], limits: Mapping[str, float], truths: Mapping[str, Path], jobs: int
) -> list[Judged]:
    """Judge in several processes."""
    chosen = [truths.get(asset.asset) for asset in assets]
    with ProcessPoolExecutor(jobs) as pool:
        return list(pool.map(judge, assets, [limits] * len(assets), chosen))


def outside_faults(
    assets: Sequence[Finished], node_modules: Path | None, bpy_python: Path | None
) -> dict[str, list[str]]:
    """What judges say that run in processes of their own, by asset."""
    faults: dict[str, list[str]] = {asset.asset: [] for asset in assets}
    whole = [asset for asset in assets if all(file.is_file() for file in asset.files)]
    glbs = [(asset.asset, file) for asset in whole for file in asset.of(".glb")]
    if node_modules and glbs:
        said = judges.gltf_faults([file for _, file in glbs], node_modules)
        for (asset, _), told in zip(glbs, said, strict=True):
            faults[asset] += told
    files = [(asset, file) for asset in whole for suffix in FORMATS for file in sorted(asset.of(suffix))[:1]]
    if bpy_python and files:
        readings = judges.blender_readings([file for _, file in files], bpy_python)
        firsts: dict[str, judges.Geometry] = {}
        for (asset, file), told in zip(files, readings, strict=True):
            try:
                first = firsts.get(asset.asset) or judges.read_trimesh(file)
            except Exception:  # counted as unreadable by the other judges
                continue
            firsts[asset.asset] = first
            faults[asset.asset] += judges.blender_faults(file.suffix, told, first)
    return faults


# --- what comes of it ------------------------------------------------------------------------------------


def row_of(fault: str) -> str:
    """The count that a fault goes into."""
    kind = fault.partition(":")[0]
    return ROW_OF.get(kind, kind)


def summarise(
    assets: Sequence[Finished], judged: Sequence[Judged], outside: Mapping[str, list[str]],
    failures: Mapping[str, str], wall_s: float,
) -> dict[str, Any]:  # fmt: skip
    """Figures of one preset."""
    faults = {each.asset: [*each.faults, *outside[each.asset]] for each in judged}
    faults |= {asset: [f"failed: {words}"] for asset, words in failures.items()}
    counts = Counter(row for said in faults.values() for row in {row_of(fault) for fault in said})
    unknown = set(counts) - {row for row, _ in ROWS}
    if unknown:
        raise RuntimeError(f"faults without a row: {sorted(unknown)}")
    seconds = [sum(asset.record.get("seconds", {}).values()) for asset in assets]
    sizes = [
        file.stat().st_size for asset in assets for file in sorted(asset.of(".glb"))[:1] if file.exists()
    ]
    scored = [each for each in judged if each.f_score is not None]
    verdicts = Counter(_verdict(asset.record) for asset in assets)
    return {
        "assets": len(assets),
        "counts": {row: counts[row] for row, _ in ROWS},
        "faults": {asset: said for asset, said in sorted(faults.items()) if said},
        "verdicts": dict(sorted(verdicts.items())),
        "low_confidence": sum(asset.record["checks"].get("confidence") == "low" for asset in assets),
        "measured_against_truth": len(scored),
        "f_score": _median(each.f_score for each in scored),
        "chamfer": _median(each.chamfer for each in scored),
        "seconds_per_photo": _median(seconds),
        "wall_s": round(wall_s, 1),
        "triangles": _median(asset.record["checks"]["faces"] for asset in assets),
        "glb_bytes_median": _median(sizes),
        "glb_bytes_largest": max(sizes, default=None),
        "scores": {
            each.asset: {"f_score": round(each.f_score, 4), "chamfer": round(each.chamfer, 4)}
            for each in scored
            if each.f_score is not None and each.chamfer is not None
        },
    }


def _verdict(record: Mapping[str, Any]) -> str:
    """The one word of a record's verdict, whatever holds it; `none` in records that have no verdict."""
    verdict = record.get("verdict")
    if isinstance(verdict, dict):
        verdict = verdict.get("grade")
    return str(verdict or "none")


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(statistics.median(known), 4) if known else None


def markdown(census: Mapping[str, Any]) -> str:
    """The table for the README: one column a preset, the judges' counts and what the assets are like."""
    presets = census["presets"]
    missing = set(census["judges_missing"])
    lines = [_line("", *(f"`{name}`" for name in presets)), _line("---", *("---:" for _ in presets))]
    lines.append(_line("assets", *(str(figures["assets"]) for figures in presets.values())))
    for row, words in ROWS:
        is_judged = not (row.startswith("gltf") and "gltf-validator" in missing) and not (
            row == "blender" and "blender" in missing
        )
        shown = [str(figures["counts"][row]) if is_judged else "not judged" for figures in presets.values()]
        lines.append(_line(words, *shown))
    told = {
        "flagged `pass` / `review` / `fail`": _verdicts,
        "F-score at 0.04 of an object 1.6 long, median": lambda f: _shown(f["f_score"], "{:.2f}"),
        "Chamfer distance, median": lambda f: _shown(f["chamfer"], "{:.3f}"),
        "triangles, median": lambda f: _shown(f["triangles"], "{:,.0f}"),
        "GLB in KB, median": lambda f: _shown(f["glb_bytes_median"], "{:,.0f}", 1e3),
        "GLB in KB, largest": lambda f: _shown(f["glb_bytes_largest"], "{:,.0f}", 1e3),
        "seconds a photo, median": lambda f: _shown(f["seconds_per_photo"], "{:.1f}"),
    }
    lines += [_line(words, *(show(figures) for figures in presets.values())) for words, show in told.items()]
    return "\n".join(lines) + "\n"


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |"


def _verdicts(figures: Mapping[str, Any]) -> str:
    verdicts = figures["verdicts"]
    if set(verdicts) <= {"none"}:
        return "–"
    return " / ".join(str(verdicts.get(word, 0)) for word in ("pass", "review", "fail"))


def _shown(value: float | None, form: str, unit: float = 1) -> str:
    return "–" if value is None else form.format(value / unit)


# --- the script --------------------------------------------------------------------------------------------


def main() -> int:
    options = _options()
    node_modules, bpy_python = _find_node(options), options.bpy_python
    photos = gather(options)
    truths = _truths(photos)
    census: dict[str, Any] = {
        "photos": {"made": len(truths), "all": sum(f.suffix in PHOTO_SUFFIXES for f in photos.rglob("*"))},
        "judges_missing": [
            name for name, has in (("gltf-validator", node_modules), ("blender", bpy_python)) if not has
        ],
        "presets": {},
    }
    for preset in options.preset:
        out = options.out / Path(preset).stem
        wall_s = convert(photos, out, preset, options)
        assets = finished(out)
        status = json.loads(crm("status", out, "--json"))
        failures = {each["asset"]: each["message"] for each in status["failures"]}
        judged = judge_all(assets, limits_of(preset), truths, options.jobs)
        outside = outside_faults(assets, node_modules, bpy_python)
        census["presets"][Path(preset).stem] = summarise(assets, judged, outside, failures, wall_s)
        (options.out / "census.json").write_text(json.dumps(census, indent=1, ensure_ascii=False) + "\n")
    table = markdown(census)
    if options.markdown:
        options.markdown.write_text(table, encoding="utf-8")
    sys.stdout.write(table)
    is_clean = True
    for preset, figures in census["presets"].items():
        for asset, said in figures["faults"].items():
            is_clean = False
            sys.stdout.write(f"{preset}: {asset}: {'; '.join(said)}\n")
        if not figures["assets"] and not figures["counts"]["failed"]:
            sys.exit("census: there was nothing to judge")
    for name in census["judges_missing"]:
        sys.stdout.write(f"not judged by {name}: see --help\n")
    return 0 if is_clean else 1


def _truths(photos: Path) -> dict[str, Path]:
    """What was photographed, by photo."""
    made = photos / "made"
    if not (made / "truth.json").exists():
        return {}
    listed = json.loads((made / "truth.json").read_text(encoding="utf-8"))["products"]
    return {f"made/{entry['file']}": made / entry["truth"] for entry in listed}


def _find_node(options: argparse.Namespace) -> Path | None:
    """The folder node_modules with glTF-Validator in it; installed where that is asked for."""
    if not shutil.which("node"):
        return None
    if options.npm_cache and not (options.npm_cache / "node_modules" / "gltf-validator").is_dir():
        options.npm_cache.mkdir(parents=True, exist_ok=True)
        command = [
            "npm",
            "install",
            "--silent",
            "--prefix",
            options.npm_cache,
            "gltf-validator@2.0.0-dev.3.10",
        ]
        subprocess.run(command, check=True)
    folder = options.npm_cache / "node_modules" if options.npm_cache else options.node_modules
    if folder and not (folder / "gltf-validator").is_dir():
        sys.exit(f"census: {folder}: holds no gltf-validator")
    return folder.resolve() if folder else None


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Let foreign programs judge a hundred assets.")
    parser.add_argument("-o", "--out", type=Path, required=True, help="photos, assets and census.json")
    parser.add_argument("--count", type=int, default=101, help="photos of procedural products")
    parser.add_argument("--seed", type=int, default=FIRST_SEED, help="of the first of them")
    parser.add_argument("--size-px", type=int, default=1024, help="side of the largest of them")
    parser.add_argument("--photos", type=Path, action="append", default=[], help="a folder of more photos")
    parser.add_argument("--preset", action="append", help="repeat for several; default if none is named")
    parser.add_argument("--format", action="append", default=[], help="instead of the preset's formats")
    parser.add_argument("--node-modules", type=Path, help="where npm put gltf-validator")
    parser.add_argument("--npm-cache", type=Path, help="a folder to put it into with npm install")
    parser.add_argument("--bpy-python", type=Path, help="a Python 3.11 with Blender: pip install bpy==5.0.1")
    parser.add_argument("--markdown", type=Path, help="write the table here")
    parser.add_argument("-j", "--jobs", type=int, default=2)
    options = parser.parse_args()
    options.preset = options.preset or ["default"]
    return options


if __name__ == "__main__":
    sys.exit(main())
