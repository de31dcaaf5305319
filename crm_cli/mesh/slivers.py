"""Remove triangles too thin to have a direction, without opening the surface."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crm_cli.mesh.inspect import heights
from crm_cli.mesh.mend import LATTICE, Points
from crm_cli.mesh.topology import ALONE, HalfEdges, Indices, compact, half_edges

MIN_HEIGHT = 2 * LATTICE
"""Lower triangles go. Twice what inspect calls degenerate on an object that fills [-1, 1]³."""

ROUNDS = 10
"""Each round mends slivers that do not touch; long chains of them take several."""


def without_slivers(points: Points, faces: Indices) -> tuple[Points, Indices]:
    """Swap the long edge of flat triangles, or collapse a short edge; both keep a closed surface closed.

    points [V 3], faces [F 3]: closed and manifold. What neither move improves stays.
    """
    for _ in range(ROUNDS):
        slivers = np.flatnonzero(heights(points, faces) < MIN_HEIGHT)
        if not len(slivers):
            break
        patch = _Patch.around(points, faces)
        if not sum(patch.mend(int(face)) for face in slivers):
            break
        faces = patch.faces[patch.faces[:, 0] != patch.faces[:, 1]]
    return compact(points, faces)


@dataclass(slots=True, eq=False, kw_only=True)
class _Patch:
    """A surface under repair; what a move touched is left alone until the next round."""

    points: Points
    faces: Indices
    """Faces that went have equal corners."""
    edges: HalfEdges
    corners: Indices
    """Half-edges sorted by the vertex they start at."""
    first: Indices
    touched: set[int]
    """Vertices whose faces have changed."""

    @classmethod
    def around(cls, points: Points, faces: Indices) -> _Patch:
        edges = half_edges(faces)
        return cls(
            points=points,
            faces=faces.copy(),
            edges=edges,
            corners=np.argsort(edges.start, kind="stable"),
            first=np.concatenate([[0], np.cumsum(np.bincount(edges.start, minlength=len(points)))]),
            touched=set(),
        )

    def mend(self, face: int) -> bool:
        """Improve one sliver; say whether it was possible."""
        if not self.touched.isdisjoint(self.faces[face].tolist()):
            return False
        sides = 3 * face + np.argsort(
            [
                np.linalg.norm(self.points[self.edges.end[h]] - self.points[self.edges.start[h]])
                for h in (3 * face, 3 * face + 1, 3 * face + 2)
            ]
        )
        return self._swap(int(sides[2])) or any(
            self._collapse(gone, stays)
            for h in sides
            for gone, stays in (
                (int(self.edges.start[h]), int(self.edges.end[h])),
                (int(self.edges.end[h]), int(self.edges.start[h])),
            )
        )

    def _faces_at(self, vertex: int) -> Indices:
        return self.corners[self.first[vertex] : self.first[vertex + 1]] // 3

    def _neighbours(self, vertex: int) -> set[int]:
        return set(self.faces[self._faces_at(vertex)].ravel().tolist()) - {vertex}

    def _swap(self, half_edge: int) -> bool:
        """Let the edge of two faces join their other corners instead."""
        other = int(self.edges.opposite[half_edge])
        if other == ALONE:
            return False
        pair = np.array([half_edge // 3, other // 3])
        a, b = int(self.edges.start[half_edge]), int(self.edges.end[half_edge])
        c, d = (int(self.faces[h // 3].sum()) - a - b for h in (half_edge, other))
        if not self.touched.isdisjoint((a, b, c, d)) or d in self._neighbours(c):
            return False
        return self._accept(pair, np.array([[a, d, c], [d, b, c]]), np.zeros((0,), np.int64))

    def _collapse(self, gone: int, stays: int) -> bool:
        """Draw one vertex into its neighbour; their two common faces vanish."""
        neighbours = self._neighbours(gone)
        # The link condition: with a third common neighbour the surface would touch itself.
        if len(neighbours & self._neighbours(stays)) != 2 or not self.touched.isdisjoint(neighbours | {gone}):
            return False
        ring = self._faces_at(gone)
        has_both = (self.faces[ring] == stays).any(axis=1)
        kept = ring[~has_both]
        return self._accept(kept, np.where(self.faces[kept] == gone, stays, self.faces[kept]), ring[has_both])

    def _accept(self, places: Indices, faces: Indices, gone: Indices) -> bool:
        """Make a move where the lowest of its faces rises and none turns over."""
        before = self.faces[np.concatenate([places, gone])]
        if heights(self.points, faces).min() <= heights(self.points, before).min():
            return False
        sound = before[heights(self.points, before) >= MIN_HEIGHT]
        if len(sound) and (self._normals(faces) @ self._normals(sound).sum(axis=0) <= 0).any():
            return False
        self.touched.update(before.ravel().tolist())
        self.faces[places] = faces
        self.faces[gone] = 0
        return True

    def _normals(self, faces: Indices) -> Points:
        a, b, c = (self.points[faces[:, i]] for i in range(3))
        return np.cross(b - a, c - a)
