"""The published training layout: six rendered views of an object and six pictures of its coordinates.

For each object twelve PNG files: `000.png` to `005.png`, RGBA, in the order of frame.VIEWS, and
`xyz_new_000.png` to `xyz_new_005.png`, whose colours are the world's coordinates, 127.5 · (x + 1). The views
are orthographic over [-1, 1], which the longest side of the object fills. (thu-ml/CRM training data;
measured on its published example, where all twelve agree with frame.VIEWS to 0.01)
A list of captions may lie beside the objects; our networks are always asked the same, and do not read it.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crm_cli.frame import FRONT, LEFT, VIEWS
from crm_cli.learn.camera import DEPTH_EXTENT, EXTENT, FLAT
from crm_cli.learn.examples import EMPTY, UNMEASURED, Example, nearest_surface, spoil, to_bytes
from crm_cli.learn.materials import Floats, Random
from crm_cli.learn.subject import FAMILY, Unusable
from crm_cli.models.hull import spread
from crm_cli.records import expect

VIEW_NAMES = tuple(f"{number:03d}.png" for number in range(len(VIEWS)))
MAP_NAMES = tuple(f"xyz_new_{number:03d}.png" for number in range(len(VIEWS)))

SOLID = 128
"""Alpha from which a pixel belongs to the object."""

OFF_GRID = 0.05
"""Coordinates this far from where their pixel lies are none: borders hold mixtures with the background."""

SAMPLES = 4
"""Depths looked up per pixel along each axis; they cannot be averaged across an edge as colours can."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class RenderedObject:
    """One object as its files show it at H px, in the order of frame.VIEWS.

    rgba uint8 [6 H H 4]; depth float32 [6 H H], the world coordinate towards the camera, EMPTY outside.
    """

    rgba: NDArray[np.uint8]
    depth: Floats

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("RenderedObject", rgba=(self.rgba, "6 H H 4"), depth=(self.depth, "6 H H"))

    @property
    def bounds(self) -> Floats:
        """Lowest and highest coordinate of the outlines [2 3]."""
        front, left = self.rgba[FRONT, ..., 3] >= SOLID, self.rgba[LEFT, ..., 3] >= SOLID
        # Columns of the front run towards -x, those of the left view towards +y, rows towards -z.
        columns, rows, across = _ends(front, 0), _ends(front, 1), _ends(left, 0)
        return np.stack([-columns[::-1], across, -rows[::-1]], axis=-1)


def _ends(outline: NDArray[Any], axis: int) -> Floats:
    """First and last place over [-1, 1] where an outline [H H], seen along an axis, is: [2]."""
    at = np.flatnonzero(outline.any(axis=axis))
    return np.array([at[0], at[-1] + 1], np.float32) * np.float32(2 / len(outline)) - 1


def read_object(views: Sequence[bytes], maps: Sequence[bytes]) -> RenderedObject:
    """Read the twelve files of an object, and check that their coordinates are those of the views.

    Raises:
        Unusable: One is damaged, has another shape or no alpha, shows nothing, or other coordinates.
    """
    pictures = [_picture(data, name, "RGBA") for data, name in zip(views, VIEW_NAMES, strict=True)]
    coordinates = [_picture(data, name, "RGB") for data, name in zip(maps, MAP_NAMES, strict=True)]
    for picture, name in zip([*pictures, *coordinates], [*VIEW_NAMES, *MAP_NAMES], strict=True):
        if len(picture) != len(pictures[0]):
            raise Unusable(f"{name}: not as large as {VIEW_NAMES[0]}")
    rgba = np.stack(pictures)
    depths = [
        _depth(rgba[number, ..., 3] >= SOLID, found, number) for number, found in enumerate(coordinates)
    ]
    return RenderedObject(rgba=rgba, depth=np.stack(depths))


def _picture(data: bytes, name: str, mode: str) -> NDArray[np.uint8]:
    """Read a square picture of a mode."""
    try:
        with Image.open(io.BytesIO(data)) as picture:
            picture.load()
            has_alpha = picture.has_transparency_data
            pixels = np.array(picture.convert(mode))
    except Exception as error:  # whatever a damaged file makes Pillow say
        raise Unusable(f"{name}: not a readable picture: {type(error).__name__}: {error}") from error
    if pixels.shape[0] != pixels.shape[1]:
        raise Unusable(f"{name}: not square")
    if mode == "RGBA" and not has_alpha:
        raise Unusable(f"{name}: no alpha channel")
    return pixels


def _depth(solid: NDArray[np.bool_], colours: NDArray[np.uint8], number: int) -> Floats:
    """Turn a picture of coordinates [H H 3] into depth towards its camera [H H]; whole within the outline."""
    view, name = VIEWS[number], MAP_NAMES[number]
    if not solid.any():
        raise Unusable(f"{VIEW_NAMES[number]}: shows nothing")
    places = colours.astype(np.float32) / np.float32(127.5) - 1
    axis = ((np.arange(len(solid)) + 0.5) / len(solid) * 2 - 1).astype(np.float32)
    across = np.abs(places @ np.array(view.right, np.float32) - axis[None, :])
    down = np.abs(places @ np.array(view.up, np.float32) + axis[:, None])
    agrees = solid & (np.maximum(across, down) < OFF_GRID)
    if agrees.sum() < solid.sum() / 2:
        raise Unusable(f"{name}: its colours are not the coordinates of the {view.name} view")
    depth = places @ np.array(view.toward, np.float32)
    filled: Floats = np.where(solid, spread(depth, agrees), np.float32(EMPTY))
    return filled


def example_of_views(rng: Random, seen: RenderedObject, *, size_px: int) -> Example:
    """Make an example of an object's pictures: its photo is the front view, spoiled as photos are.

    The object is fitted to the world as products are: front silhouette centred, longest side EXTENT.
    """
    views, depth = fitted(seen, size_px=size_px)
    photo = spoil(rng, views[FRONT].transpose(1, 2, 0).astype(np.float32) / np.float32(255))
    return Example(family=FAMILY, photo=photo, views=views, depth=depth, **UNMEASURED._asdict())


def fitted(seen: RenderedObject, *, size_px: int) -> tuple[NDArray[np.uint8], NDArray[np.float16]]:
    """Shift and scale all six views as `camera.pose` does a product: views [6 4 S S], depth [6 S S]."""
    low, high = seen.bounds
    centre, extent = (low + high) / 2, np.maximum(high - low, FLAT)
    scale = np.full(3, EXTENT / max(extent[0], extent[2]), np.float32)
    scale[1] = min(scale[1], DEPTH_EXTENT / extent[1])
    views, depths = [], []
    for number, view in enumerate(VIEWS):
        right, up, toward = (np.array(axis, np.float32) for axis in (view.right, view.up, view.toward))
        middle = np.array([centre @ right, -(centre @ up)])
        reach = np.array([1 / (scale @ np.abs(right)), 1 / (scale @ np.abs(up))])
        box = np.concatenate([middle - reach, middle + reach])  # left, top, right, bottom, over [-1, 1]
        rgba = _colours(seen.rgba[number], box, size_px)
        samples = _looked_up(seen.depth[number], box, size_px)
        shifted = np.where(
            samples > EMPTY / 2, (samples - centre @ toward) * (scale @ np.abs(toward)), np.float32(EMPTY)
        )
        depths.append(_under(rgba[..., 3] > 0, shifted))
        views.append(rgba.transpose(2, 0, 1))
    return np.stack(views), np.stack(depths)


def _colours(rgba: NDArray[np.uint8], box: NDArray[np.float64], size_px: int) -> NDArray[np.uint8]:
    """Average what a box over [-1, 1] of a picture [H H 4] shows: [S S 4], zero where there is nothing."""
    side = len(rgba)
    at = (box + 1) / 2 * side
    room = int(np.ceil(max(0.0, -at.min(), at.max() - side))) + 1
    values = np.pad(rgba.astype(np.float32) / np.float32(255), ((room, room), (room, room), (0, 0)))
    values[..., :3] *= values[..., 3:]
    averaged = np.stack(
        [
            np.asarray(
                Image.fromarray(np.ascontiguousarray(values[..., channel])).resize(
                    (size_px, size_px), Image.Resampling.HAMMING, tuple(at + room)
                )
            )
            for channel in range(4)
        ],
        -1,
    )
    alpha = averaged[..., 3:]
    rgba_bytes = to_bytes(np.concatenate([averaged[..., :3] / np.maximum(alpha, 1e-6), alpha], -1))
    return rgba_bytes * (rgba_bytes[..., 3:] > 0)


def _looked_up(depth: Floats, box: NDArray[np.float64], size_px: int) -> Floats:
    """Look up depths [H H] at SAMPLES² places of each pixel of a box: [K S S], EMPTY beyond the picture."""
    side, fine = len(depth), SAMPLES * size_px
    share = (np.arange(fine) + 0.5) / fine
    column, row = (
        np.floor((box[k] + share * (box[k + 2] - box[k]) + 1) / 2 * side).astype(np.int64) for k in (0, 1)
    )
    padded = np.pad(depth, 1, constant_values=EMPTY)
    found = padded[np.clip(row + 1, 0, side + 1)[:, None], np.clip(column + 1, 0, side + 1)[None, :]]
    grid = found.reshape(size_px, SAMPLES, size_px, SAMPLES)
    samples: Floats = grid.transpose(1, 3, 0, 2).reshape(-1, size_px, size_px)
    return samples


def _under(covered: NDArray[np.bool_], samples: Floats) -> NDArray[np.float16]:
    """Take the nearest surface of samples [K S S] where covered, a neighbour's where none hit: [S S]."""
    depth = nearest_surface(samples)
    hit: NDArray[np.bool_] = samples.max(axis=0) > EMPTY / 2
    if not hit.any():
        return np.zeros_like(depth)
    filled: NDArray[np.float16] = np.where(covered, spread(depth, hit), np.float16(0))
    return filled
