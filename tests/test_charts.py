"""Charts of solids whose flat pieces can be named: sides of a cube, faces of a stair, turns of a ribbon."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray

from crm_cli.errors import PhotoError
from crm_cli.mesh import charts as module
from crm_cli.mesh.charts import FACING, Charts, Floats, box_charts, lay_flat
from crm_cli.mesh.topology import ALONE, Indices, face_pairs, groups, half_edges

Solid = tuple[NDArray[np.float64], NDArray[np.int64]]

AXES = np.concatenate([np.eye(3), -np.eye(3)])
"""+x, +y, +z, -x, -y, -z."""


def arrays(solid: trimesh.Trimesh) -> Solid:
    return np.asarray(solid.vertices, np.float64), np.asarray(solid.faces, np.int64)


CUBE = arrays(trimesh.creation.box(extents=(1, 0.8, 0.6)).subdivide().subdivide())
BALL = arrays(trimesh.creation.icosphere(subdivisions=3, radius=0.7))


def ribbon(turns: float) -> Solid:
    """A sheet, open at its rim, that winds up around z like a spiral staircase."""
    angle = np.linspace(0, 2 * np.pi * turns, round(24 * turns) + 1)[:, None]
    across = np.linspace(0.3, 0.8, 4)
    points = np.stack([across * np.cos(angle), across * np.sin(angle), 0.1 * angle + 0 * across], -1)
    corner = np.arange(len(angle) * 4).reshape(-1, 4)
    a, b, c, d = corner[:-1, :-1], corner[:-1, 1:], corner[1:, 1:], corner[1:, :-1]
    faces = np.concatenate([np.stack([a, b, c], -1).reshape(-1, 3), np.stack([a, c, d], -1).reshape(-1, 3)])
    return points.reshape(-1, 3), faces


def unit_normals(points: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    a, b, c = (points[faces[:, i]] for i in range(3))
    normals = np.cross(b - a, c - a)
    return normals / np.linalg.norm(normals, axis=1, keepdims=True)


def test_a_box_has_a_chart_for_each_side() -> None:
    charts = box_charts(*CUBE)
    assert charts.count == 6
    np.testing.assert_allclose(AXES[charts.axis], unit_normals(*CUBE), atol=1e-12)
    assert all(len(set(charts.axis[charts.chart == chart])) == 1 for chart in range(6))


def test_a_ball_has_six_charts_that_meet_where_two_axes_are_equally_near() -> None:
    charts = box_charts(*BALL)
    assert charts.count == 6
    normals = unit_normals(*BALL)
    facing = (normals * AXES[charts.axis]).sum(axis=1)
    assert facing.min() > 0.45  # a corner of the cube of charts is at 1/sqrt(3)
    clear = np.sort(np.abs(normals), axis=1)
    clear = clear[:, 2] - clear[:, 1] > 0.25
    assert (charts.axis[clear] == (normals @ AXES.T).argmax(axis=1)[clear]).all()


@pytest.mark.parametrize("solid", [CUBE, BALL, ribbon(2.5)], ids=["box", "ball", "ribbon"])
def test_charts_are_connected_and_none_looks_away_from_its_axis(solid: Solid) -> None:
    charts = box_charts(*solid)
    left, right = face_pairs(half_edges(solid[1]))
    same = charts.chart[left] == charts.chart[right]
    assert groups(len(solid[1]), left[same], right[same])[0] == charts.count
    assert ((unit_normals(*solid) * AXES[charts.axis]).sum(axis=1) >= FACING).all()


@pytest.mark.parametrize("axis", range(6))
def test_a_chart_is_seen_along_its_axis_unmirrored_and_unscaled(axis: int) -> None:
    triangle = np.array([[0, 0, 0], [0.3, 0, 0], [0, 0.2, 0]])
    # Turn z to the axis, an even permutation with an even number of signs.
    rows = np.stack([AXES[(axis + 1) % 3], AXES[(axis + 2) % 3], AXES[axis % 3]])
    points = triangle @ rows if axis < 3 else triangle @ (rows * np.array([[-1], [1], [-1]]))
    faces = np.array([[0, 1, 2]])
    np.testing.assert_allclose(unit_normals(points, faces), AXES[[axis]], atol=1e-12)
    flat = lay_flat(points, faces, Charts(chart=np.array([0]), axis=np.array([axis])))
    a, b, c = flat.place[flat.corner]
    assert (b - a)[0] * (c - a)[1] - (b - a)[1] * (c - a)[0] == pytest.approx(0.06)
    assert np.linalg.norm([b - a, c - a, c - b], axis=1) == pytest.approx([0.3, 0.2, np.hypot(0.3, 0.2)])


def test_a_vertex_has_one_place_in_each_of_its_charts() -> None:
    points, faces = CUBE
    charts = box_charts(points, faces)
    flat = lay_flat(points, faces, charts)
    assert (flat.vertex[flat.corner] == faces.ravel()).all()
    assert (flat.chart[flat.corner] == np.repeat(charts.chart, 3)).all()
    assert len(flat.place) == len(np.unique(np.stack([flat.vertex, flat.chart]), axis=1).T)
    # 6 sides of 5 x 5 points; each of the box's 8 corners has three places.
    assert len(flat.place) == 6 * 25
    corners = (np.abs(points) == np.abs(points).max(axis=0)).all(axis=1)
    assert np.bincount(flat.vertex)[corners].tolist() == [3] * 8


@pytest.mark.parametrize("turns", [0.9, 1.5, 3.5])
def test_no_face_of_a_ribbon_shares_a_chart_with_the_one_a_turn_above(turns: float) -> None:
    points, faces = ribbon(turns)
    charts = box_charts(points, faces)
    assert (charts.axis == 2).all()
    assert np.ceil(turns) <= charts.count <= 2 * np.ceil(turns)
    a_turn = 24 * 3  # steps of a turn times faces across, for each of the two triangles of a quad
    for half in np.split(charts.chart, 2):
        assert (half[a_turn:] != half[:-a_turn]).all()


def two_floors(gap: float) -> Solid:
    """Two unit squares, one above the other; seen from above they overlap by 0.5 - gap along x and y."""
    points = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], float)
    upper = points + np.array((0.5 + gap, 0.5 + gap, 0.2))
    faces = np.array([[0, 1, 2], [0, 2, 3]])
    return np.concatenate([points, upper]), np.concatenate([faces, faces + 4])


@pytest.mark.parametrize(("gap", "clashes"), [(0.0, True), (0.75, False)])
def test_sheets_of_one_chart_clash_only_where_they_overlap(gap: float, clashes: bool) -> None:
    points, faces = two_floors(gap)
    together = Charts(chart=np.zeros(4, np.int64), axis=np.full(4, 2))
    edges = half_edges(faces)
    left, right = module._clashes(points, faces, edges, together, np.ones(4, np.bool_))
    assert (len(left) > 0) is clashes
    assert ((left < 2) != (right < 2)).all()
    apart = Charts(chart=np.array([0, 0, 1, 1]), axis=np.full(4, 2))
    assert not len(module._clashes(points, faces, edges, apart, np.ones(4, np.bool_))[0])


@pytest.mark.parametrize(
    ("count", "step_deg", "clashes"), [(6, 60, False), (7, 60, True), (3, 120, False), (3, 150, True)]
)
def test_faces_around_a_vertex_that_add_up_to_more_than_a_turn_clash(
    count: int, step_deg: float, clashes: bool
) -> None:
    # From just above -180 degrees: a clash of the last face with the first lies across the seam of arctan2.
    angle = np.radians(-170 + step_deg * np.arange(count + 1))
    rim = np.stack([np.cos(angle), np.sin(angle), 0.05 * np.arange(count + 1)], -1)
    points = np.concatenate([[[0, 0, 0]], rim])
    faces = np.array([[0, k + 1, k + 2] for k in range(count)])
    left, _ = clashes_around(points, faces)
    assert (len(left) > 0) is clashes


@pytest.mark.parametrize(("turn_deg", "clashes"), [(0, True), (30, True), (61, False), (180, False)])
def test_fans_that_meet_in_a_vertex_clash_where_they_lie_over_each_other(
    turn_deg: float, clashes: bool
) -> None:
    angle = np.radians([5, 35, 65])
    rims = [np.stack([np.cos(a), np.sin(a), np.zeros(3)], -1) for a in (angle, angle + np.radians(turn_deg))]
    points = np.concatenate([[[0, 0, 0]], *rims])
    left, right = clashes_around(points, np.array([[0, 1, 2], [0, 2, 3], [0, 4, 5], [0, 5, 6]]))
    assert (len(left) > 0) is clashes
    assert {(a // 6, b // 6) for a, b in zip(left.tolist(), right.tolist(), strict=True)} <= {(0, 1), (1, 0)}


def clashes_around(points: Floats, faces: Indices) -> tuple[Indices, Indices]:
    """Pairs of corners of one chart that overlap at a vertex."""
    flat = lay_flat(points, faces, Charts(chart=np.zeros(len(faces), np.int64), axis=np.full(len(faces), 2)))
    corner = np.arange(3 * len(faces))
    ends = [flat.corner[corner // 3 * 3 + (corner + k) % 3] for k in range(3)]
    return module._overlaps_around(flat, *ends, np.flatnonzero(half_edges(faces).opposite == ALONE))


def test_crossing_segments_are_those_that_brute_force_finds() -> None:
    random = np.random.default_rng(4)
    start = random.random((150, 2))
    end = start + 0.3 * (random.random((150, 2)) - 0.5)
    chart = random.integers(0, 2, 150)
    place = np.concatenate([start, end])
    left, right = module._crossings(place, np.arange(150), np.arange(150) + 150, chart)
    found = {tuple(sorted(pair)) for pair in zip(left.tolist(), right.tolist(), strict=True)}

    def crosses(i: int, j: int) -> bool:
        step = np.stack([end[i] - start[i], start[j] - end[j]], axis=1)
        s, t = np.linalg.solve(step, start[j] - start[i])
        return bool(0 <= s <= 1 and 0 <= t <= 1)

    wanted = {(i, j) for i in range(150) for j in range(i + 1, 150) if chart[i] == chart[j] and crosses(i, j)}
    assert found == wanted
    assert len(wanted) > 20


def test_what_never_comes_apart_is_a_photo_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CUT_ROUNDS", 1)
    with pytest.raises(PhotoError, match="E_UV_FOLD") as caught:
        box_charts(*ribbon(3.5))
    assert caught.value.kind == "quality"
