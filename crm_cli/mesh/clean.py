"""From the raw surface of a field to one a shop can use: whole, light, closed, facing outwards."""

from __future__ import annotations

import logging
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix, diags

from crm_cli.errors import PhotoError
from crm_cli.mesh.inspect import corners, shape_of, signed_volume
from crm_cli.mesh.lods import coarser
from crm_cli.mesh.mend import LATTICE, REACH, Points, mend
from crm_cli.mesh.slivers import without_slivers
from crm_cli.mesh.topology import Indices, compact, half_edges, parts, turned
from crm_cli.records import Mesh, UnwrappedMesh

log = logging.getLogger(__name__)

MIN_COMPONENT = 0.06
"""Parts smaller than this share of the largest are floaters: five cells of an 80³ grid."""

CRUMB_EXTENT, CRUMB_AREA = 0.35, 0.012
"""So are parts with less than these shares of the largest extent and of the whole surface. A loose wire as
long as the object is none: it has little surface, but anybody would miss it."""

GENTLE, ROUGH = (3, 2), (5, 7)
"""Aggressiveness: 3 keeps within 0.1 % of the cube at an eighth of the faces. 7 is the library's own
choice; it reaches any budget, but tears meshes, so the rough ones are tried where the gentle fell short."""

HEADROOM = 0.97
"""Share of the budget to aim for where mending had to add faces."""

PASSES = 6
"""A pass stops where its error bound has run out, at about a seventh of the faces."""

MAX_VOLUME_CHANGE = 0.05
"""A decimation that loses more than this has lost a part, not detail."""

SMOOTHING = 0.5
PASS_BAND = 0.1
"""Taubin's λ, and the frequency 1/λ + 1/μ below which shape is kept. (Taubin 1995)"""


class Decimation(Protocol):
    """A way to make a closed surface lighter."""

    def __call__(self, points: Points, faces: Indices, *, budget: int) -> tuple[Points, Indices]:
        """Give at most `budget` faces, or as few as this way can."""
        ...


def clean(mesh: Mesh, *, faces: int, min_component: float = MIN_COMPONENT, smooth: int = 0) -> Mesh:
    """Make a raw surface closed, manifold and light.

    Args:
        mesh: Triangles of any quality, roughly within [-1, 1]³.
        faces: The most faces to keep.
        min_component: Parts go whose extent is below this share of the largest part's and whose area is
            below its square; and crumbs.
        smooth: Rounds of smoothing without shrinkage, against the ripple of the grid.

    Returns vertices on a lattice coarse enough that no two merge by rounding later.

    Raises:
        PhotoError: E_MESH_EMPTY, E_MESH_NONFINITE, E_MESH_BOUNDS or E_MESH_OPEN.
    """
    points, triangles = _checked(mesh)
    points, triangles = mend(points, triangles)
    points, triangles = genuine_parts(points, triangles, min_component=min_component)
    if smooth:
        points, triangles = mend(smoothed(points, triangles, rounds=smooth), triangles)
    points, triangles = without_slivers(*decimated(points, triangles, budget=faces))
    # A thin neck may have parted, and left a crumb.
    points, triangles = genuine_parts(points, triangles, min_component=min_component)
    result = Mesh(vertices=points.astype(np.float32), faces=triangles)
    if not shape_of(result).is_sound:
        raise _poor("the surface could not be closed", "E_MESH_OPEN")
    return result


def _poor(cause: str, code: str) -> PhotoError:
    return PhotoError(cause, code=code, kind="quality", remedy="try another seed")


def _checked(mesh: Mesh) -> tuple[Points, Indices]:
    """Refuse what no repair can use."""
    points, faces = compact(mesh.vertices.astype(np.float64), mesh.faces)
    if not len(faces):
        raise _poor("the field has no surface", "E_MESH_EMPTY")
    if not np.isfinite(points).all():
        raise _poor("the surface has coordinates that are not finite", "E_MESH_NONFINITE")
    if np.abs(points).max() > REACH / 2:
        raise _poor("the surface leaves the unit cube by far", "E_MESH_BOUNDS")
    return points, faces


def genuine_parts(points: Points, faces: Indices, *, min_component: float) -> tuple[Points, Indices]:
    """Drop floaters, sheets and what is shut up inside another part; turn the rest outwards."""
    count, labels = parts(half_edges(faces))
    a, b, c = corners(points, faces)
    normals = np.cross(b - a, c - a)
    areas = np.bincount(labels, np.linalg.norm(normals, axis=1) / 2, count)
    volumes = np.bincount(labels, np.einsum("fi,fi->f", a, normals) / 6, count)
    lowest, highest = _boxes(points, faces, labels, count)
    extents = np.linalg.norm(highest - lowest, axis=1)
    is_big = (extents >= min_component * extents.max(initial=0)) | (
        areas >= min_component**2 * areas.max(initial=0)
    )
    is_crumb = (extents < CRUMB_EXTENT * extents.max(initial=0)) & (areas < CRUMB_AREA * areas.sum())
    has_inside = np.abs(volumes) > LATTICE * areas
    kept = np.flatnonzero(is_big & ~is_crumb & has_inside)
    kept = kept[
        [not _is_shut_up(part, kept, points, faces, labels, lowest, highest) for part in kept.tolist()]
    ]
    if not len(kept):
        raise _poor("nothing solid is left of the surface", "E_MESH_EMPTY")
    log.debug("%d of %d parts kept", len(kept), count)
    return compact(points, turned(faces, volumes[labels] < 0)[np.isin(labels, kept)])


def _boxes(points: Points, faces: Indices, labels: Indices, count: int) -> tuple[Points, Points]:
    """Give the lowest and highest corner [count 3] of every part."""
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], np.arange(count))
    a, b, c = corners(points, faces[order])
    lowest: Points = np.minimum.reduceat(np.minimum(np.minimum(a, b), c), first)
    highest: Points = np.maximum.reduceat(np.maximum(np.maximum(a, b), c), first)
    return lowest, highest


def _is_shut_up(
    part: int,
    others: Indices,
    points: Points,
    faces: Indices,
    labels: Indices,
    lowest: Points,
    highest: Points,
) -> bool:
    """Say whether a part lies inside another one, where nobody can see it."""
    own = faces[labels == part]
    sample = points[own[:: max(1, len(own) // 8), 0]]
    return any(
        bool((winding(sample, points, faces[labels == other]) > 0.5).all())
        for other in others
        if other != part and (lowest[other] <= lowest[part]).all() and (highest[part] <= highest[other]).all()
    )


def winding(places: Points, points: Points, faces: Indices) -> NDArray[np.float64]:
    """Say how often a closed surface winds around each place [N], whatever its direction.

    Sums the faces' solid angles. (Van Oosterom and Strackee 1983)
    """
    turns: list[float] = []
    for place in places:
        a, b, c = corners(points - place, faces)
        la, lb, lc = (np.linalg.norm(arm, axis=1) for arm in (a, b, c))
        volume = np.einsum("fi,fi->f", a, np.cross(b, c))
        dot_ab, dot_bc, dot_ca = (np.einsum("fi,fi->f", p, q) for p, q in ((a, b), (b, c), (c, a)))
        turns.append(np.arctan2(volume, la * lb * lc + dot_ab * lc + dot_bc * la + dot_ca * lb).sum())
    return np.abs(np.array(turns, np.float64) / (2 * np.pi))


def smoothed(points: Points, faces: Indices, *, rounds: int) -> Points:
    """Level ripples shorter than a few edges and keep everything longer, volume included.

    Each round averages with the neighbours and then steps back a little more. (Taubin 1995)
    """
    start, end = faces.ravel(), np.roll(faces, -1, axis=1).ravel()
    links = coo_matrix((np.ones(len(start)), (start, end)), shape=(len(points),) * 2).tocsr()
    average = diags(1 / np.asarray(links.sum(axis=1)).ravel()) @ links
    back = 1 / (PASS_BAND - 1 / SMOOTHING)
    for step in (SMOOTHING, back) * rounds:
        points = points + step * (average @ points - points)
    return points


def decimated(points: Points, faces: Indices, *, budget: int) -> tuple[Points, Indices]:
    """Reduce to the budget, and keep every handle and every part where one of the tries does."""
    if len(faces) <= budget:
        return points, faces
    euler, volume = _euler(faces), signed_volume(points, faces)
    tries = [(points, faces)]
    ways: list[Decimation] = [
        partial(_reduced, aggressiveness=aggressiveness) for aggressiveness in (*GENTLE, *ROUGH)
    ]
    # The library gives up early on flat sides and long thin faces; drawing vertices together does not.
    ways.insert(len(GENTLE), _drawn_together)
    for number, way in enumerate(ways):
        if number > len(GENTLE) and any(len(t[1]) <= budget for t in tries):
            break
        lighter = way(points, faces, budget=budget)
        if abs(signed_volume(*lighter) / volume - 1) > MAX_VOLUME_CHANGE:
            continue
        if len(lighter[1]) <= budget and _euler(lighter[1]) == euler:
            return lighter
        tries.append(lighter)
    best = min(tries, key=lambda t: (max(len(t[1]), budget), abs(_euler(t[1]) - euler)))
    log.info(
        "decimated to %d faces of %d; Euler number %d was %d", len(best[1]), budget, _euler(best[1]), euler
    )
    return best


def _reduced(points: Points, faces: Indices, *, budget: int, aggressiveness: int) -> tuple[Points, Indices]:
    """Collapse edges until the budget is met or a pass gains nothing; closed after every pass."""
    from fast_simplification import simplify

    target = budget
    for _ in range(PASSES):
        lighter = simplify(points, faces.astype(np.int32), target_count=target, agg=aggressiveness)
        try:
            mended = mend(lighter[0], lighter[1].astype(np.int64))
        except PhotoError:
            break
        if len(mended[1]) >= len(faces):
            break
        points, faces = mended
        if len(faces) <= budget:
            break
        target = int(HEADROOM * budget)
    return points, faces


def _drawn_together(points: Points, faces: Indices, *, budget: int) -> tuple[Points, Indices]:
    """Collapse edges into vertices that exist: slower, and a little less true to round shapes."""
    bare = UnwrappedMesh(
        mesh=Mesh(vertices=points.astype(np.float32), faces=faces),
        uv=np.zeros((1, 2), np.float32),
        uv_faces=np.zeros_like(faces),
    )
    lighter = coarser(bare, budget).mesh
    return lighter.vertices.astype(np.float64), lighter.faces


def _euler(faces: Indices) -> int:
    """Give the Euler number of a closed surface."""
    return np.unique(faces).size - len(faces) // 2
