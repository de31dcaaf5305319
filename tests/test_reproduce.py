"""`crm reproduce`: the photo and the file alone make the same bytes again, or the difference is named."""

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from in_process import Crm
from miniature import write as write_miniature
from PIL import Image
from test_provenance import SAID, write
from test_story import convert

from crm_cli.export.provenance import Provenance, read_label
from crm_cli.models.weights import DIRECTORY
from crm_cli.preset import settings
from crm_cli.run.reproduce import _stem
from crm_cli.toolbox import usable_cores

PHOTOS = Path(__file__).parent / "photos"
FORMATS = [str(name) for name in settings()["export.formats"].choices]

ODD = "caf\u00e9 [1] #2.v2.jpg"
"""A name that OBJ and USD cannot refer to as it is."""


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    (folder / "küche").mkdir()
    shutil.copy(PHOTOS / "bottle.png", folder / "皮鞋.png")
    shutil.copy(PHOTOS / "kitchen" / "mug.jpg", folder / "küche" / ODD)
    return folder


@pytest.fixture(scope="module")
def out(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "meshes"
    convert(photos, folder, "--format", ",".join(FORMATS), "--set", "seed=5", "--set", "mesh.faces=700")
    return folder


def main_files(out: Path) -> list[Path]:
    return sorted(file for file in out.rglob("*") if file.suffix in (".glb", ".obj", ".usdc", ".usdz"))


def reproduce(crm: Crm, file: Path, photo: Path, *more: str | Path) -> tuple[int, str, str]:
    return crm("reproduce", file, "--photo", photo, "--progress", "none", *more)


def test_every_format_of_every_name_is_made_again_byte_for_byte(photos: Path, out: Path, crm: Crm) -> None:
    files = main_files(out)
    assert len(files) == 2 * len(FORMATS)
    # One after the other: the mug in every format, the bottle in the one that has all in it.
    for file in [*(file for file in files if file.parent != out), out / "皮鞋.glb"]:
        photo = photos / "皮鞋.png" if file.parent == out else photos / "küche" / ODD
        assert reproduce(crm, file, photo) == (0, "identical\n", ""), file.name


def test_a_lone_file_needs_neither_its_folder_nor_the_photos_name(
    photos: Path, out: Path, crm: Crm, tmp_path: Path
) -> None:
    photo = Path(shutil.copy(photos / "küche" / ODD, tmp_path / "IMG_0001.jpeg"))
    lone = Path(shutil.copy(out / "küche" / ODD.replace(".jpg", ".obj"), tmp_path))
    code, said, warned = reproduce(crm, lone, photo, "--json", "-o", tmp_path / "kept")
    assert code == 0 and json.loads(said)["result"] == "identical"
    assert warned.count("is not beside it, and was not compared") == 2
    assert (tmp_path / "kept" / lone.name).read_bytes() == lone.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([lone.name, photo.name, "kept"])


def test_a_level_of_a_chain_in_real_size_under_a_slug_is_made_again(
    photos: Path, crm: Crm, tmp_path: Path
) -> None:
    table = tmp_path / "products.csv"
    table.write_text("file,height_mm\n皮鞋,250\n", encoding="utf-8")
    words = ["--products", table, "--format", "glb", "--set", "export.lods=1,0.5"]
    limits = ["limits.slugs=true", "limits.texture_px=64", "limits.min_texture_px=32"]
    convert(photos / "皮鞋.png", tmp_path / "out", *words, *(w for limit in limits for w in ("--set", limit)))
    for level in range(2):
        made = tmp_path / "out" / f"pi-xie_lod{level}.glb"
        assert reproduce(crm, made, photos / "皮鞋.png") == (0, "identical\n", "")


def test_names_that_keep_the_photos_suffix_are_kept(crm: Crm, tmp_path: Path) -> None:
    convert(PHOTOS / "bottle.png", tmp_path / "out", "--keep-ext", "--format", "obj")
    assert reproduce(crm, tmp_path / "out" / "bottle.png.obj", PHOTOS / "bottle.png")[0] == 0


def test_an_edited_file_differs_and_it_is_said_in_what(
    photos: Path, out: Path, crm: Crm, tmp_path: Path
) -> None:
    edited = Path(shutil.copytree(out, tmp_path / "out")) / "皮鞋.obj"
    lines = edited.read_text("utf-8").splitlines(keepends=True)
    place = next(index for index, line in enumerate(lines) if line.startswith("vn "))
    lines[place] = "vn 0 1 0\n"
    text = "".join(lines)
    version = read_label(edited).provenance.libraries["numpy"]
    edited.write_text(text.replace(f'"numpy":"{version}"', '"numpy":"1.0"'), "utf-8")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(edited.with_suffix(".png"))
    code, said, warned = reproduce(crm, edited, photos / "皮鞋.png")
    assert (code, said) == (
        3,
        f"differs: normals; libraries.numpy: 1.0 → {version}; 皮鞋.png: texture\n",
    )
    assert f"warning: numpy was 1.0 then, and is {version} here" in warned


def test_weights_are_found_by_their_digest_whatever_they_are_called(
    photos: Path, crm: Crm, tmp_path: Path
) -> None:
    mine = Path(shutil.copytree(DIRECTORY, tmp_path / "mine"))
    photo = photos / "皮鞋.png"
    convert(photo, tmp_path / "out", "--weights", str(mine), "--format", "glb")
    made = tmp_path / "out" / "皮鞋.glb"
    assert read_label(made).provenance.weights == "mine"
    assert reproduce(crm, made, photo) == (0, "identical\n", ""), "what ships has the same digest"
    moved = mine.rename(tmp_path / "theirs")
    assert reproduce(crm, made, photo, "--weights", moved) == (0, "identical\n", "")


def planted(tmp_path: Path, **changes: str) -> tuple[Path, Path]:
    """A file of words alone, and the photo it says it was made of."""
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"a photo")
    words = {**SAID.as_words(), "photo_sha256": hashlib.sha256(b"a photo").hexdigest(), **changes}
    return write(tmp_path / "out", "glb", words), photo


def test_another_photo_is_refused_before_anything_is_made(tmp_path: Path, crm: Crm) -> None:
    file, photo = planted(tmp_path)
    photo.write_bytes(b"another photo")
    code, said, warned = reproduce(crm, file, photo)
    assert (
        (code, said) == (7, "") and "not the photo it was made of" in warned and "[E_OTHER_PHOTO]" in warned
    )
    assert reproduce(crm, file, tmp_path / "none.jpg")[0] == 7


def test_weights_that_are_not_here_are_named(tmp_path: Path, crm: Crm) -> None:
    file, photo = planted(tmp_path, weights="theirs")
    code, _, warned = reproduce(crm, file, photo)
    assert code == 6 and f"theirs ({'b' * 12}…), are not here [E_WEIGHTS_MISSING]" in warned
    code, _, warned = reproduce(crm, file, photo, "--weights", "embedded")
    assert code == 6 and "[E_WEIGHTS_OTHER]" in warned


def test_a_file_without_its_settings_cannot_be_made_again(tmp_path: Path, crm: Crm) -> None:
    file, photo = planted(tmp_path, preset="{}")
    code, _, warned = reproduce(crm, file, photo)
    assert code == 2 and "[E_NO_RECIPE]" in warned
    assert reproduce(crm, photo, photo)[0] == 7


def test_what_is_made_never_goes_where_the_file_lies(photos: Path, out: Path, crm: Crm) -> None:
    code, _, warned = reproduce(crm, out / "皮鞋.glb", photos / "皮鞋.png", "-o", out)
    assert code == 2 and "[E_OUT_HOLDS_FILE]" in warned


def with_levels(lods: list[float]) -> Provenance:
    tree = json.loads(SAID.preset)
    tree["export"]["lods"] = lods
    return Provenance.from_words({**SAID.as_words(), "preset": json.dumps(tree), "preset_sha256": ""})


def test_files_of_a_chain_are_called_after_one_asset() -> None:
    chain = with_levels([1.0, 0.5])
    assert _stem(Path("a/shoe_lod1.glb"), chain) == "shoe"
    assert _stem(Path("a/shoe.jpg_lod0.glb"), chain) == "shoe.jpg"
    assert _stem(Path("a/shoe_lod1.glb"), with_levels([1.0])) == "shoe_lod1"
    assert _stem(Path("a/shoe_lod1.glb"), SAID) == "shoe_lod1"


@pytest.mark.slow
def test_large_networks_get_the_precision_and_the_threads_of_then(
    photos: Path, crm: Crm, tmp_path: Path
) -> None:
    weights, photo = write_miniature(tmp_path / "mini").directory, photos / "皮鞋.png"
    quick = ("--set", "rgb.steps=2", "--set", "ccm.steps=2", "--format", "glb")
    words = ("--weights", str(weights), "--jobs", "2", "--precision", "float32", *quick)
    convert(photo, tmp_path / "out", *words)
    made = tmp_path / "out" / "皮鞋.glb"
    said = read_label(made).provenance
    assert (said.precision, said.more["threads"]) == ("float32", str(max(1, usable_cores() // 2)))
    assert reproduce(crm, made, photo, "--weights", weights) == (0, "identical\n", "")
