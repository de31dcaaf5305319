from __future__ import annotations

import os
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from coordinate_box import coordinate_box
from pxr import Gf, Usd, UsdGeom, UsdShade, UsdValidation

from crm_cli.export.scene import Scene, build_scene
from crm_cli.export.textures import encode_texture
from crm_cli.export.usd import write_usd, write_usdz

WRITE = {".usdc": write_usd, ".usdz": write_usdz}


def write(scene: Scene, path: Path) -> list[Path]:
    picture = encode_texture(scene.texture, "png", quality=90)
    return WRITE[path.suffix](scene, path, picture=picture)


@pytest.fixture(scope="module", params=WRITE)
def stage(request, tmp_path_factory) -> Usd.Stage:
    scene = build_scene(coordinate_box(), provenance={"photo": "皮鞋.webp", "seed": "7"})
    path = tmp_path_factory.mktemp("usd") / f"皮鞋{request.param}"
    assert write(scene, path)[0] == path
    return Usd.Stage.Open(str(path))


def test_every_validator_of_usd_is_content(stage):
    judges = UsdValidation.ValidationRegistry().GetOrLoadAllValidators()
    assert len(judges) >= 20
    assert [e.GetMessage() for e in UsdValidation.ValidationContext(judges).Validate(stage)] == []


def test_the_topology_is_valid(stage):
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    counts, indices = mesh.GetFaceVertexCountsAttr().Get(), mesh.GetFaceVertexIndicesAttr().Get()
    assert UsdGeom.Mesh.ValidateTopology(indices, counts, len(mesh.GetPointsAttr().Get())) == (True, "")
    assert set(counts) == {3}
    assert len(mesh.GetPointsAttr().Get()) == 8


def test_the_stage_states_its_frame_and_where_it_came_from(stage):
    assert UsdGeom.GetStageUpAxis(stage) == "Y"
    assert UsdGeom.GetStageMetersPerUnit(stage) == 1
    assert stage.GetDefaultPrim().GetPath() == "/Asset"
    assert stage.GetRootLayer().customLayerData["photo"] == "皮鞋.webp"
    assert stage.GetRootLayer().customLayerData["digitalSourceType"].endswith("trainedAlgorithmicMedia")


def test_the_mesh_is_a_plain_polygon_surface_seen_from_outside_only(stage):
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    assert mesh.GetSubdivisionSchemeAttr().Get() == "none"
    assert mesh.GetDoubleSidedAttr().Get() is False
    assert mesh.GetNormalsInterpolation() == "vertex"
    points = np.array(mesh.GetPointsAttr().Get())
    np.testing.assert_array_equal(mesh.GetExtentAttr().Get(), [points.min(axis=0), points.max(axis=0)])
    st = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st")
    assert st.GetInterpolation() == "faceVarying"
    assert len(st.Get()) == 24
    assert UsdGeom.Xformable(mesh).ComputeLocalToWorldTransform(0) == Gf.Matrix4d(1)


def test_the_bound_material_leads_to_the_texture(stage):
    # Validators overlook a connection that leads nowhere, so follow each.
    material, _ = UsdShade.MaterialBindingAPI(stage.GetPrimAtPath("/Asset/Mesh")).ComputeBoundMaterial()
    surface = material.ComputeSurfaceSource()[0]
    assert surface.GetIdAttr().Get() == "UsdPreviewSurface"
    assert surface.GetInput("metallic").Get() == 0
    assert surface.GetInput("roughness").Get() == pytest.approx(0.6)
    [texture], _ = surface.GetInput("diffuseColor").GetConnectedSources()
    node = UsdShade.Shader(texture.source.GetPrim())
    assert node.GetIdAttr().Get() == "UsdUVTexture"
    assert node.GetInput("sourceColorSpace").Get() == "sRGB"
    assert node.GetInput("file").Get().resolvedPath
    [reader], _ = node.GetInput("st").GetConnectedSources()
    assert UsdShade.Shader(reader.source.GetPrim()).GetInput("varname").Get() == "st"


def test_a_package_is_stored_and_aligned_with_its_layer_first(tmp_path):
    [path] = write(build_scene(coordinate_box(), provenance={}), tmp_path / "box.usdz")
    data = path.read_bytes()
    with zipfile.ZipFile(path) as package:
        assert package.testzip() is None
        assert package.namelist() == ["asset.usdc", "texture.png"]
        for entry in package.infolist():
            assert entry.compress_type == zipfile.ZIP_STORED
            name, extra = struct.unpack_from("<HH", data, entry.header_offset + 26)
            assert (entry.header_offset + 30 + name + extra) % 64 == 0


@pytest.mark.parametrize("suffix", WRITE)
@pytest.mark.parametrize("stem", ["a[b]", "x:SDF_FORMAT_ARGS:y=z", "a@b", "$<UDIM>", os.fsdecode(b"caf\xe9")])
def test_a_name_that_usd_would_read_as_syntax_is_written_all_the_same(tmp_path, stem, suffix):
    files = write(build_scene(coordinate_box(), provenance={}), tmp_path / f"{stem}{suffix}")
    assert files[0].name == f"{stem}{suffix}"
    plain = tmp_path / f"plain{suffix}"
    files[0].rename(plain)
    stage = Usd.Stage.Open(str(plain))
    shader = UsdShade.Shader(stage.GetPrimAtPath("/Asset/Material/Texture"))
    assert shader.GetInput("file").Get().resolvedPath
