"""Photographs of products: perspective pictures under studio light, for training and for trying things out.

The camera stands in front of the product, towards +Y, and looks at the origin; how the product is
turned and tilted decides what the camera sees of it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from crm_cli.fragments import Raster
from crm_cli.learn.materials import Random
from crm_cli.learn.products import Product, colour
from crm_cli.learn.shapes import turn
from crm_cli.records import expect

Floats = NDArray[np.float32]
Background = Literal["white", "grey", "coloured", "gradient", "transparent"]

EXTENT = 1.6
"""Longest side of the front silhouette in the world: 0.8 of the frame, as the cut-outs have it."""

DEPTH_EXTENT = 1.9
"""Longest extent away from the camera that the world can hold."""

CREASE_COS = float(np.cos(np.radians(50)))
"""Faces that bend less than this are shaded as one round surface."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Posed:
    """A product in the world frame of its photo.

    vertices float32 [V 3] inside [-1, 1]³; normals float32 [F 3 3] of each face's corners, in the world;
    up float32 [3] is where the product's own z axis points.
    """

    product: Product
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


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Hits:
    """What a picture shows at its covered pixels: flat pixel index [N], face [N], weights of its corners [N 3]."""

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
    elevation = rng.uniform(0, 30) if rng.uniform() < 0.75 else rng.uniform(-5, 40)
    roll = rng.uniform(-3, 3) if rng.uniform() < 0.3 else 0.0
    return turn("y", roll) @ turn("x", -elevation) @ turn("z", yaw)


def pose(product: Product, rotation: NDArray[np.float64]) -> Posed:
    """Turn a product and fit it to the world: silhouette centred in front, longest side EXTENT."""
    vertices = product.vertices @ rotation.T
    low, high = vertices.min(axis=0), vertices.max(axis=0)
    scale = np.full(3, EXTENT / max(high[0] - low[0], high[2] - low[2]))
    scale[1] = min(scale[1], DEPTH_EXTENT / (high[1] - low[1]))
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
    return picture.reshape(height // 2, 2, width // 2, 2, channels).mean(axis=(1, 3))


# --- Camera -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Camera:
    """A pinhole on the +Y axis: pixels = centre + scale · (−x, −z) / (distance − y)."""

    distance: float
    scale: float
    centre: tuple[float, float]

    def place(self, vertices: Floats) -> Floats:
        """Pixel positions [V 3] of world points; the depth is the reciprocal distance, which is linear on screen."""
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
    """Choose a camera whose picture has the silhouette's bounding box centred, its longest side fill · size_px."""
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


# --- Light ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Light:
    """One distant light: where it is (unit vector [3]), its colour [3], and its size, 0 hard to 1 very soft."""

    toward: Floats
    colour: Floats
    softness: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Studio:
    """Lights and the room: ambient from above (sky) and below (ground), linear RGB [3] each; key light first."""

    lights: tuple[Light, ...]
    sky: Floats
    ground: Floats
    contact: float
    """How much darker the product gets towards the floor, 0 to 1."""


def draw_studio(rng: Random) -> Studio:
    """Draw one to three lights, ambient light and a little colour in both."""
    lights = []
    for strength in (
        rng.uniform(0.35, 0.95, 1) if rng.uniform() < 0.35 else rng.uniform(0.2, 0.7, rng.integers(2, 4))
    ):
        azimuth, height = np.radians(rng.uniform(-80, 80)), np.radians(rng.uniform(5, 75))
        toward = np.array(
            [np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height), np.sin(height)]
        )
        tint = 1 + rng.normal(0, 0.05, 3)
        lights.append(
            Light(toward=toward.astype(np.float32), colour=strength * tint, softness=rng.uniform(0.1, 0.9))
        )
    ambient = rng.uniform(0.25, 0.6)
    return Studio(
        lights=tuple(lights),
        sky=ambient * (1 + rng.normal(0, 0.04, 3)),
        ground=ambient * rng.uniform(0.3, 0.9) * (1 + rng.normal(0, 0.04, 3)),
        contact=rng.choice([0.0, rng.uniform(0, 0.6)]),
    )


def shade(posed: Posed, hits: Hits, studio: Studio, camera: Camera, *, lit: Floats | None = None) -> Floats:
    """Light the surface: linear RGB [N 3]. lit [N] says how much of the key light arrives (1 where None)."""
    albedo = colour(posed.product, hits.face, hits.barycentric) ** 2.2
    normal = hits.blend(posed.normals)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    place = hits.blend(posed.vertices[posed.faces])
    sight = np.array([0, camera.distance, 0], np.float32) - place
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    gloss = np.array([m.gloss for m in posed.product.materials], np.float32)[posed.product.part[hits.face]]
    sharpness = np.array([m.sharpness for m in posed.product.materials], np.float32)[
        posed.product.part[hits.face]
    ]
    upward = (0.5 + 0.5 * normal @ posed.up)[:, None]
    diffuse = studio.ground * (1 - upward) + studio.sky * upward
    shine = np.zeros_like(place)
    for index, light in enumerate(studio.lights):
        arrives = np.float32(1) if lit is None or index else lit
        wrap = 0.3 * light.softness  # A large light reaches round the edge.
        facing = np.clip((normal @ light.toward + wrap) / (1 + wrap), 0, None) * arrives
        diffuse = diffuse + facing[:, None] * light.colour
        half = light.toward + sight
        half /= np.linalg.norm(half, axis=1, keepdims=True)
        lobe = np.clip(np.einsum("nd,nd->n", normal, half), 0, 1) ** (sharpness / (1 + 3 * light.softness))
        shine += (gloss * lobe * arrives * 0.6)[:, None] * light.colour
    mirror = 2 * np.einsum("nd,nd->n", normal, sight)[:, None] * normal - sight
    grazing = 0.04 + 0.5 * (1 - np.clip(np.einsum("nd,nd->n", normal, sight), 0, 1)) ** 4
    room = np.where((mirror @ posed.up)[:, None] > 0.1, studio.sky, studio.ground)
    shine += (gloss * grazing)[:, None] * room
    if studio.contact:
        height = place @ posed.up
        floor = float((posed.vertices @ posed.up).min())
        diffuse = diffuse * (1 - studio.contact * np.exp(-(height - floor) / 0.12))[:, None]
    result: Floats = (albedo * diffuse + shine).astype(np.float32)
    return result


SHADOW_BIAS = 0.03
"""A surface closer than this to what the light sees is lit: half the thinnest wall."""


def shadow_map(
    posed: Posed, light: Light, raster: Raster, *, size_px: int
) -> tuple[NDArray[np.float64], Floats]:
    """Draw what a light sees. Returns the light's axes [3 3] (right, up, toward) and its depths [H W], -9 where empty."""
    right = np.cross((0.0, 0.3, 1.0), light.toward)
    right /= np.linalg.norm(right)
    axes = np.stack([right, np.cross(light.toward, right), light.toward])
    positions = _on_shadow_map(posed.vertices @ axes.T, size_px)
    fragments = raster.rasterize(
        torch.from_numpy(positions.astype(np.float32)),
        torch.from_numpy(posed.faces),
        height=size_px,
        width=size_px,
    )
    return axes, np.where(fragments.covered.numpy(), fragments.depth.numpy(), np.float32(-9))


def _on_shadow_map(placed: NDArray[np.floating], size_px: int) -> NDArray[np.floating]:
    """Scale places in a light's axes [N 3] to pixels; the cube's corners stay inside."""
    half = size_px / 2
    return placed * [half / 1.75, half / 1.75, 1] + [half, half, 0]


def arriving(
    places: Floats, light: Light, axes: NDArray[np.float64], depths: Floats, *, bias: float = SHADOW_BIAS
) -> Floats:
    """Say how much of a light arrives at places [N 3]: [N] in [0, 1], soft at the shadow's border."""
    size_px = len(depths)
    at = _on_shadow_map(places @ axes.T, size_px)
    reach = size_px * (0.006 + 0.02 * light.softness)
    total = np.zeros(len(places), dtype=np.float32)
    for across in (-1, 0, 1):
        for down in (-1, 0, 1):
            column = np.clip(at[:, 0] + across * reach, 0, size_px - 1).astype(np.int64)
            row = np.clip(at[:, 1] + down * reach, 0, size_px - 1).astype(np.int64)
            total += depths[row, column] < at[:, 2] + bias * (1 + abs(across) + abs(down))
    return total / 9


def develop(linear: Floats, *, exposure: float, balance: Floats, gamma: float) -> Floats:
    """Turn light into sRGB values in [0, 1], with a soft shoulder near white."""
    exposed = np.clip(linear * (exposure * balance), 0, None)
    rolled = np.where(exposed < 0.8, exposed, 0.8 + 0.2 * np.tanh((exposed - 0.8) / 0.2))
    developed: Floats = rolled ** np.float32(1 / gamma)
    return developed


def draw_film(rng: Random) -> tuple[float, Floats, float]:
    """Draw exposure, white balance [3] and gamma as cameras and retouchers leave them."""
    exposure = float(np.exp(rng.normal(0.05, 0.22)))
    balance = np.exp(rng.normal(0, 0.05, 3)).astype(np.float32)
    return exposure, balance, float(rng.uniform(1.9, 2.5))
