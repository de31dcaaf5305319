"""Things to eat."""

from __future__ import annotations

import colorsys

import numpy as np

from crm_cli.learn import materials as paint
from crm_cli.learn.families.pieces import dome
from crm_cli.learn.materials import Material, Random, draw_colour
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import Shape, box, cylinder, ellipsoid, lathe, rod, shell, turn


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
        first = np.array(colorsys.hsv_to_rgb(hue, rng.uniform(0.6, 0.95), rng.uniform(0.5, 0.95)), np.float32)
        second = np.array(colorsys.hsv_to_rgb(hue * 0.7, 0.8, 0.7), np.float32)
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
    bun = np.array(colorsys.hsv_to_rgb(rng.uniform(0.07, 0.1), rng.uniform(0.5, 0.8), rng.uniform(0.6, 0.9)))
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
        top = lathe(np.concatenate([[[0, 0]], dome(radius, rng.uniform(0.2, 0.36))]), sides=28)
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
