"""Signed distance to a union of closed meshes, measured with warp.

The parts are laid side by side in one bounding volume hierarchy, far enough apart that a query near
one part never meets another; so one tree answers for every part separately.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPACING = 4.0
"""Shift from part to part along x: parts lie in [-1, 1], so queries may reach just under 2."""


@functools.cache
def kernels_of_warp() -> ModuleType:
    """Import warp and the kernels, once."""
    import warp as wp

    wp.config.quiet = True
    from crm_cli.learn import kernels

    return kernels


class Solid:
    """The union of closed, outward-facing parts inside [-1, 1]³."""

    def __init__(
        self, vertices: NDArray[np.float32], faces: NDArray[np.int64], part: NDArray[np.int64]
    ) -> None:
        """Build the tree.

        vertices [V 3], faces [F 3]; part [F] counts from 0, and parts share no vertices.
        """
        self._kernels = kernels_of_warp()
        import warp as wp

        owner = np.zeros(len(vertices), dtype=np.int64)
        owner[faces] = part[:, None]
        apart = vertices.astype(np.float32)
        apart[:, 0] += np.float32(SPACING) * owner
        lower = np.full((int(part.max()) + 1, 3), np.inf, dtype=np.float32)
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
        wp.launch(self._kernels.measure, dim=len(places), inputs=inputs, outputs=[result], device="cpu")
        measured: NDArray[np.float32] = result.numpy()
        return measured

    def shows(self, places: NDArray[np.float32], normals: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Say which places [N 3] of the parts' surfaces no other part covers: [N]."""
        # A place inside another part is deep in the union; one on the outside is on its border.
        outer: NDArray[np.bool_] = self.signed_distance(places, reach=0.05) > -2e-3
        return outer
