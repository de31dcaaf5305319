"""The judges of the census have teeth: each finds a file that is broken in its way, and only that one."""

from __future__ import annotations

import json
import os
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import census
import judges
import numpy as np
import pytest
import trimesh
from coordinate_box import CELL_PX, coordinate_box

from crm_cli.export import glb
from crm_cli.export.scene import Scene, build_scene
from crm_cli.export.textures import encode_texture
from crm_cli.export.writers import write_asset
from crm_cli.learn.camera import pose
from crm_cli.learn.products import make_product
from crm_cli.learn.truth import encode_truth
from crm_cli.mesh.raster import WarpRaster
from crm_cli.preset import load_preset

NODE_MODULES = os.environ.get("CRM_GLTF_VALIDATOR", "")
BLENDER = os.environ.get("CRM_BPY_PYTHON", "")

needs_node = pytest.mark.skipif(
    not (NODE_MODULES and (Path(NODE_MODULES) / "gltf-validator").is_dir() and shutil.which("node")),
    reason="needs node, and CRM_GLTF_VALIDATOR=…/node_modules with gltf-validator (npm) in it",
)
needs_blender = pytest.mark.skipif(not BLENDER, reason="needs CRM_BPY_PYTHON=…/python that can import bpy")

NO_LIMITS: dict[str, float] = {}


@pytest.fixture(scope="module")
def scene() -> Scene:
    """The box with room between its charts."""
    return with_room(build_scene(coordinate_box(), provenance={}), 6)


def with_room(scene: Scene, room_px: float) -> Scene:
    """Shrink the six charts of four corners so that so many texels are free between them."""
    corners = scene.uv.reshape(6, 4, 2)
    middle = corners.mean(axis=1, keepdims=True)
    uv = middle + (corners - middle) * (1 - room_px / CELL_PX)
    return replace(scene, uv=uv.reshape(-1, 2).astype(np.float32))


def one_chart_smaller(scene: Scene) -> Scene:
    uv = scene.uv.reshape(6, 4, 2).copy()
    middle = uv[0].mean(axis=0)
    uv[0] = middle + (uv[0] - middle) / 8
    return replace(scene, uv=uv.reshape(-1, 2))


def encode_glb(scene: Scene) -> bytes:
    return glb.encode_glb(scene, picture=encode_texture(scene.texture, "png", quality=100))


def asset(scene: Scene, folder: Path, record: dict[str, Any] | None = None) -> census.Finished:
    export = replace(load_preset("default").preset.export, formats=("glb", "obj", "usd", "usdz"))
    files = write_asset(scene, folder, "box", export)
    return census.Finished(asset="box.png", files=tuple(files), record=record or {})


def rows(found: census.Finished, limits: dict[str, float] = NO_LIMITS) -> set[str]:
    """The counts that the faults of one asset go into."""
    return {census.row_of(fault) for fault in census.judge(found, limits, None).faults}


def kinds(scene: Scene, folder: Path) -> set[str]:
    """What is said of a scene as GLB, in the faults' own words."""
    path = folder / "box.glb"
    path.write_bytes(encode_glb(scene))
    read = judges.read_trimesh(path)
    said = [*judges.census_faults(read), *judges.uv_faults(read, 288)]
    return {fault.partition(":")[0] for fault in said}


def test_a_sound_asset_has_no_fault_in_any_format(scene, tmp_path):
    found = asset(scene, tmp_path)
    assert {file.suffix for file in found.files} >= {".glb", ".obj", ".usdc", ".usdz"}
    assert census.judge(found, {"triangles": 12, "texture_px": 288}, None).faults == ()


def joined(first: Scene, points: np.ndarray, faces: np.ndarray) -> Scene:
    """More faces for a scene, with the texture coordinates of its first face."""
    return replace(
        first,
        points=np.concatenate([first.points, points.astype(np.float32)]),
        normals=np.concatenate([first.normals, np.tile(np.float32([0, 1, 0]), (len(points), 1))]),
        faces=np.concatenate([first.faces, faces]),
        uv_faces=np.concatenate([first.uv_faces, np.tile(first.uv_faces[:1], (len(faces), 1))]),
    )


def floater(scene: Scene) -> Scene:
    """A tiny tetrahedron beside the box."""
    start = len(scene.points)
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]) * 0.005 + [1, 0, 0]
    return joined(scene, points, start + np.array([[0, 2, 1], [0, 1, 3], [0, 3, 2], [1, 2, 3]]))


def fin(scene: Scene) -> Scene:
    """A third face on an edge."""
    a, b, _ = scene.faces[0]
    return joined(scene, np.array([[2.0, 0, 0]]), np.array([[a, b, len(scene.points)]]))


def pinched(scene: Scene) -> Scene:
    """Two boxes that share nothing but a corner."""
    low, high = scene.bounds
    twin = scene.points + (high - low)
    return joined(scene, twin, len(scene.points) + scene.faces)


def flat_face(scene: Scene) -> Scene:
    """One side cut anew, so that a triangle has no height: its third corner lies on its longest edge."""
    a, b, c = scene.faces[0]
    middle = (scene.points[[a]] + scene.points[[b]]) / 2
    start = len(scene.points)
    kept = replace(scene, faces=scene.faces[1:], uv_faces=scene.uv_faces[1:])
    return joined(kept, middle, np.array([[a, start, c], [start, b, c], [a, b, start]]))


BROKEN: dict[str, tuple[Callable[[Scene], Scene], str]] = {
    "a hole": (lambda s: replace(s, faces=s.faces[1:], uv_faces=s.uv_faces[1:]), "not watertight"),
    "a fin": (fin, "non-manifold"),
    "two that touch in a corner": (pinched, "non-manifold"),
    "a face without height": (flat_face, "degenerate faces"),
    "inside out": (lambda s: replace(s, faces=s.faces[:, ::-1], uv_faces=s.uv_faces[:, ::-1]), "volume"),
    "one face turned": (
        lambda s: replace(s, faces=np.concatenate([s.faces[:1, ::-1], s.faces[1:]])), "winding"
    ),
    "a floater": (floater, "floaters"),
    "uv outside": (lambda s: replace(s, uv=s.uv + np.float32(0.5)), "uv"),
    "uv no numbers": (lambda s: replace(s, uv=np.full_like(s.uv, np.nan)), "uv"),
    "uv all in one place": (lambda s: replace(s, uv=np.zeros_like(s.uv)), "uv"),
    "charts too close": (lambda s: with_room(build_scene(coordinate_box(), provenance={}), 2), "uv padding"),
    "a chart with fewer texels": (one_chart_smaller, "uv density"),
    "charts that overlap": (lambda s: replace(s, uv_faces=s.uv_faces % 4), "uv overlap"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_the_census_finds(scene, tmp_path, what):
    spoil, kind = BROKEN[what]
    assert kind not in kinds(scene, tmp_path)
    assert kind in kinds(spoil(scene), tmp_path)


def test_a_position_that_is_no_number_is_found_and_ends_nothing(scene, tmp_path):
    found = asset(scene, tmp_path)
    data = (tmp_path / "box.glb").read_bytes()
    corner = scene.points[0].tobytes()
    assert corner in data
    (tmp_path / "box.glb").write_bytes(data.replace(corner, np.full(3, np.nan, "<f4").tobytes()))
    assert "solid" in rows(found)


def test_a_glb_without_texture_coordinates_is_found(scene, tmp_path):
    trimesh.Trimesh(scene.points, scene.faces).export(tmp_path / "bare.glb")
    assert judges.uv_faults(judges.read_trimesh(tmp_path / "bare.glb"), 64) == ["uv: no coordinates"]


def test_every_face_counts_at_every_texel_it_holds():
    """Against the areas of random triangles: each texel is one unit, whichever way round a face runs."""
    rng = np.random.default_rng(0)
    uv = rng.uniform(0.1, 0.9, (40, 3, 2))
    counted = judges.texels(uv, 512).sum()
    (a, b) = (uv[:, 1] - uv[:, 0], uv[:, 2] - uv[:, 0])
    area = np.abs(a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]).sum() / 2 * 512**2
    assert counted == pytest.approx(area, rel=2e-3)


def edit(file: Path, change: Callable[[str], str]) -> None:
    file.write_text(change(file.read_text()))


def test_an_obj_of_another_size_is_found(scene, tmp_path):
    found = asset(scene, tmp_path)
    lines = (tmp_path / "box.obj").read_text().splitlines()
    grown = [
        f"v {' '.join(str(1.01 * float(x)) for x in line.split()[1:])}" if line.startswith("v ") else line
        for line in lines
    ]
    (tmp_path / "box.obj").write_text("\n".join(grown))
    assert rows(found) == {"formats differ"}


def test_an_obj_with_fewer_faces_is_found(scene, tmp_path):
    found = asset(scene, tmp_path)
    lines = (tmp_path / "box.obj").read_text().splitlines()
    (tmp_path / "box.obj").write_text("\n".join(lines[:-1]))
    assert rows(found) == {"formats differ"}


def test_an_asset_off_the_origin_is_found(scene, tmp_path):
    moved = replace(scene, points=scene.points + np.float32([0, 0.01, 0]))
    assert rows(asset(moved, tmp_path)) == {"formats differ"}


def change_usd(file: Path, change: Callable[[Any], None]) -> None:
    from pxr import Usd, UsdGeom

    stage = Usd.Stage.Open(str(file))
    [mesh] = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    change(mesh)
    stage.GetRootLayer().Save()


def test_a_usd_face_with_a_corner_too_many_is_found(scene, tmp_path):
    asset(scene, tmp_path)

    def spoil(mesh: Any) -> None:
        indices = list(mesh.GetFaceVertexIndicesAttr().Get())
        mesh.GetFaceVertexIndicesAttr().Set([*indices[:-1], 8])

    change_usd(tmp_path / "box.usdc", spoil)
    assert any(fault.startswith("usd topology") for fault in judges.usd_faults(tmp_path / "box.usdc"))
    assert judges.usd_faults(tmp_path / "box.usdz") == []


def test_a_usd_whose_texture_is_gone_is_found(scene, tmp_path):
    asset(scene, tmp_path)
    (tmp_path / "box.png").unlink()
    assert any("box.png" in fault for fault in judges.usd_faults(tmp_path / "box.usdc"))


def test_a_compressed_usdz_is_found(scene, tmp_path):
    asset(scene, tmp_path)
    with zipfile.ZipFile(tmp_path / "box.usdz") as whole:
        content = {name: whole.read(name) for name in whole.namelist()}
    with zipfile.ZipFile(tmp_path / "box.usdz", "w", zipfile.ZIP_DEFLATED) as squeezed:
        for name, data in content.items():
            squeezed.writestr(name, data)
    assert judges.usd_faults(tmp_path / "box.usdz")


@pytest.mark.parametrize(
    ("limit", "found"), [("triangles", 12), ("vertices", 24), ("texture_px", 288), ("file_bytes", None)]
)
def test_a_limit_is_read_from_the_file(scene, tmp_path, limit, found):
    made = asset(scene, tmp_path)
    found = found or (tmp_path / "box.glb").stat().st_size
    assert rows(made, {limit: found}) == set()
    assert rows(made, {limit: found - 1}) == {"limit"}
    assert rows(made, {limit: 0}) == set()


def test_a_texture_that_is_no_power_of_two_is_found(scene, tmp_path):
    assert rows(asset(scene, tmp_path), {"square_texture": 1}) == {"limit"}


def test_a_broken_limit_that_the_record_names_is_not_silent(scene, tmp_path):
    checks = [{"limit": "texture_px", "is_kept": False}]
    flagged = asset(scene, tmp_path, {"publication": {"checks": checks}})
    assert rows(flagged, {"texture_px": 128}) == set()
    assert rows(flagged, {"texture_px": 128, "triangles": 10}) == {"limit"}


def test_presets_are_held_to_what_the_takers_allow():
    assert census.limits_of("banner")["file_bytes"] <= 500_000
    assert census.limits_of("web")["triangles"] <= 100_000


def test_a_missing_or_unreadable_file_is_a_fault(scene, tmp_path):
    found = asset(scene, tmp_path)
    (tmp_path / "box.obj").write_bytes(b"nothing")
    assert "files" in rows(found)
    (tmp_path / "box.obj").unlink()
    assert rows(found) == {"files"}


@needs_node
def test_gltf_validator_finds_numbers_that_are_none_and_reads_on(scene, tmp_path):
    spoilt = replace(scene, normals=scene.normals * np.float32(np.nan))
    files = [tmp_path / name for name in ("bad.glb", "rubbish.glb", "good.glb")]
    files[0].write_bytes(encode_glb(spoilt))
    files[1].write_bytes(b"glTF")
    files[2].write_bytes(encode_glb(scene))
    bad, rubbish, good = judges.gltf_faults(files, Path(NODE_MODULES))
    assert any(fault.startswith("gltf error") for fault in bad)
    assert rubbish and good == []


@needs_blender
def test_blender_finds_a_format_of_another_size_and_reads_on(scene, tmp_path):
    found = asset(scene, tmp_path)
    (tmp_path / "broken.glb").write_bytes(b"glTF")
    edit(tmp_path / "box.obj", lambda text: text.replace("v 0.", "v 0.1"))
    files = [*found.of(".glb", ".obj", ".usdc", ".usdz"), tmp_path / "broken.glb"]
    first = judges.read_trimesh(tmp_path / "box.glb")
    told = judges.blender_readings(files, Path(BLENDER))
    said = {
        file.name: judges.blender_faults(file.suffix, each, first)
        for file, each in zip(files, told, strict=True)
    }
    assert [name for name, faults in said.items() if faults] == ["box.obj", "broken.glb"]


def test_a_truth_laid_over_itself_is_a_full_score_and_another_product_is_not(tmp_path):
    products = {}
    for family in ("mug", "chair"):
        posed = pose(make_product(np.random.default_rng(3), family), np.eye(3))
        products[family] = tmp_path / f"{family}.glb"
        products[family].write_bytes(encode_truth(posed, 3, WarpRaster()))
    mug = judges.read_trimesh(products["mug"])
    chamfer, f_score = census.accuracy(mug, products["mug"])
    assert f_score > 0.9 and chamfer < 0.03
    assert census.accuracy(mug, products["chair"])[1] < 0.6


def figures(tmp_path: Path, scene: Scene) -> dict[str, Any]:
    record = {
        "checks": {"faces": 12, "confidence": "low"},
        "seconds": {"bake": 1.0, "deliver": 0.5},
        "verdict": {"grade": "review"},
    }
    made = asset(scene, tmp_path, record)
    judged = [census.Judged(made.asset, ("uv overlap: 3 texels of several faces",), 0.05, 0.5)]
    outside = {made.asset: ["gltf error: X", "gltf error: Y"]}
    return census.summarise([made], judged, outside, {"torn.jpg": "not a photo"}, 3.0)


def test_an_asset_counts_once_in_each_row_and_is_named(scene, tmp_path):
    told = figures(tmp_path, scene)
    assert {row: n for row, n in told["counts"].items() if n} == {"gltf error": 1, "uv": 1, "failed": 1}
    assert set(told["faults"]) == {"box.png", "torn.jpg"}
    assert (told["verdicts"], told["low_confidence"], told["seconds_per_photo"]) == ({"review": 1}, 1, 1.5)
    json.dumps(told)


def test_the_table_has_a_column_a_preset_and_says_which_judges_were_missing(scene, tmp_path):
    told = figures(tmp_path, scene)
    table = census.markdown({"presets": {"web": told, "tiny": told}, "judges_missing": ["blender"]})
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    assert lines[0] == ["", "`web`", "`tiny`"]
    assert all(len(line) == 3 for line in lines)
    shown = {words: cell for words, cell, _ in lines}
    assert shown["trimesh: UVs missing, broken or overlapping"] == "1"
    assert shown[dict(census.ROWS)["blender"]] == "not judged"
    assert shown["flagged `pass` / `review` / `fail`"] == "0 / 1 / 0"
    assert shown["F-score at 0.04 of an object 1.6 long, median"] == "0.50"


def test_every_kind_of_fault_has_a_row():
    known = {row for row, _ in census.ROWS}
    assert set(census.ROW_OF.values()) <= known
    assert not set(census.ROW_OF) & known


def test_the_newest_record_of_an_asset_counts(tmp_path):
    folder = tmp_path / ".crm" / "records" / "aa"
    folder.mkdir(parents=True)
    for t in (2, 1):
        record = {"asset": "a.jpg", "outputs": [{"path": f"a{t}.glb"}], "t": t}
        (folder / f"a.{t}.json").write_text(json.dumps(record))
    [found] = census.finished(tmp_path)
    assert found.files == (tmp_path / "a2.glb",)


def test_given_photos_are_copied_into_the_census(tmp_path):
    given = tmp_path / "given"
    (given / "sub").mkdir(parents=True)
    (given / "sub" / "鞋.JPG").write_bytes(b"photo")
    (given / "notes.txt").write_bytes(b"text")
    options = SimpleNamespace(out=tmp_path / "out", count=0, photos=[given])
    photos = census.gather(options)
    assert [f.relative_to(photos).as_posix() for f in photos.rglob("*.JPG")] == ["given0/sub/鞋.JPG"]
    assert not list(photos.rglob("*.txt"))


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


@pytest.mark.skipif("<!-- census -->" not in README, reason="the README shows no census")
def test_the_table_in_the_readme_has_the_rows_of_the_census(scene, tmp_path):
    table = README.split("<!-- census -->")[1].strip().split("\n\n")[0]
    made = census.markdown({"presets": {"web": figures(tmp_path, scene)}, "judges_missing": []})
    shown, wanted = (
        [line.split("|")[1].strip() for line in text.strip().splitlines()] for text in (table, made)
    )
    assert shown == wanted
