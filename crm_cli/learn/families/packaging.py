"""Boxes, bags and books."""

from __future__ import annotations

import numpy as np

from crm_cli.learn import labels
from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import any_surface, four, in_plane
from crm_cli.learn.materials import Look, Material, Random, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import arc, box, cylinder, prism, sweep, turn, vector


def carton(rng: Random) -> list[Part]:
    """A milk carton with a gable, a flat top or a screw cap."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.4, 0.6), rng.uniform(0.3, 0.5), rng.uniform(0.6, 1.2)
    body = box((width, depth, height)).moved((0, 0, 0))
    surface = paint.painted(rng, look, pattern=0.35)
    surface = labels.printed(
        rng,
        surface,
        look,
        width=width * rng.uniform(0.7, 0.98),
        height=height * rng.uniform(0.5, 0.95),
        centre_z=0,
    )
    parts = [Part(body.moved((0, 0, height / 2)), surface)]
    top = paint.plain(rng, look.main if rng.uniform() < 0.5 else look.detail)
    kind = rng.uniform()
    if kind < 0.55:
        rise, fold = rng.uniform(0.15, 0.3), rng.uniform(0.05, 0.12)
        gable = prism(
            [
                [-depth / 2, 0],
                [depth / 2, 0],
                [0.03, rise],
                [0.03, rise + fold],
                [-0.03, rise + fold],
                [-0.03, rise],
            ],
            width,
        )
        parts.append(Part(gable.moved((0, 0, height - 0.005), turn("z", 90)), top))
    if kind > 0.4:
        across = rng.uniform(-0.25, 0.25) * width
        cap = cylinder(rng.uniform(0.07, 0.11), 0.11)
        if kind < 0.55:
            cap = cap.moved((across, depth * 0.22, height + 0.08), turn("x", -45))
        else:
            cap = cap.moved((across, 0, height - 0.01))
        parts.append(Part(cap, paint.plain(rng, look.detail)))
    return parts


def package(rng: Random) -> list[Part]:
    """A cardboard box: cereal, shoes, medicine, gift."""
    look = draw_look(rng)
    size = np.array([rng.uniform(0.4, 1.2), rng.uniform(0.2, 0.9), rng.uniform(0.3, 1.2)])
    surface = paint.painted(rng, look, pattern=0.4)
    if rng.uniform() < 0.7:
        surface = labels.printed(
            rng,
            surface,
            look,
            width=size[0] * rng.uniform(0.5, 1),
            height=size[2] * rng.uniform(0.5, 1),
            centre_z=0,
        )
    parts = [Part(box(size, rounding=rng.choice([0, 0.02, 0.06])), surface)]
    kind = rng.uniform()
    if kind < 0.35:
        lid = box(size * [1.03, 1.03, 0] + vector(0, 0, rng.uniform(0.1, 0.3))).moved(
            (0, 0, size[2] / 2 - 0.05)
        )
        parts.append(Part(lid, paint.painted(rng, Look(look.accent, look.main, look.detail), pattern=0.3)))
    elif kind < 0.6:
        ribbon = paint.plain(rng, look.detail)
        wide = rng.uniform(0.07, 0.16)
        parts.append(Part(box((wide, size[1] + 0.03, size[2] + 0.03)), ribbon))
        parts.append(Part(box((size[0] + 0.03, wide, size[2] + 0.03)), ribbon))
        if rng.uniform() < 0.6:
            loop = in_plane(np.array([1.0, 0.7]) * arc(0.13, 0, 360, steps=15)[:-1])
            for side in (1, -1):
                bow = sweep(loop, np.broadcast_to([0.06, 0.025], (14, 2)), across=(0, 1, 0), is_loop=True)
                parts.append(Part(bow.moved((side * 0.12, 0, size[2] / 2 + 0.09)), ribbon))
    return parts


def book(rng: Random) -> list[Part]:
    """A book that stands, lies or leans: two covers, a spine and the pages."""
    look = draw_look(rng)
    width, height, thick = rng.uniform(0.6, 1.0), rng.uniform(0.8, 1.3), rng.uniform(0.14, 0.4)
    cover = paint.painted(rng, look, pattern=0.3)
    cover = labels.printed(
        rng,
        cover,
        look,
        width=width * rng.uniform(0.6, 1.0),
        height=height * rng.uniform(0.6, 1.0),
        centre_z=0,
    )
    board = 0.035
    pages = Material(
        paint.stripes(paint.solid((0.95, 0.93, 0.87)), paint.solid((0.85, 0.83, 0.77)), (0, 1, 0), 0.03, 0.4)
    )
    shapes = [
        Part(box((width - 0.06, thick - board, height - 0.08)), pages),
        Part(box((width, board, height)).moved((0, thick / 2, 0)), cover),
        Part(box((width, board, height)).moved((0, -thick / 2, 0)), cover),
        Part(box((board, thick + board, height)).moved((width / 2, 0, 0)), paint.plain(rng, look.main)),
    ]
    # The covers print on their own y > 0 side, whichever way they look in the book.
    if rng.uniform() < 0.3:
        shapes = [part.moved(turn=turn("x", -90) @ turn("y", 180)) for part in shapes]
    return shapes


def bag(rng: Random) -> list[Part]:
    """A shopping bag, handbag or rucksack: a tapering body with handles."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.6, 1.0), rng.uniform(0.2, 0.4), rng.uniform(0.55, 1.0)
    taper, exponent = rng.uniform(0.7, 1.15), rng.choice([3.0, 5.0, 10.0])
    levels = np.linspace(0, 1, 9)
    soft = np.sqrt(np.maximum(1 - (2 * levels - 1) ** 8, 0.25))
    wide = width / 2 * (1 + (taper - 1) * levels) * soft
    deep = depth / 2 * (1 - rng.uniform(0, 0.6) * levels**2) * soft
    spine = np.stack([0 * levels, 0 * levels, height * levels], -1)
    body = sweep(spine, np.stack([wide, deep], -1), across=(1, 0, 0), sides=28, exponent=exponent)
    surface = paint.cloth(rng, look.main) if rng.uniform() < 0.5 else paint.painted(rng, look)
    if rng.uniform() < 0.6:
        surface = labels.printed(
            rng,
            surface,
            look,
            width=width * rng.uniform(0.3, 0.7),
            height=height * rng.uniform(0.2, 0.6),
            centre_z=height * rng.uniform(0.4, 0.6),
        )
    strap = paint.plain(rng, look.detail if rng.uniform() < 0.6 else look.main)
    parts = [Part(body, surface)]
    bow = arc((width * rng.uniform(0.18, 0.3), rng.uniform(0.2, 0.5)), 0, 180)
    for y in rng.choice([[0.0, 0.0], [deep[-1] * 0.6, -deep[-1] * 0.6]]) if rng.uniform() < 0.9 else []:
        handle = sweep(
            in_plane(bow, z=height - 0.06), np.broadcast_to([0.035, 0.03], (14, 2)), across=(0, 1, 0)
        )
        parts.append(Part(handle.moved((0, y, 0)), strap))
        if y == 0:
            break
    if rng.uniform() < 0.4:
        pocket = box((width * 0.55, 0.14, height * 0.4), rounding=0.05).moved(
            (0, depth * 0.42, height * 0.32)
        )
        parts.append(Part(pocket, paint.plain(rng, look.accent)))
    if rng.uniform() < 0.3:
        flap = box((width * 0.9 * min(taper, 1), 0.06, height * 0.45), rounding=0.03)
        parts.append(
            Part(flap.moved((0, depth * 0.46, height * 0.72), turn("x", 6)), paint.plain(rng, look.accent))
        )
        parts.append(
            Part(
                box((0.1, 0.05, 0.08), rounding=0.015).moved((0, depth * 0.46 + 0.05, height * 0.55)),
                paint.metal(rng),
            )
        )
    return parts


def chest(rng: Random) -> list[Part]:
    """A chest or suitcase: a body, a barrel or flat lid, bands, a lock."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.8, 1.2), rng.uniform(0.45, 0.7), rng.uniform(0.35, 0.6)
    surface = any_surface(rng, look)
    fitting = paint.metal(rng) if rng.uniform() < 0.6 else paint.plain(rng, look.detail)
    rise = depth / 2 * rng.uniform(0.4, 1.0)
    outline = np.concatenate(
        [
            [[depth / 2, -0.01], [depth / 2, 0.0]],
            arc((depth / 2, rise), 0, 180)[1:-1],
            [[-depth / 2, 0.0], [-depth / 2, -0.01]],
        ]
    )
    lid = prism(outline, width).moved((0, 0, height), turn("z", 90))
    parts = [Part(box((width, depth, height)).moved((0, 0, height / 2)), surface), Part(lid, surface)]
    band_outline = outline * [1.08, 1.08]
    for x in (rng.uniform(0.28, 0.47) * width * np.array([1, -1])).tolist():
        parts.append(Part(prism(band_outline, 0.08).moved((x, 0, height), turn("z", 90)), fitting))
        parts.append(Part(box((0.08, depth * 1.08, height * 1.02)).moved((x, 0, height / 2)), fitting))
    parts.append(Part(box((0.16, 0.08, 0.2), rounding=0.02).moved((0, depth / 2, height)), fitting))
    if rng.uniform() < 0.5:
        parts.append(Part(box((width * 1.02, depth * 1.05, 0.07)).moved((0, 0, height)), fitting))
    if rng.uniform() < 0.4:
        parts += four(
            box((0.1, 0.1, 0.1), rounding=0.02).moved((0, 0, -0.03)), fitting, width * 0.42, depth * 0.4
        )
    return parts
