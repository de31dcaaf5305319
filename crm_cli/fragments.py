"""What a rasteriser answers, and the little that every user of one needs.

Rasterisers live in mesh/raster.py; export/ draws with whichever one it is handed, so what they share
stands below both. Nothing here imports torch: the tensors bring their methods with them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

from crm_cli.records import expect

if TYPE_CHECKING:
    from torch import Tensor

    from crm_cli.frame import View


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Fragments:
    """The nearest triangle at every pixel centre.

    face: int64 [H W], -1 where nothing was hit. barycentric: float32 [H W 3], weights of the face's
    three corners, zero where empty. depth: float32 [H W], larger is nearer, zero where empty.
    """

    face: Tensor
    barycentric: Tensor
    depth: Tensor

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "Fragments",
            face=(self.face, "H W"),
            barycentric=(self.barycentric, "H W 3"),
            depth=(self.depth, "H W"),
        )

    @property
    def covered(self) -> Tensor:
        """Where a triangle was hit: bool [H W]."""
        return self.face >= 0

    def hits(self) -> Fragments:
        """The pixels that were hit and no others, in one row: [1 N], in the order of `covered`."""
        pixel = self.covered.view(-1).nonzero()[:, 0]
        return Fragments(
            face=self.face.view(-1)[pixel][None],
            barycentric=self.barycentric.view(-1, 3)[pixel][None],
            depth=self.depth.view(-1)[pixel][None],
        )


class Raster(Protocol):
    """Draws triangles on a grid of pixels."""

    name: ClassVar[str]

    @staticmethod
    def why_not(device: str) -> str | None:
        """Say why this rasteriser cannot work on a device (`cpu`, `cuda`, `cuda:1`); None where it can."""

    def rasterize(self, positions: Tensor, faces: Tensor, *, height: int, width: int) -> Fragments:
        """Find the nearest triangle at every pixel centre.

        Both windings are drawn. A centre exactly on an edge that two triangles share belongs to one
        of them. Equal depths go to the lower face index.

        Args:
            positions: float32 [V 3]; x in pixels to the right, y in pixels downwards, z the depth,
                larger is nearer. The centre of pixel (row, column) is (column + 0.5, row + 0.5).
            faces: int64 [F 3], indices of positions.
            height: Rows of the grid.
            width: Columns of the grid.
        """


def project(vertices: Tensor, view: View, size_px: int) -> Tensor:
    """Place world points on the square picture of an orthographic view, as `Raster.rasterize` reads them.

    vertices: float32 [V 3], world. Returns [V 3]: pixels right, pixels down, world depth; the picture
    spans [-1, 1] of the world.
    """
    axes = vertices.new_tensor((view.right, view.up, view.toward))
    half = size_px / 2
    scale = vertices.new_tensor((half, -half, 1.0))
    return vertices @ axes.T * scale + vertices.new_tensor((half, half, 0.0))


def interpolate(attributes: Tensor, faces: Tensor, fragments: Fragments) -> Tensor:
    """Blend what the corners carry over the pixels; zero where nothing was hit.

    attributes: [V K], faces: int64 [F 3] into them (not necessarily the faces that were drawn: a
    texture's corners number differently). Returns [H W K].
    """
    shape = *fragments.face.shape, attributes.shape[1]
    face, weights = fragments.face.reshape(-1), fragments.barycentric.reshape(-1, 3)
    hit = (face >= 0).nonzero()[:, 0]  # [N]
    if len(hit) == len(face):  # as of `hits`: nothing to pick out, nothing to put back
        return _blend(attributes, faces, face, weights).view(shape)
    blended = attributes.new_zeros((len(face), attributes.shape[1]))
    blended[hit] = _blend(attributes, faces, face.index_select(0, hit), weights.index_select(0, hit))
    return blended.view(shape)


def _blend(attributes: Tensor, faces: Tensor, face: Tensor, weights: Tensor) -> Tensor:
    """Blend what the corners of faces [N] carry, by weights [N 3]: [N K]."""
    corners = faces.index_select(0, face)
    # Corner by corner: a third of the time that one sum over [N 3 K] takes.
    first, second, third = (weights[:, k, None] * attributes.index_select(0, corners[:, k]) for k in range(3))
    return first + second + third


__all__ = ["Fragments", "Raster", "interpolate", "project"]
