"""GLB files become subjects: where things are, what colour they have, and what is wrong with some."""

import sys
from typing import Any

import numpy as np
import pytest
import trimesh
from glbs import UNIT_UV, edited, glb_of, header, painted, quad, textured
from PIL import Image

from crm_cli.frame import BACK, BOTTOM, FRONT, LEFT, RIGHT, TOP
from crm_cli.learn import meshes
from crm_cli.learn.camera import EXTENT, pose
from crm_cli.learn.examples import six_views
from crm_cli.learn.meshes import LoadedMesh, read_mesh
from crm_cli.learn.paint import open_texture, paint_of
from crm_cli.learn.subject import Unusable
from crm_cli.mesh.raster import WarpRaster
from crm_cli.srgb import to_srgb

SIZE = 32
RASTER = WarpRaster()
HALF_LIGHT = 188
"""sRGB of half the light of white."""
CHECKS = np.uint8([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [255, 255, 0]]])
"""Red and green above blue and yellow."""


def views_of(loaded: LoadedMesh) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    return six_views(pose(loaded, np.eye(3)), RASTER, size_px=SIZE)[0]


def middle(loaded: LoadedMesh, face: int = 0) -> list[int]:
    """Colour in the middle of a face, in bytes."""
    rgb = loaded.colour_at(np.array([face]), np.full((1, 3), 1 / 3, np.float32))
    return [int(value) for value in np.round(rgb[0] * 255)]


def test_every_side_of_a_file_is_seen_by_its_camera() -> None:
    # glTF: y up, front towards +Z, so that someone who looks at the front has +x on the right.
    sides = {
        FRONT: (0, 0, 1),
        BACK: (0, 0, -1),
        TOP: (0, 1, 0),
        BOTTOM: (0, -1, 0),
        LEFT: (-1, 0, 0),
        RIGHT: (1, 0, 0),
    }
    slabs = []
    for number, direction in sides.items():
        slab = trimesh.creation.box(np.where(np.array(direction) != 0, 0.01, 0.9))
        slab.apply_translation(0.5 * np.array(direction))
        slabs.append(painted(slab, tuple(float(bit) for bit in np.binary_repr(number + 1, 3))))
    views = views_of(read_mesh(glb_of(*slabs), size_px=SIZE))
    for number in sides:
        expected = [255 * int(bit) for bit in np.binary_repr(number + 1, 3)]
        seen = views[number, :3, SIZE // 2, SIZE // 2].astype(int)
        # Light from above takes up to a fifth.
        np.testing.assert_allclose(seen, expected, atol=52, err_msg=str(number))


def test_the_front_is_not_mirrored_or_upside_down() -> None:
    picture = quad([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    views = views_of(
        read_mesh(
            glb_of(textured(picture, UNIT_UV, np.kron(CHECKS, np.ones((8, 8, 1), np.uint8)))), size_px=SIZE
        )
    )
    quarter = SIZE // 4 + 2
    for row, column, colour in [(0, 0, (1, 0, 0)), (0, 1, (0, 1, 0)), (1, 0, (0, 0, 1)), (1, 1, (1, 1, 0))]:
        at = [quarter if place == 0 else SIZE - quarter for place in (row, column)]
        assert ((views[FRONT, :3, at[0], at[1]] > 128) == np.bool_(colour)).all()
        # From behind, left and right change places.
        assert ((views[BACK, :3, at[0], SIZE - 1 - at[1]] > 128) == np.bool_(colour)).all()


@pytest.mark.parametrize("flipped", [False, True])
@pytest.mark.parametrize("unit", [1e-6, 1, 1e5])
def test_scale_place_and_mirroring_nodes_do_not_matter(unit: float, flipped: bool) -> None:
    shape = trimesh.creation.annulus(0.5, 1.0, 0.3)
    shape.apply_translation([3, 0, 0])
    plain = read_mesh(glb_of(shape), size_px=SIZE)
    transform = np.diag([unit, unit, unit * (-1 if flipped else 1), 1.0])
    transform[:3, 3] = 7 * unit
    moved = read_mesh(glb_of(shape, transform=transform), size_px=SIZE)
    np.testing.assert_allclose(np.ptp(moved.vertices, axis=0), np.ptp(plain.vertices, axis=0), atol=1e-5)
    assert np.ptp(moved.vertices, axis=0).max() == pytest.approx(EXTENT)
    np.testing.assert_allclose(moved.vertices.min(axis=0), -moved.vertices.max(axis=0), atol=1e-6)
    whole = trimesh.Trimesh(moved.vertices, moved.faces, process=False)
    assert whole.is_watertight and whole.volume > 0


def test_nested_nodes_add_up() -> None:
    scene = trimesh.Scene()
    turned = trimesh.transformations.rotation_matrix(np.pi / 2, [0, 0, 1])
    shifted = trimesh.transformations.translation_matrix([2, 0, 0])
    scene.add_geometry(trimesh.creation.box((1, 1, 1)), node_name="still")
    scene.graph.update("arm", scene.graph.base_frame, matrix=turned)
    scene.add_geometry(
        trimesh.creation.box((1, 1, 1)), node_name="hand", parent_node_name="arm", transform=shifted
    )
    loaded = read_mesh(scene.export(file_type="glb"), size_px=SIZE)
    # The second box stands above the first: three units high, one wide, one deep.
    np.testing.assert_allclose(np.ptp(loaded.vertices, axis=0), np.float32([1, 1, 3]) / 3 * EXTENT, atol=1e-5)


def test_corners_that_files_split_are_joined() -> None:
    box = trimesh.creation.box((1, 2, 3))
    split = trimesh.Trimesh(box.triangles.reshape(-1, 3), np.arange(36).reshape(-1, 3), process=False)
    loaded = read_mesh(glb_of(split), size_px=SIZE)
    assert len(loaded.vertices) == 8 and len(loaded.faces) == 12


def test_a_factor_is_light_and_a_file_without_colours_is_white() -> None:
    box = trimesh.creation.box((1, 1, 1))
    assert middle(read_mesh(glb_of(painted(box, (0.5, 1.0, 0.0))), size_px=SIZE)) == [HALF_LIGHT, 255, 0]
    assert middle(read_mesh(glb_of(trimesh.creation.box((1, 1, 1))), size_px=SIZE)) == [255, 255, 255]


def test_colours_of_vertices_are_light_and_run_into_each_other() -> None:
    triangle = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [[0, 1, 2]], process=False)
    triangle.visual.vertex_colors = np.uint8([[255, 0, 0, 255], [0, 255, 0, 255], [0, 0, 255, 255]])
    loaded = read_mesh(glb_of(triangle), size_px=SIZE)
    third = round(float(to_srgb(np.float32([1 / 3]))[0]) * 255)
    assert middle(loaded) == pytest.approx([third] * 3, abs=1)


def test_factors_and_vertex_colours_tint_a_texture() -> None:
    grey = np.full((8, 8, 3), HALF_LIGHT, np.uint8)
    square = textured(
        quad([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]),
        UNIT_UV,
        grey,
        baseColorFactor=[1.0, 0.5, 0.0, 1.0],
    )
    square.visual.vertex_attributes["color"] = np.tile(np.uint8([128, 255, 255, 255]), (4, 1))
    data = glb_of(square)
    assert "COLOR_0" in header(data)["meshes"][0]["primitives"][0]["attributes"]
    quarter = round(float(to_srgb(np.float32([0.25]))[0]) * 255)
    assert middle(read_mesh(data, size_px=SIZE)) == pytest.approx([quarter, quarter, 0], abs=2)


def test_two_materials_stay_apart() -> None:
    matt, polished = (
        painted(trimesh.creation.box((1, 1, 1)), colour, roughnessFactor=roughness)
        for colour, roughness in [((1, 0, 0), 1.0), ((0, 0, 1), 0.0)]
    )
    polished.apply_translation([2, 0, 0])
    loaded = read_mesh(glb_of(matt, polished), size_px=SIZE)
    # In glTF +x is on the right, in the world on the left.
    is_matt = loaded.vertices[loaded.faces, 0].mean(axis=1) > 0
    assert is_matt.sum() == 12
    for face, is_red in enumerate(is_matt):
        assert middle(loaded, face) == ([255, 0, 0] if is_red else [0, 0, 255])
    gloss, sharpness = loaded.shine_at(np.arange(24))
    np.testing.assert_allclose(gloss, np.where(is_matt, 0.03, 0.8))
    np.testing.assert_allclose(sharpness, np.where(is_matt, 8, 200))


def test_textures_repeat() -> None:
    square = textured(quad([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), UNIT_UV * 2 + 5, CHECKS)
    loaded = read_mesh(glb_of(square), size_px=256)
    places = [(0.125, 0.125), (0.375, 0.125), (0.625, 0.125), (0.625, 0.375)]  # of the lower right triangle
    weights = np.float32([[1 - x, x - y, y] for x, y in places])
    rgb = loaded.colour_at(np.zeros(4, np.int64), weights)
    np.testing.assert_allclose(rgb, np.float32([[0, 0, 1], [1, 1, 0], [0, 0, 1], [1, 0, 0]]), atol=1e-5)


@pytest.mark.parametrize(
    ("transform", "shown"),
    [
        ({}, "red green blue yellow"),
        ({"offset": [0.5, 0.0]}, "green red yellow blue"),
        ({"scale": [1.0, -1.0]}, "blue yellow red green"),
        # The coordinates go counter-clockwise, and the picture clockwise.
        ({"rotation": np.pi / 2, "offset": [0.0, 1.0]}, "blue red yellow green"),
    ],
)
def test_textures_are_shifted_turned_and_scaled(transform: dict[str, Any], shown: str) -> None:
    square = quad([[-1, -1, 0], [1, -1, 0], [1, 1, 0], [-1, 1, 0]])
    data = glb_of(textured(square, UNIT_UV, np.kron(CHECKS, np.ones((8, 8, 1), np.uint8))))
    materials = header(data)["materials"]
    laid = materials[0]["pbrMetallicRoughness"]["baseColorTexture"]
    laid["extensions"] = {"KHR_texture_transform": transform}
    front = views_of(read_mesh(edited(data, materials=materials), size_px=SIZE))[FRONT]
    colours = {(1, 0, 0): "red", (0, 1, 0): "green", (0, 0, 1): "blue", (1, 1, 0): "yellow"}
    near, far = SIZE // 4 + 2, 3 * SIZE // 4 - 2
    seen = [front[:3, row, column] > 128 for row in (near, far) for column in (near, far)]
    assert " ".join(colours[tuple(map(int, colour))] for colour in seen) == shown


def test_fine_textures_are_averaged_as_a_picture_shows_them() -> None:
    noise = np.random.default_rng(0).choice(np.uint8([0, 255]), (1024, 1024, 1)).repeat(3, axis=-1)
    data = glb_of(textured(quad([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), UNIT_UV, noise))
    front = views_of(read_mesh(data, size_px=SIZE))[FRONT]
    inner = front[0, front[3] == 255]
    # Where four single texels are averaged they differ by 30.
    assert inner.std() < 12 and 100 < inner.mean() < 140
    assert read_mesh(data, size_px=2048).level.max() == 0 < read_mesh(data, size_px=SIZE).level.min()


@pytest.mark.parametrize("mode", ["RGBA", "P", "L", "LA", "1"])
def test_textures_of_any_mode_are_read(mode: str) -> None:
    picture = Image.new("RGB", (40, 20), (200, 200, 200)).convert(mode)
    texture = open_texture(picture)
    assert [level.shape for level in texture.levels] == [(20, 40, 3)]
    rgb = texture.sample(np.float32([[0.3, -7.2]]), np.array([3]))
    assert rgb.shape == (1, 3) and (mode == "1" or abs(float(rgb[0, 0]) * 255 - 200) < 10)


def test_large_textures_are_halved_when_they_are_read() -> None:
    texture = open_texture(Image.new("RGB", (5000, 300)))
    assert texture.levels[0].shape == (100, 1667, 3)


def test_a_roughness_beyond_its_range_is_the_nearest_within() -> None:
    for beyond, within in ((7.0, 1.0), (-1.0, 0.0)):
        assert paint_of(None, roughness=beyond).gloss == paint_of(None, roughness=within).gloss


def test_a_texture_without_coordinates_is_left_out() -> None:
    box = textured(trimesh.creation.box((1, 1, 1)), UNIT_UV[[0] * 8], CHECKS)
    data = glb_of(box)
    found = header(data)["meshes"]
    del found[0]["primitives"][0]["attributes"]["TEXCOORD_0"]
    assert middle(read_mesh(edited(data, meshes=found), size_px=SIZE)) == [255, 255, 255]


def test_broken_faces_are_dropped() -> None:
    box = trimesh.creation.box((1, 1, 1))
    vertices = np.concatenate([box.vertices, [[np.nan, 0, 0], [9, 9, 9], [0.5, 0.5, 0.5]]])
    faces = np.concatenate([box.faces, [[0, 1, 8], [9, 9, 9], [0, 0, 1], [0, 1, 1]]])
    loaded = read_mesh(glb_of(trimesh.Trimesh(vertices, faces, process=False)), size_px=SIZE)
    assert len(loaded.faces) == 12 and np.isfinite(loaded.vertices).all()
    np.testing.assert_allclose(np.ptp(loaded.vertices, axis=0), EXTENT, rtol=1e-6)


def test_transparent_and_masked_materials_are_read_as_solid() -> None:
    for mode in ("MASK", "BLEND"):
        box = painted(trimesh.creation.box((1, 1, 1)), (1.0, 0.0, 0.0), alphaMode=mode, alphaCutoff=0.5)
        assert middle(read_mesh(glb_of(box), size_px=SIZE)) == [255, 0, 0]


@pytest.fixture
def compressed() -> bytes:
    data: bytes = trimesh.Scene(trimesh.creation.icosphere(subdivisions=2)).export(
        file_type="glb", extension_draco=True
    )
    assert header(data)["extensionsRequired"] == ["KHR_draco_mesh_compression"]
    return data


def test_compressed_files_are_read_with_their_library(compressed: bytes) -> None:
    assert len(read_mesh(compressed, size_px=SIZE).faces) == 320


def test_compressed_files_are_unusable_without_it(compressed: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "DracoPy", None)
    with pytest.raises(Unusable, match="no triangle with an area; it needs KHR_draco_mesh_compression"):
        read_mesh(compressed, size_px=SIZE)


def test_files_without_a_surface_are_unusable(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Unusable, match="no triangles"):
        read_mesh(glb_of(trimesh.PointCloud([[0, 0, 0], [1, 1, 1]])), size_px=SIZE)
    line = trimesh.Trimesh([[0, 0, 0], [1, 0, 0], [2, 0, 0]], [[0, 1, 2]], process=False)
    with pytest.raises(Unusable, match=r"no triangle with an area$"):
        read_mesh(glb_of(line), size_px=SIZE)
    monkeypatch.setattr(meshes, "MAX_FACES", 11)
    with pytest.raises(Unusable, match="12 triangles; more than 11"):
        read_mesh(glb_of(trimesh.creation.box((1, 1, 1))), size_px=SIZE)


@pytest.mark.parametrize("keep", [0, 3, 12, 19, 21, 200, 0.5, 0.9, 0.999])
def test_damaged_files_are_unusable(keep: float) -> None:
    data = glb_of(textured(quad([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]), UNIT_UV, CHECKS))
    with pytest.raises(Unusable, match="not a readable GLB"):
        read_mesh(data[: int(keep if keep >= 1 or not keep else keep * len(data))], size_px=SIZE)


def test_what_is_no_glb_is_unusable() -> None:
    for data in (b"", b"v 0 0 0\n" * 40, b"\x89PNG\r\n" + bytes(100)):
        with pytest.raises(Unusable, match="not a readable GLB"):
            read_mesh(data, size_px=SIZE)
