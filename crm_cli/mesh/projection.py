"""The photo laid on the surface it shows: at its own resolution, and on nothing that it did not see.

What the photo's camera sees is decided by the finished surface. A point takes the photo's colour where
it faces the camera, nothing stands before it, and it lies within the matte; towards grazing angles, the
matte's border and edges of what hides something, the photo gives way to the imagined colours, which are
levelled to it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import grid_sample

from crm_cli.fragments import Raster
from crm_cli.frame import FRONT, VIEWS
from crm_cli.mesh.camera import SOLID, Aim
from crm_cli.records import Crop, Mesh
from crm_cli.srgb import to_linear, to_srgb

DEPTH_PX = 512
"""Side of the picture in which is looked up what stands before what: a pixel is 0.004 units."""

HIDDEN = 0.025
"""World units behind the nearest surface from which a point is hidden: a pixel at 80 degrees, and
a depth is looked up half a pixel off at most."""

GRAZING_COS, SQUARE_COS = 0.2, 0.45
"""The photo gives way from 63 degrees between surface and line of sight on, and counts for nothing beyond 78:
there a pixel is smeared over five of its own widths."""

EDGE, JUMP = 0.012, 0.05
"""How far before an edge that hides something the photo counts for nothing, and how deep the step must be, in
world units. The surface is cut from views of 256 px: its edges lie up to a pixel and a half off."""

ERODED, FEATHER = 0.25, 2.0
"""Pixels of a canvas of 512 within the matte's border where the photo begins to count, and over which it
comes to count fully."""

FRINGE_PX = 1.5
"""Pixels of the cut-out within the matte's border whose colour may be mixed with the background's."""

OVERSAMPLING = 1.5
"""Pixels of the picture a texel: charts differ in density, and reading between pixels costs sharpness."""

LEVEL_PX = 256
"""Colours are levelled by what the photo shows at the size of the views."""

FADE = 0.4
"""World units over which a difference of colour at the border of what was seen is evened out."""

MAX_LEVEL = 0.1
"""What levelling may add to a channel: more is another material, not another light."""

SMOOTH = 0.05
"""World units over which that difference is averaged first, so that no print is carried on, only light."""

EQUILATERAL = 3**-0.5
"""Cotangent weight of an edge between two equilateral triangles, which the surface is nearly made of."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Projection:
    """A photo before a finished surface."""

    mesh: Mesh
    aim: Aim
    picture: Tensor
    """sRGB [1 3 P P] in [0, 1], the cut-out's square; the subject's colours run on over its outline."""
    small: Tensor
    """The same at the size of the views."""
    sight: Tensor
    """[1 2 D D]: depth of the nearest surface (−2 where there is none), how far the photo counts there."""

    def look(self, points: Tensor, facing: Tensor) -> tuple[Tensor, Tensor]:
        """What the photo shows at points [N 3], [N 3], and how far it counts, [N] in [0, 1].

        facing: [N], cosine between surface and line of sight, negative where it looks away.
        """
        canvas = self.aim.canvas(points)
        depth = _read(self.sight[:, :1], canvas, mode="nearest")[:, 0]
        trust = _read(self.sight[:, 1:], canvas)[:, 0]
        nearness = points @ points.new_tensor(VIEWS[FRONT].toward, dtype=points.dtype)
        weights = trust * _ramp(facing, GRAZING_COS, SQUARE_COS) * (nearness > depth - HIDDEN)
        # Reading between ones gives a little less.
        return _read(self.picture, canvas), torch.where(weights > 1 - 1e-4, 1.0, weights)

    def level(self, imagined: Callable[[Tensor], Tensor], *, device: torch.device) -> Tensor:
        """How much to add to the imagined colours at each vertex, [V 3], so that they meet the photo's.

        imagined: colours [N 3] of points [N 3], on that device. Where the photo counts it is the difference;
        from there it runs on over the surface, evenly and fading: a screened membrane between what was seen.
        (Pérez et al. 2003, "Poisson image editing", with a term that pulls to zero)
        """
        points = torch.from_numpy(self.mesh.vertices).to(device)
        _, weights = self.look(points, torch.from_numpy(vertex_facing(self.mesh)).to(points))
        seen = (weights > 0).nonzero()[:, 0]
        difference = torch.zeros_like(points)
        if len(seen):
            known = points.index_select(0, seen)
            shown = _read(self.small, self.aim.canvas(known))
            difference[seen] = (shown - imagined(known)).clamp(-MAX_LEVEL, MAX_LEVEL)
        levels = _membrane(self.mesh, difference.cpu().numpy(), weights.cpu().numpy())
        return torch.from_numpy(levels).to(points)


def project_photo(
    mesh: Mesh,
    rgb: NDArray[np.uint8],
    alpha: NDArray[np.float32],
    crop: Crop,
    aim: Aim,
    raster: Raster,
    *,
    texels_per_unit: float,
) -> Projection:
    """Set a photo before a finished surface.

    Args:
        mesh: The surface.
        rgb: The photo [H W 3], sRGB.
        alpha: Of the cut-out [S S], in [0, 1].
        crop: The square of the photo that became the cut-out.
        aim: The photo's camera.
        raster: Draws what the camera sees.
        texels_per_unit: How dense the texture is. A photo that is much denser is averaged first, in linear
            light, so that nothing of it falls between texels.
    """
    wanted = int(2 * aim.scale * texels_per_unit * OVERSAMPLING)
    size_px = max(2, min(wanted, round(crop.side_px)))
    picture = _without_fringe(cut_square(rgb, crop, size_px), alpha)
    return Projection(
        mesh=mesh,
        aim=aim,
        picture=_as_planes(picture),
        small=_as_planes(_resized(picture, LEVEL_PX)),
        sight=_sight(mesh, alpha, aim, raster),
    )


def cut_square(rgb: NDArray[np.uint8], crop: Crop, size_px: int) -> NDArray[np.float32]:
    """The square of a photo [H W 3] that became its cut-out: sRGB [P P 3] in [0, 1].

    Beyond the photo its border goes on. One channel at a time: all would take several times the memory.
    """
    from PIL import Image

    x, y = crop.centre_x - crop.side_px / 2, crop.centre_y - crop.side_px / 2
    column, row, side = int(np.floor(x)), int(np.floor(y)), int(np.ceil(crop.side_px)) + 1
    rows, columns = (
        np.clip(np.arange(start, start + side), 0, count - 1)
        for start, count in zip((row, column), rgb.shape, strict=False)
    )
    box = (x - column, y - row, x - column + crop.side_px, y - row + crop.side_px)
    picture = np.zeros((size_px, size_px, 3), np.float32)
    for channel in range(3):
        window = _LINEAR[rgb[rows[:, None], columns, channel]]
        # Its kernels widen when they shrink, so that every pixel of the photo counts.
        small = Image.fromarray(window).resize((size_px, size_px), Image.Resampling.BICUBIC, box=box)
        picture[..., channel] = to_srgb(np.clip(np.asarray(small), 0, 1))
    return picture


def facing(mesh: Mesh) -> NDArray[np.float32]:
    """Cosine [F] between each face's normal and the line of sight of the front; 0 for one without area."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    lengths = np.maximum(np.linalg.norm(normals, axis=1), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float32] = (normals @ np.array(VIEWS[FRONT].toward) / lengths).astype(np.float32)
    return cosines


def vertex_facing(mesh: Mesh) -> NDArray[np.float32]:
    """The same at vertices, [V]: of the sum of the normals around each, every face by its area."""
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    normals = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    count = len(mesh.vertices)
    at = mesh.faces.ravel()
    sums = np.stack([np.bincount(at, np.repeat(normals[:, k], 3), count) for k in range(3)], axis=1)
    lengths = np.maximum(np.linalg.norm(sums, axis=1), np.finfo(np.float64).tiny)
    cosines: NDArray[np.float32] = (sums @ np.array(VIEWS[FRONT].toward) / lengths).astype(np.float32)
    return cosines


def _sight(mesh: Mesh, alpha: NDArray[np.float32], aim: Aim, raster: Raster) -> Tensor:
    """Depth of the nearest surface and how far the photo counts there, [1 2 D D]."""
    import cv2

    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    seen = raster.rasterize(aim.place(vertices, DEPTH_PX), faces, height=DEPTH_PX, width=DEPTH_PX)
    depth = torch.where(seen.covered, seen.depth, -2.0).numpy()
    # How far a step is from the edge above it, and a soft border on both sides: the surface's edge may lie
    # either way of the photo's.
    reach_px = round(EDGE * DEPTH_PX / 2)
    window = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (2 * reach_px + 1, 2 * reach_px + 1))
    is_below = (cv2.dilate(depth, window) - depth > JUMP) & (depth > -2)
    below = cv2.blur(is_below.astype(np.float32), (reach_px, reach_px))
    within_px = cv2.distanceTransform(_solid(alpha, DEPTH_PX).astype(np.uint8), cv2.DIST_L2, 5)
    matte = np.clip((within_px * (512 / DEPTH_PX) - ERODED) / FEATHER, 0, 1)
    trust = matte * (1 - below)
    return torch.from_numpy(np.stack([depth, trust]).astype(np.float32))[None]


def _solid(alpha: NDArray[np.float32], size_px: int) -> NDArray[np.bool_]:
    """Where a cut-out's alpha, at another size, says subject: [P P]."""
    import cv2

    way = cv2.INTER_AREA if size_px < len(alpha) else cv2.INTER_LINEAR
    solid: NDArray[np.bool_] = cv2.resize(alpha, (size_px, size_px), interpolation=way) > SOLID
    return solid


def _without_fringe(picture: NDArray[np.float32], alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """The picture [P P 3] with the colours well within the outline carried on over it and beyond.

    Parts too thin to have anything well within keep theirs.
    """
    import cv2

    solid = _solid(alpha, len(picture))
    # Two pixels at least: making the picture smaller has mixed as many.
    margin_px = max(FRINGE_PX * len(picture) / len(alpha), 2.0)
    core = cv2.distanceTransform(solid.astype(np.uint8), cv2.DIST_L2, 5) > margin_px
    way_px = cv2.distanceTransform((~core).astype(np.uint8), cv2.DIST_L2, 5)
    core |= solid & (way_px > 1.5 * margin_px + 1)
    if not core.any():
        return picture
    _, label = cv2.distanceTransformWithLabels(
        (~core).astype(np.uint8), cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL
    )
    colour_of = np.zeros((int(label.max()) + 1, 3), np.float32)
    colour_of[label[core]] = picture[core]
    carried: NDArray[np.float32] = np.where(core[..., None], picture, colour_of[label])
    return carried


def _membrane(mesh: Mesh, values: NDArray[np.float32], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Values [V 3] where they are known, smoothed over SMOOTH, and carried on from there, fading over FADE.

    weights: [V], 1 where a value is known, 0 where it is not.
    """
    from scipy import sparse
    from scipy.sparse.linalg import LinearOperator, cg

    count = len(mesh.vertices)
    ends = np.concatenate([mesh.faces[:, [k, (k + 1) % 3]] for k in range(3)])
    # Each edge is run along by two faces, once in either direction.
    beside = sparse.coo_array(
        (np.full(len(ends), EQUILATERAL), (ends[:, 0], ends[:, 1])), (count, count)
    ).tocsr()
    corners = mesh.vertices[mesh.faces].astype(np.float64)
    area = np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1) / 2
    share = np.bincount(mesh.faces.ravel(), np.repeat(area / 3, 3), count)
    known = share * weights / SMOOTH**2
    pull = beside.sum(axis=1) + known + share * (1 - weights) / FADE**2 + 1e-9
    matrix = (sparse.diags_array(pull) - beside).tocsr().astype(np.float32)
    inverse = (1 / pull).astype(np.float32)
    scale = LinearOperator((count, count), matvec=lambda rest: inverse * rest, dtype=np.float32)
    carried = np.zeros((count, 3), np.float32)
    for channel in range(3):
        # A fiftieth of the difference cannot be seen.
        right = (known * values[:, channel]).astype(np.float32)
        carried[:, channel] = cg(matrix, right, rtol=2e-2, maxiter=100, M=scale)[0]
    return carried


def _read(maps: Tensor, canvas: Tensor, *, mode: str = "bilinear") -> Tensor:
    """Values [N C] of maps [1 C P P] at places [N 2] of the canvas."""
    read = grid_sample(
        maps.to(canvas), canvas[None, None], mode=mode, padding_mode="border", align_corners=False
    )
    return read[0, :, 0].T


def _ramp(values: Tensor, low: float, high: float) -> Tensor:
    """0 up to low, 1 from high on, smooth at both."""
    share = ((values - low) / (high - low)).clamp(0, 1)
    return share * share * (3 - 2 * share)


def _as_planes(picture: NDArray[np.float32]) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))[None]


def _resized(picture: NDArray[np.float32], size_px: int) -> NDArray[np.float32]:
    import cv2

    way = cv2.INTER_AREA if size_px < len(picture) else cv2.INTER_LINEAR
    resized: NDArray[np.float32] = cv2.resize(picture, (size_px, size_px), interpolation=way)
    return resized


_LINEAR = to_linear(np.arange(256) / 255).astype(np.float32)
"""Linear light of every 8-bit sRGB code."""

__all__ = ["Projection", "cut_square", "project_photo"]
