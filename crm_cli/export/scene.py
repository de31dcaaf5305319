"""One scene for every writer: turned, scaled and placed once, so that all formats agree to the last bit."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from crm_cli.frame import EXPORT_TURN
from crm_cli.records import TexturedMesh, expect

METRES_PER_UNIT = 0.5
"""The world spans two units, so an asset is at most 1 m long; a power of two keeps the scaling exact."""

ROUGHNESS = 0.6
"""Of every exported material, which is never metallic: a product's paint, leather or wood."""

DIGITAL_SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""How IPTC says "made by a model" (IPTC NewsCodes, digital source type)."""


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Scene:
    """One textured object in the frame of the files: y up, front towards +Z, metres, standing on the origin.

    `points` are the distinct corners of the surface, so `faces` is closed wherever the mesh is. A corner on a
    seam has several texture coordinates: `uv_faces` indexes those, face by face.
    """

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    """Unit length, one a point."""
    faces: NDArray[np.int64]
    uv: NDArray[np.float32]
    """In [0, 1], origin bottom-left."""
    uv_faces: NDArray[np.int64]
    texture: NDArray[np.uint8]
    """sRGB; row 0 is the top (v = 1)."""
    provenance: Mapping[str, str] = field(default_factory=dict)
    """Where the asset came from; every writer puts it into its file."""

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Scene", points=(self.points, "V 3"), normals=(self.normals, "V 3"), faces=(self.faces, "F 3"))
        expect("Scene", uv=(self.uv, "W 2"), uv_faces=(self.uv_faces, "F 3"), faces=(self.faces, "F 3"))
        expect("Scene", texture=(self.texture, "T T 3"))

    @property
    def bounds(self) -> NDArray[np.float32]:
        """Lowest and highest corner [2 3] in metres."""
        return np.stack([self.points.min(axis=0), self.points.max(axis=0)])


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Corners:
    """A scene for formats with one index a corner: a point on a seam is repeated once for each of its uv."""

    points: NDArray[np.float32]
    normals: NDArray[np.float32]
    uv: NDArray[np.float32]
    faces: NDArray[np.int64]

    def __post_init__(self) -> None:
        """Check shapes."""
        expect("Corners", points=(self.points, "V 3"), normals=(self.normals, "V 3"), uv=(self.uv, "V 2"))
        expect("Corners", faces=(self.faces, "F 3"))


def build_scene(
    textured: TexturedMesh,
    *,
    provenance: Mapping[str, str],
    metres_per_unit: float = METRES_PER_UNIT,
) -> Scene:
    """Turn a mesh from the world to the frame of the files, once for all writers."""
    used, faces = np.unique(textured.mesh.faces, return_inverse=True)
    faces = faces.reshape(-1, 3)
    points = to_export_frame(textured.mesh.vertices[used], metres_per_unit=metres_per_unit)
    return Scene(
        points=points,
        normals=smooth_normals(points, faces),
        faces=faces,
        uv=np.ascontiguousarray(textured.unwrapped.uv, dtype=np.float32),
        uv_faces=np.ascontiguousarray(textured.unwrapped.uv_faces, dtype=np.int64),
        texture=textured.texture,
        provenance=_written_words({"digitalSourceType": DIGITAL_SOURCE_TYPE, **provenance}),
    )


def to_export_frame(vertices: NDArray[np.float32], *, metres_per_unit: float) -> NDArray[np.float32]:
    """Turn world positions [V 3] to the frame of the files: metres, y up, front towards +Z.

    The bottom-centre of their box comes to lie on the origin.
    """
    turned = vertices.astype(np.float64) @ np.array(EXPORT_TURN, dtype=np.float64).T * metres_per_unit
    low, high = turned.min(axis=0), turned.max(axis=0)
    pivot = (low + high) / 2
    pivot[1] = low[1]
    placed: NDArray[np.float32] = (turned - pivot).astype(np.float32)
    return placed


def smooth_normals(points: NDArray[np.float32], faces: NDArray[np.int64]) -> NDArray[np.float32]:
    """Give unit normals [V 3]: the mean of a point's faces, each weighted by its angle there.

    So it does not matter how a flat side is cut into triangles.
    (Thürmer and Wüthrich 1998, "Computing vertex normals from polygonal facets")
    """
    exact = points.astype(np.float64)
    a, b, c = (exact[faces[:, corner]] for corner in range(3))
    flat = _unit(np.cross(b - a, c - a))
    sides = [_unit(side) for side in (b - a, c - b, a - c)]  # each from its corner to the next
    sums = np.zeros((len(points), 3))
    for corner in range(3):
        angle = np.arccos(np.clip(-_dot(sides[corner], sides[corner - 1]), -1.0, 1.0))
        for axis in range(3):
            sums[:, axis] += np.bincount(faces[:, corner], flat[:, axis] * angle, minlength=len(points))
    normals = _unit(sums)
    # Two sheets that meet back to back cancel out; a reader still wants unit length there.
    normals[(normals == 0).all(axis=1)] = (0.0, 1.0, 0.0)
    return normals.astype(np.float32)


def split_at_seams(scene: Scene) -> Corners:
    """Repeat a point for every texture coordinate it has; the copies are bit-identical."""
    pairs, faces = np.unique(scene.faces * len(scene.uv) + scene.uv_faces, return_inverse=True)
    point, uv = np.divmod(pairs, len(scene.uv))
    return Corners(
        points=scene.points[point], normals=scene.normals[point], uv=scene.uv[uv], faces=faces.reshape(-1, 3)
    )


def shrink_texture(scene: Scene, *, size_px: int) -> Scene:
    """Return the scene with a texture of that side, which divides the present one.

    The margins around charts shrink with it.
    """
    from PIL import Image

    # The mean of whole blocks: a wider filter would reach across the margin into the next chart.
    smaller = Image.fromarray(scene.texture).reduce(len(scene.texture) // size_px)
    return replace(scene, texture=np.asarray(smaller))


def companion_stem(stem: str) -> str:
    """Name the files that stand beside an asset and are referred to from within it.

    A plain name in any script is kept. Spaces, `#`, brackets and the like mean something to one reader or
    another of MTL and USD, and a name that is not UTF-8 cannot be written into either: such a name is
    shortened to its plain characters, with a digest so that `a b` and `a_b` stay apart.
    """
    plain = "".join(c if c in "._-" or unicodedata.category(c)[0] in "LMN" else "_" for c in stem)
    if plain == stem and not stem.startswith("-"):  # MTL reads a leading dash as an option
        return stem
    digest = hashlib.sha256(os.fsencode(stem)).hexdigest()[:8]
    # 40 characters are at most 160 bytes: the suffixes fit the 255 bytes of a file name.
    return f"{plain.strip('-_')[:40]}-{digest}".lstrip("-")


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scale vectors [N 3] to unit length; zero stays zero."""
    length = np.sqrt(_dot(vectors, vectors))[:, None]
    # Zero over anything is zero.
    unit: NDArray[np.float64] = vectors / np.where(length > 0, length, 1.0)
    return unit


def _dot(left: NDArray[np.float64], right: NDArray[np.float64]) -> NDArray[np.float64]:
    """Scalar products [N] of vectors [N 3]: column by column, as numpy is slow along short rows."""
    x, y, z = (left[:, axis] * right[:, axis] for axis in range(3))
    product: NDArray[np.float64] = x + y + z
    return product


def _written_words(words: Mapping[str, str]) -> dict[str, str]:
    """Sort by key, and spell out bytes of a file name that are not UTF-8: no format could store them."""
    return {
        key: words[key].encode("utf-8", "backslashreplace").decode("utf-8").replace("\0", r"\x00")
        for key in sorted(words)
    }
