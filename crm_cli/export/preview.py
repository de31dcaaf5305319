"""Pictures of the finished asset: from its front, then around it, in a soft studio light."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

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

SAMPLES = ((-0.25, -0.25, 0.0), (0.25, 0.25, 0.0))
"""Where in a pixel the object is looked at, from its middle. On a diagonal, so that an upright and a level
edge get as many shades as of four places in a square."""

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


class Preview(NamedTuple):
    """An asset from one side."""

    picture: Image.Image
    seen: Image.Image | None
    """The same half as large, with what was imagined marked; None where no photo was laid on."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Model:
    """What every picture of one asset shares, as tensors."""

    points: Tensor
    """[V 3], world directions, centred on the origin."""
    faces: Tensor
    corners: Tensor
    """[3F 5]: where each lies in the texture and its normal, face by face."""
    albedo: Tensor
    """[1 3 T T], linear light."""
    seen: Tensor | None
    """[1 1 T T], how far the photo shows each texel; None where none was laid on."""

    @classmethod
    def of(cls, textured: TexturedMesh) -> _Model:
        """Centre, decode and find normals."""
        points = torch.from_numpy(textured.mesh.vertices)
        uv = torch.from_numpy(textured.unwrapped.uv[textured.unwrapped.uv_faces])  # [F 3 2]
        return cls(
            points=points - (points.amin(dim=0) + points.amax(dim=0)) / 2,
            faces=torch.from_numpy(textured.mesh.faces),
            corners=torch.cat((uv, torch.from_numpy(corner_normals(textured.mesh))), dim=2).view(-1, 5),
            albedo=_albedo(textured.texture),
            seen=None if textured.seen is None else torch.from_numpy(textured.seen)[None, None],
        )


def render_previews(textured: TexturedMesh, raster: Raster, *, size_px: int, turns: int) -> list[Preview]:
    """Photograph an asset from `turns` sides at equal angles: front first, then around by its left side.

    The pictures are square, RGBA on transparency, and share one scale, so that nothing jumps when they
    are shown in turn.
    """
    model = _Model.of(textured)
    cameras = [_camera(2 * math.pi * turn / turns) for turn in range(turns)]
    placed = _frame([_look(model.points, camera) for camera in cameras], size_px)
    return [
        _photograph(model, raster, camera, positions, size_px)
        for camera, positions in zip(cameras, placed, strict=True)
    ]


def see_front(
    textured: TexturedMesh, raster: Raster, *, size_px: int, shift: tuple[float, float, float] = (0, 0, 0)
) -> tuple[Fragments, Tensor]:
    """What the front view sees of an asset: its fragments, and where in the texture each hit lies [1 N 2].

    shift: by which the asset is moved on the picture, in pixels right and down.
    """
    positions = project(torch.from_numpy(textured.mesh.vertices), VIEWS[FRONT], size_px)
    positions += positions.new_tensor(shift)
    faces, uv_faces = (torch.from_numpy(f) for f in (textured.mesh.faces, textured.unwrapped.uv_faces))
    flat = raster.rasterize(positions, faces, height=size_px, width=size_px)
    return flat, interpolate(torch.from_numpy(textured.unwrapped.uv), uv_faces, flat.hits())


def render_front(textured: TexturedMesh, raster: Raster, *, size_px: int) -> Image.Image:
    """Draw an asset as the front view sees it, RGBA: its pixels lie on those of the cut-out's canvas.

    It is not lit: the photo's light is in the texture already, and the two are to be compared.
    """
    albedo, film = _albedo(textured.texture), _Film(size_px)
    for shift in SAMPLES:
        flat, uv = see_front(textured, raster, size_px=size_px, shift=shift)
        film.expose(flat.covered, sample(albedo, uv)[0])
    return film.develop()


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


def _photograph(model: _Model, raster: Raster, camera: Tensor, positions: Tensor, side: int) -> Preview:
    """Draw, light and develop one picture from pixel positions [V 3]."""
    plain, marked = _Film(side), _Film(side)
    corners = torch.arange(len(model.corners)).view(-1, 3)
    violet = to_linear(torch.tensor(IMAGINED) / 255)
    for shift in SAMPLES:
        placed = positions + positions.new_tensor(shift)
        flat = raster.rasterize(placed, model.faces, height=side, width=side)
        hits = _in_perspective(flat.hits(), placed[:, 2], model.faces)
        carried = interpolate(model.corners, corners, hits)  # [1 N 5]
        uv, normals = carried[..., :2], normalize(carried[..., 2:], dim=-1)
        light, colour = _light(normals, camera)[0], sample(model.albedo, uv)[0]
        plain.expose(flat.covered, colour * light)
        if model.seen is not None:
            marked.expose(flat.covered, torch.lerp(violet, colour, sample(model.seen, uv)[0]) * light)
    return Preview(plain.develop(), None if model.seen is None else marked.halved().develop())


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


class _Film:
    """A square picture in the making: the light that fell on each pixel, and how much of it was hit."""

    def __init__(self, side: int) -> None:
        self._side = side
        self._sums = torch.zeros(side * side, 4)

    def expose(self, covered: Tensor, colour: Tensor) -> None:
        """Add what one sample of each pixel saw: linear colours [N 3] of the covered ones [S S]."""
        pixel = covered.view(-1).nonzero()[:, 0]
        self._sums.index_add_(
            0, pixel, torch.cat((colour, colour.new_ones(len(colour), 1)), dim=1) / len(SAMPLES)
        )

    def halved(self) -> _Film:
        """The same, half as large."""
        side = self._side // 2
        smaller = _Film(side)
        fine = self._sums.view(self._side, self._side, 4)[: 2 * side, : 2 * side]
        quarters = [fine[row::2, column::2] for row in range(2) for column in range(2)]
        smaller._sums = torch.stack(quarters).sum(dim=0).view(-1, 4) / 4
        return smaller

    def develop(self) -> Image.Image:
        """Turn it into an sRGB picture with soft edges: where it was partly hit it is partly transparent."""
        # Encoding is dear, and most of the picture is empty.
        shown = self._sums[:, 3].nonzero()[:, 0]
        light = self._sums[shown]
        rgb = _to_srgb(light[:, :3] / light[:, 3:])
        rgba = torch.zeros(len(self._sums), 4, dtype=torch.uint8)
        rgba[shown] = (torch.cat((rgb, light[:, 3:]), dim=1) * 255).round().byte()
        return Image.fromarray(rgba.view(self._side, self._side, 4).numpy(), "RGBA")


def _albedo(texture: NDArray[np.uint8]) -> Tensor:
    """Decode a texture [T T 3] to linear light, [1 3 T T]: 256 codes instead of millions of texels."""
    import cv2

    linear = to_linear(torch.arange(256).float() / 255).numpy()
    return torch.from_numpy(cv2.LUT(texture, linear)).permute(2, 0, 1)[None]


def _to_srgb(linear: Tensor) -> Tensor:
    """Encode linear light as sRGB in [0, 1]; brighter than white is white."""
    return to_srgb(linear.clamp(0, 1))
