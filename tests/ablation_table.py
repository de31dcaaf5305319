"""The table and the picture of what tests/ablations.py has measured."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from crm_cli.learn.ablations import COMPARED, STABILITY, VARIANTS, Variant

BEGIN, END = "<!-- measured -->", "<!-- /measured -->"
"""Between these the table stands; what is written around it is left alone."""

THIN = frozenset({"chair", "stool", "table", "lamp", "street_lamp", "headphones", "plant", "shelf"})
"""Families with legs, stems, arms or boards a few hundredths of the object wide."""

COLOURS = ("#1f77b4", "#d62728", "#2ca02c", "#9467bd", "#ff7f0e", "#8c564b")

Runs = Mapping[str, Sequence[Mapping[str, Any]]]
"""Finished runs of every variant, in the order of their seeds."""


def write_all(out: Path, to: Path) -> list[Path]:
    """Write ablations.md, ablations.png and ablations.csv from the runs of a folder."""
    runs = read_runs(out)
    rows = [row for file in sorted((out / "grids").glob("*.json")) for row in json.loads(file.read_text())]
    page, picture, numbers = (to / f"ablations.{kind}" for kind in ("md", "png", "csv"))
    parts = [variants(), compared(runs), shapes(runs), learning(runs), stability(runs), grids(rows)]
    page.write_text(filled(page.read_text("utf-8") if page.exists() else "", "\n\n".join(parts)), "utf-8")
    draw(runs).save(picture, optimize=True)
    numbers.write_text(as_csv(runs), "ascii")
    return [page, picture, numbers]


def read_runs(out: Path) -> Runs:
    found: dict[str, list[Mapping[str, Any]]] = {}
    for file in sorted((out / "runs").glob("*.json")):
        one = json.loads(file.read_text("ascii"))
        found.setdefault(one["variant"], []).append(one)
    return {name: sorted(some, key=lambda one: one["seed"]) for name, some in found.items()}


def filled(page: str, measured: str) -> str:
    """A page with its measured part replaced, or added at its end."""
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{measured}\n\n{END}{rest.partition(END)[2] or chr(10)}"


def loss_of(point: Mapping[str, float]) -> float:
    """The loss that was trained, of held-out terms; see ReconstructionTask."""
    return 10 * point["distance"] + 0.3 * point["occupancy"] + point["colour"]


def spread_of(values: Sequence[float], digits: int) -> str:
    """Mean, and half of what lies between the seeds."""
    if not values:
        return ""
    shown = f"{fmean(values):.{digits}f}"
    return shown if len(values) < 2 else f"{shown} ± {(max(values) - min(values)) / 2:.{digits}f}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, of: str = "---:") -> str:
    """Markdown; of: how the columns after the first are aligned, numbers where it is not said."""
    lines = [f"| {' | '.join(head)} |", "| --- |" + f" {of} |" * (len(head) - 1)]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def variants() -> str:
    """What every variant changes, and why."""
    rows = [[f"`{one.name}`", f"`{one.against}`", one.changes, one.claim] for one in COMPARED]
    return "### What is left out\n\n" + table(
        ["variant", "beside", "what differs", "what it tests"], rows, of=":---"
    )


def compared(runs: Runs) -> str:
    """How well every variant has learnt."""
    rows = []
    for variant in COMPARED:
        some = runs.get(variant.name, ())
        if some:
            last = [one["curve"][-1] for one in some]
            rows.append(
                [
                    f"`{variant.name}`",
                    f"{some[0]['plane_parameters'] / 1000:.0f} k",
                    f"{fmean(one['cpu_s'] for one in some):.0f}",
                    *(
                        spread_of([point[term] for point in last], 4)
                        for term in ("distance", "occupancy", "colour")
                    ),
                    spread_of([loss_of(point) for point in last], 3),
                ]
            )
    head = ["variant", "parameters", "CPU-s", "distance", "inside or outside", "colour", "loss"]
    return "### Held-out terms at the end\n\n" + table(head, rows)


def shapes(runs: Runs) -> str:
    """How near the surfaces come, and how sure a difference is."""
    rows = []
    for variant in COMPARED:
        some = runs.get(variant.name, ())
        if some:
            cells = [f"`{variant.name}`"]
            for views in ("true", "imagined"):
                scores = [one["scores"].get(views) or [] for one in some]
                cells += [
                    spread_of([fmean(s[k] for s in each) for each in scores if each], 3) for k in (1, 0)
                ]
                cells.append(difference(variant, runs, views))
            rows.append(cells)
    head = [
        "variant",
        "F, true views",
        "Chamfer",
        "F, difference",
        "F, imagined",
        "Chamfer",
        "difference",
    ]
    return "### Surfaces\n\n" + table(head, rows)


def difference(variant: Variant, runs: Runs, views: str) -> str:
    """Mean difference of the F-score from the measure's on the same objects, ± 2 standard errors."""
    mine, theirs = (_by_object(runs.get(name, ()), views) for name in (variant.name, variant.against))
    if variant.against == variant.name or not mine or len(mine) != len(theirs):
        return ""
    apart = [a - b for a, b in zip(mine, theirs, strict=True)]
    middle = fmean(apart)
    error = math.sqrt(sum((a - middle) ** 2 for a in apart) / max(1, len(apart) - 1) / len(apart))
    return f"{middle:+.3f} ± {2 * error:.3f}"


def _by_object(some: Sequence[Mapping[str, Any]], views: str) -> list[float]:
    """F-score of every object, a mean over seeds."""
    scores = [one["scores"].get(views) or [] for one in some]
    return [fmean(pair[1] for pair in of_one) for of_one in zip(*scores, strict=True)]


def learning(runs: Runs) -> str:
    """Held-out loss along the way."""
    rows, head = [], ["loss after … of the training"]
    for variant in COMPARED:
        some = runs.get(variant.name, ())
        if some:
            shares = [round(100 * point["samples"] / some[0]["samples"]) for point in some[0]["curve"]]
            head = head[:1] + [f"{share} %" for share in shares]
            points = zip(*(one["curve"] for one in some), strict=True)
            rows.append([f"`{variant.name}`", *(f"{fmean(map(loss_of, each)):.3f}" for each in points)])
    return "### How fast they learn\n\n" + table(head, rows)


def stability(runs: Runs) -> str:
    """Final held-out loss by batch and learning rate, one line a network and batch."""
    rates = sorted({variant.learning_rate for variant in STABILITY})
    lines: dict[str, dict[float, str]] = {}
    for variant in STABILITY:
        for one in runs.get(variant.name, ())[:1]:
            network = variant.name.split("-")[0]
            line = lines.setdefault(f"{network}, batch {variant.batch}", {})
            line[variant.learning_rate] = _ended(one["curve"])
    rows = [[name, *(line.get(rate, "") for rate in rates)] for name, line in lines.items()]
    seen = {one["samples"] for variant in STABILITY for one in runs.get(variant.name, ())}
    told = f"Held-out loss after {max(seen, default=0):,} examples, whatever the batch; one seed each."
    return f"### Batch and learning rate\n\n{told}\n\n" + table(
        ["network", *(f"rate {rate:g}" for rate in rates)], rows
    )


def _ended(curve: Sequence[Mapping[str, float]]) -> str:
    losses = [loss_of(point) for point in curve]
    if not all(map(math.isfinite, losses)):
        return "not finite"
    return f"{losses[-1]:.3f}" + (" (diverged)" if losses[-1] >= losses[0] else "")


def grids(rows: Sequence[Mapping[str, Any]]) -> str:
    """Medians by grid, of thin families and of the others."""
    lines = []
    for views in ("true", "imagined"):
        for grid in sorted({row["grid"] for row in rows}):
            some = [row for row in rows if row["views"] == views and row["grid"] == grid]
            cells = [f"{grid}, {views} views"]
            for is_thin in (False, True):
                part = [row for row in some if (row["family"] in THIN) is is_thin]
                cells += [
                    f"{median(row[key] for row in part):.3f}" if part else "" for key in ("f0.02", "f0.04")
                ]
                cells.append(f"{median(row['chamfer'] for row in part):.4f}" if part else "")
            cells += [
                f"{median(row['faces'] for row in some):,.0f}",
                f"{median(row['cpu_s'] for row in some):.2f}",
            ]
            lines.append(cells)
    thin = len({row["object"] for row in rows if row["family"] in THIN})
    objects = len({row["object"] for row in rows})
    head = ["grid", "F at 0.02", "F at 0.04", "Chamfer", "thin: F at 0.02", "F at 0.04", "Chamfer"]
    of = f"{objects - thin} solid and {thin} thin objects ({', '.join(sorted(THIN))})"
    return f"### Grids\n\nMedians of {of}.\n\n" + table([*head, "triangles", "CPU-s"], lines)


def as_csv(runs: Runs) -> str:
    """All curves: a line for every measurement."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["variant", "seed", "samples", "distance", "occupancy", "colour", "loss"])
    for name in VARIANTS:
        for one in runs.get(name, ()):
            for point in one["curve"]:
                terms = [point[term] for term in ("distance", "occupancy", "colour")]
                writer.writerow([name, one["seed"], point["samples"], *terms, f"{loss_of(point):.5f}"])
    return text.getvalue()


def measure_of(variant: Variant) -> str:
    """The variant that it is compared with, or that one is."""
    while variant.against != variant.name:
        variant = VARIANTS[variant.against]
    return variant.name


def draw(runs: Runs, *, side_px: int = 420) -> Image.Image:
    """Held-out loss by examples seen: a panel for each measure with what is compared with it."""
    measures = [variant.name for variant in COMPARED if variant.against == variant.name]
    picture = Image.new("RGB", (side_px * 3 // 2 * len(measures), side_px), "white")
    for place, measure in enumerate(measures):
        lines = [
            (variant.name, [[(p["samples"], loss_of(p)) for p in one["curve"]] for one in runs[variant.name]])
            for variant in COMPARED
            if measure_of(variant) == measure and variant.name in runs
        ]
        if lines:
            panel = _panel(lines, width=2 * (side_px * 3 // 2), height=2 * side_px)
            picture.paste(panel.resize((side_px * 3 // 2, side_px)), (place * (side_px * 3 // 2), 0))
    return picture.quantize(64)


Line = tuple[str, list[list[tuple[float, float]]]]
"""A name, and its curve for each seed."""


def _panel(lines: Sequence[Line], *, width: int, height: int) -> Image.Image:
    """Curves on axes that begin at no example and at the least loss of all; twice as large as it is shown."""
    left, right, top, bottom = 110, width - 70, 70, height - 90
    points = [point for _, curves in lines for curve in curves for point in curve]
    most_x, low, high = max(x for x, _ in points), min(y for _, y in points), max(y for _, y in points)
    panel = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(panel)
    font = ImageFont.load_default(26)

    def at(x: float, y: float) -> tuple[float, float]:
        up = (math.log(y) - math.log(low)) / (math.log(high) - math.log(low) or 1)
        return left + (right - left) * x / most_x, bottom - (bottom - top) * up

    for y in _ticks(low, high):
        pen.line([at(0, y), at(most_x, y)], "#dddddd", 2)
        pen.text((left - 12, at(0, y)[1]), f"{y:.3g}", "black", font, anchor="rm")
    for share in range(5):
        x = most_x * share / 4
        pen.text((at(x, low)[0], bottom + 14), f"{x:,.0f}", "black", font, anchor="mt")
    pen.text(((left + right) / 2, height - 8), "examples seen", "black", font, anchor="mb")
    pen.text((left, 14), "held-out loss (logarithmic)", "black", font, anchor="lt")
    for number, (name, curves) in enumerate(lines):
        colour = COLOURS[number % len(COLOURS)]
        for curve in curves:
            pen.line([at(x, y) for x, y in curve], colour, 4, joint="curve")
        pen.text((right - 10, top + 10 + 36 * number), name, colour, font, anchor="rt")
    return panel


def _ticks(low: float, high: float) -> Iterator[float]:
    """Round values between two, evenly enough on a logarithmic axis."""
    for power in range(-4, 4):
        for digit in (1, 1.25, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8):
            if low <= digit * 10.0**power <= high:
                yield digit * 10.0**power
