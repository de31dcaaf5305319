"""Light on products: lamps, shadows, highlights, and how film turns them into a picture.

Colours are linear RGB here until `develop` makes them sRGB.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from crm_cli.fragments import Raster
from crm_cli.learn.camera import Camera, Hits, Posed
from crm_cli.learn.materials import Floats, Random


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Light:
    """One distant light: the unit vector [3] towards it, its colour [3], and its size, 0 hard to 1 soft."""

    toward: Floats
    colour: Floats
    softness: float


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Studio:
    """Lights, key light first, and the room: what comes from above (sky) and below (ground), RGB [3]."""

    lights: tuple[Light, ...]
    sky: NDArray[np.floating]
    ground: NDArray[np.floating]
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
    albedo = posed.product.colour_at(hits.face, hits.barycentric) ** 2.2
    normal = hits.blend(posed.normals)
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-6)
    place = hits.blend(posed.vertices[posed.faces])
    sight = np.array([0, camera.distance, 0], np.float32) - place
    sight /= np.linalg.norm(sight, axis=1, keepdims=True)
    normal *= posed.facing(hits.face, sight)
    gloss, sharpness = posed.product.shine_at(hits.face)
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
    """Draw what a light sees.

    Returns the light's axes [3 3] (right, up, toward) and how near it the surface is [S S], -9 where empty.
    """
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
    return total / np.float32(9)


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
