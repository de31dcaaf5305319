"""All formats at once, read back with tools that are not ours."""

from __future__ import annotations

import dataclasses
import io
import itertools
import zipfile
from pathlib import Path

import numpy as np
import pytest
import screw
import trimesh
from coordinate_box import COLOUR_TOLERANCE, HIGH, LOW, coordinate_box, world_at
from foreign import (
    Reading,
    needs_blender,
    needs_node,
    read_with_blender,
    read_with_trimesh,
    read_with_usd,
    validate_glb,
)
from numpy.typing import NDArray
from PIL import Image
from pxr import Usd, UsdShade, UsdValidation

from crm_cli.errors import UsageError
from crm_cli.export.extras import find_ktx2_tool
from crm_cli.export.scene import METRES_PER_UNIT, build_scene, shrink_texture
from crm_cli.export.writers import SUFFIXES, write_asset
from crm_cli.preset import Exporting, load_preset
from crm_cli.records import TexturedMesh


def exporting(*formats: str, **settings: str | int) -> Exporting:
    """Ask for formats; what else there is to ask for is the default preset's."""
    return dataclasses.replace(load_preset().preset.export, formats=formats, **settings)


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


SAME = 1e-5
"""What may be between two formats: metres, texture coordinates, colours in [0, 1]."""


@pytest.fixture(scope="module")
def screw_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("screw")
    scene = build_scene(screw.screw(), provenance={"seed": "7"})
    write_asset(scene, folder, "screw", exporting(*SUFFIXES))
    return folder


@pytest.fixture(scope="module", params=["ours", pytest.param("blender", marks=needs_blender)])
def screws(request, screw_folder, tmp_path_factory) -> dict[str, Reading]:
    """Every format, as a reader that is not ours has it."""
    files = {name: screw_folder / f"screw{suffix}" for name, suffix in SUFFIXES.items()}
    if request.param == "ours":
        return {name: READERS[name](file) for name, file in files.items()}
    scratch = tmp_path_factory.mktemp("blender")
    return {name: read_with_blender(file, scratch)[0] for name, file in files.items()}


def spots() -> tuple[NDArray, NDArray]:
    """Points on the screw in metres [N 3], and in the world, where its texture knows them."""
    world = screw.screw().mesh
    random = np.random.default_rng(0)
    face = random.integers(0, len(world.faces), 300)
    weights = random.dirichlet(np.ones(3), 300)
    place = (world.vertices[world.faces[face]].astype(np.float64) * weights[:, :, None]).sum(axis=1)
    low, high = world.vertices.min(axis=0), world.vertices.max(axis=0)
    pivot = np.array([(low[0] + high[0]) / 2, (low[1] + high[1]) / 2, low[2]])
    from_pivot = (place - pivot) * METRES_PER_UNIT
    return np.stack([-from_pivot[:, 0], from_pivot[:, 2], from_pivot[:, 1]], axis=1), place


def test_the_screw_is_chiral_closed_and_as_large_as_its_blocks():
    mesh = screw.screw().mesh
    solid = trimesh.Trimesh(mesh.vertices, mesh.faces, process=False)
    assert solid.is_watertight
    assert solid.volume == pytest.approx(4 * np.prod(screw.BLOCK), rel=1e-5)
    turns = [np.eye(3)[list(order)] * signs for order in PERMUTATIONS for signs in SIGNS]
    mirrors = [turn for turn in turns if np.linalg.det(turn) < 0]
    blocks = np.array(screw.BLOCKS)
    mine = {tuple(block) for block in blocks - blocks.min(axis=0)}
    for mirror in mirrors:
        turned = (blocks @ mirror.T).astype(int)
        assert {tuple(block) for block in turned - turned.min(axis=0)} != mine


PERMUTATIONS = list(itertools.permutations(range(3)))
SIGNS = [np.array(signs) for signs in itertools.product((-1, 1), repeat=3)]


@pytest.mark.parametrize("name", SUFFIXES)
def test_a_foreign_reader_finds_size_axes_front_pivot_coordinates_and_colours(screws, name):
    # A point lies on the surface only where no axis is swapped, mirrored or scaled: the shape is chiral.
    reading, (places, world) = screws[name], spots()
    points = reading.corners.reshape(-1, 3)
    low, high = points.min(axis=0), points.max(axis=0)
    np.testing.assert_allclose(low[[0, 2]], -high[[0, 2]], atol=SAME)
    assert low[1] == pytest.approx(0, abs=SAME)
    expected = np.array([2, 2, 2]) * screw.BLOCK * METRES_PER_UNIT
    np.testing.assert_allclose(high - low, expected[[0, 2, 1]], atol=SAME)
    # The texture names the world's places: two steps of its 8-bit code, doubled by the world's size.
    np.testing.assert_allclose(reading.colours_at(places) * 2 - 1, world, atol=2 / 255)
    scene = build_scene(screw.screw(), provenance={})
    truth = Reading(
        corners=scene.points[scene.faces].astype(np.float64),
        uv=scene.uv[scene.uv_faces],
        normals=scene.normals[scene.faces],
        texture=scene.texture,
    )
    np.testing.assert_allclose(reading.uv_at(places), truth.uv_at(places), atol=SAME)
    np.testing.assert_allclose(reading.colours_at(places), truth.colours_at(places), atol=SAME)
    # Blender keeps normals in 16 bits.
    np.testing.assert_allclose(reading.normals_at(places), truth.normals_at(places), atol=1e-4)


@needs_blender
@pytest.mark.parametrize("name", SUFFIXES)
def test_blender_finds_one_matt_object_and_nothing_else(screw_folder, tmp_path, name):
    _, told = read_with_blender(screw_folder / f"screw{SUFFIXES[name]}", tmp_path)
    assert told["others"] == []
    assert (told["metallic"], told["colour_space"]) == (0, "sRGB")
    assert told["roughness"] == pytest.approx(0.6)
    if name == "obj":
        assert told["specular"] == 0


@needs_blender
@pytest.mark.parametrize(("texture", "compression"), [("jpeg", "none"), ("webp", "draco")])
def test_blender_opens_lighter_files_at_the_same_place(tmp_path, texture, compression):
    export = exporting("glb", texture=texture, compression=compression)
    [path] = write_asset(build_scene(screw.screw(), provenance={}), tmp_path, "screw", export)
    reading, _ = read_with_blender(path, tmp_path)
    places, world = spots()
    np.testing.assert_allclose(reading.colours_at(places) * 2 - 1, world, atol=0.1)


@needs_node("gltf-validator")
@pytest.mark.parametrize("texture", ["png", "jpeg", "webp", "ktx2"])
@pytest.mark.parametrize("compression", ["none", "meshopt", "draco"])
def test_the_khronos_validator_finds_nothing(tmp_path, texture, compression):
    if texture == "ktx2" and not find_ktx2_tool():
        pytest.skip("needs basisu, ktx or toktx on PATH")
    scene = build_scene(screw.screw(), provenance={"photo": "皮鞋"})
    export = exporting("glb", texture=texture, compression=compression)
    [path] = write_asset(scene, tmp_path, "screw", export)
    found = {entry["code"] for entry in validate_glb(path)}
    # It does not know KHR_texture_basisu, and so takes the picture for one of plain glTF's.
    assert found == ({"VALUE_NOT_IN_LIST", "IMAGE_UNRECOGNIZED_FORMAT"} if texture == "ktx2" else set())


@pytest.mark.parametrize("texture", ["jpeg", "webp"])
def test_formats_that_know_only_plain_pictures_get_one_where_glb_gets_another(tmp_path, texture):
    scene = build_scene(screw.screw(), provenance={"seed": "7"})
    files = write_asset(scene, tmp_path, "a", exporting("glb", "obj", "usd", "usdz", texture=texture))
    assert [file.name for file in files] == ["a.glb", "a.obj", "a.mtl", "a.jpg", "a.usdc", "a.usdz"]
    places, world = spots()
    for name in SUFFIXES:
        colours = read(tmp_path, name, "a").colours_at(places)
        np.testing.assert_allclose(colours * 2 - 1, world, atol=0.1)
    with zipfile.ZipFile(tmp_path / "a.usdz") as package:
        assert package.namelist() == ["asset.usdc", "texture.jpg"]
        assert Image.open(io.BytesIO(package.read("texture.jpg"))).format == "JPEG"
    stage = Usd.Stage.Open(str(tmp_path / "a.usdz"))
    judges = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert [e.GetMessage() for e in UsdValidation.ValidationContext(judges).Validate(stage)] == []
    shader = UsdShade.Shader(stage.GetPrimAtPath("/Asset/Material/Texture"))
    assert shader.GetInput("file").Get().resolvedPath
    assert stage.GetRootLayer().customLayerData["seed"] == "7"


def test_an_asset_can_be_written_again_until_it_is_light_enough(tmp_path):
    scene = build_scene(noisy(), provenance={})
    sizes = []
    for scene_then, quality in ((scene, 95), (scene, 30), (shrink_texture(scene, size_px=64), 30)):
        export = exporting("glb", "usdz", texture="jpeg", texture_quality=quality)
        glb, usdz = write_asset(scene_then, tmp_path, "a", export)
        sizes.append((glb.stat().st_size, usdz.stat().st_size))
        assert sorted(tmp_path.iterdir()) == [glb, usdz]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[2][0] < sizes[0][0] / 2


def test_a_smaller_texture_is_the_mean_of_the_larger_one_s_blocks():
    scene = build_scene(noisy(), provenance={})
    small = shrink_texture(scene, size_px=screw.TEXTURE_PX // 2).texture
    blocks = scene.texture.astype(float).reshape(len(small), 2, len(small), 2, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(small, blocks, atol=0.51)


def noisy() -> TexturedMesh:
    """The screw under a picture that no format makes small."""
    noise = np.random.default_rng(0).integers(0, 255, (screw.TEXTURE_PX, screw.TEXTURE_PX, 3), dtype=np.uint8)
    return dataclasses.replace(screw.screw(), texture=noise)


def test_an_unknown_format_is_refused_with_the_list_of_those_there_are(tmp_path):
    with pytest.raises(UsageError, match=r"no such format 'fbx'.*glb, obj, usd, usdz"):
        write_asset(build_scene(coordinate_box(), provenance={}), tmp_path, "box", exporting("fbx"))
