"""Smaller geometry in a GLB: meshopt or Draco, after positions were rounded as far as nobody can see."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from crm_cli.export.chunk import Chunk, box_of, index_type, top_down
from crm_cli.export.scene import Corners

GRID_BITS = (17, 19, 22)
"""Steps of the grid along the asset's longest side, as powers of two: the first that turns no face over is
taken. The coarsest moves a point by less than 1e-5 of the size along each axis, the finest by as little as
float32 itself does."""

UV_STEPS = 65_535  # a sixteenth of a texel at 4096 px
NORMAL_BITS = 12  # of each octahedral coordinate: three hundredths of a degree

_DRACO_EFFORT = 7  # of ten: what Draco's own encoder takes where nothing is said
_DRACO_KINDS = {0: "POSITION", 1: "NORMAL", 3: "TEXCOORD_0"}  # Draco's kinds of attributes as glTF names them
_MANTISSA = 0xFFFFFF


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Grid:
    """Positions as whole steps from an origin."""

    steps: NDArray[np.int64]
    """[V 3]"""
    origin: NDArray[np.float64]
    """[3], in metres."""
    step: float
    """In metres."""
    bits: int
    """The longest side is less than two to the power of this many steps, give or take one."""

    @property
    def points(self) -> NDArray[np.float32]:
        """The rounded positions [V 3] in metres."""
        return (self.origin + self.steps * self.step).astype(np.float32)


class Laying(Protocol):
    """Where a grid begins, and the length of its steps, so that the longest side takes 2^bits of them."""

    def __call__(self, points: NDArray[np.float64], bits: int) -> tuple[NDArray[np.float64], float]:
        """points: [V 3]."""


def lay_binary(points: NDArray[np.float64], bits: int) -> tuple[NDArray[np.float64], float]:
    """Begin at zero with a power of two, so that float32 holds every position exactly."""
    return np.zeros(3), 2.0 ** (math.ceil(math.log2(np.ptp(points, axis=0).max())) - bits)


def lay_as_draco(points: NDArray[np.float64], bits: int) -> tuple[NDArray[np.float64], float]:
    """Begin where Draco does by itself: what it is told of a grid it rounds to six decimals."""
    return points.min(axis=0), float(np.ptp(points, axis=0).max()) / (2**bits - 1)


def snap(corners: Corners, lay: Laying) -> Grid:
    """Round positions to the coarsest grid on which the surface is still the same.

    Points stay apart and no triangle vanishes or turns over: a closed surface stays closed, and as sound.
    """
    points = corners.points.astype(np.float64)
    distinct = len(np.unique(points, axis=0))
    for bits in GRID_BITS:
        origin, step = lay(points, bits)
        steps = np.round((points - origin) / step).astype(np.int64)
        grid = Grid(steps=steps, origin=origin, step=step, bits=bits)
        if len(np.unique(steps, axis=0)) == distinct and not _turned(points, steps, corners.faces):
            break
    return grid


def add_meshopt(chunk: Chunk, corners: Corners) -> None:
    """Lay the geometry into the chunk as EXT_meshopt_compression has it.

    Positions come out as plain floats, so that no transform has to put them in place.
    (glTF EXT_meshopt_compression, KHR_mesh_quantization)
    """
    import meshopt
    from pygltflib import FLOAT, SHORT, UNSIGNED_SHORT, Buffer

    grid = snap(corners, lay_binary)
    faces, places, _ = meshopt.reorder_mesh(corners.faces.astype(np.uint32), True, True)
    order = np.argsort(places)
    # The exponential filter: mantissa in the lower three bytes, exponent in the highest.
    exponent = (round(math.log2(grid.step)) & 0xFF) << 24
    positions = (grid.steps[order] & _MANTISSA | exponent).astype("<u4")
    directions = np.pad(corners.normals[order], ((0, 0), (0, 1))).astype(np.float32)
    normals = meshopt.encode_filter_oct(directions, 8, NORMAL_BITS)
    uv = np.round(top_down(corners.uv[order]) * UV_STEPS).astype("<u2")
    size, component = index_type(len(order))

    chunk.require("EXT_meshopt_compression", "KHR_mesh_quantization")
    # Where readers that lack the decoder would find the geometry: nowhere, it would double the file.
    chunk.gltf.buffers.append(
        Buffer(byteLength=0, extensions={"EXT_meshopt_compression": {"fallback": True}})
    )
    primitive = chunk.gltf.meshes[0].primitives[0]
    primitive.attributes.POSITION = chunk.add_accessor(
        _add_encoded(chunk, positions, coding="EXPONENTIAL"),
        count=len(order), width=3, component=FLOAT, within=box_of(grid.points),
    )  # fmt: skip
    primitive.attributes.NORMAL = chunk.add_accessor(
        _add_encoded(chunk, normals, coding="OCTAHEDRAL"),
        count=len(order), width=3, component=SHORT, is_normalised=True,
    )  # fmt: skip
    primitive.attributes.TEXCOORD_0 = chunk.add_accessor(
        _add_encoded(chunk, uv), count=len(order), width=2, component=UNSIGNED_SHORT, is_normalised=True
    )
    primitive.indices = chunk.add_accessor(
        _add_encoded_triangles(chunk, faces, size=size), count=faces.size, width=1, component=component
    )


def add_draco(chunk: Chunk, corners: Corners) -> None:
    """Lay the geometry into the chunk as KHR_draco_mesh_compression has it."""
    import DracoPy
    from pygltflib import FLOAT

    grid = snap(corners, lay_as_draco)
    data = DracoPy.encode(
        grid.points,
        corners.faces.astype(np.uint32),
        quantization_bits=grid.bits,  # on its own grid, so that it moves nothing further
        compression_level=_DRACO_EFFORT,
        tex_coord=top_down(corners.uv).astype(np.float64),  # it insists
        tex_coord_quantization_bits=UV_STEPS.bit_length(),
        normals=corners.normals.astype(np.float64),
        normal_quantization_bits=NORMAL_BITS,
    )
    # How many points there are after coding, and which number each attribute got, only the decoder knows.
    found = DracoPy.decode(data)
    numbers = {_DRACO_KINDS[entry["attribute_type"]]: entry["unique_id"] for entry in found.attributes}
    chunk.require("KHR_draco_mesh_compression")
    primitive = chunk.gltf.meshes[0].primitives[0]
    count = len(found.points)
    primitive.attributes.POSITION = chunk.add_accessor(
        None, count=count, width=3, component=FLOAT, within=box_of(found.points)
    )
    primitive.attributes.NORMAL = chunk.add_accessor(None, count=count, width=3, component=FLOAT)
    primitive.attributes.TEXCOORD_0 = chunk.add_accessor(None, count=count, width=2, component=FLOAT)
    primitive.indices = chunk.add_accessor(
        None, count=found.faces.size, width=1, component=index_type(count)[1]
    )
    primitive.extensions = {
        "KHR_draco_mesh_compression": {
            "bufferView": chunk.add_view(data),
            "attributes": numbers,
        }
    }


def _add_encoded(chunk: Chunk, rows: NDArray[np.generic], *, coding: str = "NONE") -> int:
    """Append one attribute [V C], encoded; return the index of the view that a decoder fills."""
    import meshopt
    from pygltflib import ARRAY_BUFFER

    encoded = meshopt.encode_gltf_buffer(rows, "ATTRIBUTES")
    told = {"mode": "ATTRIBUTES", "filter": coding, "byteStride": rows.strides[0], "count": len(rows)}
    view = _add_decoded_view(chunk, encoded, length=rows.nbytes, target=ARRAY_BUFFER, told=told)
    chunk.gltf.bufferViews[view].byteStride = rows.strides[0]
    return view


def _add_encoded_triangles(chunk: Chunk, faces: NDArray[np.uint32], *, size: int) -> int:
    """Append the indices [F 3], encoded; return the index of the view that a decoder fills."""
    import meshopt
    from pygltflib import ELEMENT_ARRAY_BUFFER

    encoded = meshopt.encode_gltf_buffer(faces.reshape(-1), "TRIANGLES")
    told = {"mode": "TRIANGLES", "byteStride": size, "count": faces.size}
    return _add_decoded_view(chunk, encoded, length=faces.size * size, target=ELEMENT_ARRAY_BUFFER, told=told)


def _add_decoded_view(
    chunk: Chunk, encoded: bytes, *, length: int, target: int, told: dict[str, object]
) -> int:
    """Append encoded bytes, and a view of `length` bytes in the buffer that only decoders have."""
    from pygltflib import BufferView

    start = chunk.append(encoded)
    decoded = chunk.gltf.buffers[1]
    source = {"buffer": 0, "byteOffset": start, "byteLength": len(encoded)}
    view = BufferView(buffer=1, byteOffset=decoded.byteLength, byteLength=length, target=target)
    view.extensions = {"EXT_meshopt_compression": source | told}
    decoded.byteLength += length + -length % 4
    chunk.gltf.bufferViews.append(view)
    return len(chunk.gltf.bufferViews) - 1


def _turned(points: NDArray[np.float64], steps: NDArray[np.int64], faces: NDArray[np.int64]) -> bool:
    """Whether some triangle that had an area has none on the grid, or looks the other way."""
    before, after = _across(points, faces), _across(steps.astype(np.float64), faces)
    return bool(((before * after).sum(axis=1) <= 0)[before.any(axis=1)].any())


def _across(points: NDArray[np.float64], faces: NDArray[np.int64]) -> NDArray[np.float64]:
    """A vector [F 3] across each triangle, as long as twice its area."""
    corners = points[faces]
    across: NDArray[np.float64] = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    return across
