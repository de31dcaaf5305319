"""Any face of an object may be its front."""

import pytest
import torch
from test_tasks import SIZE, lopsided, seen_by_all

from crm_cli.frame import BACK, FRONT, LEFT, RIGHT, VIEWS
from crm_cli.learn.faces import SIDES, TURNS, sources, turned

FILES = {
    0: (0, 1, 2, 3, 4, 5),
    1: (1, 3, 2, 4, 0, 5),
    2: (2, 1, 3, 5, 4, 0),
    3: (3, 4, 2, 0, 1, 5),
    4: (4, 0, 2, 1, 3, 5),
    5: (5, 1, 0, 2, 4, 3),
}
"""Which file of the published layout stands for front, left, down, back, right, top, by reference face."""

CLOCKWISE = {
    (1, "bottom"): 1,
    (1, "top"): -1,
    (2, "left"): -1,
    (2, "bottom"): 2,
    (2, "back"): 2,
    (2, "right"): 1,
    (3, "bottom"): 2,
    (3, "top"): 2,
    (4, "bottom"): -1,
    (4, "top"): 1,
    (5, "left"): 1,
    (5, "back"): 2,
    (5, "right"): -1,
    (5, "top"): 2,
}
"""Quarter turns of those pictures in the published training; the others stay as they are."""


@pytest.mark.parametrize("face", range(6))
def test_views_are_exchanged_and_turned_as_in_the_published_training(face: int) -> None:
    assert tuple(source.view for source in sources(face)) == FILES[face]
    for view, source in zip(VIEWS, sources(face), strict=True):
        assert source.quarters % 4 == -CLOCKWISE.get((face, view.name), 0) % 4, view.name


@pytest.mark.parametrize("face", range(6))
def test_turned_views_are_the_views_of_the_turned_object(face: int) -> None:
    voxels = lopsided()
    alpha, depth = seen_by_all(voxels)
    # Of the turned object, voxel (x', y', z') is where the rotation brings (x, y, z).
    turn = torch.tensor(TURNS[face])
    where = 2 * voxels.nonzero() - (SIZE - 1)  # twice the distance from the middle: whole numbers
    new = (where @ turn.T + (SIZE - 1)) // 2
    moved = torch.zeros_like(voxels)
    moved[tuple(new.T)] = True
    wanted_alpha, wanted_depth = seen_by_all(moved)
    pictures = turned(torch.stack([alpha, depth], dim=1), face)
    assert torch.equal(pictures[:, 0], wanted_alpha)
    assert torch.allclose(pictures[:, 1], wanted_depth, atol=1e-6)
    assert face == FRONT or not torch.equal(pictures[:, 0], alpha)


def test_the_sides_are_those_an_object_does_not_lie_down_for() -> None:
    assert set(SIDES) == {FRONT, LEFT, BACK, RIGHT}
    for face in SIDES:
        assert TURNS[face][2] == (0, 0, 1)
