import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import nvdiffrast_stand_in
import pytest
import torch

from crm_cli.frame import FRONT, TOP, VIEWS
from crm_cli.mesh import raster as rasters
from crm_cli.mesh.raster import (
    RASTERS,
    NvdiffrastRaster,
    TorchRaster,
    WarpRaster,
    interpolate,
    project,
    render_silhouette,
)
from crm_cli.records import Mesh
from crm_cli.toolbox import accelerators

RADIUS = 0.8


@pytest.fixture(params=[TorchRaster, WarpRaster], ids=lambda tool: tool.name)
def raster(request):
    return request.param()


@pytest.fixture
def nvdiffrast_adaptor(monkeypatch):
    """NvdiffrastRaster on the CPU: all of it but the library, whose part the stand-in plays."""
    nvdiffrast_stand_in.put_in_place(monkeypatch)
    monkeypatch.setattr(rasters, "_cuda_for", lambda tensor: torch.device("cpu"))
    return NvdiffrastRaster()


@pytest.fixture(params=["torch", "warp", "nvdiffrast_adaptor"])
def any_raster(request):
    """The rasterisers, and the adaptor too: where few triangles tell enough."""
    table = {"torch": TorchRaster, "warp": WarpRaster}
    return table[request.param]() if request.param in table else request.getfixturevalue(request.param)


@pytest.fixture(params=["cpu", *accelerators()[:1]])
def device(request):
    return request.param


def triangles(*corners, device="cpu"):
    """Positions and faces of triangles that share nothing; corners are (x, y, depth)."""
    positions = torch.tensor(corners, dtype=torch.float32, device=device).reshape(-1, 3)
    return positions, torch.arange(len(positions), device=device).view(-1, 3)


def soup(faces=400, size_px=64):
    """Random triangles of all sizes, some off the grid, corners in steps of half a pixel to provoke ties."""
    generator = torch.Generator().manual_seed(5)
    positions = torch.randn(300, 3, generator=generator) * size_px / 2 + size_px / 2
    positions[:, :2] = (positions[:, :2] * 2).round() / 2
    return positions, torch.randint(300, (faces, 3), generator=generator)


def sphere(rings=48, radius=RADIUS):
    """Triangles between rings of latitude."""
    polar, turn = np.linspace(0, np.pi, rings), np.linspace(0, 2 * np.pi, 2 * rings)
    grid = np.stack(np.broadcast_arrays(
        np.sin(polar)[:, None] * np.cos(turn), np.sin(polar)[:, None] * np.sin(turn), np.cos(polar)[:, None]
    ), axis=-1)  # fmt: skip
    index = np.arange(grid[..., 0].size).reshape(grid.shape[:2])
    a, b, c, d = index[:-1, :-1], index[1:, :-1], index[1:, 1:], index[:-1, 1:]
    quads = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    return Mesh(vertices=(grid.reshape(-1, 3) * radius).astype(np.float32), faces=quads.astype(np.int64))


def test_a_triangle_covers_the_pixel_centres_inside_it(any_raster, device):
    positions, faces = triangles((0, 0, 0), (8.2, 0, 0), (0, 8.2, 0), device=device)
    found = any_raster.rasterize(positions, faces, height=8, width=10)
    row, column = torch.meshgrid(torch.arange(8) + 0.5, torch.arange(10) + 0.5, indexing="ij")
    assert torch.equal(found.covered.cpu(), row + column < 8.2)
    assert found.face.dtype == torch.int64
    assert set(found.face.unique().tolist()) == {-1, 0}


def test_every_centre_belongs_to_one_of_the_triangles_that_tile_the_grid(any_raster):
    # Corners on pixel centres: every edge and every corner hits some.
    lines = torch.arange(0, 13).float() - 0.5
    y, x = torch.meshgrid(lines, lines, indexing="ij")
    index = torch.arange(169).view(13, 13)
    a, b, c, d = (index[i : 12 + i, j : 12 + j].reshape(-1) for i, j in ((0, 0), (0, 1), (1, 1), (1, 0)))
    faces = torch.cat((torch.stack((a, b, c), 1), torch.stack((a, d, c), 1)))  # the second wound backwards
    positions = torch.stack((x.reshape(-1), y.reshape(-1), torch.zeros(169)), dim=1)
    times = sum(
        any_raster.rasterize(positions, face[None], height=11, width=11).covered.int() for face in faces
    )
    assert torch.equal(times, torch.ones(11, 11, dtype=torch.int32))


def test_hits_alone_are_blended_as_the_whole_picture_is(any_raster):
    positions, faces = soup(faces=12)
    found = any_raster.rasterize(positions, faces, height=64, width=64)
    assert 0 < int(found.covered.sum()) < 64 * 64
    whole = interpolate(positions, faces, found)
    assert torch.equal(interpolate(positions, faces, found.hits())[0], whole[found.covered])
    assert not whole[~found.covered].any()


def test_barycentrics_lead_back_to_the_pixel_centre(any_raster, device):
    positions, faces = (tensor.to(device) for tensor in soup())
    found = any_raster.rasterize(positions, faces, height=64, width=64)
    where = interpolate(positions, faces, found)[found.covered].cpu()
    row, column = found.covered.cpu().nonzero(as_tuple=True)
    assert len(where) > 3000
    torch.testing.assert_close(where[:, 0], column + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(where[:, 1], row + 0.5, atol=1e-3, rtol=0)
    torch.testing.assert_close(where[:, 2], found.depth[found.covered].cpu(), atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(found.barycentric.sum(-1), found.covered.float(), atol=1e-6, rtol=0)


def test_each_pixel_shows_the_nearest_of_all_triangles_alone(any_raster):
    positions, faces = soup(faces=60)
    found = any_raster.rasterize(positions, faces, height=64, width=64)
    alone = [any_raster.rasterize(positions, face[None], height=64, width=64) for face in faces]
    depths = torch.stack([one.depth.where(one.covered, torch.tensor(-torch.inf)) for one in alone])
    nearest, winner = depths.max(dim=0)
    assert torch.equal(found.face, winner.where(nearest > -torch.inf, torch.tensor(-1)))


@pytest.mark.parametrize("depth", [3.0, 0.0, -3.0])
def test_equal_depth_goes_to_the_lower_face_and_nearer_beats_it(any_raster, device, depth):
    flat = [(0, 0, depth), (9, 0, depth), (0, 9, depth)]
    nearer = [(0, 0, depth + 0.01), (4, 0, depth + 0.01), (0, 4, depth + 0.01)]
    positions, faces = triangles(*flat, *flat, *nearer, device=device)
    found = any_raster.rasterize(positions, faces, height=4, width=4)
    assert found.face[0, 0] == 2
    assert found.face[3, 3] == 0


def test_minus_zero_is_no_farther_than_zero(raster):
    positions, faces = triangles(
        *[(0, 0, -0.0), (9, 0, -0.0), (0, 9, -0.0)], *[(0, 0, 0), (9, 0, 0), (0, 9, 0)]
    )
    assert (raster.rasterize(positions, faces, height=2, width=2).face == 0).all()


def test_triangles_without_area_and_without_number_draw_nothing(any_raster):
    positions, faces = triangles((0, 0, 0), (4, 4, 0), (8, 8, 0))
    assert not any_raster.rasterize(positions, faces, height=8, width=8).covered.any()
    assert not any_raster.rasterize(positions, faces[:0], height=8, width=8).covered.any()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), 1e9])
def test_positions_that_whole_numbers_cannot_hold_are_refused(any_raster, wrong):
    positions, faces = triangles((0, 0, 0), (wrong, 4, 0), (8, 0, 0))
    with pytest.raises(ValueError, match="finite"):
        any_raster.rasterize(positions, faces, height=8, width=8)


def test_warp_and_torch_agree_to_the_last_bit(device):
    positions, faces = (tensor.to(device) for tensor in soup(faces=2000, size_px=100))
    left, right = (
        tool.rasterize(positions, faces, height=90, width=110) for tool in (WarpRaster(), TorchRaster())
    )
    assert torch.equal(left.face, right.face)
    assert torch.equal(left.barycentric, right.barycentric)
    assert torch.equal(left.depth, right.depth)


@pytest.mark.skipif(
    not accelerators() or NvdiffrastRaster.why_not("cuda") is not None, reason="needs CUDA and nvdiffrast"
)
def test_nvdiffrast_agrees_but_for_pixels_on_edges():
    mesh = sphere()
    positions = project(torch.from_numpy(mesh.vertices), VIEWS[FRONT], 512)
    faces = torch.from_numpy(mesh.faces)
    left, right = (
        tool.rasterize(positions, faces, height=512, width=512)
        for tool in (NvdiffrastRaster(), TorchRaster())
    )
    same = left.face == right.face
    assert same.float().mean() > 0.999
    torch.testing.assert_close(left.barycentric[same], right.barycentric[same], atol=1e-4, rtol=0)


def test_the_nvdiffrast_adaptor_draws_what_the_definition_draws(nvdiffrast_adaptor):
    positions, faces = soup(faces=300, size_px=100)
    left, right = (
        tool.rasterize(positions, faces, height=90, width=110) for tool in (nvdiffrast_adaptor, TorchRaster())
    )
    assert torch.equal(left.covered, right.covered)
    same = left.face == right.face
    assert same[right.covered].float().mean() > 0.999
    torch.testing.assert_close(left.depth, right.depth, atol=1e-3, rtol=1e-5)
    torch.testing.assert_close(left.barycentric[same], right.barycentric[same], atol=1e-3, rtol=0)
    assert left.face.dtype == torch.int64
    assert left.barycentric.dtype == left.depth.dtype == torch.float32


def test_the_nvdiffrast_adaptor_leaves_overlapping_flat_faces_to_the_lowest(nvdiffrast_adaptor):
    positions, faces = soup(faces=80)
    positions[:, 2] = 0
    left, right = (
        tool.rasterize(positions, faces, height=64, width=64) for tool in (nvdiffrast_adaptor, TorchRaster())
    )
    assert torch.equal(left.face, right.face)


def test_the_nvdiffrast_adaptor_answers_with_depths_of_ours_however_far(nvdiffrast_adaptor):
    positions, faces = soup(faces=80)
    positions[:, 2] = positions[:, 2] * 50 + 7000
    found = nvdiffrast_adaptor.rasterize(positions, faces, height=64, width=64)
    expected = interpolate(positions[:, 2:], faces, found)[..., 0]
    assert torch.equal(found.depth, expected)
    assert found.depth[found.covered].min() > 100


def test_the_nvdiffrast_adaptor_opens_one_context_for_a_device(nvdiffrast_adaptor, monkeypatch):
    opened = []
    monkeypatch.setattr(
        nvdiffrast_stand_in.RasterizeCudaContext, "__init__", lambda self, device: opened.append(device)
    )
    for _ in range(2):
        nvdiffrast_adaptor.rasterize(*soup(faces=3), height=8, width=8)
    assert opened == [torch.device("cpu")]


@pytest.mark.skipif(not accelerators(), reason="needs CUDA")
def test_nvdiffrast_draws_where_the_positions_lie():
    assert rasters._cuda_for(torch.zeros(3, device="cuda:0")) == torch.device("cuda:0")
    assert rasters._cuda_for(torch.zeros(3)) == torch.device("cuda")


def test_nvdiffrast_gets_our_first_row_as_its_lowest_and_nearer_as_smaller():
    clip = rasters._clip_space(torch.tensor([[0.0, 0.0, 5.0], [40.0, 20.0, -5.0]]), 20, 40)
    assert clip[0].tolist() == pytest.approx([-1, -1, -0.99, 1])
    assert clip[1].tolist() == pytest.approx([1, 1, 0.99, 1])


def test_a_nvdiffrast_that_is_missing_and_one_that_is_broken_are_told_apart(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "nvdiffrast", None)
    assert NvdiffrastRaster.why_not("cuda:0") == "not installed: run `crm doctor` for the build command"
    monkeypatch.delitem(sys.modules, "nvdiffrast")
    package = tmp_path / "nvdiffrast" / "torch"
    package.mkdir(parents=True)
    (package.parent / "__init__.py").touch()
    (package / "__init__.py").write_text("raise ImportError('_nvdiffrast_c.so: undefined symbol: _ZN3c10')")
    monkeypatch.syspath_prepend(tmp_path)
    assert NvdiffrastRaster.why_not("cuda:0") == (
        "found but cannot be imported: ImportError: _nvdiffrast_c.so: undefined symbol: _ZN3c10"
    )
    sys.modules.pop("nvdiffrast", None)


def test_torch_draws_the_same_in_small_chunks(monkeypatch):
    positions, faces = soup()
    whole = TorchRaster().rasterize(positions, faces, height=64, width=64)
    monkeypatch.setattr(rasters, "CHUNK", 997)
    chunked = TorchRaster().rasterize(positions, faces, height=64, width=64)
    assert torch.equal(whole.face, chunked.face)
    assert torch.equal(whole.barycentric, chunked.barycentric)


@pytest.mark.parametrize("view", VIEWS, ids=lambda view: view.name)
def test_a_projected_coordinate_picture_reads_back_its_own_coordinates(raster, view):
    mesh = sphere()
    vertices, faces = torch.from_numpy(mesh.vertices), torch.from_numpy(mesh.faces)
    found = raster.rasterize(project(vertices, view, 96), faces, height=96, width=96)
    points = interpolate(vertices, faces, found)
    centres = (torch.arange(96) + 0.5) / 48 - 1
    right, up, toward = (points @ torch.tensor(axis, dtype=torch.float32) for axis in view[1:])
    hit = found.covered
    torch.testing.assert_close(right[hit], centres.expand(96, 96)[hit], atol=1e-4, rtol=0)
    torch.testing.assert_close(up[hit], -centres[:, None].expand(96, 96)[hit], atol=1e-4, rtol=0)
    torch.testing.assert_close(toward[hit], found.depth[hit], atol=1e-4, rtol=0)
    assert (toward[hit] > -1e-2).all()  # the near half


def test_a_sphere_covers_its_circle(raster):
    silhouette = render_silhouette(sphere(rings=96), raster, VIEWS[TOP], 256)
    assert silhouette.dtype == bool
    assert silhouette.mean() == pytest.approx(np.pi * RADIUS**2 / 4, rel=2e-3)


def test_a_silhouette_has_the_views_left_on_its_left(raster):
    mesh = sphere(radius=0.2)
    aside = Mesh(vertices=mesh.vertices + np.float32([0.5, 0, 0.3]), faces=mesh.faces)
    row, column = np.nonzero(render_silhouette(aside, raster, VIEWS[FRONT], 200))
    assert column.mean() == pytest.approx(49.5, abs=0.5)  # +X is left of the front view
    assert row.mean() == pytest.approx(69.5, abs=0.5)


def test_nvdiffrast_is_never_chosen_unasked():
    assert [tool.name for tool in RASTERS] == ["warp", "torch", "nvdiffrast"]
    assert all(tool.why_not("cpu") is None for tool in RASTERS[:2])


def test_each_rasteriser_says_what_it_lacks(monkeypatch):
    assert NvdiffrastRaster.why_not("cpu") == "needs CUDA"
    assert WarpRaster.why_not("mps") == "needs the CPU or CUDA"
    assert TorchRaster.why_not("mps") is None
    monkeypatch.setattr(rasters, "find_spec", lambda name: None)
    assert "pip install warp-lang" in WarpRaster.why_not("cuda:0")


def test_kernels_are_kept_in_the_users_cache_or_else_in_a_temporary_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert rasters._cache_folder() == tmp_path / "crm" / "warp"
    blocked = tmp_path / "file"
    blocked.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))
    monkeypatch.setattr(rasters.tempfile, "tempdir", str(tmp_path))
    fallback = rasters._cache_folder()
    assert fallback.parent == tmp_path
    assert os.access(fallback, os.W_OK)


def test_the_kernels_compile_for_cuda_also_where_there_is_none(tmp_path):
    import warp

    kernels = rasters._kernels()
    architectures = warp.get_cuda_supported_archs()
    if not architectures:
        pytest.skip("this warp was built without CUDA")
    (file,) = warp.compile_aot_module(kernels, arch=architectures[0], module_dir=tmp_path, use_ptx=True)
    assert {"draw", "resolve"} <= {
        name for name in ("draw", "resolve") if f".entry {name}_" in file.read_text()
    }


@pytest.mark.slow
def test_processes_that_compile_at_once_agree_and_say_nothing(tmp_path):
    code = (
        "import sys, torch; from crm_cli.mesh.raster import WarpRaster;"
        "found = WarpRaster().rasterize(torch.eye(3) * 8, torch.arange(3)[None], height=8, width=8);"
        "sys.exit(0 if int(found.covered.sum()) in range(20, 40) else 9)"
    )
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path),
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    started = [
        subprocess.Popen(
            [sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for _ in range(3)
    ]
    answers = [process.communicate(timeout=120)[0] for process in started]
    assert [process.returncode for process in started] == [0, 0, 0]
    assert answers == [b"", b"", b""]
    assert any((tmp_path / "crm" / "warp").iterdir())
