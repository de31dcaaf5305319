"""Meshes so small that every half-edge can be counted by hand, and solids with known numbers."""

from __future__ import annotations

import numpy as np
import pytest
import trimesh

from crm_cli.mesh.topology import (
    ALONE,
    Indices,
    compact,
    face_pairs,
    fans,
    following,
    groups,
    half_edges,
    is_sound,
    parts,
    runs_both_ways,
    turned,
)


def faces_of(*rows: tuple[int, int, int]) -> Indices:
    return np.array(rows, np.int64).reshape(-1, 3)


TETRAHEDRON = faces_of((0, 2, 1), (0, 1, 3), (1, 2, 3), (2, 0, 3))
BOW_TIE = np.concatenate([TETRAHEDRON, np.where(TETRAHEDRON == 3, 3, TETRAHEDRON + 4)])
"""Two tetrahedra that share vertex 3 and nothing else."""
BOOK = faces_of((0, 1, 2), (1, 0, 3), (0, 1, 4))
"""Three pages on the spine 0-1."""
STRIP = faces_of((0, 1, 2), (2, 1, 3))
TORUS = trimesh.creation.torus(0.6, 0.2, major_sections=12, minor_sections=8).faces.astype(np.int64)


def test_half_edges_run_around_their_face() -> None:
    edges = half_edges(STRIP)
    assert list(zip(edges.start, edges.end, strict=True)) == [(0, 1), (1, 2), (2, 0), (2, 1), (1, 3), (3, 2)]
    assert following(np.arange(6)).tolist() == [1, 2, 0, 4, 5, 3]


def test_only_the_shared_edge_of_two_faces_has_opposites() -> None:
    edges = half_edges(STRIP)
    assert edges.opposite.tolist() == [ALONE, 3, ALONE, 1, ALONE, ALONE]
    assert edges.sharers.tolist() == [1, 2, 1, 2, 1, 1]
    assert runs_both_ways(edges).tolist() == [False, True, False, True, False, False]
    assert [pair.tolist() for pair in face_pairs(edges)] == [[0], [1]]


def test_an_edge_of_three_faces_has_no_opposite() -> None:
    edges = half_edges(BOOK)
    spine = [0, 3, 6]
    assert edges.sharers[spine].tolist() == [3, 3, 3]
    assert (edges.opposite == ALONE).all()
    assert parts(edges)[0] == 3


@pytest.mark.parametrize("faces", [TETRAHEDRON, TORUS], ids=["tetrahedron", "torus"])
def test_opposites_of_a_closed_surface_are_each_others_and_run_back(faces: Indices) -> None:
    edges = half_edges(faces)
    assert (edges.opposite[edges.opposite] == np.arange(len(edges.opposite))).all()
    assert (edges.start == edges.end[edges.opposite]).all()
    assert runs_both_ways(edges).all()
    left, right = face_pairs(edges)
    assert len(left) == len(faces) * 3 // 2
    assert (left != right).all()


def test_a_face_that_looks_the_other_way_breaks_its_three_edges_alone() -> None:
    flipped = turned(TORUS, np.arange(len(TORUS)) == 5)
    assert (flipped[5] == TORUS[5, ::-1]).all()
    assert (np.delete(flipped, 5, axis=0) == np.delete(TORUS, 5, axis=0)).all()
    agree = runs_both_ways(half_edges(flipped))
    assert (~agree).sum() == 6
    assert (~agree[15:18]).all()
    assert is_sound(turned(flipped, np.arange(len(TORUS)) == 5))


@pytest.mark.parametrize(
    ("faces", "count"),
    [(TETRAHEDRON, 4), (STRIP, 4), (BOW_TIE, 8), (BOOK, 9), (TORUS, 96)],
    ids=["tetrahedron", "strip", "bow tie", "book", "torus"],
)
def test_a_vertex_has_a_fan_for_every_umbrella_of_faces(faces: Indices, count: int) -> None:
    found, labels = fans(half_edges(faces))
    assert found == count
    # A fan never spans two vertices.
    assert all(len(np.unique(faces.ravel()[labels == fan])) == 1 for fan in range(found))


def test_fans_do_not_depend_on_which_way_faces_look() -> None:
    flipped = turned(TORUS, np.arange(len(TORUS)) % 3 == 0)
    found, labels = fans(half_edges(flipped))
    assert found == 96
    assert all(len(np.unique(flipped.ravel()[labels == fan])) == 1 for fan in range(found))


def test_parts_hang_together_by_edges_not_by_vertices() -> None:
    count, labels = parts(half_edges(BOW_TIE))
    assert count == 2
    assert len(set(labels[:4])) == len(set(labels[4:])) == 1


@pytest.mark.parametrize(
    ("faces", "expected"),
    [
        (TETRAHEDRON, True),
        (TORUS, True),
        (np.concatenate([TETRAHEDRON, TETRAHEDRON + 4]), True),
        (TETRAHEDRON[:, ::-1], True),  # inside out, but consistently so
        (BOW_TIE, False),
        (STRIP, False),
        (BOOK, False),
        (np.concatenate([TETRAHEDRON, TETRAHEDRON]), False),
        (turned(TETRAHEDRON, np.arange(4) == 0), False),
    ],
    ids=["tetrahedron", "torus", "two", "inside out", "bow tie", "strip", "book", "twice", "one turned"],
)
def test_sound_means_closed_agreeing_and_one_fan_a_vertex(faces: Indices, expected: bool) -> None:
    assert is_sound(faces) is expected


def test_groups_follow_chains_of_links() -> None:
    count, labels = groups(6, np.array([0, 2, 4]), np.array([2, 5, 4]))
    assert count == 4
    assert labels[0] == labels[2] == labels[5]
    assert len({labels[0], labels[1], labels[3], labels[4]}) == 4
    nothing = np.zeros(0, np.int64)
    assert groups(3, nothing, nothing)[0] == 3


def test_compacting_drops_unused_vertices_and_moves_no_face() -> None:
    points = np.arange(18, dtype=np.float64).reshape(6, 3)
    faces = faces_of((5, 1, 3), (3, 1, 0))
    kept, renumbered = compact(points, faces)
    assert len(kept) == 4
    assert (kept[renumbered] == points[faces]).all()


def test_no_faces_are_no_trouble() -> None:
    edges = half_edges(faces_of())
    assert len(edges.opposite) == 0
    assert fans(edges)[0] == parts(edges)[0] == 0
