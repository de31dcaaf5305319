"""Colour at surface points → texture: rasterise the charts, ask for each texel's colour, fill the rest.

Texel (row, column) of a T × T texture has its centre at u = (column + ½) / T, v = 1 − (row + ½) / T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate as resize
from torch.nn.functional import max_pool2d

from crm_cli.errors import PhotoError
from crm_cli.fragments import Fragments, Raster, interpolate
from crm_cli.mesh.inspect import corners
from crm_cli.mesh.projection import GRAZING_COS, Projection, facing, vertex_facing
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

STEPS = (2, 4)
"""Texels from one asked for to the next, where they are finer than what is to be seen. No more than the least
padding: what is read between two must lie in one chart."""

LEAST_SHARE = 0.25
"""A texel with less than this share of what surrounds it in its chart is asked for itself."""

ColourAt = Callable[[Tensor], Tensor]
"""sRGB colours float32 [N 3] in [0, 1] of world points float32 [N 3]."""


def bake(
    unwrapped: UnwrappedMesh,
    colour_at: ColourAt,
    raster: Raster,
    *,
    size_px: int,
    device: str = "cpu",
    photo: Projection | None = None,
    finest: float = 0.0,
) -> TexturedMesh:
    """Paint a mesh's texture with the colours of its surface.

    Every texel whose centre lies in a chart has the colour of its own surface point; every other texel
    takes the colour of the nearest one, so that no mip level mixes in a background.

    Args:
        unwrapped: The mesh and its charts.
        colour_at: Gives sRGB colours float32 [N 3] in [0, 1] (values outside are clipped) for world
            points float32 [N 3] on `device`.
        raster: Draws the charts.
        size_px: Side of the square texture.
        device: Where to draw and to ask.
        photo: What is laid over those colours where it shows the surface.
        finest: World units below which those colours show no detail. Where texels are finer, fewer points
            are asked for, and read between.

    Raises:
        PhotoError: No texel centre lies in a chart.
    """
    fragments = draw_charts(unwrapped, raster, size_px=size_px, device=device)
    vertices = torch.from_numpy(unwrapped.mesh.vertices).to(device)
    faces = torch.from_numpy(unwrapped.mesh.faces).to(device)
    hits = fragments.hits()
    points = interpolate(vertices, faces, hits)[0]  # [N 3]
    if not len(points):
        raise PhotoError("the texture has no charts", code="E_TEXTURE_EMPTY", kind="quality")
    texels = _Texels(
        unwrapped=unwrapped,
        colour_at=colour_at,
        raster=raster,
        points=points,
        pixel=fragments.covered.view(-1).nonzero()[:, 0],
        size_px=size_px,
        step=_step(unwrapped, finest, size_px=size_px),
    )
    if photo is None:
        colours, weights = texels.colours(), points.new_zeros(len(points))
    else:
        colours, weights = _lay_on(texels, hits, photo)
    codes = (colours.clamp(0, 1) * 255).round().byte().cpu().numpy()
    owner = _owners(fragments.covered.cpu().numpy())
    return TexturedMesh(
        unwrapped=unwrapped,
        texture=codes.take(owner, axis=0),
        seen=None if photo is None else weights.cpu().numpy().take(owner),
        seen_share=_share_of_area(unwrapped.mesh, hits.face[0].cpu().numpy(), weights.cpu().numpy()),
    )


def _ask(colour_at: ColourAt, points: Tensor) -> Tensor:
    """Colours [N 3] of points [N 3], asked for together: a lane that serves others may let each call wait."""
    return colour_at(points).detach().clamp(0, 1)


def _step(unwrapped: UnwrappedMesh, finest: float, *, size_px: int) -> int:
    """How many texels lie between two for which a colour is asked: a power of two that divides the side."""
    wanted = finest * texels_per_unit(unwrapped, size_px=size_px)
    return max(step for step in (1, *STEPS) if step == 1 or (step <= wanted and size_px % step == 0))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Texels:
    """The texels in charts, and how their colours are found."""

    unwrapped: UnwrappedMesh
    colour_at: ColourAt
    raster: Raster
    points: Tensor
    """Where on the surface each lies, [N 3]."""
    pixel: Tensor
    """Where in the texture, row by row, [N]."""
    size_px: int
    step: int
    """A colour is asked for once in a square of so many texels a side."""

    def colours(self, chosen: Tensor | None = None) -> Tensor:
        """Colours [M 3] of the chosen texels [M], or of all."""
        points, pixel = self.points, self.pixel
        if chosen is not None:
            points, pixel = points.index_select(0, chosen), pixel.index_select(0, chosen)
        if self.step == 1 or not len(points):
            return _ask(self.colour_at, points)
        coarse = self._coarse(pixel)  # [4 T/step T/step]
        fine = resize(coarse[None], scale_factor=self.step, mode="bilinear", align_corners=False)
        read = fine[0].view(4, -1).index_select(1, pixel)
        colours = (read[:3] / read[3:].clamp(min=LEAST_SHARE)).T
        # Of charts too narrow for a square's centre, and of corners.
        lone = (read[3] < LEAST_SHARE).nonzero()[:, 0]
        if len(lone):
            colours = colours.index_copy(0, lone, _ask(self.colour_at, points.index_select(0, lone)))
        return colours

    def _coarse(self, pixel: Tensor) -> Tensor:
        """Colours at the centres of squares, and 1 where there is one: [4 T/step T/step], else 0.

        Only squares from which one of the texels [M] will read are asked for.
        """
        side = self.size_px // self.step
        fragments = draw_charts(self.unwrapped, self.raster, size_px=side, device=str(pixel.device))
        wanted = torch.zeros(self.size_px**2, device=pixel.device)
        wanted[pixel] = 1.0
        squares = max_pool2d(wanted.view(1, self.size_px, self.size_px), self.step)
        is_read = max_pool2d(squares, 3, stride=1, padding=1)[0] > 0  # neighbours are read between
        hits = replace(fragments, face=torch.where(is_read, fragments.face, -1)).hits()
        mesh = self.unwrapped.mesh
        vertices, faces = (torch.from_numpy(part).to(pixel.device) for part in (mesh.vertices, mesh.faces))
        coarse = torch.zeros(4, side * side, device=pixel.device)
        at = (is_read & fragments.covered).view(-1).nonzero()[:, 0]
        if len(at):
            coarse[:3, at] = _ask(self.colour_at, interpolate(vertices, faces, hits)[0]).T
            coarse[3, at] = 1.0
        return coarse.view(4, side, side)


def _lay_on(texels: _Texels, hits: Fragments, photo: Projection) -> tuple[Tensor, Tensor]:
    """Colours of texels [N 3], the photo's where it counts and imagined elsewhere; how far it counts, [N].

    hits: their faces and weights, [1 N].
    """
    mesh, points = photo.mesh, texels.points
    faces = torch.from_numpy(mesh.faces).to(points.device)
    of_face, of_vertex = (
        torch.from_numpy(cosine).to(points) for cosine in (facing(mesh), vertex_facing(mesh))
    )
    colours, weights = points.new_zeros((len(points), 3)), points.new_zeros(len(points))
    front = (of_face[hits.face[0]] > GRAZING_COS).nonzero()[:, 0]
    front_hits = _picked(hits, front)
    # Round an edge the vertices' normals lean on to the side that looks away.
    squareness = torch.minimum(
        interpolate(of_vertex[:, None], faces, front_hits)[0, :, 0], of_face[front_hits.face[0]]
    )
    shown, share = photo.look(points.index_select(0, front), squareness)
    weights[front] = share
    # What is wholly seen, a quarter of all, need not be imagined.
    rest = (weights < 1).nonzero()[:, 0]
    levels = photo.level(partial(_ask, texels.colour_at), device=points.device)
    colours[rest] = texels.colours(rest) + interpolate(levels, faces, _picked(hits, rest))[0]
    colours[front] = torch.lerp(colours.index_select(0, front), shown, share[:, None])
    return colours, weights


def _picked(hits: Fragments, index: Tensor) -> Fragments:
    """Some [M] of the hits [1 N], in one row."""
    return Fragments(
        face=hits.face.index_select(1, index),
        barycentric=hits.barycentric.index_select(1, index),
        depth=hits.depth.index_select(1, index),
    )


def _share_of_area(mesh: Mesh, face: NDArray[np.int64], seen: NDArray[np.float32]) -> float:
    """Share of a surface that was seen, from the faces [N] of texels and what was seen of each [N].

    Texels of some charts show more than those of others, so each counts for what it shows.
    """
    texels = np.bincount(face, minlength=len(mesh.faces))
    mean = np.bincount(face, seen, minlength=len(mesh.faces)) / np.maximum(texels, 1)
    a, b, c = corners(mesh.vertices, mesh.faces)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1) * (texels > 0)
    return float((mean * area).sum() / max(area.sum(), np.finfo(np.float64).tiny))


def draw_charts(unwrapped: UnwrappedMesh, raster: Raster, *, size_px: int, device: str = "cpu") -> Fragments:
    """Find the triangle at every texel centre of a texture; triangles that overlap go to the lower face."""
    faces = torch.from_numpy(unwrapped.uv_faces).to(device)
    return raster.rasterize(
        _on_texture(unwrapped.uv, size_px).to(device), faces, height=size_px, width=size_px
    )


def texels_per_unit(unwrapped: UnwrappedMesh, *, size_px: int) -> float:
    """How many texels a world unit of the surface takes along its length, on average."""
    a, b, c = corners(unwrapped.mesh.vertices, unwrapped.mesh.faces)
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2
    p, q, r = (unwrapped.uv[unwrapped.uv_faces[:, k]].astype(np.float64) for k in range(3))
    u, v = q - p, r - p
    share = np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0]).sum() / 2
    return float(size_px * np.sqrt(share / max(area, np.finfo(np.float64).tiny)))


def fill_from_nearest(texture: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give every texel outside `covered` [T T] the colour of the nearest one inside. texture: [T T 3]."""
    filled: NDArray[np.uint8] = texture[covered].take(_owners(covered), axis=0)
    return filled


def _owners(covered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which of the texels inside `covered` [T T], counted row by row, is nearest to each: [T T].

    Nearest to a fiftieth of the distance: ways are added up of steps to neighbours and knight's moves.
    (OpenCV, distanceTransform; Borgefors 1986)
    """
    import cv2

    _, label = cv2.distanceTransformWithLabels(
        (~covered).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    number = np.zeros(int(label.max()) + 1, np.int64)
    number[label[covered]] = np.arange(np.count_nonzero(covered))
    owners: NDArray[np.int64] = number.take(label)
    return owners


@dataclass(frozen=True, slots=True, kw_only=True)
class UvUsage:
    """How well charts use their texture, counted at texel centres."""

    coverage: float
    """Share of the texture that lies in a chart."""
    overlap: float
    """Share of that which lies in more than one triangle."""


def uv_usage(unwrapped: UnwrappedMesh, raster: Raster, *, size_px: int) -> UvUsage:
    """Measure coverage and overlap of a mesh's charts.

    The faces are drawn once in their order and once in the opposite one, and the lower goes first: where
    both show the same face there is no other. A centre on an edge belongs to one face only, so neighbours
    do not count.
    """
    positions, faces = _on_texture(unwrapped.uv, size_px), torch.from_numpy(unwrapped.uv_faces)
    lowest, last = (
        raster.rasterize(positions, order, height=size_px, width=size_px).face.view(-1)
        for order in (faces, faces.flip(0))
    )
    hit = (lowest >= 0).nonzero()[:, 0]
    covered = len(hit)
    overlapped = int((lowest[hit] != len(faces) - 1 - last[hit]).sum())
    return UvUsage(coverage=covered / size_px**2, overlap=overlapped / max(covered, 1))


def _on_texture(uv: NDArray[np.float32], size_px: int) -> Tensor:
    """Turn texture coordinates [W 2] into pixel positions [W 3] at depth 0."""
    u, v = torch.from_numpy(uv).unbind(dim=1)
    return torch.stack((u * size_px, (1 - v) * size_px, torch.zeros_like(u)), dim=1)
