from __future__ import annotations

import math
import time

import numpy as np
import pytest
import trimesh

from crm_cli.mesh.inspect import shape_of
from crm_cli.records import Mesh


def mesh_of(solid: trimesh.Trimesh) -> Mesh:
    return Mesh(vertices=solid.vertices.astype(np.float32), faces=solid.faces.astype(np.int64))


def both(left: Mesh, right: Mesh) -> Mesh:
    return Mesh(
        vertices=np.concatenate([left.vertices, right.vertices]),
        faces=np.concatenate([left.faces, right.faces + len(left.vertices)]),
    )


def moved(mesh: Mesh, *offset: float) -> Mesh:
    return Mesh(vertices=mesh.vertices + np.asarray(offset, np.float32), faces=mesh.faces)


CUBE = mesh_of(trimesh.creation.box(extents=(0.5, 0.5, 0.5)))
SPHERE = mesh_of(trimesh.creation.icosphere(subdivisions=4, radius=0.7))
TORUS = mesh_of(trimesh.creation.torus(0.6, 0.2, major_sections=64, minor_sections=32))


def test_a_sphere_is_sound_and_has_its_volume() -> None:
    shape = shape_of(SPHERE)
    assert shape.is_sound
    assert (shape.euler, shape.components, shape.degenerate_faces) == (2, 1, 0)
    assert (shape.vertices, shape.faces) == (2562, 5120)
    assert shape.volume == pytest.approx(4 / 3 * math.pi * 0.7**3, rel=3e-3)


def test_a_torus_has_one_handle_and_the_volume_of_pappus() -> None:
    shape = shape_of(TORUS)
    assert shape.is_sound
    assert shape.euler == 0
    assert shape.volume == pytest.approx(2 * math.pi**2 * 0.6 * 0.2**2, rel=1e-2)


def test_the_volume_does_not_depend_on_where_the_solid_is() -> None:
    assert shape_of(moved(SPHERE, 0.25, -0.25, 0.125)).volume == pytest.approx(
        shape_of(SPHERE).volume, rel=1e-5
    )


def test_two_solids_are_two_components_with_euler_four() -> None:
    shape = shape_of(both(moved(CUBE, -0.5, 0, 0), moved(CUBE, 0.5, 0, 0)))
    assert shape.is_sound
    assert (shape.components, shape.euler) == (2, 4)
    assert shape.volume == pytest.approx(0.25)


def test_a_missing_face_opens_the_surface_and_nothing_else() -> None:
    shape = shape_of(Mesh(vertices=CUBE.vertices, faces=CUBE.faces[1:]))
    assert not shape.is_closed
    assert shape.is_manifold
    assert shape.is_oriented
    assert shape.euler == 1


def test_one_turned_face_is_an_orientation_fault_only() -> None:
    faces = SPHERE.faces.copy()
    faces[100] = faces[100, ::-1]
    shape = shape_of(Mesh(vertices=SPHERE.vertices, faces=faces))
    assert shape.is_closed
    assert shape.is_manifold
    assert not shape.is_oriented


def test_an_inside_out_solid_has_negative_volume_and_is_not_sound() -> None:
    shape = shape_of(Mesh(vertices=CUBE.vertices, faces=CUBE.faces[:, ::-1]))
    assert shape.is_oriented
    assert shape.volume == pytest.approx(-0.125)
    assert not shape.is_sound


def test_cubes_that_touch_along_an_edge_are_neither_closed_nor_manifold() -> None:
    shape = shape_of(both(CUBE, moved(CUBE, 0.5, 0.5, 0)))
    assert not shape.is_closed
    assert not shape.is_manifold
    assert shape.vertices == 14


def test_cubes_that_touch_at_a_corner_are_closed_but_not_manifold() -> None:
    shape = shape_of(both(CUBE, moved(CUBE, 0.5, 0.5, 0.5)))
    assert shape.is_closed
    assert not shape.is_manifold
    assert shape.vertices == 15


def test_vertices_split_by_index_alone_count_as_one() -> None:
    soup = Mesh(
        vertices=SPHERE.vertices[SPHERE.faces].reshape(-1, 3),
        faces=np.arange(3 * len(SPHERE.faces)).reshape(-1, 3),
    )
    assert shape_of(soup) == shape_of(SPHERE)


def test_a_needle_and_a_cap_are_degenerate() -> None:
    vertices = np.array([[0, 0, 0], [1, 0, 0], [1, 1e-8, 0], [0.5, 1e-8, 0], [0, 1, 0]], np.float32)
    shape = shape_of(Mesh(vertices=vertices, faces=np.array([[0, 1, 2], [0, 1, 3], [0, 1, 4]])))
    assert shape.degenerate_faces == 2


def test_nothing_is_not_sound() -> None:
    shape = shape_of(Mesh(vertices=np.zeros((0, 3), np.float32), faces=np.zeros((0, 3), np.int64)))
    assert not (shape.is_closed or shape.is_manifold or shape.is_oriented)
    assert (shape.vertices, shape.components, shape.volume) == (0, 0, 0)


@pytest.mark.slow
def test_a_hundred_thousand_faces_take_a_tenth_of_a_second() -> None:
    mesh = mesh_of(trimesh.creation.torus(0.6, 0.2, major_sections=500, minor_sections=100))
    start = time.process_time()
    assert shape_of(mesh).is_sound
    assert time.process_time() - start < 0.3
