"""What a buyer would check of a finished asset, counted rather than believed.

Vertices are merged by position first, as every program does that opens the file: a seam that only
the indices hide would otherwise pass here and fail there.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crm_cli.mesh.topology import Indices, fans, half_edges, parts, runs_both_ways
from crm_cli.records import Checks, Mesh, UnwrappedMesh

DEGENERATE_HEIGHT = 1e-6
"""A triangle lower than this share of the mesh's diagonal is degenerate.

Ten float32 steps: below that a face's normal is rounding noise.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What holds of a surface as a whole."""

    vertices: int
    faces: int
    is_closed: bool
    """Every edge has exactly two faces."""
    is_manifold: bool
    """No edge has more than two faces, and the faces around each vertex form one fan."""
    is_oriented: bool
    """Wherever two faces meet, they run along their edge in opposite directions."""
    volume: float
    """Signed; positive where faces look outwards."""
    euler: int
    components: int
    degenerate_faces: int

    @property
    def is_sound(self) -> bool:
        """Whether the surface bounds a solid."""
        return self.is_closed and self.is_manifold and self.is_oriented and self.volume > 0


def inspect(
    unwrapped: UnwrappedMesh,
    *,
    uv_overlap: float,
    uv_coverage: float,
    silhouette_iou: float,
    confidence: str,
    seen_share: float = 0.0,
) -> Checks:
    """Check a mesh and write down what others measured of its texture and its likeness."""
    shape = shape_of(unwrapped.mesh)
    return Checks(
        vertices=shape.vertices,
        faces=shape.faces,
        is_closed=shape.is_closed,
        is_manifold=shape.is_manifold,
        is_oriented=shape.is_oriented,
        volume=shape.volume,
        euler=shape.euler,
        components=shape.components,
        degenerate_faces=shape.degenerate_faces,
        uv_overlap=uv_overlap,
        uv_coverage=uv_coverage,
        silhouette_iou=silhouette_iou,
        confidence=confidence,
        seen_share=seen_share,
    )


def shape_of(mesh: Mesh) -> Shape:
    """Examine a surface; an empty one is neither closed nor anything else."""
    faces = merged_by_position(mesh)
    edges = half_edges(faces)
    vertex_count = int(np.unique(faces).size)
    fan_count, _ = fans(edges)
    component_count, _ = parts(edges)
    is_paired = edges.sharers == 2
    return Shape(
        vertices=vertex_count,
        faces=len(faces),
        is_closed=bool(len(faces) and is_paired.all()),
        is_manifold=bool(len(faces) and (edges.sharers <= 2).all() and fan_count == vertex_count),
        is_oriented=bool(len(faces) and runs_both_ways(edges)[is_paired].all()),
        volume=signed_volume(mesh.vertices, mesh.faces),
        euler=vertex_count - round(float((1 / edges.sharers).sum())) + len(faces),
        components=component_count,
        degenerate_faces=degenerate_faces(mesh),
    )


def merged_by_position(mesh: Mesh) -> Indices:
    """Renumber faces so that vertices at one position are one vertex. Returns [F 3]."""
    points = mesh.vertices + np.float32(0)  # -0 and +0 are one position
    order = np.lexsort(points.T)
    differs = (np.diff(points[order], axis=0) != 0).any(axis=1)
    numbers = np.zeros(len(points), np.int64)
    numbers[order] = np.concatenate([[0], np.cumsum(differs)])[: len(points)]
    return numbers[mesh.faces]


def signed_volume(vertices: NDArray[np.floating], faces: Indices) -> float:
    """Sum the tetrahedra between the faces and the origin."""
    a, b, c = corners(vertices, faces)
    return float(np.einsum("fi,fi->", a, np.cross(b, c)) / 6)


def corners(
    vertices: NDArray[np.floating], faces: Indices
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Give the faces' three corners, each float64 [F 3]."""
    points = vertices.astype(np.float64)
    return points[faces[:, 0]], points[faces[:, 1]], points[faces[:, 2]]


def heights(vertices: NDArray[np.floating], faces: Indices) -> NDArray[np.float64]:
    """Give every face's smallest height [F]: twice its area over its longest edge."""
    a, b, c = corners(vertices, faces)
    doubled_area = np.linalg.norm(np.cross(b - a, c - a), axis=1)
    longest = np.sqrt(np.maximum.reduce([((p - q) ** 2).sum(axis=1) for p, q in ((a, b), (b, c), (c, a))]))
    height: NDArray[np.float64] = doubled_area / np.maximum(longest, np.finfo(np.float64).tiny)
    return height


def degenerate_faces(mesh: Mesh) -> int:
    """Count faces too low to have a direction."""
    if not len(mesh.faces):
        return 0
    diagonal = float(np.linalg.norm(np.ptp(mesh.vertices, axis=0)))
    return int((heights(mesh.vertices, mesh.faces) <= DEGENERATE_HEIGHT * diagonal).sum())


def silhouette_iou(left: NDArray[np.bool_], right: NDArray[np.bool_]) -> float:
    """Give the share two masks of one size have in common: 1 where they agree, 0 where both are empty."""
    union = int(np.count_nonzero(left | right))
    return np.count_nonzero(left & right) / union if union else 0.0
