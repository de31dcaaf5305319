"""Any face of an object as its front: six views exchanged and turned in their planes, as the object is."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from crm_cli.frame import VIEWS, Axis

Turn = tuple[Axis, Axis, Axis]

TURNS: tuple[Turn, ...] = (
    ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    ((0, -1, 0), (1, 0, 0), (0, 0, 1)),
    ((1, 0, 0), (0, 0, -1), (0, 1, 0)),
    ((-1, 0, 0), (0, -1, 0), (0, 0, 1)),
    ((0, 1, 0), (-1, 0, 0), (0, 0, 1)),
    ((1, 0, 0), (0, 0, 1), (0, -1, 0)),
)
"""For each of `frame.VIEWS`, rows of the rotation that brings this face of an object to the front.

Those of the published training; another choice would stand an object on another side.
(thu-ml/CRM, imagedream training data)
"""

SIDES = tuple(index for index, view in enumerate(VIEWS) if not view.toward[2])
"""Faces that leave an object standing as it stands."""


class Source(NamedTuple):
    """Where a view of the turned object comes from."""

    view: int
    """Index into `frame.VIEWS` of the object as it was."""
    quarters: int
    """Quarter turns of its picture, counter-clockwise."""


@cache
def sources(face: int) -> tuple[Source, ...]:
    """What each view shows of an object whose `face` has become the front."""
    found = []
    for view in VIEWS:
        right, toward = (_back(TURNS[face], axis) for axis in (view.right, view.toward))
        index = next(number for number, old in enumerate(VIEWS) if old.toward == toward)
        old = VIEWS[index]
        # The old picture's axis that now points to the right, by how far it had to turn.
        ways = (old.right, _opposite(old.up), _opposite(old.right), old.up)
        found.append(Source(index, ways.index(right)))
    return tuple(found)


def turned(pictures: Tensor, face: int) -> Tensor:
    """Six pictures [6 C S S] of an object, of it turned so that `face` is its front.

    Holds for colours, coverage and distances towards each camera, which turn with the object; not for
    coordinates, which change.
    """
    return torch.stack([pictures[source.view].rot90(source.quarters, (-2, -1)) for source in sources(face)])


def _back(turn: Turn, axis: Axis) -> Axis:
    """Where a direction of the turned object was before."""
    x, y, z = (sum(turn[row][column] * axis[row] for row in range(3)) for column in range(3))
    return x, y, z


def _opposite(axis: Axis) -> Axis:
    return -axis[0], -axis[1], -axis[2]
