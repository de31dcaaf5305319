"""A box whose texture says where on the box each texel lies: what a writer mixes up, its colours show."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

LOW, HIGH = np.array([-0.3, -0.2, -0.9]), np.array([0.5, 0.6, 0.4])
"""No two sides lie at the same distance, so no turn or mirror maps the box onto itself."""

CELL_PX, TEXTURE_PX = 96, 288
COLOUR_TOLERANCE = 2 / 255 + 2 / CELL_PX
"""In world units: one step of the 8-bit code, and the nearest texel instead of the exact point."""


def coordinate_box() -> TexturedMesh:
    """Eight points, a chart of its own for each of six sides, texel colour = (world position + 1) / 2."""
    vertices = np.array([[(LOW, HIGH)[i >> a & 1][a] for a in range(3)] for i in range(8)], dtype=np.float32)
    faces, uv, uv_faces = [], [], []
    texture = np.zeros((TEXTURE_PX, TEXTURE_PX, 3))
    for side in range(6):
        axis, is_high = side % 3, side // 3
        right, up = (axis + 1) % 3, (axis + 2) % 3
        ring = [_corner(axis, is_high, right, r, up, u) for r, u in ((0, 0), (1, 0), (1, 1), (0, 1))]
        turn = (0, 1, 2, 0, 2, 3) if is_high else (0, 2, 1, 0, 3, 2)
        left, bottom = side % 3 * CELL_PX / TEXTURE_PX, side // 3 * CELL_PX / TEXTURE_PX
        width = CELL_PX / TEXTURE_PX
        uv += [(left + width * r, bottom + width * u) for r, u in ((0, 0), (1, 0), (1, 1), (0, 1))]
        faces += np.array(ring)[list(turn)].reshape(2, 3).tolist()
        uv_faces += (np.array(turn).reshape(2, 3) + 4 * side).tolist()
        texture[_cell(side)] = _positions(axis, is_high, right, up)
    mesh = Mesh(vertices=vertices, faces=np.array(faces, dtype=np.int64))
    unwrapped = UnwrappedMesh(
        mesh=mesh, uv=np.array(uv, dtype=np.float32), uv_faces=np.array(uv_faces, dtype=np.int64)
    )
    return TexturedMesh(unwrapped=unwrapped, texture=np.round((texture + 1) / 2 * 255).astype(np.uint8))


def world_at(texture: NDArray[np.uint8], uv: NDArray[np.float32]) -> NDArray[np.float64]:
    """Read world positions [N 3] out of a texture at coordinates [N 2], origin bottom-left."""
    column = np.clip((uv[:, 0] * TEXTURE_PX).astype(int), 0, TEXTURE_PX - 1)
    row = np.clip(((1 - uv[:, 1]) * TEXTURE_PX).astype(int), 0, TEXTURE_PX - 1)
    return texture[row, column] / 255 * 2 - 1


def _corner(axis: int, is_high: int, right: int, r: int, up: int, u: int) -> int:
    """Index of the box corner at the given ends of three axes."""
    return is_high << axis | r << right | u << up


def _cell(side: int) -> tuple[slice, slice]:
    """Rows and columns of one side's chart."""
    left, top = side % 3 * CELL_PX, TEXTURE_PX - (side // 3 + 1) * CELL_PX
    return slice(top, top + CELL_PX), slice(left, left + CELL_PX)


def _positions(axis: int, is_high: int, right: int, up: int) -> NDArray[np.float64]:
    """World position at each texel centre [CELL_PX CELL_PX 3] of one side."""
    along = (np.arange(CELL_PX) + 0.5) / CELL_PX
    cell = np.zeros((CELL_PX, CELL_PX, 3))
    cell[..., axis] = (LOW, HIGH)[is_high][axis]
    cell[..., right] = (LOW + along[:, None] * (HIGH - LOW))[:, right]
    cell[..., up] = (LOW + along[::-1, None] * (HIGH - LOW))[:, up][:, None]
    return cell
