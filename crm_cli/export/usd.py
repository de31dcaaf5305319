"""USD: the asset as a binary layer with its texture beside it, or as one USDZ package."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from crm_cli import __version__
from crm_cli.export.scene import ROUGHNESS, Scene, companion_stem
from crm_cli.export.textures import Picture

if TYPE_CHECKING:
    from pxr import Usd, UsdGeom, UsdShade

_USDZ_ALIGNMENT = 64
_ZIP_HEADER_BYTES = 30
_USDZ_PADDING_ID = 0x1986  # the header id that USD's own packages give their padding


def write_usd(scene: Scene, path: Path, *, picture: Picture) -> list[Path]:
    """Write a binary layer and, beside it, the texture it refers to; name both.

    The texture is the OBJ's own, byte for byte, so the two formats share one file.
    """
    texture = path.with_name(companion_stem(path.stem) + picture.suffix)
    texture.write_bytes(picture.data)
    path.write_bytes(encode_usdc(scene, texture_name=texture.name))
    return [path, texture]


def write_usdz(scene: Scene, path: Path, *, picture: Picture) -> list[Path]:
    """Write one self-contained package, and name it.

    Packed here rather than by usd-core, which stamps the time of day into the package.
    """
    texture_name = f"texture{picture.suffix}"
    layer = encode_usdc(scene, texture_name=texture_name)
    with path.open("wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as package:
        # Readers take the first file as the root layer. (Usdz File Format Specification 1.3)
        for name, data in (("asset.usdc", layer), (texture_name, picture.data)):
            _store_aligned(package, name, data, at=file.tell())
    return [path]


def encode_usdc(scene: Scene, *, texture_name: str) -> bytes:
    """Return the bytes of a crate layer that refers to its texture as `./texture_name`."""
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.CreateInMemory()
    UsdGeom.SetStageUpAxis(stage, UsdGeom.Tokens.y)
    UsdGeom.SetStageMetersPerUnit(stage, 1.0)
    stage.GetRootLayer().documentation = f"crm {__version__}"
    stage.GetRootLayer().customLayerData = dict(scene.provenance)
    # Prim names are fixed: the photo's name may hold anything, and a path in a stage may not.
    asset = UsdGeom.Xform.Define(stage, "/Asset").GetPrim()
    Usd.ModelAPI(asset).SetKind("component")
    stage.SetDefaultPrim(asset)
    _bind(_define_mesh(stage, scene), _define_material(stage, texture_name))
    return _crate_bytes(stage)


def _define_mesh(stage: Usd.Stage, scene: Scene) -> UsdGeom.Mesh:
    """Add the surface: points and normals by vertex, texture coordinates by face corner."""
    from pxr import Sdf, UsdGeom, Vt

    mesh = UsdGeom.Mesh.Define(stage, "/Asset/Mesh")
    mesh.CreateSubdivisionSchemeAttr(UsdGeom.Tokens.none)
    mesh.CreateOrientationAttr(UsdGeom.Tokens.rightHanded)
    mesh.CreateDoubleSidedAttr(False)
    mesh.CreatePointsAttr(Vt.Vec3fArray.FromNumpy(scene.points))
    mesh.CreateExtentAttr(Vt.Vec3fArray.FromNumpy(scene.bounds))
    mesh.CreateNormalsAttr(Vt.Vec3fArray.FromNumpy(scene.normals))
    mesh.SetNormalsInterpolation(UsdGeom.Tokens.vertex)
    mesh.CreateFaceVertexCountsAttr(Vt.IntArray.FromNumpy(np.full(len(scene.faces), 3, dtype=np.int32)))
    mesh.CreateFaceVertexIndicesAttr(Vt.IntArray.FromNumpy(scene.faces.ravel().astype(np.int32)))
    st = UsdGeom.PrimvarsAPI(mesh).CreatePrimvar(
        "st", Sdf.ValueTypeNames.TexCoord2fArray, UsdGeom.Tokens.faceVarying
    )
    st.Set(Vt.Vec2fArray.FromNumpy(scene.uv))
    st.SetIndices(Vt.IntArray.FromNumpy(scene.uv_faces.ravel().astype(np.int32)))
    return mesh


def _define_material(stage: Usd.Stage, texture_name: str) -> UsdShade.Material:
    """Add a preview surface whose colour is the texture, read through the coordinates `st`."""
    from pxr import Sdf, UsdShade

    kinds = Sdf.ValueTypeNames
    material = UsdShade.Material.Define(stage, "/Asset/Material")
    surface = _define_shader(stage, "Surface", "UsdPreviewSurface")
    texture = _define_shader(stage, "Texture", "UsdUVTexture")
    reader = _define_shader(stage, "Coordinates", "UsdPrimvarReader_float2")

    reader.CreateInput("varname", kinds.String).Set("st")
    texture.CreateInput("file", kinds.Asset).Set(Sdf.AssetPath(f"./{texture_name}"))
    texture.CreateInput("sourceColorSpace", kinds.Token).Set("sRGB")
    texture.CreateInput("wrapS", kinds.Token).Set("clamp")
    texture.CreateInput("wrapT", kinds.Token).Set("clamp")
    surface.CreateInput("metallic", kinds.Float).Set(0.0)
    surface.CreateInput("roughness", kinds.Float).Set(ROUGHNESS)

    coordinates = reader.CreateOutput("result", kinds.Float2)
    texture.CreateInput("st", kinds.Float2).ConnectToSource(coordinates)
    colour = texture.CreateOutput("rgb", kinds.Float3)
    surface.CreateInput("diffuseColor", kinds.Color3f).ConnectToSource(colour)
    material.CreateSurfaceOutput().ConnectToSource(surface.CreateOutput("surface", kinds.Token))
    return material


def _define_shader(stage: Usd.Stage, name: str, kind: str) -> UsdShade.Shader:
    """Add a shader node of the preview surface's set."""
    from pxr import UsdShade

    shader = UsdShade.Shader.Define(stage, f"/Asset/Material/{name}")
    shader.CreateIdAttr(kind)
    return shader


def _bind(mesh: UsdGeom.Mesh, material: UsdShade.Material) -> None:
    """Give the mesh its material."""
    from pxr import UsdShade

    UsdShade.MaterialBindingAPI.Apply(mesh.GetPrim()).Bind(material)


def _crate_bytes(stage: Usd.Stage) -> bytes:
    """Return the stage's layer as crate bytes.

    By way of a plainly named scratch file: USD reads brackets and colons in a path as syntax, and cannot
    open a name that is not UTF-8.
    """
    with tempfile.TemporaryDirectory(prefix="crm-usd-") as folder:
        scratch = Path(folder) / "asset.usdc"
        stage.GetRootLayer().Export(str(scratch))
        return scratch.read_bytes()


def _store_aligned(package: zipfile.ZipFile, name: str, data: bytes, *, at: int) -> None:
    """Store a file uncompressed, its data at a multiple of 64 bytes, in a package that has `at` bytes so far.

    (Usdz File Format Specification 1.3)
    """
    entry = zipfile.ZipInfo(name)  # dated 1980: the same asset gives the same bytes
    start = at + _ZIP_HEADER_BYTES + len(name) + 4  # 4: id and length of the padding field
    padding = -start % _USDZ_ALIGNMENT
    entry.extra = _USDZ_PADDING_ID.to_bytes(2, "little") + padding.to_bytes(2, "little") + b"\0" * padding
    package.writestr(entry, data)
