"""What stands about in a house: lamps, appliances, plants, tools."""

from __future__ import annotations

import colorsys

import numpy as np

from crm_cli.learn import labels
from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import any_surface, four, in_plane
from crm_cli.learn.materials import Look, Material, Random, draw_colour, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import arc, box, cylinder, ellipsoid, lathe, rod, shell, smooth, sweep, turn, vector


def lamp(rng: Random) -> list[Part]:
    """A table lamp: foot, stem and a shade with a real wall."""
    look = draw_look(rng)
    height, bottom = rng.uniform(0.7, 1.2), rng.uniform(0.28, 0.45)
    top, tall = bottom * rng.uniform(0.45, 1.0), rng.uniform(0.28, 0.45)
    stem = paint.metal(rng) if rng.uniform() < 0.5 else paint.plain(rng, look.accent)
    shade = paint.painted(rng, look, pattern=0.35)
    wall = 0.06
    shade_shape = lathe(
        [[bottom, 0], [top, tall], [top - wall, tall], [bottom - wall, 0]], sides=28, is_loop=True
    ).moved((0, 0, height - tall * 0.5))
    knots = int(rng.integers(3, 6))
    bulges = rng.uniform(0.04, 0.17, knots)
    bulges[-1] = 0.035
    line = smooth(np.stack([bulges, np.linspace(0.04, height * 0.8, knots)], -1), 4)
    line[:, 0] = np.maximum(line[:, 0], 0.035)
    parts = [
        Part(shade_shape, shade),
        Part(cylinder(rng.uniform(0.18, 0.3), 0.07), stem),
        Part(lathe(np.concatenate([[[0, 0.03]], line, [[0, line[-1, 1]]]]), sides=18), stem),
        Part(rod((0, 0, height * 0.7), (0, 0, height + tall * 0.2), 0.035), stem),
        Part(
            ellipsoid((0.08, 0.08, 0.11), sides=14, rings=8).moved((0, 0, height + tall * 0.15)),
            Material(paint.solid((0.98, 0.95, 0.85))),
        ),
    ]
    parts.append(Part(box((2 * bottom * 0.9 - 0.05, 0.04, 0.035)).moved((0, 0, height - tall * 0.2)), stem))
    return parts


def street_lamp(rng: Random) -> list[Part]:
    """A very thin and tall thing: a street lamp, a floor lamp, a coat stand."""
    look = draw_look(rng)
    height, thick = rng.uniform(1.6, 2.6), rng.uniform(0.035, 0.05)
    iron = paint.plain(rng, look.main * 0.5)
    light = Material(paint.solid((0.97, 0.95, 0.88)), gloss=0.3)
    parts = [
        Part(cylinder(thick, height, top=thick * 0.8, sides=14), iron),
        Part(cylinder(rng.uniform(0.1, 0.2), rng.uniform(0.06, 0.3), top=0.08), iron),
    ]
    kind = rng.uniform()
    if kind < 0.45:
        size = rng.uniform(0.14, 0.22)
        parts.append(
            Part(
                cylinder(size * 0.6, size * 2, top=size, at_z=height - 0.03, sides=int(rng.integers(4, 9))),
                light,
            )
        )
        parts.append(
            Part(
                lathe(
                    [[0.0, 0.0], [size * 1.4, 0], [size * 1.3, 0.05], [0.04, 0.2], [0, 0.26]], sides=16
                ).moved((0, 0, height + 2 * size - 0.04)),
                iron,
            )
        )
    elif kind < 0.7:
        reach = rng.uniform(0.2, 0.4)
        bow = in_plane(arc((reach, reach), 0, 180, steps=12), x=reach, z=height - 0.03)
        parts.append(Part(sweep(bow, thick * 0.9, across=(0, 1, 0)), iron))
        shade = lathe([[0.0, 0.0], [0.05, 0], [0.2, -0.16], [0.18, -0.18], [0, -0.12]], sides=18)
        parts.append(Part(shade.moved((2 * reach, 0, height + 0.02)), paint.plain(rng, look.accent)))
    else:
        for k in range(int(rng.integers(2, 5))):
            out = np.array([np.cos(2.4 * k), np.sin(2.4 * k), 0]) * rng.uniform(0.15, 0.25)
            parts.append(
                Part(rod((0, 0, height - 0.25), out + vector(0, 0, height - 0.05), 0.03, sides=8), iron)
            )
            parts.append(
                Part(ellipsoid((0.1, 0.1, 0.1), sides=14, rings=8).moved(out + vector(0, 0, height)), light)
            )
    return parts


def appliance(rng: Random) -> list[Part]:
    """A radio, oven, camera or loudspeaker: a box with dials, grilles, a screen, a handle."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.5, 1.2), rng.uniform(0.25, 0.6), rng.uniform(0.35, 0.9)
    surface = any_surface(rng, look)
    parts = [
        Part(
            box((width, depth, height), rounding=rng.choice([0.0, 0.03, 0.08])).moved((0, 0, height / 2)),
            surface,
        )
    ]
    face = depth / 2
    trim, detail = paint.plain(rng, look.accent), paint.plain(rng, look.detail)
    cell = width / int(rng.integers(2, 4))
    for x in np.arange(-width / 2 + cell / 2, width / 2, cell):
        _control(
            rng,
            parts,
            (x, face, height * rng.uniform(0.45, 0.6)),
            min(cell, height) * 0.42,
            trim,
            detail,
            look,
        )
    if rng.uniform() < 0.5:
        for x in np.linspace(-0.35, 0.35, int(rng.integers(2, 6))) * width:
            knob = cylinder(0.04, 0.07, bevel=0.01, sides=14).moved(turn=turn("x", -90))
            parts.append(Part(knob.moved((x, face - 0.02, height * 0.14)), detail))
    if rng.uniform() < 0.45:
        bow = in_plane(
            arc((width * rng.uniform(0.25, 0.4), rng.uniform(0.12, 0.35)), 0, 180), z=height - 0.03
        )
        parts.append(Part(sweep(bow, 0.035, across=(0, 1, 0)), trim))
    if rng.uniform() < 0.3:
        tip = (width * 0.4 + rng.uniform(0.0, 0.3), 0, height + rng.uniform(0.3, 0.6))
        parts.append(
            Part(rod((width * 0.4, -depth * 0.3, height - 0.02), tip, 0.03, sides=8), paint.metal(rng))
        )
    if rng.uniform() < 0.5:
        parts += four(cylinder(0.05, 0.07, sides=12).moved((0, 0, -0.05)), detail, width * 0.4, depth * 0.35)
    return parts


def _control(
    rng: Random,
    parts: list[Part],
    at: tuple[float, float, float],
    reach: float,
    trim: Material,
    detail: Material,
    look: Look,
) -> None:
    """Add one thing to an appliance's face: a loudspeaker or lens, a screen, a door or nothing."""
    kind = rng.uniform()
    x, y, z = at
    if kind < 0.4:
        disc = cylinder(reach, 0.08, bevel=0.015).moved(turn=turn("x", -90))
        inner = cylinder(reach * rng.uniform(0.5, 0.85), 0.1, bevel=0.02).moved(turn=turn("x", -90))
        grille = Material(paint.dots(detail.colouring, paint.solid(look.detail * 0.4), 0.05, 0.3))
        parts += [Part(disc.moved((x, y - 0.04, z)), trim), Part(inner.moved((x, y - 0.04, z)), grille)]
    elif kind < 0.75:
        wide, tall = 2 * reach * rng.uniform(0.8, 1), 2 * reach * rng.uniform(0.5, 1)
        screen = box((wide, 0.06, tall), rounding=0.015)
        shown = labels.labelled(rng, trim, look, width=wide * 0.85, height=tall * 0.8, centre_z=0)
        parts.append(Part(screen.moved((x, y, z)), shown))


def plant(rng: Random) -> list[Part]:
    """A plant in a pot or flowers in a vase."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.2, 0.32), rng.uniform(0.3, 0.5)
    outer = smooth(
        [
            [radius * rng.uniform(0.6, 1.1), 0],
            [radius * rng.uniform(0.9, 1.25), height * 0.5],
            [radius, height],
        ],
        5,
    )
    parts = [
        Part(shell(outer, 0.06), paint.painted(rng, look)),
        Part(
            cylinder(radius - 0.04, 0.1, at_z=height - 0.18), Material(paint.solid((0.2, 0.14, 0.1)), gloss=0)
        ),
    ]
    green = np.array(
        colorsys.hsv_to_rgb(rng.uniform(0.22, 0.4), rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.7))
    )
    leafy = Material(
        paint.gradient(paint.solid(green * 0.7), paint.solid(green), height, height + 0.6), gloss=0.25
    )
    petals = paint.plain(rng, draw_colour(rng))
    flat, count = rng.uniform(0.05, 0.12), int(rng.integers(5, 14))
    is_flower = rng.uniform() < 0.45
    for k in range(count):
        angle = 2.4 * k + rng.uniform(-0.3, 0.3)
        out = np.array([np.cos(angle), np.sin(angle), 0])
        reach, tall = rng.uniform(0.1, 0.45), rng.uniform(0.3, 0.85)
        root = out * radius * 0.3 + vector(0, 0, height - 0.12)
        tip = out * (radius * 0.4 + reach) + vector(0, 0, height + tall)
        middle = (root + tip) / 2 + vector(0, 0, 0.12)
        path = smooth([root, middle, tip], 5)
        across = (-np.sin(angle), np.cos(angle), 0)
        if is_flower and k < 5:
            parts.append(Part(sweep(path, 0.026, across=across, sides=7), leafy))
            bud = ellipsoid(
                (rng.uniform(0.09, 0.15), rng.uniform(0.09, 0.15), rng.uniform(0.08, 0.18)), sides=12, rings=8
            )
            parts.append(Part(bud.moved(tip), petals))
        else:
            width = flat * np.interp(np.linspace(0, 1, len(path)), [0, 0.45, 1], [0.35, 1.0, 0.25])
            blade = np.stack([width, np.full(len(path), 0.028)], -1)
            parts.append(Part(sweep(path, blade, across=across, sides=8), leafy))
    return parts


def tool(rng: Random) -> list[Part]:
    """A hammer, brush, paddle or bat: a grip and a head."""
    look = draw_look(rng)
    length, thick = rng.uniform(0.8, 1.3), rng.uniform(0.04, 0.065)
    grip = paint.wood(rng) if rng.uniform() < 0.6 else paint.painted(rng, look, pattern=0.3)
    line = smooth(np.stack([thick * rng.uniform(0.75, 1.3, 5), np.linspace(0, length, 5)], -1), 4)
    shaft = lathe(np.concatenate([[[0, 0]], line, [[0, length]]]), sides=14)
    head = paint.metal(rng) if rng.uniform() < 0.6 else paint.plain(rng, look.main)
    parts = [Part(shaft, grip)]
    kind = rng.integers(4)
    if kind == 0:
        bar = cylinder(rng.uniform(0.07, 0.12), rng.uniform(0.35, 0.55), bevel=0.02)
        parts.append(Part(bar.moved((0, 0, -0.2)).moved((0, 0, length - 0.04), turn("y", 90)), head))
    elif kind == 1:
        wide = rng.uniform(0.2, 0.5)
        block = box((wide, 0.14, 0.16), rounding=0.02).moved((0, 0, length))
        hair = Material(
            paint.stripes(paint.solid(look.accent), paint.solid(look.accent * 0.7), (1, 0, 0), 0.04, 0.5)
        )
        parts += [Part(block, head), Part(box((wide * 0.94, 0.1, 0.26)).moved((0, 0, length + 0.18)), hair)]
    elif kind == 2:
        blade = ellipsoid((rng.uniform(0.18, 0.3), 0.04, rng.uniform(0.2, 0.35)), exponent=2.5)
        parts.append(Part(blade.moved((0, 0, length + 0.12)), paint.painted(rng, look)))
    else:
        hoop = in_plane(arc((0.24, 0.32), 0, 360, steps=25)[:-1], z=length + 0.25)
        parts.append(Part(sweep(hoop, 0.04, across=(0, 1, 0), is_loop=True), head))
        for x in np.linspace(-0.15, 0.15, 4):
            parts.append(
                Part(rod((x, 0, length), (x, 0, length + 0.5), 0.022, sides=6), paint.plain(rng, look.accent))
            )
    lean = rng.choice([0.0, rng.uniform(-60, 60), 90.0])
    return [part.moved(turn=turn("y", lean)) for part in parts]
