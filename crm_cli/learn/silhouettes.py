"""Silhouettes of a drawn mesh, so that pictures change smoothly where it begins to hide something.

A pixel shows what its centre shows, and that does not change while an outline moves between two centres.
So wherever a silhouette edge passes between two neighbouring pixels, the one on its far side takes as much
of the near side's colour as the edge covers of the way, or the other way round: a picture's sum is then the
analytic area of what it shows, and so is its gradient. (after nvdiffrast, arXiv 2011.03277)

Edges are walked themselves, not looked up from the face a pixel shows: faces may be smaller than pixels.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from crm_cli.mesh.subpixels import SUBPIXELS


class Crossings(NamedTuple):
    """Where silhouettes pass between the centres of N pairs of neighbouring pixels."""

    near: Tensor
    """int64 [N], the pixel that shows what the silhouette belongs to, in the flat pictures [K S S]."""
    far: Tensor
    """int64 [N], its neighbour, which shows what lies behind."""
    way: Tensor
    """[N], where between the centre of near, 0, and that of far, 1, it passes; differentiable."""


class _Edges(NamedTuple):
    """Undirected edges of a mesh."""

    ends: Tensor
    """int64 [E 2]."""
    opposite: Tensor
    """int64 [E], the third corner of one of the edge's faces."""
    owner: Tensor
    """int64 [3F], the edge opposite each corner of each face."""
    counts: Tensor
    """int64 [E], how many faces meet there."""


def find_crossings(placed: Tensor, faces: Tensor, nearness: Tensor, *, is_empty: Tensor) -> Crossings:
    """Find where silhouettes show in K pictures, each pair of pixels once.

    Args:
        placed: [K V 3], where the vertices appear in every picture: pixels right, pixels down, nearness.
        faces: int64 [F 3].
        nearness: [K S S], what is drawn at pixel centres; anything where nothing is.
        is_empty: bool [K S S], where nothing is drawn.
    """
    edges = _edges_of(faces, placed.shape[1])
    view, edge = _is_silhouette(placed.detach(), faces, edges).nonzero(as_tuple=True)
    corners = torch.cat((edges.ends[edge], edges.opposite[edge, None]), 1)  # [N 3]
    flat = (view[:, None] * placed.shape[1] + corners).view(-1)
    points = placed.flatten(0, 1).index_select(0, flat).view(-1, 3, 3)  # a, b, opposite
    along = (points[:, 1, :2] - points[:, 0, :2]).detach().abs()
    # Counted along the axis that an edge runs across, each row or column once, its areas add up.
    is_steep = along[:, 1] >= along[:, 0]
    found = [
        _walk(points[chosen], view[chosen], nearness, is_empty, axis=axis)
        for axis, chosen in enumerate((is_steep.nonzero()[:, 0], (~is_steep).nonzero()[:, 0]))
    ]
    near, far, way = (torch.cat(parts) for parts in zip(*found, strict=True))
    return _outermost(near, far, way)


def blend(pictures: Tensor, crossings: Crossings) -> Tensor:
    """Move the borders in pictures [K S S C] from between pixels to where the silhouettes pass."""
    flat = pictures.flatten(0, 2)
    excess = (crossings.way - 0.5)[:, None]
    step = flat.index_select(0, crossings.near) - flat.index_select(0, crossings.far)
    # Beyond half of the way it covers some of the far pixel; before, it uncovers some of the near one.
    taker = torch.where(excess[:, 0] > 0, crossings.far, crossings.near)
    return flat.index_add(0, taker, excess * step).view_as(pictures)


def _edges_of(faces: Tensor, vertices: int) -> _Edges:
    pairs = torch.stack((faces.roll(-1, 1), faces.roll(-2, 1)), -1).view(-1, 2)  # opposite corners 0, 1, 2
    low, high = pairs.amin(1), pairs.amax(1)
    keys, owner, counts = torch.unique(low * vertices + high, return_inverse=True, return_counts=True)
    # A stable sort puts each edge's first face first, on any device.
    order = owner.argsort(stable=True)
    first = order[counts.cumsum(0) - counts]
    return _Edges(torch.stack((keys // vertices, keys % vertices), 1), faces.view(-1)[first], owner, counts)


def _is_silhouette(placed: Tensor, faces: Tensor, edges: _Edges) -> Tensor:
    """Where faces that look at the viewer meet others that do not, or an edge has one face: bool [K E]."""
    a, b, c = placed[:, faces.T, :2].unbind(1)  # [K F 2]
    across, down = (b - a).unbind(-1), (c - a).unbind(-1)
    facing = (across[0] * down[1] - across[1] * down[0]).sign()  # [K F]
    total = facing.new_zeros(len(placed), len(edges.counts))
    total.index_add_(1, edges.owner, facing.repeat_interleave(3, 1))
    return (total.abs() < edges.counts) | (edges.counts == 1)


def _walk(points: Tensor, view: Tensor, nearness: Tensor, is_empty: Tensor, *, axis: int) -> Crossings:
    """Cross N edges with every line of pixel centres between their ends.

    points: [N 3 3], both ends of an edge and the third corner of a face of it. axis: 0 for edges that are
    crossed by rows, whose pairs of pixels lie side by side; 1 for those crossed by columns.
    """
    size_px = nearness.shape[-1]
    # The rasteriser rounds corners; which pixels a crossing lies between must agree with it.
    rounded = (points.detach().double() * SUBPIXELS).round() / SUBPIXELS
    v = rounded[:, :2, 1 - axis]
    first = (v.amin(1) - 0.5).ceil().clamp(0, size_px)
    lines = ((v.amax(1) - 0.5).ceil().clamp(0, size_px) - first).long()
    which = torch.repeat_interleave(torch.arange(len(points), device=points.device), lines)
    step = torch.arange(len(which), device=points.device) - (lines.cumsum(0) - lines)[which]
    line = first[which].long() + step
    at, _ = _cross(rounded[which], line, axis)
    cell = (at - 0.5).floor().long()
    # Through a centre: which side that belongs to is the rasteriser's rule, so both of its pairs are tried.
    tie = (at - 0.5 == cell).nonzero()[:, 0]
    which, line = torch.cat((which, which[tie])), torch.cat((line, line[tie]))
    cell = torch.cat((cell, cell[tie] - 1))
    is_within = (cell >= 0) & (cell + 1 < size_px)
    which, line, cell = which[is_within], line[is_within], cell[is_within]
    crossed = points.index_select(0, which)
    at, depth = _cross(crossed, line, axis)
    beyond, _ = _cross(rounded[which], rounded[which, 2, 1 - axis] - 0.5, axis)
    is_after = rounded[which, 2, axis] > beyond  # whether the face lies at the second pixel of the pair

    stride, other = (1, size_px) if axis == 0 else (size_px, 1)
    pixel = view[which] * size_px**2 + line * other + cell * stride
    near = torch.where(is_after, pixel + stride, pixel)
    far = torch.where(is_after, pixel, pixel + stride)
    way = at - 0.5 - cell
    way = torch.where(is_after, 1 - way, way)

    seen, empty = nearness.view(-1), is_empty.view(-1)
    # An edge behind what its far pixel shows is hidden, and a face too thin to be drawn has no colour.
    is_seen = empty[far] | ((seen[near] > seen[far]) & (depth.detach() > seen[far]))
    kept = (is_seen & ~empty[near]).nonzero()[:, 0]
    return Crossings(near[kept], far[kept], way.index_select(0, kept))


def _cross(points: Tensor, line: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Where edges meet lines of pixel centres: the coordinate along the line, and nearness, [N] each."""
    a, b = points[:, 0], points[:, 1]
    share = (line + 0.5 - a[:, 1 - axis]) / (b[:, 1 - axis] - a[:, 1 - axis])
    return a[:, axis] + share * (b[:, axis] - a[:, axis]), a[:, 2] + share * (b[:, 2] - a[:, 2])


def _outermost(near: Tensor, far: Tensor, way: Tensor) -> Crossings:
    """Keep the furthest crossing of each pair: what several faces cover together ends there."""
    order = way.detach().argsort(stable=True)
    # Both neighbours and the direction: far lies at one of four places around near.
    key = near * 4 + (far - near).sign() + 2 * ((far - near).abs() > 1)
    order = order[key[order].argsort(stable=True)]
    is_last = key[order].diff(append=key.new_tensor([-(2**62)])) != 0
    kept = order[is_last]
    return Crossings(near[kept], far[kept], way.index_select(0, kept))
