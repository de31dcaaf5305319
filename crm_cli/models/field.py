"""A field: what any reconstruction answers about any point, and how it becomes a surface."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.models import flexicubes
from crm_cli.models.flexicubes import CubeWeights, OwnSurface, Surfacer
from crm_cli.records import Mesh

CHUNK = 1 << 16
"""Points evaluated at once: 128 MiB for each hidden layer of 512."""

CPU_CHUNK = 1 << 13
"""The same on a CPU: hidden layers of 64 stay in its cache."""

OWN = OwnSurface()

STRIDE = 2
"""Every how many vertices of a grid are always asked, along each axis."""


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
def surface(
    field: Field,
    resolution: int,
    *,
    dense: bool = False,
    device: str = "cpu",
    surfacer: Surfacer = OWN,
) -> Mesh:
    """Extract a field's surface on a grid of resolution³ cubes: closed, oriented outwards.

    dense: ask the field at every vertex, as published, so that nothing can slip between those asked first.
    surfacer: what draws the surface through the grid.
    Raises PhotoError where the field has no surface.
    """
    points = flexicubes.grid(resolution, device=device)
    sample = sample_everywhere if dense else sample_near_surface
    sdf, offset = sample(field, points, resolution)
    cubes = flexicubes.surface_cubes(sdf, resolution)
    if not len(cubes):
        raise PhotoError("the reconstruction is empty", code="E_NO_SURFACE", kind="quality")
    weights = field.cube_weights(points[flexicubes.cube_corners(cubes, resolution)])
    # Hulls jump where one part hides another, so their crossings are searched for; a network that moves
    # the grid or weighs its corners was trained with interpolated ones.
    is_plain = weights is None and not bool(offset.any())
    refine = (lambda p: field.geometry(p)[0]) if is_plain else None
    vertices, faces, _ = surfacer.extract(points + offset, sdf, resolution, weights=weights, refine=refine)
    return Mesh(vertices=vertices.cpu().numpy(), faces=faces.cpu().numpy())


def sample_everywhere(field: Field, points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Signed distance [(n+1)³] and deformation [(n+1)³ 3] on a grid; the border is closed."""
    sdf, offset = field.geometry(points)
    return flexicubes.close_border(sdf, resolution), offset


def sample_near_surface(field: Field, points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Signed distance [(n+1)³] and deformation [(n+1)³ 3] on a grid, exact wherever the surface passes.

    Every second vertex along each axis is asked; the others start with the answer of the one before. Then
    the corners of all cubes that hold a surface by that account are asked, until no such cube has a
    corner left to ask. So a surface is followed wherever it leads, and nothing is lost but what lies
    between the vertices asked first without touching the rest: loose parts and closed bubbles in which no
    ball of √3 cells fits. A vertex never asked has the right sign and no deformation; the border is closed.
    """
    side = resolution + 1
    numbers = torch.arange(side**3, device=points.device).view(side, side, side)
    asked = numbers[::STRIDE, ::STRIDE, ::STRIDE].reshape(-1)
    answers, moved = field.geometry(points[asked])
    before = torch.arange(side, device=points.device) // STRIDE
    coarse = answers.view(*[resolution // STRIDE + 1] * 3)
    sdf = coarse[before][:, before][:, :, before].reshape(-1)
    offset = torch.zeros_like(points).index_copy(0, asked, moved)
    is_known = torch.zeros_like(sdf, dtype=torch.bool).index_fill(0, asked, True)
    while True:
        closed = flexicubes.close_border(sdf, resolution)
        cubes = flexicubes.surface_cubes(closed, resolution)
        needed = torch.zeros_like(is_known)
        needed[flexicubes.cube_corners(cubes, resolution).view(-1)] = True
        asked = (needed & ~is_known).nonzero()[:, 0]
        if not len(asked):
            return closed, offset
        sdf[asked], offset[asked] = field.geometry(points[asked])
        is_known[asked] = True


def in_chunks(function: Callable[[Tensor], Tensor], points: Tensor, chunk: int | None = None) -> Tensor:
    """Apply a function of points [N ...] to so many of them at a time, or to as many as suit the device."""
    size = chunk or (CPU_CHUNK if points.device.type == "cpu" else CHUNK)
    return torch.cat([function(chunk) for chunk in torch.split(points, size)])
