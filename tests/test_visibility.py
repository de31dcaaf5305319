"""Inside is what nobody sees, however badly a mesh is made; spheres and boxes have known answers."""

import numpy as np
import pytest
import trimesh

from crm_cli.learn.visibility import THIN, Enclosed, sides_of

BALL = trimesh.creation.icosphere(subdivisions=3, radius=0.6)
PLACES = np.random.default_rng(0).uniform(-1, 1, (1500, 3)).astype(np.float32)
RADIUS = np.linalg.norm(PLACES, axis=1)
FACETS = 5e-3
"""How far the facets of the ball lie inside it."""


def shell_of(*meshes: trimesh.Trimesh) -> Enclosed:
    whole = trimesh.util.concatenate(meshes)
    vertices, faces = whole.vertices.astype(np.float32), whole.faces.astype(np.int64)
    return Enclosed(vertices, faces, sides_of(vertices, faces))


def inverted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    return trimesh.Trimesh(mesh.vertices, mesh.faces[:, ::-1], process=False)


def partly_inverted(mesh: trimesh.Trimesh) -> trimesh.Trimesh:
    faces = mesh.faces.copy()
    faces[::3] = faces[::3, ::-1]
    return trimesh.Trimesh(mesh.vertices, faces, process=False)


@pytest.mark.parametrize(
    "balls",
    [
        [BALL],
        [inverted(BALL)],
        [partly_inverted(BALL)],
        [BALL, inverted(BALL)],
        [BALL, trimesh.creation.icosphere(subdivisions=2, radius=0.3)],
        [BALL, trimesh.creation.box((0.5, 0.5, 0.5)), inverted(trimesh.creation.box((0.1, 0.6, 0.1)))],
    ],
    ids=["closed", "inside out", "mixed", "doubled", "hollow", "full of parts"],
)
def test_a_ball_is_a_ball_however_it_is_made(balls: list[trimesh.Trimesh]) -> None:
    measured = shell_of(*balls).signed_distance(PLACES)
    np.testing.assert_allclose(measured, (RADIUS - 0.6).clip(-0.3, 0.3), atol=FACETS)


def test_distances_are_clipped_where_they_are_told_to_be() -> None:
    measured = shell_of(BALL).signed_distance(PLACES, reach=0.05)
    np.testing.assert_allclose(measured, (RADIUS - 0.6).clip(-0.05, 0.05), atol=FACETS)


def test_parts_that_reach_into_each_other_have_no_wall_between_them() -> None:
    other = trimesh.creation.box((1.2, 0.4, 0.4))
    shell = shell_of(BALL, other)
    beyond = np.abs(PLACES) - np.float32([0.6, 0.2, 0.2])
    to_box = np.linalg.norm(np.maximum(beyond, 0), axis=1) + np.minimum(beyond.max(axis=1), 0)
    truth = np.minimum(RADIUS - 0.6, to_box)
    measured = shell.signed_distance(PLACES)
    clear = np.abs(truth) > FACETS
    np.testing.assert_array_equal(measured[clear] < 0, truth[clear] < 0)
    outside = truth > FACETS
    # Faces are looked at in four places: one whose last corner alone shows is taken for hidden.
    np.testing.assert_allclose(measured[outside], truth[outside].clip(max=0.3), atol=3 * FACETS)


def test_a_crack_does_not_let_the_outside_in() -> None:
    cube = trimesh.creation.box((1.0, 1.0, 1.0)).subdivide().subdivide()
    # Every triangle shrinks towards its middle: no two of them touch.
    corners = cube.triangles.mean(axis=1, keepdims=True) * 0.005 + cube.triangles * 0.995
    torn = trimesh.Trimesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3), process=False)
    inside = np.abs(PLACES).max(axis=1) < 0.48
    outside = np.abs(PLACES).max(axis=1) > 0.52
    measured = shell_of(torn).signed_distance(PLACES)
    assert (measured[inside] < 0).mean() > 0.97
    assert (measured[outside] > 0).all()


def test_the_hollow_of_a_cup_is_outside_and_its_wall_is_a_sheet() -> None:
    cup = trimesh.Trimesh(BALL.vertices, BALL.faces[BALL.triangles_center[:, 2] < 0], process=False)
    shell = shell_of(cup)
    lower = PLACES[:, 2] < -0.05
    measured, to_wall = shell.signed_distance(PLACES)[lower], np.abs(RADIUS - 0.6)[lower]
    np.testing.assert_allclose(measured, (to_wall - THIN).clip(max=0.3), atol=FACETS)
    # Above, within the full ball, nothing is left of it.
    assert shell.signed_distance(np.float32([[0, 0, 0], [0, 0, 0.3]])).min() > 0.25


def test_a_sheet_is_as_thick_as_it_says() -> None:
    sheet = trimesh.Trimesh(
        [[-0.8, 0, -0.8], [0.8, 0, -0.8], [0.8, 0, 0.8], [-0.8, 0, 0.8]], [[0, 1, 2], [0, 2, 3]]
    )
    away = np.float32([0, 0.5, 0.99, 1.01, 4]) * THIN
    places = np.stack([np.full(5, 0.1), away, np.full(5, 0.2)], -1)
    np.testing.assert_allclose(shell_of(sheet).signed_distance(places), away - THIN, atol=1e-6)


def test_only_what_is_seen_shows() -> None:
    shell = shell_of(BALL, trimesh.creation.icosphere(subdivisions=2, radius=0.3))
    outward = np.float32([[1, 0, 0], [0, 0.6, 0.8], [0, -1, 0]])
    np.testing.assert_array_equal(shell.shows(0.6 * outward, outward), [True] * 3)
    np.testing.assert_array_equal(shell.shows(0.6 * outward, -outward), [True] * 3)
    np.testing.assert_array_equal(shell.shows(0.3 * outward, outward), [False] * 3)


def test_faces_know_their_sides() -> None:
    leaf = trimesh.Trimesh([[0, 0, 0.6], [0.2, 0, 0.9], [-0.2, 0, 0.9]], [[0, 1, 2]])
    whole = trimesh.util.concatenate([BALL, inverted(BALL), trimesh.creation.icosphere(2, 0.3), leaf])
    sides = sides_of(whole.vertices.astype(np.float32), whole.faces.astype(np.int64))
    ball, inner = len(BALL.faces), len(whole.faces) - 1
    assert sides.front[:ball].all() and not sides.back[:ball].any()
    assert sides.back[ball : 2 * ball].all() and not sides.front[ball : 2 * ball].any()
    assert sides.is_hidden[2 * ball : inner].all()
    assert sides.is_sheet.sum() == 1 and sides.is_sheet[-1]
