"""Four blocks in a right-handed screw, painted with their own positions: no mistake can hide."""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

BLOCKS = ((0, 0, 0), (1, 0, 0), (1, 1, 0), (1, 1, 1))
"""The chiral tetracube."""

LOW, BLOCK = np.array([-0.62, -0.44, -0.81]), np.array([0.53, 0.37, 0.71])
"""Where it begins in the world, and a block's sides, of three lengths."""

CELLS, CELL_PX = 6, 48
TEXTURE_PX = CELLS * CELL_PX
MARGIN_PX = 6
"""Charts keep clear of each other, so that a bilinear sample never mixes two."""


def screw() -> TexturedMesh:
    """Each side of a block that shows is a chart of its own; texel colour = (world position + 1) / 2."""
    corners: dict[tuple[int, ...], int] = {}
    faces, uv, uv_faces = [], [], []
    texture = np.zeros((TEXTURE_PX, TEXTURE_PX, 3))
    for number, (block, axis, is_high) in enumerate(_sides()):
        right, up = (axis + 1) % 3, (axis + 2) % 3
        origin = np.array(block)
        origin[axis] += is_high
        ring = []
        for r, u in ((0, 0), (1, 0), (1, 1), (0, 1)):
            corner = origin.copy()
            corner[right] += r
            corner[up] += u
            ring.append(corners.setdefault(tuple(int(c) for c in corner), len(corners)))
        turn = [0, 1, 2, 0, 2, 3] if is_high else [0, 2, 1, 0, 3, 2]
        left, bottom = number % CELLS * CELL_PX + MARGIN_PX, number // CELLS * CELL_PX + MARGIN_PX
        width = CELL_PX - 2 * MARGIN_PX
        uv += [(left + width * r, bottom + width * u) for r, u in ((0, 0), (1, 0), (1, 1), (0, 1))]
        faces += np.array(ring)[turn].reshape(2, 3).tolist()
        uv_faces += (np.array(turn).reshape(2, 3) + 4 * number).tolist()
        _paint(texture, number, origin, right, up)
    places = sorted(corners, key=lambda corner: corners[corner])
    vertices = (LOW + np.array(places) * BLOCK).astype(np.float32)
    unwrapped = UnwrappedMesh(
        mesh=Mesh(vertices=vertices, faces=np.array(faces, dtype=np.int64)),
        uv=(np.array(uv) / TEXTURE_PX).astype(np.float32),
        uv_faces=np.array(uv_faces, dtype=np.int64),
    )
    return TexturedMesh(unwrapped=unwrapped, texture=np.round((texture + 1) / 2 * 255).astype(np.uint8))


def _sides() -> list[tuple[tuple[int, int, int], int, bool]]:
    """Block, axis and end of every side that no other block covers."""
    found = []
    for block, axis, is_high in itertools.product(BLOCKS, range(3), (False, True)):
        beside = list(block)
        beside[axis] += 1 if is_high else -1
        if tuple(beside) not in BLOCKS:
            found.append((block, axis, is_high))
    return found


def _paint(texture: NDArray, number: int, origin: NDArray, right: int, up: int) -> None:
    """Give each texel of a cell, its margin too, the world position that it lies at."""
    along = (np.arange(CELL_PX) + 0.5 - MARGIN_PX) / (CELL_PX - 2 * MARGIN_PX)
    place = np.zeros((CELL_PX, CELL_PX, 3)) + origin
    place[..., right] += along[None, :]
    place[..., up] += along[::-1, None]
    top, left = TEXTURE_PX - (number // CELLS + 1) * CELL_PX, number % CELLS * CELL_PX
    texture[top : top + CELL_PX, left : left + CELL_PX] = np.clip(LOW + place * BLOCK, -1, 1)
