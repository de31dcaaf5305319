"""What is inside a mesh that may be open, doubled, turned inside out or full of hidden parts.

A place is inside when nothing outside sees it: of RAYS straight lines from it to far away nearly all meet
the surface, and those along the world's axes, which are the lines of sight of the six views, always.
So the hollow of a mug is outside, the hidden engine of a car inside, and neither the direction that faces
look nor a crack between them matters. What nobody can look into, such as a bottle with a narrow neck,
counts as solid; the six views cannot tell it from one that is. Where a face is seen from both sides there
is no inside, as with the leaf of a plant or a cloth: such sheets count as 2 · THIN thick.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crm_cli.frame import VIEWS
from crm_cli.learn.materials import Floats
from crm_cli.learn.solid import kernels_of_warp

RAYS = 54
"""Six along the axes, the rest spread evenly: cones of 16° are met by one of them."""

LEAKS = 3
"""So many lines besides those along the axes must get away: two may slip through cracks."""

THIN = 0.0125
"""Half the thickness of a sheet: together one cell of a grid of 80, the thinnest thing it can hold."""

OFF = 1e-3
"""How far from a face its two sides are looked at; a wall thinner than that is a sheet."""

FEW_FACES = 5_000
"""Up to here four places of a face are looked at; beyond, faces are small and one will do."""


def directions() -> Floats:
    """Unit vectors [RAYS 3]: towards the six cameras, then a spiral over the sphere."""
    k = np.arange(RAYS - len(VIEWS)) + 0.5
    z = 1 - 2 * k / (RAYS - len(VIEWS))
    turn = np.pi * (1 + np.sqrt(5)) * k  # the golden angle
    around = np.sqrt(1 - z * z)
    spiral = np.stack([around * np.cos(turn), around * np.sin(turn), z], -1)
    return np.concatenate([[view.toward for view in VIEWS], spiral]).astype(np.float32)


class Surroundings:
    """A mesh that stands in the way of lines of sight."""

    def __init__(self, vertices: Floats, faces: NDArray[np.int64]) -> None:
        """Build the tree over vertices [V 3] and faces [F 3]."""
        self._kernels = kernels_of_warp()
        import warp as wp

        self.mesh = wp.Mesh(
            points=wp.array(vertices.astype(np.float32), dtype=wp.vec3, device="cpu"),
            indices=wp.array(faces.astype(np.int32).ravel(), dtype=int, device="cpu"),
        )
        self._directions = wp.array(directions(), dtype=wp.vec3, device="cpu")

    def sees(self, places: NDArray[np.floating[Any]]) -> NDArray[np.bool_]:
        """Say which places [N 3] can be seen from far away: [N]."""
        import warp as wp

        result = wp.zeros(len(places), dtype=int, device="cpu")
        at = wp.array(np.ascontiguousarray(places, dtype=np.float32), dtype=wp.vec3, device="cpu")
        inputs = [self.mesh.id, at, self._directions, len(VIEWS), LEAKS]
        wp.launch(self._kernels.look_out, dim=len(places), inputs=inputs, outputs=[result], device="cpu")
        seen: NDArray[np.bool_] = result.numpy() > 0
        return seen


@dataclass(frozen=True, slots=True, eq=False)
class Sides:
    """Which sides of faces can be seen: bool [F], where the normal points and where it does not."""

    front: NDArray[np.bool_]
    back: NDArray[np.bool_]

    @property
    def is_sheet(self) -> NDArray[np.bool_]:
        """Whether a face has nothing behind it."""
        return self.front & self.back

    @property
    def is_hidden(self) -> NDArray[np.bool_]:
        """Whether nobody sees a face."""
        return ~(self.front | self.back)


def sides_of(vertices: Floats, faces: NDArray[np.int64]) -> Sides:
    """Look at both sides of every face, in its middle and, where faces are few, near its corners."""
    around = Surroundings(vertices, faces)
    corners = vertices[faces]  # [F 3 3]
    weights = np.full((1, 3), 1 / 3, np.float32)
    if len(faces) <= FEW_FACES:
        weights = np.concatenate(
            [weights, np.full((3, 3), 0.1, np.float32) + 0.7 * np.eye(3, dtype=np.float32)]
        )
    places = np.einsum("pk,fkd->pfd", weights, corners)
    normal = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-20)
    seen = [
        around.sees((places + side * OFF * normal).reshape(-1, 3)).reshape(len(weights), -1)
        for side in (1, -1)
    ]
    return Sides(*(np.logical_or.reduce(side, axis=0) for side in seen))


class Enclosed:
    """What cannot be seen of the space around a posed mesh, and its sheets."""

    def __init__(self, vertices: Floats, faces: NDArray[np.int64], sides: Sides) -> None:
        """Build the trees: vertices [V 3] inside [-1, 1]³, faces [F 3]."""
        self._kernels = kernels_of_warp()
        import warp as wp

        self._around = Surroundings(vertices, faces)
        # A hidden face is no border: places near it would seem to be near the surface.
        border = np.flatnonzero(~sides.is_hidden)
        if not len(border):
            border = np.arange(len(faces))
        self._border = Surroundings(vertices, faces[border]).mesh
        self._is_sheet = wp.array(sides.is_sheet[border].astype(np.int32), dtype=int, device="cpu")

    def signed_distance(self, places: NDArray[np.floating[Any]], *, reach: float = 0.3) -> Floats:
        """Measure how far places [N 3] are from the surface, negative inside, clipped to ±reach: [N]."""
        import warp as wp

        seen = wp.array(self._around.sees(places).astype(np.int32), dtype=int, device="cpu")
        result = wp.zeros(len(places), dtype=float, device="cpu")
        at = wp.array(np.ascontiguousarray(places, dtype=np.float32), dtype=wp.vec3, device="cpu")
        inputs = [self._border.id, at, seen, self._is_sheet, THIN, reach]
        wp.launch(self._kernels.measure_shell, dim=len(places), inputs=inputs, outputs=[result], device="cpu")
        measured: Floats = result.numpy()
        return measured

    def shows(self, places: Floats, normals: Floats) -> NDArray[np.bool_]:
        """Say which places [N 3] of faces with unit normals [N 3] are seen from one side at least: [N]."""
        shown: NDArray[np.bool_] = self._around.sees(places + OFF * normals)
        hidden = np.flatnonzero(~shown)
        shown[hidden] = self._around.sees(places[hidden] - OFF * normals[hidden])
        return shown
