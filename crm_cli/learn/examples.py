"""Training examples: one product as its cut-out photo, six views, distances around it and colours on it."""

from __future__ import annotations

import io
from dataclasses import dataclass, fields
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crm_cli.fragments import Raster
from crm_cli.frame import VIEWS
from crm_cli.learn.camera import Hits, Posed, aim, draw, draw_pose, pose
from crm_cli.learn.light import arriving, develop, draw_film, draw_studio, shade, shadow_map
from crm_cli.learn.materials import Floats, Random, draw_colour
from crm_cli.learn.products import make_product
from crm_cli.learn.subject import Body
from crm_cli.records import expect

FILL = 0.8
"""Longest side of a cut-out's silhouette, as a share of the frame; the front view's is the same."""

POINTS = 2048
"""Places with a distance, and places with a colour, in one example."""

REACH = 0.3
"""Distances are clipped here; the networks only look at the first tenth."""

SHADOW_PX = 96
"""Side of the key light's shadow map."""

SAMPLES = 2
"""Samples per pixel along each axis."""

SAME_SURFACE = 0.08
"""Samples of one pixel that lie further apart than this belong to different surfaces."""

EMPTY = -4.0
"""Depth of a sample that shows nothing: behind everything."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Example:
    """One product seen at S px.

    photo uint8 [4 S S]: the cut-out, rgb zero where alpha is. views uint8 [6 4 S S] in the order of
    frame.VIEWS: albedo and coverage. depth float16 [6 S S]: the world coordinate towards the view's
    camera, zero where empty. points float16 [P 3] and sdf float16 [P], negative inside, clipped to ±0.3.
    surface float16 [P 3] and surface_rgb uint8 [P 3]: places on the outer surface.
    """

    family: str
    photo: NDArray[np.uint8]
    views: NDArray[np.uint8]
    depth: NDArray[np.float16]
    points: NDArray[np.float16]
    sdf: NDArray[np.float16]
    surface: NDArray[np.float16]
    surface_rgb: NDArray[np.uint8]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "Example",
            photo=(self.photo, "4 S S"),
            views=(self.views, "6 4 S S"),
            depth=(self.depth, "6 S S"),
            points=(self.points, "P 3"),
            sdf=(self.sdf, "P"),
            surface=(self.surface, "P 3"),
            surface_rgb=(self.surface_rgb, "P 3"),
        )


ARRAYS = tuple(field.name for field in fields(Example) if field.name != "family")


def make_example(rng: Random, raster: Raster, *, size_px: int = 64, has_field: bool = True) -> Example:
    """Draw a product, photograph it and measure it, all from one generator.

    has_field: whether distances and surface colours are measured as well; only the reconstruction learns
    from them, and pictures alone need no more than a rasteriser.
    """
    return example_of(rng, draw_posed(rng), raster, size_px=size_px, has_field=has_field)


def draw_posed(rng: Random) -> Posed:
    """Draw the product of an example, turned as it is photographed: the first that its generator decides."""
    product = make_product(rng)
    return pose(product, draw_pose(rng))


class Source(Protocol):
    """What examples show: for a seed always the same."""

    def example(self, seed: int, raster: Raster, *, size_px: int, has_field: bool) -> Example:
        """Photograph and measure it; see `make_example`."""

    def posed(self, seed: int, *, size_px: int) -> Posed:
        """The mesh of an example, turned as it is photographed."""


class Products:
    """Procedural products, each drawn from its seed alone."""

    def example(self, seed: int, raster: Raster, *, size_px: int, has_field: bool) -> Example:
        """Photograph and measure a product; see `make_example`."""
        return make_example(np.random.default_rng(seed), raster, size_px=size_px, has_field=has_field)

    def posed(self, seed: int, *, size_px: int) -> Posed:
        """A product, turned as it is photographed."""
        return draw_posed(np.random.default_rng(seed))


PRODUCTS = Products()


def example_of(rng: Random, posed: Posed, raster: Raster, *, size_px: int, has_field: bool) -> Example:
    """Photograph and measure what stands there; see `make_example`."""
    views, depth = six_views(posed, raster, size_px=size_px)
    photo = cut_out_photo(rng, posed, raster, size_px=size_px)
    measured = _measure(rng, posed) if has_field else UNMEASURED
    return Example(family=posed.product.family, photo=photo, views=views, depth=depth, **measured._asdict())


class Measured(NamedTuple):
    """The arrays of an example that say where its surface is."""

    points: NDArray[np.float16]
    sdf: NDArray[np.float16]
    surface: NDArray[np.float16]
    surface_rgb: NDArray[np.uint8]


UNMEASURED = Measured(
    points=np.zeros((0, 3), np.float16),
    sdf=np.zeros(0, np.float16),
    surface=np.zeros((0, 3), np.float16),
    surface_rgb=np.zeros((0, 3), np.uint8),
)


def _measure(rng: Random, posed: Posed) -> Measured:
    """Find places on a product's surface and distances around it."""
    body = posed.product.body(posed.vertices)
    surface, surface_rgb = outer_surface(rng, posed, body)
    points = places_around(rng, surface)
    sdf = body.signed_distance(points, reach=REACH).astype(np.float16)
    return Measured(points=points, sdf=sdf, surface=surface, surface_rgb=surface_rgb)


def six_views(posed: Posed, raster: Raster, *, size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Draw albedo with coverage [6 4 S S] and depth [6 S S], as one picture of six tiles."""
    fine = SAMPLES * size_px
    half = np.float32(fine / 2)
    axes = np.array([(v.right, v.up, v.toward) for v in VIEWS], dtype=np.float32)  # [6 3 3]
    placed = np.einsum("vd,kad->kva", posed.vertices, axes)  # [6 V 3]
    positions = placed * np.array([half, -half, 1], np.float32) + np.array([half, half, 0], np.float32)
    positions[:, :, 0] += fine * np.arange(6, dtype=np.float32)[:, None]
    count, faces = len(posed.vertices), len(posed.faces)
    stacked = (posed.faces[None] + count * np.arange(6)[:, None, None]).reshape(-1, 3)
    hits = draw(raster, positions.reshape(-1, 3), stacked, height=fine, width=6 * fine)
    view, face = hits.face // faces, hits.face % faces
    own = Hits(pixel=hits.pixel, face=face, barycentric=hits.barycentric)
    light = own.blend(0.9 + 0.1 * (posed.normals @ posed.up)[..., None])  # [N 1]
    light = np.where(posed.facing(face, axes[view, 2]) > 0, light, 1.8 - light)
    albedo = posed.product.colour_at(face, hits.barycentric) * light
    toward = (positions.reshape(6, count, 3)[..., 2])[view[:, None], posed.faces[face]]  # [N 3]
    nearness = np.einsum("nk,nk->n", toward, hits.barycentric)
    rgba = _resolve(albedo, hits.pixel, fine, 6 * fine)
    depth = _resolve_depth(nearness, hits.pixel, fine, 6 * fine)
    views = to_bytes(rgba).reshape(size_px, 6, size_px, 4).transpose(1, 3, 0, 2)
    return np.ascontiguousarray(views), np.ascontiguousarray(
        depth.reshape(size_px, 6, size_px).transpose(1, 0, 2)
    )


def _blocks(values: Floats, pixel: NDArray[np.int64], height: int, width: int, empty: float) -> Floats:
    """Scatter samples [N C] on their picture and collect each pixel's: [K H W C], K samples a pixel.

    K comes first: numpy adds up whole pictures many times faster than short runs within them.
    """
    channels = values.shape[1]
    flat = np.full((height * width, channels), empty, dtype=np.float32)
    flat[pixel] = values
    grid = flat.reshape(height // SAMPLES, SAMPLES, width // SAMPLES, SAMPLES, channels)
    return np.stack([grid[:, row, :, column] for row in range(SAMPLES) for column in range(SAMPLES)])


def _resolve(values: Floats, pixel: NDArray[np.int64], height: int, width: int) -> Floats:
    """Average samples [N 3] to pixels [H W 4]: colour over the covered samples, and their share."""
    covered = np.concatenate([values, np.ones((len(values), 1), np.float32)], axis=1)
    total = _blocks(covered, pixel, height, width, 0.0).sum(axis=0)
    rgb = total[..., :3] / np.maximum(total[..., 3:], 1)
    return np.concatenate([rgb, total[..., 3:] / SAMPLES**2], axis=-1)


def _resolve_depth(
    nearness: Floats, pixel: NDArray[np.int64], height: int, width: int
) -> NDArray[np.float16]:
    """Average the samples of the nearest surface in each pixel: [H W], zero where empty."""
    samples = _blocks(nearness[:, None].astype(np.float32), pixel, height, width, EMPTY)[..., 0]  # [K H W]
    return nearest_surface(samples)


def nearest_surface(samples: Floats) -> NDArray[np.float16]:
    """Average the samples [K H W] of the nearest surface in each pixel: [H W], zero where all are EMPTY."""
    same = (samples > samples.max(axis=0) - SAME_SURFACE) & (samples > EMPTY / 2)
    mean = (samples * same).sum(axis=0) / np.maximum(same.sum(axis=0), 1)
    rounded: NDArray[np.float16] = mean.astype(np.float16)
    return rounded


def to_bytes(values: Floats) -> NDArray[np.uint8]:
    """Round values in [0, 1] to bytes."""
    return np.round(np.clip(values, 0, 1) * 255).astype(np.uint8)


def cut_out_photo(rng: Random, posed: Posed, raster: Raster, *, size_px: int) -> NDArray[np.uint8]:
    """Photograph a product and cut it out: RGBA [4 S S], with what cameras and mattes do wrong."""
    fine = SAMPLES * size_px
    shift = rng.uniform(-1, 1, 2) * SAMPLES / 2
    fov_deg = float(rng.uniform(12, 60))
    camera = aim(
        posed.vertices, fov_deg=fov_deg, size_px=fine, fill=FILL, shift=(float(shift[0]), float(shift[1]))
    )
    hits = draw(raster, camera.place(posed.vertices), posed.faces, height=fine, width=fine)
    hits = camera.correct(hits, posed.vertices, posed.faces)
    exposure, balance, gamma = draw_film(rng)
    studio = draw_studio(rng)
    lit = None
    if rng.uniform() < 0.6:
        axes, depths = shadow_map(posed, studio.lights[0], raster, size_px=SHADOW_PX)
        lit = arriving(hits.blend(posed.vertices[posed.faces]), studio.lights[0], axes, depths)
    light = shade(posed, hits, studio, camera, lit=lit)
    rgba = _resolve(develop(light, exposure=exposure, balance=balance, gamma=gamma), hits.pixel, fine, fine)
    return spoil(rng, rgba)


def spoil(rng: Random, rgba: Floats) -> NDArray[np.uint8]:
    """Do to a clean cut-out [S S 4] what cameras, files and mattes do: RGBA [4 S S]."""
    background = np.float32(rng.choice([0.0, 0.5, 1.0])) if rng.uniform() < 0.7 else draw_colour(rng)
    alpha = rgba[..., 3:]
    rgb = _degrade(rng, rgba[..., :3] * alpha + background * (1 - alpha))
    if rng.uniform() < 0.6:
        # A good matte gives back the colours of the product alone.
        alone = np.clip((rgb - background * (1 - alpha)) / np.maximum(alpha, 0.25), 0, 1)
        rgb = np.where(alpha > 0, alone, rgb)
    alpha = damage(rng, alpha[..., 0])[..., None]
    return np.ascontiguousarray(to_bytes(np.concatenate([rgb * (alpha > 0), alpha], -1)).transpose(2, 0, 1))


def _degrade(rng: Random, rgb: Floats) -> Floats:
    """Blur, add noise and compress a picture [H W 3], each now and then."""
    if rng.uniform() < 0.25:
        weight = np.float32(rng.uniform(0.05, 0.2))
        padded = np.pad(rgb, ((1, 1), (1, 1), (0, 0)), mode="edge")
        across = padded[:, 1:-1] * (1 - 2 * weight) + weight * (padded[:, :-2] + padded[:, 2:])
        rgb = (across[1:-1] * (1 - 2 * weight) + weight * (across[:-2] + across[2:])).astype(np.float32)
    if rng.uniform() < 0.4:
        rgb = rgb + rng.normal(0, rng.uniform(0.003, 0.025), rgb.shape).astype(np.float32)
    if rng.uniform() < 0.3:
        file = io.BytesIO()
        Image.fromarray(to_bytes(rgb)).save(file, "JPEG", quality=int(rng.integers(50, 95)))
        rgb = np.asarray(Image.open(file), dtype=np.float32) / np.float32(255)
    return np.clip(rgb, 0, 1)


def damage(rng: Random, alpha: Floats) -> Floats:
    """Spoil a matte [H W] as segmentation does: grown or shrunk by a pixel, hardened, bitten now and then."""
    kind = rng.uniform()
    if kind < 0.12:
        alpha = _spread(alpha, np.maximum)
    elif kind < 0.24:
        alpha = _spread(alpha, np.minimum)
    if rng.uniform() < 0.2:
        alpha = (alpha > 0.5).astype(np.float32)
    if rng.uniform() < 0.03 and alpha.max() > 0.5:
        rows, columns = np.nonzero(alpha > 0.5)
        at = rng.integers(len(rows))
        radius = len(alpha) * rng.uniform(0.02, 0.07)
        y, x = np.ogrid[: alpha.shape[0], : alpha.shape[1]]
        alpha = np.where((y - rows[at]) ** 2 + (x - columns[at]) ** 2 < radius**2, 0, alpha).astype(
            np.float32
        )
    return alpha


def _spread(alpha: Floats, choose: np.ufunc) -> Floats:
    """Take the maximum or minimum with the four neighbours."""
    padded = np.pad(alpha, 1)
    result = alpha
    for neighbour in (padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]):
        result = choose(result, neighbour)
    return result


def outer_surface(
    rng: Random, posed: Posed, body: Body, count: int = POINTS
) -> tuple[NDArray[np.float16], NDArray[np.uint8]]:
    """Draw so many places evenly on the surface that no other part covers, with their colours."""
    a, b, c = (posed.vertices[posed.faces[:, k]] for k in range(3))
    area = np.linalg.norm(np.cross(b - a, c - a), axis=1).astype(np.float64)
    ends = np.cumsum(area)
    drawn = 2 * count
    face = np.searchsorted(ends, rng.uniform(0, ends[-1], drawn)).clip(max=len(area) - 1)
    u, v = rng.random((2, drawn), dtype=np.float32)
    folded = u + v > 1
    u, v = np.where(folded, 1 - u, u), np.where(folded, 1 - v, v)
    weights = np.stack([1 - u - v, u, v], -1)
    hits = Hits(pixel=np.arange(drawn), face=face, barycentric=weights)
    places = hits.blend(posed.vertices[posed.faces])
    outward = np.cross(b - a, c - a)[face]
    outward /= np.maximum(np.linalg.norm(outward, axis=1, keepdims=True), 1e-12)
    outer = np.flatnonzero(body.shows(places, outward))
    if not len(outer):  # all of a thicket's places are hidden
        outer = np.arange(drawn)
    chosen = outer[np.arange(count) % len(outer)]
    rgb = to_bytes(posed.product.colour_at(face[chosen], weights[chosen]))
    return places[chosen].astype(np.float16), rgb


def places_around(rng: Random, surface: NDArray[np.float16]) -> NDArray[np.float16]:
    """Draw places [P 3] to measure distances at: two thirds near the surface, the rest anywhere."""
    third = len(surface) // 3
    near = len(surface) - third
    base = surface[rng.permutation(len(surface))[:near]].astype(np.float32)
    sigma = np.where(np.arange(near) % 2, 0.02, 0.06).astype(np.float32)[:, None]
    close = base + sigma * rng.standard_normal((near, 3), dtype=np.float32)
    anywhere = rng.uniform(-1, 1, (third, 3)).astype(np.float32)
    places: NDArray[np.float16] = np.clip(np.concatenate([close, anywhere]), -1, 1).astype(np.float16)
    return places
