from __future__ import annotations

import base64
import dataclasses
import json
import struct
from pathlib import Path

import DracoPy
import numpy as np
import pytest
import trimesh
from foreign import needs_node, read_with_gltf_transform
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from crm_cli.export.compress import GRID_BITS, Laying, lay_as_draco, lay_binary, snap
from crm_cli.export.glb import encode_glb
from crm_cli.export.scene import Corners, Scene, smooth_normals, split_at_seams
from crm_cli.export.textures import encode_texture

COMPRESSIONS = ("meshopt", "draco")
LAYINGS = (lay_binary, lay_as_draco)


def lumpy(subdivisions: int = 4) -> Scene:
    """A closed ball with a rough skin, as networks draw them, cut open into two charts."""
    ball = trimesh.creation.icosphere(subdivisions, radius=0.4)
    rough = 1 + np.random.default_rng(0).normal(scale=0.01, size=(len(ball.vertices), 1))
    points = (np.asarray(ball.vertices) * rough + [0, 0.4, 0]).astype(np.float32)
    faces = np.asarray(ball.faces, dtype=np.int64)
    uv = np.concatenate([ball.vertices[:, :2] * 0.5 + [0.5, 0.5]] * 2).astype(np.float32)
    uv[len(points) :, 1] *= 0.5
    is_back = ball.triangles_center[:, 2] < 0
    texture = np.zeros((8, 8, 3), dtype=np.uint8)
    return Scene(
        points=points, normals=smooth_normals(points, faces), faces=faces, uv=uv,
        uv_faces=faces + len(points) * is_back[:, None], texture=texture,
    )  # fmt: skip


def corners_of(points: NDArray, faces: NDArray) -> Corners:
    points = np.asarray(points, dtype=np.float32)
    faces = np.asarray(faces, dtype=np.int64)
    return Corners(
        points=points, normals=smooth_normals(points, faces), uv=np.zeros((len(points), 2), np.float32),
        faces=faces,
    )  # fmt: skip


def encoded(scene: Scene, compression: str) -> bytes:
    return encode_glb(
        scene, picture=encode_texture(scene.texture, "png", quality=90), compression=compression
    )


def described(data: bytes) -> tuple[dict, bytes]:
    """The JSON of a GLB, and its binary chunk."""
    length = struct.unpack_from("<I", data, 12)[0]
    return json.loads(data[20 : 20 + length]), data[28 + length :]


def matched(truth: NDArray, found: NDArray) -> NDArray:
    """Faces [F 3 C] that were found, in the order of the true ones, each begun at the same corner.

    Encoders renumber faces and may begin each at another corner, but must not turn it over.
    """
    _, order = cKDTree(found[..., :3].mean(axis=1)).query(truth[..., :3].mean(axis=1))
    assert len(np.unique(order)) == len(truth) == len(found)
    turns = np.stack([np.roll(found[order], turn, axis=1) for turn in range(3)])  # [3 F 3 C]
    turn = np.abs(turns[..., :3] - truth[..., :3]).sum(axis=(2, 3)).argmin(axis=0)
    best: NDArray = turns[turn, np.arange(len(truth))]
    return best


@pytest.mark.parametrize("lay", LAYINGS)
@pytest.mark.parametrize("metres", [0.01, 0.8, 30.0])
def test_positions_move_by_less_than_a_hundred_thousandth_of_the_size(lay, metres):
    corners = split_at_seams(lumpy())
    corners = dataclasses.replace(corners, points=corners.points * np.float32(metres))
    grid = snap(corners, lay)
    size = float(np.ptp(corners.points, axis=0).max())
    assert grid.bits == GRID_BITS[0]
    assert np.abs(grid.points - corners.points).max() < 1e-5 * size
    assert grid.points[:, 1].min() == pytest.approx(corners.points[:, 1].min(), abs=1e-5 * size)


@pytest.mark.parametrize("lay", LAYINGS)
def test_the_grid_becomes_finer_where_points_would_fall_together(lay):
    needle = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [1e-6, 0, 1e-6]]
    faces = [[0, 2, 1], [0, 1, 3], [1, 2, 3], [0, 3, 2]]
    grid = snap(corners_of(needle, faces), lay)
    assert grid.bits > GRID_BITS[0]
    assert len(np.unique(grid.points, axis=0)) == 4


def test_the_grid_becomes_finer_where_a_thin_triangle_would_turn_over():
    step = 2.0 ** -GRID_BITS[0]
    # Its middle point lies a hair above the line between the others, and would be rounded to below it.
    points = [[0, 0, 0], [1, step * 1.05, 0], [0.5, step * 0.45 + step * 0.11, 0], [0, 1, 1]]
    corners = corners_of(points, [[0, 1, 2], [0, 1, 3]])
    grid = snap(corners, lay_binary)
    across = [
        np.cross(p[1] - p[0], p[2] - p[0])[2]
        for p in (corners.points.astype(float), grid.points.astype(float))
    ]
    assert across[0] * across[1] > 0


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_geometry_becomes_much_smaller_and_the_same_every_time(compression):
    scene = lumpy()
    plain, small = encoded(scene, "none"), encoded(scene, compression)
    assert len(small) < len(plain) / 2
    assert encoded(scene, compression) == small


@pytest.mark.parametrize("compression", COMPRESSIONS)
def test_a_reader_is_told_that_it_needs_the_decoder(compression):
    gltf, _ = described(encoded(lumpy(2), compression))
    needed = {
        "meshopt": {"EXT_meshopt_compression", "KHR_mesh_quantization"},
        "draco": {"KHR_draco_mesh_compression"},
    }[compression]
    assert set(gltf["extensionsRequired"]) == needed
    assert needed < set(gltf["extensionsUsed"])
    assert not {"scale", "matrix", "translation", "rotation"} & set(gltf["nodes"][0])


def test_draco_s_decoder_gives_back_the_rounded_surface():
    scene = lumpy()
    gltf, data = described(encoded(scene, "draco"))
    primitive = gltf["meshes"][0]["primitives"][0]
    view = gltf["bufferViews"][primitive["extensions"]["KHR_draco_mesh_compression"]["bufferView"]]
    start = view.get("byteOffset", 0)
    found = DracoPy.decode(data[start : start + view["byteLength"]])
    kinds = {entry["unique_id"]: entry["attribute_type"] for entry in found.attributes}
    numbers = primitive["extensions"]["KHR_draco_mesh_compression"]["attributes"]
    assert {name: kinds[number] for name, number in numbers.items()} == {
        "POSITION": 0, "NORMAL": 1, "TEXCOORD_0": 3,
    }  # fmt: skip
    accessors = [gltf["accessors"][index] for index in primitive["attributes"].values()]
    assert {accessor["count"] for accessor in accessors} == {len(found.points)}
    check_same(scene, lay_as_draco, found.points, found.faces, found.normals, found.tex_coord)
    stated = gltf["accessors"][primitive["attributes"]["POSITION"]]
    assert stated["min"] == found.points.min(axis=0).tolist()
    assert stated["max"] == found.points.max(axis=0).tolist()


@needs_node("@gltf-transform/core", "@gltf-transform/extensions", "meshoptimizer", "draco3dgltf")
@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("subdivisions", [4, pytest.param(7, marks=pytest.mark.slow)])
def test_the_decoders_that_browsers_use_give_back_the_rounded_surface(
    tmp_path: Path, compression, subdivisions
):
    # 7: more corners than two bytes can number.
    scene = lumpy(subdivisions)
    path = tmp_path / "ball.glb"
    path.write_bytes(encoded(scene, compression))
    read = read_with_gltf_transform(path)
    points = np.array(read["points"])
    lay = {"meshopt": lay_binary, "draco": lay_as_draco}[compression]
    faces = np.array(read["indices"]).reshape(-1, 3)
    check_same(scene, lay, points, faces, np.array(read["normals"]), read["uv"])
    assert np.array(read["matrix"]).reshape(4, 4).tolist() == np.eye(4).tolist()
    np.testing.assert_array_equal(np.array(read["low"]), points.min(axis=0))
    np.testing.assert_array_equal(np.array(read["high"]), points.max(axis=0))
    assert base64.b64decode(read["image"]) == encode_texture(scene.texture, "png", quality=90).data


def check_same(
    scene: Scene, lay: Laying, points: NDArray, faces: NDArray, normals: NDArray, uv: NDArray
) -> None:
    """Compare a decoded surface with the one that was encoded, corner by corner."""
    corners = split_at_seams(scene)
    rounded = snap(corners, lay).points
    top_down = np.stack([corners.uv[:, 0], 1 - corners.uv[:, 1]], axis=1)
    truth = np.concatenate([rounded, top_down, corners.normals], axis=1)[corners.faces]
    found = matched(truth, np.concatenate([points, uv, normals], axis=1)[faces])
    # What float32 holds exactly comes back exactly; Draco multiplies in float32, ours in float64.
    np.testing.assert_allclose(found[..., :3], truth[..., :3], rtol=0, atol=0 if lay is lay_binary else 1e-7)
    np.testing.assert_allclose(found[..., 3:5], truth[..., 3:5], atol=1e-5)
    np.testing.assert_allclose(found[..., 5:], truth[..., 5:], atol=1e-3)
    mesh = trimesh.Trimesh(points, faces, process=False)
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    assert mesh.is_watertight
    assert mesh.euler_number == 2
    assert mesh.volume > 0
    assert (mesh.area_faces > 0).all()


def test_a_mesh_of_one_chart_has_no_point_twice():
    scene = lumpy(2)
    scene = dataclasses.replace(scene, uv=scene.uv[: len(scene.points)], uv_faces=scene.faces)
    gltf, data = described(encoded(scene, "draco"))
    view = gltf["bufferViews"][0]
    assert len(DracoPy.decode(data[: view["byteLength"]]).points) == len(scene.points)
