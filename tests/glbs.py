"""GLB files as people make them, for tests: with trimesh, or chunk by chunk where it writes no such thing."""

from __future__ import annotations

import json
import struct
from typing import Any

import numpy as np
import trimesh
from PIL import Image


def textured(
    mesh: trimesh.Trimesh, uv: np.ndarray[Any, Any], picture: np.ndarray[Any, Any], **material: Any
) -> trimesh.Trimesh:
    """Lay a picture on a mesh; uv [V 2], origin bottom left."""
    paint = trimesh.visual.material.PBRMaterial(baseColorTexture=Image.fromarray(picture), **material)
    mesh.visual = trimesh.visual.TextureVisuals(uv=uv, material=paint)
    return mesh


def painted(mesh: trimesh.Trimesh, factor: tuple[float, float, float], **material: Any) -> trimesh.Trimesh:
    """Paint a mesh in one colour, in linear light."""
    paint = trimesh.visual.material.PBRMaterial(baseColorFactor=[*factor, 1.0], **material)
    mesh.visual = trimesh.visual.TextureVisuals(material=paint)
    return mesh


def quad(corners: list[list[float]]) -> trimesh.Trimesh:
    """Four corners, counter-clockwise: bottom left, bottom right, top right, top left."""
    return trimesh.Trimesh(corners, [[0, 1, 2], [0, 2, 3]], process=False)


UNIT_UV = np.array([[0, 0], [1, 0], [1, 1], [0, 1]], dtype=float)
"""Of a quad that shows its picture once."""


def glb_of(*meshes: trimesh.Trimesh, transform: Any = None) -> bytes:
    """Write meshes as the nodes of one scene."""
    scene = trimesh.Scene()
    for mesh in meshes:
        scene.add_geometry(mesh, transform=transform)
    data: bytes = scene.export(file_type="glb")
    return data


def edited(glb: bytes, **changes: Any) -> bytes:
    """Replace entries of a file's JSON."""
    (length,) = struct.unpack_from("<I", glb, 12)
    text = json.dumps(json.loads(glb[20 : 20 + length]) | changes).encode()
    text += b" " * (-len(text) % 4)
    rest = glb[20 + length :]
    head = struct.pack("<4sIIII", b"glTF", 2, 20 + len(text) + len(rest), len(text), 0x4E4F534A)
    return head + text + rest


def header(glb: bytes) -> dict[str, Any]:
    """The JSON of a file."""
    (length,) = struct.unpack_from("<I", glb, 12)
    found: dict[str, Any] = json.loads(glb[20 : 20 + length])
    return found
