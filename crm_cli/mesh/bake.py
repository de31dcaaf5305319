"""Colour at surface points → texture: rasterise the charts, ask for each texel's colour, fill the rest.

Texel (row, column) of a T × T texture has its centre at u = (column + ½) / T, v = 1 − (row + ½) / T.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.errors import PhotoError
from crm_cli.fragments import Fragments, Raster, interpolate
from crm_cli.mesh.inspect import corners
from crm_cli.mesh.projection import Projection, facing, vertex_facing
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

POINTS_AT_ONCE = 1 << 17
"""Surface points asked for together: 128 floats of network activation each are 64 MB."""


def bake(
    unwrapped: UnwrappedMesh,
    colour_at: Callable[[Tensor], Tensor],
    raster: Raster,
    *,
    size_px: int,
    device: str = "cpu",
    photo: Projection | None = None,
) -> TexturedMesh:
    """Paint a mesh's texture with the colours of its surface.

    Every texel whose centre lies in a chart is asked for at its own surface point; every other texel
    takes the colour of the nearest one, so that no mip level mixes in a background.

    Args:
        unwrapped: The mesh and its charts.
        colour_at: Gives sRGB colours float32 [N 3] in [0, 1] (values outside are clipped) for world
            points float32 [N 3] on `device`.
        raster: Draws the charts.
        size_px: Side of the square texture.
        device: Where to draw and to ask.
        photo: What is laid over those colours where it shows the surface.

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
    if photo is None:
        colours, weights = _ask(colour_at, points), torch.zeros(len(points))
    else:
        colours, weights = _lay_on(points, hits, photo, colour_at)
    covered = fragments.covered.cpu().numpy()
    codes = (colours.clamp(0, 1) * 255).round().byte().cpu().numpy()
    owner = _owners(covered)
    return TexturedMesh(
        unwrapped=unwrapped,
        texture=codes.take(owner, axis=0),
        seen=None if photo is None else weights.cpu().numpy().take(owner),
        seen_share=_share_of_area(unwrapped.mesh, hits.face[0].cpu().numpy(), weights.cpu().numpy()),
    )


def _ask(colour_at: Callable[[Tensor], Tensor], points: Tensor) -> Tensor:
    """Colours [N 3] of points [N 3], so many at once."""
    colours = [colour_at(chunk).detach() for chunk in torch.split(points, POINTS_AT_ONCE)]
    return torch.cat(colours).clamp(0, 1)


def _lay_on(
    points: Tensor, hits: Fragments, photo: Projection, colour_at: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """Colours of points [N 3], the photo's where it counts and imagined elsewhere; how far it counts, [N].

    hits: the points' faces and weights, [1 N].
    """
    mesh = photo.mesh
    faces, vertices = (torch.from_numpy(part).to(points.device) for part in (mesh.faces, mesh.vertices))
    of_face, of_vertex = (
        torch.from_numpy(cosine).to(points) for cosine in (facing(mesh), vertex_facing(mesh))
    )
    levels = photo.level(_ask(colour_at, vertices))
    blended = interpolate(torch.cat((of_vertex[:, None], levels), dim=1), faces, hits)[0]  # [N 4]
    # Round an edge the vertices' normals lean on to the side that looks away.
    squareness = torch.minimum(blended[:, 0], of_face[hits.face[0]])
    colours, weights = photo.look(points, squareness)
    # What is wholly seen, a quarter of all, need not be imagined.
    rest = (weights < 1).nonzero()[:, 0]
    if len(rest):
        imagined = _ask(colour_at, points.index_select(0, rest)) + blended.index_select(0, rest)[:, 1:]
        mixed = torch.lerp(imagined, colours.index_select(0, rest), weights.index_select(0, rest)[:, None])
        colours = colours.index_copy(0, rest, mixed)
    return colours, weights


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
    filled: NDArray[np.uint8] = texture[_nearest(covered)]
    return filled


def _owners(covered: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Which of the texels inside `covered` [T T], counted row by row, is nearest to each: [T T]."""
    number = np.cumsum(covered).reshape(covered.shape) - 1  # right wherever a texel is inside
    row, column = _nearest(covered)
    owners: NDArray[np.int64] = number.ravel().take(row.astype(np.int64) * covered.shape[1] + column)
    return owners


def _nearest(covered: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Row and column [T T] of the texel inside `covered` [T T] that is nearest to each."""
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return row, column


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
