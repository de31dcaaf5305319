"""Where things are in a picture: how a product is posed, and which face each pixel of a camera shows.

The camera stands in front of the product, towards +Y, and looks at the origin; how the product is
turned and tilted decides what the camera sees of it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from crm_cli.fragments import Raster
from crm_cli.learn.materials import Floats, Random
from crm_cli.learn.shapes import turn
from crm_cli.learn.subject import Subject
from crm_cli.records import expect

EXTENT = 1.6
"""Longest side of the front silhouette in the world: 0.8 of the frame, as the cut-outs have it."""

DEPTH_EXTENT = 1.9
"""Longest extent away from the camera that the world can hold."""

FLAT = 1e-6
"""What is thinner than this has no depth at all."""

CREASE_COS = float(np.cos(np.radians(50)))
"""Faces that bend less than this are shaded as one round surface."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Posed:
    """A product in the world frame of its photo.

    vertices float32 [V 3] inside [-1, 1]³; normals float32 [F 3 3] of each face's corners, in the world;
    up float32 [3] is where the product's own z axis points.
    """

    product: Subject
    vertices: Floats
    normals: Floats
    up: Floats

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Posed", vertices=(self.vertices, "V 3"), normals=(self.normals, "F 3 3"), up=(self.up, "3"))

    @property
    def faces(self) -> NDArray[np.int64]:
        """Faces of the product [F 3]."""
        return self.product.faces

    def facing(self, face_ids: NDArray[np.int64], sight: Floats) -> Floats:
        """Which side of faces [N] is seen along unit vectors towards the eye [N 3]: ±1, [N 1].

        Always the front where the product is closed.
        """
        if self.product.is_closed:
            return np.ones((1, 1), np.float32)
        a, b, c = (self.vertices[self.faces[face_ids, k]] for k in range(3))
        seen = np.einsum("nd,nd->n", np.cross(b - a, c - a), sight)[:, None]
        return np.where(seen < 0, np.float32(-1), np.float32(1))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hits:
    """What a picture shows at its N covered pixels.

    pixel int64 [N] indexes the flat picture; face int64 [N]; barycentric float32 [N 3] weighs its corners.
    """

    pixel: NDArray[np.int64]
    face: NDArray[np.int64]
    barycentric: Floats

    def blend(self, corners: Floats) -> Floats:
        """Interpolate what the corners of all faces carry: [F 3 K] gives [N K]."""
        b = self.barycentric
        picked = corners[self.face]
        result: Floats = picked[:, 0] * b[:, :1] + picked[:, 1] * b[:, 1:2] + picked[:, 2] * b[:, 2:]
        return result


def draw_pose(rng: Random) -> NDArray[np.float64]:
    """Draw how a product is turned, tilted towards the camera and rolled: a rotation [3 3].

    Most photos look nearly straight at the front, from a little above.
    """
    yaw = rng.uniform(-10, 10) if rng.uniform() < 0.6 else rng.uniform(-50, 50)
    elevation = rng.uniform(0, 30) if rng.uniform() < 0.75 else rng.uniform(-10, 50)
    roll = rng.uniform(-3, 3) if rng.uniform() < 0.3 else 0.0
    return turn("y", roll) @ turn("x", -elevation) @ turn("z", yaw)


def pose(product: Subject, rotation: NDArray[np.float64]) -> Posed:
    """Turn a product and fit it to the world: silhouette centred in front, longest side EXTENT."""
    vertices = product.vertices @ rotation.T
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scale = np.full(3, EXTENT / max(high[0] - low[0], high[2] - low[2]))
    scale[1] = min(scale[1], DEPTH_EXTENT / max(high[1] - low[1], FLAT))
    vertices = ((vertices - (low + high) / 2) * scale).astype(np.float32)
    return Posed(
        product=product,
        vertices=vertices,
        normals=corner_normals(vertices, product.faces),
        up=rotation[:, 2].astype(np.float32),
    )


def corner_normals(vertices: Floats, faces: NDArray[np.int64]) -> Floats:
    """Unit normals [F 3 3]: smooth over round surfaces, sharp at creases."""
    a, b, c = (vertices[faces[:, k]] for k in range(3))
    weighted = np.cross(b - a, c - a)  # twice the area long
    flat = weighted / np.maximum(np.linalg.norm(weighted, axis=1, keepdims=True), 1e-12)
    columns = [
        sum(np.bincount(faces[:, k], weighted[:, d], len(vertices)) for k in range(3)) for d in range(3)
    ]
    smooth = np.stack(columns, -1)
    smooth /= np.maximum(np.linalg.norm(smooth, axis=1, keepdims=True), 1e-12)
    corners = smooth[faces]  # [F 3 3]
    is_sharp = np.einsum("fkd,fd->fk", corners, flat) < CREASE_COS
    return np.where(is_sharp[..., None], flat[:, None], corners).astype(np.float32)


def draw(raster: Raster, positions: Floats, faces: NDArray[np.int64], *, height: int, width: int) -> Hits:
    """Rasterise pixel positions [V 3] (larger depth is nearer)."""
    fragments = raster.rasterize(
        torch.from_numpy(positions.astype(np.float32)), torch.from_numpy(faces), height=height, width=width
    )
    face = fragments.face.numpy().ravel()
    pixel = np.flatnonzero(face >= 0)
    return Hits(
        pixel=pixel, face=face[pixel], barycentric=fragments.barycentric.numpy().reshape(-1, 3)[pixel]
    )


def halve(picture: Floats) -> Floats:
    """Average 2 × 2 pixels: [H W C] becomes [H/2 W/2 C]."""
    height, width, channels = picture.shape
    halved: Floats = picture.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))
    return halved


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A pinhole on the +Y axis: pixels = centre + scale · (−x, −z) / (distance − y)."""

    distance: float
    scale: float
    centre: tuple[float, float]

    def place(self, vertices: Floats) -> Floats:
        """Place world points [V 3] on the picture: pixels right, pixels down, nearness.

        Nearness is the reciprocal distance, which is linear on screen.
        """
        nearness = 1 / (self.distance - vertices[:, 1])
        right = self.centre[0] - self.scale * vertices[:, 0] * nearness
        down = self.centre[1] - self.scale * vertices[:, 2] * nearness
        return np.stack([right, down, nearness], -1).astype(np.float32)

    def correct(self, hits: Hits, vertices: Floats, faces: NDArray[np.int64]) -> Hits:
        """Turn weights that are linear on screen into weights on the face itself."""
        nearness = (1 / (self.distance - vertices[:, 1]))[faces[hits.face]]
        weights = hits.barycentric * nearness
        weights /= weights.sum(axis=1, keepdims=True)
        return Hits(pixel=hits.pixel, face=hits.face, barycentric=weights.astype(np.float32))


def aim(
    vertices: Floats, *, fov_deg: float, size_px: int, fill: float, shift: tuple[float, float] = (0, 0)
) -> Camera:
    """Choose a camera that centres the silhouette's bounding box, its longest side fill · size_px."""
    distance = 1.0 / np.tan(np.radians(fov_deg) / 2) + float(vertices[:, 1].max()) * 0.5
    unit = Camera(distance=float(distance), scale=1.0, centre=(0, 0)).place(vertices)
    low, high = unit[:, :2].min(axis=0), unit[:, :2].max(axis=0)
    scale = fill * size_px / float((high - low).max())
    middle = size_px / 2 - scale * (low + high) / 2
    return Camera(
        distance=float(distance),
        scale=scale,
        centre=(float(middle[0]) + shift[0], float(middle[1]) + shift[1]),
    )
