"""What the gate found, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from crm_cli.learn.compare import Decision
from crm_cli.learn.evaluate import Score, by_family, summary

FIGURES: Mapping[str, str] = {
    "f_score": "F-score at 0.04",
    "chamfer": "Chamfer distance",
    "volume_iou": "volume IoU",
    "colour": "colour of the surface, CIEDE2000",
    "outline_iou": "outlines of the six views, IoU",
    "depth_l1": "depth of the six views, error",
    "silhouette_iou": "front against the photo, IoU",
    "is_low": "low confidence, share",
}

SOLIDS: Mapping[str, str] = {"inflated": "inflated", "revolved": "turned"}
"""What the solids are called in a table."""

BEST = {"f_score": max, "volume_iou": max, "chamfer": min}
"""The geometry, and which of two solids is the better by it."""


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """One table; words to the left, numbers to the right."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines) + "\n"


def overall(scores: Sequence[Score], decision: Decision, before: Sequence[Score] | None) -> str:
    """Medians of all products beside the solids', and beside other weights on the same products."""
    found = summary(scores)
    earlier = None if before is None else summary(before)
    gains = {one.figure: one for one in decision.differences}
    head = [f"{len(scores)} products, medians", "networks", *SOLIDS.values()]
    head += ["before", "better by, mean with 95 % interval", ""] if earlier else []
    rows = []
    for figure, words in FIGURES.items():
        row = [words, number(found[figure])]
        row += [number(found[name]) if (name := f"{kind}.{figure}") in found else "" for kind in SOLIDS]
        if earlier:
            gain = gains[figure]
            interval = f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
            row += [number(earlier[figure]), interval, gain.word]
        rows.append(row)
    return table(head, rows)


def families(scores: Sequence[Score], decision: Decision) -> str:
    """Medians by family; of the two solids the better."""
    ahead = {margin.family: margin for margin in decision.margins}
    head = ["family", "products", "F-score", "solid", "ahead by, mean", "Chamfer", "solid", "volume IoU"]
    head += ["solid", "outlines", "depth", "front", "colour", "low"]
    rows = []
    for family, own in by_family(scores).items():
        found = summary(own)
        row = [family, len(own)]
        for figure in ("f_score", "chamfer", "volume_iou"):
            best = BEST[figure](found[f"{kind}.{figure}"] for kind in SOLIDS)
            row += [number(found[figure]), number(best)]
            row += [f"{ahead[family].margin:+.3f}"] if figure == "f_score" else []
        row += [number(found[name]) for name in ("outline_iou", "depth_l1", "silhouette_iou", "colour")]
        rows.append([*row, f"{found['is_low']:.0%}"])
    return table(head, rows)


def photos(found: Sequence[Mapping[str, Any]]) -> str:
    """Real photos, of which no truth is known."""
    head = [
        "photo",
        "verdict",
        "front, IoU",
        "front's colour",
        "seen",
        "closed",
        "parts",
        "handles",
        "reasons",
    ]
    rows = [
        [
            one["photo"],
            one["grade"],
            f"{one['silhouette_iou']:.3f}",
            f"{one['colour_distance']:.1f}",
            f"{one['seen_share']:.0%}",
            "yes" if one["is_sound"] else "no",
            one["components"],
            one["handles"],
            ", ".join(one["reasons"]),
        ]
        for one in found
    ]
    return table(head, rows)


def verdict(decision: Decision) -> str:
    """The decision in words."""
    lines = []
    if decision.behind:
        lines.append(f"A solid is as good in: {', '.join(decision.behind)}.")
    else:
        lines.append(f"Ahead of both solids in each of {len(decision.margins)} families.")
    if decision.differences:
        lines.append(
            "Better than the weights before."
            if decision.is_better
            else "Not better than the weights before, beyond chance."
        )
        worse = [FIGURES[one.figure] for one in decision.differences if one.word == "worse"]
        lines += [f"Worse in: {'; '.join(worse)}."] if worse else []
    lines.append("May ship." if decision.may_ship else "May not ship.")
    return " ".join(lines) + "\n"


def number(value: float) -> str:
    """A figure as a table has it: 0.512, or 12.3."""
    return f"{value:.3f}" if value < 2 else f"{value:.1f}"
