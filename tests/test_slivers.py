from __future__ import annotations

import numpy as np
import pytest
import trimesh

from crm_cli.mesh.inspect import heights, shape_of
from crm_cli.mesh.mend import LATTICE, weld
from crm_cli.mesh.slivers import MIN_HEIGHT, without_slivers
from crm_cli.records import Mesh


def divided_cube() -> tuple[np.ndarray, np.ndarray]:
    box = trimesh.creation.box(extents=(0.5, 0.5, 0.5)).subdivide()
    return weld(box.vertices.astype(np.float64), box.faces.astype(np.int64))


def at(points: np.ndarray, *place: float) -> int:
    return int(np.flatnonzero((points == place).all(axis=1))[0])


def test_a_flat_triangle_gives_its_long_edge_away() -> None:
    points, faces = divided_cube()
    # The middle of a side slides almost onto the rim: one of its triangles becomes a cap.
    points[at(points, 0.25, 0, 0)] = [0.25, 0.25 - LATTICE, 0.01]
    assert (heights(points, faces) < MIN_HEIGHT).any()
    points, faces = without_slivers(points, faces)
    shape = shape_of(Mesh(vertices=points.astype(np.float32), faces=faces))
    assert shape.is_sound
    assert shape.volume == pytest.approx(0.125, rel=1e-4)
    assert (heights(points, faces) >= MIN_HEIGHT).all()


def test_a_short_edge_is_collapsed() -> None:
    points, faces = divided_cube()
    middle = at(points, 0.25, 0, 0)
    neighbours = faces[(faces == middle).any(axis=1)]
    points[middle] = points[neighbours[neighbours != middle][0]] * (1, 1 - 4 * LATTICE, 1 - 4 * LATTICE)
    before = len(faces)
    points, faces = without_slivers(points, faces)
    shape = shape_of(Mesh(vertices=points.astype(np.float32), faces=faces))
    assert shape.is_sound
    assert shape.faces == before - 2
    assert shape.volume == pytest.approx(0.125, rel=1e-4)
    assert (heights(points, faces) >= MIN_HEIGHT).all()


def test_a_surface_without_slivers_stays() -> None:
    points, faces = divided_cube()
    same_points, same_faces = without_slivers(points, faces)
    assert (same_points == points).all()
    assert (same_faces == faces).all()
