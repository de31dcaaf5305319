"""Pictures of a mesh that can be differentiated: by its vertices, and by what its surface carries.

Which face a pixel shows is found by a rasteriser as everywhere else; where on that face its centre lies is
then computed once more from the corners, in torch, and silhouettes are blended where they pass between
pixels. nvdiffrast does all of that itself, for those whose licence allows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from crm_cli.fragments import Raster
from crm_cli.learn.silhouettes import blend, find_crossings
from crm_cli.records import expect

THIN_PX2 = 1e-2
"""Twice the area of a face on screen below which its weights are taken for constant: their gradients grow
with its reciprocal, and what such a face shows is no pixel's worth."""

NEAREST, FARTHEST = 0.5, 16.0
"""Distances from the viewer between which nvdiffrast draws, in world units."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Eyes:
    """K pinholes that look at the origin.

    axes [K 3 3]: world directions of growing column, of shrinking row, and towards the viewer, as in
    frame.View. distance [K] of the viewer from the origin. zoom [K]: half a picture's side over the extent
    that it shows at distance 1, that is 1 / tan(fov / 2).
    """

    axes: Tensor
    distance: Tensor
    zoom: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Eyes", axes=(self.axes, "K 3 3"), distance=(self.distance, "K"), zoom=(self.zoom, "K"))

    def place(self, vertices: Tensor, size_px: int) -> Tensor:
        """Place world points [V 3] on pictures of S × S: [K V 3], pixels right and down, and nearness.

        Nearness is the reciprocal of the distance along the line of sight, which is linear on screen. Points
        have to lie in front of the viewer.
        """
        right, up, toward = (vertices @ self.axes.mT).unbind(-1)  # [K V]
        nearness = 1 / (self.distance[:, None] - toward)
        half = size_px / 2
        scale = half * self.zoom[:, None] * nearness
        return torch.stack((half + scale * right, half - scale * up, nearness), -1)


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Drawing:
    """What K pictures of one mesh show at their pixel centres.

    face: int64 [K S S], -1 where nothing is. barycentric: [K S S 3], weights of the face's corners on the
    face itself, zero where nothing is, differentiable in the places of the vertices.
    """

    face: Tensor
    barycentric: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Drawing", face=(self.face, "K S S"), barycentric=(self.barycentric, "K S S 3"))

    @property
    def covered(self) -> Tensor:
        """Where something is: bool [K S S]."""
        return self.face >= 0

    def interpolate(self, attributes: Tensor, faces: Tensor) -> Tensor:
        """Blend what corners carry, [V C] or [K V C] for each picture its own; [K S S C], else zero."""
        shared = attributes.ndim == 2
        hit = self.covered.view(-1).nonzero()[:, 0]  # [N]
        corners = faces.index_select(0, self.face.view(-1).index_select(0, hit))  # [N 3]
        if not shared:
            corners = corners + (hit // self.face[0].numel() * attributes.shape[1])[:, None]
            attributes = attributes.flatten(0, 1)
        picked = attributes.index_select(0, corners.view(-1)).view(len(hit), 3, attributes.shape[1])
        weights = self.barycentric.view(-1, 3).index_select(0, hit)
        values = (weights[..., None] * picked).sum(1)
        blended = values.new_zeros(self.face.numel(), values.shape[1]).index_copy(0, hit, values)
        return blended.view(*self.face.shape, -1)


class Renderer(Protocol):
    """Draws one mesh from several viewers; places are those of `Eyes.place`."""

    def draw(self, placed: Tensor, faces: Tensor, *, size_px: int) -> Drawing:
        """Find what every pixel centre shows. placed: [K V 3]; faces: int64 [F 3], both windings."""

    def smooth(self, pictures: Tensor, drawing: Drawing, placed: Tensor, faces: Tensor) -> Tensor:
        """Blend pictures [K S S C] of a drawing across its silhouettes, differentiable in their places."""


class OwnRenderer:
    """The renderer of this package, on the CPU and on CUDA."""

    def __init__(self, raster: Raster) -> None:
        """raster: what finds the visible faces."""
        self._raster = raster

    def draw(self, placed: Tensor, faces: Tensor, *, size_px: int) -> Drawing:
        """Find what every pixel centre shows; see `Renderer`."""
        found = [
            self._raster.rasterize(view, faces, height=size_px, width=size_px) for view in placed.detach()
        ]
        face = torch.stack([fragments.face for fragments in found])
        fixed = torch.stack([fragments.barycentric for fragments in found])
        hit = (face >= 0).view(-1).nonzero()[:, 0]
        view, pixel = hit // size_px**2, hit % size_px**2
        corners = faces[face.view(-1)[hit]] + view[:, None] * placed.shape[1]  # [N 3]
        at = placed.flatten(0, 1).index_select(0, corners.view(-1)).view(-1, 3, 3)
        centre = torch.stack((pixel % size_px, pixel // size_px), -1) + 0.5
        weights = _weigh(at, centre.to(at), fixed.view(-1, 3)[hit].to(at))
        barycentric = weights.new_zeros(face.numel(), 3).index_copy(0, hit, weights)
        return Drawing(face=face, barycentric=barycentric.view(*face.shape, 3))

    def smooth(self, pictures: Tensor, drawing: Drawing, placed: Tensor, faces: Tensor) -> Tensor:
        """Blend pictures across silhouettes; see `Renderer`."""
        with torch.no_grad():
            nearness = 1 / drawing.interpolate(1 / placed[..., 2:], faces)[..., 0]
        return blend(pictures, find_crossings(placed, faces, nearness, is_empty=~drawing.covered))


def _weigh(corners: Tensor, centre: Tensor, fixed: Tensor) -> Tensor:
    """Weights [N 3] on faces of what lies at pixel centres [N 2].

    corners: [N 3 3], as placed. fixed: [N 3], the same on screen from rounded corners, for thin faces.
    """
    from_centre = corners[..., :2] - centre[:, None]
    one, other = from_centre.roll(-1, 1), from_centre.roll(-2, 1)
    on_screen = one[..., 0] * other[..., 1] - one[..., 1] * other[..., 0]  # [N 3], sums to twice the area
    is_thin = on_screen.detach().sum(1, keepdim=True).abs() < THIN_PX2
    on_screen = torch.where(is_thin, fixed, on_screen)
    on_face = on_screen * corners[..., 2]
    return on_face / on_face.sum(1, keepdim=True)


class NvdiffrastRenderer:
    """The renderer that the published networks were trained with (arXiv 2011.03277).

    Written against nvdiffrast 0.4. float32 and CUDA only; its licence forbids commercial use, so nothing
    picks it unasked. It blends only across edges of faces that a pixel shows.
    """

    def __init__(self) -> None:
        import nvdiffrast.torch

        self._library = nvdiffrast.torch
        self._contexts: dict[torch.device, Any] = {}

    def draw(self, placed: Tensor, faces: Tensor, *, size_px: int) -> Drawing:
        """Find what every pixel centre shows; see `Renderer`."""
        if not len(faces):  # which it refuses
            face = torch.full((len(placed), size_px, size_px), -1, device=placed.device)
            return Drawing(face=face, barycentric=placed.new_zeros(*face.shape, 3))
        if placed.device not in self._contexts:
            self._contexts[placed.device] = self._library.RasterizeCudaContext(device=placed.device)
        found, _ = self._library.rasterize(
            self._contexts[placed.device],
            _clip_space(placed, size_px),
            faces.int().contiguous(),
            resolution=[size_px, size_px],
            grad_db=False,
        )
        u, v, _, number = found.unbind(-1)
        covered = number > 0
        barycentric = torch.stack((u, v, 1 - u - v), -1) * covered[..., None]
        return Drawing(face=torch.where(covered, number.long() - 1, -1), barycentric=barycentric)

    def smooth(self, pictures: Tensor, drawing: Drawing, placed: Tensor, faces: Tensor) -> Tensor:
        """Blend pictures across silhouettes; see `Renderer`."""
        if not len(faces):
            return pictures
        size_px = pictures.shape[1]
        # It reads which face is where, and how near: the barycentrics play no part.
        with torch.no_grad():
            distance = drawing.interpolate(1 / placed[..., 2:], faces)[..., 0]
            depth = torch.where(drawing.covered, _depth(1 / distance), 0.0)
            found = torch.cat(
                (drawing.barycentric[..., :2], depth[..., None], (drawing.face + 1)[..., None].float()), -1
            )
        clip, triangles = _clip_space(placed, size_px), faces.int().contiguous()
        smoothed: Tensor = self._library.antialias(pictures.contiguous(), found, clip, triangles)
        return smoothed


def _depth(nearness: Tensor) -> Tensor:
    """OpenGL's z / w, -1 at NEAREST and 1 at FARTHEST: linear in nearness."""
    return 1 - 2 * (nearness - 1 / FARTHEST) / (1 / NEAREST - 1 / FARTHEST)


def _clip_space(placed: Tensor, size_px: int) -> Tensor:
    """Turn places [K V 3] into OpenGL clip coordinates [K V 4]; its first row is at y = -1, ours at 0."""
    x, y, nearness = placed.unbind(-1)
    w = 1 / nearness
    z = _depth(nearness) * w
    return torch.stack(((x * (2 / size_px) - 1) * w, (y * (2 / size_px) - 1) * w, z, w), -1).contiguous()
