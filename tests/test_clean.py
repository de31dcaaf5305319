from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_cli.errors import PhotoError
from crm_cli.frame import VIEWS
from crm_cli.mesh.clean import _boxes, clean, smoothed, winding
from crm_cli.mesh.inspect import shape_of
from crm_cli.mesh.likeness import silhouette_iou
from crm_cli.mesh.raster import WarpRaster, render_silhouette
from crm_cli.records import Mesh


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def together(*meshes: Mesh) -> Mesh:
    starts = np.cumsum([0] + [len(m.vertices) for m in meshes])
    return Mesh(
        vertices=np.concatenate([m.vertices for m in meshes]),
        faces=np.concatenate([m.faces + start for m, start in zip(meshes, starts, strict=False)]),
    )


def placed(mesh: Mesh, *offset: float, scale: float = 1.0) -> Mesh:
    vertices = mesh.vertices * np.float32(scale) + np.asarray(offset, np.float32)
    return Mesh(vertices=vertices, faces=mesh.faces)


def turned(mesh: Mesh) -> Mesh:
    return Mesh(vertices=mesh.vertices, faces=mesh.faces[:, ::-1])


def without(mesh: Mesh, *faces: int) -> Mesh:
    return Mesh(vertices=mesh.vertices, faces=np.delete(mesh.faces, faces, axis=0))


CUBE = mesh_of(trimesh.creation.box(extents=(0.5, 0.5, 0.5)))
SPHERE = mesh_of(trimesh.creation.icosphere(subdivisions=4, radius=0.7))
TORUS = mesh_of(trimesh.creation.torus(0.6, 0.2, major_sections=96, minor_sections=48))
PLENTY = 1_000_000


def is_watertight_for_an_importer(mesh: Mesh) -> bool:
    """What trimesh says after a pivot shift in float32 and a merge by position."""
    lowest, highest = mesh.vertices.min(axis=0), mesh.vertices.max(axis=0)
    pivot = np.array([(lowest[0] + highest[0]) / 2, (lowest[1] + highest[1]) / 2, lowest[2]], np.float32)
    solid = trimesh.Trimesh((mesh.vertices - pivot) * np.float32(0.05), mesh.faces, process=False)
    solid.merge_vertices()
    return bool(solid.is_watertight and solid.volume > 0 and len(solid.faces) == len(mesh.faces))


def test_a_sound_surface_stays_as_it_is() -> None:
    result = clean(SPHERE, faces=PLENTY)
    assert shape_of(result).is_sound
    assert (len(result.vertices), len(result.faces)) == (2562, 5120)
    assert shape_of(result).volume == pytest.approx(shape_of(SPHERE).volume, rel=1e-5)


@pytest.mark.parametrize(("budget", "tolerance"), [(4000, 0.01), (1000, 0.02), (200, 0.05)])
def test_decimation_keeps_the_budget_the_handle_and_the_volume(budget: int, tolerance: float) -> None:
    shape = shape_of(result := clean(TORUS, faces=budget))
    assert shape.is_sound
    assert 0.9 * budget <= shape.faces <= budget
    assert (shape.euler, shape.components, shape.degenerate_faces) == (0, 1, 0)
    assert shape.volume == pytest.approx(2 * math.pi**2 * 0.6 * 0.2**2, rel=tolerance)
    assert is_watertight_for_an_importer(result)


def test_two_solids_stay_and_floaters_go() -> None:
    floaters = [placed(SPHERE, 0.9 - 0.1 * k, 0.9, 0.9, scale=0.01) for k in range(5)]
    mesh = together(placed(SPHERE, -0.4, 0, 0, scale=0.5), placed(SPHERE, 0.4, 0, 0, scale=0.2), *floaters)
    shape = shape_of(clean(mesh, faces=PLENTY))
    assert shape.is_sound
    assert shape.components == 2
    assert shape.volume == pytest.approx(shape_of(SPHERE).volume * (0.5**3 + 0.2**3), rel=1e-4)


def test_a_crumb_goes_and_a_loose_knob_stays() -> None:
    body, knob = placed(SPHERE, -0.2, 0, 0), placed(SPHERE, 0.8, 0, 0, scale=0.12)
    flake = Mesh(vertices=knob.vertices * np.float32([1, 0.1, 1]), faces=knob.faces)
    assert shape_of(clean(together(body, knob), faces=PLENTY)).components == 2
    assert shape_of(clean(together(body, flake), faces=PLENTY)).components == 1


def test_a_long_thin_part_is_no_floater() -> None:
    wire = mesh_of(trimesh.creation.cylinder(radius=0.004, height=1.0))
    shape = shape_of(clean(together(placed(SPHERE, -0.2, 0, 0), placed(wire, 0.8, 0, 0)), faces=PLENTY))
    assert shape.components == 2


def test_what_is_shut_up_inside_goes() -> None:
    mesh = together(SPHERE, turned(placed(SPHERE, 0, 0, 0, scale=0.5)), placed(CUBE, 0, 0, 0, scale=0.2))
    shape = shape_of(clean(mesh, faces=PLENTY))
    assert shape.components == 1
    assert shape.volume == pytest.approx(shape_of(SPHERE).volume, rel=1e-5)


def test_a_part_in_a_bay_of_another_is_not_inside_it() -> None:
    ball = placed(SPHERE, 0, 0, 0, scale=0.2)
    assert shape_of(clean(together(TORUS, ball), faces=PLENTY)).components == 2


def test_an_inside_out_solid_is_turned() -> None:
    mesh = together(placed(CUBE, -0.5, 0, 0), turned(placed(CUBE, 0.5, 0, 0)))
    shape = shape_of(clean(mesh, faces=PLENTY))
    assert shape.is_sound
    assert shape.volume == pytest.approx(0.25)


def test_turned_doubled_and_missing_faces_are_mended() -> None:
    faces = SPHERE.faces.copy()
    faces[::7] = faces[::7, ::-1]
    holes = (np.abs(SPHERE.vertices[SPHERE.faces][:, :, 2]) > 0.65).all(axis=1)
    damaged = Mesh(vertices=SPHERE.vertices, faces=np.concatenate([faces[~holes], faces[1000:1100]]))
    shape = shape_of(clean(damaged, faces=PLENTY))
    assert shape.is_sound
    assert (shape.euler, shape.components) == (2, 1)
    assert shape.volume == pytest.approx(shape_of(SPHERE).volume, rel=2e-2)


def test_a_missing_side_of_a_cube_is_closed_flat() -> None:
    side = np.flatnonzero((CUBE.vertices[CUBE.faces][:, :, 0] > 0).all(axis=1))
    shape = shape_of(clean(without(CUBE, *side.tolist()), faces=PLENTY))
    assert shape.is_sound
    assert shape.volume == pytest.approx(0.125, rel=1e-6)


def test_a_soup_of_loose_triangles_is_welded() -> None:
    soup = Mesh(
        vertices=SPHERE.vertices[SPHERE.faces].reshape(-1, 3),
        faces=np.arange(3 * len(SPHERE.faces)).reshape(-1, 3),
    )
    assert len(clean(soup, faces=PLENTY).vertices) == len(SPHERE.vertices)


@pytest.mark.parametrize("touch", [(0.5, 0.5, 0.0), (0.5, 0.5, 0.5)], ids=["edge", "corner"])
def test_cubes_that_touch_are_drawn_apart(touch: tuple[float, float, float]) -> None:
    near, far = placed(CUBE, -0.25, -0.25, -0.25), placed(CUBE, *np.subtract(touch, 0.25))
    result = clean(together(near, far), faces=PLENTY)
    shape = shape_of(result)
    assert shape.is_sound
    assert (shape.components, shape.vertices) == (2, 16)
    assert shape.volume == pytest.approx(0.25, rel=1e-3)
    assert is_watertight_for_an_importer(result)


def test_cubes_that_share_a_side_become_one() -> None:
    shape = shape_of(clean(together(placed(CUBE, -0.25, 0, 0), placed(CUBE, 0.25, 0, 0)), faces=PLENTY))
    assert shape.is_sound
    assert shape.components == 1
    assert shape.volume == pytest.approx(0.25, rel=1e-3)


def test_needles_and_caps_go_and_nothing_opens() -> None:
    vertices = SPHERE.vertices.copy()
    rng = np.random.default_rng(5)
    for a, b, c in SPHERE.faces[rng.choice(len(SPHERE.faces), 40, replace=False)]:
        vertices[a] = (vertices[b] + vertices[c]) / 2
    result = clean(Mesh(vertices=vertices, faces=SPHERE.faces), faces=PLENTY)
    shape = shape_of(result)
    assert shape.is_sound
    assert shape.degenerate_faces == 0
    assert shape.volume == pytest.approx(shape_of(SPHERE).volume, rel=2e-2)


def test_smoothing_levels_ripple_and_keeps_the_volume() -> None:
    rng = np.random.default_rng(3)
    noise = 1 + 0.01 * rng.standard_normal((len(SPHERE.vertices), 1))
    points = smoothed(SPHERE.vertices * noise, SPHERE.faces, rounds=10)
    assert np.linalg.norm(points, axis=1).std() < 0.45 * 0.007
    result = clean(
        Mesh(vertices=(SPHERE.vertices * noise).astype(np.float32), faces=SPHERE.faces),
        faces=PLENTY,
        smooth=10,
    )
    assert shape_of(result).volume == pytest.approx(shape_of(SPHERE).volume, rel=1e-2)


def test_winding_is_one_inside_and_zero_outside() -> None:
    places = np.array([[0.6, 0, 0], [0, 0, 0], [0.9, 0, 0], [0, -0.6, 0.1]])
    found = winding(places, TORUS.vertices.astype(np.float64), TORUS.faces)
    assert found == pytest.approx([1, 0, 0, 1], abs=1e-6)


def rod(start: tuple[float, ...], end: tuple[float, ...], radius: float) -> Mesh:
    solid = trimesh.creation.cylinder(radius=radius, segment=[start, end], sections=32)
    return mesh_of(solid.subdivide().subdivide())


def stool() -> Mesh:
    """A seat on four thin legs that stand apart, none touching another."""
    seat = trimesh.creation.cylinder(radius=0.5, height=0.08, sections=96).apply_translation((0, 0, 0.45))
    legs = [
        rod((0.25 * x, 0.25 * y, 0.4), (0.45 * x, 0.45 * y, -0.7), 0.03) for x in (-1, 1) for y in (-1, 1)
    ]
    return together(mesh_of(seat.subdivide().subdivide()), *legs)


def hoop() -> Mesh:
    """A thin ring upright on a ball: a basket's handle."""
    ring = trimesh.creation.torus(0.5, 0.025, major_sections=160, minor_sections=24)
    ball = placed(SPHERE, 0, 0, -0.4, scale=0.6)
    upright = Mesh(vertices=ring.vertices[:, [0, 2, 1]].astype(np.float32), faces=ring.faces[:, ::-1])
    return together(ball, placed(upright, 0, 0, 0.2))


def rotated(mesh: Mesh, turn: int) -> Mesh:
    rotation = trimesh.transformations.random_rotation_matrix(np.random.default_rng(turn).random(3))[:3, :3]
    return Mesh(vertices=(mesh.vertices @ rotation.T).astype(np.float32), faces=mesh.faces)


@pytest.mark.parametrize("solid", [stool, hoop])
@pytest.mark.parametrize(("share", "least"), [(1, 0.995), (4, 0.99), (8, 0.98)])
def test_thin_legs_and_handles_keep_their_outline_from_all_sides(
    solid: Callable[[], Mesh], share: int, least: float
) -> None:
    mesh = solid()
    light = clean(mesh, faces=len(mesh.faces) // share)
    assert len(light.faces) <= len(mesh.faces) // share
    assert shape_of(light).is_sound
    raster = WarpRaster()
    for turn in range(4):
        for view in VIEWS[:3]:
            before, after = (
                render_silhouette(rotated(one, turn), raster, view, 256) for one in (mesh, light)
            )
            assert silhouette_iou(before, after) >= least


def _one_bad_coordinate(value: float) -> Mesh:
    vertices = SPHERE.vertices.copy()
    vertices[7, 1] = value
    return Mesh(vertices=vertices, faces=SPHERE.faces)


def test_every_part_has_its_own_box_whatever_the_order_of_faces() -> None:
    random = np.random.default_rng(5)
    points, faces = random.normal(size=(60, 3)), random.integers(60, size=(40, 3))
    labels = np.concatenate([np.arange(7), random.integers(7, size=33)])
    lowest, highest = _boxes(points, faces, labels, 7)
    for part in range(7):
        own = points[faces[labels == part].ravel()]
        assert (lowest[part] == own.min(axis=0)).all() and (highest[part] == own.max(axis=0)).all()


@pytest.mark.parametrize(
    ("mesh", "code"),
    [
        (Mesh(vertices=np.zeros((0, 3), np.float32), faces=np.zeros((0, 3), np.int64)), "E_MESH_EMPTY"),
        (_one_bad_coordinate(np.nan), "E_MESH_NONFINITE"),
        (_one_bad_coordinate(np.inf), "E_MESH_NONFINITE"),
        (_one_bad_coordinate(1e6), "E_MESH_BOUNDS"),
        (Mesh(vertices=SPHERE.vertices * np.float32([1, 1, 0]), faces=SPHERE.faces), "E_MESH_EMPTY"),
        (Mesh(vertices=SPHERE.vertices[:3], faces=np.array([[0, 1, 2]])), "E_MESH_EMPTY"),
    ],
    ids=["nothing", "nan", "infinite", "far away", "flat", "one triangle"],
)
def test_a_hopeless_surface_is_refused_with_its_reason(mesh: Mesh, code: str) -> None:
    with pytest.raises(PhotoError) as caught:
        clean(mesh, faces=PLENTY)
    assert (caught.value.code, caught.value.kind) == (code, "quality")


def test_a_vertex_no_face_uses_may_be_anything() -> None:
    mesh = Mesh(vertices=np.concatenate([SPHERE.vertices, np.float32([[np.nan] * 3])]), faces=SPHERE.faces)
    assert shape_of(clean(mesh, faces=PLENTY)).is_sound


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32 - 1),
    lost=st.integers(0, 60),
    doubled=st.integers(0, 30),
    flipped=st.integers(0, 60),
    merged=st.integers(0, 20),
    budget=st.sampled_from([300, 900, PLENTY]),
)
def test_random_damage_comes_out_sound(
    seed: int, lost: int, doubled: int, flipped: int, merged: int, budget: int
) -> None:
    rng = np.random.default_rng(seed)
    ball = mesh_of(trimesh.creation.icosphere(subdivisions=3, radius=0.7))
    vertices, faces = ball.vertices.copy(), ball.faces.copy()
    turn = rng.choice(len(faces), flipped, replace=False)
    faces[turn] = faces[turn, ::-1]
    # Far vertices made one: pinches, and edges of four faces.
    ends = rng.choice(len(vertices), (merged, 2))
    vertices[ends[:, 0]] = vertices[ends[:, 1]]
    kept = np.delete(faces, rng.choice(len(faces), lost, replace=False), axis=0)
    faces = np.concatenate([kept, faces[:doubled]])
    result = clean(Mesh(vertices=vertices, faces=faces), faces=budget)
    assert shape_of(result).is_sound
    assert len(result.faces) <= budget
    assert is_watertight_for_an_importer(result)
