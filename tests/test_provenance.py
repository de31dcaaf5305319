"""What a file says of how it was made: the words, and how they are found again in every format."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from coordinate_box import coordinate_box
from hypothesis import given
from hypothesis import strategies as st

from crm_cli.errors import NoInput, UsageError
from crm_cli.export import provenance
from crm_cli.export.provenance import LIBRARIES, Provenance, read_label, versions
from crm_cli.export.scene import Scene, build_scene
from crm_cli.export.writers import write_asset
from crm_cli.names import SUFFIXES
from crm_cli.preset import load_preset, read_json

PRESET = load_preset("tiny").preset

SAID = Provenance(
    crm_version="0.1.0",
    photo_sha256="a" * 64,
    preset=PRESET.as_json(),
    seed=7,
    weights="embedded",
    weights_sha256="b" * 64,
    libraries={"numpy": "2.4.0", "torch": "2.13.0+cpu"},
    device="cpu",
    precision="float32",
    rasteriser="warp",
    surface="crm",
    more={"size_mm": "250 - 80.5"},
)


def write(folder: Path, name: str, words: Mapping[str, str], *, stem: str = "box") -> Path:
    """A box that says these words of itself."""
    folder.mkdir(exist_ok=True)
    return write_scene(build_scene(coordinate_box(), provenance=words), folder, name, stem=stem)


def write_scene(scene: Scene, folder: Path, name: str, *, stem: str = "box") -> Path:
    """One format's main file."""
    return write_asset(scene, folder, stem, replace(PRESET.export, formats=(name,)))[0]


@pytest.mark.parametrize("name", SUFFIXES)
@pytest.mark.parametrize("moved", ["box.moved", "a [1]:b.bin", "caf\udce9", "皮鞋"])
def test_every_format_says_all_of_it_whatever_the_file_is_called(
    tmp_path: Path, name: str, moved: str
) -> None:
    file = write(tmp_path / "out", name, SAID.as_words()).rename(tmp_path / moved)
    label = read_label(file)
    assert label.format == name
    words = label.provenance.as_words()
    assert words.pop("digitalSourceType").endswith("/trainedAlgorithmicMedia")
    assert words == SAID.as_words()
    assert label.provenance.settings == json.loads(PRESET.as_json())


def test_the_preset_that_a_file_holds_is_the_preset_that_made_it() -> None:
    for name, architecture in (("tiny", "small"), ("fine", "small"), ("exact", "release")):
        preset = load_preset(name, architecture=architecture).preset
        again = read_json(preset.as_json(), weights=preset.weights, origin="a.glb")
        assert again == preset
        assert (
            Provenance.from_words({"photo_sha256": "a" * 64, "preset": preset.as_json()}).preset_sha256
            == preset.fingerprint()
        )


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda tree: tree.pop("seed"), "E_PRESET_MISSING"),
        (lambda tree: tree["texture"].pop("size_px"), "E_PRESET_MISSING"),
        (lambda tree: tree.update(wings=2), "E_PRESET_KEY"),
        (lambda tree: tree["rgb"].update(steps=0), "E_PRESET_VALUE"),
        (lambda tree: tree["rgb"].update(steps="auto; rm"), "E_PRESET_VALUE"),
        (lambda tree: tree.update(rgb=7), "E_PRESET_VALUE"),
    ],
)
def test_a_preset_of_another_version_is_refused_by_name(
    change: Callable[[object], object], code: str
) -> None:
    tree = json.loads(PRESET.as_json())
    change(tree)
    with pytest.raises(UsageError, match=r"a\.glb") as caught:
        read_json(json.dumps(tree), weights="embedded", origin="a.glb")
    assert caught.value.code == code


@pytest.mark.parametrize("text", ["", "[]", "{", "[" * 100_000])
def test_a_preset_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match=r"a\.glb: its preset"):
        read_json(text, weights="embedded", origin="a.glb")


def test_an_edited_preset_is_no_preset() -> None:
    words = {**SAID.as_words(), "preset": PRESET.as_json().replace('"seed":0', '"seed":1')}
    assert Provenance.from_words(words).settings is None


def test_neither_path_time_nor_user_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = SAID.as_words()
    assert set(words) == {
        "crm_version", "photo_sha256", "preset", "preset_sha256", "seed", "weights", "weights_sha256",
        "libraries", "device", "precision", "rasteriser", "surface", "size_mm",
    }  # fmt: skip
    assert '"weights"' not in words["preset"], "a folder's path"
    assert set(versions()) <= set(LIBRARIES) and {"torch", "numpy", "xatlas", "pillow"} <= set(versions())


def test_what_a_tool_is_made_of_is_said_only_where_it_was_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "version", lambda name: "1.0")
    versions.cache_clear()
    assert "onnxruntime" not in versions("warp", "crm", "alpha")
    assert versions("rembg")["onnxruntime"] == "1.0"
    tree = json.loads(PRESET.as_json())
    tree["matting"]["method"], tree["export"]["compression"] = "rembg", "draco"
    said = replace(SAID, preset=json.dumps(tree), preset_sha256="")
    assert said.tools == ("warp", "crm", "rembg", "draco")
    assert {"rembg", "dracopy"} <= versions(*said.tools).keys()
    versions.cache_clear()


def test_files_of_the_first_version_are_ours_too(tmp_path: Path) -> None:
    words = {"photo_sha256": "a" * 64, "seed": "3", "crm_version": "0.1.0", "preset_sha256": "c" * 64}
    said = read_label(write(tmp_path, "obj", words)).provenance
    assert (said.seed, said.crm_version, said.settings) == (3, "0.1.0", None)


GLB = struct.Struct("<4sIIII")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"glTF",
        b"# crm 0.1.0\nv 0 0 0\n",
        b"# crm 0.1.0\n# photo_sha256: short\n",
        b"# crm 0.1.0\n# photo_sha256: \xff\n",
        b"# crm 0.1.0\n# photo_sha256: " + b"a" * 64 + b"\n# seed: x\n",
        b"# crm 0.1.0\n# photo_sha256: " + b"a" * 64 + b"\n# libraries: [\n",
        b"# Blender v4\no box\n",
        b"PXR-USDC" + bytes(200),
        b"PK\x03\x04" + bytes(200),
        GLB.pack(b"glTF", 2, 0, 2**32 - 1, 0x4E4F534A),
        GLB.pack(b"glTF", 2, 0, 4, 0x4E4F534A) + b"null",
        GLB.pack(b"glTF", 2, 0, 28, 0x4E4F534A) + b'{"asset":{"version":"2.0"}} ',
        GLB.pack(b"glTF", 2, 0, 10_000, 0x4E4F534A) + b"[" * 10_000,
        GLB.pack(b"glTF", 2, 0, 33, 0x4E4F534A) + b'{"asset":{"extras":{"seed": 12}}}',
    ],
)
def test_what_is_not_ours_is_said_to_be_not_ours(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.glb").write_bytes(data)
    with pytest.raises(NoInput) as caught:
        read_label(tmp_path / "a.glb")
    assert caught.value.code == "E_NOT_OURS"


@pytest.mark.parametrize("name", SUFFIXES)
@given(cut=st.integers(0, 3000))
def test_a_file_that_was_cut_is_read_or_refused(
    tmp_path_factory: pytest.TempPathFactory, name: str, cut: int
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    file = write(folder, name, SAID.as_words())
    file.write_bytes(file.read_bytes()[:cut])
    try:
        assert read_label(file).provenance.photo_sha256 == "a" * 64
    except NoInput as error:
        assert error.code == "E_NOT_OURS"
