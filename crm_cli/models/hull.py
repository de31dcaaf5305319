"""What six views say about a shape before anything is learned: a depth hull and visible colours.

A coordinate map is a depth map: two of its three channels repeat the pixel's place. Each view
therefore splits space in two: a point in front of the surface that the view sees, or beside the
object's silhouette, is certainly outside; a point behind it may be inside. The hull is what no view
calls outside.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from crm_cli.frame import VIEWS
from crm_cli.records import SixViews

VISIBLE = 0.03
"""World units behind the visible surface at which a view's colour counts 1/e (one cell of a grid of 64)."""

FRONTALITY = 2.0
"""Exponent of the cosine by which a view that sees a surface obliquely counts less."""

MISPLACED = 0.03
"""A map pixel whose in-plane channels are further from its own place than this is mixed with the
background. At least two pixels are always allowed, so that small maps pass."""

AnyFloat = TypeVar("AnyFloat", bound=np.floating[Any])

_ACROSS = torch.tensor([(view.right, [-a for a in view.up]) for view in VIEWS], dtype=torch.float32)
"""[6 2 3]: where column and row of each view grow."""
_TOWARD = torch.tensor([view.toward for view in VIEWS], dtype=torch.float32)
_DEPTH_AXIS = [view.depth_axis for view in VIEWS]


class Sight(NamedTuple):
    """What every view says of N points."""

    gaps: Tensor
    """[6 N], see `Hull.gaps`."""
    colours: Tensor
    """[3 6 N], what the view would paint there, in [0, 1]."""
    log_weights: Tensor
    """[6 N], 0 where a view sees the point squarely, strongly negative where it does not."""


class Hull:
    """The depth hull of six views, as functions of points in the world frame.

    Answers have the points last: a processor then reads what it computes together from one place.
    """

    def __init__(self, views: SixViews, *, trust: Tensor | None = None) -> None:
        """Measure the views. trust: [6], added to the logarithmic weight of each view's colours."""
        self._rgb, self._alpha = views.rgb, views.alpha
        self._shape = torch.from_numpy(_shapes(views)).to(views.rgb.device)  # [6 2 S S]
        """Depth towards the camera, signed silhouette distance."""
        self._trust = torch.zeros(len(VIEWS)) if trust is None else trust

    @cached_property
    def _maps(self) -> Tensor:
        """The same, the logarithm of the cosine to the line of sight, and colour: [6 6 S S].

        Not before somebody looks: many a hull is asked for its shape alone.
        """
        rgb, alpha = (pictures.detach().float().cpu().numpy() for pictures in (self._rgb, self._alpha[:, 0]))
        depth = self._shape[:, 0].cpu().numpy()
        paint = np.stack([_paint(*view) for view in zip(depth, alpha, rgb, strict=True)])
        return torch.cat((self._shape, torch.from_numpy(paint).to(self._shape)), dim=1)

    def gaps(self, points: Tensor) -> Tensor:
        """How far outside the object each view places each point.

        points: [N 3]. Returns [6 N] in world units: inside a view's silhouette the distance along the
        line of sight in front of the visible surface, never less than the signed distance to the
        silhouette in the picture plane. Negative means "may be inside".
        """
        depth, silhouette = _sample(self._shape, points)
        return torch.maximum(_heights(points) - depth, silhouette)

    def sdf(self, points: Tensor, *, doubt: Tensor | None = None) -> Tensor:
        """Signed distance bound of the hull [N], negative inside.

        doubt: [6 N] or [6 1], how many world units each view may be mistaken; a view with a large doubt
        cannot carve anything away.
        """
        gaps = self.gaps(points)
        return (gaps if doubt is None else gaps - doubt).amax(0)

    def look(self, points: Tensor) -> Sight:
        """Gap and colour of each point in each view, and how well that view sees it."""
        depth, silhouette, log_cosine, *colour = _sample(self._maps, points)
        in_front = _heights(points) - depth
        log_weights = (
            FRONTALITY * log_cosine - (in_front / VISIBLE).square() + self._trust.to(points)[:, None]
        )
        return Sight(torch.maximum(in_front, silhouette), torch.stack(colour), log_weights)

    def colour(self, points: Tensor) -> Tensor:
        """Blend of the views that see each point, [N 3] in [0, 1]; the least hidden view where none does."""
        seen = self.look(points)
        return blend(seen.colours, seen.log_weights).T


def blend(colours: Tensor, log_weights: Tensor) -> Tensor:
    """Weighted mean [3 N] of view colours [3 6 N]."""
    return (log_weights.softmax(0) * colours).sum(1)


def _heights(points: Tensor) -> Tensor:
    """How far points [N 3] lie towards each camera, [6 N]."""
    return _TOWARD.to(points) @ points.T


def _sample(maps: Tensor, points: Tensor) -> Tensor:
    """Maps [6 C S S] where each view sees each point, [C 6 N]."""
    places = _ACROSS.to(points) @ points.T  # [6 2 N]
    sampled = F.grid_sample(
        maps.to(points), places.mT[:, None], align_corners=False, padding_mode="border"
    )  # [6 C 1 N]
    return sampled[:, :, 0].transpose(0, 1)


def _shapes(views: SixViews) -> NDArray[np.float32]:
    """Per-view maps [6 2 S S] that may be sampled anywhere: depth, silhouette."""
    alpha, ccm = (
        pictures.detach().float().cpu().numpy() for pictures in (views.alpha[:, 0], 2 * views.ccm - 1)
    )
    any_seen = bool((alpha > 0.5).any())
    return np.stack([_view_shape(index, alpha[index], ccm[index], any_seen) for index in range(len(VIEWS))])


def _view_shape(
    index: int, alpha: NDArray[np.float32], ccm: NDArray[np.float32], any_seen: bool
) -> NDArray[np.float32]:
    mask = alpha > 0.5
    depth = ccm[_DEPTH_AXIS[index]] * VIEWS[index].depth_sign
    if not mask.any():
        # A view without an object contradicts the others; it must not carve everything away.
        depth = np.full_like(depth, 2.0 if any_seen else -2.0)
        return np.stack((depth, -depth))
    return np.stack((spread(depth, _in_place(index, mask, ccm)), silhouette_distance(alpha)))


def _paint(
    depth: NDArray[np.float32], alpha: NDArray[np.float32], rgb: NDArray[np.float32]
) -> NDArray[np.float32]:
    """What one view has beside its shape, [4 S S]: log cosine, colour. depth: spread."""
    mask = alpha > 0.5
    if not mask.any():
        return np.concatenate((np.full_like(depth, -100.0)[None], rgb), dtype=np.float32)
    colour = spread(rgb, away_from_border(mask))
    return np.concatenate((_log_cosine(depth)[None], colour), dtype=np.float32)


def _in_place(index: int, mask: NDArray[np.bool_], ccm: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Map pixels whose in-plane channels say what their place says; all of the mask if few do."""
    size = mask.shape[0]
    u = (2 * np.arange(size, dtype=np.float32) + 1) / size - 1
    view = VIEWS[index]
    error = np.zeros_like(ccm[0])
    for axis in range(3):
        if axis != view.depth_axis:
            error = np.maximum(error, abs(ccm[axis] - (view.right[axis] * u - view.up[axis] * u[:, None])))
    kept: NDArray[np.bool_] = mask & (error < max(MISPLACED, 4 / size))
    return kept if kept.sum() > 0.5 * mask.sum() else mask


def away_from_border(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Pixels whose colour is not mixed with the background; thin parts keep theirs.

    Two pixels at 256 hold a photo's resampled edge; views of 64 are too coarse to lose any.
    """
    import cv2

    margin_px = round(mask.shape[0] / 128 - 0.25)
    if margin_px < 1:
        return mask
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    core = cv2.erode(mask.astype(np.uint8), cross, iterations=margin_px)  # the picture's edge is no border
    if not core.any():
        return mask
    # A brush in place of distances: whatever it does not reach is further off.
    reach_px = 1.5 * margin_px + 1
    steps = np.arange(-int(reach_px), int(reach_px) + 1)
    brush = np.hypot(steps, steps[:, None]) <= reach_px
    kept: NDArray[np.bool_] = (core > 0) | mask & (cv2.dilate(core, brush.astype(np.uint8)) == 0)
    return kept


def spread(values: NDArray[AnyFloat], known: NDArray[np.bool_]) -> NDArray[AnyFloat]:
    """Give every pixel the value of the nearest known one, so that sampling never mixes in background."""
    rows, columns = nearest(known)
    # Faster than with two indices.
    everywhere: NDArray[AnyFloat] = values.reshape(*values.shape[:-2], -1).take(
        rows * known.shape[1] + columns, axis=-1
    )
    return everywhere


def nearest(known: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Row and column, [S S] each, of the known pixel that is nearest to each; some must be known."""
    from scipy import ndimage

    rows, columns = ndimage.distance_transform_edt(~known, return_distances=False, return_indices=True)
    return rows, columns


def silhouette_distance(alpha: NDArray[np.float32]) -> NDArray[np.float32]:
    """Signed distance to the silhouette [S S], negative inside, in units of half the picture.

    The border runs where alpha crosses one half between two pixels, not along pixel edges: a border
    pixel's own distance comes from its alpha and the steepest step beside it, every other pixel adds
    the way to the nearest border pixel. The picture's edge is no border.
    """
    from scipy import ndimage

    inside = alpha > 0.5
    steps = [np.abs(np.diff(alpha, axis=axis)) for axis in (0, 1)]
    flips = [np.diff(inside, axis=axis) for axis in (0, 1)]
    slope = np.hypot(*(_larger_neighbour(step, axis) for axis, step in enumerate(steps)))
    border = np.logical_or(*(_larger_neighbour(flip, axis) for axis, flip in enumerate(flips)))
    if not border.any():
        return np.full_like(alpha, -2.0 if inside.any() else 2.0)
    own_px = np.minimum(np.abs(alpha - 0.5) / np.maximum(slope, 1e-6), 0.71)
    rows, columns = nearest(border)
    height, width = alpha.shape
    # scipy gives it too, but takes longer.
    way_px = np.sqrt((rows - np.arange(height)[:, None]) ** 2 + (columns - np.arange(width)) ** 2)
    distance_px = np.where(inside, -1, 1) * (way_px + own_px[rows, columns])
    # Sub-pixel places are exact to a third of a pixel; a blur of one pixel takes the rest away.
    smooth: NDArray[np.float32] = ndimage.gaussian_filter(distance_px, 0.7).astype(np.float32)
    return smooth * np.float32(2 / alpha.shape[0])


def _larger_neighbour(steps: NDArray[Any], axis: int) -> NDArray[Any]:
    """The larger of the two steps beside each pixel along an axis; one more row than `steps`."""
    before = [(0, 0), (0, 0)]
    after = [(0, 0), (0, 0)]
    before[axis], after[axis] = (1, 0), (0, 1)
    larger: NDArray[Any] = np.maximum(np.pad(steps, before), np.pad(steps, after))
    return larger


def _log_cosine(depth: NDArray[np.float32]) -> NDArray[np.float32]:
    """Logarithm of the cosine between each pixel's surface and the line of sight, [S S]."""
    slopes = np.gradient(depth, 2 / depth.shape[0])
    cosine: NDArray[np.float32] = -0.5 * np.log1p(slopes[0] ** 2 + slopes[1] ** 2)
    return cosine
