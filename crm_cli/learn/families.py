"""The families of products: each draws the proportions and colours of one kind of thing.

Walls are 0.06 or thicker, about four pixels of a 128 px view, so that depth maps can resolve them.
"""

from __future__ import annotations

import numpy as np

from crm_cli.learn import materials as paint
from crm_cli.learn.materials import Look, Material, Random, draw_colour, draw_look
from crm_cli.learn.products import Family, Part
from crm_cli.learn.shapes import (
    Shape,
    arc,
    box,
    cylinder,
    ellipsoid,
    lathe,
    prism,
    ring,
    rod,
    shell,
    smooth,
    sweep,
    turn,
)

Floats = np.ndarray


def _any_surface(rng: Random, look: Look) -> Material:
    """Draw what furniture and boxes are made of."""
    kind = rng.uniform()
    if kind < 0.4:
        return paint.wood(rng)
    return paint.plain(rng, look.main) if kind < 0.8 else paint.painted(rng, look)


def _in_plane(points: Floats, x: float = 0.0, z: float = 0.0) -> Floats:
    """Stand plane points [R 2] up in the plane y = 0, shifted: (a, b) becomes (a + x, 0, b + z)."""
    return np.stack([points[:, 0] + x, np.zeros(len(points)), points[:, 1] + z], -1)


def _four(shape: Shape, material: Material, x: float, y: float) -> list[Part]:
    """Repeat a shape at the corners (±x, ±y), mirrored so that it looks outward alike."""
    return [
        Part(shape.stretched((sx, sy, 1)).moved((sx * x, sy * y, 0)), material)
        for sx in (1, -1)
        for sy in (1, -1)
    ]


# --- Things from a kitchen and a bathroom -----------------------------------------------------------


def bottle(rng: Random) -> list[Part]:
    """A bottle of glass or plastic with a cap, often with a label; round or flattened."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.2, 0.36), rng.uniform(0.8, 1.3)
    neck, shoulder = radius * rng.uniform(0.3, 0.6), height * rng.uniform(0.5, 0.8)
    waist = radius * rng.choice([1.0, rng.uniform(0.75, 1.0)])
    outline = smooth(
        [[radius * 0.9, 0], [radius, 0.05], [waist, shoulder * 0.5], [radius, shoulder],
         [neck * rng.uniform(1.0, 1.5), shoulder + 0.5 * (height - shoulder)], [neck, height]], 3,
    )  # fmt: skip
    body = lathe(
        np.concatenate([[[0, 0]], outline, [[0, height]]]), sides=28, exponent=rng.choice([2, 2, 2, 4])
    )
    body = body.stretched((1, rng.choice([1.0, rng.uniform(0.5, 0.8)]), 1))
    surface = paint.painted(rng, look, pattern=0.25)
    if rng.uniform() < 0.8:
        low, high = shoulder * rng.uniform(0.1, 0.3), shoulder * rng.uniform(0.7, 0.95)
        if rng.uniform() < 0.5:
            surface = paint.wrapped(rng, surface, look, bottom=low, top=high, radius=radius, repeats=2)
        else:
            surface = paint.labelled(
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
        parts.append(Part(lathe([[0, 0], [neck, 0.0], [neck * 1.1, 0.1], [neck * 0.6, 0.2], [0, 0.22]]), cap))
        parts[-1] = parts[-1].moved((0, 0, height - 0.02))
    return parts


def can(rng: Random) -> list[Part]:
    """A drinks or food can, or a spray can."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.25, 0.45), rng.uniform(0.5, 1.2)
    inset = rng.uniform(0.75, 0.95)
    body = lathe(
        [[0, 0.02], [radius * inset, 0], [radius, 0.06], [radius, height - 0.08], [radius * inset, height],
         [radius * inset - 0.03, height], [radius * inset - 0.04, height - 0.03], [0, height - 0.03]], sides=30,
    )  # fmt: skip
    steel = paint.metal(rng)
    surface = paint.wrapped(
        rng,
        paint.painted(rng, look),
        look,
        bottom=rng.uniform(0.04, 0.2),
        top=height - 0.1,
        radius=radius,
        repeats=2,
    )
    surface = paint.replace(surface, colouring=paint.above(surface.colouring, steel.colouring, height - 0.07))
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
            [[[0, 0]], smooth([[radius - corner, 0], [radius, corner], [radius, height - corner],
                               [radius * 0.85, height]], 3), [[0, height]]]
        ), sides=28, exponent=rng.choice([2, 2, 2, 5]),
    )  # fmt: skip
    surface = paint.painted(rng, look, pattern=0.3)
    if rng.uniform() < 0.8:
        surface = paint.wrapped(
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


def _handle(
    rng: Random, radius_at: Floats, low: float, high: float, *, thickness: float | None = None
) -> Shape:
    """Bend a handle from `high` to `low` at +x, both ends sunk into a wall at radius_at [2] (low, high)."""
    reach = (high - low) * rng.uniform(0.45, 0.75)
    points = smooth(
        [[radius_at[1] - 0.05, 0, high], [radius_at[1] + 0.7 * reach, 0, high + rng.uniform(-0.02, 0.05)],
         [radius_at.max() + reach, 0, 0.5 * (low + high)],
         [radius_at[0] + 0.55 * reach, 0, low], [radius_at[0] - 0.05, 0, low + 0.02]], 4,
    )  # fmt: skip
    wide = rng.uniform(0.04, 0.07) if thickness is None else thickness
    return sweep(
        points, np.broadcast_to([wide * rng.uniform(1, 1.5), wide], (len(points), 2)), across=(0, 1, 0)
    )


def mug(rng: Random) -> list[Part]:
    """A mug or cup with one handle."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.3, 0.45), rng.uniform(0.45, 0.95)
    foot, belly = radius * rng.uniform(0.65, 1.0), radius * rng.uniform(0.9, 1.15)
    outer = smooth([[foot, 0], [belly, height * rng.uniform(0.3, 0.6)], [radius, height]], 6)
    wall = rng.uniform(0.06, 0.075)
    surface = paint.painted(rng, look)
    if rng.uniform() < 0.4:
        surface = paint.labelled(
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
    handle = _handle(rng, reach, low, high)
    where = rng.choice([0.0, 180.0, rng.uniform(0, 360)])
    handle_surface = surface if rng.uniform() < 0.5 else paint.plain(rng, look.accent)
    return [
        Part(shell(outer, wall), surface),
        Part(
            handle.moved(turn=turn("z", where)),
            paint.replace(handle_surface, colouring=_spot(rng, handle_surface, look)),
        ),
    ]


def _spot(rng: Random, surface: Material, look: Look) -> paint.Colouring:
    """Colour a small part in one tone that its larger neighbour has as well."""
    del surface
    return paint.solid(look.main if rng.uniform() < 0.7 else look.accent)


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

        def is_inside(places: paint.Floats) -> np.ndarray:
            return (
                np.hypot(places[:, 0], places[:, 1])
                < np.interp(places[:, 2], outer[:, 1], outer[:, 0]) - depth / 2
            )

        surface = paint.replace(surface, colouring=paint.blend(surface.colouring, inside, is_inside))
    parts = [Part(shell(outer, 0.065, sides=32), surface)]
    if rng.uniform() < 0.3:
        parts.append(Part(cylinder(foot * 0.8, 0.1, at_z=-0.06), surface))
    if rng.uniform() < 0.25:
        food = lathe([[0, 0], [radius * 0.8, 0], [radius * 0.6, 0.08], [0, 0.16]], sides=24)
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
        handle = _handle(rng, reach, 0.45 * height, 0.8 * height)
        parts += [Part(handle.moved(turn=turn("z", angle)), parts[0].material) for angle in (0, 180)]
    return parts


def teapot(rng: Random) -> list[Part]:
    """A teapot, kettle or watering can: belly, spout, handle, lid."""
    look = draw_look(rng)
    radius, height = rng.uniform(0.4, 0.55), rng.uniform(0.45, 0.85)
    belly = lathe(
        np.concatenate([[[0, 0]], smooth([[radius * 0.6, 0], [radius, height * rng.uniform(0.3, 0.6)],
                                          [radius * rng.uniform(0.45, 0.65), height]], 6), [[0, height]]]), sides=28,
    )  # fmt: skip
    surface = paint.painted(rng, look, pattern=0.35)
    low, tip = height * rng.uniform(0.2, 0.4), height * rng.uniform(0.85, 1.05)
    spout = smooth(
        [[-radius * 0.75, 0, low], [-radius * 1.15, 0, low + 0.05], [-radius * 1.35, 0, 0.6 * tip + 0.4 * low],
         [-radius * rng.uniform(1.5, 1.8), 0, tip]], 4,
    )  # fmt: skip
    thick = np.linspace(rng.uniform(0.11, 0.16), rng.uniform(0.05, 0.07), len(spout))
    lid = lathe(
        np.concatenate(
            [
                [[0, 0]],
                _dome(radius * 0.6, rng.uniform(0.08, 0.16)),
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
        parts.append(Part(_handle(rng, reach, height * 0.2, height * 0.85), handle_paint))
    else:
        bow = _in_plane(arc((radius * 0.8, rng.uniform(0.35, 0.55)), 0, 180), z=height * 0.75)
        parts.append(Part(sweep(bow, rng.uniform(0.035, 0.055), across=(0, 1, 0)), handle_paint))
    if rng.uniform() < 0.5:
        parts = [Part(part.shape.stretched((-1, 1, 1)), part.material) for part in parts]
    return parts


def _dome(radius: float, height: float) -> Floats:
    """Profile [R 2] of a flat dome that ends on the axis."""
    return np.maximum(arc((radius, height), 0, 90, steps=7), 0) * [1, 1]


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
        shaft = smooth([[radius - 0.03, 0, height * 0.7], [radius + 0.3 * length, 0, height + 0.03],
                        [radius + length, 0, height + 0.06]], 4)  # fmt: skip
        parts.append(
            Part(sweep(shaft, np.broadcast_to([0.06, 0.035], (9, 2)), across=(0, 1, 0), exponent=3), grip)
        )
    else:
        ear = np.stack([*(arc((0.14, 0.16), -90, 90)[:, ::1].T), np.zeros(14)], -1) + [
            radius - 0.02,
            0,
            height * 0.8,
        ]
        parts += [Part(sweep(ear, 0.035, across=(0, 0, 1)).moved(turn=turn("z", a)), grip) for a in (0, 180)]
    if rng.uniform() < 0.4:
        lid = lathe(
            np.concatenate([[[0, -0.03], [radius * 1.02, -0.03]], _dome(radius * 1.02, 0.14)]), sides=30
        )
        parts.append(Part(lid.moved((0, 0, height + 0.02)), paint.plain(rng, look.main)))
        parts.append(Part(ellipsoid((0.07, 0.07, 0.06)).moved((0, 0, height + 0.19)), grip))
    return [part.moved(turn=turn("z", rng.uniform(-30, 30))) for part in parts[:1]] + parts[1:]


def fruit(rng: Random) -> list[Part]:
    """An apple, pear, lemon, pumpkin or melon, with a stem and a leaf."""
    radius = rng.uniform(0.4, 0.55)
    tall = rng.uniform(0.75, 1.35)
    dent = rng.uniform(0.0, 0.25)
    latitude = np.linspace(0, np.pi, 13)
    pear = rng.choice([0.0, rng.uniform(0.15, 0.4)])
    reach = radius * (1 - dent * np.cos(latitude) ** 8) * np.sin(latitude) * (1 + pear * np.cos(latitude))
    height = -radius * tall * np.cos(latitude) * (1 - 0.8 * dent * np.exp(-((np.sin(latitude) / 0.4) ** 2)))
    reach[[0, -1]] = 0
    shape = lathe(np.stack([reach, height], -1), sides=28)
    if rng.uniform() < 0.3:
        # Ribs, as a pumpkin or a melon has them.
        angle = np.arctan2(shape.vertices[:, 1], shape.vertices[:, 0])
        ribs = 1 + rng.uniform(0.03, 0.09) * np.abs(np.cos(angle * int(rng.integers(4, 7))))
        vertices = shape.vertices * np.stack([ribs, ribs, np.ones_like(ribs)], -1)
        shape = Shape(vertices, shape.faces, vertices)
    first, second = draw_colour(rng), draw_colour(rng)
    if rng.uniform() < 0.7:
        hue = rng.uniform(0, 0.33)
        first = np.array(
            paint.colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.95)), np.float32
        )
        second = np.array(paint.colorsys.hsv_to_rgb(hue * 0.7, 0.8, 0.7), np.float32)
    skin = paint.gradient(
        paint.solid(first), paint.solid(second), -radius * tall, radius * tall * rng.uniform(1, 2)
    )
    if rng.uniform() < 0.4:
        skin = paint.mottle(rng, skin, paint.solid(second), rng.uniform(0.05, 0.2), sharp=2)
    brown = paint.plain(rng, (0.35, 0.25, 0.12))
    top = float(height[-1])
    tip = (rng.uniform(-0.1, 0.1), rng.uniform(-0.1, 0.1), top + rng.uniform(0.1, 0.25))
    parts = [
        Part(shape, Material(skin, gloss=rng.uniform(0.1, 0.6), sharpness=40)),
        Part(rod((0, 0, top - 0.06), tip, 0.035, end_radius=0.03), brown),
    ]
    if rng.uniform() < 0.5:
        leaf = ellipsoid((0.17, 0.08, 0.035), rings=8, sides=14).moved((0.16, 0, 0), turn("y", -25))
        green = paint.plain(rng, (rng.uniform(0.1, 0.4), rng.uniform(0.4, 0.7), 0.15))
        parts.append(Part(leaf.moved((0, 0, top + 0.06), turn("z", rng.uniform(0, 360))), green))
    return parts


def burger(rng: Random) -> list[Part]:
    """A stack of discs: a burger, a cake or pancakes, often on a plate."""
    radius = rng.uniform(0.4, 0.5)
    bun = np.array(
        paint.colorsys.hsv_to_rgb(rng.uniform(0.07, 0.1), rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.9))
    )
    parts: list[Part] = []
    level = 0.0
    is_burger = rng.uniform() < 0.6
    for layer in range(int(rng.integers(3, 7))):
        tone = bun if is_burger and layer == 0 else draw_colour(rng)
        thick = rng.uniform(0.06, 0.17)
        wide = radius * rng.uniform(0.92, 1.08)
        if rng.uniform() < 0.25 and layer:
            slice_ = box((wide * 1.7, wide * 1.7, 0.06), rounding=0.02)
            shape = slice_.moved((0, 0, level + 0.03), turn("z", rng.uniform(0, 90)))
            thick = 0.05
        else:
            shape = cylinder(wide, thick + 0.02, bevel=0.45 * thick, sides=28, at_z=level)
        parts.append(Part(shape, paint.cloth(rng, tone)))
        level += thick
    if is_burger:
        top = lathe(np.concatenate([[[0, 0]], _dome(radius, rng.uniform(0.2, 0.36))]), sides=28)
        material = Material(
            paint.dots(paint.solid(bun), paint.solid((0.95, 0.9, 0.75)), 0.13, 0.17), gloss=0.4, sharpness=30
        )
        parts.append(Part(top.moved((0, 0, level - 0.02)), material))
    elif rng.uniform() < 0.6:
        parts.append(
            Part(
                ellipsoid((0.09, 0.09, 0.09)).moved((0, 0, level + 0.05)), paint.plain(rng, draw_colour(rng))
            )
        )
    if rng.uniform() < 0.5:
        plate = shell([[radius * 0.8, -0.09], [radius * rng.uniform(1.3, 1.8), 0.04]], 0.06, sides=32)
        parts.append(Part(plate, paint.plain(rng, draw_colour(rng))))
    return parts


# --- Boxes, bags and books --------------------------------------------------------------------------


def carton(rng: Random) -> list[Part]:
    """A milk carton with a gable, a flat top or a screw cap."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.4, 0.6), rng.uniform(0.3, 0.5), rng.uniform(0.6, 1.2)
    body = box((width, depth, height)).moved((0, 0, 0))
    surface = paint.painted(rng, look, pattern=0.35)
    surface = paint.printed(
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
        gable = prism([[-depth / 2, 0], [depth / 2, 0], [0.03, rise], [0.03, rise + fold], [-0.03, rise + fold],
                       [-0.03, rise]], width)  # fmt: skip
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
        surface = paint.printed(
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
        lid = box(size * [1.03, 1.03, 0] + [0, 0, rng.uniform(0.1, 0.3)]).moved((0, 0, size[2] / 2 - 0.05))
        parts.append(Part(lid, paint.painted(rng, Look(look.accent, look.main, look.detail), pattern=0.3)))
    elif kind < 0.6:
        ribbon = paint.plain(rng, look.detail)
        wide = rng.uniform(0.07, 0.16)
        parts.append(Part(box((wide, size[1] + 0.03, size[2] + 0.03)), ribbon))
        parts.append(Part(box((size[0] + 0.03, wide, size[2] + 0.03)), ribbon))
        if rng.uniform() < 0.6:
            loop = _in_plane(np.array([1.0, 0.7]) * arc(0.13, 0, 360, steps=15)[:-1])
            for side in (1, -1):
                bow = sweep(loop, np.broadcast_to([0.06, 0.025], (14, 2)), across=(0, 1, 0), is_loop=True)
                parts.append(Part(bow.moved((side * 0.12, 0, size[2] / 2 + 0.09)), ribbon))
    return parts


def book(rng: Random) -> list[Part]:
    """A book that stands, lies or leans: two covers, a spine and the pages."""
    look = draw_look(rng)
    width, height, thick = rng.uniform(0.6, 1.0), rng.uniform(0.8, 1.3), rng.uniform(0.14, 0.4)
    cover = paint.painted(rng, look, pattern=0.3)
    cover = paint.printed(
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
        surface = paint.printed(
            rng, surface, look, width=width * rng.uniform(0.3, 0.7), height=height * rng.uniform(0.2, 0.6),
            centre_z=height * rng.uniform(0.4, 0.6),
        )  # fmt: skip
    strap = paint.plain(rng, look.detail if rng.uniform() < 0.6 else look.main)
    parts = [Part(body, surface)]
    bow = arc((width * rng.uniform(0.18, 0.3), rng.uniform(0.2, 0.5)), 0, 180)
    for y in rng.choice([[0.0, 0.0], [deep[-1] * 0.6, -deep[-1] * 0.6]]) if rng.uniform() < 0.9 else []:
        handle = sweep(
            _in_plane(bow, z=height - 0.06), np.broadcast_to([0.035, 0.03], (14, 2)), across=(0, 1, 0)
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
    surface = _any_surface(rng, look)
    fitting = paint.metal(rng) if rng.uniform() < 0.6 else paint.plain(rng, look.detail)
    rise = depth / 2 * rng.uniform(0.4, 1.0)
    outline = np.concatenate([[[depth / 2, -0.01], [depth / 2, 0.0]], arc((depth / 2, rise), 0, 180)[1:-1],
                              [[-depth / 2, 0.0], [-depth / 2, -0.01]]])  # fmt: skip
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
        parts += _four(
            box((0.1, 0.1, 0.1), rounding=0.02).moved((0, 0, -0.03)), fitting, width * 0.42, depth * 0.4
        )
    return parts


# --- What one wears ---------------------------------------------------------------------------------


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
    band = stripe = rng.uniform()
    if band < 0.6:
        stripe_x = rng.uniform(-0.15, 0.1) * length
        two = paint.above(surface.colouring, paint.solid(look.accent), rng.uniform(0.1, 0.3) * length, axis=0)
        mark = paint.stripes(two, paint.solid(look.detail), (0.7, 0, 0.7), rng.uniform(0.1, 0.25), 0.4)
        near = rng.uniform(0.08, 0.16) * length
        surface = paint.replace(
            surface,
            colouring=paint.blend(
                two, mark, lambda p: (np.abs(p[:, 0] - stripe_x) < near) & (np.abs(p[:, 1]) > 0.08)
            ),
        )
    del stripe
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    outline = np.stack([length / 2 * 1.03 * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.75,
                        width / 2 * 1.04 * np.sin(angle) * (0.86 + 0.14 * np.cos(angle))], -1)  # fmt: skip
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
    return _either_way(rng, parts)


def _either_way(rng: Random, parts: list[Part]) -> list[Part]:
    """Mirror a thing that has a left and a right side, every other time."""
    if rng.uniform() < 0.5:
        return parts
    return [Part(part.shape.stretched((-1, 1, 1)), part.material) for part in parts]


def boot(rng: Random) -> list[Part]:
    """A boot or skate: foot and shaft as one bent tube, sole, heel, straps, perhaps wheels."""
    look = draw_look(rng)
    shaft, length = rng.uniform(0.5, 1.0), rng.uniform(0.75, 0.95)
    thick = rng.uniform(0.15, 0.2)
    path = smooth(
        [[-0.28 * length, 0, shaft + 0.2], [-0.28 * length, 0, 0.55 * shaft + 0.15], [-0.24 * length, 0, 0.28],
         [-0.02 * length, 0, 0.2], [0.3 * length, 0, 0.14], [0.55 * length, 0, 0.12]], 4,
    )  # fmt: skip
    share = np.linspace(0, 1, len(path))
    wide = thick * np.interp(share, [0, 0.4, 0.6, 0.85, 0.95, 1], [1.0, 0.9, 0.95, 1.05, 0.85, 0.4])
    high = thick * np.interp(share, [0, 0.4, 0.6, 0.85, 0.95, 1], [1.15, 1.1, 0.95, 0.75, 0.6, 0.3])
    surface = paint.cloth(rng, look.main) if rng.uniform() < 0.5 else paint.plain(rng, look.main)
    body = sweep(path, np.stack([wide, high], -1), across=(0, 1, 0), sides=20, exponent=2.3)
    surface = paint.replace(
        surface,
        colouring=paint.above(surface.colouring, paint.solid(look.accent), shaft + rng.uniform(0.0, 0.2)),
    )
    sole_paint = paint.plain(rng, look.detail)
    angle = np.linspace(0, 2 * np.pi, 25)[:-1]
    outline = np.stack([0.56 * length * np.sign(np.cos(angle)) * np.abs(np.cos(angle)) ** 0.7 + 0.07 * length,
                        thick * 1.08 * np.sin(angle)], -1)  # fmt: skip
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
    return _either_way(rng, parts)


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
    crown_body = lathe(np.concatenate([[[0, 0]], _dome(radius, height)]), sides=28)
    visor = ellipsoid((radius * 0.85, rng.uniform(0.4, 0.55), 0.04), rings=8).moved(
        (0, radius * 0.6, 0.03), turn("x", -8)
    )
    button = ellipsoid((0.05, 0.05, 0.03), sides=12, rings=6).moved((0, 0, height))
    surface = paint.labelled(
        rng, surface, look, width=0.3, height=0.2, centre_z=height * 0.45, front=radius * 0.3
    )
    return [Part(crown_body, surface), Part(visor, band), Part(button, band)]


def headphones(rng: Random) -> list[Part]:
    """Headphones that stand: two cups and a band."""
    look = draw_look(rng)
    span, rise = rng.uniform(0.4, 0.52), rng.uniform(0.55, 0.8)
    band = smooth(_in_plane(arc((span, rise), 0, 180, steps=17)), 1)
    flat = np.broadcast_to([rng.uniform(0.05, 0.1), rng.uniform(0.03, 0.045)], (len(band), 2))
    hard = paint.plain(rng, look.main)
    parts = [Part(sweep(band, flat, across=(0, 1, 0), exponent=3), hard)]
    cushion = _in_plane(arc((span - 0.01, rise - 0.04), 50, 130, steps=11))
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


# --- Furniture --------------------------------------------------------------------------------------


def _leg(rng: Random, height: float, thick: float, splay: float) -> Shape:
    """Draw a leg below the origin's corner: square, round, tapered or turned; splayed along +x +y."""
    kind = rng.integers(4)
    foot = np.array([splay, splay, 0])
    if kind == 0:
        return sweep([foot, [0, 0, height]], np.array([thick, thick]) * 0.9, sides=4, across=(1, 0, 0))
    if kind == 1:
        return rod(foot, (0, 0, height), thick * rng.uniform(0.6, 1.0), end_radius=thick)
    if kind == 2:
        return rod(foot, (0, 0, height), thick * 0.8, end_radius=thick * 0.8)
    share = np.linspace(0, 1, 11)[:, None]
    bulge = thick * (0.7 + 0.35 * np.abs(np.sin(share[:, 0] * np.pi * int(rng.integers(2, 5)))))
    return sweep(foot * (1 - share) + np.array([0, 0, height]) * share, bulge, across=(1, 0, 0), sides=10)


def chair(rng: Random) -> list[Part]:
    """A chair with four legs or a pedestal, a seat, and a back of slats, a board or a frame."""
    look = draw_look(rng)
    width, depth, seat, back = (
        rng.uniform(0.5, 0.65),
        rng.uniform(0.48, 0.6),
        rng.uniform(0.4, 0.55),
        rng.uniform(0.4, 0.75),
    )
    frame = _any_surface(rng, look)
    soft = paint.cloth(rng, look.accent) if rng.uniform() < 0.6 else frame
    thick = rng.uniform(0.03, 0.045)
    cushion = rng.uniform(0.06, 0.14)
    parts = [
        Part(
            box((width, depth, cushion), rounding=rng.choice([0, 0.03, cushion * 0.45])).moved((0, 0, seat)),
            soft,
        )
    ]
    if rng.uniform() < 0.15:
        parts.append(Part(cylinder(0.045, seat, sides=14), paint.metal(rng)))
        spokes = int(rng.integers(4, 6))
        for k in range(spokes):
            end = (0.33 * np.cos(2 * np.pi * k / spokes), 0.33 * np.sin(2 * np.pi * k / spokes), 0.04)
            parts.append(Part(rod((0, 0, 0.1), end, 0.04, end_radius=0.03), frame))
    else:
        leg = _leg(rng, seat, thick, rng.choice([0.0, rng.uniform(0, 0.1)]))
        parts += _four(leg, frame, width / 2 - thick, depth / 2 - thick)
        if rng.uniform() < 0.3:
            for side in (1, -1):
                bar = box((0.04, depth * 0.9, 0.04)).moved((side * (width / 2 - thick), 0, seat * 0.4))
                parts.append(Part(bar, frame))
    return parts + _backrest(
        rng, width, back, thick, frame, soft, (0, -depth / 2 + thick, seat), rng.uniform(0, 14)
    )


def _backrest(
    rng: Random, width: float, height: float, thick: float, frame: Material, soft: Material,
    at: tuple[float, float, float], lean_deg: float,
) -> list[Part]:  # fmt: skip
    """Stand a chair's back on its seat."""
    kind = rng.integers(4)
    parts: list[Part] = []
    if kind == 0:
        pad = box((width * rng.uniform(0.85, 1), 0.08, height), rounding=rng.choice([0.0, 0.035]))
        parts.append(Part(pad.moved((0, 0, height / 2)), soft))
    elif kind == 1:
        bend = _in_plane(arc((width / 2 - thick, height), 0, 180), z=-0.02)
        parts.append(Part(sweep(bend, thick, across=(0, 1, 0)), frame))
        for x in np.linspace(-0.3, 0.3, int(rng.integers(2, 6))) * width:
            top = height * np.sqrt(max(1 - (x / (width / 2 - thick)) ** 2, 0.1))
            parts.append(Part(rod((x, 0, 0), (x, 0, top), 0.03, sides=8), frame))
    else:
        for side in (1, -1):
            post = box((2 * thick, 2 * thick, height)).moved((side * (width / 2 - thick), 0, height / 2))
            parts.append(Part(post, frame))
        if kind == 2:
            count = int(rng.integers(2, 5))
            for z in np.linspace(0.3, 0.94, count) * height:
                parts.append(Part(box((width - 0.04, 0.06, height / count * 0.5)).moved((0, 0, z)), frame))
        else:
            parts.append(Part(box((width, 0.07, 0.09)).moved((0, 0, height - 0.04)), frame))
            pad = box((width - 3 * thick, 0.09, height * 0.62), rounding=0.03)
            parts.append(Part(pad.moved((0, 0, height * 0.55)), soft))
    return [part.moved(at, turn("x", lean_deg)) for part in parts]


def armchair(rng: Random) -> list[Part]:
    """An armchair: thick cushions between arms."""
    return _seating(rng, width=rng.uniform(0.75, 1.0), seats=1)


def sofa(rng: Random) -> list[Part]:
    """A sofa for two or three."""
    seats = int(rng.integers(2, 4))
    return _seating(rng, width=0.3 + 0.55 * seats, seats=seats)


def _seating(rng: Random, *, width: float, seats: int) -> list[Part]:
    """Build an upholstered seat: base, cushions, back, arms, feet."""
    look = draw_look(rng)
    depth, seat, back = rng.uniform(0.7, 0.85), rng.uniform(0.3, 0.42), rng.uniform(0.4, 0.6)
    arm, soft = rng.uniform(0.12, 0.22), rng.uniform(0.03, 0.08)
    cloth = paint.cloth(rng, look.main)
    cushion = cloth if rng.uniform() < 0.6 else paint.cloth(rng, look.accent)
    feet = _any_surface(rng, look)
    parts = [
        Part(box((width - 0.02, depth, seat - 0.1), rounding=0.02).moved((0, 0, seat / 2 + 0.03)), cloth)
    ]
    inner = width - 2 * arm
    for k in range(seats):
        x = (k - (seats - 1) / 2) * inner / seats
        pad = box((inner / seats + 0.01, depth - 0.12, 0.18), rounding=soft).moved((x, 0.08, seat + 0.05))
        parts.append(Part(pad, cushion))
        rest = box((inner / seats + 0.01, 0.2, back), rounding=soft)
        parts.append(Part(rest.moved((x, -depth / 2 + 0.2, seat + back / 2 + 0.03), turn("x", 10)), cushion))
    hull = box((width, 0.16, seat + back * rng.uniform(0.8, 1.0)), rounding=soft)
    tall = hull.vertices[:, 2].max()
    parts.append(Part(hull.moved((0, -depth / 2 + 0.06, tall + 0.08), turn("x", 4)), cloth))
    arm_height = seat + rng.uniform(0.15, 0.3)
    for side in (1, -1):
        rest = box((arm, depth, arm_height), rounding=soft)
        parts.append(Part(rest.moved((side * (width - arm) / 2, 0.02, arm_height / 2 + 0.08)), cloth))
        if rng.uniform() < 0.3:
            roll = cylinder(arm * 0.62, depth, sides=18).moved((0, 0, -depth / 2)).moved(turn=turn("x", 90))
            parts.append(Part(roll.moved((side * (width - arm) / 2, 0.02, arm_height + 0.04)), cloth))
    parts += _four(_leg(rng, 0.16, 0.04, 0.03).moved((0, 0, -0.02)), feet, width / 2 - 0.09, depth / 2 - 0.09)
    if rng.uniform() < 0.4:
        pillow = box((0.32, 0.12, 0.32), rounding=0.055).moved(
            (rng.uniform(-0.3, 0.3) * inner, 0.02, seat + 0.28),
            turn("x", 20) @ turn("y", rng.uniform(-12, 12)),
        )
        parts.append(Part(pillow, paint.painted(rng, Look(look.detail, look.accent, look.main), pattern=0.7)))
    return parts


def stool(rng: Random) -> list[Part]:
    """A stool: a round or square seat on three or four legs."""
    look = draw_look(rng)
    radius, height, thick = rng.uniform(0.25, 0.38), rng.uniform(0.5, 1.0), rng.uniform(0.06, 0.14)
    wood = _any_surface(rng, look)
    top = paint.cloth(rng, look.accent) if rng.uniform() < 0.4 else wood
    is_round = rng.uniform() < 0.7
    seat = (
        cylinder(radius, thick, bevel=rng.uniform(0.01, 0.05))
        if is_round
        else box((2 * radius, 2 * radius, thick), rounding=0.03).moved((0, 0, thick / 2))
    )
    legs = int(rng.integers(3, 5))
    splay, leg = rng.uniform(0, 0.18), rng.uniform(0.03, 0.045)
    parts = [Part(seat.moved((0, 0, height)), top)]
    ring_z = height * rng.uniform(0.25, 0.5)
    for k in range(legs):
        angle = 2 * np.pi * (k + 0.5) / legs
        out = np.array([np.cos(angle), np.sin(angle), 0])
        start = out * (radius * 0.75 + splay)
        parts.append(
            Part(rod(start, out * radius * 0.75 + [0, 0, height + 0.03], leg * 0.8, end_radius=leg), wood)
        )
    if rng.uniform() < 0.6:
        reach = radius * 0.75 + splay * (1 - ring_z / height)
        parts.append(Part(ring(reach, 0.03, sides=24, section=8).moved((0, 0, ring_z)), wood))
    return parts


def table(rng: Random) -> list[Part]:
    """A table or desk: a top on legs or a pedestal, perhaps drawers."""
    look = draw_look(rng)
    width, depth, height, thick = (
        rng.uniform(0.8, 1.5),
        rng.uniform(0.5, 0.9),
        rng.uniform(0.4, 0.9),
        rng.uniform(0.06, 0.1),
    )
    surface, under = _any_surface(rng, look), _any_surface(rng, look)
    if rng.uniform() < 0.6:
        under = surface
    leg = rng.uniform(0.035, 0.06)
    if rng.uniform() < 0.25:
        radius = width / 2
        parts = [Part(cylinder(radius, thick, sides=36).moved((0, 0, height)), surface)]
        parts.append(Part(cylinder(0.06, height, top=rng.uniform(0.05, 0.1)), under))
        parts.append(Part(cylinder(radius * rng.uniform(0.4, 0.65), 0.07, bevel=0.03), under))
        return parts
    parts = [
        Part(
            box((width, depth, thick), rounding=rng.choice([0, 0.02])).moved((0, 0, height + thick / 2)),
            surface,
        )
    ]
    inset = rng.uniform(0.0, 0.08)
    parts += _four(
        _leg(rng, height + 0.02, leg, rng.choice([0, rng.uniform(0, 0.1)])),
        under,
        width / 2 - leg - inset,
        depth / 2 - leg - inset,
    )
    if rng.uniform() < 0.5:
        apron = box((width - 2 * inset - leg, depth - 2 * inset - leg, 0.1)).moved((0, 0, height - 0.04))
        parts.append(Part(apron, under))
    if rng.uniform() < 0.35:
        side = rng.choice([1, -1])
        drawers = box((width * 0.3, depth * 0.85, height * 0.5)).moved(
            (side * width * 0.27, 0, height * 0.76)
        )
        parts.append(Part(drawers, under))
        for z in (0.64, 0.88):
            knob = ellipsoid((0.04, 0.04, 0.03), sides=10, rings=6)
            parts.append(Part(knob.moved((side * width * 0.27, depth * 0.43, height * z)), paint.metal(rng)))
    return parts


def shelf(rng: Random) -> list[Part]:
    """A shelf or cabinet with boards, doors or drawers, some with things inside."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.6, 1.1), rng.uniform(0.28, 0.45), rng.uniform(0.6, 1.4)
    surface = _any_surface(rng, look)
    board = rng.uniform(0.06, 0.08)
    parts = [
        Part(box((board, depth, height)).moved((side * (width - board) / 2, 0, height / 2)), surface)
        for side in (1, -1)
    ]
    rows = int(rng.integers(2, 5))
    levels = np.linspace(board / 2, height - board / 2, rows + 1)
    parts += [Part(box((width - 0.01, depth - 0.01, board)).moved((0, 0, z)), surface) for z in levels]
    if rng.uniform() < 0.75:
        parts.append(
            Part(box((width - 0.02, 0.06, height - 0.02)).moved((0, -depth / 2 + 0.04, height / 2)), surface)
        )
    front = paint.painted(rng, Look(look.accent, look.detail, look.main), pattern=0.2)
    gap = height / rows
    for low in levels[:-1]:
        kind = rng.uniform()
        if kind < 0.3:
            parts.append(
                Part(box((width - board, depth - 0.05, gap - 0.02)).moved((0, 0.0, low + gap / 2)), front)
            )
            parts.append(
                Part(box((0.14, 0.06, 0.035)).moved((0, depth / 2, low + gap * 0.6)), paint.metal(rng))
            )
        elif kind < 0.65:
            x = -width / 2 + board
            while x < width / 2 - board - 0.14 and rng.uniform() < 0.8:
                wide, tall = rng.uniform(0.07, 0.13), gap * rng.uniform(0.5, 0.75)
                spine = box((wide, depth * 0.65, tall)).moved(
                    (x + wide / 2, -0.02, low + board / 2 + tall / 2 - 0.01)
                )
                parts.append(Part(spine, paint.plain(rng, draw_colour(rng))))
                x += wide + rng.choice([0.003, 0.08])
    if rng.uniform() < 0.4:
        parts += _four(
            _leg(rng, 0.15, 0.04, 0.02).moved((0, 0, -0.13)), surface, width / 2 - 0.07, depth / 2 - 0.07
        )
    return parts


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
                lathe([[0, 0], [size * 1.4, 0], [size * 1.3, 0.05], [0.04, 0.2], [0, 0.26]], sides=16).moved(
                    (0, 0, height + 2 * size - 0.04)
                ),
                iron,
            )
        )
    elif kind < 0.7:
        reach = rng.uniform(0.2, 0.4)
        bow = _in_plane(arc((reach, reach), 0, 180, steps=12), x=reach, z=height - 0.03)
        parts.append(Part(sweep(bow, thick * 0.9, across=(0, 1, 0)), iron))
        shade = lathe([[0, 0], [0.05, 0], [0.2, -0.16], [0.18, -0.18], [0, -0.12]], sides=18)
        parts.append(Part(shade.moved((2 * reach, 0, height + 0.02)), paint.plain(rng, look.accent)))
    else:
        for k in range(int(rng.integers(2, 5))):
            out = np.array([np.cos(2.4 * k), np.sin(2.4 * k), 0]) * rng.uniform(0.15, 0.25)
            parts.append(Part(rod((0, 0, height - 0.25), out + [0, 0, height - 0.05], 0.03, sides=8), iron))
            parts.append(
                Part(ellipsoid((0.1, 0.1, 0.1), sides=14, rings=8).moved(out + [0, 0, height]), light)
            )
    return parts


# --- Appliances, toys, living things ----------------------------------------------------------------


def appliance(rng: Random) -> list[Part]:
    """A radio, oven, camera or loudspeaker: a box with dials, grilles, a screen, a handle."""
    look = draw_look(rng)
    width, depth, height = rng.uniform(0.5, 1.2), rng.uniform(0.25, 0.6), rng.uniform(0.35, 0.9)
    surface = _any_surface(rng, look)
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
        bow = _in_plane(
            arc((width * rng.uniform(0.25, 0.4), rng.uniform(0.12, 0.35)), 0, 180), z=height - 0.03
        )
        parts.append(Part(sweep(bow, 0.035, across=(0, 1, 0)), trim))
    if rng.uniform() < 0.3:
        tip = (width * 0.4 + rng.uniform(0.0, 0.3), 0, height + rng.uniform(0.3, 0.6))
        parts.append(
            Part(rod((width * 0.4, -depth * 0.3, height - 0.02), tip, 0.03, sides=8), paint.metal(rng))
        )
    if rng.uniform() < 0.5:
        parts += _four(cylinder(0.05, 0.07, sides=12).moved((0, 0, -0.05)), detail, width * 0.4, depth * 0.35)
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
        shown = paint.labelled(rng, trim, look, width=wide * 0.85, height=tall * 0.8, centre_z=0)
        parts.append(Part(screen.moved((x, y, z)), shown))


def car(rng: Random) -> list[Part]:
    """A toy car, van or lorry, seen from its side or its front."""
    look = draw_look(rng)
    length, width = rng.uniform(1.0, 1.3), rng.uniform(0.42, 0.56)
    body_low, body_high, roof = 0.12, rng.uniform(0.3, 0.4), rng.uniform(0.5, 0.75)
    bonnet, boot_end = rng.uniform(0.15, 0.35), rng.uniform(0.0, 0.3)
    half = length / 2
    outline = np.array(
        [[-half, body_low], [half, body_low], [half, body_high * rng.uniform(0.75, 0.95)], [half * 0.9, body_high],
         [-half * 0.95, body_high], [-half, body_high * 0.85]]
    )  # fmt: skip
    surface = paint.painted(rng, look, pattern=0.3)
    glass = Material(paint.solid((0.12, 0.15, 0.2)), gloss=0.9, sharpness=150)
    front_x, back_x = half - bonnet * length, -half + boot_end * length + 0.04
    slope = rng.uniform(0.05, 0.2)
    cabin = np.array(
        [
            [back_x, body_high - 0.02],
            [front_x, body_high - 0.02],
            [front_x - slope, roof],
            [back_x + slope * 0.6, roof],
        ]
    )
    parts = [Part(prism(outline, width), surface)]
    centre = cabin.mean(axis=0)
    parts.append(Part(prism(cabin, width * 0.88), glass))
    top = np.array(
        [
            [cabin[3, 0] - 0.03, roof - 0.06],
            [cabin[2, 0] + 0.03, roof - 0.06],
            [cabin[2, 0], roof + 0.02],
            [cabin[3, 0], roof + 0.02],
        ]
    )
    parts.append(Part(prism(top, width * 0.92), surface))
    pillar = box((0.07, width * 0.9, roof - body_high + 0.02)).moved((centre[0], 0, (roof + body_high) / 2))
    parts.append(Part(pillar, surface))
    radius = rng.uniform(0.12, 0.17)
    wheel = cylinder(radius, 0.12, bevel=0.03, sides=20).moved((0, 0, -0.06)).moved(turn=turn("x", 90))
    hub = (
        cylinder(radius * 0.55, 0.135, bevel=0.01, sides=14).moved((0, 0, -0.0675)).moved(turn=turn("x", 90))
    )
    tyre, rim = Material(paint.solid((0.07, 0.07, 0.08)), gloss=0.1), paint.metal(rng)
    for x in (half * 0.62, -half * 0.62):
        for side in (1, -1):
            at = (x, side * (width / 2 - 0.02), radius * 0.98)
            parts += [Part(wheel.moved(at), tyre), Part(hub.moved(at), rim)]
    for side in (1, -1):
        lamp_at = (half - 0.01, side * width * 0.33, body_high * 0.72)
        parts.append(
            Part(
                ellipsoid((0.03, 0.06, 0.045), sides=10, rings=6).moved(lamp_at),
                Material(paint.solid((1, 0.96, 0.8))),
            )
        )
        parts.append(
            Part(
                box((0.04, 0.09, 0.06)).moved((-half, side * width * 0.33, body_high * 0.75)),
                Material(paint.solid((0.8, 0.1, 0.08))),
            )
        )
    facing = rng.choice([0.0, 180.0, 90.0, rng.uniform(30, 150)])
    return [part.moved(turn=turn("z", facing)) for part in parts]


def animal(rng: Random) -> list[Part]:
    """A four-legged animal figure: body, head, ears, legs, tail."""
    look = draw_look(rng)
    coat = paint.painted(rng, look, pattern=0.35) if rng.uniform() < 0.5 else paint.cloth(rng, look.main)
    length, girth, leg = rng.uniform(0.4, 0.6), rng.uniform(0.16, 0.27), rng.uniform(0.2, 0.5)
    back_z = leg + girth * 0.8
    body = sweep(
        smooth([[-length, 0, back_z], [-length * 0.6, 0, back_z + 0.02], [0.3 * length, 0, back_z], [length, 0, back_z + 0.06]], 4),
        girth * np.interp(np.linspace(0, 1, 13), [0, 0.12, 0.5, 0.88, 1], [0.35, 0.85, 1.0, 0.95, 0.4]), across=(0, 1, 0), sides=18,
    )  # fmt: skip
    thick = rng.uniform(0.055, 0.1)
    parts = [Part(body, coat)]
    for x in (-length * 0.68, length * 0.72):
        for side in (1, -1):
            foot = (x + rng.uniform(-0.08, 0.08), side * girth * 0.6, 0.03)
            parts.append(
                Part(rod(foot, (x, side * girth * 0.5, back_z), thick * 0.85, end_radius=thick * 1.2), coat)
            )
            parts.append(
                Part(
                    ellipsoid((thick * 1.3, thick, 0.06), sides=12, rings=6).moved(
                        np.add(foot, [0.02, 0, 0.02])
                    ),
                    coat,
                )
            )
    head, neck = rng.uniform(0.15, 0.25), rng.uniform(0.1, 0.5)
    centre = np.array([length + 0.12 + 0.3 * neck, 0, back_z + 0.12 + neck])
    parts.append(Part(rod((length * 0.75, 0, back_z), centre, girth * 0.65, end_radius=head * 0.6), coat))
    parts.append(Part(ellipsoid((head * 1.1, head * 0.9, head)).moved(centre), coat))
    snout = rng.uniform(0.6, 1.4) * head
    parts.append(
        Part(
            ellipsoid((snout * 0.7, head * 0.5, head * 0.42), sides=14, rings=8).moved(
                centre + [head * 0.9, 0, -head * 0.25]
            ),
            paint.plain(rng, look.main),
        )
    )
    dark = Material(paint.solid((0.05, 0.05, 0.06)), gloss=0.7, sharpness=80)
    parts.append(
        Part(
            ellipsoid((0.05, 0.055, 0.045), sides=10, rings=6).moved(
                centre + [head * 0.9 + snout * 0.66, 0, -head * 0.15]
            ),
            dark,
        )
    )
    ear = rng.uniform(0.08, 0.25)
    for side in (1, -1):
        shape = ellipsoid((0.05, 0.08, ear), sides=12, rings=8)
        parts.append(
            Part(
                shape.moved(
                    centre + [-0.02, side * head * 0.6, head * 0.75 + ear * 0.4], turn("x", -side * 25)
                ),
                paint.plain(rng, look.accent if rng.uniform() < 0.3 else look.main),
            )
        )
        parts.append(
            Part(
                ellipsoid((0.04, 0.04, 0.04), sides=10, rings=6).moved(
                    centre + [head * 0.8, side * head * 0.5, head * 0.25]
                ),
                dark,
            )
        )
    tail = smooth(
        [
            [-length * 0.9, 0, back_z],
            [-length - 0.15, 0, back_z + rng.uniform(-0.2, 0.2)],
            [-length - rng.uniform(0.15, 0.4), 0, back_z + rng.uniform(-0.2, 0.4)],
        ],
        4,
    )
    parts.append(Part(sweep(tail, np.linspace(0.065, 0.04, len(tail)), across=(0, 1, 0), sides=10), coat))
    facing = rng.choice([0.0, 180.0, 90.0, rng.uniform(30, 150)])
    return [part.moved(turn=turn("z", facing)) for part in parts]


def plush(rng: Random) -> list[Part]:
    """A sitting or standing toy figure with a large head: bear, rabbit, doll, robot."""
    look = draw_look(rng)
    fur, belly = paint.cloth(rng, look.main), paint.cloth(rng, look.accent)
    exponent = rng.choice([2.0, 2.0, 2.5, 5.0])
    body = np.array([rng.uniform(0.25, 0.36), rng.uniform(0.2, 0.3), rng.uniform(0.28, 0.4)])
    head = np.array([1.05, 0.9, 1.0]) * rng.uniform(0.26, 0.38)
    base = rng.uniform(0.1, 0.35)
    chest = np.array([0, 0, base + body[2]])
    face = chest + [0, 0.02, body[2] + head[2] * 0.75]
    shirt = (
        paint.painted(rng, Look(look.detail, look.accent, look.main), pattern=0.5)
        if rng.uniform() < 0.5
        else fur
    )
    parts = [
        Part(ellipsoid(body, exponent=exponent, sides=24, rings=12).moved(chest), shirt),
        Part(ellipsoid(head, exponent=exponent, sides=24, rings=12).moved(face), fur),
        Part(
            ellipsoid((head[0] * 0.5, head[1] * 0.4, head[2] * 0.35), sides=16, rings=8).moved(
                face + [0, head[1] * 0.8, -head[2] * 0.3]
            ),
            belly,
        ),
    ]
    if shirt is fur:
        parts.append(
            Part(
                ellipsoid(body * [0.7, 0.4, 0.7], sides=16, rings=8).moved(chest + [0, body[1] * 0.68, 0]),
                belly,
            )
        )
    dark = Material(paint.solid((0.05, 0.05, 0.06)), gloss=0.8, sharpness=80)
    size = rng.uniform(0.04, 0.09)
    ear_kind, ear = rng.integers(3), rng.uniform(0.1, 0.16)
    for side in (1, -1):
        eye = face + [side * head[0] * 0.42, head[1] * 0.82, head[2] * 0.15]
        if rng.uniform() < 0.4:
            parts.append(
                Part(
                    ellipsoid((size * 1.6, 0.05, size * 1.6), sides=14, rings=8).moved(eye - [0, 0.02, 0]),
                    paint.plain(rng, (0.97, 0.97, 0.97)),
                )
            )
        parts.append(Part(ellipsoid((size, 0.06, size), sides=12, rings=8).moved(eye), dark))
        if ear_kind < 2:
            tall = ear * (1.0 if ear_kind == 0 else 2.4)
            shape = ellipsoid((ear, 0.07, tall), sides=16, rings=8)
            parts.append(
                Part(
                    shape.moved(
                        face + [side * head[0] * 0.7, 0, head[2] * 0.75 + tall * 0.4], turn("y", side * 20)
                    ),
                    fur,
                )
            )
        arm = face + [side * (body[0] + 0.04), 0, -head[2] * 0.8]
        hand = chest + [
            side * (body[0] + rng.uniform(0.08, 0.25)),
            rng.uniform(0, 0.2),
            rng.uniform(-0.2, 0.3),
        ]
        arm = chest + [side * body[0] * 0.7, 0, body[2] * 0.5]
        parts.append(Part(rod(arm, hand, 0.09, end_radius=0.08), shirt))
        parts.append(Part(ellipsoid((0.1, 0.1, 0.1), sides=14, rings=8).moved(hand), fur))
        hip = np.array([side * body[0] * 0.5, 0, base + 0.12])
        foot = (
            np.array([side * body[0] * 0.6, 0.0, 0.06])
            if base > 0.2
            else np.array([side * body[0] * 0.8, 0.3, 0.12])
        )
        parts.append(Part(rod(hip, foot, 0.11, end_radius=0.09), fur))
        parts.append(
            Part(ellipsoid((0.11, 0.15, 0.09), sides=14, rings=8).moved(foot + [0, 0.04, 0.03]), belly)
        )
    parts.append(
        Part(
            ellipsoid((0.06, 0.05, 0.045), sides=10, rings=6).moved(
                face + [0, head[1] * 1.16, -head[2] * 0.2]
            ),
            dark,
        )
    )
    if rng.uniform() < 0.3:
        hood = lathe(np.concatenate([[[0, 0]], _dome(head[0] * 1.02, head[2] * 0.7)])).moved(
            face + [0, 0, head[2] * 0.4]
        )
        parts.append(Part(hood, paint.plain(rng, look.detail)))
    return parts


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
        paint.colorsys.hsv_to_rgb(rng.uniform(0.22, 0.4), rng.uniform(0.4, 0.9), rng.uniform(0.3, 0.7))
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
        root = out * radius * 0.3 + [0, 0, height - 0.12]
        tip = out * (radius * 0.4 + reach) + [0, 0, height + tall]
        middle = (root + tip) / 2 + [0, 0, 0.12]
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
        hoop = _in_plane(arc((0.24, 0.32), 0, 360, steps=25)[:-1], z=length + 0.25)
        parts.append(Part(sweep(hoop, 0.04, across=(0, 1, 0), is_loop=True), head))
        for x in np.linspace(-0.15, 0.15, 4):
            parts.append(
                Part(rod((x, 0, length), (x, 0, length + 0.5), 0.022, sides=6), paint.plain(rng, look.accent))
            )
    lean = rng.choice([0.0, rng.uniform(-60, 60), 90.0])
    return [part.moved(turn=turn("y", lean)) for part in parts]


FAMILIES: dict[str, Family] = {
    "bottle": bottle, "can": can, "jar": jar, "mug": mug, "bowl": bowl, "vase": vase, "teapot": teapot,
    "pan": pan, "fruit": fruit, "burger": burger, "carton": carton, "package": package, "book": book,
    "bag": bag, "chest": chest, "shoe": shoe, "boot": boot, "hat": hat, "headphones": headphones,
    "chair": chair, "armchair": armchair, "sofa": sofa, "stool": stool, "table": table, "shelf": shelf,
    "lamp": lamp, "street_lamp": street_lamp, "appliance": appliance, "car": car, "animal": animal,
    "plush": plush, "plant": plant, "tool": tool,
}  # fmt: skip
"""Every family by its name; the order is the order of the labels in training shards."""
