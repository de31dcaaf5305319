"""Read this first: two photos become assets, other programs open them, and a second run has nothing to do.

Nothing is faked here: the command line, a worker process, the weights inside the package, all three formats.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

import numpy as np
import pytest
import trimesh
from numpy.typing import NDArray
from PIL import Image
from pxr import Usd, UsdGeom, UsdShade
from scipy.ndimage import binary_fill_holes

PHOTOS = Path(__file__).parent / "photos"
ENVIRONMENT = {name: value for name, value in os.environ.items() if not name.startswith("CRM_")}
PICTURE_PX = 48
"""Side of the pictures in which the front of an asset is compared with its photo."""

Picture = NDArray[np.float64]
"""Colour and coverage [S S 4] in [0, 1], the subject's bounding box filling it."""


class Solid(NamedTuple):
    """What three formats agree on: triangles with points merged, and how to colour a point of one."""

    mesh: trimesh.Trimesh
    uv: NDArray[np.float64]
    """Texture coordinates of every face's corners, [F 3 2]."""
    texture: NDArray[np.uint8]


def convert(photos: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    """Run the command as a user does; returns its events."""
    words = ["convert", photos, "-o", out, "-p", "tiny", "--jobs", "1", "--device", "cpu", "--json", *more]
    done = subprocess.run(
        [sys.executable, "-m", "crm_cli", *map(str, words)],
        capture_output=True,
        text=True,
        env=ENVIRONMENT,
        cwd=Path(__file__).parent.parent,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def statuses(events: list[dict[str, Any]]) -> dict[str, str]:
    return {event["path"]: event["status"] for event in events if event["type"] == "asset_finished"}


def asset_files(out: Path) -> dict[str, tuple[int, int, int]]:
    """Every file of an asset, with what changes when it is written again."""
    return {
        file.relative_to(out).as_posix(): (file.stat().st_ino, file.stat().st_mtime_ns, file.stat().st_size)
        for file in out.rglob("*")
        if file.is_file() and not {".crm", "report", "SHA256SUMS"} & set(file.relative_to(out).parts)
    }


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    shutil.copy(PHOTOS / "bottle.png", folder)
    (folder / "küche").mkdir()
    shutil.copy(PHOTOS / "kitchen" / "mug.jpg", folder / "küche")
    return folder


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "meshes"
    assert statuses(convert(photos, folder)) == {"bottle.png": "converted", "küche/mug.jpg": "converted"}
    return folder


def read_with_trimesh(file: Path) -> Solid:
    loaded = trimesh.load(file, force="mesh", process=False)
    material = loaded.visual.material
    image = getattr(material, "baseColorTexture", None) or material.image
    uv = loaded.visual.uv[loaded.faces]
    merged = trimesh.Trimesh(loaded.vertices, loaded.faces, process=False)
    merged.merge_vertices(digits_vertex=7)
    return Solid(merged, uv, np.asarray(image.convert("RGB")))


def read_usd(file: Path) -> Solid:
    stage = Usd.Stage.Open(str(file))
    [mesh] = [UsdGeom.Mesh(prim) for prim in stage.Traverse() if prim.IsA(UsdGeom.Mesh)]
    faces = np.array(mesh.GetFaceVertexIndicesAttr().Get()).reshape(-1, 3)
    st = np.array(UsdGeom.PrimvarsAPI(mesh).GetPrimvar("st").ComputeFlattened()).reshape(-1, 3, 2)
    [picture] = [
        shader.GetInput("file").Get().resolvedPath
        for shader in (UsdShade.Shader(prim) for prim in stage.Traverse() if prim.IsA(UsdShade.Shader))
        if shader.GetIdAttr().Get() == "UsdUVTexture"
    ]
    points = np.array(mesh.GetPointsAttr().Get())
    return Solid(
        trimesh.Trimesh(points, faces, process=False), st, np.asarray(Image.open(picture).convert("RGB"))
    )


@pytest.fixture(scope="module", params=["glb", "obj", "usdc"])
def mug(request: pytest.FixtureRequest, out: Path) -> Solid:
    file = out / "küche" / f"mug.{request.param}"
    return read_usd(file) if request.param == "usdc" else read_with_trimesh(file)


def seen_from_front(solid: Solid) -> Picture:
    """Splat points of the surface on a grid, nearest to a viewer at +Z on top."""
    random = np.random.default_rng(0)
    points, face = trimesh.sample.sample_surface(solid.mesh, 60_000, seed=random)
    corners = trimesh.triangles.points_to_barycentric(solid.mesh.triangles[face], points)
    uv = np.einsum("nk,nkd->nd", corners, solid.uv[face])
    side = solid.texture.shape[0]
    column = np.clip((uv[:, 0] * side).astype(int), 0, side - 1)
    row = np.clip(((1 - uv[:, 1]) * side).astype(int), 0, side - 1)
    colour = solid.texture[row, column] / 255
    low, high = solid.mesh.bounds
    place = (points - low)[:, :2] / (high - low)[:2] * (PICTURE_PX - 1e-6)
    right, down = place[:, 0].astype(int), PICTURE_PX - 1 - place[:, 1].astype(int)
    order = np.argsort(points[:, 2])
    picture = np.zeros((PICTURE_PX, PICTURE_PX, 4))
    picture[down[order], right[order]] = np.column_stack([colour, np.ones(len(points))])[order]
    return picture


@pytest.fixture(scope="module")
def cut_out(out: Path) -> Picture:
    """The mug as the photo shows it, from the contact sheet's own picture of it."""
    records = [json.loads(file.read_text()) for file in (out / ".crm" / "records").rglob("*.json")]
    [name] = [record["id"] for record in records if record["asset"] == "küche/mug.jpg"]
    picture = Image.open(out / "report" / "thumbs" / f"{name}-cutout.webp").convert("RGBA")
    solid = picture.getchannel("A").point(lambda a: 255 * (a > 127))
    small = picture.crop(solid.getbbox()).resize((PICTURE_PX, PICTURE_PX), Image.Resampling.BOX)
    return np.asarray(small) / 255


def unlike(one: Picture, other: Picture) -> tuple[float, float]:
    """How much of two outlines differs, and mean colour error where they agree."""
    a, b = one[..., 3] > 0.5, other[..., 3] > 0.5
    return 1 - (a & b).sum() / (a | b).sum(), float(np.abs(one - other)[a & b][:, :3].mean())


def test_every_format_holds_the_same_solid(out: Path) -> None:
    mugs = [read_with_trimesh(out / "küche" / name).mesh for name in ("mug.glb", "mug.obj")]
    mugs.append(read_usd(out / "küche" / "mug.usdc").mesh)
    for mesh in mugs:
        np.testing.assert_allclose(mesh.bounds, mugs[0].bounds, atol=1e-5)
        assert mesh.volume == pytest.approx(mugs[0].volume, rel=1e-4)
        assert len(mesh.faces) == len(mugs[0].faces)


def test_the_solid_is_closed_outward_and_stands_on_the_origin(mug: Solid) -> None:
    assert mug.mesh.is_watertight and mug.mesh.is_winding_consistent
    assert 0.1 < mug.mesh.volume / np.prod(mug.mesh.extents) < 0.9
    low, high = mug.mesh.bounds
    assert low[1] == pytest.approx(0, abs=1e-6)
    assert (low + high)[[0, 2]] == pytest.approx([0, 0], abs=1e-6)
    assert 0.3 < max(mug.mesh.extents) < 2  # metres


def test_the_front_shows_the_photo_and_not_its_mirror_image(mug: Solid, cut_out: Picture) -> None:
    shown = seen_from_front(mug)
    outline, colour = unlike(shown, cut_out)
    mirrored_outline, mirrored_colour = unlike(shown, cut_out[:, ::-1])
    assert outline < 0.12 and colour < 0.06
    assert mirrored_outline > 2 * outline and mirrored_colour > 1.5 * colour


def holes(picture: Picture) -> NDArray[np.bool_]:
    """What a picture shows of the background through its subject."""
    covered = picture[..., 3] > 0.5
    filled: NDArray[np.bool_] = binary_fill_holes(covered)
    return filled & ~covered


def test_the_mug_keeps_the_hole_in_its_handle(mug: Solid, cut_out: Picture) -> None:
    shown, wanted = holes(seen_from_front(mug)), holes(cut_out)
    assert wanted.sum() > 0.03 * PICTURE_PX**2
    assert (shown & wanted).sum() > 0.6 * (shown | wanted).sum()


class Links(HTMLParser):
    """Collects what a page points to."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found |= {value for name, value in attrs if name in ("href", "src") and value}


def test_the_contact_sheet_links_to_what_exists_and_to_every_asset(out: Path) -> None:
    page = out / "report" / "index.html"
    parser = Links()
    parser.feed(page.read_text(encoding="utf-8"))
    linked = {
        (page.parent / unquote(link)).resolve()
        for link in parser.found
        if not link.startswith(("#", "data:"))
    }
    assert {file for file in linked if not file.is_file()} == set()
    stems = (out / "bottle", out / "küche" / "mug")
    assert {
        Path(f"{stem.resolve()}.{suffix}") for stem in stems for suffix in ("glb", "obj", "usdc")
    } <= linked


def test_a_second_run_does_nothing_and_a_lost_file_costs_its_own_photo_alone(photos: Path, out: Path) -> None:
    before = asset_files(out)
    assert {Path(name).name for name in before} == {
        *("bottle.glb", "bottle.obj", "bottle.mtl", "bottle.png", "bottle.usdc"),
        *("mug.glb", "mug.obj", "mug.mtl", "mug.png", "mug.usdc"),
    }
    assert statuses(convert(photos, out)) == {"bottle.png": "cached", "küche/mug.jpg": "cached"}
    assert asset_files(out) == before

    lost = (out / "bottle.obj").read_bytes()
    (out / "bottle.obj").unlink()
    assert statuses(convert(photos, out)) == {"bottle.png": "converted", "küche/mug.jpg": "cached"}
    after = asset_files(out)
    assert {name for name in before if name.startswith("küche/") and after[name] != before[name]} == set()
    assert (out / "bottle.obj").read_bytes() == lost


def stages(events: list[dict[str, Any]]) -> set[str]:
    return {event["stage"] for event in events if event["type"] == "stage_started"}


def test_another_texture_or_format_asks_no_network_for_views_again(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = photos / "bottle.png"
    assert "imagine" in stages(convert(one, out))
    kept = list((out / ".crm" / "cache").glob("*/*/ok.json"))
    assert len(kept) == 1
    again = convert(one, out, "--set", "texture.size_px=256", "--format", "glb")
    assert stages(again) == {"prepare", "reconstruct", "unwrap", "bake", "deliver"}
    afresh = convert(
        one, tmp_path / "afresh", "--set", "texture.size_px=256", "--format", "glb", "--no-cache"
    )
    assert "imagine" in stages(afresh)
    assert not (tmp_path / "afresh" / ".crm" / "cache").exists()
    assert (out / "bottle.glb").read_bytes() == (tmp_path / "afresh" / "bottle.glb").read_bytes()
    renamed = Path(shutil.copy(one, tmp_path / "flask.png"))
    assert "imagine" not in stages(convert(renamed, out)), "a name is no part of what was imagined"
    assert "imagine" in stages(convert(one, out, "--set", "seed=1")), "another seed imagines other sides"
    assert "imagine" in stages(convert(one, out, "--set", "texture.size_px=512", "--no-cache"))
    assert len(list((out / ".crm" / "cache").glob("*/*/ok.json"))) == 2, "--no-cache throws nothing away"
    convert(one, out, "--set", "texture.size_px=128", "--cache-size", "1K")
    assert not list((out / ".crm" / "cache").glob("*/*/ok.json"))
