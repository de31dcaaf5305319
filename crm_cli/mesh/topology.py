"""How triangles hang together: half-edges, the fans of faces around vertices, connected parts.

Half-edge `3f + i` runs from corner i of face f to its next corner, and stands for that corner too.
Everything here looks at indices only, never at positions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components

Indices = NDArray[np.int64]

ALONE = -1
"""Stands where a half-edge has no single opposite: a border, or an edge of three and more faces."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class HalfEdges:
    """The half-edges of some faces, all int64 [3F]."""

    start: Indices
    end: Indices
    opposite: Indices
    """The other half-edge of an edge with exactly two faces, else ALONE."""
    sharers: Indices
    """How many faces this half-edge's edge has."""


def half_edges(faces: Indices) -> HalfEdges:
    """Find every half-edge's opposite. faces: [F 3]."""
    start = faces.ravel()
    end = np.roll(faces, -1, axis=1).ravel()
    stride = int(faces.max(initial=0)) + 1
    keys = np.minimum(start, end) * stride + np.maximum(start, end)
    order = np.argsort(keys)  # in which order the faces of one edge come makes no difference
    first = np.flatnonzero(np.diff(keys[order], prepend=-1))
    sharers_of_edge = np.diff(first, append=len(keys))
    sharers = np.zeros_like(keys)
    sharers[order] = np.repeat(sharers_of_edge, sharers_of_edge)
    opposite = np.full_like(keys, ALONE)
    pairs = first[sharers_of_edge == 2]
    opposite[order[pairs]], opposite[order[pairs + 1]] = order[pairs + 1], order[pairs]
    return HalfEdges(start=start, end=end, opposite=opposite, sharers=sharers)


def following(half_edge: Indices) -> Indices:
    """Give the next half-edge in the same face."""
    return half_edge + np.where(half_edge % 3 == 2, -2, 1)


def groups(size: int, left: Indices, right: Indices) -> tuple[int, Indices]:
    """Label things 0..size-1 by connected group, where left[k] and right[k] belong together.

    Returns the number of groups and int64 [size].
    """
    links = coo_matrix((np.ones(len(left), np.int8), (left, right)), shape=(size, size))
    count, labels = connected_components(links, directed=False)
    return int(count), labels.astype(np.int64)


def fans(edges: HalfEdges) -> tuple[int, Indices]:
    """Label corners [3F] by fan: faces around one vertex that hang together across shared edges."""
    here = np.flatnonzero(edges.opposite > np.arange(len(edges.opposite)))
    there = edges.opposite[here]
    runs_back = edges.start[here] == edges.end[there]
    at_start = np.where(runs_back, following(there), there)
    at_end = np.where(runs_back, there, following(there))
    return groups(
        len(edges.start), np.concatenate([here, following(here)]), np.concatenate([at_start, at_end])
    )


def face_pairs(edges: HalfEdges) -> tuple[Indices, Indices]:
    """Give the two faces of every edge that has exactly two, each edge once."""
    here = np.flatnonzero(edges.opposite > np.arange(len(edges.opposite)))
    return here // 3, edges.opposite[here] // 3


def is_sound(faces: Indices) -> bool:
    """Say whether faces close up, agree in direction and form one fan around each vertex."""
    edges = half_edges(faces)
    return bool(runs_both_ways(edges).all()) and fans(edges)[0] == np.unique(faces).size


def parts(edges: HalfEdges) -> tuple[int, Indices]:
    """Label faces [F] by connected part; faces hang together across edges of exactly two faces."""
    return groups(len(edges.start) // 3, *face_pairs(edges))


def runs_both_ways(edges: HalfEdges) -> NDArray[np.bool_]:
    """Say for every half-edge [3F] whether it has one opposite and that one runs the other way."""
    is_back: NDArray[np.bool_] = (edges.opposite != ALONE) & (edges.start == edges.end[edges.opposite])
    return is_back


def turned(faces: Indices, which: NDArray[np.bool_]) -> Indices:
    """Let some faces [F 3] look the other way."""
    result = faces.copy()
    result[which] = faces[which, ::-1]
    return result


def compact(vertices: NDArray[np.float64], faces: Indices) -> tuple[NDArray[np.float64], Indices]:
    """Drop the vertices that no face uses."""
    used = np.zeros(len(vertices), np.bool_)
    used[faces] = True
    return vertices[used], (np.cumsum(used) - 1)[faces]
