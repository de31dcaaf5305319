"""Signed distance to a union of closed meshes, measured with warp.

The parts are laid side by side in one bounding volume hierarchy, far enough apart that a query near
one part never meets another; so one tree answers for every part separately.
"""

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACING = 4.0
"""Shift from part to part along x: parts lie in [-1, 1], and queries reach 0.5 at most."""

MARGIN = 1e-5
"""Half width of the ray's box: float32 resolves 2e-5 at the fortieth part."""


@functools.cache
def _kernel() -> Any:
    """Compile the query once per process."""
    import warp as wp

    wp.config.quiet = True
    wp.init()

    @wp.func
    def side_of(mesh: wp.uint64, a: int, b: int, x: float, y: float) -> float:
        """Say on which side of an edge, seen from above, a place lies; the same for both of its faces."""
        points = wp.mesh_get(mesh).points
        low = wp.min(a, b)
        high = wp.max(a, b)
        p = points[low]
        q = points[high]
        value = (q[0] - p[0]) * (y - p[1]) - (q[1] - p[1]) * (x - p[0])
        side = 1.0
        if value < 0.0:
            side = -1.0
        if a > b:
            side = -side
        return side

    @wp.func
    def winding(mesh: wp.uint64, p: wp.vec3, top: float) -> int:
        """Count how often a ray straight up leaves the surface, less how often it enters."""
        count = int(0)  # noqa: RUF046 (a bare 0 would be a constant to warp)
        face = int(0)  # noqa: RUF046
        margin = wp.vec3(MARGIN, MARGIN, 0.0)
        query = wp.mesh_query_aabb(mesh, p - margin, wp.vec3(p[0] + MARGIN, p[1] + MARGIN, top))
        indices = wp.mesh_get(mesh).indices
        while wp.mesh_query_aabb_next(query, face):
            i = indices[3 * face]
            j = indices[3 * face + 1]
            k = indices[3 * face + 2]
            first = side_of(mesh, i, j, p[0], p[1])
            if first == side_of(mesh, j, k, p[0], p[1]) and first == side_of(mesh, k, i, p[0], p[1]):
                a = wp.mesh_get(mesh).points[i]
                normal = wp.cross(wp.mesh_get(mesh).points[j] - a, wp.mesh_get(mesh).points[k] - a)
                if normal[2] != 0.0:
                    height = a[2] - (normal[0] * (p[0] - a[0]) + normal[1] * (p[1] - a[1])) / normal[2]
                    if height > p[2]:
                        count += int(first)
        return count

    @wp.kernel
    def measure(
        mesh: wp.uint64,
        places: wp.array(dtype=wp.vec3),
        lower: wp.array(dtype=wp.vec3),
        upper: wp.array(dtype=wp.vec3),
        reach: float,
        spacing: float,
        result: wp.array(dtype=float),
    ):
        i = wp.tid()
        best = float(reach)
        for part in range(lower.shape[0]):
            shift = spacing * float(part)
            p = places[i] + wp.vec3(shift, 0.0, 0.0)
            gap = wp.length(p - wp.max(wp.min(p, upper[part]), lower[part]))
            if gap == 0.0 and winding(mesh, p, upper[part][2] + 0.01) > 0:
                found = wp.mesh_query_point_no_sign(mesh, p, reach)
                depth = float(reach)
                if found.result:
                    depth = wp.length(p - wp.mesh_eval_position(mesh, found.face, found.u, found.v))
                best = wp.min(best, -depth)
            elif gap < best:
                found = wp.mesh_query_point_no_sign(mesh, p, best)
                if found.result:
                    best = wp.min(
                        best, wp.length(p - wp.mesh_eval_position(mesh, found.face, found.u, found.v))
                    )
        result[i] = best

    return measure


class Solid:
    """The union of closed, outward-facing parts inside [-1, 1]³."""

    def __init__(
        self, vertices: NDArray[np.float32], faces: NDArray[np.int64], part: NDArray[np.int64]
    ) -> None:
        """Build the tree. vertices [V 3], faces [F 3]; part [F] counts from 0, and parts share no vertices."""
        import warp as wp

        self._measure = _kernel()
        owner = np.zeros(len(vertices), dtype=np.int64)
        owner[faces] = part[:, None]
        apart = vertices.astype(np.float32)
        apart[:, 0] += np.float32(SPACING) * owner
        parts = int(part.max()) + 1
        lower = np.full((parts, 3), np.inf, dtype=np.float32)
        upper = -lower
        np.minimum.at(lower, owner, apart)
        np.maximum.at(upper, owner, apart)
        self._bounds = [wp.array(bound, dtype=wp.vec3, device="cpu") for bound in (lower, upper)]
        self._mesh = wp.Mesh(
            points=wp.array(apart, dtype=wp.vec3, device="cpu"),
            indices=wp.array(faces.astype(np.int32).ravel(), dtype=int, device="cpu"),
        )

    def signed_distance(
        self, places: NDArray[np.floating[Any]], *, reach: float = 0.3
    ) -> NDArray[np.float32]:
        """Measure how far places [N 3] are from the union, negative inside, clipped to ±reach.

        Outside it is exact. Inside it is the depth in the part that is entered deepest, which is at
        most the depth in the union.
        """
        import warp as wp

        result = wp.zeros(len(places), dtype=float, device="cpu")
        at = wp.array(np.ascontiguousarray(places, dtype=np.float32), dtype=wp.vec3, device="cpu")
        inputs = [self._mesh.id, at, *self._bounds, reach, SPACING]
        wp.launch(self._measure, dim=len(places), inputs=inputs, outputs=[result], device="cpu")
        measured: NDArray[np.float32] = result.numpy()
        return measured
