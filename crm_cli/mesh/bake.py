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
from crm_cli.records import TexturedMesh, UnwrappedMesh

POINTS_AT_ONCE = 1 << 17
"""Surface points asked for together: 128 floats of network activation each are 64 MB."""


def bake(
    unwrapped: UnwrappedMesh,
    colour_at: Callable[[Tensor], Tensor],
    raster: Raster,
    *,
    size_px: int,
    device: str = "cpu",
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

    Raises:
        PhotoError: No texel centre lies in a chart.
    """
    fragments = draw_charts(unwrapped, raster, size_px=size_px, device=device)
    vertices = torch.from_numpy(unwrapped.mesh.vertices).to(device)
    faces = torch.from_numpy(unwrapped.mesh.faces).to(device)
    points = interpolate(vertices, faces, fragments.hits())[0]  # [N 3]
    if not len(points):
        raise PhotoError("the texture has no charts", code="E_TEXTURE_EMPTY", kind="quality")
    colours = torch.cat([colour_at(chunk) for chunk in torch.split(points, POINTS_AT_ONCE)])
    covered = fragments.covered.cpu().numpy()
    texture = np.zeros((size_px, size_px, 3), np.uint8)
    texture[covered] = (colours.detach().clamp(0, 1) * 255).round().byte().cpu().numpy()
    return TexturedMesh(unwrapped=unwrapped, texture=fill_from_nearest(texture, covered))


def draw_charts(unwrapped: UnwrappedMesh, raster: Raster, *, size_px: int, device: str = "cpu") -> Fragments:
    """Find the triangle at every texel centre of a texture; triangles that overlap go to the lower face."""
    faces = torch.from_numpy(unwrapped.uv_faces).to(device)
    return raster.rasterize(
        _on_texture(unwrapped.uv, size_px).to(device), faces, height=size_px, width=size_px
    )


def fill_from_nearest(texture: NDArray[np.uint8], covered: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Give every texel outside `covered` [T T] the colour of the nearest one inside. texture: [T T 3]."""
    from scipy.ndimage import distance_transform_edt

    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    filled: NDArray[np.uint8] = texture[row, column]
    return filled


@dataclass(frozen=True, slots=True, kw_only=True)
class UvUsage:
    """How well charts use their texture, counted at texel centres."""

    coverage: float
    """Share of the texture that lies in a chart."""
    overlap: float
    """Share of that which lies in more than one triangle."""


def uv_usage(unwrapped: UnwrappedMesh, raster: Raster, *, size_px: int) -> UvUsage:
    """Measure coverage and overlap of a mesh's charts.

    The faces are stacked once in their order and once in the opposite one: where both stacks show the
    same face there is no other. A centre on an edge belongs to one face only, so neighbours do not count.
    """
    positions = _on_texture(unwrapped.uv[unwrapped.uv_faces].reshape(-1, 2), size_px)  # faces share no corner
    faces = torch.arange(len(positions)).view(-1, 3)
    seen = []
    for order in (1.0, -1.0):
        positions[:, 2] = order * (torch.arange(len(positions)) // 3)
        seen.append(raster.rasterize(positions, faces, height=size_px, width=size_px).face)
    covered = int((seen[0] >= 0).sum())
    overlapped = int((seen[0] != seen[1]).sum())
    return UvUsage(coverage=covered / size_px**2, overlap=overlapped / max(covered, 1))


def _on_texture(uv: NDArray[np.float32], size_px: int) -> Tensor:
    """Turn texture coordinates [W 2] into pixel positions [W 3] at depth 0."""
    u, v = torch.from_numpy(uv).unbind(dim=1)
    return torch.stack((u * size_px, (1 - v) * size_px, torch.zeros_like(u)), dim=1)
