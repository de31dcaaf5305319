"""All formats at once, read back with tools that are not ours."""

from __future__ import annotations

import dataclasses
import io
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import trimesh
from coordinate_box import COLOUR_TOLERANCE, HIGH, LOW, coordinate_box, world_at
from numpy.typing import NDArray
from PIL import Image
from pxr import Usd, UsdGeom, UsdShade

from crm_cli.errors import UsageError
from crm_cli.export.scene import METRES_PER_UNIT, build_scene
from crm_cli.export.writers import SUFFIXES, write_asset
from crm_cli.preset import Exporting, load_preset


def exporting(*formats: str, **settings: str | int) -> Exporting:
    """Ask for formats; what else there is to ask for is the default preset's."""
    return dataclasses.replace(load_preset().preset.export, formats=formats, **settings)


@dataclass
class Reading:
    """What a foreign reader made of a file: per face corner, so that vertex order does not matter."""

    corners: NDArray  # [F 3 3]
    uv: NDArray  # [F 3 2], origin bottom-left
    normals: NDArray  # [F 3 3]
    texture: NDArray  # [T T 3]


def read_with_trimesh(path: Path) -> Reading:
    [mesh] = trimesh.load_scene(path, process=False).geometry.values()
    material = mesh.visual.material
    picture = material.baseColorTexture if path.suffix == ".glb" else material.image
    return Reading(
        corners=mesh.vertices[mesh.faces],
        uv=mesh.visual.uv[mesh.faces],
        normals=mesh.vertex_normals[mesh.faces],
        texture=np.asarray(picture.convert("RGB")),
    )


def read_with_usd(path: Path) -> Reading:
    stage = Usd.Stage.Open(str(path))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    uv = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened()).reshape(-1, 3, 2)
    texture = UsdShade.Shader(stage.GetPrimAtPath("/Asset/Material/Texture")).GetInput("file").Get()
    if path.suffix == ".usdz":
        data = zipfile.ZipFile(path).read("texture.png")
    else:
        data = (path.parent / texture.path).read_bytes()
    return Reading(
        corners=np.array(mesh.GetPointsAttr().Get())[faces],
        uv=uv,
        normals=np.array(mesh.GetNormalsAttr().Get())[faces],
        texture=np.asarray(Image.open(io.BytesIO(data))),
    )


READERS = {"glb": read_with_trimesh, "obj": read_with_trimesh, "usd": read_with_usd, "usdz": read_with_usd}


def read(folder: Path, name: str, stem: str = "box") -> Reading:
    return READERS[name](folder / f"{stem}{SUFFIXES[name]}")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("assets")
    write_asset(build_scene(coordinate_box(), provenance={"seed": "7"}), folder, "box", exporting(*SUFFIXES))
    return folder


@pytest.mark.parametrize("name", SUFFIXES)
def test_every_point_of_the_surface_wears_the_colour_of_its_place(folder, name):
    # One mirrored axis, flipped v, swapped face or moved pivot, and some colour names another place.
    reading = read(folder, name)
    centres = reading.corners.mean(axis=1) / METRES_PER_UNIT
    pivot = np.array([(LOW[0] + HIGH[0]) / 2, (LOW[1] + HIGH[1]) / 2, LOW[2]])
    world = np.stack([-centres[:, 0], centres[:, 2], centres[:, 1]], axis=1) + pivot
    painted = world_at(reading.texture, reading.uv.mean(axis=1))
    np.testing.assert_allclose(painted, world, atol=COLOUR_TOLERANCE)


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_front_side_is_at_plus_z_and_the_top_at_plus_y(folder, name):
    reading = read(folder, name)
    painted = world_at(reading.texture, reading.uv.mean(axis=1))
    flat = np.cross(
        reading.corners[:, 1] - reading.corners[:, 0], reading.corners[:, 2] - reading.corners[:, 0]
    )
    front, top = painted[:, 1] > HIGH[1] - 0.01, painted[:, 2] > HIGH[2] - 0.01
    left = painted[:, 0] > HIGH[0] - 0.01
    assert front.sum() == top.sum() == left.sum() == 2
    for side, outward in ((front, (0, 0, 1)), (top, (0, 1, 0)), (left, (-1, 0, 0))):
        directions = flat[side] / np.linalg.norm(flat[side], axis=1, keepdims=True)
        np.testing.assert_allclose(directions, np.tile(outward, (2, 1)), atol=1e-5)


@pytest.mark.parametrize("name", [name for name in SUFFIXES if name != "glb"])
def test_all_formats_hold_the_same_corners_coordinates_normals_and_texels(folder, name):
    glb, other = read(folder, "glb"), read(folder, name)
    np.testing.assert_allclose(other.corners, glb.corners, atol=1e-6)
    np.testing.assert_allclose(other.uv, glb.uv, atol=1e-6)
    np.testing.assert_allclose(other.normals, glb.normals, atol=1e-5)
    assert (other.texture == glb.texture).all()


def test_every_file_made_is_named_once_and_texture_is_shared(tmp_path):
    files = write_asset(
        build_scene(coordinate_box(), provenance={}), tmp_path, "box", exporting("glb", "obj", "usd")
    )
    assert [file.name for file in files] == ["box.glb", "box.obj", "box.mtl", "box.png", "box.usdc"]
    assert sorted(tmp_path.iterdir()) == sorted(files)


@pytest.mark.parametrize("stem", ["皮鞋", "a b", "x#1", "a.jpg", "it's 100% [new]", "-kd"])
def test_files_keep_the_photo_s_name_and_find_their_texture(tmp_path, stem):
    write_asset(build_scene(coordinate_box(), provenance={}), tmp_path, stem, exporting("glb", "obj"))
    for name in ("glb", "obj"):
        assert (read(tmp_path, name, stem).texture == coordinate_box().texture).all()


@pytest.mark.parametrize("name", SUFFIXES)
def test_the_same_asset_gives_the_same_bytes(folder, tmp_path, name):
    suffix = SUFFIXES[name]
    write_asset(build_scene(coordinate_box(), provenance={"seed": "7"}), tmp_path, "box", exporting(name))
    assert (tmp_path / f"box{suffix}").read_bytes() == (folder / f"box{suffix}").read_bytes()


def test_an_unknown_format_is_refused_with_the_list_of_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no such format 'fbx'.*glb, obj, usd, usdz"):
        write_asset(build_scene(coordinate_box(), provenance={}), tmp_path, "box", exporting("fbx"))
