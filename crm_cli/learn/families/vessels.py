"""Things that hold something: bottles, cans, jars, mugs, bowls, vases, teapots, pans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crm_cli.learn import labels
from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import dome, handle_shape, in_plane
from crm_cli.learn.materials import Look, Random, draw_colour, draw_look
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import arc, box, cylinder, ellipsoid, lathe, shell, smooth, sweep, turn, vector


def bottle(rng: Random) -> list[Part]:
    """A bottle of glass or plastic with a cap, often with a label; round or flattened."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.2, 0.36), rng.uniform(0.8, 1.3)
    neck, shoulder = radius * rng.uniform(0.3, 0.6), height * rng.uniform(0.5, 0.8)
    waist = radius * rng.choice([1.0, rng.uniform(0.75, 1.0)])
    outline = smooth(
        [
            [radius * 0.9, 0],
            [radius, 0.05],
            [waist, shoulder * 0.5],
            [radius, shoulder],
            [neck * rng.uniform(1.0, 1.5), shoulder + 0.5 * (height - shoulder)],
            [neck, height],
        ],
        3,
    )
    body = lathe(
        np.concatenate([[[0, 0]], outline, [[0, height]]]), sides=28, exponent=rng.choice([2, 2, 2, 4])
    )
    body = body.stretched((1, rng.choice([1.0, rng.uniform(0.5, 0.8)]), 1))
    surface = paint.painted(rng, look, pattern=0.25)
    if rng.uniform() < 0.8:
        low, high = shoulder * rng.uniform(0.1, 0.3), shoulder * rng.uniform(0.7, 0.95)
        if rng.uniform() < 0.5:
            surface = labels.wrapped(rng, surface, look, bottom=low, top=high, radius=radius, repeats=2)
        else:
            surface = labels.labelled(
                rng,
                surface,
                look,
                width=radius * rng.uniform(1.0, 1.7),
                height=high - low,
                centre_z=(low + high) / 2,
            )
    cap = paint.plain(rng, look.detail)
    parts = [Part(body, surface)]
    kind = rng.uniform()
    if kind < 0.65:
        parts.append(
            Part(cylinder(neck * rng.uniform(1.0, 1.3), rng.uniform(0.06, 0.16), at_z=height - 0.02), cap)
        )
    elif kind < 0.85:
        # A pump: stem, head and a spout to one side.
        parts.append(Part(cylinder(neck * 1.1, 0.08, at_z=height - 0.02), cap))
        parts.append(Part(cylinder(neck * 0.4, 0.2, at_z=height), cap))
        spout = smooth([[0, 0, height + 0.2], [0.15, 0, height + 0.22], [0.27, 0, height + 0.15]], 4)
        parts.append(
            Part(sweep(spout, 0.045, across=(0, 1, 0)).moved(turn=turn("z", rng.uniform(0, 360))), cap)
        )
    else:
        parts.append(
            Part(lathe([[0.0, 0.0], [neck, 0.0], [neck * 1.1, 0.1], [neck * 0.6, 0.2], [0, 0.22]]), cap)
        )
        parts[-1] = parts[-1].moved((0, 0, height - 0.02))
    return parts


def can(rng: Random) -> list[Part]:
    """A drinks or food can, or a spray can."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.25, 0.45), rng.uniform(0.5, 1.2)
    inset = rng.uniform(0.75, 0.95)
    body = lathe(
        [
            [0.0, 0.02],
            [radius * inset, 0],
            [radius, 0.06],
            [radius, height - 0.08],
            [radius * inset, height],
            [radius * inset - 0.03, height],
            [radius * inset - 0.04, height - 0.03],
            [0, height - 0.03],
        ],
        sides=30,
    )
    steel = paint.metal(rng)
    surface = labels.wrapped(
        rng,
        paint.painted(rng, look),
        look,
        bottom=rng.uniform(0.04, 0.2),
        top=height - 0.1,
        radius=radius,
        repeats=2,
    )
    surface = replace(surface, colouring=paint.above(surface.colouring, steel.colouring, height - 0.07))
    parts = [Part(body, surface)]
    if rng.uniform() < 0.3:
        cap = cylinder(
            radius * 0.8, rng.uniform(0.1, 0.3), top=radius * rng.uniform(0.5, 0.8), at_z=height - 0.05
        )
        parts.append(Part(cap, paint.plain(rng, look.detail)))
    elif rng.uniform() < 0.6:
        parts.append(Part(box((0.06, 0.14, 0.03), rounding=0.01).moved((0, 0.03, height - 0.02)), steel))
    return parts


def jar(rng: Random) -> list[Part]:
    """A jar with a lid: jam, cream, spice."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.3, 0.5), rng.uniform(0.3, 0.9)
    corner = rng.uniform(0.04, 0.12)
    body = lathe(
        np.concatenate(
            [
                [[0, 0]],
                smooth(
                    [
                        [radius - corner, 0],
                        [radius, corner],
                        [radius, height - corner],
                        [radius * 0.85, height],
                    ],
                    3,
                ),
                [[0, height]],
            ]
        ),
        sides=28,
        exponent=rng.choice([2, 2, 2, 5]),
    )
    surface = paint.painted(rng, look, pattern=0.3)
    if rng.uniform() < 0.8:
        surface = labels.wrapped(
            rng,
            surface,
            look,
            bottom=0.15 * height,
            top=0.85 * height,
            radius=radius,
            repeats=int(rng.integers(1, 3)),
        )
    lid_height = rng.uniform(0.08, 0.25)
    lid = cylinder(radius * rng.uniform(0.88, 1.04), lid_height, at_z=height - 0.03, sides=28)
    parts = [
        Part(body, surface),
        Part(lid, paint.painted(rng, Look(look.detail, look.accent, look.main), pattern=0.3)),
    ]
    if rng.uniform() < 0.25:
        knob = ellipsoid((0.08, 0.08, 0.07)).moved((0, 0, height + lid_height))
        parts.append(Part(knob, parts[1].material))
    return parts


def mug(rng: Random) -> list[Part]:
    """A mug or cup with one handle."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.3, 0.45), rng.uniform(0.45, 0.95)
    foot, belly = radius * rng.uniform(0.65, 1.0), radius * rng.uniform(0.9, 1.15)
    outer = smooth([[foot, 0], [belly, height * rng.uniform(0.3, 0.6)], [radius, height]], 6)
    wall = rng.uniform(0.06, 0.075)
    surface = paint.painted(rng, look)
    if rng.uniform() < 0.4:
        surface = labels.labelled(
            rng,
            surface,
            look,
            width=radius * 1.1,
            height=height * 0.6,
            centre_z=height * 0.5,
            front=radius * 0.4,
        )
    low, high = height * rng.uniform(0.12, 0.3), height * rng.uniform(0.72, 0.9)
    reach = np.interp([low, high], outer[:, 1], outer[:, 0])
    handle = handle_shape(rng, reach, low, high)
    where = rng.choice([0.0, 180.0, rng.uniform(0, 360)])
    handle_surface = surface if rng.uniform() < 0.5 else paint.plain(rng, look.accent)
    tone = look.main if rng.uniform() < 0.7 else look.accent
    return [
        Part(shell(outer, wall), surface),
        Part(handle.moved(turn=turn("z", where)), replace(handle_surface, colouring=paint.solid(tone))),
    ]


def bowl(rng: Random) -> list[Part]:
    """A bowl or deep plate, sometimes with a foot."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.5, 0.7), rng.uniform(0.2, 0.6)
    foot = radius * rng.uniform(0.3, 0.6)
    outer = smooth(
        [
            [foot, 0],
            [foot + (radius - foot) * rng.uniform(0.5, 0.85), height * rng.uniform(0.25, 0.5)],
            [radius, height],
        ],
        7,
    )
    surface = paint.painted(rng, look)
    inside = paint.solid(look.accent if rng.uniform() < 0.4 else look.main)
    if rng.uniform() < 0.5:
        depth = rng.uniform(0.06, 0.075)

        def is_inside(places: paint.Floats) -> NDArray[np.bool_]:
            return (
                np.hypot(places[:, 0], places[:, 1])
                < np.interp(places[:, 2], outer[:, 1], outer[:, 0]) - depth / 2
            )

        surface = replace(surface, colouring=paint.blend(surface.colouring, inside, is_inside))
    parts = [Part(shell(outer, 0.065, sides=32), surface)]
    if rng.uniform() < 0.3:
        parts.append(Part(cylinder(foot * 0.8, 0.1, at_z=-0.06), surface))
    if rng.uniform() < 0.25:
        food = lathe([[0.0, 0.0], [radius * 0.8, 0], [radius * 0.6, 0.08], [0, 0.16]], sides=24)
        parts.append(Part(food.moved((0, 0, height * 0.75)), paint.cloth(rng, draw_colour(rng))))
    return parts


def vase(rng: Random) -> list[Part]:
    """A vase: any smooth revolved profile, open at the top."""
    look = draw_look(rng)
    height = rng.uniform(0.8, 1.5)
    knots = int(rng.integers(4, 7))
    radii = rng.uniform(0.16, 0.42, knots)
    radii[-1] = max(radii[-1], 0.17)
    outer = smooth(np.stack([radii, np.linspace(0, height, knots)], -1), 4)
    outer[:, 0] = np.maximum(outer[:, 0], 0.14)
    parts = [Part(shell(outer, 0.065), paint.painted(rng, look, pattern=0.7))]
    if rng.uniform() < 0.2:
        reach = np.interp([0.45 * height, 0.8 * height], outer[:, 1], outer[:, 0])
        handle = handle_shape(rng, reach, 0.45 * height, 0.8 * height)
        parts += [Part(handle.moved(turn=turn("z", angle)), parts[0].material) for angle in (0, 180)]
    return parts


def teapot(rng: Random) -> list[Part]:
    """A teapot, kettle or watering can: belly, spout, handle, lid."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.4, 0.55), rng.uniform(0.45, 0.85)
    belly = lathe(
        np.concatenate(
            [
                [[0, 0]],
                smooth(
                    [
                        [radius * 0.6, 0],
                        [radius, height * rng.uniform(0.3, 0.6)],
                        [radius * rng.uniform(0.45, 0.65), height],
                    ],
                    6,
                ),
                [[0, height]],
            ]
        ),
        sides=28,
    )
    surface = paint.painted(rng, look, pattern=0.35)
    low, tip = height * rng.uniform(0.2, 0.4), height * rng.uniform(0.85, 1.05)
    spout = smooth(
        [
            [-radius * 0.75, 0, low],
            [-radius * 1.15, 0, low + 0.05],
            [-radius * 1.35, 0, 0.6 * tip + 0.4 * low],
            [-radius * rng.uniform(1.5, 1.8), 0, tip],
        ],
        4,
    )
    thick = np.linspace(rng.uniform(0.11, 0.16), rng.uniform(0.05, 0.07), len(spout))
    lid = lathe(
        np.concatenate(
            [
                [[0, 0]],
                dome(radius * 0.6, rng.uniform(0.08, 0.16)),
            ]
        ),
        sides=24,
    )
    knob = ellipsoid((0.07, 0.07, 0.06)).moved((0, 0, height + 0.12))
    parts = [
        Part(belly, surface),
        Part(sweep(spout, thick, across=(0, 1, 0)), paint.plain(rng, look.main)),
        Part(
            lid.moved((0, 0, height - 0.03)),
            paint.plain(rng, look.main if rng.uniform() < 0.6 else look.accent),
        ),
        Part(knob, paint.plain(rng, look.accent)),
    ]
    handle_paint = paint.plain(rng, look.main if rng.uniform() < 0.5 else look.detail)
    if rng.uniform() < 0.65:
        reach = np.array([radius * 0.85, radius * 0.7])
        parts.append(Part(handle_shape(rng, reach, height * 0.2, height * 0.85), handle_paint))
    else:
        bow = in_plane(arc((radius * 0.8, rng.uniform(0.35, 0.55)), 0, 180), z=height * 0.75)
        parts.append(Part(sweep(bow, rng.uniform(0.035, 0.055), across=(0, 1, 0)), handle_paint))
    if rng.uniform() < 0.5:
        parts = [Part(part.shape.stretched((-1, 1, 1)), part.material) for part in parts]
    return parts


def pan(rng: Random) -> list[Part]:
    """A frying pan or a pot with one or two handles, sometimes a lid."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.4, 0.55), rng.uniform(0.12, 0.55)
    outer = np.array([[radius * rng.uniform(0.8, 1), 0], [radius, 0.3 * height], [radius, height]])
    surface = paint.metal(rng) if rng.uniform() < 0.5 else paint.plain(rng, look.main)
    grip = paint.plain(rng, look.detail)
    parts = [Part(shell(outer, 0.06, sides=30), surface)]
    if height < 0.3 or rng.uniform() < 0.3:
        length = rng.uniform(0.5, 0.85)
        shaft = smooth(
            [
                [radius - 0.03, 0, height * 0.7],
                [radius + 0.3 * length, 0, height + 0.03],
                [radius + length, 0, height + 0.06],
            ],
            4,
        )
        parts.append(
            Part(sweep(shaft, np.broadcast_to([0.06, 0.035], (9, 2)), across=(0, 1, 0), exponent=3), grip)
        )
    else:
        ear = np.stack([*(arc((0.14, 0.16), -90, 90).T), np.zeros(14)], -1) + vector(
            radius - 0.02,
            0,
            height * 0.8,
        )
        parts += [Part(sweep(ear, 0.035, across=(0, 0, 1)).moved(turn=turn("z", a)), grip) for a in (0, 180)]
    if rng.uniform() < 0.4:
        lid = lathe(
            np.concatenate([[[0, -0.03], [radius * 1.02, -0.03]], dome(radius * 1.02, 0.14)]), sides=30
        )
        parts.append(Part(lid.moved((0, 0, height + 0.02)), paint.plain(rng, look.main)))
        parts.append(Part(ellipsoid((0.07, 0.07, 0.06)).moved((0, 0, height + 0.19)), grip))
    return [part.moved(turn=turn("z", rng.uniform(-30, 30))) for part in parts[:1]] + parts[1:]
