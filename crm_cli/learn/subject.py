"""What can be photographed and measured: a procedural product, or a mesh that somebody made."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from crm_cli.learn.materials import Floats

FAMILY = "other"
"""What comes from files: they do not say what it is."""


class Unusable(ValueError):
    """A file that gives no example; the text says why."""


class Shine(NamedTuple):
    """How places reflect lamps; both float32 [N], see `Material`."""

    gloss: Floats
    sharpness: Floats


class Shiny(Protocol):
    """A material, as far as its shine goes."""

    @property
    def gloss(self) -> float:
        """Strength of highlights and reflections, 0 to 1."""

    @property
    def sharpness(self) -> float:
        """Exponent of the highlight."""


def shine_of(materials: Sequence[Shiny], owner: NDArray[np.int64]) -> Shine:
    """How places reflect lamps whose materials are numbered by owner [N]."""
    gloss = np.array([material.gloss for material in materials], np.float32)
    sharpness = np.array([material.sharpness for material in materials], np.float32)
    return Shine(gloss[owner], sharpness[owner])


class Body(Protocol):
    """What lies inside a posed subject."""

    def signed_distance(self, places: NDArray[np.floating[Any]], *, reach: float = 0.3) -> Floats:
        """Measure how far places [N 3] are from the surface, negative inside, clipped to ±reach: [N]."""

    def shows(self, places: Floats, normals: Floats) -> NDArray[np.bool_]:
        """Say which places [N 3] of faces with unit normals [N 3] are on the outside: [N]."""


class Subject(Protocol):
    """A mesh with colours, upright (z up), its front towards +Y, of any size."""

    @property
    def family(self) -> str:
        """What it is, in a word."""

    @property
    def vertices(self) -> Floats:
        """Corners [V 3]."""

    @property
    def faces(self) -> NDArray[np.int64]:
        """Indices of vertices [F 3]."""

    @property
    def is_closed(self) -> bool:
        """Whether every face turns its front outwards; otherwise both sides of all faces may be seen."""

    def colour_at(self, face_ids: NDArray[np.int64], barycentric: Floats) -> Floats:
        """Albedo at places on faces: face_ids [N], barycentric [N 3]; sRGB [N 3] in [0, 1]."""

    def shine_at(self, face_ids: NDArray[np.int64]) -> Shine:
        """How faces [N] reflect lamps."""

    def body(self, vertices: Floats) -> Body:
        """What lies inside, once the vertices [V 3] are put into [-1, 1]³."""
