"""A catalogue of procedural products: photos as a shop takes them, and the truth behind each.

The truth is the product turned as it was photographed, in the frame and at the scale of our own assets, so
that an asset and its truth can be laid over each other without fitting. What photo `n` shows is drawn from
seed `n` and the list of families alone.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import multiprocessing
import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from PIL import Image

from crm_cli import __version__
from crm_cli.errors import OutputError, UsageError
from crm_cli.export.glb import encode_glb
from crm_cli.export.scene import METRES_PER_UNIT, build_scene
from crm_cli.export.textures import encode_texture
from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed, pose
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.examples import to_bytes
from crm_cli.learn.materials import Random
from crm_cli.learn.parts import Product
from crm_cli.learn.photograph import Background, photograph
from crm_cli.learn.products import FAMILIES, make_product
from crm_cli.learn.shapes import Floats as Floats64
from crm_cli.learn.shapes import turn
from crm_cli.mesh.bake import draw_charts, fill_from_nearest
from crm_cli.mesh.unwrap import unwrap
from crm_cli.records import Mesh, TexturedMesh

FIRST_SEED = HELD_OUT + 100_000
"""Neither a training nor the evaluation nor the sample photos of the tests come this far."""

MAX_SEED = 2**53
"""Every reader of JSON holds a whole number exactly up to here."""

MIN_SIZE_PX, MAX_SIZE_PX = 64, 4096

TRUTH_PX = 1024
"""Side of a truth's texture: a label of a few centimetres stays legible."""

PADDING_PX = 2
"""Between the charts of a truth's texture; nobody looks at it from far away."""

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

MADE_BY_A_PROGRAM = "http://cv.iptc.org/newscodes/digitalsourcetype/algorithmicMedia"
"""How IPTC says that a program made something without a model (IPTC NewsCodes, digital source type)."""

SUFFIXES, WITH_ALPHA = (".jpg", ".png", ".webp"), (".png", ".webp")

LIST, SIZES, TRUTHS = "truth.json", "products.csv", "truth"


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


def encode_truth(posed: Posed, seed: int, raster: Raster) -> bytes:
    """Write a product as it was photographed as a GLB, by the writer of our own assets."""
    scene = build_scene(
        paint_truth(posed, raster),
        provenance={
            "crm_version": __version__,
            "digitalSourceType": MADE_BY_A_PROGRAM,
            "family": posed.product.family,
            "seed": str(seed),
        },
        metres_per_unit=METRES_PER_UNIT,
    )
    return encode_glb(scene, picture=encode_texture(scene.texture, "png", quality=100))


def paint_truth(posed: Posed, raster: Raster) -> TexturedMesh:
    """A product as it was photographed, as a textured mesh.

    One mesh of closed parts, which may reach into each other; its texture holds the colours without light.
    """
    mesh = Mesh(vertices=posed.vertices, faces=posed.faces)
    unwrapped = unwrap(mesh, method="box", size_px=TRUTH_PX, padding_px=PADDING_PX)
    fragments = draw_charts(unwrapped, raster, size_px=TRUTH_PX)
    covered = fragments.covered.numpy()
    hits = fragments.hits()
    texture = np.zeros((TRUTH_PX, TRUTH_PX, 3), dtype=np.uint8)
    texture[covered] = to_bytes(
        posed.product.colour_at(hits.face.numpy().ravel(), hits.barycentric.numpy().reshape(-1, 3))
    )
    return TexturedMesh(unwrapped=unwrapped, texture=fill_from_nearest(texture, covered))


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """One entry of a catalogue that stands on disk."""

    item: Item
    is_kept: bool
    """It was there already."""


def write_catalogue(folder: Path, plans: Sequence[Plan], *, jobs: int) -> Iterator[Written]:
    """Make a catalogue, or what is missing of one; yields every entry of the plans as it stands there.

    What was written is listed in LIST with its digest before it gets its name: a call that was interrupted
    goes on, and a file that is not listed, or no longer what was written, is never replaced.

    Raises:
        OutputError: The folder cannot be written, or holds a file under the name of one of ours.
    """
    try:
        shelf = _Shelf(folder)
        todo = []
        for planned in plans:
            item = shelf.finished(planned)
            if item is None:
                todo.append(planned)
            else:
                yield Written(item=item, is_kept=True)
        for shot in shoot_all(todo, jobs=jobs):
            shelf.put(shot)
            yield Written(item=shot.item, is_kept=False)
        shelf.write_sizes()
    except OSError as error:
        raise OutputError(
            f"{error.filename or folder}: {error.strerror or error}",
            code="E_OUTPUT",
            remedy="name another folder with -o",
        ) from error


class _Shelf:
    """The files of a catalogue, and the list of those that we wrote."""

    def __init__(self, folder: Path) -> None:
        """Open the folder, made where it is missing, and check that what we shall write over is ours."""
        self._folder = folder
        (folder / TRUTHS).mkdir(parents=True, exist_ok=True)
        self._items: dict[str, Item] = {}
        self._digests: dict[str, str] = {}
        if os.path.lexists(folder / LIST):
            self._read()
        self._expect_ours(SIZES)

    def finished(self, planned: Plan) -> Item | None:
        """What a plan became, where that stands there whole; OutputError where something else does."""
        item = self._items.get(planned.sku)
        if item is None:
            for name in (*(planned.sku + suffix for suffix in SUFFIXES), f"{TRUTHS}/{planned.sku}.glb"):
                self._expect_ours(name)
            return None
        are_there = [os.path.lexists(self._folder / name) for name in (item.file, item.truth)]
        for name in (item.file, item.truth):
            self._expect_ours(name)
        return item if all(are_there) and item.largest_px == planned.size_px else None

    def put(self, shot: Shot) -> None:
        """Write an entry: first into the list, then its files."""
        old = self._items.get(shot.item.sku)
        self._items[shot.item.sku] = shot.item
        files = {shot.item.file: shot.photo, shot.item.truth: shot.truth}
        for name, data in files.items():
            self._expect_ours(name)
            self._digests[name] = hashlib.sha256(data).hexdigest()
        if old is not None and old.file != shot.item.file:
            self._expect_ours(old.file)
            (self._folder / old.file).unlink(missing_ok=True)
            del self._digests[old.file]
        self._write_list()
        for name, data in files.items():
            _replace(self._folder / name, data)

    def write_sizes(self) -> None:
        """Write what a shop would list: names and sizes."""
        stream = io.StringIO(newline="")
        table = csv.writer(stream, lineterminator="\n")
        table.writerow(["sku", "file", "width_mm", "height_mm", "depth_mm"])
        table.writerows([item.sku, item.file, *item.size_mm] for item in self._in_order())
        data = stream.getvalue().encode("utf-8")
        self._expect_ours(SIZES)
        self._digests[SIZES] = hashlib.sha256(data).hexdigest()
        self._write_list()
        _replace(self._folder / SIZES, data)

    def _in_order(self) -> list[Item]:
        return sorted(self._items.values(), key=lambda item: (item.seed, item.sku))

    def _write_list(self) -> None:
        listed = {
            "generator": f"crm {__version__}",
            "metres_per_unit": METRES_PER_UNIT,
            "products": [_plain(item) for item in self._in_order()],
            "sha256": dict(sorted(self._digests.items())),
        }
        _replace(self._folder / LIST, (json.dumps(listed, indent=1) + "\n").encode("utf-8"))

    def _read(self) -> None:
        """Read the list of an earlier call."""
        try:
            listed = json.loads((self._folder / LIST).read_bytes())
            self._digests = {str(name): str(digest) for name, digest in listed["sha256"].items()}
            for entry in listed["products"]:
                sizes = {name: Box(**entry.pop(name)) for name in ("size_mm", "photographed_mm")}
                self._items[entry["sku"]] = Item(**(entry | sizes))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise _in_the_way(self._folder / LIST) from error

    def _expect_ours(self, name: str) -> None:
        """Raise OutputError where a file is there that is not as we wrote it."""
        path = self._folder / name
        if not os.path.lexists(path):
            return
        is_plain = path.is_file() and not path.is_symlink()
        if not is_plain or hashlib.sha256(path.read_bytes()).hexdigest() != self._digests.get(name):
            raise _in_the_way(path)


def _plain(item: Item) -> dict[str, Any]:
    """Give an item as JSON holds it, its boxes by their sides."""
    boxes = {"size_mm": item.size_mm._asdict(), "photographed_mm": item.photographed_mm._asdict()}
    return asdict(item) | boxes


def _in_the_way(path: Path) -> OutputError:
    return OutputError(
        f"{path}: in the way, and not as crm products wrote it",
        code="E_CONFLICT",
        remedy="move it, or name another folder with -o",
    )


def _replace(path: Path, data: bytes) -> None:
    """Put a file in its place, whole or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        part.write_bytes(data)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
