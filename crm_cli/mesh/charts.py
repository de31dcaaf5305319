"""Cut a surface into charts that lie flat, seen along the six axes, without covering themselves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import dijkstra

from crm_cli.errors import PhotoError
from crm_cli.mesh.topology import ALONE, HalfEdges, Indices, face_pairs, groups, half_edges

Floats = NDArray[np.float64]

GRAZING = 0.3
"""Smallest cosine between a face and its chart's axis: below it one texel covers three across."""

FACING = 0.05
"""The same for crumbs, whose faces are too few to show the stretch."""

NORMAL_ROUNDS = 6
LABEL_ROUNDS = 10
"""Averaging rounds: a ring of faces each, so detail of a few faces does not get a chart of its own."""

NEIGHBOUR_VOTE = 0.6
"""What three agreeing neighbours weigh against the cosine; at 1 they would outvote any face's own."""

SMALL_CHART = 1e-3
"""Charts below this share of the surface join a neighbour where their faces allow it."""

ABSORB_ROUNDS = 8

CUT_ROUNDS = 40
"""Each round parts every chart that covers itself; a spiral of n turns takes about log2 n."""


SAME_ANGLE = 1e-6
"""A millionth of a radian: rounding of arctan2 at edges that are shared exactly."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Charts:
    """Charts of F faces; axis a is +x, +y, +z, -x, -y, -z for 0..5."""

    chart: Indices
    """[F], 0..K-1."""
    axis: Indices
    """[F]; the same throughout a chart."""

    @property
    def count(self) -> int:
        """How many charts there are."""
        return int(self.chart.max(initial=-1)) + 1


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Flat:
    """Charts laid flat: a vertex has one place in every chart it belongs to."""

    corner: Indices
    """[3F]: the flat vertex of every corner."""
    vertex: Indices
    """[W]: the vertex of every flat vertex."""
    chart: Indices
    """[W]"""
    place: Floats
    """[W 2], in units of the world; faces run counter-clockwise."""


def box_charts(points: Floats, faces: Indices) -> Charts:
    """Cut a surface so that every chart, seen along its axis, faces the viewer and hides nothing of itself.

    points [V 3], faces [F 3]. A chart's immersion in the plane is one-to-one when no two edges of its
    rim cross and the faces around each of its vertices do not overlap, so only these are looked at.
    """
    edges = half_edges(faces)
    axis = _axes(points, faces, edges)
    charts = Charts(chart=_connected(edges, axis), axis=axis)
    suspects = np.ones(len(faces), np.bool_)
    for _ in range(CUT_ROUNDS):
        left, right = _clashes(points, faces, edges, charts, suspects)
        if not len(left):
            return charts
        suspects = np.isin(charts.chart, charts.chart[left])
        charts = _parted(points, faces, edges, charts, left, right)
    raise PhotoError("the surface could not be laid flat", code="E_UV_FOLD", kind="quality")


def lay_flat(points: Floats, faces: Indices, charts: Charts) -> Flat:
    """See every chart along its axis."""
    keys, corner = np.unique(np.repeat(charts.chart, 3) * len(points) + faces.ravel(), return_inverse=True)
    axis_of_chart = np.zeros(charts.count, np.int64)
    axis_of_chart[charts.chart] = charts.axis
    chart, vertex = np.divmod(keys, len(points))
    axis = axis_of_chart[chart]
    depth = axis % 3
    sideways = np.where(axis < 3, 1.0, -1.0) * points[vertex, (depth + 1) % 3]
    return Flat(
        corner=corner,
        vertex=vertex,
        chart=chart,
        place=np.stack([sideways, points[vertex, (depth + 2) % 3]], axis=1),
    )


def _axes(points: Floats, faces: Indices, edges: HalfEdges) -> Indices:
    """Choose an axis for every face: near its smoothed normal, like its neighbours', never grazing."""
    neighbours = np.where(edges.opposite == ALONE, np.arange(len(edges.opposite)), edges.opposite)
    neighbours = (neighbours // 3).reshape(-1, 3)
    normals = np.cross(points[faces[:, 1]] - points[faces[:, 0]], points[faces[:, 2]] - points[faces[:, 0]])
    cosines = _cosines(normals)
    is_fit = cosines >= GRAZING
    is_fit[~is_fit.any(axis=1)] = True  # faces without area fit anywhere
    smooth = normals
    for _ in range(NORMAL_ROUNDS):
        # One neighbour after the other: numpy sums slowly along an axis so short.
        first, second, third = (smooth.take(neighbours[:, side], axis=0) for side in range(3))
        smooth = smooth + (first + second + third)
    own = np.where(is_fit, _cosines(smooth), -np.inf)
    axis: Indices = own.argmax(axis=1)
    for _ in range(LABEL_ROUNDS):
        axis = (own + NEIGHBOUR_VOTE / 3 * _votes(axis, neighbours)).argmax(axis=1)
    areas = np.linalg.norm(normals, axis=1)
    for _ in range(ABSORB_ROUNDS):
        chart = _connected(edges, axis)
        small = np.flatnonzero((np.bincount(chart, areas) < SMALL_CHART * areas.sum())[chart])
        beside = neighbours[small]
        may_join = chart[beside] != chart[small, None]
        offers = (may_join[:, :, None] & (axis[beside][:, :, None] == np.arange(6))).any(axis=1)
        offers &= cosines[small] >= FACING
        joins = offers.any(axis=1)
        if not joins.any():
            break
        axis[small[joins]] = np.where(offers, cosines[small], -np.inf)[joins].argmax(axis=1)
    return axis


def _votes(axis: Indices, neighbours: Indices) -> NDArray[np.int8]:
    """Count how many of its neighbours [F 3] have each axis: [F 6]."""
    has = np.eye(6, dtype=np.int8)[axis]
    return has[neighbours[:, 0]] + has[neighbours[:, 1]] + has[neighbours[:, 2]]


def _cosines(normals: Floats) -> Floats:
    """Give the cosine of normals [F 3] with the six axes, [F 6]; 0 where there is no normal."""
    lengths = np.linalg.norm(normals, axis=1, keepdims=True)
    unit = normals / np.maximum(lengths, np.finfo(np.float64).tiny)
    return np.concatenate([unit, -unit], axis=1)


def _connected(edges: HalfEdges, labels: Indices) -> Indices:
    """Number the connected parts [F] of faces with one label."""
    left, right = face_pairs(edges)
    is_same = labels[left] == labels[right]
    return groups(len(labels), left[is_same], right[is_same])[1]


def _clashes(
    points: Floats, faces: Indices, edges: HalfEdges, charts: Charts, suspects: NDArray[np.bool_]
) -> tuple[Indices, Indices]:
    """Find pairs of faces of one chart that show where it covers itself, among suspect faces."""
    chosen = np.flatnonzero(suspects)
    chart = charts.chart[chosen]
    flat = lay_flat(points, faces[chosen], Charts(chart=chart, axis=charts.axis[chosen]))
    opposite = edges.opposite.reshape(-1, 3)[chosen]
    other = np.where(opposite == ALONE, -1, charts.chart[opposite // 3])
    rim = np.flatnonzero((other != chart[:, None]).ravel())
    corner = flat.corner.reshape(-1, 3)
    start, end, third = corner.ravel(), corner[:, [1, 2, 0]].ravel(), corner[:, [2, 0, 1]].ravel()
    crossing = _crossings(flat.place, start[rim], end[rim], chart[rim // 3])
    around = _overlaps_around(flat, start, end, third, rim)
    return (
        chosen[np.concatenate([rim[crossing[0]], around[0]]) // 3],
        chosen[np.concatenate([rim[crossing[1]], around[1]]) // 3],
    )


def _overlaps_around(
    flat: Flat, start: Indices, end: Indices, third: Indices, rim: Indices
) -> tuple[Indices, Indices]:
    """Find neighbouring corners whose angles at their common flat vertex overlap.

    start, end, third: the flat vertices of every corner and of the two after it. rim: half-edges.
    """
    arm, other = flat.place[end] - flat.place[start], flat.place[third] - flat.place[start]
    span = np.arctan2(
        arm[:, 0] * other[:, 1] - arm[:, 1] * other[:, 0], arm[:, 0] * other[:, 0] + arm[:, 1] * other[:, 1]
    )
    # Faces in one fan follow each other: they overlap only when they go around more than once.
    count = len(flat.vertex)
    goes_on = np.bincount(start, span, count) > 2 * np.pi + SAME_ANGLE
    is_apart = np.bincount(start[rim], minlength=count) > 1
    turns_back = np.bincount(start[span <= 0], minlength=count) > 0
    corners = np.flatnonzero((goes_on | is_apart | turns_back)[start])
    owner, arm, span = start[corners], arm[corners], span[corners]
    begin = np.arctan2(arm[:, 1], arm[:, 0])
    order = np.lexsort((begin, owner))
    owner, begin, stop = owner[order], begin[order], (begin + span)[order]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    counts = np.diff(first, append=len(owner))
    after = np.arange(1, len(owner) + 1)
    after[first + counts - 1] = first  # the last corner's next is the first, a turn later
    turn = np.zeros(len(owner))
    turn[first + counts - 1] = 2 * np.pi
    clash = np.flatnonzero((stop > begin[after] + turn + SAME_ANGLE) & (np.repeat(counts, counts) > 1))
    return corners[order[clash]], corners[order[after[clash]]]


def _crossings(place: Floats, start: Indices, end: Indices, chart: Indices) -> tuple[Indices, Indices]:
    """Find pairs of segments of one chart that meet elsewhere than in a common end."""
    left, right = _near(place[start], place[end], chart)
    shares_end = (
        (start[left] == start[right])
        | (start[left] == end[right])
        | (end[left] == start[right])
        | (end[left] == end[right])
    )
    left, right = left[~shares_end], right[~shares_end]
    a, b, c, d = place[start[left]], place[end[left]], place[start[right]], place[end[right]]
    apart = ((np.maximum(a, b) < np.minimum(c, d)) | (np.maximum(c, d) < np.minimum(a, b))).any(axis=1)
    meets = (_side(a, b, c) * _side(a, b, d) <= 0) & (_side(c, d, a) * _side(c, d, b) <= 0) & ~apart
    return left[meets], right[meets]


def _side(a: Floats, b: Floats, p: Floats) -> Floats:
    """Say on which side of a → b the point p lies: exact for vertices on the lattice of mend."""
    return np.sign((b[:, 0] - a[:, 0]) * (p[:, 1] - a[:, 1]) - (b[:, 1] - a[:, 1]) * (p[:, 0] - a[:, 0]))


def _near(start: Floats, end: Floats, chart: Indices) -> tuple[Indices, Indices]:
    """Pair segments of one chart that touch a common cell of a grid as wide as a middling segment."""
    if not len(start):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    length = np.abs(end - start).max(axis=1)
    cell = max(float(np.median(length)), float(length.max()) / 1024)
    pieces = 1 + (length / cell).astype(np.int64)
    owner = np.repeat(np.arange(len(start)), pieces)
    step = np.arange(len(owner)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    shares = (step / pieces[owner], (step + 1) / pieces[owner])
    ends = [np.floor((start[owner] + (end - start)[owner] * share[:, None]) / cell) for share in shares]
    low, high = (np.asarray(pick(*ends), np.int64) for pick in (np.minimum, np.maximum))
    # A piece is no longer than a cell: the corners of its box are all the cells it can touch.
    cells = np.concatenate([np.stack([x[:, 0], y[:, 1]], axis=1) for x in (low, high) for y in (low, high)])
    cells -= cells.min(axis=0)
    width, height = (int(n) + 1 for n in cells.max(axis=0))
    owners = np.tile(owner, 4)
    keys = (chart[owners] * width + cells[:, 0]) * height + cells[:, 1]
    order = np.lexsort((owners, keys))
    return _pairs_in_runs(keys[order], owners[order])


def _pairs_in_runs(keys: Indices, values: Indices) -> tuple[Indices, Indices]:
    """Give all pairs of values that share a key; keys are sorted."""
    left: list[Indices] = []
    right: list[Indices] = []
    for shift in range(1, len(keys)):
        same = np.flatnonzero(keys[shift:] == keys[:-shift])
        if not len(same):
            break
        same = same[values[same] != values[same + shift]]
        left.append(values[same])
        right.append(values[same + shift])
    nothing = np.zeros(0, np.int64)
    return np.concatenate([nothing, *left]), np.concatenate([nothing, *right])


def _parted(
    points: Floats, faces: Indices, edges: HalfEdges, charts: Charts, left: Indices, right: Indices
) -> Charts:
    """Cut each chart once, midway between the upper and the lower face of its deepest clash."""
    middles = points[faces].mean(axis=1)[np.arange(len(faces)), charts.axis % 3]
    depth = np.where(charts.axis < 3, middles, -middles)
    order = np.lexsort((-np.abs(depth[left] - depth[right]), charts.chart[left]))
    left, right = left[order], right[order]
    deepest = np.diff(charts.chart[left], prepend=-1) > 0
    upper = np.where(depth[left] >= depth[right], left, right)[deepest]
    lower = np.where(depth[left] >= depth[right], right, left)[deepest]
    one, two = face_pairs(edges)
    is_parted = np.zeros(charts.count, np.bool_)
    is_parted[charts.chart[left]] = True
    inside = (charts.chart[one] == charts.chart[two]) & is_parted[charts.chart[one]]
    graph = coo_matrix((np.ones(int(inside.sum())), (one[inside], two[inside])), shape=(len(faces),) * 2)
    _, _, nearest = dijkstra(
        graph.tocsr(),
        directed=False,
        indices=np.concatenate([upper, lower]),
        unweighted=True,
        min_only=True,
        return_predecessors=True,
    )
    return Charts(chart=_connected(edges, 2 * charts.chart + np.isin(nearest, upper)), axis=charts.axis)
