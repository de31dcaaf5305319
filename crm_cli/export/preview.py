"""Pictures of the finished asset: from its front, then around it, in a soft studio light."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn.functional import grid_sample, normalize

from crm_cli.export.scene import smooth_normals
from crm_cli.fragments import Fragments, Raster, interpolate, project
from crm_cli.frame import FRONT, VIEWS
from crm_cli.records import Mesh, TexturedMesh
from crm_cli.srgb import to_linear, to_srgb

ELEVATION_DEG = 15.0
"""Shows a little of the top, as product photos do."""

DISTANCE = 6.0
"""From the camera to the middle of the object, in world units: the perspective of a long lens."""

FILL = 0.92
"""Share of the picture that the object spans where it is largest."""

SUPERSAMPLING = 2

IMAGINED = (158, 96, 214)
"""A violet that few products have, sRGB: what was imagined, where a picture tells it from what was seen."""

CREASE_COS = math.cos(math.radians(35))
"""Corners whose vertex normal is further off their face's than this keep the face's: boxes have edges."""

KEY_LIGHT = (-0.45, 0.6, 0.66)
"""Direction to the key light in the camera's right, up and towards; it goes round with the camera."""

KEY, SKY, GROUND = 0.5, 0.62, 0.34
"""Linear light of the key on a surface that faces it, and of the hemisphere from above and from below.

A white surface that faces the camera reflects about 0.9: colours look as the texture has them.
"""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Model:
    """What every picture of one asset shares, as tensors."""

    points: Tensor
    """[V 3], world directions, centred on the origin."""
    faces: Tensor
    uv: Tensor
    uv_faces: Tensor
    normals: Tensor
    """[3F 3]: face by face, one a corner."""
    albedo: Tensor
    """[1 3 T T], linear light."""

    @classmethod
    def of(cls, textured: TexturedMesh, normals: NDArray[np.float32] | None = None) -> _Model:
        """Centre, decode and find normals, unless those of the corners [F 3 3] are known."""
        if normals is None:
            normals = corner_normals(textured.mesh)
        points = torch.from_numpy(textured.mesh.vertices)
        return cls(
            points=points - (points.amin(dim=0) + points.amax(dim=0)) / 2,
            faces=torch.from_numpy(textured.mesh.faces),
            uv=torch.from_numpy(textured.unwrapped.uv),
            uv_faces=torch.from_numpy(textured.unwrapped.uv_faces),
            normals=torch.from_numpy(normals).view(-1, 3),
            albedo=_albedo(textured.texture),
        )


def render_previews(
    textured: TexturedMesh,
    raster: Raster,
    *,
    size_px: int,
    turns: int,
    normals: NDArray[np.float32] | None = None,
) -> list[Image.Image]:
    """Photograph an asset from `turns` sides at equal angles: front first, then around by its left side.

    The pictures are square, RGBA on transparency, and share one scale, so that nothing jumps when they
    are shown in turn.

    normals: `corner_normals` of the mesh, where somebody has them already.
    """
    model = _Model.of(textured, normals)
    cameras = [_camera(2 * math.pi * turn / turns) for turn in range(turns)]
    placed = _frame([_look(model.points, camera) for camera in cameras], size_px * SUPERSAMPLING)
    return [
        _photograph(model, raster, camera, positions, size_px * SUPERSAMPLING)
        for camera, positions in zip(cameras, placed, strict=True)
    ]


def see_front(textured: TexturedMesh, raster: Raster, *, size_px: int) -> tuple[Fragments, Tensor]:
    """What the front view sees of an asset: its fragments, and where in the texture each hit lies [1 N 2]."""
    positions = project(torch.from_numpy(textured.mesh.vertices), VIEWS[FRONT], size_px)
    faces, uv_faces = (torch.from_numpy(f) for f in (textured.mesh.faces, textured.unwrapped.uv_faces))
    flat = raster.rasterize(positions, faces, height=size_px, width=size_px)
    return flat, interpolate(torch.from_numpy(textured.unwrapped.uv), uv_faces, flat.hits())


def render_front(textured: TexturedMesh, raster: Raster, *, size_px: int) -> Image.Image:
    """Draw an asset as the front view sees it, RGBA: its pixels lie on those of the cut-out's canvas.

    It is not lit: the photo's light is in the texture already, and the two are to be compared.
    """
    flat, uv = see_front(textured, raster, size_px=size_px * SUPERSAMPLING)
    return _develop(sample(_albedo(textured.texture), uv)[0], flat.covered)


def mark_imagined(textured: TexturedMesh) -> TexturedMesh:
    """The same asset with IMAGINED in place of every colour that no photo shows."""
    if textured.seen is None:
        return textured
    seen, texels = textured.seen.ravel(), textured.texture.reshape(-1, 3)
    marked = np.where(seen[:, None] > 0, texels, np.array(IMAGINED, np.uint8))
    between = np.flatnonzero((seen > 0) & (seen < 1))  # few
    share = seen[between, None]
    mixed = texels[between] * share + np.array(IMAGINED, np.float32) * (1 - share)
    marked[between] = np.round(mixed).astype(np.uint8)
    return replace(textured, texture=marked.reshape(textured.texture.shape))


def _camera(azimuth: float) -> Tensor:
    """Give a camera's axes in the world: rows right, up, towards it, [3 3]. A quarter turn shows the left."""
    lift = math.radians(ELEVATION_DEG)
    sin, cos = math.sin(azimuth), math.cos(azimuth)
    return torch.tensor(
        [
            [-cos, sin, 0.0],
            [-sin * math.sin(lift), -cos * math.sin(lift), math.cos(lift)],
            [sin * math.cos(lift), cos * math.cos(lift), math.sin(lift)],
        ]
    )


def _look(points: Tensor, camera: Tensor) -> Tensor:
    """Project centred points [V 3] on the plane through the centre: right, up, nearness, [V 3].

    Nearness is one over the distance along the line of sight: linear over a triangle's picture, as the
    rasteriser's depth must be.
    """
    seen = points @ camera.T
    nearness = 1 / (DISTANCE - seen[:, 2:])
    return torch.cat((seen[:, :2] * nearness * DISTANCE, nearness), dim=1)


def _frame(seen: list[Tensor], side: int) -> list[Tensor]:
    """Place projected points, each [V 3], on the pixels of pictures of one scale."""
    points = torch.cat(seen)
    top, bottom = points[:, 1].amax(), points[:, 1].amin()
    half = torch.maximum(points[:, 0].abs().amax(), (top - bottom) / 2)
    scale = FILL * side / 2 / half
    offset = torch.stack((half.new_zeros(()), (top + bottom) / 2))
    direction = torch.tensor([1.0, -1.0])  # rows count downwards
    return [
        torch.cat(((view[:, :2] - offset) * direction * scale + side / 2, view[:, 2:]), dim=1)
        for view in seen
    ]


def _photograph(model: _Model, raster: Raster, camera: Tensor, positions: Tensor, side: int) -> Image.Image:
    """Draw, light and develop one picture from pixel positions [V 3]."""
    flat = raster.rasterize(positions, model.faces, height=side, width=side)
    hits = _in_perspective(flat.hits(), positions[:, 2], model.faces)
    uv = interpolate(model.uv, model.uv_faces, hits)  # [1 N 2]
    normals = interpolate(model.normals, torch.arange(len(model.normals)).view(-1, 3), hits)
    colour = sample(model.albedo, uv) * _light(normalize(normals, dim=-1), camera)
    return _develop(colour[0], flat.covered)


def _in_perspective(fragments: Fragments, nearness: Tensor, faces: Tensor) -> Fragments:
    """Turn weights on the picture into weights on the surface: a near corner takes less of the picture."""
    corners = faces.index_select(0, fragments.face.clamp(min=0).view(-1))
    weights = fragments.barycentric * nearness.take(corners).view_as(fragments.barycentric)
    total = weights.sum(dim=-1, keepdim=True)
    return replace(fragments, barycentric=torch.where(total > 0, weights / total, weights))


def sample(texture: Tensor, uv: Tensor) -> Tensor:
    """Read a texture [1 C T T] at coordinates [H W 2] (origin bottom-left), bilinearly: [H W C]."""
    grid = torch.stack((uv[..., 0] * 2 - 1, 1 - uv[..., 1] * 2), dim=-1)[None]
    read = grid_sample(texture, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return read[0].permute(1, 2, 0)


def corner_normals(mesh: Mesh) -> NDArray[np.float32]:
    """Give every face's corners their unit normals [F 3 3]: smooth, but not across a crease."""
    corners = mesh.vertices[mesh.faces]
    flat = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    flat /= np.maximum(np.linalg.norm(flat, axis=1, keepdims=True), np.finfo(np.float32).tiny)
    smooth = smooth_normals(mesh.vertices, mesh.faces)[mesh.faces]
    is_crease = (smooth * flat[:, None]).sum(axis=-1, keepdims=True) < CREASE_COS
    return np.where(is_crease, flat[:, None], smooth).astype(np.float32)


def _light(normals: Tensor, camera: Tensor) -> Tensor:
    """Sum the light on surfaces with unit normals [H W 3]: linear, [H W 1]."""
    key = normalize(torch.tensor(KEY_LIGHT), dim=0) @ camera
    from_above = normals[..., 2:] * 0.5 + 0.5
    # Half-Lambert keeps the side away from the key from going flat.
    from_key = ((normals @ key)[..., None] * 0.5 + 0.5).square()
    return GROUND + (SKY - GROUND) * from_above + KEY * from_key


def _develop(colour: Tensor, covered: Tensor) -> Image.Image:
    """Shrink the linear colours [N 3] of the covered pixels [H W] to an sRGB picture with soft edges."""
    height, width = (side // SUPERSAMPLING for side in covered.shape)
    sharp = torch.zeros(covered.numel(), 4)
    sharp[covered.view(-1).nonzero()[:, 0]] = torch.cat((colour, colour.new_ones(len(colour), 1)), dim=1)
    fine = sharp.view(height, SUPERSAMPLING, width, SUPERSAMPLING, 4)
    cells = [fine[:, row, :, column] for row in range(SUPERSAMPLING) for column in range(SUPERSAMPLING)]
    small = torch.stack(cells).sum(dim=0).view(-1, 4) / len(cells)  # [S² 4]
    # Encoding is dear, and most of the picture is empty.
    shown = small[:, 3].nonzero()[:, 0]
    small = small[shown]
    rgb = _to_srgb(small[:, :3] / small[:, 3:].clamp(min=1 / SUPERSAMPLING**2))
    rgba = torch.zeros(height * width, 4, dtype=torch.uint8)
    rgba[shown] = (torch.cat((rgb, small[:, 3:]), dim=1) * 255).round().byte()
    return Image.fromarray(rgba.view(height, width, 4).numpy(), "RGBA")


def _albedo(texture: NDArray[np.uint8]) -> Tensor:
    """Decode a texture [T T 3] to linear light, [1 3 T T]: 256 codes instead of millions of texels."""
    import cv2

    linear = to_linear(torch.arange(256).float() / 255).numpy()
    return torch.from_numpy(cv2.LUT(texture, linear)).permute(2, 0, 1)[None]


def _to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light as sRGB in [0, 1]; brighter than white is white."""
    return to_srgb(linear.clamp(0, 1))
