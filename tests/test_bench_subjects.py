from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from crm_cli.bench import subjects
from crm_cli.bench.subjects import CorpusSurface, Solid, corpus, write_photos
from crm_cli.mesh.inspect import shape_of
from crm_cli.mesh.raster import WarpRaster
from crm_cli.models import flexicubes
from crm_cli.models.field import surface
from crm_cli.records import Mesh


def test_the_corpus_holds_sound_surfaces_as_large_as_trained_networks_draw() -> None:
    meshes = corpus()
    assert len(meshes) == 4
    shapes = [shape_of(mesh) for mesh in meshes]
    assert all(shape.is_sound and shape.components == 1 for shape in shapes)
    assert all(15_000 <= shape.faces <= 60_000 for shape in shapes)
    # A handle has a hole; the others have none.
    assert [shape.euler for shape in shapes] == [2, 2, 0, 2]
    assert all(np.abs(mesh.vertices).max() < 0.99 for mesh in meshes)


def test_a_surface_of_the_corpus_is_given_for_every_one_that_is_drawn_in_turn() -> None:
    marks = [Mesh(vertices=np.full((3, 3), n, np.float32), faces=np.array([[0, 1, 2]])) for n in range(2)]
    ball = Solid(lambda points: points.norm(dim=1) - 0.5)
    surfacer = CorpusSurface(marks)
    drawn = [surface(ball, 8, surfacer=surfacer) for _ in range(3)]
    assert [mesh.vertices[0, 0] for mesh in drawn] == [0, 1, 0]


def test_the_field_s_own_surface_is_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    extract = flexicubes.extract

    def counting(vertices: torch.Tensor, sdf: torch.Tensor, resolution: int, **more: object) -> object:
        asked.append(resolution)
        return extract(vertices, sdf, resolution, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(subjects.flexicubes, "extract", counting)
    mark = Mesh(vertices=np.zeros((3, 3), np.float32), faces=np.array([[0, 1, 2]]))
    surface(Solid(lambda points: points.norm(dim=1) - 0.5), 8, surfacer=CorpusSurface([mark]))
    assert asked == [8]


def test_photos_are_those_of_shops_and_the_same_every_time(tmp_path: Path) -> None:
    raster = WarpRaster()
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
    names = write_photos(tmp_path / "one", raster, count=2)
    assert write_photos(tmp_path / "two", raster, count=2) == names
    files = [[(tmp_path / folder / name).read_bytes() for name in names] for folder in ("one", "two")]
    assert files[0] == files[1] and len(set(files[0])) == 2
    for name in names:
        with Image.open(tmp_path / "one" / name) as picture:
            assert min(picture.size) >= 512 and np.asarray(picture).std() > 10
