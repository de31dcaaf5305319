"""The binary chunk of a GLB while it grows, and the geometry laid into it as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from crm_cli.export.scene import Corners

if TYPE_CHECKING:
    from pygltflib import GLTF2

_MOST_SHORT_VERTICES = 65_535  # glTF forbids the index 65535: it restarts a primitive


class Chunk:
    """The bytes, and what the JSON says of them; each part starts at a multiple of four bytes."""

    def __init__(self, gltf: GLTF2) -> None:
        self.gltf = gltf
        self.data = bytearray()

    def append(self, data: bytes) -> int:
        """Append bytes; return where they start."""
        start = len(self.data)
        self.data += data + b"\0" * (-len(data) % 4)
        return start

    def add_view(self, data: bytes, *, target: int | None = None) -> int:
        """Append bytes; return the index of their view."""
        from pygltflib import BufferView

        start = self.append(data)
        self.gltf.bufferViews.append(
            BufferView(buffer=0, byteOffset=start, byteLength=len(data), target=target)
        )
        return len(self.gltf.bufferViews) - 1

    def add_accessor(
        self,
        view: int | None,
        *,
        count: int,
        width: int,
        component: int,
        is_normalised: bool = False,
        within: NDArray[np.float32] | None = None,
    ) -> int:
        """Add what tells a view's numbers; return its index.

        Args:
            view: None where an extension holds the numbers.
            count: Of elements.
            width: Numbers an element.
            component: glTF's code for the type of number.
            is_normalised: Whether whole numbers stand for [-1, 1] or [0, 1].
            within: Lowest and highest element, which positions must state.
        """
        from pygltflib import Accessor

        kind = "SCALAR" if width == 1 else f"VEC{width}"
        accessor = Accessor(bufferView=view, componentType=component, count=count, type=kind)
        accessor.normalized = is_normalised
        accessor.byteOffset = None if view is None else 0
        if within is not None:
            # Python's own floats carry float32 values exactly, so the stated range is the range.
            accessor.min, accessor.max = within.tolist()
        self.gltf.accessors.append(accessor)
        return len(self.gltf.accessors) - 1

    def require(self, *extensions: str) -> None:
        """Say that a reader must know these."""
        self.gltf.extensionsUsed += extensions
        self.gltf.extensionsRequired += extensions


def add_plain(chunk: Chunk, corners: Corners) -> None:
    """Lay points, normals, coordinates and triangles into the chunk, readable by everyone."""
    attributes = chunk.gltf.meshes[0].primitives[0].attributes
    attributes.POSITION = _add_floats(chunk, corners.points, within=box_of(corners.points))
    attributes.NORMAL = _add_floats(chunk, corners.normals)
    attributes.TEXCOORD_0 = _add_floats(chunk, top_down(corners.uv))
    chunk.gltf.meshes[0].primitives[0].indices = _add_indices(chunk, corners)


def _add_floats(
    chunk: Chunk, values: NDArray[np.float32], *, within: NDArray[np.float32] | None = None
) -> int:
    """Append one attribute [V C]; return the index of its accessor."""
    from pygltflib import ARRAY_BUFFER, FLOAT

    view = chunk.add_view(values.astype("<f4").tobytes(), target=ARRAY_BUFFER)
    return chunk.add_accessor(view, count=len(values), width=values.shape[1], component=FLOAT, within=within)


def _add_indices(chunk: Chunk, corners: Corners) -> int:
    """Append the triangles; return the index of their accessor."""
    from pygltflib import ELEMENT_ARRAY_BUFFER

    size, component = index_type(len(corners.points))
    view = chunk.add_view(corners.faces.astype(f"<u{size}").tobytes(), target=ELEMENT_ARRAY_BUFFER)
    return chunk.add_accessor(view, count=corners.faces.size, width=1, component=component)


def index_type(vertices: int) -> tuple[int, int]:
    """Bytes an index takes, two where that is enough, and glTF's code for it."""
    from pygltflib import UNSIGNED_INT, UNSIGNED_SHORT

    return (2, UNSIGNED_SHORT) if vertices <= _MOST_SHORT_VERTICES else (4, UNSIGNED_INT)


def box_of(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """Lowest and highest corner [2 3]."""
    return np.stack([points.min(axis=0), points.max(axis=0)])


def top_down(uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move the origin of texture coordinates from the bottom to the top, where glTF has it."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)
