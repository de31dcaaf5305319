"""What a written file holds: counted in its bytes, not taken from what was meant to be written.

Vertices are counted as a GPU has them, split where texture coordinates part, in every format alike.
"""

from __future__ import annotations

import io
import json
import struct
import tempfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

_JSON_CHUNK = b"JSON"
_TRIANGLES = 4
_KTX2_MARK = b"\xabKTX 20\xbb"
_KTX2_SIZE_AT = 20
"""Offset of width and height, each four bytes. (Khronos KTX File Format 2.0, §3)"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What one format's files hold together."""

    file: str
    """Name of the main file."""
    triangles: int
    vertices: int
    textures_px: tuple[tuple[int, int], ...]
    """Width and height of every texture."""
    size_bytes: int
    """Of all the files, as whoever loads the asset must fetch them all."""

    @property
    def texture_px(self) -> int:
        """The longest side of any texture."""
        return max((side for size in self.textures_px for side in size), default=0)

    @property
    def has_square_texture(self) -> bool:
        """Whether every texture is square and its side a power of two."""
        return all(width == height and not width & (width - 1) for width, height in self.textures_px)


def measure(files: Sequence[Path]) -> Measured:
    """Read one format's files, the main one first; ValueError where it is none we know."""
    main = files[0]
    reader = _READERS.get(main.suffix)
    if reader is None:
        raise ValueError(f"{main.name}: no format that can be measured")
    triangles, vertices, textures = reader(files)
    return Measured(
        file=main.name,
        triangles=triangles,
        vertices=vertices,
        textures_px=tuple(map(_picture_px, textures)),
        size_bytes=sum(file.stat().st_size for file in files),
    )


_Counts = tuple[int, int, list[bytes]]
"""Triangles, vertices and the encoded textures of a file."""


def _read_glb(files: Sequence[Path]) -> _Counts:
    """Count what the JSON says of the accessors: readers draw that many, also of compressed geometry."""
    tree, binary = _glb_chunks(files[0].read_bytes())
    accessors = tree["accessors"]
    primitives = [part for mesh in tree["meshes"] for part in mesh["primitives"]]
    if any(part.get("mode", _TRIANGLES) != _TRIANGLES for part in primitives):
        raise ValueError(f"{files[0].name}: holds other things than triangles")
    positions = {part["attributes"]["POSITION"] for part in primitives}
    corners = [
        part["indices"] if "indices" in part else part["attributes"]["POSITION"] for part in primitives
    ]
    return (
        sum(accessors[index]["count"] for index in corners) // 3,
        sum(accessors[index]["count"] for index in positions),
        [_view(tree, binary, image["bufferView"]) for image in tree.get("images", [])],
    )


def _glb_chunks(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Split a GLB into its JSON and its binary chunk.

    (glTF 2.0, §4.4)
    """
    magic, _, _ = struct.unpack_from("<4sII", data)
    length, kind = struct.unpack_from("<I4s", data, 12)
    if magic != b"glTF" or kind != _JSON_CHUNK:
        raise ValueError("no GLB")
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def _view(tree: Mapping[str, Any], binary: bytes, index: int) -> bytes:
    view = tree["bufferViews"][index]
    start = view.get("byteOffset", 0)
    return binary[start : start + view["byteLength"]]


def _read_obj(files: Sequence[Path]) -> _Counts:
    """Count faces, and the different corners they have."""
    with files[0].open("rb") as lines:
        faces = [line.split()[1:] for line in lines if line.startswith(b"f ")]
    # A polygon of n corners is n - 2 triangles.
    triangles = sum(len(face) - 2 for face in faces)
    return triangles, len({corner for face in faces for corner in face}), _pictures_among(files[1:])


def _read_usd(files: Sequence[Path]) -> _Counts:
    return *_layer_counts(files[0].read_bytes()), _pictures_among(files[1:])


def _read_usdz(files: Sequence[Path]) -> _Counts:
    """Look into the package, whose first file is the layer.

    (Usdz File Format Specification 1.3)
    """
    with zipfile.ZipFile(files[0]) as package:
        layer, *others = package.namelist()
        return *_layer_counts(package.read(layer)), [package.read(name) for name in others]


def _layer_counts(layer: bytes) -> tuple[int, int]:
    """Count triangles and split vertices of a USD layer."""
    from pxr import Usd, UsdGeom

    triangles = vertices = 0
    # By way of a plainly named file of its own: USD reads brackets in paths as syntax.
    with tempfile.TemporaryDirectory(prefix="crm-measure-") as folder:
        copy = Path(folder) / "asset.usdc"
        copy.write_bytes(layer)
        stage = Usd.Stage.Open(str(copy))
        for prim in stage.Traverse():
            if not prim.IsA(UsdGeom.Mesh):
                continue
            mesh = UsdGeom.Mesh(prim)
            counts = np.array(mesh.GetFaceVertexCountsAttr().Get())
            triangles += int((counts - 2).sum())
            points = np.array(mesh.GetFaceVertexIndicesAttr().Get())
            uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").GetIndices())
            vertices += len(np.unique(np.stack([points, uv], axis=1), axis=0))
        del stage
    return triangles, vertices


def _pictures_among(files: Sequence[Path]) -> list[bytes]:
    return [file.read_bytes() for file in files if file.suffix != ".mtl"]


def _picture_px(data: bytes) -> tuple[int, int]:
    """Width and height of an encoded picture, by its header."""
    if data[: len(_KTX2_MARK)] == _KTX2_MARK:
        width, height = struct.unpack_from("<II", data, _KTX2_SIZE_AT)
        return width, height
    from PIL import Image

    with Image.open(io.BytesIO(data)) as picture:
        return picture.size


_READERS: Mapping[str, Callable[[Sequence[Path]], _Counts]] = {
    ".glb": _read_glb,
    ".obj": _read_obj,
    ".usdc": _read_usd,
    ".usdz": _read_usdz,
}
