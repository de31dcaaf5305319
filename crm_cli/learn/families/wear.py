"""What one wears."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from crm_cli.learn import labels
from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import dome, either_way, in_plane
from crm_cli.learn.materials import Random, draw_colour, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import (
    Floats,
    Shape,
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    ring,
    smooth,
    sweep,
    turn,
)


def _upper(rng: Random, length: float, height: float, width: float) -> Floats:
    """Draw the line of a shoe's back from heel to toe: [R 4] of x, half height, half width and middle z."""
    toe = rng.uniform(0.28, 0.5)
    opening = rng.uniform(0.4, 0.55)
    x = np.array([0.0, 0.03, 0.12, opening * 0.75, opening, 0.68, 0.85, 0.96, 1.0]) - 0.5
    top = height * np.array([0.75, 0.95, 1.0, 0.97, 0.88, toe + 0.18, toe, toe * 0.75, toe * 0.45])
    half = width / 2 * np.array([0.35, 0.6, 0.72, 0.75, 0.8, 0.95, 0.95, 0.6, 0.3])
    knots = np.stack([x * length, top / 2, half, top / 2], -1)
    return smooth(knots, 3)


def shoe(rng: Random) -> list[Part]:
    """A shoe, sneaker or slipper, toe to one side: sole, upper, collar, laces."""
    look = draw_look(rng)
    length, height, width = rng.uniform(1.0, 1.25), rng.uniform(0.34, 0.5), rng.uniform(0.36, 0.46)
    sole_height = rng.uniform(0.06, 0.16)
    line = _upper(rng, length, height, width)
    spine = np.stack([line[:, 0], np.zeros(len(line)), line[:, 3]], -1)
    body = sweep(spine * [1, 1, 0], line[:, [2, 1]], across=(0, 1, 0), sides=18, exponent=2.6)
    shift = np.interp(body.vertices[:, 0], spine[:, 0], line[:, 3])
    vertices = body.vertices + np.stack(
        [np.zeros_like(shift), np.zeros_like(shift), shift + sole_height * 0.6], -1
    )
    upper = Shape(vertices, body.faces, vertices)
    surface = paint.plain(rng, look.main) if rng.uniform() < 0.5 else paint.cloth(rng, look.main)
    if rng.uniform() < 0.6:
        stripe_x = rng.uniform(-0.15, 0.1) * length
        two = paint.above(surface.colouring, paint.solid(look.accent), rng.uniform(0.1, 0.3) * length, axis=0)
        mark = paint.stripes(two, paint.solid(look.detail), (0.7, 0, 0.7), rng.uniform(0.1, 0.25), 0.4)
        near = rng.uniform(0.08, 0.16) * length
        surface = replace(
            surface,
            colouring=paint.blend(
                two, mark, lambda p: (np.abs(p[:, 0] - stripe_x) < near) & (np.abs(p[:, 1]) > 0.08)
            ),
        )
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    outline = np.stack(
        [
            length / 2 * 1.03 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.75,
            width / 2 * 1.04 * np.sin(angle) * (0.86 + 0.14 * np.cos(angle)),
        ],
        -1,
    )
    sole = prism(outline, sole_height).moved((0, 0, sole_height / 2), turn("x", -90))
    rubber = paint.plain(rng, (0.93, 0.93, 0.92) if rng.uniform() < 0.5 else draw_colour(rng))
    parts = [Part(sole, rubber), Part(upper, surface)]
    if rng.uniform() < 0.3:
        heel = box((length * 0.24, width * 0.75, 0.14), rounding=0.03)
        parts.append(Part(heel.moved((-length * 0.36, 0, -0.04)), rubber))
    # The opening: a dark pad that sinks into the top, with a collar around it.
    collar_x = -length * rng.uniform(0.22, 0.28)
    collar = ring(1.0, 0.17, sides=22, section=8).stretched((length * 0.17, width * 0.27, 0.19))
    top_z = height + sole_height * 0.6 - 0.03
    parts.append(Part(collar.moved((collar_x, 0, top_z), turn("y", 4)), paint.plain(rng, look.accent)))
    dark = paint.plain(rng, look.detail * 0.4)
    pad = ellipsoid((length * 0.16, width * 0.25, 0.03), rings=6, sides=18)
    parts.append(Part(pad.moved((collar_x, 0, top_z)), dark))
    if rng.uniform() < 0.75:
        lace = paint.plain(rng, draw_colour(rng))
        places = np.linspace(-0.02, 0.2, int(rng.integers(3, 6))) * length
        for x in places:
            z = np.interp(x, line[:, 0], 2 * line[:, 1]) + sole_height * 0.6
            half = 0.3 * width
            bow = smooth(
                [
                    [x, -half, z - 0.09],
                    [x, -half * 0.6, z - 0.01],
                    [x, half * 0.6, z - 0.01],
                    [x, half, z - 0.09],
                ],
                3,
            )
            parts.append(Part(sweep(bow, 0.022, across=(1, 0, 0), sides=8), lace))
    return either_way(rng, parts)


def boot(rng: Random) -> list[Part]:
    """A boot or skate: foot and shaft as one bent tube, sole, heel, straps, perhaps wheels."""
    look = draw_look(rng)
    shaft, length = rng.uniform(0.5, 1.0), rng.uniform(0.75, 0.95)
    thick = rng.uniform(0.15, 0.2)
    path = smooth(
        [
            [-0.28 * length, 0, shaft + 0.2],
            [-0.28 * length, 0, 0.55 * shaft + 0.15],
            [-0.24 * length, 0, 0.28],
            [-0.02 * length, 0, 0.2],
            [0.3 * length, 0, 0.14],
            [0.55 * length, 0, 0.12],
        ],
        4,
    )
    share = np.linspace(0, 1, len(path))
    wide = thick * np.interp(share, [0, 0.4, 0.6, 0.85, 0.95, 1], [1.0, 0.9, 0.95, 1.05, 0.85, 0.4])
    high = thick * np.interp(share, [0, 0.4, 0.6, 0.85, 0.95, 1], [1.15, 1.1, 0.95, 0.75, 0.6, 0.3])
    surface = paint.cloth(rng, look.main) if rng.uniform() < 0.5 else paint.plain(rng, look.main)
    body = sweep(path, np.stack([wide, high], -1), across=(0, 1, 0), sides=20, exponent=2.3)
    surface = replace(
        surface,
        colouring=paint.above(surface.colouring, paint.solid(look.accent), shaft + rng.uniform(0.0, 0.2)),
    )
    sole_paint = paint.plain(rng, look.detail)
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    outline = np.stack(
        [
            0.56 * length * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.7 + 0.07 * length,
            thick * 1.08 * np.sin(angle),
        ],
        -1,
    )
    sole = prism(outline, 0.1).moved((0, 0, 0.05), turn("x", -90))
    parts = [Part(body, surface), Part(sole, sole_paint)]
    heel = ellipsoid((0.2 * length, thick * 0.95, 0.15)).moved((-0.24 * length, 0, 0.18))
    parts.append(Part(heel, paint.plain(rng, look.main)))
    for z in np.linspace(0.5, 0.95, int(rng.integers(0, 4))) * shaft + 0.1:
        belt = ring(1.0, 0.12, sides=20, section=8).stretched((thick * 1.08, thick * 0.98, 0.25))
        parts.append(Part(belt.moved((-0.28 * length, 0, z)), paint.plain(rng, look.accent)))
    kind = rng.uniform()
    if kind < 0.25:
        wheel = cylinder(0.14, 0.07, sides=18, bevel=0.015).moved((0, 0, -0.035)).moved(turn=turn("x", 90))
        tyre = paint.plain(rng, draw_colour(rng))
        parts += [Part(wheel.moved((x * length, 0, -0.14)), tyre) for x in (-0.38, -0.08, 0.22, 0.52)]
        parts.append(
            Part(box((length, 0.09, 0.1)).moved((0.07 * length, 0, -0.04)), paint.plain(rng, look.accent))
        )
    elif kind < 0.7:
        parts.append(
            Part(
                box((0.25 * length, thick * 1.6, 0.14), rounding=0.02).moved((-0.32 * length, 0, -0.04)),
                sole_paint,
            )
        )
    return either_way(rng, parts)


def hat(rng: Random) -> list[Part]:
    """A hat or cap: a crown with a brim all round or a visor in front."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.34, 0.42), rng.uniform(0.3, 0.5)
    surface = paint.cloth(rng, look.main) if rng.uniform() < 0.6 else paint.painted(rng, look)
    band = paint.plain(rng, look.accent)
    if rng.uniform() < 0.5:
        brim = rng.uniform(0.6, 0.85)
        crown = smooth(
            [[radius, 0.03], [radius * 0.97, height * 0.6], [radius * rng.uniform(0.7, 0.9), height]], 4
        )
        body = lathe(
            np.concatenate(
                [
                    [[0, 0.0], [brim, 0.0], [brim, 0.05], [radius + 0.03, 0.05]],
                    crown[1:],
                    [[0, height - 0.03]],
                ]
            )
        )
        parts = [Part(body, surface)]
        strip = ring(radius * 0.99, 0.035, sides=28).stretched((1, 1, 1.6)).moved((0, 0, 0.1))
        return [*parts, Part(strip, band)]
    crown_body = lathe(np.concatenate([[[0, 0]], dome(radius, height)]), sides=28)
    visor = ellipsoid((radius * 0.85, rng.uniform(0.4, 0.55), 0.04), rings=8).moved(
        (0, radius * 0.6, 0.03), turn("x", -8)
    )
    button = ellipsoid((0.05, 0.05, 0.03), sides=12, rings=6).moved((0, 0, height))
    surface = labels.labelled(
        rng, surface, look, width=0.3, height=0.2, centre_z=height * 0.45, front=radius * 0.3
    )
    return [Part(crown_body, surface), Part(visor, band), Part(button, band)]


def headphones(rng: Random) -> list[Part]:
    """Headphones that stand: two cups and a band."""
    look = draw_look(rng)
    span, rise = rng.uniform(0.4, 0.52), rng.uniform(0.55, 0.8)
    band = smooth(in_plane(arc((span, rise), 0, 180, steps=17)), 1)
    flat = np.broadcast_to([rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.045)], (len(band), 2))
    hard = paint.plain(rng, look.main)
    parts = [Part(sweep(band, flat, across=(0, 1, 0), exponent=3), hard)]
    cushion = in_plane(arc((span - 0.01, rise - 0.04), 50, 130, steps=11))
    parts.append(
        Part(
            sweep(cushion, np.broadcast_to([0.09, 0.05], (11, 2)), across=(0, 1, 0)),
            paint.plain(rng, look.accent),
        )
    )
    cup_radius, thick = rng.uniform(0.18, 0.26), rng.uniform(0.08, 0.14)
    tall = rng.uniform(1.0, 1.3)
    cup = cylinder(cup_radius, thick, bevel=0.03).stretched((tall, 1, 1)).moved(turn=turn("y", 90))
    pad = ring(cup_radius * 0.72, 0.075, sides=24).stretched((tall, 1, 1)).moved(turn=turn("y", 90))
    soft = paint.plain(rng, look.detail)
    for side in (1, -1):
        parts.append(Part(cup.stretched((side, 1, 1)).moved((side * (span - 0.02), 0, -0.05)), hard))
        parts.append(Part(pad.moved((side * (span - 0.05), 0, -0.05)), soft))
    if rng.uniform() < 0.3:
        wire = smooth([[span, 0, -0.2], [span * 0.8, 0.15, -0.4], [0.1, 0.32, -0.42]], 4)
        parts.append(Part(sweep(wire, 0.03, across=(0, 0, 1), sides=8), soft))
    return parts
