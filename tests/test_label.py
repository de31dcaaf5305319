"""What is printed on a product can be read on its finished asset, as its photo shows it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePosixPath

import printed_carton as carton
import pytest
from PIL import Image

from crm_cli.export.scene import build_scene
from crm_cli.export.writers import write_asset
from crm_cli.pipeline import Bake, Imagine, Prepare, Reconstruct, Unwrap
from crm_cli.preset import Preset, load_preset
from crm_cli.records import Job, TexturedMesh
from crm_cli.toolbox import Toolbox, open_toolbox

PRESET = load_preset("default").preset
PHOTO_PX = 2048
LEGIBLE, ILLEGIBLE = 0.9, 0.6
"""Shares of letters read right; at the second one nobody would know what stands there."""


@pytest.fixture(scope="module")
def toolbox() -> Toolbox:
    return open_toolbox(PRESET, device="cpu", threads=1)


@pytest.fixture(scope="module")
def taken(toolbox: Toolbox) -> carton.Photographed:
    return carton.photograph(toolbox.raster, seed=1, size_px=PHOTO_PX, yaw_deg=20, fall_deg=12)


@pytest.fixture(scope="module")
def fronts(
    toolbox: Toolbox, taken: carton.Photographed, tmp_path_factory: pytest.TempPathFactory
) -> dict[bool, str]:
    """What is read on the front of the finished file, with the photo laid on (True) and without."""
    folder = tmp_path_factory.mktemp("carton")
    Image.fromarray(taken.photo).save(folder / "carton.png")
    job = Job(
        root=folder,
        path=PurePosixPath("carton.png"),
        stem=PurePosixPath("carton"),
        id="0",
        scratch=folder,
        max_mpixels=64,
    )
    photo, cutout = Prepare(toolbox, PRESET)(job)
    [views] = Imagine(toolbox, PRESET)([cutout])
    drawn = Reconstruct(toolbox, PRESET)(views, cutout)
    unwrapped = Unwrap(toolbox, PRESET)(drawn)

    def read(preset: Preset, name: str) -> str:
        textured = Bake(toolbox, preset)(unwrapped, drawn.field, views, photo, cutout)
        return read_file(write(textured, folder, name), textured, toolbox, taken)

    without = replace(PRESET, texture=replace(PRESET.texture, photo=False))
    return {True: read(PRESET, "with"), False: read(without, "without")}


def write(textured: TexturedMesh, folder: Path, name: str) -> Path:
    write_asset(build_scene(textured, provenance={}), folder, name, replace(PRESET.export, formats=("glb",)))
    return folder / f"{name}.glb"


def read_file(file: Path, textured: TexturedMesh, toolbox: Toolbox, taken: carton.Photographed) -> str:
    assert textured.camera is not None
    return carton.read(carton.front_of(file, textured.camera, toolbox.raster), taken.corners)


def test_the_photo_itself_can_be_read(taken: carton.Photographed) -> None:
    assert carton.right_share(carton.read(taken.photo, taken.corners), taken.text) > 0.99


def test_reading_depends_on_what_is_printed(toolbox: Toolbox, taken: carton.Photographed) -> None:
    other = carton.photograph(toolbox.raster, seed=2, size_px=1024, yaw_deg=20, fall_deg=12)
    read = carton.read(other.photo, other.corners)
    assert carton.right_share(read, other.text) > 0.95
    assert carton.right_share(read, taken.text) < 0.1


def test_a_printed_label_stays_legible(fronts: dict[bool, str], taken: carton.Photographed) -> None:
    assert carton.right_share(fronts[True], taken.text) > LEGIBLE


def test_views_alone_would_blur_it(fronts: dict[bool, str], taken: carton.Photographed) -> None:
    assert carton.right_share(fronts[False], taken.text) < ILLEGIBLE
