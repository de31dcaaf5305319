"""Catalogues of made-up products: what stands in the folder, and that the truth is what the photo shows."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import trimesh
from PIL import Image
from typer.testing import CliRunner

from crm_cli.cli.app import app
from crm_cli.errors import OutputError, UsageError
from crm_cli.export.scene import METRES_PER_UNIT
from crm_cli.learn import catalogue
from crm_cli.learn.camera import EXTENT, pose
from crm_cli.learn.catalogue import FIRST_SEED, Plan, plan, shoot
from crm_cli.learn.catalogue_files import write_catalogue
from crm_cli.learn.data import HELD_OUT
from crm_cli.learn.materials import Material
from crm_cli.learn.parts import Part, assemble
from crm_cli.learn.shapes import box
from crm_cli.learn.truth import encode_truth
from crm_cli.mesh.raster import TorchRaster, WarpRaster

FAMILIES = ("mug", "chair", "bottle")


def plans(count: int = 2, **changes: Any) -> list[Plan]:
    wanted = {"count": count, "seed": FIRST_SEED, "families": FAMILIES, "size_px": 96, **changes}
    return plan(**wanted)


def make(folder: Path, wanted: list[Plan], *, jobs: int = 1) -> list[bool]:
    """Which entries were there already."""
    return [entry.is_kept for entry in write_catalogue(folder, wanted, jobs=jobs)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def welded(glb: bytes) -> trimesh.Trimesh:
    mesh = trimesh.load(io.BytesIO(glb), file_type="glb", force="mesh")
    mesh.merge_vertices(merge_tex=True, merge_norm=True)
    return mesh


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("made")
    assert make(made, plans(4)) == [False] * 4
    return made


def listed(folder: Path) -> list[dict[str, Any]]:
    return json.loads((folder / "truth.json").read_text())["products"]


def test_every_photo_has_its_truth_and_its_lines_and_nothing_else_is_there(folder):
    entries = listed(folder)
    assert [entry["seed"] for entry in entries] == list(range(FIRST_SEED, FIRST_SEED + 4))
    named = {entry[key] for entry in entries for key in ("file", "truth")}
    assert set(content(folder)) == named | {"truth.json", "products.csv"}
    assert {entry["family"] for entry in entries} == set(FAMILIES)
    assert all(entry["sku"].startswith(entry["family"]) for entry in entries)
    for entry in entries:
        with Image.open(folder / entry["file"]) as photo:
            assert photo.size == (entry["size_px"],) * 2
            assert (photo.mode == "RGBA") == (entry["background"] == "transparent")


def test_seeds_are_held_out_unless_asked_for(folder):
    assert FIRST_SEED > HELD_OUT
    assert all(entry["is_held_out"] for entry in listed(folder))
    assert not shoot(plans(1, seed=7)[0], WarpRaster()).item.is_held_out


def test_the_table_holds_the_products_own_size(folder):
    rows = list(csv.DictReader(io.StringIO((folder / "products.csv").read_text())))
    assert [(row["sku"], row["file"]) for row in rows] == [(e["sku"], e["file"]) for e in listed(folder)]
    for row, entry in zip(rows, listed(folder), strict=True):
        sides = [float(row[f"{side}_mm"]) for side in ("width", "height", "depth")]
        assert sides == list(entry["size_mm"].values())
        low, high = catalogue.LONGEST_MM[entry["family"]]
        assert low - 0.1 <= max(sides) <= high + 0.1


def test_a_truth_has_the_shape_of_its_size_and_stands_where_assets_stand(folder):
    for entry in listed(folder):
        mesh = welded((folder / entry["truth"]).read_bytes())
        low, high = mesh.bounds
        np.testing.assert_allclose(max((high - low)[:2]), EXTENT * METRES_PER_UNIT, rtol=1e-5)
        np.testing.assert_allclose([low[0] + high[0], low[1], low[2] + high[2]], 0, atol=1e-6)
        sides = np.array([entry["photographed_mm"][side] for side in ("width", "height", "depth")])
        np.testing.assert_allclose((high - low) / (high - low)[1], sides / sides[1], rtol=5e-3)


def test_every_part_of_a_truth_is_closed_and_faces_outwards(folder):
    for entry in listed(folder):
        parts = welded((folder / entry["truth"]).read_bytes()).split(only_watertight=False)
        assert len(parts) >= 1
        assert all(part.is_watertight and part.is_winding_consistent and part.volume > 0 for part in parts)


def test_the_truth_is_what_the_photo_shows():
    """Its outline along +Z, seen from the front, is the photo's; perspective moves the edges a little."""
    [planned] = plan(count=1, seed=FIRST_SEED, families=("shoe",), size_px=256)
    for seed in range(FIRST_SEED, FIRST_SEED + 40):
        shot = shoot(Plan(seed=seed, families=planned.families, size_px=96), WarpRaster())
        if shot.item.background == "transparent" and abs(shot.item.yaw_deg) > 5:
            break
    alpha = np.asarray(Image.open(io.BytesIO(shot.photo)))[..., 3] > 127
    mesh = welded(shot.truth)
    agreeing = {turned: outline_iou(mesh, alpha, turned=turned) for turned in (False, True)}
    assert agreeing[False] > 0.88
    assert agreeing[True] < agreeing[False] - 0.1


def outline_iou(mesh: trimesh.Trimesh, alpha: np.ndarray, *, turned: bool) -> float:
    """Overlap of a photo's subject with a mesh seen from its front, or mirrored; both fill a square."""
    rows, columns = np.nonzero(alpha)
    size = 128
    subject = Image.fromarray(alpha[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1])
    seen = np.asarray(subject.resize((size, size), Image.Resampling.NEAREST))
    low, high = mesh.bounds
    right = (mesh.vertices[:, 0] - low[0]) / (high - low)[0]
    down = (high[1] - mesh.vertices[:, 1]) / (high - low)[1]
    right = 1 - right if turned else right
    places = np.stack([right * size, down * size, mesh.vertices[:, 2]], axis=1).astype(np.float32)
    drawn = TorchRaster().rasterize(
        torch.from_numpy(places), torch.from_numpy(mesh.faces.copy()), height=size, width=size
    )
    shown = drawn.covered.numpy()
    return float((shown & seen).sum() / (shown | seen).sum())


def test_the_front_of_a_truth_has_the_colour_of_the_products_front():
    """A block, red before and blue behind: +Z must be red."""
    red, blue = np.float32([0.9, 0.1, 0.1]), np.float32([0.1, 0.1, 0.9])
    paint = Material(lambda places: np.where(places[:, 1:2] > 0, red, blue))
    posed = pose(assemble("block", [Part(box((1, 0.6, 0.8)), paint)]), np.eye(3))
    mesh = trimesh.load(io.BytesIO(encode_truth(posed, 0, WarpRaster())), file_type="glb", force="mesh")
    colours = mesh.visual.to_color().vertex_colors[mesh.faces].mean(axis=1)
    before, behind = mesh.face_normals[:, 2] > 0.9, mesh.face_normals[:, 2] < -0.9
    assert before.any() and behind.any()
    assert (colours[before, 0] > 2 * colours[before, 2]).all()
    assert (colours[behind, 2] > 2 * colours[behind, 0]).all()


def test_a_truth_does_not_say_that_a_model_made_it(folder):
    for entry in listed(folder):
        data = (folder / entry["truth"]).read_bytes()
        assert b"/algorithmicMedia" in data and b"trainedAlgorithmicMedia" not in data


def test_one_seed_gives_one_folder_however_many_processes_make_it(folder, tmp_path):
    make(tmp_path, plans(4), jobs=2)
    assert content(tmp_path) == content(folder)


def test_a_folder_is_continued_and_grows(tmp_path):
    assert make(tmp_path, plans(1)) == [False]
    before = content(tmp_path)
    assert make(tmp_path, plans(2)) == [True, False]
    assert before.items() - content(tmp_path).items() == {
        (name, before[name]) for name in ("truth.json", "products.csv")
    }
    [photo] = [tmp_path / entry["file"] for entry in listed(tmp_path)][:1]
    photo.unlink()
    assert make(tmp_path, plans(2)) == [True, False]
    assert photo.exists()


def test_another_size_makes_our_own_photos_anew(tmp_path):
    make(tmp_path, plans(1))
    assert make(tmp_path, plans(1, size_px=64)) == [False]
    [entry] = listed(tmp_path)
    assert entry["size_px"] == 64
    assert set(content(tmp_path)) == {entry["file"], entry["truth"], "truth.json", "products.csv"}


@pytest.mark.parametrize("kind", ["file", "truth", "truth.json", "products.csv"])
def test_what_others_wrote_is_left_alone(folder, tmp_path, kind):
    name = listed(folder)[0].get(kind, kind)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"mine")
    with pytest.raises(OutputError, match="in the way"):
        make(tmp_path, plans(1))
    assert content(tmp_path) == {name: b"mine"}


def test_an_edited_photo_is_left_alone(tmp_path):
    make(tmp_path, plans(1))
    photo = tmp_path / listed(tmp_path)[0]["file"]
    photo.write_bytes(b"edited")
    with pytest.raises(OutputError, match="in the way"):
        make(tmp_path, plans(1, size_px=64))
    assert photo.read_bytes() == b"edited"


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"families": ("mug", "spaceship")}, "E_FAMILY"),
        ({"seed": -1}, "E_SEED"),
        ({"seed": 2**53}, "E_SEED"),
        ({"size_px": 8}, "E_SIZE"),
    ],
)
def test_what_cannot_be_made_is_refused(changes, code):
    with pytest.raises(UsageError) as refused:
        plans(1, **changes)
    assert refused.value.code == code


def test_the_command_tells_a_program_what_it_made(tmp_path):
    words = ["products", "-n", "1", "-o", str(tmp_path), "--family", "mug", "--size-px", "64", "--json"]
    for made in (1, 0):
        done = CliRunner().invoke(app, words)
        assert done.exit_code == 0
        assert json.loads(done.stdout) == {"folder": str(tmp_path), "made": made, "kept": 1 - made}


def test_a_file_where_the_folder_should_be_is_named(tmp_path):
    (tmp_path / "out").write_bytes(b"")
    with pytest.raises(OutputError, match="out"):
        make(tmp_path / "out", plans(1))
