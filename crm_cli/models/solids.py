"""Shapes that need no network: what one silhouette allows, for photos the networks fail on.

Both fill the photo's silhouette exactly, so the front always looks right. What the photo does not show is
a guess: an upright, nearly symmetric outline becomes a turned shape, everything else a cushion.
"""

from __future__ import annotations

from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.models.field import Field
from crm_cli.models.flexicubes import CubeWeights
from crm_cli.models.hull import away_from_border, silhouette_distance, spread
from crm_cli.records import Cutout

BULGE = 3.0
"""Curvature of a cushion. 2 makes a long strip's section a circle, 4 makes a disc a ball."""

MAX_HALF_DEPTH = 0.6
"""World units that the half-depth of a wide cushion approaches: a poster must not become a ball."""

MIN_HALF_DEPTH = 0.02
"""Half-depth at a cushion's rim, so that thin parts still fill a cell of a grid of 80."""

CUSHION_PX = 128
"""Side of the grid on which a cushion is computed; it is smooth, and its outline is not taken from it."""

SYMMETRIC = 0.95
"""Overlap of a silhouette with its mirror image from which it may be a turned shape."""

WHOLE_ROWS = 0.98
"""Share of the span of its rows that a turned shape's silhouette fills: legs and handles leave gaps."""

RECTANGLE = 0.93
"""Share of its bounding box that a silhouette may fill before it is a box rather than a turned shape."""


def fallback_solid(cutout: Cutout) -> Field:
    """The likelier of the two solids for this silhouette."""
    return revolved(cutout) if is_turned(cutout) else inflated(cutout)


def inflated(cutout: Cutout) -> Field:
    """The silhouette blown up towards front and back like a cushion, thick where it is wide."""
    return _Solid(cutout, _Cushion(cutout.alpha))


def revolved(cutout: Cutout) -> Field:
    """The silhouette's outline turned about its vertical axis."""
    return _Solid(cutout, _Lathe(cutout.alpha))


def is_turned(cutout: Cutout) -> bool:
    """Whether a silhouette may be a turned shape standing upright: a bottle, not a chair or a carton."""
    mask = _mask(cutout.alpha)
    if not mask.any():
        return False
    rows, columns = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
    box = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    spans = np.where(box.any(1), box.shape[1] - box.argmax(1) - box[:, ::-1].argmax(1), 0).sum()
    overlap = (box & box[:, ::-1]).sum() / (box | box[:, ::-1]).sum()
    return bool(overlap > SYMMETRIC and box.sum() > WHOLE_ROWS * spans and box.mean() < RECTANGLE)


class _Shape(Protocol):
    def sdf(self, points: Tensor) -> Tensor: ...


class _Solid:
    """A shape that wears the photo: seen as it is from the front, mirrored from the back."""

    def __init__(self, cutout: Cutout, shape: _Shape) -> None:
        self._shape = shape
        kept = away_from_border(_mask(cutout.alpha))
        rgb = cutout.rgb.detach().float().cpu().numpy()
        self._photo = torch.from_numpy(spread(rgb, kept) if kept.any() else rgb)

    def geometry(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Signed distance bound [N], negative inside; the grid is not deformed."""
        return self._shape.sdf(points), torch.zeros_like(points)

    def cube_weights(self, corners: Tensor) -> CubeWeights | None:
        """Neutral ones."""
        return None

    def colour(self, points: Tensor) -> Tensor:
        """What the photo shows before or behind each point, [N 3] in [0, 1]."""
        return _look_up(self._photo, -points[:, 0], -points[:, 2]).T


class _Cushion:
    def __init__(self, alpha: Tensor) -> None:
        self._outline = _outline(alpha)
        small = F.interpolate(alpha[None].detach().float().cpu(), (CUSHION_PX, CUSHION_PX), mode="area")[0, 0]
        self._height = torch.from_numpy(_membrane((small > 0.5).numpy()))[None]

    def sdf(self, points: Tensor) -> Tensor:
        u, v = -points[:, 0], -points[:, 2]
        half_depth = (BULGE * _look_up(self._height, u, v)[0]).sqrt()
        half_depth = half_depth / (1 + (half_depth / MAX_HALF_DEPTH).square()).sqrt()
        half_depth = (half_depth.square() + MIN_HALF_DEPTH**2).sqrt()
        return torch.maximum(points[:, 1].abs() - half_depth, _look_up(self._outline, u, v)[0])


class _Lathe:
    def __init__(self, alpha: Tensor) -> None:
        self._outline = _outline(alpha)
        columns = np.flatnonzero(_mask(alpha).any(0))
        self._axis = float(columns[0] + columns[-1] + 1) / alpha.shape[-1] - 1 if len(columns) else 0.0
        """Column of the axis, in [-1, 1]."""

    def sdf(self, points: Tensor) -> Tensor:
        radius = torch.hypot(points[:, 0] + self._axis, points[:, 1])
        v = -points[:, 2]
        # The mean of both sides: a little asymmetry is shared out.
        one, other = (_look_up(self._outline, self._axis + side * radius, v)[0] for side in (-1, 1))
        return (one + other) / 2


def _mask(alpha: Tensor) -> NDArray[np.bool_]:
    mask: NDArray[np.bool_] = (alpha[0] > 0.5).cpu().numpy()
    return mask


def _outline(alpha: Tensor) -> Tensor:
    """Signed distance to the silhouette [1 S S] in world units."""
    return torch.from_numpy(silhouette_distance(alpha[0].detach().float().cpu().numpy()))[None]


def _look_up(picture: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """Values [C N] of a picture [C S S] at columns u and rows v in [-1, 1]."""
    places = torch.stack((u, v), -1)[None, None]
    sampled = F.grid_sample(picture.to(places)[None], places, align_corners=False, padding_mode="border")
    return sampled[0, :, 0]


def _membrane(mask: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Height [S S] of a soap film over the mask under unit pressure: -1 is its Laplacian, 0 its border.

    The square root of such a film's height is a cushion with round sections and no ridges.
    """
    from scipy import ndimage, sparse
    from scipy.sparse import linalg

    height = np.zeros(mask.shape, np.float32)
    count = int(mask.sum())
    if not count:
        return height
    number = np.pad(np.where(mask, mask.cumsum().reshape(mask.shape) - 1, -1), 1, constant_values=-1)
    own = number[1:-1, 1:-1][mask]
    parts = []
    for beside in (number[:-2, 1:-1], number[2:, 1:-1], number[1:-1, :-2], number[1:-1, 2:]):
        other = beside[mask]
        both = other >= 0
        parts.append(sparse.coo_array((-np.ones(both.sum()), (own[both], other[both])), (count, count)))
    matrix = sum(parts, start=4 * sparse.eye_array(count)).tocsc()
    pixel = 2 / mask.shape[0]
    height[mask] = linalg.spsolve(matrix, np.full(count, pixel**2))
    # The mask's pixel steps would show as ripples along the rim.
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(height, 1.0)
    return smooth
