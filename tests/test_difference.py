"""In what two files differ, by the name that a person gives it."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coordinate_box import coordinate_box
from test_provenance import PRESET, SAID, write_scene

from crm_cli.export.difference import differences
from crm_cli.export.provenance import Format, Provenance
from crm_cli.export.scene import Scene, build_scene
from crm_cli.export.writers import SUFFIXES

SCENE = build_scene(coordinate_box(), provenance=SAID.as_words())


def written(scene: Scene, folder: Path, kind: Format) -> Path:
    folder.mkdir()
    return write_scene(scene, folder, kind)


def unlike(tmp_path: Path, kind: Format, **changes: Any) -> list[str]:
    one = written(SCENE, tmp_path / "one", kind)
    return differences(one, written(replace(SCENE, **changes), tmp_path / "other", kind), kind)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_equal_files_differ_in_nothing(tmp_path: Path, kind: Format) -> None:
    assert unlike(tmp_path, kind) == []


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize(
    ("part", "changes"),
    [
        ("texture coordinates", {"uv": np.clip(SCENE.uv + 0.01, 0, 1).astype(np.float32)}),
        ("normals", {"normals": np.ascontiguousarray(SCENE.normals[:, [1, 0, 2]])}),
        ("points", {"points": SCENE.points + np.float32(0.25)}),
    ],
)
def test_what_differs_is_named_and_the_rest_is_not(
    tmp_path: Path, kind: Format, part: str, changes: dict[str, Any]
) -> None:
    # Where the points lie is also stated as the box they fill.
    assert set(unlike(tmp_path, kind, **changes)) - {"structure", "extent"} == {part}


@pytest.mark.parametrize("kind", ["glb", "usdz"])
def test_another_texture_inside_a_file_is_named(tmp_path: Path, kind: Format) -> None:
    found = unlike(tmp_path, kind, texture=np.zeros((64, 64, 3), np.uint8))
    assert "texture" in found and not {"points", "normals", "faces"} & set(found)


def saying(said: Provenance) -> dict[str, str]:
    return {"digitalSourceType": SCENE.provenance["digitalSourceType"], **said.as_words()}


@pytest.mark.parametrize("kind", SUFFIXES)
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda said: replace(said, seed=8), "seed: 7 → 8"),
        (lambda said: replace(said, libraries={"numpy": "2.5.0"}), "libraries.numpy: 2.4.0 → 2.5.0"),
        (lambda said: replace(said, more={}), "size_mm: 250 - 80.5 → none"),
        (
            lambda said: replace(said, preset=replace(PRESET, seed=1).as_json(), preset_sha256=""),
            "preset.seed: 0 → 1",
        ),
    ],
)
def test_what_is_said_differently_of_the_making_is_told_word_for_word(
    tmp_path: Path, kind: Format, change: Callable[[Provenance], Provenance], words: str
) -> None:
    found = unlike(tmp_path, kind, provenance=saying(change(SAID)))
    assert words in found
    assert not {"points", "normals", "texture", "structure"} & set(found)


@pytest.mark.parametrize("kind", SUFFIXES)
def test_a_file_that_was_cut_differs_in_its_structure(tmp_path: Path, kind: Format) -> None:
    one, other = (written(SCENE, tmp_path / name, kind) for name in ("one", "other"))
    other.write_bytes(other.read_bytes()[:-100])
    found = differences(one, other, kind)
    assert found, kind
