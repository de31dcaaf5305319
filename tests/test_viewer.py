"""What the contact sheet's 3D view is made of: a script that reads back, a library as it was published."""

import base64
import gzip
import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import trimesh

from crm_cli.export.preview import render_front
from crm_cli.export.scene import build_scene, split_at_seams
from crm_cli.export.vendored import HERE, vendored_viewer
from crm_cli.export.viewer import MODEL_TEXTURE_PX, POINT_BITS, UV_BITS, encode_model, write_model
from crm_cli.mesh.raster import TorchRaster
from crm_cli.records import Mesh, TexturedMesh, UnwrappedMesh

ID = "0123456789abcdef"


def tetrahedron(texture_px: int = 64) -> TexturedMesh:
    """A corner towards +Y, red in the upper half of its texture and blue in the lower."""
    vertices = np.array([[-0.8, 0, -0.8], [0.8, 0, -0.8], [0, 0, 0.8], [0, 0.5, 0]], np.float32)
    faces = np.array([[0, 3, 1], [1, 3, 2], [2, 3, 0], [0, 1, 2]], np.int64)
    uv = (vertices[:, [0, 2]] * (-1, 1) / 2 + 0.5).astype(np.float32)
    texture = np.zeros((texture_px, texture_px, 3), np.uint8)
    texture[: texture_px // 2, :, 0] = 255
    texture[texture_px // 2 :, :, 2] = 255
    return TexturedMesh(
        unwrapped=UnwrappedMesh(
            mesh=Mesh(vertices=vertices, faces=faces[:, ::-1].copy()), uv=uv, uv_faces=faces[:, ::-1].copy()
        ),
        texture=texture,
    )


def glb_of(script: bytes) -> bytes:
    found = re.fullmatch(rb'crm\.model\("([0-9a-f]{16})", "([A-Za-z0-9+/=]+)"\);\n', script)
    assert found and found[1].decode() == ID
    return gzip.decompress(base64.b64decode(found[2], validate=True))


def test_the_script_hands_over_a_model_that_needs_no_decoder():
    scene = trimesh.load(io.BytesIO(glb_of(encode_model(ID, tetrahedron()))), file_type="glb")
    [mesh] = scene.geometry.values()
    assert len(mesh.faces) == 4
    np.testing.assert_allclose(mesh.extents, (0.8, 0.8, 0.25), atol=2**-12)
    assert mesh.visual.material.baseColorTexture.size == (64, 64)
    glb = glb_of(encode_model(ID, tetrahedron()))
    assert not re.search(rb"KHR_draco|EXT_meshopt|KHR_texture_basisu", glb)


def test_a_large_texture_is_made_smaller_for_it_and_the_same_asset_makes_the_same_bytes():
    side = 2 * MODEL_TEXTURE_PX
    large = replace(tetrahedron(side), seen=np.ones((side, side), np.float32))
    scene = trimesh.load(io.BytesIO(glb_of(encode_model(ID, large))), file_type="glb")
    [mesh] = scene.geometry.values()
    assert mesh.visual.material.baseColorTexture.size == (MODEL_TEXTURE_PX, MODEL_TEXTURE_PX)
    assert encode_model(ID, large) == encode_model(ID, large)


def test_places_are_rounded_by_less_than_anybody_sees():
    textured = tetrahedron()
    scene = build_scene(textured, provenance={})
    [mesh] = trimesh.load(
        io.BytesIO(glb_of(encode_model(ID, textured))), file_type="glb", process=False
    ).geometry.values()
    corners = split_at_seams(scene)
    np.testing.assert_allclose(mesh.vertices, corners.points, atol=2.0 ** -(POINT_BITS + 1))
    np.testing.assert_allclose(mesh.visual.uv, corners.uv, atol=2.0 ** -(UV_BITS + 1) + 1e-7)
    assert np.abs(mesh.vertices - corners.points).max() > 0


def test_the_script_stands_beside_the_pictures(tmp_path):
    path = write_model(tmp_path / "report" / "thumbs", ID, tetrahedron())
    assert path == tmp_path / "report" / "thumbs" / f"{ID}-model.js"
    assert path.read_bytes() == encode_model(ID, tetrahedron())


def test_the_front_lies_where_the_world_square_says():
    picture = np.asarray(render_front(tetrahedron(), TorchRaster(), size_px=200))
    assert picture.shape == (200, 200, 4)
    rows, columns = np.nonzero(picture[..., 3] > 127)
    # ±0.8 of ±1 on 200 pixels: from 20 to 180.
    assert abs(rows.min() - 20) <= 2 and abs(rows.max() - 179) <= 2
    assert abs(columns.min() - 20) <= 2 and abs(columns.max() - 179) <= 2
    assert (picture[60, 100, :3] == (255, 0, 0)).all()
    assert (picture[150, 100, :3] == (0, 0, 255)).all()


def test_what_is_vendored_is_what_its_manifest_says():
    viewer = vendored_viewer()
    script = viewer.script.read_bytes()
    assert hashlib.sha256(script).hexdigest() == viewer.sha256
    [style] = re.findall(rb"<style>(.*?)</style>", script, re.DOTALL)
    assert base64.b64encode(hashlib.sha256(style).digest()).decode() == viewer.style_sha256
    licence = viewer.licence_file.read_text("utf-8")
    for part in ("Apache License", "three.js authors", "BSD 3-Clause License", "Arjun Barrett"):
        assert part in licence
    named = {viewer.script.name, viewer.licence_file.name, "manifest.json", "__init__.py"}
    assert {path.name for path in HERE.iterdir() if path.is_file()} == named
