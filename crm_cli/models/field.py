"""A field: what any reconstruction answers about any point, and how it becomes a surface."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.models import flexicubes
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.records import Mesh

CHUNK = 1 << 16
"""Points evaluated at once: 128 MiB for each hidden layer of 512."""


class Field(Protocol):
    """A shape and its colour as functions of world points."""

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N], negative inside, and the grid's deformation [N 3], at points [N 3]."""
        ...

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        """FlexiCubes weights of cubes with corners [M 8 3] (undeformed); None means neutral ones."""
        ...

    def colour(self, points: Tensor) -> Tensor:
        """SRGB colour [N 3] in [0, 1] at points [N 3]."""
        ...


@torch.no_grad()
def surface(field: Field, resolution: int, *, device: str = "cpu") -> Mesh:
    """Extract a field's surface on a grid of resolution³ cubes: closed, oriented outwards.

    Raises PhotoError where the field has no surface.
    """
    points = flexicubes.grid(resolution, device=device)
    sdf, offset = field.geometry(points)
    sdf = flexicubes.close_border(sdf, resolution)
    cubes = flexicubes.surface_cubes(sdf, resolution)
    if not len(cubes):
        raise PhotoError("the reconstruction is empty", code="E_NO_SURFACE", kind="quality")
    weights = field.cube_weights(points[flexicubes.cube_corners(cubes, resolution)])
    # Hulls jump where one part hides another, so their crossings are searched for; a network that moves
    # the grid or weighs its corners was trained with interpolated ones.
    is_plain = weights is None and not bool(offset.any())
    refine = (lambda p: field.geometry(p)[0]) if is_plain else None
    vertices, faces, _ = flexicubes.extract(points + offset, sdf, resolution, weights=weights, refine=refine)
    return Mesh(vertices=vertices.cpu().numpy(), faces=faces.cpu().numpy())
