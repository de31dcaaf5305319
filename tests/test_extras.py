from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest
from coordinate_box import coordinate_box
from runs import run

from crm_cli.errors import EnvironmentProblem
from crm_cli.export.extras import COMPRESSORS, KTX2_TOOLS, check_export
from crm_cli.export.textures import encode_texture
from crm_cli.preset import Exporting, load_preset


def exporting(**settings: object) -> Exporting:
    return dataclasses.replace(load_preset().preset.export, **settings)


@pytest.fixture
def bare(monkeypatch, tmp_path) -> Path:
    """A machine without anything that is optional; the folder is all there is on PATH."""
    for module in COMPRESSORS.values():
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


def program(folder: Path, name: str, script: str) -> None:
    file = folder / name
    file.write_text(f"#!{sys.executable}\n{script}")
    file.chmod(0o755)


@pytest.mark.parametrize("name", ["default", "web", "banner", "fine", "tiny", "exact"])
def test_shipped_presets_need_nothing_optional(bare, name):
    check_export(load_preset(name).preset.export)


@pytest.mark.parametrize("compression", COMPRESSORS)
def test_a_compression_that_is_not_installed_is_refused_with_its_extra(bare, compression):
    with pytest.raises(EnvironmentProblem, match=rf"pip install 'crm-cli\[{compression}\]'") as caught:
        check_export(exporting(compression=compression))
    assert caught.value.code == "E_COMPRESSION"
    assert str(caught.value).count("pip install") == 1
    check_export(exporting(compression=compression, formats=("obj", "usdz")))  # which have no compression


def test_ktx2_without_a_program_for_it_is_refused_and_says_which_there_are(bare):
    with pytest.raises(EnvironmentProblem, match="basisu, ktx, toktx on PATH"):
        check_export(exporting(texture="ktx2"))
    check_export(exporting(texture="ktx2", formats=("obj", "usdz")))  # which get a JPEG
    program(bare, "toktx", "")
    check_export(exporting(texture="ktx2"))


@pytest.mark.parametrize(
    ("setting", "code"), [("export.texture=ktx2", "E_KTX2"), ("export.compression=draco", "E_COMPRESSION")]
)
def test_a_run_is_refused_before_its_output_folder_is_touched(bare, setting, code):
    photos = bare / "in"
    photos.mkdir()
    (photos / "a.jpg").write_bytes(b"never read")
    with pytest.raises(EnvironmentProblem) as caught:
        run(photos, setting)
    assert caught.value.code == code
    assert not (bare / "out").exists()


@pytest.mark.parametrize("tool", KTX2_TOOLS)
def test_a_program_is_given_the_picture_and_where_to_put_the_other(bare, tool):
    program(bare, tool, "import shutil, sys\n"
        "png, ktx2 = ([w for w in sys.argv if w.endswith(s)][0] for s in ('.png', '.ktx2'))\n"
        "assert '230' in sys.argv\n"
        "shutil.copy(png, ktx2)\n")  # fmt: skip
    picture = encode_texture(coordinate_box().texture, "ktx2", quality=90)
    assert picture.suffix == ".ktx2"
    assert picture.data == encode_texture(coordinate_box().texture, "png", quality=90).data
    assert [file.name for file in bare.iterdir()] == [tool]


@pytest.mark.parametrize("script", ["raise SystemExit('no such option')", ""])
def test_a_program_that_writes_nothing_is_named_with_what_it_said(bare, script):
    program(bare, "ktx", script)
    with pytest.raises(EnvironmentProblem, match="ktx could not write the texture"):
        encode_texture(coordinate_box().texture, "ktx2", quality=90)
