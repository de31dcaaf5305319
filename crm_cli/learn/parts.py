"""What products are made of: closed parts, each with a material, joined into one mesh.

A product stands upright (z up) with its front towards +Y, a few units large. Left and right are as seen
by someone who looks at its front: +x is on the left.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from crm_cli.learn.materials import Material
from crm_cli.learn.shapes import Floats, Shape
from crm_cli.learn.solid import Solid
from crm_cli.learn.subject import Shine, shine_of
from crm_cli.records import expect


class Part(NamedTuple):
    """One closed shape and what it is painted with."""

    shape: Shape
    material: Material

    def moved(self, at: ArrayLike = (0, 0, 0), turn: Floats | None = None) -> Part:
        """Turn, then shift."""
        return self._replace(shape=self.shape.moved(at, turn))


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Product:
    """A union of closed parts.

    vertices float32 [V 3], faces int64 [F 3] counter-clockwise from outside; local float32 [V 3] is the
    place on the part that colours depend on; part int64 [F] says which part, and so which material, a
    face belongs to. Parts share no vertices.
    """

    family: str
    vertices: NDArray[np.float32]
    faces: NDArray[np.int64]
    local: NDArray[np.float32]
    part: NDArray[np.int64]
    materials: tuple[Material, ...]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "Product",
            vertices=(self.vertices, "V 3"),
            faces=(self.faces, "F 3"),
            local=(self.local, "V 3"),
            part=(self.part, "F"),
        )

    @property
    def is_closed(self) -> bool:
        """All parts are."""
        return True

    def colour_at(self, face_ids: NDArray[np.int64], barycentric: NDArray[np.float32]) -> NDArray[np.float32]:
        """Albedo at places on faces; see `colour`."""
        return colour(self, face_ids, barycentric)

    def shine_at(self, face_ids: NDArray[np.int64]) -> Shine:
        """How the parts that faces [N] belong to reflect lamps."""
        return shine_of(self.materials, self.part[face_ids])

    def body(self, vertices: NDArray[np.float32]) -> Solid:
        """The union of the parts, their vertices [V 3] put in place."""
        return Solid(vertices, self.faces, self.part)


def assemble(family: str, parts: Sequence[Part]) -> Product:
    """Join parts into one product."""
    starts = np.cumsum([0, *(len(part.shape.vertices) for part in parts)])
    return Product(
        family=family,
        vertices=np.concatenate([part.shape.vertices for part in parts]).astype(np.float32),
        faces=np.concatenate([part.shape.faces + start for part, start in zip(parts, starts, strict=False)]),
        local=np.concatenate([part.shape.local for part in parts]).astype(np.float32),
        part=np.repeat(np.arange(len(parts)), [len(part.shape.faces) for part in parts]),
        materials=tuple(part.material for part in parts),
    )


def colour(
    product: Product, face_ids: NDArray[np.int64], barycentric: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Look up the albedo at places on faces: face_ids [N], barycentric [N 3].

    Returns sRGB [N 3] in [0, 1].
    """
    corners = product.local[product.faces]
    places = np.einsum("nk,nkd->nd", barycentric, corners[face_ids])  # [N 3]
    owner = product.part[face_ids]
    order = np.argsort(owner, kind="stable")
    ends = np.searchsorted(owner[order], np.arange(len(product.materials) + 1))
    colours = np.zeros((len(places), 3), dtype=np.float32)
    for material, start, end in zip(product.materials, ends[:-1], ends[1:], strict=True):
        if end > start:
            colours[order[start:end]] = material.colouring(places[order[start:end]])
    return np.clip(colours, 0, 1)
