"""GLB: the asset as one binary glTF 2.0 file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from crm_cli import __version__
from crm_cli.export.scene import DIGITAL_SOURCE_TYPE, ROUGHNESS, Corners, Scene, split_at_seams
from crm_cli.export.textures import Picture

if TYPE_CHECKING:
    from pygltflib import GLTF2

Compression = Literal["none", "meshopt", "draco"]

_MOST_SHORT_VERTICES = 65_535  # glTF forbids the index 65535: it restarts a primitive


def write_glb(scene: Scene, path: Path, *, picture: Picture, compression: Compression = "none") -> list[Path]:
    """Write one self-contained file, and name it."""
    path.write_bytes(encode_glb(scene, picture=picture, compression=compression))
    return [path]


def encode_glb(scene: Scene, *, picture: Picture, compression: Compression = "none") -> bytes:
    """Return the bytes of a GLB: one mesh, one material, its texture inside; no lights, no cameras."""
    corners = split_at_seams(scene)
    gltf = _describe(scene, picture)
    chunk = _Chunk(gltf)
    attributes = gltf.meshes[0].primitives[0].attributes
    attributes.POSITION = chunk.add_vertices(corners.points, has_range=True)
    attributes.NORMAL = chunk.add_vertices(corners.normals)
    attributes.TEXCOORD_0 = chunk.add_vertices(_top_down(corners.uv))
    gltf.meshes[0].primitives[0].indices = chunk.add_indices(corners)
    gltf.images[0].bufferView = chunk.add_view(picture.data)
    gltf.buffers[0].byteLength = len(chunk.data)
    gltf.set_binary_blob(bytes(chunk.data))
    return b"".join(gltf.save_to_bytes())


class _Chunk:
    """The binary chunk of a GLB while it grows; each part starts at a multiple of four bytes."""

    def __init__(self, gltf: GLTF2) -> None:
        self.gltf = gltf
        self.data = bytearray()

    def add_view(self, data: bytes, *, target: int | None = None) -> int:
        """Append bytes; return the index of their view."""
        from pygltflib import BufferView

        view = BufferView(buffer=0, byteOffset=len(self.data), byteLength=len(data), target=target)
        self.data += data + b"\0" * (-len(data) % 4)
        self.gltf.bufferViews.append(view)
        return len(self.gltf.bufferViews) - 1

    def add_vertices(self, values: NDArray[np.float32], *, has_range: bool = False) -> int:
        """Append one attribute [V C]; return the index of its accessor. Positions must state their range."""
        from pygltflib import ARRAY_BUFFER, FLOAT, Accessor

        view = self.add_view(values.astype("<f4").tobytes(), target=ARRAY_BUFFER)
        accessor = Accessor(
            bufferView=view, componentType=FLOAT, count=len(values), type=f"VEC{values.shape[1]}"
        )
        if has_range:
            # Python's own floats carry float32 values exactly, so the stated range is the range.
            accessor.min, accessor.max = values.min(axis=0).tolist(), values.max(axis=0).tolist()
        self.gltf.accessors.append(accessor)
        return len(self.gltf.accessors) - 1

    def add_indices(self, corners: Corners) -> int:
        """Append the triangles, two bytes an index where that is enough; return the index of the accessor."""
        from pygltflib import ELEMENT_ARRAY_BUFFER, SCALAR, UNSIGNED_INT, UNSIGNED_SHORT, Accessor

        is_short = len(corners.points) <= _MOST_SHORT_VERTICES
        data = corners.faces.astype("<u2" if is_short else "<u4").tobytes()
        self.gltf.accessors.append(
            Accessor(
                bufferView=self.add_view(data, target=ELEMENT_ARRAY_BUFFER),
                componentType=UNSIGNED_SHORT if is_short else UNSIGNED_INT,
                count=corners.faces.size,
                type=SCALAR,
            )
        )
        return len(self.gltf.accessors) - 1


def _top_down(uv: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move the origin of texture coordinates from the bottom to the top, where glTF has it."""
    return np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)


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
    return g.GLTF2(
        asset=g.Asset(
            generator=f"crm {__version__}",
            extras=dict(scene.provenance),
            extensions={"KHR_xmp_json_ld": {"packet": 0}},
        ),
        extensionsUsed=["KHR_xmp_json_ld"],
        extensions={"KHR_xmp_json_ld": {"packets": [_generated_mark()]}},
        scene=0,
        scenes=[g.Scene(nodes=[0])],
        nodes=[g.Node(mesh=0, name="asset")],
        meshes=[g.Mesh(name="asset", primitives=[g.Primitive(material=0, mode=g.TRIANGLES)])],
        materials=[
            g.Material(name="asset", pbrMetallicRoughness=colour, alphaMode=g.OPAQUE, doubleSided=False)
        ],
        textures=[g.Texture(sampler=0, source=0)],
        samplers=[sampler],
        images=[g.Image(mimeType=f"image/{picture.kind}", name="base colour")],
        buffers=[g.Buffer()],
    )


def _generated_mark() -> dict[str, object]:
    """Return the XMP packet that says a model made this (KHR_xmp_json_ld; IPTC Photo Metadata 2022.1)."""
    return {
        "@context": {"Iptc4xmpExt": "http://iptc.org/std/Iptc4xmpExt/2008-02-29/"},
        "@id": "",
        "Iptc4xmpExt:DigitalSourceType": DIGITAL_SOURCE_TYPE,
    }
