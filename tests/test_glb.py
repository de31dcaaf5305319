from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import trimesh
from coordinate_box import coordinate_box

from crm_cli import __version__
from crm_cli.export import glb
from crm_cli.export.scene import Scene, build_scene
from crm_cli.export.textures import encode_texture


def encode_glb(scene: Scene, kind: str = "png", compression: str = "none") -> bytes:
    picture = encode_texture(scene.texture, kind, quality=90)
    return glb.encode_glb(scene, picture=picture, compression=compression)


def write_glb(scene: Scene, path: Path, kind: str = "png", compression: str = "none") -> list[Path]:
    picture = encode_texture(scene.texture, kind, quality=90)
    return glb.write_glb(scene, path, picture=picture, compression=compression)


def parts(data: bytes) -> tuple[dict, bytes]:
    """Take a GLB apart by the specification's layout."""
    magic, version, length, json_length, json_kind = struct.unpack_from("<4sIII4s", data)
    assert (magic, version, length, json_kind) == (b"glTF", 2, len(data), b"JSON")
    size, kind = struct.unpack_from("<I4s", data, 20 + json_length)
    assert kind == b"BIN\0"
    assert json_length % 4 == size % 4 == 0
    return json.loads(data[20 : 20 + json_length]), data[28 + json_length :][:size]


def grid_scene(side: int) -> Scene:
    """A flat sheet of side² corners."""
    x, z = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    points = np.stack([x, 0 * x, z], axis=2).reshape(-1, 3).astype(np.float32)
    first = (np.arange(side - 1)[:, None] * side + np.arange(side - 1)).reshape(-1, 1)
    faces = np.concatenate(
        [first + offsets for offsets in np.array([[0, side, 1], [1, side, side + 1]])]
    ).astype(np.int64)
    uv = points[:, [0, 2]].copy()
    box = build_scene(coordinate_box(), provenance={})
    return Scene(
        points=points, normals=np.tile(np.float32([0, 1, 0]), (side**2, 1)), faces=faces, uv=uv,
        uv_faces=faces, texture=box.texture,
    )  # fmt: skip


@pytest.fixture(scope="module")
def box() -> bytes:
    return encode_glb(build_scene(coordinate_box(), provenance={"photo": "chairs/皮鞋.webp", "seed": "7"}))


def test_there_is_one_mesh_one_matt_material_and_nothing_else(box):
    gltf, _ = parts(box)
    assert [len(gltf[kind]) for kind in ("scenes", "nodes", "meshes", "materials", "images")] == [1] * 5
    assert not {"cameras", "animations", "skins"} & set(gltf)
    material = gltf["materials"][0]
    surface = material["pbrMetallicRoughness"]
    assert (surface["metallicFactor"], surface["roughnessFactor"]) == (0, 0.6)
    assert surface["baseColorTexture"]["index"] == 0
    assert material["doubleSided"] is False
    assert material["alphaMode"] == "OPAQUE"
    assert set(gltf["nodes"][0]) <= {"mesh", "name"}  # no transform: the points are where they are


def test_views_are_aligned_aimed_and_inside_the_buffer(box):
    gltf, data = parts(box)
    assert gltf["buffers"] == [{"byteLength": len(data)}]
    views = gltf["bufferViews"]
    assert all(view["byteOffset"] % 4 == 0 for view in views)
    assert [view.get("target") for view in views] == [34962, 34962, 34962, 34963, None]
    ends = [view["byteOffset"] + view["byteLength"] for view in views]
    starts = [view["byteOffset"] for view in views[1:]] + [len(data)]
    assert all(0 <= start - end < 4 for start, end in zip(starts, ends, strict=True))


def test_the_stated_range_is_the_range_of_the_stored_positions(box):
    gltf, data = parts(box)
    accessor = gltf["accessors"][gltf["meshes"][0]["primitives"][0]["attributes"]["POSITION"]]
    start = gltf["bufferViews"][accessor["bufferView"]]["byteOffset"]
    stored = np.frombuffer(data, "<f4", accessor["count"] * 3, start).reshape(-1, 3)
    assert accessor["min"] == stored.min(axis=0).tolist()
    assert accessor["max"] == stored.max(axis=0).tolist()


def test_provenance_travels_in_the_file_and_says_that_it_was_generated(box):
    gltf, _ = parts(box)
    assert gltf["asset"]["generator"] == f"crm {__version__}"
    assert gltf["asset"]["extras"]["photo"] == "chairs/皮鞋.webp"
    packet = gltf["extensions"]["KHR_xmp_json_ld"]["packets"][
        gltf["asset"]["extensions"]["KHR_xmp_json_ld"]["packet"]
    ]
    assert packet["Iptc4xmpExt:DigitalSourceType"].endswith("trainedAlgorithmicMedia")


@pytest.mark.parametrize(("side", "component"), [(255, 5123), (256, 5125)])
def test_indices_take_two_bytes_as_long_as_none_is_the_forbidden_last(side, component):
    gltf, data = parts(encode_glb(grid_scene(side)))
    accessor = gltf["accessors"][gltf["meshes"][0]["primitives"][0]["indices"]]
    assert accessor["componentType"] == component
    start = gltf["bufferViews"][accessor["bufferView"]]["byteOffset"]
    stored = np.frombuffer(data, {5123: "<u2", 5125: "<u4"}[component], accessor["count"], start)
    assert stored.max() == side**2 - 1
    assert (stored.reshape(-1, 3) == grid_scene(side).faces).all()


def test_the_surface_is_closed_again_once_a_reader_merges_the_seams(tmp_path):
    [path] = write_glb(build_scene(coordinate_box(), provenance={}), tmp_path / "box.glb")
    mesh = trimesh.load(path, force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert len(mesh.vertices) == 8
    assert mesh.is_watertight
    assert mesh.volume > 0
