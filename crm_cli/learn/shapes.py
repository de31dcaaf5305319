"""Closed triangle meshes to build products from: skins over rings, revolved, swept and extruded outlines.

Every shape is closed and counter-clockwise seen from outside, so its signed volume is positive.
Lengths are in the product's own unit, about its height.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
Points = Floats | Sequence[Sequence[float]] | Sequence[Floats]
"""A list of places [N D]."""


class Shape(NamedTuple):
    """A closed mesh, and for each vertex the place that colours see: where it was before it was moved."""

    vertices: Floats
    """[V 3]"""
    faces: NDArray[np.int64]
    """[F 3]"""
    local: Floats
    """[V 3]"""

    def moved(self, at: ArrayLike = (0, 0, 0), turn: Floats | None = None) -> Shape:
        """Turn the shape by a rotation [3 3], then shift it; its colours move along."""
        vertices = self.vertices if turn is None else self.vertices @ turn.T
        return self._replace(vertices=vertices + np.asarray(at, dtype=np.float64))

    def stretched(self, factors: ArrayLike) -> Shape:
        """Scale along the axes; a negative factor mirrors the shape and keeps its faces outward."""
        factors = np.asarray(factors, dtype=np.float64) * np.ones(3)
        faces = self.faces if np.prod(factors) > 0 else self.faces[:, ::-1]
        return Shape(self.vertices * factors, faces, self.local * factors)


def vector(x: float, y: float, z: float) -> Floats:
    """Name a place or a shift."""
    return np.array([x, y, z], dtype=np.float64)


def volume(vertices: Floats, faces: NDArray[np.int64]) -> float:
    """Signed volume of a closed mesh; positive where its faces look outward."""
    a, b, c = (vertices[faces[:, i]] for i in range(3))
    return float(np.einsum("ij,ij->", a, np.cross(b, c)) / 6)


def turn(axis: str, angle_deg: float) -> Floats:
    """Rotation [3 3] about a world axis, by the right-hand rule."""
    cos, sin = np.cos(np.radians(angle_deg)), np.sin(np.radians(angle_deg))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    matrix = np.eye(3)
    matrix[[i, j], [i, j]] = cos
    matrix[i, j], matrix[j, i] = -sin, sin
    return matrix


def closed(vertices: Floats, faces: NDArray[np.int64]) -> Shape:
    """Make a shape of a consistently wound closed mesh, turned inside out where it needs to be."""
    if volume(vertices, faces) < 0:
        faces = faces[:, ::-1]
    return Shape(vertices, np.ascontiguousarray(faces), vertices)


@lru_cache(maxsize=512)
def _skin_faces(rings: int, sides: int, is_loop: bool) -> NDArray[np.int64]:
    """Faces between consecutive rings; without a loop, fans close both ends on two poles after the rings."""
    ring = np.arange(rings if is_loop else rings - 1)[:, None]
    side = np.arange(sides)[None, :]
    following = (ring + 1) % rings
    a, b = ring * sides + side, ring * sides + (side + 1) % sides
    c, d = following * sides + (side + 1) % sides, following * sides + side
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    if is_loop:
        return faces
    start = np.arange(sides)
    end = (rings - 1) * sides + start
    fans = [
        np.stack([np.full(sides, rings * sides), np.roll(start, -1), start], -1),
        np.stack([np.full(sides, rings * sides + 1), end, np.roll(end, -1)], -1),
    ]
    return np.concatenate([faces, *fans])


def skin(rings: Floats, *, is_loop: bool = False) -> Shape:
    """Stretch a skin over rings [R K 3]; the ends are closed by fans, or joined where it is a loop.

    An end ring that has shrunk to a point becomes the pole itself. Other end rings must be
    star-shaped around their mean.
    """
    if is_loop:
        return closed(rings.reshape(-1, 3), _skin_faces(len(rings), rings.shape[1], True))
    poles = rings[[0, -1]].mean(axis=1)
    if np.abs(rings[0] - poles[0]).max() < 1e-9:
        rings = rings[1:]
    if np.abs(rings[-1] - poles[1]).max() < 1e-9:
        rings = rings[:-1]
    vertices = np.concatenate([rings.reshape(-1, 3), poles])
    return closed(vertices, _skin_faces(len(rings), rings.shape[1], False))


def smooth(points: Points, steps: int = 4) -> Floats:
    """Draw a Catmull-Rom curve through points [N D], with so many steps between two of them."""
    points = np.asarray(points, dtype=np.float64)
    before = np.concatenate([2 * points[:1] - points[1:2], points[:-2]])
    after = np.concatenate([points[2:], 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(steps) / steps)[:, None, None]
    p0, p1, p2, p3 = before, points[:-1], points[1:], after
    curve = p1 + t / 2 * (
        (p2 - p0) + t * ((2 * p0 - 5 * p1 + 4 * p2 - p3) + t * (3 * p1 - p0 - 3 * p2 + p3))
    )  # [T N-1 D]
    return np.concatenate([curve.transpose(1, 0, 2).reshape(-1, points.shape[1]), points[-1:]])


@lru_cache(maxsize=64)
def _circle(sides: int, exponent: float = 2.0) -> Floats:
    """Unit superellipse [K 2]: exponent 2 is a circle, larger ones approach a square."""
    angle = (np.arange(sides) + 0.5) * 2 * np.pi / sides
    cos, sin = np.cos(angle), np.sin(angle)
    power = 2 / exponent
    return np.stack([np.sign(cos) * np.abs(cos) ** power, np.sign(sin) * np.abs(sin) ** power], -1)


def lathe(profile: Points, *, sides: int = 24, is_loop: bool = False, exponent: float = 2.0) -> Shape:
    """Revolve a profile of (radius, z) about the z axis.

    An open profile starts and ends on the axis (or is closed flat); a loop is the outline of a wall.
    """
    profile = np.asarray(profile, dtype=np.float64)
    circle = _circle(sides, exponent)
    rings = np.zeros((len(profile), sides, 3))
    rings[:, :, :2] = np.maximum(profile[:, 0], 0)[:, None, None] * circle
    rings[:, :, 2] = profile[:, 1:]
    return skin(rings, is_loop=is_loop)


def shell(outer: Points, wall: float, *, floor: float | None = None, sides: int = 28) -> Shape:
    """Revolve a vessel that is open at the top, from its outer profile (radius, z) in order of rising z.

    wall: thickness across, floor: thickness of the bottom (as the wall where None).
    """
    outer = np.asarray(outer, dtype=np.float64)
    bottom = outer[0, 1] + (wall if floor is None else floor)
    heights = np.linspace(bottom, outer[-1, 1], len(outer))
    inner = np.stack([np.interp(heights, outer[:, 1], outer[:, 0]) - wall, heights], -1)
    inner[:, 0] = np.maximum(inner[:, 0], 0.25 * wall)
    rim = [[outer[-1, 0] - wall / 2, outer[-1, 1] + 0.3 * wall]]
    return lathe(np.concatenate([[[0, outer[0, 1]]], outer, rim, inner[::-1], [[0, bottom]]]), sides=sides)


def cylinder(
    radius: float,
    height: float,
    *,
    top: float | None = None,
    bevel: float = 0.02,
    sides: int = 24,
    at_z: float = 0,
) -> Shape:
    """Stand a cylinder on z = at_z, or a cone with another radius at the top; a bevel breaks its edges."""
    top = radius if top is None else top
    bevel = min(bevel, 0.45 * height, 0.6 * radius, 0.6 * top)
    profile = [
        [0.0, 0.0],
        [radius - bevel, 0.0],
        [radius, bevel],
        [top, height - bevel],
        [top - bevel, height],
        [0, height],
    ]
    return lathe(np.add(profile, [0, at_z]), sides=sides)


def rod(
    start: ArrayLike, end: ArrayLike, radius: float, *, end_radius: float | None = None, sides: int = 10
) -> Shape:
    """Lay a straight, possibly tapered, rod between two points."""
    radii = np.array([radius, radius if end_radius is None else end_radius])
    return sweep(np.stack([np.asarray(start, float), np.asarray(end, float)]), radii, sides=sides)


def sweep(
    path: Points,
    radii: ArrayLike,
    *,
    across: ArrayLike | None = None,
    sides: int = 12,
    exponent: float = 2.0,
    is_loop: bool = False,
) -> Shape:
    """Move a superellipse along a path [R 3].

    radii: one number, [R], or [R 2] with the half width along `across` first.
    across: a direction that is nowhere parallel to the path; for a flat path, its normal.
    """
    path = np.asarray(path, dtype=np.float64)
    ahead, behind = np.roll(path, -1, axis=0), np.roll(path, 1, axis=0)
    if not is_loop:
        ahead[-1], behind[0] = path[-1], path[0]
    tangent = ahead - behind
    tangent /= np.linalg.norm(tangent, axis=1, keepdims=True)
    if across is None:
        across = np.eye(3)[np.abs(tangent).sum(axis=0).argmin()]
    first = np.asarray(across, float) - (tangent @ np.asarray(across, float))[:, None] * tangent
    first /= np.linalg.norm(first, axis=1, keepdims=True)
    second = np.cross(tangent, first)
    wide, high = np.broadcast_to(
        np.asarray(radii, float).reshape(-1, (np.ndim(radii) > 1 and 2) or 1), (len(path), 2)
    ).T
    circle = _circle(sides, exponent)
    rings = (
        path[:, None]
        + wide[:, None, None] * circle[None, :, :1] * first[:, None]
        + high[:, None, None] * circle[None, :, 1:] * second[:, None]
    )
    return skin(rings, is_loop=is_loop)


def arc(radius: float | tuple[float, float], start_deg: float, end_deg: float, *, steps: int = 14) -> Floats:
    """Points [R 2] on an arc of an ellipse, counter-clockwise from its first axis."""
    angle = np.radians(np.linspace(start_deg, end_deg, steps))
    a, b = (radius, radius) if isinstance(radius, float | int) else radius
    return np.stack([a * np.cos(angle), b * np.sin(angle)], -1)


def ring(radius: float, thickness: float, *, sides: int = 28, section: int = 10) -> Shape:
    """Lay a torus flat around the z axis; thickness is the radius of its tube."""
    return lathe([radius, 0] + thickness * _circle(section), sides=sides, is_loop=True)


def ellipsoid(radii: ArrayLike, *, exponent: float = 2.0, sides: int = 20, rings: int = 10) -> Shape:
    """Centre an ellipsoid on the origin; a larger exponent makes it boxier."""
    latitude = np.linspace(-np.pi / 2, np.pi / 2, rings + 1)
    power = 2 / exponent
    cos, sin = np.abs(np.cos(latitude)) ** power, np.sign(latitude) * np.abs(np.sin(latitude)) ** power
    cos[[0, -1]] = 0
    return lathe(np.stack([cos, sin], -1), sides=sides, exponent=exponent).stretched(radii)


def box(size: ArrayLike, *, rounding: float = 0.0, steps: int = 2) -> Shape:
    """Centre a box on the origin; rounding is the radius of its edges."""
    half = np.asarray(size, dtype=np.float64) / 2
    rounding = min(rounding, 0.95 * half.min())
    if rounding < 1e-3:
        corners = half * np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]])[:, [0, 1, 1]]
        return skin(np.stack([corners * [1, 1, 0] + [0, 0, z] for z in (-half[2], half[2])]))
    angle = np.linspace(0, np.pi / 2, steps + 1)
    quarter = np.stack([np.cos(angle), np.sin(angle)], -1) * rounding  # [T+1 2]
    corner = half[:2] - rounding
    outline = np.concatenate(
        [[sx, sy] * corner + quarter @ _quarter_turn(k) for k, (sx, sy) in enumerate(_CORNERS)]
    )  # [K 2]
    centre = np.repeat(np.array(_CORNERS) * corner, steps + 1, axis=0)
    # The flat ends keep a trace of the rounding, so that no face shrinks to nothing.
    inset, rise = np.maximum(np.cos(angle), 0.15), rounding * (1 - np.sin(angle))
    levels = np.concatenate(
        [np.stack([inset, -half[2] + rise], -1)[::-1], np.stack([inset, half[2] - rise], -1)]
    )  # [L 2]
    rings = np.zeros((len(levels), len(outline), 3))
    rings[:, :, :2] = centre + levels[:, :1, None] * (outline - centre)
    rings[:, :, 2] = levels[:, 1:]
    return skin(rings)


_CORNERS = ((1, 1), (-1, 1), (-1, -1), (1, -1))


def _quarter_turn(count: int) -> Floats:
    """Matrix for row vectors [2 2] that turns them counter-clockwise by so many right angles."""
    return np.round(turn("z", 90 * count)[:2, :2].T)


def prism(outline: Points, depth: float) -> Shape:
    """Extrude a simple polygon [N 2] of (x, z), convex or not, to both sides of y = 0."""
    outline = np.asarray(outline, dtype=np.float64)
    if _area(outline) < 0:
        outline = outline[::-1]
    count = len(outline)
    vertices = np.zeros((2 * count, 3))
    vertices[:, [0, 2]] = np.concatenate([outline, outline])
    vertices[:count, 1], vertices[count:, 1] = -depth / 2, depth / 2
    # Seen from y < 0, x runs right and z up, so a counter-clockwise polygon looks outward there.
    near = triangulate(outline)
    i = np.arange(count)
    j = np.roll(i, -1)
    sides = np.concatenate([np.stack([j, i, i + count], -1), np.stack([j, i + count, j + count], -1)])
    return closed(vertices, np.concatenate([near, near[:, ::-1] + count, sides]))


def _area(outline: Floats) -> float:
    """Signed area of a polygon; positive where it runs counter-clockwise."""
    following = np.roll(outline, -1, axis=0)
    return float((outline[:, 0] * following[:, 1] - outline[:, 1] * following[:, 0]).sum() / 2)


def triangulate(outline: Floats) -> NDArray[np.int64]:
    """Cut a simple polygon [N 2] into triangles [N-2 3], counter-clockwise, by clipping its ears."""
    todo = list(range(len(outline)))
    if _area(outline) < 0:
        todo.reverse()
    faces: list[Sequence[int]] = []
    while len(todo) > 3:
        for at in range(len(todo)):
            ear = (todo[at - 1], todo[at], todo[(at + 1) % len(todo)])
            others = [k for k in todo if k not in ear]
            if _is_ear(outline[list(ear)], outline[others]):
                break
        else:
            raise ValueError("no ear is left to clip: the outline is flat or crosses itself")
        faces.append(ear)
        del todo[at]
    faces.append(todo)
    return np.array(faces, dtype=np.int64)


def _is_ear(corner: Floats, others: Floats) -> bool:
    """Say whether a corner of a counter-clockwise polygon is convex and holds no other vertex."""
    a, b, c = corner
    if _cross(b - a, c - b) <= 1e-12:
        return False
    inside = np.ones(len(others), dtype=bool)
    for start, end in ((a, b), (b, c), (c, a)):
        inside &= _cross(end - start, others - start) >= 0
    return not inside.any()


def _cross(first: Floats, second: Floats) -> Floats:
    """The z component of the cross product of plane vectors."""
    result: Floats = first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]
    return result
