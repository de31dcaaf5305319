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

MIN_STRIDE = 2
"""Every how many vertices of a grid are always asked, along each axis, on grids up to BASE twice as fine."""

BASE = 80
"""The grid whose every second vertex is fine enough to begin with; finer grids begin with as many."""


class Coloured(Protocol):
    """Colour as a function of world points."""

    def colour(self, points: Tensor) -> Tensor:
        """SRGB colour [N 3] in [0, 1] at points [N 3]."""
        ...


class Field(Coloured, Protocol):
    """A shape and its colour as functions of world points."""

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance [N], negative inside, and the grid's deformation [N 3], at points [N 3]."""
        ...

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        """FlexiCubes weights of cubes with corners [M 8 3] (undeformed); None means neutral ones."""
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
    corners = flexicubes.cube_corners(cubes, resolution)
    weights = field.cube_weights(points[corners])
    # Hulls jump where one part hides another, so their crossings are searched for; a network that moves
    # the grid or weighs its corners was trained with interpolated ones.
    is_plain = weights is None and not bool(offset[corners].any())
    refine = (lambda p: field.geometry(p)[0]) if is_plain else None
    moved = points if is_plain else points + offset
    vertices, faces, _ = surfacer.extract(moved, sdf, resolution, weights=weights, refine=refine)
    return Mesh(vertices=vertices.cpu().numpy(), faces=faces.cpu().numpy())


def sample_everywhere(field: Field, points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Signed distance [(n+1)³] and deformation [(n+1)³ 3] on a grid; the border is closed."""
    sdf, offset = field.geometry(points)
    return flexicubes.close_border(sdf, resolution), offset


def sample_near_surface(field: Field, points: Tensor, resolution: int) -> tuple[Tensor, Tensor]:
    """Signed distance [(n+1)³] and deformation [(n+1)³ 3] on a grid, exact wherever the surface passes.

    Vertices a stride apart are asked; then the stride is halved until it is 1. The vertices between start
    with the answer of the one before, and the corners of all cubes that hold a surface by that account are
    asked, until no such cube has a corner left to ask. So a surface is followed wherever it leads, and
    nothing is lost but what lies between the vertices asked first without touching the rest: loose parts
    and closed bubbles in which no ball of √3 cells of an 80³ grid fits. On finer grids, if the field's
    values are distances, it is √3 of their own cells: cubes that a surface may reach by their distance
    are asked too. A vertex never asked has the right sign and no deformation; the border is closed.
    """
    stride = first_stride(resolution)
    asked = _Asked(field, points)
    level = _Level(asked, resolution, stride)
    level.ask(torch.arange(level.sdf.numel(), device=points.device))
    while stride > 1:
        stride //= 2
        finer = _Level(asked, resolution, stride)
        finer.begin(level)
        if stride > 1:
            finer.ask_within_reach(level)
        finer.follow()
        level = finer
    return level.sdf, asked.offset


def first_stride(resolution: int) -> int:
    """How far apart the vertices are that are asked first: a power of two."""
    stride = MIN_STRIDE
    while stride * BASE <= MIN_STRIDE * resolution // 2:
        stride *= 2
    return stride


class _Asked:
    """A field, and the deformation it has told of so far."""

    def __init__(self, field: Field, points: Tensor) -> None:
        self._field = field
        self.points = points
        # Takes memory only where there is a deformation.
        self.offset = points.new_zeros(1).expand_as(points)

    def sdf(self, numbers: Tensor) -> Tensor:
        """Signed distance at some of the points."""
        sdf, moved = self._field.geometry(self.points[numbers])
        if bool(moved.any()):
            self.offset = self.offset.contiguous()
            self.offset[numbers] = moved
        return sdf


class _Level:
    """What is known of a field on every so manieth vertex of a grid."""

    def __init__(self, field: _Asked, resolution: int, stride: int) -> None:
        """stride: how many cells of the grid lie between two vertices of this level."""
        self._field = field
        self._stride = stride
        self._side = resolution + 1
        self._cubes = resolution // stride
        # Below the last level nothing is at the border for good.
        self._is_last = stride == 1
        self.sdf = field.points.new_zeros((self._cubes + 1) ** 3)
        self._is_known = torch.zeros_like(self.sdf, dtype=torch.bool)

    def begin(self, coarser: _Level) -> None:
        """Take over what a level of half as many cubes knows, and guess the rest from it."""
        side = self._cubes + 1
        before = torch.arange(side, device=self.sdf.device) // 2
        known = coarser.sdf.view(*[coarser._cubes + 1] * 3)
        guess = known[before][:, before][:, :, before]
        if self._is_last:
            for axis in range(3):
                for end in (0, self._cubes):
                    guess.select(axis, end).clamp_(min=1 / self._cubes)
        self.sdf = guess.view(-1)
        self._is_known.view(side, side, side)[::2, ::2, ::2] = coarser._is_known.view_as(known)

    def ask(self, vertices: Tensor) -> Tensor:
        """Ask the field; give those of the vertices whose side was guessed wrong."""
        was_outside = self.sdf[vertices] > 0
        place = self._places(vertices, self._cubes + 1)
        answers = self._field.sdf(self._number(self._stride * place, self._side))
        if self._is_last:
            is_border = ((place == 0) | (place == self._cubes)).any(1)
            answers = torch.where(is_border, answers.clamp(min=1 / self._cubes), answers)
        self.sdf[vertices] = answers
        self._is_known[vertices] = True
        return vertices[(answers > 0) != was_outside]

    def follow(self) -> None:
        """Ask until every cube that holds a surface has all its corners asked."""
        cubes = flexicubes.surface_cubes(self.sdf, self._cubes)
        while len(vertices := self._unknown(flexicubes.cube_corners(cubes, self._cubes))):
            # Only around a vertex that changed sides can a cube have come to hold a surface.
            cubes = self._cubes_around(self.ask(vertices))
            is_outside = self.sdf[flexicubes.cube_corners(cubes, self._cubes)] > 0
            cubes = cubes[is_outside.any(1) & ~is_outside.all(1)]

    def ask_within_reach(self, coarser: _Level) -> None:
        """Ask all vertices in the coarser cubes that a surface may reach, if values are distances."""
        # No point of a cube is further from its nearest corner, or from its middle, than half its diagonal.
        reach = 3**0.5 / 2 * coarser._stride * float(self._field.points[1, 2] - self._field.points[0, 2])
        is_near = (coarser.sdf.abs() < reach) & coarser._is_known
        cubes = coarser._cubes_around(is_near.nonzero()[:, 0])
        first = 2 * self._places(cubes, coarser._cubes)
        middle = self._number(first + 1, self._cubes + 1)
        self.ask(self._unknown(middle))
        first = first[self.sdf[middle].abs() < reach]
        steps = torch.cartesian_prod(*[torch.arange(3, device=first.device)] * 3)
        self.ask(self._unknown(self._number((first[:, None] + steps).flatten(0, 1), self._cubes + 1)))

    def _unknown(self, vertices: Tensor) -> Tensor:
        """Give each vertex once that was never asked."""
        vertices = vertices.reshape(-1)
        vertices = vertices[~self._is_known[vertices]]
        if len(vertices) < len(self._is_known) // 64:
            once: Tensor = torch.unique(vertices)
            return once
        is_wanted = torch.zeros_like(self._is_known)
        is_wanted[vertices] = True
        return is_wanted.nonzero()[:, 0]

    def _cubes_around(self, vertices: Tensor) -> Tensor:
        """Give the cubes that have one of these vertices as a corner."""
        place = self._places(vertices, self._cubes + 1)
        steps = torch.cartesian_prod(*[torch.arange(2, device=vertices.device)] * 3)
        first = (place[:, None] - steps).flatten(0, 1)
        first = first[((first >= 0) & (first < self._cubes)).all(1)]
        once: Tensor = torch.unique(self._number(first, self._cubes))
        return once

    @staticmethod
    def _places(numbers: Tensor, side: int) -> Tensor:
        return torch.stack((numbers // side**2, numbers // side % side, numbers % side), 1)

    @staticmethod
    def _number(places: Tensor, side: int) -> Tensor:
        return (places[:, 0] * side + places[:, 1]) * side + places[:, 2]


def in_chunks(
    function: Callable[[Tensor], Tensor], points: Tensor, chunk: int | None = None, *, each: int = 1
) -> Tensor:
    """Apply a function of points [N ...] to so many of them at a time, or to as many as suit the device.

    each: how many points are in one of them, where `points` are cubes.
    """
    size = chunk or (CPU_CHUNK if points.device.type == "cpu" else CHUNK)
    return torch.cat([function(chunk) for chunk in torch.split(points, max(1, size // each))])
