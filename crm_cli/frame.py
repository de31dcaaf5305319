"""Where things are: one world frame, six views of it, three planes, one export turn.

The world is right-handed with z up; the object lies inside [-1, 1]³ and its front looks towards +Y.
Signed distance is negative inside. The picture of the
top view, with the four views that stand around the object:

                  back (-Y)
                      |
    left (+X)  x <----+----   right (-X)
                      |
                      v y
                 front (+Y)

Every view is orthographic; u grows to the right of the picture and v downwards, both over [-1, 1].
(thu-ml/CRM training data; measured on its published example)
"""

from __future__ import annotations

from typing import NamedTuple

Axis = tuple[int, int, int]


class View(NamedTuple):
    """One orthographic camera: unit axes of its picture in the world."""

    name: str
    right: Axis
    """World direction of growing picture column."""
    up: Axis
    """World direction of shrinking picture row."""
    toward: Axis
    """World direction from the object to the camera; right × up."""

    @property
    def depth_axis(self) -> int:
        """Index of the world axis that runs along the line of sight."""
        return next(i for i in range(3) if self.toward[i])

    @property
    def depth_sign(self) -> int:
        """+1 where nearer points have a larger coordinate on the depth axis."""
        return self.toward[self.depth_axis]


VIEWS: tuple[View, ...] = (
    View("front", (-1, 0, 0), (0, 0, 1), (0, 1, 0)),
    View("left", (0, 1, 0), (0, 0, 1), (1, 0, 0)),
    View("bottom", (-1, 0, 0), (0, 1, 0), (0, 0, -1)),
    View("back", (1, 0, 0), (0, 0, 1), (0, -1, 0)),
    View("right", (0, -1, 0), (0, 0, 1), (-1, 0, 0)),
    View("top", (-1, 0, 0), (0, -1, 0), (0, 0, 1)),
)

FRONT, LEFT, BOTTOM, BACK, RIGHT, TOP = range(6)

OPPOSITE: dict[int, int] = {FRONT: BACK, BACK: FRONT, LEFT: RIGHT, RIGHT: LEFT, BOTTOM: TOP, TOP: BOTTOM}

DENOISER_ORDER: tuple[int, ...] = (LEFT, BOTTOM, BACK, RIGHT, TOP, FRONT)
"""Frame order of the published denoisers, as indices into VIEWS."""


class Plane(NamedTuple):
    """One plane of the triplane: which world axis runs along its columns and its rows."""

    name: str
    column: int
    row: int


PLANES: tuple[Plane, ...] = (Plane("xy", 0, 1), Plane("yz", 1, 2), Plane("zx", 2, 0))

ROLL_OUT: tuple[tuple[int, ...], ...] = ((BOTTOM, RIGHT, FRONT), (TOP, LEFT, BACK))
"""Two groups of views, one for each plane in the order of PLANES. (thu-ml/CRM, util/utils.py)"""

EXPORT_TURN: tuple[Axis, Axis, Axis] = ((-1, 0, 0), (0, 0, 1), (0, 1, 0))
"""Rows of the rotation from the world to glTF, OBJ and USD: y up, front towards +Z."""
