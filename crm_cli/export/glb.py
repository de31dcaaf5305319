"""GLB: the asset as one binary glTF 2.0 file."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crm_cli import __version__
from crm_cli.export.chunk import Chunk, add_plain
from crm_cli.export.compress import add_draco, add_meshopt
from crm_cli.export.scene import DIGITAL_SOURCE_TYPE, ROUGHNESS, Corners, Scene, split_at_seams
from crm_cli.export.textures import Picture, TextureFormat

if TYPE_CHECKING:
    from pygltflib import GLTF2

Compression = Literal["none", "meshopt", "draco"]

_ADD: Mapping[Compression, Callable[[Chunk, Corners], None]] = {
    "none": add_plain,
    "meshopt": add_meshopt,
    "draco": add_draco,
}

_EXTENSIONS: Mapping[TextureFormat, str] = {"webp": "EXT_texture_webp", "ktx2": "KHR_texture_basisu"}
"""For pictures that plain glTF does not know. No PNG stands beside them for readers without: it would weigh
more than what it saves."""


def write_glb(scene: Scene, path: Path, *, picture: Picture, compression: Compression = "none") -> list[Path]:
    """Write one self-contained file, and name it."""
    path.write_bytes(encode_glb(scene, picture=picture, compression=compression))
    return [path]


def encode_glb(scene: Scene, *, picture: Picture, compression: Compression = "none") -> bytes:
    """Return the bytes of a GLB: one mesh, one material, its texture inside; no lights, no cameras."""
    gltf = _describe(scene, picture)
    chunk = Chunk(gltf)
    _ADD[compression](chunk, split_at_seams(scene))
    gltf.images[0].bufferView = chunk.add_view(picture.data)
    gltf.buffers[0].byteLength = len(chunk.data)
    return _pack(gltf, bytes(chunk.data))


def _pack(gltf: GLTF2, data: bytes) -> bytes:
    """Put JSON and binary chunk together.

    Not by pygltflib, which makes one buffer of all, also of one that only decoders have. (glTF 2.0 §4.4)
    """
    text: bytes = gltf.gltf_to_json(separators=(",", ":"), indent=None).encode("utf-8")
    text += b" " * (-len(text) % 4)
    length = 12 + 8 + len(text) + 8 + len(data)
    head = struct.pack("<4sII", b"glTF", 2, length) + struct.pack("<I4s", len(text), b"JSON")
    return head + text + struct.pack("<I4s", len(data), b"BIN\0") + data


def _describe(scene: Scene, picture: Picture) -> GLTF2:
    """Return all of the JSON that does not point into the binary chunk."""
    import pygltflib as g

    colour = g.PbrMetallicRoughness(
        baseColorTexture=g.TextureInfo(index=0), metallicFactor=0.0, roughnessFactor=ROUGHNESS
    )
    # Charts keep clear of the border, so wrapping could only bleed the far side in.
    sampler = g.Sampler(
        magFilter=g.LINEAR, minFilter=g.LINEAR_MIPMAP_LINEAR, wrapS=g.CLAMP_TO_EDGE, wrapT=g.CLAMP_TO_EDGE
    )
    texture = g.Texture(sampler=0, source=0)
    extension = _EXTENSIONS.get(picture.kind)
    if extension:
        texture = g.Texture(sampler=0, extensions={extension: {"source": 0}})
    needed = [extension] if extension else []
    return g.GLTF2(
        asset=g.Asset(
            generator=f"crm {__version__}",
            extras=dict(scene.provenance),
            extensions={"KHR_xmp_json_ld": {"packet": 0}},
        ),
        extensionsUsed=["KHR_xmp_json_ld", *needed],
        extensionsRequired=needed,
        extensions={"KHR_xmp_json_ld": {"packets": [_source_mark(scene)]}},
        scene=0,
        scenes=[g.Scene(nodes=[0])],
        nodes=[g.Node(mesh=0, name="asset")],
        meshes=[g.Mesh(name="asset", primitives=[g.Primitive(material=0, mode=g.TRIANGLES)])],
        materials=[
            g.Material(name="asset", pbrMetallicRoughness=colour, alphaMode=g.OPAQUE, doubleSided=False)
        ],
        textures=[texture],
        samplers=[sampler],
        images=[g.Image(mimeType=f"image/{picture.kind}", name="base colour")],
        buffers=[g.Buffer()],
    )


def _source_mark(scene: Scene) -> dict[str, object]:
    """Return the XMP packet that says what made this (KHR_xmp_json_ld; IPTC Photo Metadata 2022.1)."""
    return {
        "@context": {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"},
        "@id": "",
        "Iptc4xmpExt:DigitalSourceType": scene.provenance.get("digitalSourceType", DIGITAL_SOURCE_TYPE),
    }
