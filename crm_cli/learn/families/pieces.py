"""Pieces and habits that several families share."""

from __future__ import annotations

import numpy as np

from crm_cli.learn import materials as paint
from crm_cli.learn.materials import Look, Material, Random
from crm_cli.learn.parts import Part
from crm_cli.learn.shapes import Floats, Shape, arc, rod, smooth, sweep, vector


def any_surface(rng: Random, look: Look) -> Material:
    """Draw what furniture and boxes are made of."""
    kind = rng.uniform()
    if kind < 0.4:
        return paint.wood(rng)
    return paint.plain(rng, look.main) if kind < 0.8 else paint.painted(rng, look)


def in_plane(points: Floats, x: float = 0.0, z: float = 0.0) -> Floats:
    """Stand plane points [R 2] up in the plane y = 0, shifted: (a, b) becomes (a + x, 0, b + z)."""
    return np.stack([points[:, 0] + x, np.zeros(len(points)), points[:, 1] + z], -1)


def four(shape: Shape, material: Material, x: float, y: float) -> list[Part]:
    """Repeat a shape at the corners (±x, ±y), mirrored so that it looks outward alike."""
    return [
        Part(shape.stretched((sx, sy, 1)).moved((sx * x, sy * y, 0)), material)
        for sx in (1, -1)
        for sy in (1, -1)
    ]


def dome(radius: float, height: float) -> Floats:
    """Profile [R 2] of a flat dome that ends on the axis."""
    return np.maximum(arc((radius, height), 0, 90, steps=7), 0) * [1, 1]


def either_way(rng: Random, parts: list[Part]) -> list[Part]:
    """Mirror a thing that has a left and a right side, every other time."""
    if rng.uniform() < 0.5:
        return parts
    return [Part(part.shape.stretched((-1, 1, 1)), part.material) for part in parts]


def handle_shape(
    rng: Random, radius_at: Floats, low: float, high: float, *, thickness: float | None = None
) -> Shape:
    """Bend a handle from `high` to `low` at +x, both ends sunk into a wall at radius_at [2] (low, high)."""
    reach = (high - low) * rng.uniform(0.45, 0.75)
    points = smooth(
        [
            [radius_at[1] - 0.05, 0, high],
            [radius_at[1] + 0.7 * reach, 0, high + rng.uniform(-0.02, 0.05)],
            [radius_at.max() + reach, 0, 0.5 * (low + high)],
            [radius_at[0] + 0.55 * reach, 0, low],
            [radius_at[0] - 0.05, 0, low + 0.02],
        ],
        4,
    )
    wide = rng.uniform(0.04, 0.07) if thickness is None else thickness
    return sweep(
        points, np.broadcast_to([wide * rng.uniform(1, 1.5), wide], (len(points), 2)), across=(0, 1, 0)
    )


def leg_shape(rng: Random, height: float, thick: float, splay: float) -> Shape:
    """Draw a leg below the origin's corner: square, round, tapered or turned; splayed along +x +y."""
    kind = rng.integers(4)
    foot = np.array([splay, splay, 0])
    if kind == 0:
        return sweep([foot, vector(0, 0, height)], np.array([thick, thick]) * 0.9, sides=4, across=(1, 0, 0))
    if kind == 1:
        return rod(foot, (0, 0, height), thick * rng.uniform(0.6, 1.0), end_radius=thick)
    if kind == 2:
        return rod(foot, (0, 0, height), thick * 0.8, end_radius=thick * 0.8)
    share = np.linspace(0, 1, 11)[:, None]
    bulge = thick * (0.7 + 0.35 * np.abs(np.sin(share[:, 0] * np.pi * int(rng.integers(2, 5)))))
    return sweep(foot * (1 - share) + np.array([0, 0, height]) * share, bulge, across=(1, 0, 0), sides=10)
