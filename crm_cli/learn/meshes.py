"""Meshes that somebody made: GLB files as subjects, whatever their scale, their seams and their holes."""

from __future__ import annotations

import io
import json
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from crm_cli.frame import EXPORT_TURN
from crm_cli.learn.camera import EXTENT
from crm_cli.learn.examples import SAMPLES
from crm_cli.learn.materials import Floats
from crm_cli.learn.paint import Paint, Texture, open_texture, paint_of
from crm_cli.learn.subject import FAMILY, Shine, Unusable, shine_of
from crm_cli.learn.visibility import Enclosed, Sides, sides_of
from crm_cli.records import expect
from crm_cli.srgb import to_linear, to_srgb

MAX_FACES = 300_000
"""A file of more is passed over: looking at its faces from all sides would take minutes."""

WELD = 2.0**-20
"""Corners closer than this share of the longest side are one: files split them at every seam."""


@dataclass(frozen=True, eq=False, kw_only=True)
class LoadedMesh:
    """A mesh from a file in the frame of `Subject`, its longest side EXTENT.

    uv float32 [F 3 2], origin top left, and tint float32 [F 3 3], linear, belong to the corners of the faces;
    part int64 [F] says which of the paints a face has; level int64 [F] how far its texture is averaged.
    """

    vertices: Floats
    faces: NDArray[np.int64]
    uv: Floats
    tint: Floats
    part: NDArray[np.int64]
    paints: tuple[Paint, ...]
    level: NDArray[np.int64]

    family = FAMILY
    is_closed = False

    def __post_init__(self) -> None:
        """Check shapes."""
        expect(
            "LoadedMesh",
            vertices=(self.vertices, "V 3"),
            faces=(self.faces, "F 3"),
            uv=(self.uv, "F 3 2"),
            tint=(self.tint, "F 3 3"),
            part=(self.part, "F"),
            level=(self.level, "F"),
        )

    def colour_at(self, face_ids: NDArray[np.int64], barycentric: Floats) -> Floats:
        """Albedo at places on faces; see `Subject`.

        Factors and vertex colours multiply light, textures hold sRGB. (glTF 2.0 §3.9.2)
        """
        tint = _blended(self.tint[face_ids], barycentric)
        colours = np.ones((len(face_ids), 3), dtype=np.float32)
        owner = self.part[face_ids]
        for number, paint in enumerate(self.paints):
            if paint.texture is not None:
                chosen = np.flatnonzero(owner == number)
                uv = _blended(self.uv[face_ids[chosen]], barycentric[chosen])
                colours[chosen] = paint.texture.sample(uv, self.level[face_ids[chosen]])
        is_tinted = np.flatnonzero((np.abs(tint - 1) > 1e-3).any(axis=1))
        colours[is_tinted] = to_srgb(to_linear(colours[is_tinted]) * tint[is_tinted])
        return np.clip(colours, 0, 1)

    def shine_at(self, face_ids: NDArray[np.int64]) -> Shine:
        """How the paints of faces [N] reflect lamps."""
        return shine_of(self.paints, self.part[face_ids])

    @cached_property
    def sides(self) -> Sides:
        """Which sides of the faces can be seen; a pose does not change that."""
        return sides_of(self.vertices, self.faces)

    def body(self, vertices: Floats) -> Enclosed:
        """What cannot be seen from anywhere, the vertices [V 3] put in place."""
        return Enclosed(vertices, self.faces, self.sides)


def _blended(corners: Floats, barycentric: Floats) -> Floats:
    """Interpolate what corners carry: [N 3 K] and [N 3] give [N K]."""
    blended: Floats = np.einsum("nk,nkd->nd", barycentric, corners)
    return blended


def read_mesh(data: bytes, *, size_px: int) -> LoadedMesh:
    """Read the bytes of a GLB: all meshes of its scene where its nodes put them, as one.

    Textures are averaged as pictures of size_px show them. Left out are lines and points, transparency,
    skins, morphs and lights; textures repeat whatever their sampler says.

    Raises:
        Unusable: It is damaged, needs an extension that cannot be decoded, or holds no surface.
    """
    try:
        pieces = list(_pieces(data))
    except Exception as error:  # whatever a damaged file makes trimesh, Pillow or numpy say
        raise Unusable(f"not a readable GLB: {type(error).__name__}: {error}") from error
    if not pieces:
        raise Unusable("holds no triangles")
    count = sum(len(piece.corners) for piece in pieces)
    if count > MAX_FACES:
        raise Unusable(f"{count} triangles; more than {MAX_FACES} are not read")
    corners = np.concatenate([piece.corners for piece in pieces])  # [F 3 3]
    kept, vertices, faces = _welded(corners)
    if not len(kept):
        needed = _extensions_required(data)
        raise Unusable(
            "holds no triangle with an area" + (f"; it needs {', '.join(needed)}" if needed else "")
        )
    part = np.repeat(np.arange(len(pieces)), [len(piece.corners) for piece in pieces])[kept]
    uv = np.concatenate([piece.uv for piece in pieces])[kept]
    paints = tuple(piece.paint for piece in pieces)
    return LoadedMesh(
        vertices=vertices,
        faces=faces,
        uv=uv,
        tint=np.concatenate([piece.tint for piece in pieces])[kept],
        part=part,
        paints=paints,
        level=_levels(vertices[faces], uv, part, paints, size_px),
    )


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class _Piece:
    """One triangle list with one material: corners float64 [F 3 3] in the world, uv [F 3 2], tint [F 3 3]."""

    corners: NDArray[np.float64]
    uv: Floats
    tint: Floats
    paint: Paint


def _pieces(data: bytes) -> Iterator[_Piece]:
    """Read every triangle list of a file's scene, turned from glTF's frame into the world."""
    import trimesh

    described, numbered = _numbered(data)
    scene = trimesh.load_scene(io.BytesIO(numbered), file_type="glb", process=False)
    textures: dict[int, Texture] = {}
    turn = np.array(EXPORT_TURN, dtype=np.float64).T
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        geometry = scene.geometry[name]
        if not isinstance(geometry, trimesh.Trimesh) or not len(geometry.faces):
            continue
        faces = np.asarray(geometry.faces)
        placed = np.asarray(geometry.vertices) @ matrix[:3, :3].T + matrix[:3, 3]
        if np.linalg.det(matrix[:3, :3]) < 0:  # a mirrored copy: its faces would look inwards
            faces = faces[:, ::-1]
        uv, tint, paint = _painted(geometry.visual, len(placed), textures)
        if paint.texture is not None:
            uv = _shifted(uv, described["materials"][int(geometry.visual.material.name)])
        yield _Piece(corners=(placed @ turn.T)[faces], uv=uv[faces], tint=tint[faces], paint=paint)


def _numbered(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Read a GLB's JSON, and name its materials by their numbers: trimesh keeps names, and not all else."""
    (length,) = struct.unpack_from("<I", data, 12)
    described: dict[str, Any] = json.loads(data[20 : 20 + length])
    for number, material in enumerate(described.get("materials", [])):
        material["name"] = str(number)
    text = json.dumps(described).encode("utf-8")
    text += b" " * (-len(text) % 4)
    rest = data[20 + length :]
    sizes = struct.pack("<II", 20 + len(text) + len(rest), len(text))
    return described, data[:8] + sizes + data[16:20] + text + rest


def _shifted(uv: Floats, material: dict[str, Any]) -> Floats:
    """Shift, turn and scale texture coordinates [V 2] as KHR_texture_transform has it.

    A turn is counter-clockwise as one looks at the picture, whose second axis runs downwards.
    """
    laid = material.get("pbrMetallicRoughness", {}).get("baseColorTexture", {})
    found = laid.get("extensions", {}).get("KHR_texture_transform", {})
    angle = float(found.get("rotation", 0.0))
    turned = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    scaled = uv * np.array(found.get("scale", (1, 1)), np.float32)
    shifted: Floats = (scaled @ turned.T + found.get("offset", (0, 0))).astype(np.float32)
    return shifted


def _painted(visual: Any, count: int, textures: dict[int, Texture]) -> tuple[Floats, Floats, Paint]:
    """Take a piece's texture coordinates [V 2], linear tint [V 3] and paint from what trimesh read."""
    uv, tint = np.zeros((count, 2), np.float32), np.ones((count, 3), np.float32)
    if visual.kind == "vertex":
        tint = _as_light(np.asarray(visual.vertex_colors))
    if visual.kind != "texture":
        return uv, tint, paint_of(None, roughness=1.0)
    material = visual.material
    if "color" in visual.vertex_attributes:
        tint = _as_light(np.asarray(visual.vertex_attributes["color"]))
    if material.baseColorFactor is not None:
        tint = tint * (np.asarray(material.baseColorFactor, np.float32)[:3] / np.float32(255))
    texture = None
    if visual.uv is not None and isinstance(material.baseColorTexture, Image.Image):
        picture = material.baseColorTexture
        texture = textures.setdefault(id(picture), textures.get(id(picture)) or open_texture(picture))
        # trimesh puts the origin bottom left.
        uv = (np.asarray(visual.uv, np.float64) * [1, -1] + [0, 1]).astype(np.float32)
    roughness = 1.0 if material.roughnessFactor is None else float(material.roughnessFactor)
    return uv, tint, paint_of(texture, roughness=roughness)


def _as_light(colours: NDArray[Any]) -> Floats:
    """Take vertex colours [V 3|4] of any type as light [V 3], which is what glTF says they are."""
    largest = np.iinfo(colours.dtype).max if np.issubdtype(colours.dtype, np.integer) else 1
    light: Floats = (colours[:, :3] / largest).astype(np.float32)
    return np.clip(light, 0, 1)


def _welded(corners: NDArray[np.float64]) -> tuple[NDArray[np.int64], Floats, NDArray[np.int64]]:
    """Join equal corners of [F 3 3] and drop faces without area.

    Returns which faces are kept, vertices [V 3] with the longest side EXTENT, centred, and faces [F 3].
    """
    kept = np.flatnonzero(np.isfinite(corners).all(axis=(1, 2)))
    kept = kept[_areas(corners[kept]) > 0]
    if not len(kept):
        return kept, np.zeros((0, 3), np.float32), np.zeros((0, 3), np.int64)
    used = corners[kept].reshape(-1, 3)
    low, high = used.min(axis=0), used.max(axis=0)
    scaled = (used - (low + high) / 2) / (high - low).max()  # in [-0.5, 0.5]
    cells = np.round(scaled / WELD).astype(np.int64)
    span = np.int64(2) ** 21
    _, first, index = np.unique(
        (cells[:, 0] * span + cells[:, 1]) * span + cells[:, 2], return_index=True, return_inverse=True
    )
    vertices = (scaled[first] * EXTENT).astype(np.float32)
    faces = index.reshape(-1, 3)
    # Welding may close what was a sliver.
    whole = np.flatnonzero(_areas(vertices[faces].astype(np.float64)) > 0)
    return kept[whole], vertices, faces[whole]


def _areas(corners: NDArray[np.float64]) -> NDArray[np.float64]:
    """Areas [F] of triangles [F 3 3]."""
    a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
    areas: NDArray[np.float64] = np.linalg.norm(np.cross(b - a, c - a), axis=1) / 2
    return areas


def _levels(
    corners: Floats, uv: Floats, part: NDArray[np.int64], paints: tuple[Paint, ...], size_px: int
) -> NDArray[np.int64]:
    """How often each face's texture is halved so that a sample of a picture meets one or two texels: [F]."""
    area = _areas(corners.astype(np.float64))
    flat = np.concatenate([uv, np.zeros_like(uv[..., :1])], axis=-1)
    sides = [(0, 0) if paint.texture is None else paint.texture.levels[0].shape[:2] for paint in paints]
    texels = _areas(flat.astype(np.float64)) * np.array([h * w for h, w in sides], np.float64)[part]
    per_sample = np.sqrt(texels / area) * (2 / (SAMPLES * size_px))
    levels: NDArray[np.int64] = np.floor(np.log2(np.maximum(per_sample, 1))).astype(np.int64)
    return levels


def _extensions_required(data: bytes) -> list[str]:
    """The names under `extensionsRequired` of a GLB whose first chunk was read before."""
    (length,) = struct.unpack_from("<I", data, 12)
    needed: list[str] = json.loads(data[20 : 20 + length]).get("extensionsRequired", [])
    return needed
