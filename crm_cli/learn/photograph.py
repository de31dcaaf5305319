"""Studio photographs of procedural products, to try the program with.

`python -m crm_cli.learn.photograph FOLDER` takes the sample photos that the tests use, from seeds that
no training ever sees.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crm_cli.fragments import Raster
from crm_cli.learn.camera import Camera, Posed, aim, draw, halve, pose
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.examples import to_bytes
from crm_cli.learn.light import Light, Studio, arriving, develop, shade, shadow_map
from crm_cli.learn.materials import Floats, Random, draw_colour
from crm_cli.learn.parts import Product
from crm_cli.learn.products import make_product
from crm_cli.learn.shapes import turn

Background = Literal["white", "grey", "coloured", "gradient", "transparent"]

SHADOW_PX = 512
"""Side of the shadow maps: about the size of the picture itself."""

FOOTPRINT = 0.35
"""How much light from above the product keeps from the floor right beneath it."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Shadows:
    """What two lights see: the key light, and a large one above that darkens the floor under the product."""

    lights: tuple[Light, Light]
    maps: tuple[tuple[NDArray[np.float64], Floats], ...]

    def arriving(self, places: Floats, index: int) -> Floats:
        """Say how much of one of the lights arrives at places [N 3]."""
        return arriving(places, self.lights[index], *self.maps[index])


def studio_photo(
    product: Product, rng: Random, raster: Raster, *, size_px: int, background: Background
) -> NDArray[np.uint8]:
    """Photograph a product as a web shop shows it.

    Returns [S S 3] on a backdrop with soft shadows, or [S S 4] where the background is `transparent`.
    """
    rotation = turn("x", -rng.uniform(8, 22)) @ turn("z", rng.uniform(-32, 32))
    return photograph(pose(product, rotation), rng, raster, size_px=size_px, background=background)


def photograph(
    posed: Posed, rng: Random, raster: Raster, *, size_px: int, background: Background
) -> NDArray[np.uint8]:
    """Photograph a product that is turned already, its floor in sight or level with the camera.

    Returns the same as `studio_photo`.
    """
    fine = 2 * size_px
    camera = aim(
        posed.vertices, fov_deg=float(rng.uniform(18, 30)), size_px=fine, fill=float(rng.uniform(0.66, 0.8))
    )
    studio = _lights(rng, posed)
    shadows = _cast(posed, studio, raster)
    hits = draw(raster, camera.place(posed.vertices), posed.faces, height=fine, width=fine)
    hits = camera.correct(hits, posed.vertices, posed.faces)
    lit = shadows.arriving(hits.blend(posed.vertices[posed.faces]), 0)
    light = shade(posed, hits, studio, camera, lit=lit)
    seen = develop(light, exposure=1.05, balance=np.ones(3, np.float32), gamma=2.2)
    picture = np.zeros((fine * fine, 4), dtype=np.float32)
    picture[hits.pixel] = np.concatenate([seen, np.ones((len(seen), 1), np.float32)], axis=1)
    rgba = halve(picture.reshape(fine, fine, 4))
    alpha = rgba[..., 3:]
    if background == "transparent":
        return to_bytes(np.concatenate([rgba[..., :3] / np.maximum(alpha, 1e-6), alpha], axis=-1))
    backdrop = _backdrop(rng, background, size_px) * halve(_floor(posed, camera, shadows, fine))
    together = (rgba[..., :3] + backdrop * (1 - alpha)) * _vignette(
        size_px, 0.0 if background == "white" else 0.12
    )
    return to_bytes(together + rng.normal(0, 0.006, together.shape).astype(np.float32))


def _lights(rng: Random, posed: Posed) -> Studio:
    """Set up a soft key light from one side, a weaker fill from the other, and bright surroundings."""
    side = rng.choice([-1.0, 1.0])
    lights = []
    for strength, azimuth_deg, height_deg, softness in (
        (0.62, 40 * side, 52, 0.6),
        (0.22, -55 * side, 25, 0.9),
    ):
        azimuth, height = np.radians(azimuth_deg + rng.uniform(-12, 12)), np.radians(height_deg)
        level = np.array([np.sin(azimuth) * np.cos(height), np.cos(azimuth) * np.cos(height), 0])
        toward = (level + np.sin(height) * posed.up).astype(np.float32)
        toward /= np.linalg.norm(toward)
        lights.append(Light(toward=toward, colour=np.full(3, strength, np.float32), softness=softness))
    sky = np.full(3, rng.uniform(0.4, 0.5), np.float32)
    return Studio(lights=tuple(lights), sky=sky, ground=0.7 * sky, contact=0.25)


def _cast(posed: Posed, studio: Studio, raster: Raster) -> _Shadows:
    """Draw the shadow maps of the key light and of the sky right above."""
    above = Light(toward=posed.up, colour=studio.sky, softness=2.0)
    lights = (studio.lights[0], above)
    return _Shadows(
        lights=lights, maps=tuple(shadow_map(posed, light, raster, size_px=SHADOW_PX) for light in lights)
    )


def _floor(posed: Posed, camera: Camera, shadows: _Shadows, size_px: int) -> Floats:
    """How bright the floor is, 1 without a product: [H W 1]. Far away it curves up into the backdrop."""
    level = float((posed.vertices @ posed.up).min())
    y, x = np.mgrid[:size_px, :size_px].astype(np.float32) + 0.5
    ray = np.stack(
        [(camera.centre[0] - x) / camera.scale, -np.ones_like(x), (camera.centre[1] - y) / camera.scale], -1
    ).reshape(-1, 3)
    eye = np.array([0, camera.distance, 0], dtype=np.float32)
    sinking = ray @ posed.up
    reach = (level - float(eye @ posed.up)) / np.minimum(sinking, -1e-4)
    places = eye + reach[:, None] * ray
    near = np.flatnonzero((sinking < 0) & (np.abs(places).max(axis=1) < 2.2))
    brightness = np.ones(size_px * size_px, dtype=np.float32)
    # Just above the floor, so that what stands on it is in the way of the light.
    on_floor = places[near].astype(np.float32) - 0.01 * posed.up
    key, sky = shadows.arriving(on_floor, 0), shadows.arriving(on_floor, 1)
    brightness[near] = (1 - 0.32 * (1 - key)) * (1 - FOOTPRINT * (1 - sky))
    return _blur(brightness.reshape(size_px, size_px), size_px // 90)[..., None]


def _blur(picture: Floats, radius: int) -> Floats:
    """Average over a square window, twice."""
    for axis in (0, 1, 0, 1):
        padded = np.pad(picture, [(radius + 1, radius) if k == axis else (0, 0) for k in (0, 1)], mode="edge")
        total = np.cumsum(padded, axis=axis, dtype=np.float64)
        window = 2 * radius + 1
        ahead, behind = (
            np.take(total, range(window, total.shape[axis]), axis),
            np.take(total, range(total.shape[axis] - window), axis),
        )
        picture = ((ahead - behind) / window).astype(np.float32)
    return picture


def _backdrop(rng: Random, background: Background, size_px: int) -> Floats:
    """Paint the empty backdrop: sRGB [S S 3]."""
    if background == "white":
        return np.full((size_px, size_px, 3), 0.985, dtype=np.float32)
    if background == "grey":
        return np.full((size_px, size_px, 3), rng.uniform(0.55, 0.8), dtype=np.float32)
    tone = 0.25 + 0.7 * draw_colour(rng)
    if background == "coloured":
        return np.broadcast_to(tone, (size_px, size_px, 3))
    other = np.clip(tone * rng.uniform(0.55, 0.8), 0, 1)
    share = np.linspace(0, 1, size_px, dtype=np.float32)[:, None, None]
    return np.broadcast_to(tone * (1 - share) + other * share, (size_px, size_px, 3)).astype(np.float32)


def _vignette(size_px: int, strength: float) -> Floats:
    """Darken towards the corners: [S S 1]."""
    axis = np.linspace(-1, 1, size_px, dtype=np.float32)
    return np.asarray(1 - strength / 2 * (axis[:, None] ** 2 + axis[None, :] ** 2), np.float32)[..., None]


class Sample(NamedTuple):
    """One sample photo: where it goes, what it shows, and how."""

    path: PurePosixPath
    family: str
    seed: int
    background: Background
    size_px: int


SAMPLES = (
    Sample(PurePosixPath("bottle.png"), "bottle", HELD_OUT + 609, "transparent", 512),
    Sample(PurePosixPath("chair.jpg"), "chair", HELD_OUT + 600, "white", 640),
    Sample(PurePosixPath("radio.jpg"), "appliance", HELD_OUT + 603, "coloured", 640),
    Sample(PurePosixPath("shoe.webp"), "shoe", HELD_OUT + 607, "grey", 768),
    Sample(PurePosixPath("kitchen/mug.jpg"), "mug", HELD_OUT + 609, "white", 512),
    Sample(PurePosixPath("kitchen/茶壶.webp"), "teapot", HELD_OUT + 601, "gradient", 640),
    Sample(PurePosixPath("kitchen/carton.jpg"), "carton", HELD_OUT + 506, "white", 640),
    Sample(PurePosixPath("toys/bear.jpg"), "plush", HELD_OUT + 604, "white", 640),
)


def take(sample: Sample, raster: Raster) -> NDArray[np.uint8]:
    """Take one sample photo: the product and the studio come from its seed alone."""
    rng = np.random.default_rng(sample.seed)
    product = make_product(rng, sample.family)
    return studio_photo(product, rng, raster, size_px=sample.size_px, background=sample.background)


def take_samples(folder: Path, raster: Raster) -> None:
    """Write all sample photos into a folder."""
    for sample in SAMPLES:
        file = folder / sample.path
        file.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(take(sample, raster))
        if file.suffix == ".png":
            picture.save(file, optimize=True)
        else:
            picture.save(file, quality=88)


if __name__ == "__main__":
    from crm_cli.mesh.raster import WarpRaster

    take_samples(Path(sys.argv[1]), WarpRaster())
