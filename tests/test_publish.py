"""Limits held against written files, read back by programs that are not ours."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pygltflib
import pytest
import trimesh
from output import HERE
from PIL import Image
from pxr import Usd, UsdGeom

from crm_cli.export.measure import measure
from crm_cli.export.publish import MIN_FACES, Published, publish
from crm_cli.mesh.lods import coarser
from crm_cli.mesh.unwrap import unwrap
from crm_cli.names import lod_names
from crm_cli.preset import Override, Preset, list_presets, load_preset
from crm_cli.records import LimitCheck, Mesh, Publication, RealSize, TexturedMesh, UnwrappedMesh
from crm_cli.run.commits import CommitRecord, Records

TEXTURE_PX = 256


@pytest.fixture(scope="module")
def textured() -> TexturedMesh:
    """A dented ellipsoid 1.2 wide, 1.6 deep, 1 high, under noise that no picture format makes small."""
    solid = trimesh.creation.icosphere(subdivisions=4)  # 5120 triangles
    vertices = solid.vertices * (0.6, 0.8, 0.5)
    unwrapped = unwrap(
        Mesh(vertices=vertices.astype(np.float32), faces=solid.faces.astype(np.int64)),
        method="box",
        size_px=TEXTURE_PX,
        padding_px=4,
    )
    noise = np.random.default_rng(0).integers(0, 256, (TEXTURE_PX, TEXTURE_PX, 3), dtype=np.uint8)
    return TexturedMesh(unwrapped=unwrapped, texture=noise)


def preset_with(*assignments: str) -> Preset:
    return load_preset("tiny", [Override.from_assignment(text) for text in assignments]).preset


def published(
    textured: TexturedMesh,
    folder: Path,
    *assignments: str,
    size: RealSize | None = None,
    coarser: Any = coarser,
    stem: str = "asset",
) -> Published:
    preset = preset_with(*assignments)
    return publish(
        textured, folder, stem, export=preset.export, limits=preset.limits, provenance={"seed": "0"},
        coarser=coarser, size=size,
    )  # fmt: skip


def broken(made: Published) -> list[tuple[str, str]]:
    return [(check.limit, check.file) for check in made.publication.broken]


class Foreign:
    """What pygltflib, trimesh and Pillow find in a GLB."""

    def __init__(self, file: Path) -> None:
        gltf = pygltflib.GLTF2().load(str(file))
        [primitive] = gltf.meshes[0].primitives
        self.triangles = gltf.accessors[primitive.indices].count // 3
        self.vertices = gltf.accessors[primitive.attributes.POSITION].count
        view = gltf.bufferViews[gltf.images[0].bufferView]
        start = view.byteOffset or 0
        self.picture = Image.open(io.BytesIO(gltf.binary_blob()[start : start + view.byteLength]))
        self.size_bytes = file.stat().st_size
        self.extras = gltf.asset.extras
        self.extents_mm = trimesh.load(file, force="mesh", process=False).extents * 1000


def test_what_is_measured_is_what_other_programs_find(textured: TexturedMesh, tmp_path: Path) -> None:
    made = published(textured, tmp_path, "export.formats=glb,obj,usd,usdz")
    names = {file.suffix: file for file in made.files}
    glb = Foreign(names[".glb"])
    wanted = (glb.triangles, glb.vertices, ((TEXTURE_PX, TEXTURE_PX),))
    beside = {".obj": (".mtl", ".png"), ".usdc": (".png",), ".glb": (), ".usdz": ()}
    for suffix, others in beside.items():
        files = [names[suffix], *(names[other] for other in others)]
        found = measure(files)
        assert (found.triangles, found.vertices, found.textures_px) == wanted, suffix
        assert found.size_bytes == sum(file.stat().st_size for file in files)
    obj = trimesh.load(names[".obj"], force="mesh", process=False)
    stage = Usd.Stage.Open(str(names[".usdc"]))
    usd = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    assert glb.triangles == len(obj.faces) == len(usd.GetFaceVertexCountsAttr().Get()) == 5120
    assert 5120 / 2 + 2 < glb.vertices < 5120, "points of the sphere, and those on seams again"


@pytest.mark.parametrize("kind", ["jpeg", "webp"])
def test_pictures_are_measured_in_any_format(textured: TexturedMesh, tmp_path: Path, kind: str) -> None:
    [file] = published(textured, tmp_path, "export.formats=glb", f"export.texture={kind}").files
    assert Foreign(file).picture.format == kind.upper()
    assert measure([file]).textures_px == ((TEXTURE_PX, TEXTURE_PX),)


def test_without_limits_nothing_is_given_up(textured: TexturedMesh, tmp_path: Path) -> None:
    made = published(textured, tmp_path, "export.formats=glb")
    assert made.publication == Publication()
    np.testing.assert_array_equal(np.asarray(Foreign(made.files[0]).picture), textured.texture)
    assert made.unwrapped is textured.unwrapped


def test_triangles_and_vertices_are_taken_away_until_few_enough_are_written(
    textured: TexturedMesh, tmp_path: Path
) -> None:
    limits = ("limits.triangles=3000", "limits.vertices=1200")
    made = published(textured, tmp_path, "export.formats=glb,obj", *limits)
    glb = Foreign(tmp_path / "asset.glb")
    assert 1000 < glb.triangles <= 3000 and 900 < glb.vertices <= 1200
    assert glb.triangles == len(made.unwrapped.mesh.faces)
    assert made.publication.broken == ()
    assert made.publication.mended[0] == "triangles 5120→3000 to keep 3000 triangles"
    assert made.publication.mended[1] == f"triangles 3000→{glb.triangles} to keep 1200 vertices"
    assert glb.picture.size == (TEXTURE_PX, TEXTURE_PX), "what keeps its limit is left alone"
    solid = trimesh.load(tmp_path / "asset.obj", force="mesh", process=False)
    solid.merge_vertices(merge_tex=True, merge_norm=True)
    assert solid.is_watertight


def test_a_texture_is_halved_until_it_is_small_enough(textured: TexturedMesh, tmp_path: Path) -> None:
    limits = ("limits.texture_px=100", "limits.min_texture_px=32", "limits.square_texture=true")
    made = published(textured, tmp_path, "export.formats=glb,usd", *limits)
    picture = Foreign(tmp_path / "asset.glb").picture
    assert (picture.format, picture.size) == ("PNG", (64, 64))
    assert made.publication.mended == ("texture px 256→64 to keep 100 px",)
    blocks = textured.texture.reshape(64, 4, 64, 4, 3).mean(axis=(1, 3))
    assert np.abs(np.asarray(picture) - blocks).max() < 2, "each texel is the mean of those it stands for"


def test_bytes_are_saved_in_the_order_of_what_it_costs(textured: TexturedMesh, tmp_path: Path) -> None:
    plain = published(textured, tmp_path, "export.formats=glb").files[0].stat().st_size
    floor = "limits.min_texture_px=64"
    seen = []
    for share in (0.95, 0.7, 0.5, 0.2):
        allowed = int(plain * share)
        made = published(textured, tmp_path, "export.formats=glb", f"limits.file_bytes={allowed}", floor)
        assert made.files[0].stat().st_size <= allowed
        assert made.publication.broken == ()
        seen.append([words.split()[0:2] for words in made.publication.mended])
    assert seen[0] == [["texture", "png→jpeg"]]
    assert [len(steps) for steps in seen] == sorted(len(steps) for steps in seen)
    assert [step[0] for step in seen[-1]] == ["texture", "texture", "texture", "triangles"]
    glb = Foreign(made.files[0])
    assert (glb.picture.format, glb.picture.size) == ("JPEG", (64, 64))
    assert glb.triangles < 5120
    [check] = made.publication.checks
    assert check.mended == "; ".join(made.publication.mended)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["asset.glb"]


def test_a_picture_of_another_format_leaves_nothing_of_the_first(
    textured: TexturedMesh, tmp_path: Path
) -> None:
    made = published(textured, tmp_path, "export.formats=obj,usd", "limits.file_bytes=600000")
    assert {file.suffix for file in made.files} == {".obj", ".mtl", ".usdc", ".jpg"}
    assert set(tmp_path.iterdir()) == set(made.files)
    assert "asset.jpg" in (tmp_path / "asset.mtl").read_text()


def test_what_cannot_be_mended_is_flagged_with_its_reason(textured: TexturedMesh, tmp_path: Path) -> None:
    made = published(
        textured, tmp_path, "export.formats=glb,usdz", "limits.file_bytes=9000", "limits.triangles=100"
    )
    for name in ("asset.glb", "asset.usdz"):
        assert {("triangles", name), ("file_bytes", name)} <= set(broken(made))
        assert (tmp_path / name).is_file(), "an asset beyond its limits is an asset all the same"
    glb = Foreign(tmp_path / "asset.glb")
    assert glb.triangles >= MIN_FACES
    [told] = [words for words in made.publication.warnings if words.startswith("asset.glb: file_bytes")]
    assert f"{glb.size_bytes} where 9000 are allowed" in told


def test_a_surface_that_cannot_be_simplified_is_flagged_and_the_repairs_end(
    textured: TexturedMesh, tmp_path: Path
) -> None:
    asked = []

    def unwilling(unwrapped: UnwrappedMesh, faces: int) -> UnwrappedMesh:
        asked.append(faces)
        return unwrapped

    made = published(textured, tmp_path, "export.formats=glb", "limits.triangles=3000", coarser=unwilling)
    assert (asked, made.publication.mended) == ([3000], ())
    assert made.publication.broken == (
        LimitCheck(limit="triangles", file="asset.glb", allowed=3000, found=5120, is_kept=False),
    )


def test_a_chain_holds_one_texture_and_fewer_triangles_from_level_to_level(
    textured: TexturedMesh, tmp_path: Path
) -> None:
    made = published(textured, tmp_path, "export.formats=glb,obj", "export.lods=0.25,1.0,0.5")
    levels = [Foreign(tmp_path / f"asset_lod{level}.glb") for level in range(3)]
    assert [level.triangles for level in levels] == [5120, 2560, 1280]
    assert made.publication.broken == ()
    for level, glb in enumerate(levels):
        np.testing.assert_array_equal(np.asarray(glb.picture), textured.texture)
        solid = trimesh.load(tmp_path / f"asset_lod{level}.obj", force="mesh", process=False)
        solid.merge_vertices(merge_tex=True, merge_norm=True)
        assert solid.is_watertight
        np.testing.assert_allclose(glb.extents_mm, levels[0].extents_mm, rtol=0.02)
    assert made.files[0].name == "asset_lod0.glb"
    assert {file.name for file in made.files} == {file.name for file in tmp_path.iterdir()}


def test_a_level_that_is_not_as_light_as_asked_is_flagged(textured: TexturedMesh, tmp_path: Path) -> None:
    def unwilling(unwrapped: UnwrappedMesh, faces: int) -> UnwrappedMesh:
        return coarser(unwrapped, max(faces, 1500))  # a tenth above 1280 are 1408

    made = published(textured, tmp_path, "export.formats=glb", "export.lods=1,0.5,0.25", coarser=unwilling)
    assert broken(made) == [("lods", "asset_lod2.glb")]


@pytest.mark.parametrize("lods", [(1.0,), (1.0, 0.5), (0.5,), (1.0, 0.5, 0.25)])
def test_chains_of_different_photos_never_share_a_name(lods: tuple[float, ...]) -> None:
    stems = ["foo", "foo_lod0", "foo_lod1", "foo_lod1_lod0", "foo_lod"]
    names = [name for stem in stems for name in lod_names(stem, lods)]
    assert len(set(names)) == len(stems) * len(lods)
    assert (names[0] == "foo") == (lods == (1.0,))


def test_one_length_is_met_exactly_in_every_format(textured: TexturedMesh, tmp_path: Path) -> None:
    size = RealSize(height_mm=250)
    made = published(textured, tmp_path, "export.formats=glb,usdz", size=size)
    width, height, depth = Foreign(tmp_path / "asset.glb").extents_mm
    assert height == pytest.approx(250, rel=1e-6)
    assert (width, depth) == pytest.approx((250 * 1.2, 250 * 1.6), rel=0.01)
    assert made.publication.size_mm is not None
    assert made.publication.size_mm.in_mm == pytest.approx((width, height, depth), abs=0.01)
    assert made.publication.broken == ()
    assert Foreign(tmp_path / "asset.glb").extras["listed_size_mm"] == "- 250 -"
    assert Foreign(tmp_path / "asset.glb").extras["size_mm"].split()[1] == "250"
    with zipfile.ZipFile(tmp_path / "asset.usdz") as package:
        package.extract("asset.usdc", tmp_path)
    stage = Usd.Stage.Open(str(tmp_path / "asset.usdc"))
    low, high = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh")).GetExtentAttr().Get()
    assert (high - low)[1] == pytest.approx(0.25, rel=1e-6)


def test_several_lengths_are_met_best_and_a_disagreement_is_flagged(
    textured: TexturedMesh, tmp_path: Path
) -> None:
    # True proportions are 1.2 : 1 : 1.6; the width is listed a fifth too large.
    size = RealSize(width_mm=120 * 1.2, height_mm=100)
    made = published(textured, tmp_path, "export.formats=glb", size=size)
    width, height, _ = Foreign(tmp_path / "asset.glb").extents_mm
    assert width / size.width_mm == pytest.approx(size.height_mm / height, rel=0.01)
    assert broken(made) == [("aspect", "")]
    assert made.publication.warnings == ("the aspect disagrees with the listing by 20%",)
    for again in (
        published(textured, tmp_path, "export.formats=glb", "limits.aspect=0.3", size=size),
        published(textured, tmp_path, "export.formats=glb", "limits.aspect=0", size=size),
        published(textured, tmp_path, "export.formats=glb", size=RealSize(width_mm=60, depth_mm=80)),
    ):
        assert broken(again) == []


def test_names_that_are_no_slugs_are_flagged(textured: TexturedMesh, tmp_path: Path) -> None:
    made = published(textured, tmp_path, "export.formats=glb", "limits.slugs=true", stem="Asset")
    assert broken(made) == [("slugs", "Asset.glb")]
    assert broken(published(textured, tmp_path, "export.formats=glb", "limits.slugs=true")) == []


LIMITED = [name for name in list_presets() if any(
    (load_preset(name).preset.limits.triangles, load_preset(name).preset.limits.texture_px)
)]  # fmt: skip
"""The presets that have a target."""


def test_the_presets_with_a_target_are_those_that_are_promised() -> None:
    assert set(LIMITED) == {"web", "banner", "mobile-ar", "marketplace", "game", "fine"}


@pytest.mark.parametrize("name", LIMITED)
def test_a_preset_asks_for_no_more_than_its_own_limits(name: str) -> None:
    preset = load_preset(name).preset
    limits = preset.limits
    assert preset.mesh.faces <= (limits.triangles or preset.mesh.faces)
    assert limits.min_texture_px <= preset.texture.size_px <= limits.texture_px
    assert limits.square_texture


SMALL = ("cutout.size_px=128", "views.size_px=64", "reconstruction.grid=32", "preview.size_px=64")
"""What decides how long the networks and the surface take, and nothing that a limit is about."""


@pytest.mark.slow
@pytest.mark.parametrize("name", LIMITED)
def test_every_preset_keeps_its_limits_on_a_real_photo_or_says_so(name: str, tmp_path: Path) -> None:
    photos, out = tmp_path / "in", tmp_path / "out"
    photos.mkdir()
    (photos / "皮鞋.png").write_bytes((HERE / "photos" / "bottle.png").read_bytes())
    words = ["convert", photos, "-o", out, "-p", name, "--jobs", "1", "--no-cache"]
    words += [word for setting in SMALL for word in ("--set", setting)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("CRM_")}
    done = subprocess.run(
        [sys.executable, "-m", "crm_cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=environment,
        cwd=HERE.parent,
    )
    assert done.returncode == 0, done.stderr
    [record] = Records.scan(out).newest()
    check_files(out, record, load_preset(name).preset)


def foreign_counts(file: Path) -> tuple[int, int, tuple[int, int]]:
    """Triangles, vertices split at seams, and the texture's size, of a file in any format."""
    if file.suffix == ".glb":
        glb = Foreign(file)
        return glb.triangles, glb.vertices, glb.picture.size
    if file.suffix == ".obj":
        solid = trimesh.load(file, force="mesh", process=False)
        with solid.visual.material.image as picture:
            return len(solid.faces), len(solid.vertices), picture.size
    if file.suffix == ".usdz":
        with zipfile.ZipFile(file) as package:
            layer, texture = package.namelist()
            file = Path(package.extract(layer, file.parent.parent))
            data = package.read(texture)
    else:
        data = file.with_suffix(".png").read_bytes()
    stage = Usd.Stage.Open(str(file))
    mesh = UsdGeom.Mesh(stage.GetPrimAtPath("/Asset/Mesh"))
    st = UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").GetIndices()
    vertices = len(set(zip(mesh.GetFaceVertexIndicesAttr().Get(), st, strict=True)))
    return len(mesh.GetFaceVertexCountsAttr().Get()), vertices, Image.open(io.BytesIO(data)).size


def check_files(out: Path, record: CommitRecord, preset: Preset) -> None:
    """Hold every file against the limits with foreign readers alone; what breaks one must be told."""
    limits = preset.limits
    names = {output.path.name for output in record.outputs}
    assert names == {file.name for file in out.iterdir() if file.is_file()}
    stem = "pi-xie" if limits.slugs else "皮鞋"
    for each in lod_names(stem, preset.export.lods):
        for kind in preset.export.formats:
            file = out / f"{each}.{'usdc' if kind == 'usd' else kind}"
            triangles, vertices, (width, height) = foreign_counts(file)
            found = {
                "triangles": triangles,
                "vertices": vertices,
                "texture_px": max(width, height),
                "file_bytes": file.stat().st_size,
                "square_texture": int(width != height or width & (width - 1) != 0),
            }
            told = {check.limit: check for check in record.publication.checks if check.file == file.name}
            for limit, number in found.items():
                allowed = 0 if limit == "square_texture" else getattr(limits, limit)
                if getattr(limits, limit):
                    assert (told[limit].found, told[limit].allowed) == (number, allowed), (file.name, limit)
                    assert told[limit].is_kept == (number <= allowed), (file.name, limit)
            assert ("slugs" in told) == limits.slugs
    broken = [check.words for check in record.publication.broken]
    assert set(broken) <= set(record.warnings)
