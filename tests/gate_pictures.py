"""Pictures of the gate: what was photographed, what it truly is, and what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from crm_cli.export.preview import render_previews
from crm_cli.fragments import Raster
from crm_cli.learn.evaluate import Chain
from crm_cli.learn.examples import draw_posed
from crm_cli.learn.truth import paint_truth
from crm_cli.learn.unseen import unseen
from crm_cli.records import Photo, TexturedMesh

TURNS = 8
"""Sides at equal angles, from the front by the left, of which some are shown."""

FRONT, THREE_QUARTER, SIDE, BACK, BEHIND = 0, 1, 2, 4, 5
"""BEHIND is the back from the right: with the two before the back, every side is seen once."""

PHOTO_PX = 256
"""Side of the photos that are shown; those that are scored have the training's size."""

CELL_PX = 80
LINE_PX = 14
MARGIN_PX = 8

MAX_BYTES = 300_000
"""Of a picture that is kept with the code."""

GREY, INK = (246, 246, 246), (40, 40, 40)


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One product: a line of text, and pictures of one height."""

    text: str
    cells: Sequence[Image.Image]


def sides(textured: TexturedMesh, raster: Raster, wanted: Sequence[int], size_px: int) -> list[Image.Image]:
    """An asset from some of TURNS sides, at one scale."""
    turns = render_previews(textured, raster, size_px=size_px, turns=TURNS)
    return [turns[number].picture for number in wanted]


def portray(seed: int, chain: Chain, raster: Raster) -> list[Image.Image]:
    """A product's photo, the truth from three sides, and the asset from the same sides."""
    shown = (THREE_QUARTER, SIDE, BEHIND)
    one = unseen(seed, raster, size_px=PHOTO_PX)
    made = chain.make(one.photo, one.cutout, chain.imagine(one.cutout))
    truth = paint_truth(draw_posed(np.random.default_rng(seed)), raster)
    return [
        as_cell(one.photo),
        *sides(truth, raster, shown, CELL_PX),
        *sides(made.textured, raster, shown, CELL_PX),
    ]


def as_cell(photo: Photo, size_px: int = CELL_PX) -> Image.Image:
    """A photo made to fit into a square cell, transparent where it says so."""
    channels = photo.rgb if photo.alpha is None else np.dstack([photo.rgb, photo.alpha])
    small = Image.fromarray(channels).convert("RGBA")
    small.thumbnail((size_px, size_px), Image.Resampling.LANCZOS)
    cell = Image.new("RGBA", (size_px, size_px))
    cell.paste(small, ((size_px - small.width) // 2, (size_px - small.height) // 2))
    return cell


def sheet(rows: Sequence[Row], heads: Sequence[str], *, columns: int) -> Image.Image:
    """Lay rows out in columns, filled from the top, with the cells' names above each."""
    size_px = rows[0].cells[0].width
    font = ImageFont.load_default(LINE_PX - 3)
    width = len(heads) * size_px
    height = size_px + LINE_PX
    deep = -(-len(rows) // columns)
    paper = Image.new(
        "RGB", (columns * (width + MARGIN_PX) + MARGIN_PX, LINE_PX + deep * height + 2 * MARGIN_PX), GREY
    )
    pen = ImageDraw.Draw(paper)
    for number, row in enumerate(rows):
        left = MARGIN_PX + number // deep * (width + MARGIN_PX)
        top = MARGIN_PX + LINE_PX + number % deep * height
        for place, (head, cell) in enumerate(zip(heads, row.cells, strict=True)):
            at = left + place * size_px
            if number % deep == 0:
                pen.text((at + size_px / 2, MARGIN_PX), head, INK, font, anchor="ma")
            paper.paste(cell, (at, top), cell)
        pen.text((left, top + size_px), row.text, INK, font)
    return paper


def save(picture: Image.Image, file: Path, max_bytes: int = MAX_BYTES) -> None:
    """Write a picture as WebP, as well as it may be within so many bytes."""
    for quality in range(90, 0, -10):
        picture.save(file, quality=quality, method=6)
        if file.stat().st_size <= max_bytes:
            return
    raise ValueError(f"{file}: more than {max_bytes} bytes at any quality")
