"""What a reconstruction is held against: pictures of an example from all around it.

Each example has VIEWS_EACH of them, drawn from its seed alone, so that they can be rendered once, in any
order and by any number of processes, into shards beside those of the examples. A step looks at some.
(CRM: 16 perspective pictures of each shape, of which an iteration takes 8)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from crm_cli.errors import UsageError
from crm_cli.fragments import Raster
from crm_cli.learn.camera import Posed
from crm_cli.learn.data import Shards, labels_of, store
from crm_cli.learn.examples import PRODUCTS, Source, to_bytes
from crm_cli.learn.materials import Floats, Random
from crm_cli.learn.render import Eyes, OwnRenderer, Renderer
from crm_cli.records import expect

VIEWS_EACH = 16

FOV_RAD = 0.6911
"""Of the cameras that the published network was trained from (Shap-E's Blender script)."""

LOWEST_DEG, HIGHEST_DEG = -30.0, 70.0
"""How far above the object's middle a viewer stands: also from below, where six views see most things too."""

LEAST_RADIUS = 0.8
"""Of the ball that a picture is fitted to: the object's width alone is twice as much."""

STREAM = 7
"""Sets the viewers' random numbers apart from those of the example with the same seed."""

SAMPLES = 2
"""Samples per pixel along each axis, of colour and coverage."""

Paint = Callable[[NDArray[np.int64], Floats], Floats]
"""The sRGB colours [N 3] of places on a surface, given their faces [N] and weights [N 3] on them."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Portraits:
    """K pictures of one object at S px.

    rgba uint8 [K 4 S S]: colours over black, and coverage. toward float16 [K S S]: the coordinate towards
    the viewer of what pixel centres show, zero where empty. axes [K 3 3], distance [K]: see `Eyes`.
    """

    rgba: NDArray[np.uint8]
    toward: NDArray[np.float16]
    axes: NDArray[np.float32]
    distance: NDArray[np.float32]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "Portraits",
            rgba=(self.rgba, "K 4 S S"),
            toward=(self.toward, "K S S"),
            axes=(self.axes, "K 3 3"),
            distance=(self.distance, "K"),
        )


ARRAYS = {"rgba": "portrait", "toward": "portrait_toward", "axes": "eye_axes", "distance": "eye_distance"}
"""What the arrays of portraits are called in a shard, and in a batch, which is the same with a leading B."""


def eyes_of(axes: Tensor, distance: Tensor) -> Eyes:
    """The viewers of portraits."""
    return Eyes(axes=axes, distance=distance, zoom=torch.full_like(distance, 1 / np.tan(FOV_RAD / 2)))


def draw_eyes(rng: Random, radius: float, *, count: int = VIEWS_EACH) -> Eyes:
    """Draw viewers evenly around an object of some radius about the origin, each at some height."""
    turn = 2 * np.pi * (rng.uniform() + np.arange(count)) / count
    height = rng.uniform(np.sin(np.radians(LOWEST_DEG)), np.sin(np.radians(HIGHEST_DEG)), count)
    level = np.sqrt(1 - height**2)
    toward = np.stack((level * np.sin(turn), level * np.cos(turn), height), -1)
    right = np.stack((-np.cos(turn), np.sin(turn), np.zeros(count)), -1)
    axes = np.stack((right, np.cross(toward, right), toward), 1)  # [K 3 3]
    # As near as the whole ball of that radius is in the picture.
    distance = np.full(count, max(radius, LEAST_RADIUS) / np.sin(FOV_RAD / 2))
    return eyes_of(torch.from_numpy(axes).float(), torch.from_numpy(distance).float())


def portray(
    vertices: Floats, faces: NDArray[np.int64], paint: Paint, eyes: Eyes, renderer: Renderer, *, size_px: int
) -> Portraits:
    """Render a painted mesh as its viewers see it.

    Args:
        vertices: [V 3], inside [-1, 1]³.
        faces: [F 3].
        paint: Its colours.
        eyes: K viewers.
        renderer: The one that will draw what is held against this.
        size_px: S.
    """
    points, triangles = torch.from_numpy(vertices), torch.from_numpy(faces)
    fine = SAMPLES * size_px
    placed = eyes.place(points, fine)
    drawing = renderer.draw(placed, triangles, size_px=fine)
    hit = drawing.covered
    painted = torch.zeros(*hit.shape, 4)
    rgb = paint(drawing.face[hit].numpy(), drawing.barycentric[hit].numpy())
    painted[hit] = functional.pad(torch.from_numpy(rgb), (0, 1), value=1.0)
    smooth = renderer.smooth(painted, drawing, placed, triangles).permute(0, 3, 1, 2)
    rgba = functional.avg_pool2d(smooth, SAMPLES).numpy()
    # Depth is not blended: across a border it would be that of nothing.
    seen = renderer.draw(eyes.place(points, size_px), triangles, size_px=size_px)
    places = seen.interpolate(points, triangles)  # [K S S 3]
    toward = torch.einsum("khwd,kd->khw", places, eyes.axes[:, 2])
    return Portraits(
        rgba=to_bytes(rgba),
        toward=toward.numpy().astype(np.float16),
        axes=eyes.axes.numpy(),
        distance=eyes.distance.numpy(),
    )


def paint_of(posed: Posed) -> Paint:
    """The colours of a product, lit as in its six views."""
    corners = 0.9 + 0.1 * (posed.normals @ posed.up)  # [F 3]

    def paint(face: NDArray[np.int64], weights: Floats) -> Floats:
        light = (corners[face] * weights).sum(axis=1, keepdims=True)
        lit: Floats = (posed.product.colour_at(face, weights) * light).astype(np.float32)
        return lit

    return paint


def portray_product(posed: Posed, rng: Random, renderer: Renderer, *, size_px: int) -> Portraits:
    """Portraits of a product, from viewers drawn for its size."""
    eyes = draw_eyes(rng, float(np.linalg.norm(posed.vertices, axis=1).max()))
    return portray(posed.vertices, posed.faces, paint_of(posed), eyes, renderer, size_px=size_px)


def write_portraits(
    file: Path, seeds: range, raster: Raster, size_px: int, *, source: Source = PRODUCTS
) -> None:
    """Render the portraits of one example per seed, and store them stacked; see `data.write_shard`."""
    renderer = OwnRenderer(raster)
    made, families = [], []
    for seed in seeds:
        posed = source.posed(seed, size_px=size_px)
        rng = np.random.default_rng((seed, STREAM))
        made.append(portray_product(posed, rng, renderer, size_px=size_px))
        families.append(posed.product.family)
    stacked = {name: np.stack([getattr(one, field) for one in made]) for field, name in ARRAYS.items()}
    store(file, seeds, {**stacked, "family": labels_of(families)})


class Portrayed:
    """Examples together with their portraits."""

    def __init__(self, examples: Shards, portraits: Shards) -> None:
        """Lay two folders side by side. UsageError where they are not of the same examples."""
        self.examples, self.portraits = examples, portraits
        ends = (0, len(examples) - 1)
        if len(examples) != len(portraits) or any(
            examples[index][name] != portraits[index][name] for index in ends for name in ("seed", "family")
        ):
            raise UsageError(
                f"{portraits.folder}: not the portraits of the examples in {examples.folder}",
                code="E_TRAIN_DATA",
                remedy="remove that folder, or give another --data folder",
            )

    def __len__(self) -> int:
        return len(self.examples)

    def at_step(self, step: int) -> int:
        """All of them, at every step."""
        return len(self)

    def batch(self, indices: NDArray[np.int64]) -> dict[str, Tensor]:
        """Read several examples, stacked [B ...], with what ARRAYS names."""
        return self.examples.batch(indices) | self.portraits.batch(indices)
