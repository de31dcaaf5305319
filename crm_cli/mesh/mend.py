"""Turn any finite triangles into surfaces that close, one vertex to a position.

Vertices are kept on a lattice. Its steps survive float32, the shift of the pivot and the scale to
metres, so vertices that are apart here are still apart for whoever merges them by position later.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from crm_cli.errors import PhotoError
from crm_cli.mesh.topology import (
    ALONE,
    HalfEdges,
    Indices,
    compact,
    face_pairs,
    fans,
    following,
    groups,
    half_edges,
    is_sound,
    runs_both_ways,
    turned,
)

Points = NDArray[np.float64]

LATTICE = 2.0**-18
"""Distance of neighbouring vertex positions: 1/2000 of a cell of a 256³ grid over [-1, 1]³."""

REACH = 4.0
"""Positions must lie within ±REACH: lattice steps then fit 21 bits, three of them one integer."""

NUDGE = 8 * LATTICE
"""How far fans that meet in one point are drawn apart: invisible, and safe from rounding."""

ROUNDS = 8
"""Filling a hole may touch what was split before; three rounds were the most seen on random damage."""

_AXIS_BITS = 21


def mend(points: Points, faces: Indices) -> tuple[Points, Indices]:
    """Weld, split, orient and fill until every part is closed, manifold and of one direction.

    points: [V 3] within ±REACH. The direction of a part may still be inwards.
    """
    for _ in range(ROUNDS):
        points, faces = weld(points, faces)
        if is_sound(faces):
            return points, faces
        points, faces = split(points, faces)
        # Where faces went, holes may meet in one vertex: its fans part, and every border is one loop.
        points, faces = split(points, untangled(faces))
        points, faces = fill(*compact(points, oriented(faces)))
    raise PhotoError(
        "the surface has tangles that could not be closed",
        code="E_MESH_OPEN",
        kind="quality",
        remedy="try another seed",
    )


def weld(points: Points, faces: Indices) -> tuple[Points, Indices]:
    """Snap vertices to the lattice, make one of those that meet, drop faces that vanish thereby."""
    steps: Indices = np.rint(points / LATTICE).astype(np.int64)
    _, first, numbers = np.unique(
        _packed(steps + 2 ** (_AXIS_BITS - 1)), return_index=True, return_inverse=True
    )
    faces = numbers[faces]
    faces = faces[(faces != np.roll(faces, 1, axis=1)).all(axis=1)]
    return compact(steps[first].astype(np.float64) * LATTICE, without_doubles(faces))


def _packed(triples: Indices) -> Indices:
    """Make one integer of three that are below 2²¹."""
    packed: Indices = (triples[:, 0] << 2 * _AXIS_BITS) | (triples[:, 1] << _AXIS_BITS) | triples[:, 2]
    return packed


def without_doubles(faces: Indices) -> Indices:
    """Keep one of equal faces; two that face each other enclose nothing and both go."""
    ordered = np.sort(faces, axis=1)
    _, first, numbers = np.unique(_packed(ordered), return_index=True, return_inverse=True)
    if len(first) == len(faces):
        return faces
    lowest_first = np.take_along_axis(faces, (faces.argmin(axis=1)[:, None] + np.arange(3)) % 3, axis=1)
    turns = np.where(lowest_first[:, 1] == ordered[:, 1], 1, -1)
    balance = np.bincount(numbers, weights=turns).astype(np.int64)
    kept, direction = ordered[first][balance != 0], balance[balance != 0]
    return turned(kept, direction < 0)


def split(points: Points, faces: Indices) -> tuple[Points, Indices]:
    """Give every fan of faces a vertex of its own, and draw apart those that were one."""
    edges = half_edges(faces)
    edges = replace(edges, opposite=_paired_around(points, edges))
    count, numbers = fans(edges)
    places = np.zeros((count, 3))
    places[numbers] = points[edges.start]
    home = np.zeros(count, np.int64)
    home[numbers] = edges.start
    meets = np.bincount(home)[home] > 1
    inward = -_fan_normals(points, faces, numbers, count)
    places[meets] += (NUDGE * (1 + _ranks(home)[:, None]) * inward)[meets]
    return places, numbers.reshape(-1, 3)


def _paired_around(points: Points, edges: HalfEdges) -> Indices:
    """Give every half-edge [3F] an opposite, also at edges of more than two faces, where one is due.

    Going around such an edge, the solid lies between a face whose half-edge runs back and the next
    one, if that runs forth: these two bound one sheet of solid and become a pair.
    """
    opposite = edges.opposite.copy()
    crowded = np.flatnonzero(edges.sharers > 2)
    ends = np.sort(np.stack([edges.start, edges.end], axis=1)[crowded], axis=1)
    _, edge_of = np.unique(ends, axis=0, return_inverse=True)
    for edge in range(int(edge_of.max(initial=-1)) + 1):
        around = crowded[edge_of == edge]
        axis_start, axis_end = (int(v) for v in ends[edge_of == edge][0])
        tips = edges.end[following(around)]
        order = np.argsort(_angles(points[tips] - points[axis_start], points[axis_end] - points[axis_start]))
        ring = [(int(h), bool(edges.start[h] == axis_start)) for h in around[order]]
        for back, forth in _brackets(ring):
            opposite[back], opposite[forth] = forth, back
    return opposite


def _angles(arms: Points, axis: Points) -> NDArray[np.float64]:
    """Give the angle of every arm [K 3] around an axis, from any fixed direction."""
    right = np.cross(axis, np.eye(3)[np.argmin(np.abs(axis))])
    up = np.cross(axis, right) / np.linalg.norm(axis)
    angles: NDArray[np.float64] = np.arctan2(arms @ up, arms @ right)
    return angles


def _brackets(ring: list[tuple[int, bool]]) -> list[tuple[int, int]]:
    """Match neighbours (back, forth) on a ring, like brackets, until none are left."""
    pairs: list[tuple[int, int]] = []
    while True:
        match = next(
            (k for k in range(len(ring)) if not ring[k][1] and ring[(k + 1) % len(ring)][1]),
            None,
        )
        if match is None:
            return pairs
        forth = (match + 1) % len(ring)
        pairs.append((ring[match][0], ring[forth][0]))
        ring = [item for k, item in enumerate(ring) if k not in (match, forth)]


def _fan_normals(points: Points, faces: Indices, numbers: Indices, count: int) -> Points:
    """Give the unit normal [count 3] of every fan; numbers [3F] names the fan of each corner."""
    a, b, c = (points[faces[:, i]] for i in range(3))
    areas = np.repeat(np.cross(b - a, c - a), 3, axis=0)
    summed = np.stack([np.bincount(numbers, areas[:, i], count) for i in range(3)], axis=1)
    lengths = np.linalg.norm(summed, axis=1, keepdims=True)
    normals: Points = summed / np.maximum(lengths, np.finfo(np.float64).tiny)
    return normals


def _ranks(keys: Indices) -> Indices:
    """Number equal keys 0, 1, 2 ... in order of appearance."""
    order = np.argsort(keys, kind="stable")
    first = np.flatnonzero(np.diff(keys[order], prepend=-1))
    ranks = np.zeros_like(keys)
    ranks[order] = np.arange(len(keys)) - np.repeat(first, np.diff(first, append=len(keys)))
    return ranks


def untangled(faces: Indices) -> Indices:
    """Drop the faces at edges that more than two still share; filling closes the gap anew."""
    is_crowded = (half_edges(faces).sharers > 2).reshape(-1, 3)
    return faces[~is_crowded.any(axis=1)]


def oriented(faces: Indices) -> Indices:
    """Turn faces until neighbours agree; parts with only one side cannot and are dropped.

    Every face stands in a graph twice, as it is and turned; neighbours that disagree are linked
    crosswise. A part falls into two mirror groups, or into one where it has only one side.
    """
    edges = half_edges(faces)
    size = len(faces)
    left, right = face_pairs(edges)
    here = np.flatnonzero(edges.opposite > np.arange(len(edges.opposite)))
    crosses = np.where(runs_both_ways(edges)[here], 0, size)
    _, labels = groups(
        2 * size,
        np.concatenate([left, left + size]),
        np.concatenate([right + crosses, right + (size - crosses)]),
    )
    as_is, mirrored = labels[:size], labels[size:]
    return turned(faces, np.greater(as_is, mirrored))[np.not_equal(as_is, mirrored)]


def fill(points: Points, faces: Indices) -> tuple[Points, Indices]:
    """Close every hole with a fan around its middle, or with one triangle where it has three sides."""
    edges = half_edges(faces)
    border = np.flatnonzero(edges.opposite == ALONE)
    if not len(border):
        return points, faces
    start, end = edges.start[border], edges.end[border]
    _, labels = groups(len(points), start, end)
    _, loops, sides = np.unique(labels[start], return_inverse=True, return_counts=True)
    middles = np.stack([np.bincount(loops, points[start, i]) for i in range(3)], axis=1) / sides[:, None]
    fan = np.stack([end, start, len(points) + loops], axis=1)[sides[loops] > 3]
    triangles = _triangles(start, end, np.flatnonzero(sides[loops] == 3), loops)
    return compact(np.concatenate([points, middles]), np.concatenate([faces, fan, triangles]))


def _triangles(start: Indices, end: Indices, chosen: Indices, loops: Indices) -> Indices:
    """Give the one face [K 3] that closes each three-sided hole among the chosen border edges."""
    _, first = np.unique(loops[chosen], return_index=True)
    a, b = start[chosen[first]], end[chosen[first]]
    after = np.zeros(int(start.max(initial=0)) + 1, np.int64)
    after[start[chosen]] = end[chosen]
    return np.stack([b, a, after[b]], axis=1)
