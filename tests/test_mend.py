from __future__ import annotations

import numpy as np
import trimesh

from crm_cli.mesh.inspect import signed_volume
from crm_cli.mesh.mend import LATTICE, fill, mend, oriented, split, weld, without_doubles
from crm_cli.mesh.topology import half_edges, is_sound, parts

BOX = trimesh.creation.box(extents=(0.5, 0.5, 0.5))
POINTS, FACES = BOX.vertices.astype(np.float64), BOX.faces.astype(np.int64)


def test_welded_vertices_survive_float32_and_any_shift_along_the_lattice() -> None:
    points = np.random.default_rng(1).uniform(-1, 1, (300, 3))
    welded, _ = weld(points, np.arange(300).reshape(-1, 3))
    assert (welded.astype(np.float32) == welded).all()
    pivot = (welded.min(axis=0) + welded.max(axis=0)) / 2
    shifted = welded.astype(np.float32) - pivot.astype(np.float32)
    assert (shifted == welded - pivot).all()
    ordered = points[np.lexsort(np.rint(points / LATTICE).T[::-1])]
    assert np.abs(welded - ordered).max() <= LATTICE / 2


def test_vertices_within_half_a_step_become_one() -> None:
    points = np.array([[0, 0, 0], [0.1 * LATTICE, 0, 0], [1, 0, 0], [0, 1, 0]])
    welded, faces = weld(points, np.array([[0, 2, 3], [0, 1, 2]]))
    assert len(welded) == 3
    assert len(faces) == 1  # the second had two corners in one place


def test_equal_faces_become_one_and_opposite_ones_none() -> None:
    face, back = [3, 5, 9], [9, 5, 3]
    assert without_doubles(np.array([face, [5, 9, 3]])).tolist() == [face]
    assert without_doubles(np.array([face, back])).tolist() == []
    assert len(without_doubles(np.array([back, face, back]))) == 1


def test_neighbours_come_to_agree() -> None:
    faces = FACES.copy()
    faces[[1, 4, 5]] = faces[[1, 4, 5], ::-1]
    assert not is_sound(faces)
    assert is_sound(oriented(faces))


def test_a_moebius_band_has_no_orientation_and_goes() -> None:
    ring = np.arange(14)
    band = np.stack([ring, (ring + 1) % 14, (ring + 2) % 14], axis=1)[:7]
    assert len(oriented(np.array([[i, (i + 1) % 7, (i + 2) % 7] for i in range(7)]))) == 0
    assert len(oriented(band)) == 7


def test_an_edge_of_four_faces_parts_by_the_solid_between_them() -> None:
    shift = np.array([0.5, 0.5, 0.0])
    points, faces = weld(np.concatenate([POINTS, POINTS + shift]), np.concatenate([FACES, FACES + 8]))
    assert (half_edges(faces).sharers == 4).sum() == 4
    points, faces = split(points, faces)
    assert is_sound(faces)
    count, labels = parts(half_edges(faces))
    assert count == 2
    for part in range(count):
        assert np.ptp(points[faces[labels == part]].reshape(-1, 3), axis=0).max() < 0.501


def test_a_hole_of_three_sides_takes_one_face_and_a_larger_one_a_fan() -> None:
    _, faces = fill(POINTS, FACES[1:])
    assert is_sound(faces)
    assert len(faces) == 12
    side = (POINTS[FACES][:, :, 0] > 0).all(axis=1)
    points, faces = fill(POINTS, FACES[~side])
    assert is_sound(faces)
    assert len(faces) == 14
    assert (points[8] == [0.25, 0, 0]).all()


def test_two_holes_that_meet_in_a_vertex_are_closed() -> None:
    ball = trimesh.creation.icosphere(subdivisions=2)
    faces = ball.faces.astype(np.int64)
    around = np.flatnonzero((faces == faces[10, 0]).any(axis=1))
    opposite = next(face for face in around if len(np.intersect1d(faces[face], faces[around[0]])) == 1)
    points, mended = mend(ball.vertices.astype(np.float64), np.delete(faces, [around[0], opposite], axis=0))
    assert is_sound(mended)
    assert len(points) - len(mended) // 2 == 2
    assert abs(signed_volume(points, mended) - ball.volume) < 1e-3
