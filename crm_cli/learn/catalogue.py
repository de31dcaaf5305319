"""A catalogue of procedural products: photos as a shop takes them, and the truth behind each.

The truth is the product turned as it was photographed. What photo `n` shows is drawn from seed `n` and the
list of families alone.
"""

from __future__ import annotations

import io
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from crm_cli.errors import UsageError
from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed, pose
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.materials import Random
from crm_cli.learn.parts import Product
from crm_cli.learn.photograph import Background, photograph
from crm_cli.learn.products import FAMILIES, make_product
from crm_cli.learn.shapes import Floats as Floats64
from crm_cli.learn.shapes import turn
from crm_cli.learn.truth import encode_truth

FIRST_SEED = HELD_OUT + 100_000
"""Neither a training nor the evaluation nor the sample photos of the tests come this far."""

MAX_SEED = 2**53
"""Every reader of JSON holds a whole number exactly up to here."""

MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096

LONGEST_MM: Mapping[str, tuple[float, float]] = {
    "bottle": (180, 330),
    "can": (95, 170),
    "jar": (80, 180),
    "mug": (85, 125),
    "bowl": (120, 300),
    "vase": (150, 450),
    "teapot": (160, 280),
    "pan": (300, 520),
    "fruit": (50, 140),
    "burger": (90, 140),
    "carton": (150, 300),
    "package": (100, 350),
    "book": (180, 320),
    "bag": (250, 450),
    "chest": (300, 900),
    "shoe": (240, 320),
    "boot": (250, 420),
    "hat": (250, 400),
    "headphones": (160, 220),
    "chair": (750, 1050),
    "armchair": (800, 1100),
    "sofa": (1400, 2400),
    "stool": (400, 800),
    "table": (700, 2000),
    "shelf": (700, 2000),
    "lamp": (300, 1700),
    "street_lamp": (3000, 6000),
    "appliance": (200, 600),
    "car": (70, 350),
    "animal": (80, 400),
    "plush": (150, 500),
    "plant": (200, 1200),
    "tool": (150, 350),
}
"""Longest side of a product as it is sold. Our own estimate; it decides nothing but the list of sizes."""

ANY_LONGEST_MM = (100.0, 600.0)
"""For a family that is missing above."""

SUFFIXES, WITH_ALPHA = (".jpg", ".png", ".webp"), (".png", ".webp")

TRUTHS = "truth"
"""Folder of what the photos show."""


class Box(NamedTuple):
    """Extent as a shop lists it, in millimetres."""

    width: float
    height: float
    depth: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One product of a catalogue."""

    sku: str
    file: str
    """The photo, relative to the catalogue."""
    truth: str
    """What it shows as GLB, relative to the catalogue."""
    family: str
    seed: int
    is_held_out: bool
    """Whether no training sees this seed."""
    background: Background
    size_px: int
    largest_px: int
    """What was asked for; some photos are smaller."""
    yaw_deg: float
    elevation_deg: float
    """How far above the product's waist the camera stands."""
    size_mm: Box
    """Of the product as it stands in the shop, front towards the customer."""
    photographed_mm: Box
    """Of the truth, which is turned and tilted as in the photo."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What a photo shows and how it is taken, before anything is rendered."""

    seed: int
    families: tuple[str, ...]
    size_px: int
    """Of the largest photos; others are smaller."""

    @property
    def family(self) -> str:
        """Each in its turn, so that a short catalogue holds as many as it can."""
        return self.families[self.seed % len(self.families)]

    @property
    def sku(self) -> str:
        """Name of the photo and of its truth, without suffix."""
        return f"{self.family.replace('_', '-')}-{self.seed}"


def plan(*, count: int, seed: int, families: Sequence[str], size_px: int) -> list[Plan]:
    """List the photos of a catalogue. UsageError where a family or a number is not possible.

    families: names out of FAMILIES; all of them where empty.
    """
    unknown = [name for name in families if name not in FAMILIES]
    if unknown:
        raise UsageError(
            f"--family: no such family {unknown[0]!r}",
            code="E_FAMILY",
            remedy=f"choose from {', '.join(FAMILIES)}",
        )
    if count < 1 or not 0 <= seed <= MAX_SEED - count:
        raise UsageError(
            f"--count {count}, --seed {seed}: out of range",
            code="E_SEED",
            remedy=f"seeds run from 0 to {MAX_SEED}, one for each photo",
        )
    if not MIN_SIZE_PX <= size_px <= MAX_SIZE_PX:
        raise UsageError(
            f"--size-px {size_px}: out of range",
            code="E_SIZE",
            remedy=f"choose {MIN_SIZE_PX} to {MAX_SIZE_PX}",
        )
    names = tuple(dict.fromkeys(families)) or tuple(FAMILIES)
    return [Plan(seed=seed + index, families=names, size_px=size_px) for index in range(count)]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Shot:
    """One finished entry of a catalogue."""

    item: Item
    photo: bytes
    truth: bytes


def shoot(planned: Plan, raster: Raster) -> Shot:
    """Make one product, photograph it, and write down what it is."""
    rng = np.random.default_rng(planned.seed)
    product = make_product(rng, planned.family)
    yaw_deg, elevation_deg = _draw_view(rng)
    rotation = turn("x", -elevation_deg) @ turn("z", yaw_deg)
    posed = pose(product, rotation)
    background: Background = rng.choice(np.array(get_args(Background))).item()
    suffix = str(rng.choice(WITH_ALPHA if background == "transparent" else SUFFIXES))
    size_px = max(MIN_SIZE_PX, 2 * round(planned.size_px * float(rng.choice([0.5, 0.75, 1.0])) / 2))
    size_mm, photographed_mm = _sizes(rng, product, rotation, posed)
    picture = photograph(posed, rng, raster, size_px=size_px, background=background)
    item = Item(
        sku=planned.sku,
        file=planned.sku + suffix,
        truth=f"{TRUTHS}/{planned.sku}.glb",
        family=planned.family,
        seed=planned.seed,
        is_held_out=planned.seed >= HELD_OUT,
        background=background,
        size_px=size_px,
        largest_px=planned.size_px,
        yaw_deg=round(yaw_deg, 2),
        elevation_deg=round(elevation_deg, 2),
        size_mm=size_mm,
        photographed_mm=photographed_mm,
    )
    return Shot(item=item, photo=_encoded(picture, suffix), truth=encode_truth(posed, planned.seed, raster))


def _draw_view(rng: Random) -> tuple[float, float]:
    """Draw how far a product is turned and how far the camera is above it, both in degrees.

    Most photos of a shop look nearly straight at the front, from a little above.
    """
    yaw_deg = rng.uniform(-15, 15) if rng.uniform() < 0.6 else rng.uniform(-45, 45)
    elevation_deg = rng.uniform(4, 24) if rng.uniform() < 0.75 else rng.uniform(0, 40)
    return float(yaw_deg), float(elevation_deg)


def _sizes(rng: Random, product: Product, rotation: Floats64, posed: Posed) -> tuple[Box, Box]:
    """Draw how large a product is sold: its own box, and that of its truth, both at one scale."""
    own = np.ptp(product.vertices, axis=0)
    mm_per_unit = rng.uniform(*LONGEST_MM.get(product.family, ANY_LONGEST_MM)) / own.max()
    # The pose scales width and height alike; depth it may shorten to what the world holds.
    turned = np.ptp(product.vertices @ rotation.T, axis=0)
    mm_per_world = mm_per_unit * turned[0] / np.ptp(posed.vertices[:, 0])
    return _box(own * mm_per_unit), _box(np.ptp(posed.vertices, axis=0) * mm_per_world)


def _box(extent: Any) -> Box:
    """Name the extents along the world's axes; a tenth of a millimetre is finer than any listing."""
    x, y, z = (round(float(value), 1) for value in extent)
    return Box(width=x, height=z, depth=y)


def _encoded(picture: np.ndarray[Any, np.dtype[np.uint8]], suffix: str) -> bytes:
    """Encode a photo as shops keep theirs."""
    stream = io.BytesIO()
    kind = {".jpg": "JPEG", ".png": "PNG", ".webp": "WEBP"}[suffix]
    Image.fromarray(picture).save(stream, kind, **({} if kind == "PNG" else {"quality": 90}))
    return stream.getvalue()


def shoot_all(plans: Sequence[Plan], *, jobs: int) -> Iterator[Shot]:
    """Shoot in so many processes; finished ones come as they are done."""
    if jobs == 1 or len(plans) < 2:
        from crm_cli.mesh.raster import WarpRaster

        yield from (shoot(planned, WarpRaster()) for planned in plans)
        return
    # Spawned, not forked: torch and warp hold threads that a fork would lose.
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        pending = [pool.submit(_shoot_alone, planned) for planned in plans]
        try:
            for done in as_completed(pending):
                yield done.result()
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _shoot_alone(planned: Plan) -> Shot:
    """Shoot in a worker process, on one thread."""
    from crm_cli.mesh.raster import WarpRaster

    torch.set_num_threads(1)
    return shoot(planned, WarpRaster())
