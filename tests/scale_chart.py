"""Draws what bench_scale.py measured: three panels over the number of photos, as a small SVG."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

WIDTH, HEIGHT = 300, 200
"""Of a panel, without its captions."""

LEFT, TOP, GAP = 50, 62, 70
"""Room for numbers and captions around a panel."""

COLOURS = ("#1f6feb", "#d1660a")


@dataclass(frozen=True, kw_only=True)
class Point:
    """What so many photos cost the coordinating process."""

    photos: int
    converted_ms: float
    """Milliseconds of processor for each photo that is converted."""
    converted_mb: float
    """The most memory it held meanwhile."""
    again_s: float
    """Seconds of processor of a run that finds all of them finished, from the command's start to its end."""
    again_mb: float
    scan_s: float
    """Of these, to find the photos, read records and journal, and decide that nothing is to be done."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One quantity over the number of photos."""

    name: str
    values: Sequence[float]


def draw(points: Sequence[Point]) -> str:
    """The chart as SVG; points: at least one, in any order."""
    points = sorted(points, key=lambda point: point.photos)
    counts = [point.photos for point in points]
    converted = [Line(name="converted", values=[p.converted_ms for p in points])]
    memory = [
        Line(name="converting", values=[p.converted_mb for p in points]),
        Line(name="all finished before", values=[p.again_mb for p in points]),
    ]
    again = [
        Line(name="whole command", values=[p.again_s for p in points]),
        Line(name="of it the scan", values=[p.scan_s for p in points]),
    ]
    panels = (
        ("ms of coordinating processor a photo", 3.0, "asked for", converted),
        ("peak MB of the coordinating process", 0.0, "", memory),
        ("s of processor where all is finished", 0.5, "asked of the scan", again),
    )
    width = LEFT + len(panels) * (WIDTH + GAP)
    body = [
        part
        for number, (title, limit, asked, lines) in enumerate(panels)
        for part in _panel(
            LEFT + number * (WIDTH + GAP), title, counts, lines, limit=limit, asked=asked, is_log=not number
        )
    ]
    made = f"{_machine()}, {time.strftime('%Y-%m-%d')}"
    head = f"What photos cost beside the work itself: stages that do nothing, {made}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {TOP + HEIGHT + 50}" '
            'font-family="sans-serif" font-size="12" fill="#222">',
            '<rect width="100%" height="100%" fill="#fff"/>',
            f'<text x="{LEFT}" y="22" font-size="14">{escape(head)}</text>',
            *body,
            "</svg>\n",
        ]
    )


def _panel(
    left: float,
    title: str,
    counts: Sequence[int],
    lines: Sequence[Line],
    *,
    limit: float,
    asked: str,
    is_log: bool,
) -> list[str]:
    """One panel. limit: a dashed line, and asked: its words; 0: none. is_log: whether values span decades."""
    values = [value for line in lines for value in line.values]
    low, ticks = _scale([*values, limit or values[0]], is_log=is_log)
    high, bottom = ticks[-1], TOP + HEIGHT

    def x(count: float) -> float:
        return left + WIDTH * math.log(count / counts[0]) / (math.log(counts[-1] / counts[0]) or 1)

    def y(value: float) -> float:
        share = math.log(value / low) / math.log(high / low) if is_log else (value - low) / (high - low)
        return bottom - HEIGHT * share

    drawn = [f'<text x="{left}" y="{TOP - 14}" font-weight="bold">{escape(title)}</text>']
    for tick in ticks:
        drawn += [
            f'<path d="M{left} {y(tick):.1f}h{WIDTH}" stroke="#ddd"/>',
            f'<text x="{left - 6}" y="{y(tick) + 4:.1f}" text-anchor="end">{tick:g}</text>',
        ]
    drawn += [f'<text x="{x(n):.1f}" y="{bottom + 18}" text-anchor="middle">{n:,}</text>' for n in counts]
    drawn.append(f'<text x="{left + WIDTH / 2}" y="{bottom + 36}" text-anchor="middle">photos</text>')
    if limit:
        drawn.append(f'<path d="M{left} {y(limit):.1f}h{WIDTH}" stroke="#c00" stroke-dasharray="5 4"/>')
        above = f'x="{left + 8}" y="{y(limit) - 5:.1f}"'
        drawn.append(f'<text {above} fill="#c00">{asked}: {limit:g}</text>')
    for number, (line, colour) in enumerate(zip(lines, COLOURS, strict=False)):
        at = [(x(count), y(value)) for count, value in zip(counts, line.values, strict=True)]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in at)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        drawn += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in at]
        name = f"{line.name}: {line.values[-1]:.3g} at {counts[-1]:,}"
        drawn.append(
            f'<text x="{left + 8}" y="{TOP + 16 + 16 * number}" fill="{colour}">{escape(name)}</text>'
        )
    return drawn


def _scale(values: Sequence[float], *, is_log: bool) -> tuple[float, list[float]]:
    """Where an axis begins, and its marks; the last is its end, with room for captions above the values."""
    if is_log:
        powers = range(math.floor(math.log10(min(values))), math.ceil(math.log10(max(values))) + 1)
        ticks = [10.0**power for power in powers]
        return ticks[0], ticks
    step = 10 ** math.floor(math.log10(max(values)))
    step = next(step * part for part in (0.2, 0.5, 1, 2) if max(values) * 1.3 <= step * part * 6)
    return 0.0, [round(step * number, 9) for number in range(math.ceil(max(values) * 1.3 / step) + 1)]


def _machine() -> str:
    """The processor by its name, and how many there are."""
    about = Path("/proc/cpuinfo")
    lines = about.read_text().splitlines() if about.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor() or platform.machine()}, {os.cpu_count()} cores"
