"""Where the photo was taken from, as far as its outline and the finished surface's tell.

The networks take every photo for the front view of an orthographic camera that sees exactly the cut-out's
square. That is where the search begins, and where it ends unless another place fits clearly better.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.fragments import Raster, project
from crm_cli.frame import FRONT, VIEWS
from crm_cli.records import Camera, Crop, Mesh

OUTLINE_PX = 256
"""Outlines are laid on each other at the size of the views: a pixel is half a percent of the object."""

SOLID = 0.5
"""Alpha from which a pixel of the cut-out is the subject."""

MIN_GAIN = 0.02
"""Intersection over union that another place must gain: less is what smoothing does to an outline."""

FURTHEST, LARGEST = 0.25, 1.5
"""How far from the cut-out's own place, in half canvases, and by which factor, a fit may move."""

TRIES = 120
"""Evaluations of the fit; three parameters settle in half as many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """An orthographic camera in front of the object, on the canvas of the cut-out.

    The canvas spans [-1, 1]; a world point comes to lie at scale · (−x, −z) + (right, down).
    """

    scale: float = 1.0
    right: float = 0.0
    down: float = 0.0
    iou: float = 0.0
    """Intersection over union of both outlines."""
    is_refined: bool = False
    """Whether this is another place than the networks' convention says."""

    def place(self, vertices: Tensor, size_px: int) -> Tensor:
        """Place world points [V 3] on a canvas of S pixels, as `Raster.rasterize` reads them."""
        seen = project(vertices, VIEWS[FRONT], size_px)
        half = size_px / 2
        seen[:, 0] = (seen[:, 0] - half) * self.scale + half * (1 + self.right)
        seen[:, 1] = (seen[:, 1] - half) * self.scale + half * (1 + self.down)
        return seen

    def canvas(self, points: Tensor) -> Tensor:
        """Where on the canvas world points [N 3] lie: [N 2] in [-1, 1], right and down."""
        across = points[:, [0, 2]] * -self.scale
        return across + across.new_tensor((self.right, self.down))


def aim_at(mesh: Mesh, alpha: NDArray[np.float32], raster: Raster) -> Aim:
    """Find the place from which a mesh's outline lies best on the cut-out's alpha [S S].

    The search turns nothing and bends nothing: an outline hardly tells a roll or a perspective from a
    fault of the surface.
    """
    import cv2

    shown = cv2.resize(alpha, (OUTLINE_PX, OUTLINE_PX), interpolation=cv2.INTER_AREA)
    drawn = _outline(Aim(), mesh, raster)
    base = Aim(iou=_likeness(drawn, shown))
    if base.iou > 1 - MIN_GAIN:
        return base
    found = _fitted(drawn, shown)
    better = replace(found, iou=_likeness(_outline(found, mesh, raster), shown), is_refined=True)
    return better if better.iou >= base.iou + MIN_GAIN else base


def describe(aim: Aim, mesh: Mesh, crop: Crop, *, width_px: int, height_px: int) -> Camera:
    """Say the same in pixels of the photo, with the place that the asset takes in it."""
    px_per_unit = aim.scale * crop.side_px / 2
    centre_x = crop.centre_x + aim.right * crop.side_px / 2
    centre_y = crop.centre_y + aim.down * crop.side_px / 2
    low, high = (edge(mesh.vertices, axis=0).astype(float) * px_per_unit for edge in (np.min, np.max))
    # A thousandth of a pixel is finer than anything here is known.
    return Camera(
        kind="orthographic",
        view=VIEWS[FRONT].name,
        centre_x=round(centre_x, 3),
        centre_y=round(centre_y, 3),
        px_per_unit=round(px_per_unit, 3),
        left=round(centre_x - float(high[0]), 3),
        top=round(centre_y - float(high[2]), 3),
        right=round(centre_x - float(low[0]), 3),
        bottom=round(centre_y - float(low[2]), 3),
        photo_width_px=width_px,
        photo_height_px=height_px,
        silhouette_iou=round(aim.iou, 4),
        is_refined=aim.is_refined,
    )


def _outline(aim: Aim, mesh: Mesh, raster: Raster) -> NDArray[np.float32]:
    """How much of each pixel the mesh covers: [S S]."""
    import cv2

    fine = 2 * OUTLINE_PX
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    seen = raster.rasterize(aim.place(vertices, fine), faces, height=fine, width=fine)
    outline: NDArray[np.float32] = cv2.resize(
        seen.covered.float().numpy(), (OUTLINE_PX, OUTLINE_PX), interpolation=cv2.INTER_AREA
    )
    return outline


def _likeness(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """Intersection over union of two coverages [S S]; 0 where both are empty."""
    union = float(np.maximum(one, other).sum())
    return float(np.minimum(one, other).sum()) / union if union else 0.0


def _fitted(drawn: NDArray[np.float32], shown: NDArray[np.float32]) -> Aim:
    """Move and scale one coverage onto another: [S S] each.

    An orthographic picture only moves and grows with its camera, so that the one drawn serves for all.
    """
    import cv2
    from scipy.optimize import minimize

    half = OUTLINE_PX / 2
    low, high = np.array([1 / LARGEST, -FURTHEST, -FURTHEST]), np.array([LARGEST, FURTHEST, FURTHEST])

    def unlikeness(place: NDArray[Any]) -> float:
        scale = float(place[0])
        # Half a pixel: cv2 counts from the middle of the first.
        shift = (half - 0.5) * (1 - scale) + half * place[1:]
        moved = cv2.warpAffine(
            drawn,
            np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]),
            (OUTLINE_PX, OUTLINE_PX),
            flags=cv2.INTER_LINEAR,
        )
        return -_likeness(moved, shown)

    starts = [np.array([1.0, 0.0, 0.0]), _by_boxes(drawn > SOLID, shown > SOLID)]
    start = np.clip(min(starts, key=unlikeness), low, high)
    # Steps of a twentieth and less: the published networks' framing is that far from the cut-out's.
    simplex = start + np.vstack([np.zeros(3), np.diag([0.05, 0.03, 0.03])])
    found = minimize(
        unlikeness,
        start,
        method="Nelder-Mead",
        bounds=list(zip(low, high, strict=True)),
        options={"initial_simplex": simplex, "maxfev": TRIES, "xatol": 1e-3, "fatol": 1e-4},
    ).x
    return Aim(scale=float(found[0]), right=float(found[1]), down=float(found[2]))


def _by_boxes(drawn: NDArray[np.bool_], shown: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Scale, right and down that lay one outline's box on the other's, by their longest sides."""
    if not (drawn.any() and shown.any()):
        return np.array([1.0, 0.0, 0.0])
    boxes = []
    for mask in (drawn, shown):
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        boxes.append(
            np.array([[columns[0], rows[0]], [columns[-1] + 1, rows[-1] + 1]]) / (OUTLINE_PX / 2) - 1
        )
    scale = np.ptp(boxes[1], axis=0).max() / np.ptp(boxes[0], axis=0).max()
    return np.array([scale, *(boxes[1].mean(axis=0) - scale * boxes[0].mean(axis=0))])


__all__ = ["Aim", "aim_at", "describe"]
